// Command tanist keeps exactly one copy of a program active. See `tanist help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process"
)

// version is set by the linker for releases.
var version = ""

func main() {
	// The guard is this binary too. It comes first: it is to be small and soon there, and a flag library is neither.
	if len(os.Args) > 1 && os.Args[1] == "guard" {
		os.Exit(process.GuardMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "gate" {
		os.Exit(gateMain())
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// The exit codes, the same for every command.
const (
	exitOK         = 0
	exitFailure    = 1
	exitNotActive  = 3
	exitUsage      = 64
	exitStore      = 69 // the store, or no controller, can be reached
	exitBug        = 70
	exitInProgress = 75
	exitDenied     = 77
	exitConfig     = 78
	exitForce      = 107 // refused; --force overrides
)

// exitCodes explains them.
func exitCodes() []struct {
	code  int
	means string
} {
	return []struct {
		code  int
		means string
	}{
		{exitOK, "done; it is active"},
		{exitFailure, "failure"},
		{exitNotActive, "not active"},
		{exitUsage, "the command line can't be understood"},
		{exitStore, "the store, or every controller, can't be reached"},
		{exitBug, "a bug"},
		{exitInProgress, "still in progress"},
		{exitDenied, "access denied"},
		{exitConfig, "the configuration can't be used, or the name is taken"},
		{exitForce, "refused for safety; --force overrides"},
	}
}

// exitError is an error with an exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func exit(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

// exitCode returns the code of an error.
func exitCode(err error) int {
	var coded *exitError
	var problems config.Problems
	var command commandError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &command):
		return int(command)
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &problems):
		return exitConfig
	case errors.Is(err, election.ErrDenied):
		return exitDenied
	case errors.Is(err, election.ErrNameTaken):
		return exitConfig
	default:
		return exitFailure
	}
}

// run runs one command and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := execute(ctx, root)
	code := exitCode(err)
	var problems config.Problems
	switch {
	case errors.As(err, new(commandError)): // it has had its own words about it
	case errors.As(err, &problems):
		fmt.Fprintln(errOut, problems) // each line begins with its place
	case err != nil:
		fmt.Fprintln(errOut, "tanist: "+err.Error())
	}
	return code
}

// execute runs the command; a panic of it is a bug, and told as one.
func execute(ctx context.Context, root *cobra.Command) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = exit(exitBug, "this is a bug in tanist %s, please report it: %v\n%s", versionText(), p, debug.Stack())
		}
	}()
	return root.ExecuteContext(ctx)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "tanist",
		Short: "Keep exactly one copy of a program active on a set of hosts",
		Long: "Tanist keeps exactly one copy of a program (the controller) active on a set of hosts, keeps its agents and\n" +
			"one URL pointed there, and keeps every other copy out of the shared PostgreSQL repository.",
		SilenceUsage: true, SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return exit(exitUsage, "%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(
		sidecarCommand(), agentwatchCommand(), haproxyCommand(), runCommand(), listCommand(), describeCommand(), historyCommand(), eventsCommand(),
		explainCommand(), switchoverCommand(), cancelCommand(), pauseCommand(), resumeCommand(), isActiveCommand(), urlCommand(),
		waitCommand(), configCommand(), doctorCommand(), repositoryCommand(), renderCommand(), manCommand(), versionCommand(),
	)
	// The library's own commands are to refuse what they don't know as ours do.
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Run, c.RunE = nil, func(_ *cobra.Command, args []string) error {
				topic, left, err := root.Find(args)
				if err != nil || (len(left) > 0 && topic == root) {
					return unknownCommand(root, strings.Join(args, " "))
				}
				return topic.Help()
			}
		case "completion":
			c.Args = noArgs
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			for _, shell := range c.Commands() {
				shell.Args = noArgs
			}
		}
	}
	return root
}

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2 // the library's own default where it makes the message itself
	hint := fmt.Sprintf("`%s --help` lists them", cmd.CommandPath())
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return exit(exitUsage, "unknown command %q: %s", name, hint)
}

// noArgs refuses arguments with the exit code for it. A command that only has others was given one that it does not know.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.HasSubCommands() {
		return unknownCommand(cmd, args[0])
	}
	if len(args) > 0 {
		return exit(exitUsage, "unexpected argument %q; see `%s --help`", args[0], cmd.CommandPath())
	}
	return nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "tanist "+versionText())
			return nil
		},
	}
}

// versionText returns the release, or what the build knows of its source.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}

// signals returns a context that the first SIGTERM or SIGINT ends, and SIGUSR2 with [election.ErrDetach]; the cause says
// which. A second SIGTERM or SIGINT ends the process at once: the guard ends the controller then.
func signals(ctx context.Context, who string) (context.Context, func()) {
	ctx, end := context.WithCancelCause(ctx)
	caught := make(chan os.Signal, 4)
	signal.Notify(caught, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		for n := 0; ; {
			select {
			case <-done:
				return
			case s := <-caught:
				if s == syscall.SIGUSR2 {
					end(election.ErrDetach)
					continue
				}
				if n++; n > 1 {
					os.Exit(exitFailure)
				}
				end(fmt.Errorf("the %s was told to end (%v)", who, s))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(caught)
		close(done)
		end(nil)
	}
}

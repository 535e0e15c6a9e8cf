package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/process"
)

// version is set by the linker for releases.
var version = ""

func main() {
	// The guard is this binary too. It comes first, before the flag library, to be small and start
	// fast.
	if len(os.Args) > 1 && os.Args[1] == "guard" {
		os.Exit(process.GuardMain())
	}
	if len(os.Args) > 1 && os.Args[1] == "gate" {
		os.Exit(daemon.GateMain())
	}
	if len(os.Args) > 1 && os.Args[1] == "vip-keeper" {
		os.Exit(daemon.VIPKeeperMain())
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	printed := &output{to: out}
	root.SetOut(printed)
	root.SetErr(errOut)
	err := execute(ctx, root)
	if err == nil && printed.err != nil {
		err = exit.Errorf(exit.Failure, "cannot write the output: %v", printed.err)
	}
	code := exit.Code(err)
	var problems config.Problems
	switch {
	case errors.As(err, new(exit.Command)): // it has already reported its error
	case errors.As(err, &problems):
		complain(errOut, problems.Error()) // each line begins with its position
	case err != nil:
		complain(errOut, "tanist: "+err.Error())
	}
	return code
}

// output is the standard output of a command. A script must not take for the whole what was cut.
type output struct {
	to  io.Writer
	err error // the first
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// complain prints why a command failed, but does not block forever on the output.
func complain(out io.Writer, text string) {
	said := make(chan struct{})
	go func() {
		defer close(said)
		fmt.Fprintln(out, text)
	}()
	select {
	case <-said:
	case <-time.After(time.Second):
	}
}

// execute runs the command. A panic is a bug and is reported as one.
func execute(ctx context.Context, root *cobra.Command) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = exit.Errorf(exit.Bug, "this is a bug in tanist %s, please report it: %v\n%s", versionText(), p, debug.Stack())
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
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: refuseEmpty,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return exit.Errorf(exit.Usage, "%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.Version = versionText()
	root.SetVersionTemplate("tanist {{.Version}}\n")
	root.AddCommand(
		sidecarCommand(), agentwatchCommand(), haproxyCommand(), vipCommand(), runCommand(), listCommand(), clustersCommand(), auditCommand(), describeCommand(), logsCommand(),
		historyCommand(), eventsCommand(), explainCommand(), simulateCommand(), drillCommand(), switchoverCommand(), failoverCommand(), confirmDeadCommand(), restartCommand(),
		cancelCommand(), pauseCommand(), resumeCommand(), standbyCommand(), banCommand(), notifyCommand(), unbanCommand(), forgetCommand(), removeCommand(), isActiveCommand(), isLiveCommand(),
		urlCommand(), waitCommand(), configCommand(), doctorCommand(), repositoryCommand(), storeCommand(), pluginCommand(), renderCommand(), manCommand(), versionCommand(),
	)
	// The library's own commands must reject unknown input as ours do.
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

// refuseEmpty returns an error if a flag that selects something is given without a value. In a script
// that is a variable that is not set, and the default would select something else.
func refuseEmpty(cmd *cobra.Command, _ []string) error {
	for _, name := range []string{"to", "at", "config", "cluster", "store", "consul", "prefix", "dsn"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return exit.Errorf(exit.Usage, "--%s is empty: give a value, or leave it out", name)
		}
	}
	return nil
}

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2 // the default that the library uses for its own message
	hint := fmt.Sprintf("`%s --help` lists them", cmd.CommandPath())
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return exit.Errorf(exit.Usage, "unknown command %q: %s", name, hint)
}

// noArgs rejects arguments with the usage exit code. If the command has subcommands, the argument
// is an unknown one.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.HasSubCommands() {
		return unknownCommand(cmd, args[0])
	}
	if len(args) > 0 {
		return exit.Errorf(exit.Usage, "unexpected argument %q; see `%s --help`", args[0], cmd.CommandPath())
	}
	return nil
}

func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return exit.Errorf(exit.Usage, "unexpected argument %q; see `%s --help`", args[1], cmd.CommandPath())
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "dev"

// innerEnv names the directory of the lab in the environment of the inner process.
const innerEnv = "TANIST_LAB_INNER"

func main() { os.Exit(run()) }

func run() int {
	var o options
	code := 0
	root := &cobra.Command{
		Use:   "tanist-lab",
		Short: "A whole cluster on this machine, and every fault in turn",
		Long: "tanist-lab starts etcd, PostgreSQL, HAProxy, two controllers with their sidecars and two agents on this machine,\n" +
			"breaks one thing after another and shows what users, the repository and the store saw of it.\n" +
			"It needs no configuration and leaves nothing behind.",
		Example: "  tanist-lab                              the tour\n" +
			"  tanist-lab --keep                       the tour, then stay until Ctrl-C\n" +
			"  tanist-lab --scenario none --keep       only the cluster\n" +
			"  tanist-lab --scenario kill-controller --runs 20\n" +
			"  tanist-lab --scenario store-away --on-store-loss failsafe",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if dir := os.Getenv(innerEnv); dir != "" {
				code = inner(dir, o)
			} else {
				code = outer(o.dir)
			}
			return nil
		},
	}
	f := root.Flags()
	f.StringSliceVar(&o.scenarios, "scenario", nil, "only these parts of the tour: "+strings.Join(scenarioNames(), ", ")+", none (default: all)")
	f.IntVar(&o.runs, "runs", 1, "how often each part runs; the table shows medians")
	f.BoolVar(&o.keep, "keep", false, "leave the cluster running after the tour, until Ctrl-C")
	f.StringVar(&o.profile, "profile", "fast", "lease profile: fast (with quick health checks) or default (with the default ones)")
	f.StringVar(&o.store, "store", "etcd", "etcd, consul, or postgres (the repository's own server, and nothing else); Consul is built from the source tree at its first use, which takes minutes")
	f.StringVar(&o.storeLoss, "on-store-loss", "stop", "what the active does when the store is away: stop, failsafe or keep; --scenario store-away shows it")
	f.StringVar(&o.json, "json", "", "write the results to this file as JSON")
	f.StringVar(&o.tanist, "tanist", "", "the tanist binary (default: next to tanist-lab, or built from the source tree)")
	f.StringVar(&o.dir, "dir", "", "directory for everything; must not exist, is removed at the end (default: a temporary one)")
	f.DurationVar(&o.probe, "probe", 10*time.Millisecond, "time between two requests to the virtual URL")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no events, only the results")
	root.AddCommand(etcdCommand(), controllerCommand(), migrateCommand(), agentCommand(), composeCommand(),
		holdCommand(), watchCommand(), noteCommand(), hangCommand(), consulSetupCommand())
	if err := root.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "tanist-lab: %v\n", err)
		if _, ok := errors.AsType[*usageError](err); ok || strings.HasPrefix(err.Error(), "unknown ") {
			return 64
		}
		return 1
	}
	return code
}

// usageError is a mistake on the command line.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

// outer runs the lab as a second process and cleans up after it, however it ended. It does nothing
// else, so that little can prevent the cleanup. If it dies itself, the inner process sees the end
// of the pipe and ends.
func outer(dir string) int {
	// Orphans of the inner process become children of this one.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintf(os.Stderr, "tanist-lab: cannot become a subreaper: %v\n", err)
		return 1
	}
	var err error
	keep := os.Getenv("TANIST_KEEP") // the files stay here
	if dir == "" {
		dir, err = os.MkdirTemp(keep, "tanist-lab-")
	} else {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // if this is root, PostgreSQL runs as another user and must have access
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "tanist-lab: cannot make a directory: %v\n", err)
		return 1
	}
	defer func() {
		sweep(nil)
		if keep != "" {
			fmt.Fprintf(os.Stderr, "tanist-lab: the files are in %s\n", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintf(os.Stderr, "tanist-lab: cannot remove %s: %v\n", dir, err)
		}
	}()

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(os.Stderr, "tanist-lab: cannot make a pipe: %v\n", err)
		return 1
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{r}
	cmd.Env = append(os.Environ(), innerEnv+"="+dir)
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "tanist-lab: cannot start: %v\n", err)
		return 1
	}
	r.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// A terminal's Ctrl-C has already reached the inner process; a second signal does no
			// harm there.
			_ = cmd.Process.Signal(s)
		case err := <-ended:
			if err == nil {
				return 0
			}
			if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() > 0 {
				return e.ExitCode()
			}
			fmt.Fprintf(os.Stderr, "tanist-lab: ended unexpectedly: %v\n", err)
			return 1
		}
	}
}

// inner runs the lab.
func inner(dir string, o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pipe := os.NewFile(3, "outer")
	unix.CloseOnExec(3)
	go func() {
		_, _ = pipe.Read(make([]byte, 1)) // never gets a byte: it returns when the outer process ends
		cancel(errors.New("the outer process died"))
	}()
	err := labMain(ctx, dir, o)
	if context.Cause(ctx) != nil && context.Cause(ctx).Error() == "the outer process died" {
		// The outer process is gone, so clean up here.
		sweep(nil)
		_ = os.RemoveAll(dir)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "tanist-lab: interrupted; nothing is left behind")
		return 130
	}
	fmt.Fprintf(os.Stderr, "tanist-lab: %v\n", err)
	return 1
}

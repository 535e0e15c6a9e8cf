package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
)

// Exit codes of `tanist run` beside the command's own, as shells and their kin use them.
const (
	exitNotFound = 127
	exitSignal   = 128 // + the number of the signal
)

// lockFlags are those of `tanist run`.
type lockFlags struct {
	access
	name       string
	profile    string
	url        string
	user       string
	stopSignal string
	stopAfter  time.Duration
	patience   time.Duration
	once       bool
	quiet      bool
}

func runCommand() *cobra.Command {
	var f lockFlags
	cmd := &cobra.Command{
		Use: "run -C NAME -- COMMAND [ARG…]", Short: "Run a command while holding the lease of a cluster, and end it if the lease is lost",
		Long: "Run a command while holding the lease of a cluster: a lock that is not only advisory. The command starts when the lease is\n" +
			"held and every earlier holder's validity is over; when the lease is lost, or this process is killed, a guard ends the\n" +
			"command with its whole process tree before another may start. It finds TANIST_CLUSTER, TANIST_NAME and TANIST_TERM (a fencing\n" +
			"token) in its environment, and nothing on its standard input.\n\n" +
			"SIGTERM and SIGINT stop the command (--stop-signal, then KILL after --stop-timeout) and release the lease; a second one kills it at\n" +
			"once. SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH are passed on. As PID 1 of a container it reaps what is orphaned. After a lost lease it waits for the next turn, unless\n" +
			"--once is given.\n\n" +
			"Exit codes: those of the command (128 + n if signal n ended it), 3 lease lost (--once), 64 usage, 69 no store, 75 not held within\n" +
			"--timeout, 77 no access, 127 no such command.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exit(exitUsage, "what is to be run? Give it after --: tanist run -C NAME -- COMMAND [ARG…]")
			}
			if dash := cmd.ArgsLenAtDash(); dash > 0 {
				return exit(exitUsage, "%q is not expected before --", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			log := newLog(config.Log{Level: "info", Format: "auto"}, cmd.ErrOrStderr())
			if f.quiet {
				log = log.Level(zerolog.WarnLevel)
			}
			return f.run(cmd.Context(), args, log)
		},
	}
	f.flags(cmd)
	cmd.Flags().SetInterspersed(false) // what follows the command is the command's
	cmd.Flags().StringVar(&f.name, "name", "", "name of this candidate (default the host's name and the process id)")
	cmd.Flags().StringVar(&f.profile, "profile", "default", "lease times: default or fast; the same for every candidate")
	cmd.Flags().StringVar(&f.url, "url", "", "URL that the command serves at: published once its port accepts")
	cmd.Flags().StringVar(&f.user, "user", "", "run the command as this user")
	cmd.Flags().StringVar(&f.stopSignal, "stop-signal", "TERM", "signal that asks the command to end")
	cmd.Flags().DurationVar(&f.stopAfter, "stop-timeout", 10*time.Second, "how long it has to end before it is killed")
	cmd.Flags().DurationVar(&f.patience, "timeout", 0, "give up if the lease is not held within this time (default: wait for ever)")
	cmd.Flags().BoolVar(&f.once, "once", false, "end, instead of waiting for the next turn, when the lease is lost")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "say only what is wrong")
	return cmd
}

// check completes and checks what was given.
func (f *lockFlags) check(args []string) error {
	if f.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return exit(exitUsage, "the host's name can't be told, so give --name: %v", err)
		}
		f.name = fmt.Sprintf("%.48s-%d", host, os.Getpid())
	}
	if err := config.CheckName(f.name); err != nil {
		return exit(exitUsage, "--name: %v", err)
	}
	if n := stopSignal(f.stopSignal); n == 0 {
		return exit(exitUsage, "--stop-signal: there is no signal %q", f.stopSignal)
	}
	if f.stopAfter <= 0 {
		return exit(exitUsage, "--stop-timeout: it must be more than zero")
	}
	if f.url != "" {
		if _, err := health.PortOf(f.url); err != nil {
			return exit(exitUsage, "--url: %v", err)
		}
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return exit(exitNotFound, "%s: %v", args[0], errors.Unwrap(err))
	}
	return nil
}

func (f *lockFlags) run(ctx context.Context, args []string, log zerolog.Logger) (err error) {
	if err := f.check(args); err != nil {
		return err
	}
	where, err := f.resolve()
	if err != nil {
		return err
	}
	if where.Timing, err = config.Profile(where.Store, f.profile); err != nil {
		return exit(exitUsage, "--profile: %v", err)
	}
	where.Agents = false
	plain := log // the sidecar adds its own
	log = log.With().Str("cluster", where.Cluster).Str("controller", f.name).Logger()
	backend, err := openStore(where, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	if err := checkStore(ctx, backend, where); err != nil {
		return err
	}
	host, err := hostID()
	if err != nil {
		return err
	}

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	once := &turn{
		driver: process.New(process.Config{Command: args, User: f.user, StopSignal: stopSignal(f.stopSignal), Log: log}), end: end, once: f.once,
	}
	told := make(chan os.Signal, 2)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(told)
	around, stop := context.WithCancel(context.WithoutCancel(ctx))
	var others sync.WaitGroup
	defer others.Wait()
	defer stop()
	others.Go(func() {
		for again := false; ; again = true {
			select {
			case s := <-told:
				if !again {
					end(&signalled{s.(syscall.Signal)})
					continue
				}
				log.Warn().Stringer("signal", s).Msg("told to end once more: killing the command")
				_ = once.driver.Stop(around, 0) // the stop that is under way says how it went
			case <-around.Done():
				return
			}
		}
	})
	others.Go(func() { once.driver.ForwardSignals(around) })
	others.Go(func() { process.ReapOrphans(around) })
	others.Go(func() { runAnnouncer(around, backend) })
	if f.patience > 0 {
		late := time.AfterFunc(f.patience, func() {
			if !once.held.Load() {
				end(exit(exitInProgress, "the lease of %s was not to be had within %v", where.Cluster, f.patience))
			}
		})
		defer late.Stop()
	}
	if snap, err := backend.Read(ctx); err == nil && snap.Active != nil { // for people: nothing depends on it
		log.Info().Str("holder", clean(snap.Active.Controller)).Uint64("term", uint64(snap.Active.Term)).Msg("waiting for the lease")
	}

	cfg := sidecar.Config{
		Cluster: where.Cluster, Name: f.name, URL: f.url, Version: versionText(), Host: host, PID: os.Getpid(), Priority: 100,
		Incarnation: rand.Text(), Backend: backend, Timing: where.Timing, Controller: once,
		Port:         func(context.Context) error { return nil },
		StartTimeout: startWithin, StopTimeout: f.stopAfter, YieldWait: where.Timing.TTL, RestartWithin: time.Minute,
		Hook:  func(context.Context, string, []string) error { return nil },
		Alive: processAlive(host), Log: plain,
	}
	if f.url != "" {
		port, _ := health.PortOf(f.url) // it was checked
		cfg.Port = func(ctx context.Context) error { return health.WaitPort(ctx, port) }
	}
	if err := sidecar.New(cfg).Run(ctx); err != nil {
		if errors.Is(err, election.ErrNameTaken) {
			return exit(exitConfig, "another live process of cluster %s is %s already: choose another --name", where.Cluster, f.name)
		}
		return err
	}
	return once.outcome(context.Cause(ctx))
}

// startWithin bounds the start of a command whose URL is to be published.
const startWithin = 30 * time.Second

// signalled is the end that SIGTERM or SIGINT asked for.
type signalled struct{ syscall.Signal }

func (s *signalled) Error() string { return "told to end: " + s.String() }

var (
	errDone = errors.New("the command has ended")
	errLost = &exitError{exitNotActive, errors.New("the lease was lost, and the command ended")}
)

// turn fits a command that may end by itself to the sidecar, for which a controller's end is a failure: here it is the end of
// the run, with a clean release.
type turn struct {
	driver *process.Exec
	end    context.CancelCauseFunc
	once   bool
	held   atomic.Bool // the lease was, at some time
	over   atomic.Bool // the command ended by itself

	mu      sync.Mutex
	exited  chan struct{} // what the sidecar waits for: an end that is not the command's own
	stopped bool
}

var _ sidecar.Controller = (*turn)(nil)

func (t *turn) Prepare() { t.driver.Prepare() }

func (t *turn) Start(ctx context.Context, env []string, deadline election.Instant) error {
	t.held.Store(true)
	exited := make(chan struct{})
	t.mu.Lock()
	t.exited, t.stopped = exited, false
	t.mu.Unlock()
	if err := t.driver.Start(ctx, env, deadline); err != nil {
		if ctx.Err() == nil {
			t.end(&exitError{exitFailure, err})
		}
		return err
	}
	go func() { // ends with the command, which Stop sees to
		<-t.driver.Exited()
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.stopped && t.driver.EndedByItself() {
			t.over.Store(true)
			t.end(errDone)
			return
		}
		close(exited)
	}()
	return nil
}

func (t *turn) Extend(deadline election.Instant) { t.driver.Extend(deadline) }

func (t *turn) Exited() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exited
}

func (t *turn) Exit() string { return t.driver.Exit() }

func (t *turn) Stop(ctx context.Context, grace time.Duration) error {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	if err := t.driver.Stop(ctx, grace); err != nil {
		return err
	}
	if t.once && !t.over.Load() {
		t.end(errLost) // unless it was told to end before
	}
	return nil
}

// outcome turns the way it ended into an exit code.
func (t *turn) outcome(cause error) error {
	var asked *signalled
	code := t.driver.ExitCode()
	switch {
	case errors.Is(cause, errDone):
	case !errors.As(cause, &asked):
		return cause
	case code < 0: // not started, or it can't be known
		code = exitSignal + int(asked.Signal)
	}
	if code == 0 {
		return nil
	}
	return commandError(code)
}

// commandError is the exit code of the command, which has had its own words about it.
type commandError int

func (e commandError) Error() string {
	return fmt.Sprintf("the command ended with exit code %d", int(e))
}

package main

import (
	"context"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
)

// daemonFlags are the flags of the long-running commands.
type daemonFlags struct {
	file string
	set  []string
}

func (d *daemonFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&d.file, "config", "c", "", "configuration file (required)")
	cmd.Flags().StringArrayVar(&d.set, "set", nil, "override a value of the file: lease.ttl=3s (repeatable)")
}

func (d *daemonFlags) load(kind config.Kind) (*config.Loaded, error) {
	if d.file == "" {
		return nil, exit.Errorf(exit.Usage, "give the configuration file with -c FILE; `tanist config init --kind %s` writes one to begin with", kind)
	}
	l, err := config.Load(config.Options{File: d.file, Want: kind, Set: d.set})
	if err != nil {
		return nil, exit.With(exit.Config, err)
	}
	if err := daemon.Check(l); err != nil {
		return nil, exit.With(exit.Config, l.Problems(err))
	}
	return l, nil
}

// signals returns the signal handling of a process of this file. With prove, it first checks that a
// successor could start.
func (d *daemonFlags) signals(who string, l *config.Loaded, log *daemon.Log, prove bool) daemon.Signals {
	s := daemon.Signals{Who: who, Reread: func() { d.reread(l, log) }}
	if prove {
		s.Detach = func(ctx context.Context) bool { return d.provable(ctx, log) }
	}
	return s
}

// reread applies the part of the file that may change while the process runs: the log level.
func (d *daemonFlags) reread(l *config.Loaded, log *daemon.Log) {
	next, err := config.Load(config.Options{File: d.file, Want: l.Kind, Set: d.set})
	if err == nil {
		err = daemon.Check(next)
	}
	if err != nil {
		log.Error().Err(err).Msg("configuration refused: nothing changed")
		return
	}
	log.SetLevel(next.LogLevel())
	var later []string
	for _, path := range config.Changed(l, next) {
		if path != "log.level" {
			later = append(later, path)
		}
	}
	log.Info().Str("log_level", next.LogLevel()).Strs("needs_restart", later).Msg("configuration reloaded")
}

// provable checks the file with the binary that would start next, so that nothing is released for a
// successor that could not start.
func (d *daemonFlags) provable(ctx context.Context, log *daemon.Log) bool {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		log.Error().Err(err).Msg("reload refused: nothing changed")
		return false
	}
	args := []string{os.Args[0], "config", "check", "-c", d.file}
	for _, set := range d.set {
		args = append(args, "--set", set)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Args, cmd.WaitDelay = args, time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		log.Error().Err(err).Str("output", strings.TrimSpace(string(out))).Msg("reload refused: nothing changed")
		return false
	}
	return true
}

// proveTimeout bounds the check of the next process's configuration.
const proveTimeout = 20 * time.Second

func sidecarCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "sidecar -c FILE", Short: "Run next to a controller: hold or wait for the lease; start, check and stop the controller", Args: noArgs,
		Long: "Run next to a controller.\n\nSIGTERM, SIGINT and SIGQUIT end the reign as a planned move: the controller is stopped and another takes over.\n" +
			"SIGUSR2 detaches: the controller keeps running until its lease ends, and the next `tanist sidecar` adopts it without an\n" +
			"outage. If the next one could not start with this file, nothing changes, and the log has the reason. SIGHUP reloads the\n" +
			"file: log.level takes effect, and the log names the keys that need a restart.",
		Example: "  tanist sidecar -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load(config.KindController)
			if err != nil {
				return err
			}
			log := daemon.OpenLog(l.Controller.Log, cmd.ErrOrStderr())
			defer log.Close()
			ctx, done := flags.signals("sidecar", l, log, true).Context(cmd.Context())
			defer done()
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50) // an idle sidecar allocates little, and its memory is the program's loss
			}
			return daemon.Sidecar(ctx, l, daemon.Self{Version: versionText(), Log: log, Events: eventStream})
		},
	}
	flags.flags(cmd)
	return cmd
}

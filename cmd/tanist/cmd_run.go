package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
)

func runCommand() *cobra.Command {
	var a access
	var f daemon.RunOptions
	var quiet bool
	cmd := &cobra.Command{
		Use: "run -C NAME -- COMMAND [ARG…]", Short: "Run a command while holding the lease of a cluster, and end it if the lease is lost",
		Long: "Run a command while holding the lease of a cluster: a lock that is not only advisory. The command starts when the lease is\n" +
			"held and every earlier holder's validity is over. When the lease is lost, or this process is killed, a guard ends the\n" +
			"command with its whole process tree before another may start. The command has TANIST_CLUSTER, TANIST_NAME and TANIST_TERM (a\n" +
			"fencing token) in its environment, and nothing on its standard input.\n\n" +
			"SIGTERM, SIGINT and SIGQUIT stop the command (--stop-signal, then KILL after --stop-timeout) and release the lease; a second one kills it at\n" +
			"once. SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH are passed on; signals that were ignored at the start stay ignored. As PID 1 of a\n" +
			"container it reaps orphans. After a lost lease it waits for the next turn, unless --once is given.\n\n" +
			"Exit codes: those of the command (128 + n if signal n ended it), 3 lease lost (--once), 64 usage, 69 no store, 75 not held within\n" +
			"--timeout, 77 no access, 127 no such command.",
		Example: "  tanist run -C nightly -- /usr/local/bin/nightly-report --all",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exit.Errorf(exit.Usage, "the command is missing: tanist run -C NAME -- COMMAND [ARG…]")
			}
			if dash := cmd.ArgsLenAtDash(); dash > 0 {
				return exit.Errorf(exit.Usage, "%q is not expected before --", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.Command = args
			if err := f.Complete(); err != nil {
				return err
			}
			where, err := a.resolve()
			if err != nil {
				return err
			}
			level := "info"
			if quiet {
				level = "warn"
			}
			log := daemon.OpenLog(config.Log{Level: level, Format: "auto"}, cmd.ErrOrStderr())
			defer log.Close()
			return daemon.Run(cmd.Context(), f, where, daemon.Self{Version: versionText(), Log: log})
		},
	}
	a.flags(cmd)
	cmd.Flags().SetInterspersed(false) // flags after the command belong to the command
	cmd.Flags().StringVar(&f.Name, "name", "", "name of this candidate (default the host's name and the process id)")
	cmd.Flags().StringVar(&f.Profile, "profile", "default", "lease times: default or fast; the same for every candidate")
	cmd.Flags().StringVar(&f.URL, "url", "", "URL that the command serves at: published once its port accepts")
	cmd.Flags().StringVar(&f.User, "user", "", "run the command as this user")
	cmd.Flags().StringArrayVar(&f.VirtualIPs, "vip", nil, "virtual IP to hold while the command runs: 10.0.0.100/24@eth0 (repeatable)")
	cmd.Flags().StringVar(&f.StopSignal, "stop-signal", "TERM", "signal that asks the command to end")
	cmd.Flags().DurationVar(&f.StopAfter, "stop-timeout", 10*time.Second, "how long it has to end before it is killed")
	cmd.Flags().DurationVar(&f.Patience, "timeout", 0, "give up if the lease is not acquired within this time (default: wait forever)")
	cmd.Flags().BoolVar(&f.Once, "once", false, "end, instead of waiting for the next turn, when the lease is lost")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "report only problems")
	return cmd
}

package main

import (
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
)

func agentwatchCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "agentwatch -c FILE", Short: "Run next to an agent and keep it connected to the active controller", Args: noArgs,
		Example: "  tanist agentwatch -c agt-1.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load(config.KindAgent)
			if err != nil {
				return err
			}
			log := daemon.OpenLog(l.Agent.Log, cmd.ErrOrStderr())
			defer log.Close()
			ctx, done := flags.signals("agentwatch", l, log, false).Context(cmd.Context())
			defer done()
			return daemon.Agentwatch(ctx, l, daemon.Self{Version: versionText(), Log: log})
		},
	}
	flags.flags(cmd)
	return cmd
}

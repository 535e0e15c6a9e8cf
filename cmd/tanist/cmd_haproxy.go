package main

import (
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
)

func haproxyCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "haproxy -c FILE", Short: "Run next to HAProxy and route the virtual URL to the active controller", Args: noArgs,
		Example: "  tanist haproxy -c proxy.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load(config.KindHAProxy)
			if err != nil {
				return err
			}
			log := daemon.OpenLog(l.HAProxy.Log, cmd.ErrOrStderr())
			defer log.Close()
			ctx, done := flags.signals("proxy driver", l, log, false).Context(cmd.Context())
			defer done()
			return daemon.HAProxy(ctx, l, daemon.Self{Version: versionText(), Log: log})
		},
	}
	flags.flags(cmd)
	return cmd
}

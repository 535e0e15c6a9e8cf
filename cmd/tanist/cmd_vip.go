package main

import (
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
)

func vipCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "vip -c FILE", Short: "Hold virtual IPs on a host while its controller is active, if the sidecar cannot", Args: noArgs,
		Example: "  tanist vip -c vip.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load(config.KindVIP)
			if err != nil {
				return err
			}
			log := daemon.OpenLog(l.VIP.Log, cmd.ErrOrStderr())
			defer log.Close()
			ctx, done := flags.signals("virtual IP", l, log, false).Context(cmd.Context())
			defer done()
			return daemon.VIP(ctx, l, daemon.Self{Version: versionText(), Log: log})
		},
	}
	flags.flags(cmd)
	return cmd
}

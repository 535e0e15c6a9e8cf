package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/operate"
)

func standbyCommand() *cobra.Command {
	var a access
	var k keepOut
	var reset bool
	cmd := &cobra.Command{
		Use: "standby [NAME on|off]", Short: "Keep a controller from becoming active, for maintenance; without a name, show who is kept out",
		Long: "Keep a controller from becoming active, for maintenance of its host. The wish is kept in the store until `off`, whatever is\n" +
			"restarted. If the controller is active, another one is made active first, as by `tanist switchover`; if that fails, nothing is\n" +
			"changed. A controller on standby neither takes over nor can be the target of a switchover; `tanist failover --force` can still\n" +
			"choose it, which `tanist ban` prevents. `off` moves nothing back.\n" +
			"Exit codes: 0 done, 75 its sidecar has not confirmed it, 1 refused or failed.",
		Example: "  tanist standby -c orders.yml ctl-a on --reason 'new kernel'\n  tanist standby -c orders.yml ctl-a off",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return nil
			case len(args) == 1 || args[1] != "on" && args[1] != "off":
				return exit.Errorf(exit.Usage, "on or off? Give `tanist standby %s on` or `off`", args[0])
			case len(args) > 2:
				return exit.Errorf(exit.Usage, "unexpected argument %q; see `%s --help`", args[2], cmd.CommandPath())
			case reset:
				return exit.Errorf(exit.Usage, "--reset is about all, without a name")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				out := cmd.OutOrStdout()
				switch {
				case reset:
					return resetStandbys(ctx, cmd, r, k.yes)
				case len(args) == 0:
					showStandbys(out, r)
					return nil
				case args[1] == "off":
					return letIn(ctx, cmd, r, args[0], false)
				}
				k.Name = args[0]
				return k.run(ctx, cmd, r)
			})
		},
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return []string{"on", "off"}, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeKnown(cmd, args, typed)
	}
	a.flags(cmd)
	k.flags(cmd)
	cmd.Flags().BoolVar(&reset, "reset", false, "end every standby and every ban, also when their record is unreadable")
	return cmd
}

// resetStandbys removes the standby key, whatever is in it.
func resetStandbys(ctx context.Context, cmd *cobra.Command, r reading, yes bool) error {
	out := cmd.OutOrStdout()
	showStandbys(out, r)
	if r.snap.StandbyVer == 0 {
		return nil
	}
	if !yes {
		if err := confirm(ctx, cmd.InOrStdin(), out, "This ends all of it. Continue? [y/N]", "y", "yes"); err != nil {
			return err
		}
	}
	return carryOut(ctx, cmd, r.operated(), &operate.ResetStandbys{})
}

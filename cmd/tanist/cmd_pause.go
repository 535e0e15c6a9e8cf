package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func pauseCommand() *cobra.Command {
	var a access
	var reason string
	var lasts time.Duration
	cmd := &cobra.Command{
		Use: "pause [--for TIME]", Short: "Suspend failovers and switchovers until `tanist resume`", Args: noArgs,
		Example: "  tanist pause -c orders.yml --for 2h --reason maintenance",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("for") && lasts < time.Second {
				return exit.Errorf(exit.Usage, "--for %v is less than a second", lasts)
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				if a.byHand() {
					snap, err := read(ctx, s)
					if err != nil {
						return err
					}
					if err := known(ctx, s, c.Cluster, snap); err != nil {
						return err
					}
				}
				value, err := json.Marshal(election.Pause{By: operator(), Reason: reason, Since: time.Now().UTC(), For: lasts})
				if err != nil {
					return err
				}
				absent := election.Version(0)
				limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
				defer cancel()
				err = s.Put(limited, election.Put{Key: election.PauseKey, Value: value, If: &absent})
				if errors.Is(err, election.ErrConflict) {
					fmt.Fprintln(cmd.OutOrStdout(), c.Cluster+" is paused already")
					return nil
				}
				if err != nil {
					return writeError(err, "the pause")
				}
				end := "until `tanist resume`"
				if lasts > 0 {
					end = fmt.Sprintf("for %v, or %s", lasts, end)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is paused: nothing fails over %s\n", c.Cluster, end)
				return nil
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().DurationVar(&lasts, "for", 0, "end the pause after this time, such as 2h (default: until it is resumed)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, shown by list, explain and events")
	return cmd
}

// pauseEnd describes when a pause ends by itself, by the clock of who asked for it.
func pauseEnd(p *election.Pause) string {
	if p.For <= 0 {
		return ""
	}
	return fmt.Sprintf(" (for %v, until about %s)", p.For, p.Since.Add(p.For).Local().Format(time.TimeOnly))
}

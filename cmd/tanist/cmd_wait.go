package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func waitCommand() *cobra.Command {
	var a access
	var conditions string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait --for CONDITIONS", Short: "Wait until conditions hold in the cluster", Args: noArgs,
		Long: "Wait until conditions hold in the cluster. Conditions, separated by commas, are:\n" +
			"  active            any controller is active\n  controller=NAME   NAME is active\n  term>N            the active's term is higher than N",
		Example: "  tanist wait -c orders.yml --for 'controller=ctl-b,term>7' --timeout 30s",
		RunE: func(cmd *cobra.Command, _ []string) error {
			holds, err := parseConditions(conditions)
			if err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				ctx, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				_, err := operate.Until(ctx, s, holds)
				if errors.Is(err, context.DeadlineExceeded) {
					return exit.Errorf(exit.InProgress, "%s did not hold within %v: `tanist list` shows the cluster, --timeout waits longer", conditions, timeout)
				}
				return err
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&conditions, "for", "active", "what to wait for")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait; then exit with 75")
	return cmd
}

func parseConditions(text string) (func(election.Snapshot) bool, error) {
	var all []func(election.Snapshot) bool
	for c := range strings.SplitSeq(text, ",") {
		name, isName := strings.CutPrefix(c, "controller=")
		bound, _ := strings.CutPrefix(c, "term>")
		n, scanErr := strconv.ParseUint(bound, 10, 63)
		switch {
		case c == "active":
			all = append(all, func(s election.Snapshot) bool { return s.Active.Serving() })
		case isName && name != "":
			all = append(all, func(s election.Snapshot) bool { return s.Active.Serving() && s.Active.Controller == name })
		case scanErr == nil && bound != c:
			all = append(all, func(s election.Snapshot) bool { return s.Active.Serving() && uint64(s.Active.Term) > n })
		default:
			return nil, exit.Errorf(exit.Usage, "%q is not a condition: active, controller=NAME or term>N", c)
		}
	}
	return func(s election.Snapshot) bool {
		for _, holds := range all {
			if !holds(s) {
				return false
			}
		}
		return true
	}, nil
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func urlCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "url [NAME]", Short: "Print the URL of the active controller, or one of its run.urls", Args: atMostOne,
		Example: "  curl \"$(tanist url -c orders.yml)/healthz\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(_ context.Context, r reading) error {
				active, err := r.operated().Serving()
				if err != nil {
					return err
				}
				if active.URL == "" {
					return exit.Errorf(exit.NotActive, "%s is active in %s, and publishes no URL", clean(active.Controller), r.cluster)
				}
				// Scripts use the output and it comes from the store, so it must pass the filter of
				// every follower.
				controllers, err := election.ParseControllers(r.where.Allowed)
				if err != nil {
					return exit.Errorf(exit.Config, "%s: %v", r.where.File, err)
				}
				v := election.NewFilter(controllers).Sighting(election.Sighting{Active: active}, time.Now())
				if v.Err != nil {
					return exit.Errorf(exit.Failure, "the role key of %s is not to be followed: %v: find out who wrote it", r.cluster, v.Err)
				}
				if len(args) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), active.URL)
					return nil
				}
				return printNamedURL(cmd, v.Target, args[0])
			})
		},
	}
	a.flags(cmd)
	return cmd
}

// printNamedURL prints one of the controller's other URLs.
func printNamedURL(cmd *cobra.Command, t election.Target, name string) error {
	named, err := t.URLs.Check(t.At)
	if err != nil {
		return err // the filter has checked it
	}
	u, ok := named[name]
	if !ok {
		return exit.Errorf(exit.Failure, "%s has no URL %q; run.urls has: %s", t.Controller, name, cmp.Or(strings.Join(slices.Sorted(maps.Keys(named)), ", "), "none"))
	}
	fmt.Fprintln(cmd.OutOrStdout(), u)
	return nil
}

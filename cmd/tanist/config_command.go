package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/agentwatch"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/haproxy"
	"github.com/tanist/tanist/health"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Check, show and begin configuration files", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(configCheckCommand(), configShowCommand(), configInitCommand(), configSchemaCommand())
	return cmd
}

func configCheckCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "check -c FILE", Short: "Check a configuration file, and print what its timings bound", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load("")
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is a valid configuration of kind %s\n", l.File, l.Kind)
			if l.Kind == config.KindController {
				return printBounds(cmd.OutOrStdout(), l.Controller)
			}
			return nil
		},
	}
	flags.flags(cmd)
	return cmd
}

// nowhere is a store for a check that asks none.
type nowhere struct{}

func (nowhere) Follow(context.Context) <-chan election.Sighting { return nil }

// checkRooms lets the rooms look at their parts of a configuration, as they do before they run. Nothing is started, asked or written.
func checkRooms(l *config.Loaded) error {
	switch l.Kind {
	case config.KindController:
		fence, err := makeFence(l.Controller, &fenceStats{}, nil, zerolog.Nop())
		if fence != nil {
			fence.Shutdown()
		}
		_, healthErr := makeHealth(l.Controller, zerolog.Nop())
		_, portErr := health.PortOf(l.Controller.Run.URL)
		if portErr != nil {
			portErr = fmt.Errorf("run.url: %v", portErr)
		}
		_, peersErr := makePeers(l.Controller)
		return errors.Join(err, healthErr, portErr, peersErr)
	case config.KindAgent:
		cfg, err := agentwatchConfig(l.Agent, zerolog.Nop())
		if err != nil {
			return err
		}
		cfg.Source = nowhere{}
		_, err = agentwatch.New(cfg)
		return err
	default:
		_, err := haproxy.Render(proxyConfig(l.HAProxy), nil)
		return err
	}
}

// printBounds prints the worst case per kind of fault.
func printBounds(out io.Writer, c *config.Controller) error {
	timing, err := c.Timing()
	if err != nil {
		return loadError(err)
	}
	fmt.Fprintf(out, "\nlease: profile %s, ttl %v, validity %v, renewed every %v, stop budget %v\n", timing.Profile, timing.TTL, timing.Validity,
		timing.RenewEvery, timing.StopBudget)
	fmt.Fprintln(out, "At the latest, the other controller is being started so long after (its own start comes on top):")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	health := election.Health{Interval: c.Health.Interval, Timeout: c.Health.Timeout, Fall: c.Health.Fall, StopTimeout: c.Run.StopTimeout, Drain: c.Run.Drain}
	for _, b := range timing.Bounds(config.Traits(c.Store), health) {
		fmt.Fprintf(w, "  %s\t%v\t= %s\n", b.Fault, b.Max.Round(time.Millisecond), b.Parts)
	}
	_ = w.Flush() // who was to read it has gone
	if timing.LeaderChange {
		fmt.Fprintln(out, "A change of the store's leader may cost the lease, and with it a failover: that is accepted with this profile.")
	}
	return nil
}

func configShowCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "show -c FILE", Short: "Show every value that is in force, and where it comes from", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load("")
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, v := range l.Values() {
				fmt.Fprintf(w, "%s\t%s\t# %s\n", v.Path, v.Text, v.Origin)
			}
			return w.Flush()
		},
	}
	flags.flags(cmd)
	return cmd
}

func configInitCommand() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "init --kind KIND", Short: "Print a configuration file to begin with, every key with its default", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := config.Reference(config.Kind(kind))
			if err != nil {
				return &exitError{exitUsage, err}
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "kind", string(config.KindController), "controller, agent or haproxy")
	return cmd
}

func configSchemaCommand() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "schema --kind KIND", Short: "Print the JSON Schema of a configuration file, for editors", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			schema, err := config.Schema(config.Kind(kind))
			if err != nil {
				return &exitError{exitUsage, err}
			}
			b, err := json.MarshalIndent(schema, "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), string(b))
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "kind", string(config.KindController), "controller, agent or haproxy")
	return cmd
}

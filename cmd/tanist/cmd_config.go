package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/examples"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/sidecar"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Check, show and create configuration files", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(configCheckCommand(), configShowCommand(), configInitCommand(), configSchemaCommand())
	return cmd
}

func configCheckCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "check -c FILE", Short: "Check a configuration file, and print how long each kind of fault may take", Args: noArgs,
		Example: "  tanist config check -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load("")
			if err != nil {
				return err
			}
			if l.Kind == config.KindController {
				if asked, err := daemon.CheckUnit(cmd.Context(), l.Controller); err != nil && asked {
					return exit.Errorf(exit.Config, "run.unit: %v", err)
				} else if err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "run.unit: %v\n", err)
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is a valid configuration of kind %s\n", l.File, l.Kind)
			switch l.Kind {
			case config.KindController:
				return printBounds(cmd.OutOrStdout(), l.Controller)
			case config.KindAgent:
				return printRetries(cmd.OutOrStdout(), l.Agent)
			}
			return nil
		},
	}
	flags.flags(cmd)
	return cmd
}

// printRetries compares the time that an agent retries with the time that a takeover may take if
// the controllers have the defaults: an agent that gives up earlier is down although the takeover
// went well. The time in which the store reports a controller as starting does not count.
func printRetries(out io.Writer, a *config.Agent) error {
	if a.Retries.Count == 0 {
		return nil
	}
	c := config.NewController()
	c.Store = a.Store
	timing, err := c.Timing()
	if err != nil {
		return exit.With(exit.Config, err)
	}
	longest := longestTakeover(timing, c)
	tries := time.Duration(a.Retries.Count) * a.Retries.Every
	fmt.Fprintf(out, "\nretries: the agent is stopped after %v without a controller\n", tries)
	if tries < longest.Max {
		fmt.Fprintf(out, "That is less than the %v that a takeover takes at most with the controllers' defaults (%s): set retries.count to at least %d.\n",
			longest.Max.Round(time.Millisecond), longest.Fault, (longest.Max+a.Retries.Every-1)/a.Retries.Every)
		return nil
	}
	c.Repository = new(config.NewRepository())
	if fenced := longestTakeover(timing, c); tries < fenced.Max {
		fmt.Fprintf(out, "With a repository a takeover takes at most %v (%s): raise retries.count to %d if the controllers have one.\n",
			fenced.Max.Round(time.Millisecond), fenced.Fault, (fenced.Max+a.Retries.Every-1)/a.Retries.Every)
	}
	return nil
}

func longestTakeover(timing election.Timing, c *config.Controller) (longest election.Bound) {
	for _, b := range timing.Bounds(config.TraitsOf(c.Store, c.Plugins), boundsOf(c)) {
		if b.Max > longest.Max {
			longest = b
		}
	}
	return longest
}

// boundsOf returns what the bounds need to know of a controller's file.
func boundsOf(c *config.Controller) election.Health {
	h := election.Health{
		Interval: c.Health.Interval, Timeout: c.Health.Timeout, Fall: c.Health.Fall,
		StopTimeout: c.Run.StopTimeout, KillTimeout: min(c.Run.StopTimeout, c.Run.KillTimeout), Drain: c.Run.Drain,
	}
	if c.Repository != nil {
		h.Fence, h.CloseFence = postgres.RaiseBounds().Sum(), sidecar.CloseTimeout
	}
	return h
}

// printBounds prints the worst case for each kind of fault.
func printBounds(out io.Writer, c *config.Controller) error {
	timing, err := c.Timing()
	if err != nil {
		return exit.With(exit.Config, err)
	}
	fmt.Fprintf(out, "\nlease: profile %s, ttl %v, validity %v, renewed every %v, stop budget %v\n", timing.Profile, timing.TTL, timing.Validity,
		timing.RenewEvery, timing.StopBudget)
	fmt.Fprintln(out, "Worst-case time until the other controller is started (its own start not included):")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	health := boundsOf(c)
	for _, b := range timing.Bounds(config.TraitsOf(c.Store, c.Plugins), health) {
		fmt.Fprintf(w, "  %s\t%v\t= %s\n", b.Fault, b.Max.Round(time.Millisecond), b.Parts)
	}
	_ = w.Flush() // the reader may have gone
	if timing.LeaderChange {
		event := "A change of the store's leader"
		if c.Store == "postgres" {
			event = "A restart of the store's server"
		}
		fmt.Fprintln(out, event+" may cost the lease, and with it a failover: that is accepted with this profile.")
	}
	return nil
}

func configShowCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "show -c FILE", Short: "Show every value in force and its source", Args: noArgs,
		Example: "  tanist config show -c orders.yml",
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
	var kind, recipe string
	cmd := &cobra.Command{
		Use: "init --kind KIND | --recipe NAME", Short: "Print a configuration file to start from, with every key and its default, or a program's recipe", Args: noArgs,
		Example: "  tanist config init --kind agent > agt-1.yml\n  tanist config init --recipe mosquitto > mqtt.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := config.Reference(config.Kind(kind))
			if recipe != "" {
				if cmd.Flags().Changed("kind") {
					return exit.Errorf(exit.Usage, "--kind and --recipe exclude each other: a recipe is of one kind")
				}
				text, err = examples.Recipe(recipe)
			}
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "kind", string(config.KindController), "controller, agent, haproxy or vip")
	cmd.Flags().StringVar(&recipe, "recipe", "", "print the recipe of a program instead: "+strings.Join(examples.Recipes(), ", "))
	return cmd
}

func configSchemaCommand() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "schema --kind KIND", Short: "Print the JSON Schema of a configuration file, for editors", Args: noArgs,
		Example: "  tanist config schema --kind controller > orders.schema.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			schema, err := config.Schema(config.Kind(kind))
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			b, err := json.MarshalIndent(schema, "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), string(b))
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "kind", string(config.KindController), "controller, agent, haproxy or vip")
	return cmd
}

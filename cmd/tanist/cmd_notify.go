package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/notify"
)

func notifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "notify", Short: "Try the channels that tell people what happens", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(notifyTestCommand())
	return cmd
}

func notifyTestCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "test -c FILE [CHANNEL]", Short: "Send a test notice from this host, by each channel of a sidecar's file or by one",
		Long: "Send a test notice from this host, by each channel of a sidecar's file (notify) or by one, whatever its events are. Each is tried\n" +
			"once. Exit codes: 0 every receiver accepted it, 1 one did not.",
		Example: "  tanist notify test -c orders.yml\n  tanist notify test -c orders.yml mail",
		Args:    atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error {
			flags.file = cmp.Or(flags.file, os.Getenv("TANIST_CONFIG"))
			l, err := flags.load(config.KindController)
			if err != nil {
				return err
			}
			channels, err := daemon.Channels(l.Controller)
			if err != nil {
				return exit.With(exit.Config, l.Problems(err))
			}
			var names []string
			for _, c := range channels {
				names = append(names, c.Name)
			}
			switch {
			case len(channels) == 0:
				return exit.Errorf(exit.Failure, "%s has no channels: set notify, see docs/notify.md", flags.file)
			case len(args) == 1 && !slices.Contains(names, args[0]):
				return exit.Errorf(exit.Failure, "there is no channel %q; found: %s", args[0], strings.Join(names, ", "))
			case len(args) == 1:
				channels = slices.DeleteFunc(channels, func(c notify.Channel) bool { return c.Name != args[0] })
			}
			ctx, done := daemon.Signals{Who: "command"}.Context(cmd.Context())
			defer done()
			return testChannels(ctx, cmd, l.Controller, channels)
		},
	}
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		flags.file = cmp.Or(flags.file, os.Getenv("TANIST_CONFIG"))
		l, err := flags.load(config.KindController)
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp // a shell shows no error
		}
		var names []string
		for _, n := range l.Controller.Notify {
			if strings.HasPrefix(n.Name, typed) {
				names = append(names, n.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	flags.flags(cmd)
	return cmd
}

func testChannels(ctx context.Context, cmd *cobra.Command, c *config.Controller, channels []notify.Channel) error {
	n := notify.Notice{
		ID: "test-" + rand.Text()[:10], Event: notify.EventTest, Severity: notify.Info, Cluster: c.Cluster, Name: c.Name, At: time.Now(),
		Text: fmt.Sprintf("%s tries the channels of %s with `tanist notify test`", operator(), c.Name),
	}
	failed := 0
	for _, channel := range channels {
		limited, cancel := context.WithTimeout(ctx, channel.Timeout)
		begun := time.Now()
		err := channel.Send(limited, n)
		cancel()
		if err != nil {
			failed++
			fmt.Fprintf(cmd.OutOrStdout(), " ✗ %s: %s\n", channel.Name, clean(err.Error()))
			continue
		}
		fmt.Fprintf(cmd.OutOrStdout(), " ✓ %s: accepted after %v\n", channel.Name, time.Since(begun).Round(time.Millisecond))
	}
	if failed > 0 {
		return exit.Errorf(exit.Failure, "%d of %d channels did not accept it", failed, len(channels))
	}
	return nil
}

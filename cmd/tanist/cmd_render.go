package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/haproxy"
)

func renderCommand() *cobra.Command {
	var flags daemonFlags
	var dry bool
	cmd := &cobra.Command{
		Use: "render -c FILE --dry", Short: "Show what `tanist haproxy` would write, as a diff", Args: noArgs,
		Example: "  tanist render -c proxy.yml --dry",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dry {
				return exit.Errorf(exit.Usage, "only --dry is done by hand; `tanist haproxy` writes and reloads")
			}
			l, err := flags.load(config.KindHAProxy)
			if err != nil {
				return err
			}
			return renderDry(cmd, l)
		},
	}
	flags.flags(cmd)
	cmd.Flags().BoolVar(&dry, "dry", false, "write nothing, show the difference")
	return cmd
}

func renderDry(cmd *cobra.Command, l *config.Loaded) (err error) {
	stores, err := daemon.OpenStores(l, zerolog.Nop())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.CloseStores(stores)) }()
	records := map[string]election.Active{}
	for name, s := range stores {
		ctx, cancel := context.WithTimeout(cmd.Context(), daemon.StoreTimeout)
		snap, err := s.Read(ctx)
		cancel()
		if err != nil {
			return storeError(err, "cannot read the store")
		}
		if snap.Active.Serving() {
			records[name] = *snap.Active
		}
	}
	cfg := daemon.ProxyConfig(l.HAProxy)
	next, err := haproxy.Render(cfg, records)
	if err != nil {
		return exit.With(exit.Config, l.Problems(err))
	}
	old, err := os.ReadFile(cfg.ConfigFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot read the present configuration: %v", err)
	}
	if bytes.Equal(old, next) {
		fmt.Fprintln(cmd.OutOrStdout(), cfg.ConfigFile+" is up to date")
		return nil
	}
	fmt.Fprint(cmd.OutOrStdout(), haproxy.Diff(cfg.ConfigFile, cfg.ConfigFile+" (new)", old, next))
	return nil
}

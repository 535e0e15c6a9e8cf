package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
)

// isLiveTimeout bounds the question. It is shorter than the timeout of a container's health check.
const isLiveTimeout = 2 * time.Second

func isLiveCommand() *cobra.Command {
	var file string
	var ready bool
	cmd := &cobra.Command{
		Use: "is-live", Short: "Exit with 0 if the process that runs with this configuration file makes progress, with 3 if not", Args: noArgs,
		Long: "Exit with 0 if the process that runs with this configuration file on this host makes progress, with 3 if not. It asks the\n" +
			"process itself (listen.http, or listen.admin of a sidecar), not the store. It is the health check of containers, whose image has no\n" +
			"other program. With --ready: whether a sidecar serves or could take over, an agent runs at the active controller, a proxy routes.",
		Example: "  HEALTHCHECK CMD [\"tanist\", \"is-live\", \"-c\", \"/etc/tanist/orders.yml\"]",
		RunE: func(cmd *cobra.Command, _ []string) error {
			file = cmp.Or(file, os.Getenv("TANIST_CONFIG"))
			if file == "" {
				return exit.Errorf(exit.Usage, "which process? Give -c FILE, or set TANIST_CONFIG")
			}
			l, err := config.Load(config.Options{File: file, Away: true})
			if err != nil {
				return exit.With(exit.Config, err)
			}
			path := "/live"
			if ready {
				path = "/ready"
			}
			if err := askSelf(cmd.Context(), listenOf(l), path); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "yes")
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file of the process (default $TANIST_CONFIG)")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it is ready, not only whether it is alive")
	return cmd
}

// listenOf returns where a process answers.
func listenOf(l *config.Loaded) config.Listen {
	switch l.Kind {
	case config.KindController:
		return l.Controller.Listen
	case config.KindAgent:
		return config.Listen{HTTP: l.Agent.Listen.HTTP}
	case config.KindVIP:
		return config.Listen{HTTP: l.VIP.Listen.HTTP}
	default:
		return config.Listen{HTTP: l.HAProxy.Listen.HTTP}
	}
}

// askSelf asks a process of this host for a yes or no.
func askSelf(ctx context.Context, listen config.Listen, path string) error {
	network, address := "tcp", ownAddress(listen.HTTP)
	if address == "" {
		network, address = "unix", strings.TrimPrefix(listen.Admin, "unix:")
	}
	if address == "" {
		return exit.Errorf(exit.Config, "listen.http: it is empty, so nobody can ask the process: set it")
	}
	ctx, cancel := context.WithTimeout(ctx, isLiveTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://localhost"+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return exit.Errorf(exit.NotActive, "no answer at %s within %v: %v", address, isLiveTimeout, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return exit.Errorf(exit.NotActive, "%s%s answers %s", address, path, resp.Status)
	}
	return nil
}

// ownAddress is where this host reaches a listener: one for all addresses is reached on loopback.
func ownAddress(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil && ip != nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

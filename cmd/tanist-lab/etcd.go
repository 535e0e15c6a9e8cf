package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdCommand is `tanist-lab etcd`: one etcd server in a separate process, so that it can be broken
// like one.
func etcdCommand() *cobra.Command {
	var dir, client, peer string
	cmd := &cobra.Command{
		Use: "etcd", Short: "the lab's store", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serveEtcd(cmd.Context(), dir, client, peer) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "data directory")
	cmd.Flags().StringVar(&client, "client", "", "client URL")
	cmd.Flags().StringVar(&peer, "peer", "", "peer URL")
	return cmd
}

func serveEtcd(ctx context.Context, dir, client, peer string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = "lab", dir, "warn"
	clientURL, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("cannot start etcd: %v", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("cannot start etcd: %v", err)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("cannot start etcd: %v", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		return fmt.Errorf("cannot start etcd: not ready after 30s")
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("etcd ended: %v", err)
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// clusterLine is one cluster of a store.
type clusterLine struct {
	Cluster     string        `json:"cluster"`
	Term        election.Term `json:"term"`
	Active      string        `json:"active"` // empty: nobody serves
	URL         string        `json:"url,omitempty"`
	Controllers int           `json:"controllers"` // whose sidecars are here
	Passives    int           `json:"passives"`    // those of them that do not hold the lease
	Ready       int           `json:"ready"`       // passives that could take over
	Paused      bool          `json:"paused"`
	Problem     string        `json:"problem,omitempty"` // why it is unreadable
}

func clustersCommand() *cobra.Command {
	var a access
	var v display
	cmd := &cobra.Command{
		Use: "clusters", Short: "Show all clusters of the store", Args: noArgs,
		Example: "  tanist clusters --endpoints http://10.0.0.1:2379",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := v.check(); err != nil {
				return err
			}
			if a.anyCluster() {
				a.cluster = "any" // only where the store is matters
			}
			c, err := a.resolve()
			if err != nil {
				return err
			}
			ctx, done := daemon.Signals{Who: "command"}.Context(cmd.Context())
			defer done()
			return v.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
				all, err := readClusters(ctx, c)
				return all, func(out io.Writer) { clustersTable(out, all) }, err
			})
		},
	}
	a.flags(cmd)
	v.flags(cmd)
	return cmd
}

// readClusters reads every cluster of a store. One that is unreadable is listed with the reason.
func readClusters(ctx context.Context, c daemon.StoreConfig) ([]clusterLine, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*daemon.StoreTimeout)
	defer cancel()
	names, err := daemon.Clusters(ctx, c)
	if err != nil {
		return nil, err
	}
	all := []clusterLine{}
	for _, name := range names {
		c.Cluster = name
		all = append(all, readCluster(ctx, c))
	}
	return all, nil
}

func readCluster(ctx context.Context, c daemon.StoreConfig) clusterLine {
	line := clusterLine{Cluster: c.Cluster}
	s, err := daemon.OpenStore(c, zerolog.Nop())
	if err != nil {
		line.Problem = err.Error()
		return line
	}
	defer s.Close() //nolint:errcheck // nothing was written
	snap, err := read(ctx, s)
	if err != nil {
		line.Problem = err.Error()
		return line
	}
	line.Term, line.Controllers, line.Paused = snap.Breadcrumb.Term, len(snap.Controllers), snap.Pause != nil
	if snap.Active.Serving() {
		line.Active, line.URL = snap.Active.Controller, snap.Active.URL
	}
	for _, k := range snap.Controllers {
		if !operate.Holds(snap, k.Name) {
			line.Passives++
		}
		if k.Fit() {
			line.Ready++
		}
	}
	return line
}

func clustersTable(out io.Writer, all []clusterLine) {
	if len(all) == 0 {
		fmt.Fprintln(out, " The store has no cluster.")
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " CLUSTER\tACTIVE\tTERM\tPASSIVES READY\tPAUSE\tURL")
	for _, c := range all {
		active, pause, note := "nobody", "off", c.URL
		if c.Active != "" {
			active = c.Active
		}
		if c.Paused {
			pause = "ON"
		}
		if c.Problem != "" {
			active, pause, note = "?", "?", "↳ "+c.Problem
		}
		fmt.Fprintf(w, " %s\t%s\t%d\t%d of %d\t%s\t%s\n", clean(c.Cluster), clean(active), c.Term, c.Ready, c.Passives, pause, clean(note))
	}
	_ = w.Flush() // the reader may have gone
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/election"
)

// view is how something is shown: table, json or yaml, once or again and again.
type view struct {
	output string
	watch  time.Duration
}

func (v *view) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&v.output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().DurationVarP(&v.watch, "watch", "w", 0, "show again every so often (-w=2s)")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
}

func (v *view) check() error {
	if v.output != "table" && v.output != "json" && v.output != "yaml" {
		return exit(exitUsage, "-o %q is not one of table, json, yaml", v.output)
	}
	return nil
}

// show prints doc, or its table, once or until ctx ends. Who follows is told of a store that goes away, and goes on when it is back.
func (v *view) show(ctx context.Context, out io.Writer, get func() (doc any, table func(io.Writer), err error)) error {
	shown := false
	for {
		doc, table, err := get()
		output := v.output
		switch {
		case err == nil:
		case v.watch > 0 && ctx.Err() != nil:
			return nil //nolint:nilerr // interrupted: that is how following ends
		case v.watch > 0 && shown && exitCode(err) == exitStore:
			output = "error"
		default:
			return err
		}
		shown = true
		switch output {
		case "error":
			if v.output == "table" {
				fmt.Fprintln(out, " "+clean(err.Error()))
			}
		case "json":
			b, err := json.MarshalIndent(doc, "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintln(out, string(b))
		case "yaml":
			// By way of JSON, so that both show the same keys.
			b, err := json.Marshal(doc)
			if err != nil {
				return err
			}
			y, err := yaml.JSONToYAML(b)
			if err != nil {
				return err
			}
			fmt.Fprint(out, string(y))
		default:
			if v.watch > 0 {
				fmt.Fprint(out, "\x1b[H\x1b[2J")
			}
			table(out)
		}
		if v.watch <= 0 {
			return nil
		}
		timer := time.NewTimer(v.watch)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func listCommand() *cobra.Command {
	var a access
	var v view
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show who is active, who could be, and the agents", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := v.check(); err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				return v.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					snap, err := read(ctx, s)
					if err != nil {
						return nil, nil, err
					}
					doc := clusterOf(c.Cluster, snap)
					limited, cancel := context.WithTimeout(ctx, storeTimeout)
					defer cancel()
					if doc.Agents, err = readAgents(limited, s); err != nil {
						return nil, nil, storeError(err, "the agents can't be read")
					}
					if v.output != "table" {
						return doc, nil, nil
					}
					servers, left := serversUp(limited, s), leaseLeft(limited, doc.Active)
					return doc, func(out io.Writer) { listTable(out, doc, c.Store+servers, left, time.Now()) }, nil
				})
			})
		},
	}
	a.flags(cmd)
	v.flags(cmd)
	return cmd
}

// serversUp returns " 3/3" if the store can tell how many of its servers answer. It does not wait long for those that don't.
func serversUp(ctx context.Context, s store) string {
	e, ok := s.(*etcd.Store)
	if !ok {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	up, servers := 0, e.Versions(ctx)
	for _, server := range servers {
		if server.Err == nil {
			up++
		}
	}
	return fmt.Sprintf(" %d/%d", up, len(servers))
}

// leaseLeft asks the active's sidecar how long its lease is valid without another renewal: only the sidecar knows. It returns "2.1s/",
// or "" if the sidecar can't be asked from here.
func leaseLeft(ctx context.Context, a *election.Active) string {
	if a == nil || a.API == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(a.API, "/")+"/v1/status", nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var s status
	// An address like 127.0.0.1 may be another sidecar's, seen from here.
	if json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s) != nil || s.Incarnation != a.Incarnation || s.LeaseLeftMS <= 0 {
		return ""
	}
	return fmt.Sprintf("%.1fs/", s.LeaseLeftMS/1000)
}

// listTable prints a cluster for people. left is what [leaseLeft] returned.
func listTable(out io.Writer, c cluster, store, left string, now time.Time) {
	pause := "off"
	if c.Pause != nil {
		pause = "ON, by " + clean(c.Pause.By) + because(c.Pause.Reason)
	}
	fmt.Fprintf(out, " Cluster %s · %s · term %d · pause %s\n", c.Cluster, store, c.Term, pause)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " CONTROLLER\tROLE\tSTATE\tHEALTH\tLEASE\tFOR\tURL")
	shown := map[string]bool{}
	for _, k := range c.Controllers {
		shown[k.Name] = true
		role, state, lease, note := "○ passive", k.State, "-", k.URL
		if c.Active != nil && c.Active.Controller == k.Name {
			state, lease = c.Active.State, left+cmp.Or(k.LeaseTTL, "?")
			if c.Active.Serving() {
				role = "● active"
			}
		}
		if k.Reason != "" && (state != election.StateServing && state != election.StateReady) {
			note = "↳ " + k.Reason
		}
		fmt.Fprintf(w, " %s\t%s\t%s\t%s\t%s\t%s\t%s\n", clean(k.Name), role, clean(string(state)), cmp.Or(short(k.Health), "-"), clean(lease),
			since(now, k.Since), clean(note))
	}
	if a := c.Active; a != nil && !shown[a.Controller] {
		role := "○ passive"
		if a.Serving() {
			role = "● active"
		}
		fmt.Fprintf(w, " %s\t%s\t%s\t%s\t?\t%s\t%s\n", clean(a.Controller), role, clean(string(a.State)), "? no status", since(now, a.Since), clean(a.URL))
	}
	_ = w.Flush() // who was to read it has gone
	if c.Active == nil {
		fmt.Fprintln(out, " Nobody is active.")
	}
	if r := c.Request; r != nil {
		fmt.Fprintf(out, " Requested by %s: %s of term %d to %s\n", clean(r.By), clean(r.Op), r.Term, cmp.Or(clean(r.To), "any passive"))
	}
	if len(c.Agents) == 0 {
		return
	}
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " AGENT\tFOLLOWS\tTERM\tSTATE\tRESTARTS\tLAST SWITCH")
	for _, a := range c.Agents {
		fmt.Fprintf(w, " %s\t%s\t%d\t%s\t%d\t%s\n", clean(a.Name), cmp.Or(clean(a.Follows), "-"), a.Term, clean(a.State), a.Restarts, millis(a.LastSwitchMS))
	}
	_ = w.Flush() // who was to read it has gone
}

// since prints how long ago at was. Clocks of two hosts may differ; a negative age is shown as 0s.
func since(now, at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	switch d := max(0, now.Sub(at)); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

func historyCommand() *cobra.Command {
	var a access
	var v view
	var most int
	cmd := &cobra.Command{
		Use: "history", Short: "Show who was active, when, why, and what each takeover took", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := v.check(); err != nil {
				return err
			}
			if most < 1 {
				return exit(exitUsage, "-n %d shows nothing: give 1 or more", most)
			}
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				return v.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					limited, cancel := context.WithTimeout(ctx, storeTimeout)
					defer cancel()
					all, err := readHistory(limited, s)
					if err != nil {
						return nil, nil, storeError(err, "the history can't be read")
					}
					shown := all[:min(most, len(all))]
					return shown, func(out io.Writer) { historyTable(out, shown, all) }, nil
				})
			})
		},
	}
	a.flags(cmd)
	v.flags(cmd)
	cmd.Flags().IntVarP(&most, "lines", "n", 20, "how many reigns to show, the latest first")
	return cmd
}

// historyTable prints reigns; all is where the end of the reign before each is found.
func historyTable(out io.Writer, shown, all []election.History) {
	ended := map[election.Term]election.History{}
	for _, h := range all {
		ended[h.Term] = h
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " TERM\tWHEN\tFROM → TO\tWHY\tDETECT\tSTOP\tWAIT\tFENCE\tSTART\tOUTAGE")
	for _, h := range shown {
		before := ended[h.Term-1]
		outage := millis(h.Outage)
		if h.OutageAtMost && h.Outage > 0 {
			outage = "≤ " + outage
		}
		fmt.Fprintf(w, " %d\t%s\t%s → %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", h.Term, h.When.Local().Format(time.DateTime), cmp.Or(clean(h.From), "-"), clean(h.To),
			short(h.Reason), millis(before.EndDetect), millis(before.EndStop), millis(h.Wait), millis(h.Fence), millis(h.Start), outage)
	}
	_ = w.Flush() // who was to read it has gone
}

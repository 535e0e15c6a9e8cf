package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func listCommand() *cobra.Command {
	var a access
	var d display
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "status"}, Short: "Show the active controller, the candidates and the agents", Args: noArgs,
		Example: "  tanist list -c orders.yml -w",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(); err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				first := true
				return d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					snap, err := read(ctx, s)
					if err != nil {
						return nil, nil, err
					}
					if first && a.byHand() {
						if err := known(ctx, s, c.Cluster, snap); err != nil {
							return nil, nil, err
						}
					}
					first = false
					doc := election.ClusterOf(c.Cluster, snap)
					limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
					defer cancel()
					if doc.Agents, err = operate.ReadAgents(limited, s); err != nil {
						return nil, nil, storeError(err, "cannot read the agents")
					}
					if doc.VIPHosts, err = operate.ReadVIPHosts(limited, s); err != nil {
						return nil, nil, storeError(err, "cannot read the hosts of virtual IPs")
					}
					if doc.Gone, err = operate.ReadGone(limited, s, doc.Controllers); err != nil {
						return nil, nil, storeError(err, "cannot read the members")
					}
					if err := election.Writable(limited, s, "tanist-list"); errors.Is(err, election.ErrReadOnly) {
						// The statuses in the store are only the last ones written: a passive can't
						// report there that it is unfit.
						doc.Problems = append(doc.Problems, err.Error())
					}
					if d.output != "table" {
						return doc, nil, nil
					}
					servers, left := serversUp(limited, s), leaseLeft(limited, doc.Active)
					return doc, func(out io.Writer) { listTable(out, doc, c.Store+servers, left, time.Now()) }, nil
				})
			})
		},
	}
	a.flags(cmd)
	d.flags(cmd)
	return cmd
}

// serversUp returns " 3/3" if the store can count its responding servers. It does not wait long for
// the others.
func serversUp(ctx context.Context, s daemon.Store) string {
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

// leaseLeft asks the active's sidecar for the remaining validity of its lease, which only the
// sidecar knows. It returns "2.1s/", or "" if the sidecar is unreachable from here.
func leaseLeft(ctx context.Context, a *election.Active) string {
	if a == nil {
		return ""
	}
	s, ok := operate.AskSidecar(ctx, a.API, 300*time.Millisecond)
	// From here, an address like 127.0.0.1 may belong to another sidecar.
	if !ok || s.Incarnation != a.Incarnation || s.LeaseLeftMS <= 0 {
		return ""
	}
	return fmt.Sprintf("%.1fs/", s.LeaseLeftMS/1000)
}

// listTable prints a cluster for people. left is the result of [leaseLeft].
func listTable(out io.Writer, c election.ClusterRecord, store, left string, now time.Time) {
	pause := "off"
	if c.Pause != nil {
		pause = "ON, by " + clean(c.Pause.By) + because(c.Pause.Reason) + pauseEnd(c.Pause)
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
		if k.Reason != "" && state != election.StateServing {
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
	for _, m := range c.Gone {
		if !shown[m.Name] && (c.Active == nil || c.Active.Controller != m.Name) {
			fmt.Fprintf(w, " %s\t✗ gone\t-\t-\t-\t%s\t↳ its sidecar on %s is gone; `tanist forget %s` if it will not come back\n",
				clean(m.Name), since(now, m.Gone), cmp.Or(clean(m.Host), "?"), clean(m.Name))
		}
	}
	_ = w.Flush() // the reader may have gone
	if c.Active == nil {
		fmt.Fprintln(out, " Nobody is active.")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Standby)) {
		switch {
		case c.Active != nil && c.Active.Controller == name:
			fmt.Fprintf(out, " %s is %s. It keeps the lease that it has.\n", clean(name), clean(c.Standby[name].Words(name)))
		case slices.ContainsFunc(c.Gone, func(m election.Member) bool { return m.Name == name }):
			fmt.Fprintf(out, " %s is %s.\n", clean(name), clean(c.Standby[name].Words(name)))
		}
	}
	if r := c.Request; r != nil {
		fmt.Fprintf(out, " Requested by %s: %s\n", clean(r.By), operate.RequestWords(*r))
	}
	virtualIPTable(out, addressHosts(c.Controllers, c.VIPHosts))
	for _, problem := range c.Problems {
		fmt.Fprintf(out, " Problem: %s\n", clean(problem))
	}
	if len(c.Agents) == 0 {
		return
	}
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " AGENT\tFOLLOWS\tTERM\tSTATE\tRESTARTS\tLAST SWITCH")
	for _, a := range c.Agents {
		fmt.Fprintf(w, " %s\t%s\t%d\t%s\t%d\t%s\n", clean(a.Name), cmp.Or(clean(a.Follows), "-"), a.Term, clean(a.State), a.Restarts, millis(a.LastSwitchMS))
	}
	_ = w.Flush() // the reader may have gone
}

// since formats the time since at. Clocks of two hosts may differ; a negative age becomes 0s.
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

// millis formats a number of milliseconds for people.
func millis(m election.Millis) string {
	switch d := time.Duration(float64(m) * float64(time.Millisecond)); {
	case m <= 0:
		return "-"
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(float64(m), 'f', 1, 64) + "ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	default:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + "s"
	}
}

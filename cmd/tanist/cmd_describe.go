package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// description is the store's content about one name.
type description struct {
	Cluster    string               `json:"cluster"`
	Name       string               `json:"name"`
	Controller *election.Controller `json:"controller,omitempty"`
	Active     *election.Active     `json:"active,omitempty"` // if it holds the lease
	Agent      *election.Agent      `json:"agent,omitempty"`
	// Output is the end of what its program has written, if the last reign failed and the sidecar can be
	// asked.
	Output *election.OutputRecord `json:"output,omitempty"`
	Reigns []election.History     `json:"reigns,omitempty"` // the latest, newest first
}

func describeCommand() *cobra.Command {
	var a access
	var d display
	cmd := &cobra.Command{
		Use: "describe NAME", Short: "Show everything known about one controller or agent",
		Example: "  tanist describe -c orders.yml ctl-a",
		Args:    oneName("describe whom? Give the name of a controller or agent; `tanist list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := d.check(); err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				return d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					found, err := describe(ctx, s, c.Cluster, args[0])
					if err != nil {
						return nil, nil, err
					}
					found.ask(ctx, c)
					return found, func(out io.Writer) { found.table(out, time.Now()) }, nil
				})
			})
		},
	}
	cmd.ValidArgsFunction = a.completeMembers
	a.flags(cmd)
	d.flags(cmd)
	return cmd
}

func describe(ctx context.Context, s daemon.Store, cluster, name string) (*description, error) {
	now, err := look(ctx, s)
	if err != nil {
		return nil, storeError(err, "cannot read the store")
	}
	d := &description{Cluster: cluster, Name: name}
	known := []string{}
	for _, c := range now.snap.Controllers {
		known = append(known, clean(c.Name))
		if c.Name == name {
			d.Controller = &c
		}
	}
	for _, a := range now.agents {
		known = append(known, clean(a.Name))
		if a.Name == name {
			d.Agent = &a
		}
	}
	if operate.Holds(now.snap, name) {
		d.Active = now.snap.Active
	}
	limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	history, err := operate.ReadHistory(limited, s)
	if err != nil {
		return nil, storeError(err, "cannot read the history")
	}
	for _, h := range history {
		if h.To == name && len(d.Reigns) < 5 {
			d.Reigns = append(d.Reigns, h)
		}
	}
	if d.Controller == nil && d.Agent == nil && d.Active == nil && len(d.Reigns) == 0 {
		return nil, exit.Errorf(exit.Failure, "there is no controller or agent %q in %s; found: %s", name, cluster, cmp.Or(strings.Join(known, ", "), "none"))
	}
	return d, nil
}

// describedLines is how much of the output is shown after a failure.
const describedLines = 10

// ask asks the sidecar of a controller that failed for the end of its output.
func (d *description) ask(ctx context.Context, where daemon.StoreConfig) {
	if d.Controller == nil || d.Controller.Failure == nil {
		return
	}
	o, err := askOutput(ctx, where, *d.Controller)
	if err != nil || len(o.Lines) == 0 {
		return // it is not here, or does not have it
	}
	o.Lost = o.Lost || len(o.Lines) > describedLines
	o.Lines = o.Lines[max(0, len(o.Lines)-describedLines):]
	d.Output = &o
}

func (d *description) table(out io.Writer, now time.Time) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		if text := clean(fmt.Sprintf(format, args...)); text != "" {
			fmt.Fprintf(w, " %s\t%s\n", name, text)
		}
	}
	line("Name", "%s", d.Name)
	line("Cluster", "%s", d.Cluster)
	if c := d.Controller; c != nil {
		role := c.Role
		if d.Active.Serving() {
			role = election.RoleActive
		}
		line("Kind", "controller")
		line("Role", "%s", role)
		line("State", "%s for %s%s", c.State, since(now, c.Since), because(c.Reason))
		line("Health", "%s", c.Health)
		line("URL", "%s", c.URL)
		line("REST", "%s", c.API)
		for _, v := range c.VirtualIPs {
			line("Virtual IP", "%s on %s: %s%s", v.Address, v.Interface, v.State, because(v.Why))
		}
		line("Priority", "%d", c.Priority)
		if c.NoFailover {
			line("Failover", "never by itself: nofailover is set")
		}
		if f := c.Failure; f != nil {
			line("Last failure", "%s ago, term %d%s", since(now, f.At), f.Term, because(f.Why))
		}
		line("Lease TTL", "%s", c.LeaseTTL)
		line("Sidecar", "version %s, PID %d on %s", c.Version, c.PID, hostOf(c.Host))
		line("Started as", "%s", c.Incarnation)
	} else if d.Agent == nil {
		line("Kind", "controller; its sidecar is not here")
	}
	if a := d.Active; a != nil {
		line("Holds", "the lease, term %d, %s for %s%s", a.Term, a.State, since(now, a.Since), because(a.Reason))
	}
	if a := d.Agent; a != nil {
		line("Kind", "agent")
		line("State", "%s for %s%s", a.State, since(now, a.Since), because(a.Reason))
		line("Follows", "%s", cmp.Or(a.Follows, "nobody"))
		line("Term", "%d", a.Term)
		line("Restarts", "%d", a.Restarts)
		line("Last switch", "%s", millis(a.LastSwitchMS))
		line("Agentwatch", "PID %d on %s", a.PID, hostOf(a.Host))
	}
	_ = w.Flush() // the reader may have gone
	if d.Output != nil {
		fmt.Fprintln(out, "\n The end of its program's output (`tanist logs "+clean(d.Name)+"` shows more):")
		for _, line := range d.Output.Lines {
			fmt.Fprintln(out, "   "+clean(line))
		}
	}
	if len(d.Reigns) > 0 {
		fmt.Fprintln(out, "\n Its latest reigns:")
		historyTable(out, d.Reigns, d.Reigns)
		for _, again := range d.Reigns[0].Restarts {
			fmt.Fprintf(out, " %s  %s\n", again.At.Local().Format(time.DateTime), restartWords(d.Reigns[0], again))
		}
	}
}

// hostOf strips the boot id from a host's id.
func hostOf(id string) string {
	name, _, _ := strings.Cut(id, "/")
	return name
}

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// What can be simulated.
const (
	simHost  = "host-dies"
	simLink  = "link-cut"
	simFails = "controller-fails"
	simStore = "store-away"
)

func simulateCommand() *cobra.Command {
	var a access
	var d display
	faults := []string{simHost, simLink, simFails, simStore}
	cmd := &cobra.Command{
		Use: "simulate [FAULT [NAME]]", Short: "Show what would happen if a host died, a link were cut, the controller failed or the store went away",
		Long: "Show what would happen if something failed now: who would take over, by when, and why the others would not. Nothing is changed.\n" +
			"The rules are those of the sidecars, applied to the cluster as it is. FAULT is host-dies (the host of NAME is off), link-cut (its\n" +
			"link to the store is cut), controller-fails or store-away; without it, all are shown, of the active controller. Times are upper\n" +
			"bounds without the controller's own start; with the file of a controller (-c), they are those of its settings.",
		Example: "  tanist simulate -c orders.yml\n  tanist simulate -c orders.yml host-dies ctl-b",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && !slices.Contains(faults, args[0]):
				return exit.Errorf(exit.Usage, "%q is no fault: give %s", args[0], strings.Join(faults, ", "))
			case len(args) > 2:
				return exit.Errorf(exit.Usage, "unexpected argument %q; see `%s --help`", args[2], cmd.CommandPath())
			case len(args) == 2 && (args[0] == simStore || args[0] == simFails):
				return exit.Errorf(exit.Usage, "%s is not about one controller: give it without a name", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := d.check(); err != nil {
				return err
			}
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				return d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					snap, err := read(ctx, r.store) // with -w, as it is now
					if err != nil {
						return nil, nil, err
					}
					r.snap = snap
					if len(args) == 2 {
						if err := r.operated().Member(ctx, args[1]); err != nil {
							return nil, nil, err
						}
					}
					all, err := simulate(r, args)
					return all, func(out io.Writer) { simulationTable(out, all) }, err
				})
			})
		},
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return faults, cobra.ShellCompDirectiveNoFileComp
		case 1:
			return a.completeKnown(cmd, nil, typed)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.flags(cmd)
	d.flags(cmd)
	return cmd
}

// simulated is what would happen after one fault.
type simulated struct {
	Fault   string            `json:"fault"` // in words
	Happens []string          `json:"happens"`
	Next    []string          `json:"next"` // who would take over; several: the first to act
	Within  election.Millis   `json:"within_ms,omitempty"`
	Not     map[string]string `json:"not,omitempty"` // who would not, and why
}

// simulate returns what is asked for, or everything about the active.
func simulate(r reading, args []string) ([]simulated, error) {
	if r.snap.Active == nil {
		o := foresee(r, r.snap, election.SupposeNothing)
		s := outlook(r, "Nobody is active. As it is now", o)
		return []simulated{s}, nil
	}
	holder := r.snap.Active.Controller
	switch {
	case len(args) == 0:
		all := []simulated{hostDies(r, holder, simHost), controllerFails(r), storeAway(r)}
		return all, nil
	case args[0] == simFails:
		return []simulated{controllerFails(r)}, nil
	case args[0] == simStore:
		return []simulated{storeAway(r)}, nil
	}
	name := holder
	if len(args) == 2 {
		name = args[1]
	}
	return []simulated{hostDies(r, name, args[0])}, nil
}

// foresee is [election.Foresee] with the timing of the file, or of the default profile.
func foresee(r reading, snap election.Snapshot, suppose election.Supposition) election.Outlook {
	return election.Foresee(snap, timingOf(r.where), r.store.Traits(), suppose)
}

func timingOf(c daemon.StoreConfig) election.Timing {
	if c.Timing.Validity > 0 {
		return c.Timing
	}
	t, _ := c.Traits().Profile(election.ProfileDefault) // it is known
	return t
}

// outlook words what is foreseen.
func outlook(r reading, fault string, o election.Outlook) simulated {
	s := simulated{Fault: fault, Next: o.Next, Not: map[string]string{}}
	if s.Next == nil {
		s.Next = []string{}
	}
	for _, refusal := range o.Others {
		s.Not[refusal.Name] = refusal.Why
	}
	if len(o.Next) == 0 {
		s.Happens = append(s.Happens, "nobody takes over: "+o.Why)
		return s
	}
	s.Within = election.ToMillis(o.Start)
	later := "at once"
	if o.Claim > 0 {
		later = fmt.Sprintf("at most %v later", o.Claim.Round(time.Millisecond))
	}
	s.Happens = append(s.Happens, fmt.Sprintf("%s claims term %d, %s: %s", o.Words(), o.Term, later, o.Why))
	if o.Start > o.Claim {
		s.Happens = append(s.Happens, fmt.Sprintf("its controller is started at most %v later, when nothing of an older holder can run any more", o.Start.Round(time.Millisecond)))
	}
	if c := r.where.Controller; c != nil && c.Repository != nil {
		s.Happens = append(s.Happens, fmt.Sprintf("before that it fences the repository: at most %v more", boundsOf(c).Fence))
	}
	return s
}

// hostDies simulates the loss of a host, or of its link to the store.
func hostDies(r reading, name, fault string) simulated {
	words := "If the host of " + name + " died now"
	if fault == simLink {
		words = "If the link of " + name + " to the store were cut now"
	}
	if operate.Holds(r.snap, name) {
		s := outlook(r, words, foresee(r, r.snap, election.SupposeHostDies))
		validity := r.snap.Breadcrumb.Validity
		stops := fmt.Sprintf("%s's controller ends with its host", name)
		if fault == simLink {
			stops = fmt.Sprintf("%s's controller is gone at most %v after its last renewal: its guard ends it, whatever becomes of the sidecar", name, validity)
		}
		if r.snap.Breadcrumb.Heirs != "" && fault == simLink {
			stops = fmt.Sprintf("%s continues while those on its list promise to leave it the lease: %s", name, r.snap.Breadcrumb.Heirs)
		}
		s.Happens = append([]string{stops}, s.Happens...)
		return s
	}
	without := r.snap
	without.Controllers = slices.DeleteFunc(slices.Clone(without.Controllers), func(c election.Controller) bool { return c.Name == name })
	s := simulated{Fault: words, Next: []string{}, Happens: []string{clean(r.snap.Active.Controller) + " stays active"}}
	then := foresee(r, without, election.SupposeHostDies)
	s.Happens = append(s.Happens, fmt.Sprintf("if %s failed after that, too: %s would take over", clean(r.snap.Active.Controller), then.Words()))
	return s
}

// controllerFails simulates the end of the active's program.
func controllerFails(r reading) simulated {
	holder := r.snap.Active.Controller
	s := outlook(r, "If the controller of "+holder+" failed now", foresee(r, r.snap, election.SupposeRelease))
	if r.snap.Pause != nil {
		s.Happens, s.Next, s.Within = []string{"nothing: the cluster is paused by " + r.snap.Pause.By}, []string{}, 0
		return s
	}
	if len(s.Next) == 0 {
		s.Happens = []string{holder + " starts it again after a pause, because nobody else would take over"}
	}
	c := r.where.Controller
	if c == nil {
		s.Happens = append([]string{holder + " ends what is left of it, and releases the lease; the times of checks and stops are in the file of a controller: -c FILE"}, s.Happens...)
		return s
	}
	if n := c.Run.Restart.Local; n > 0 {
		s.Happens = append([]string{fmt.Sprintf("%s first starts it again in place, up to %d times within %v", holder, n, c.Run.Restart.Within)}, s.Happens...)
	}
	for _, b := range timingOf(r.where).Bounds(r.where.Traits(), boundsOf(c)) {
		if b.Fault == "controller exits" || b.Fault == "controller fails its checks" {
			s.Happens = append(s.Happens, fmt.Sprintf("%s: all of it takes at most %v: %s", b.Fault, b.Max.Round(time.Millisecond), b.Parts))
		}
	}
	return s
}

// storeAway simulates the loss of the store for everybody.
func storeAway(r reading) simulated {
	holder, timing := r.snap.Active.Controller, timingOf(r.where)
	s := simulated{Fault: "If the store went away now, for everybody", Next: []string{}}
	policy := election.StoreLossStop
	if r.where.Controller != nil {
		policy = election.StoreLoss(r.where.Controller.OnStoreLoss)
	} else {
		s.Happens = append(s.Happens, "on_store_loss is in the file of a controller (-c FILE); this is for stop")
	}
	validity := r.snap.Breadcrumb.Validity
	if validity == 0 {
		validity = timing.Validity
	}
	switch policy {
	case election.StoreLossKeep:
		s.Happens = append(s.Happens, holder+" keeps its controller running, however long it takes")
	case election.StoreLossFailsafe:
		s.Happens = append(s.Happens,
			fmt.Sprintf("%s keeps its controller running while everybody on its list promises to leave it the lease: %s", holder, r.snap.Breadcrumb.Heirs),
			fmt.Sprintf("without one of the promises it is gone at most %v after the last one", validity))
	default:
		s.Happens = append(s.Happens, fmt.Sprintf("nothing for %v: a store that is back by then costs nothing", validity-timing.StopBudget),
			fmt.Sprintf("then %s's controller is stopped; it is gone at most %v after its last renewal", holder, validity))
	}
	s.Happens = append(s.Happens, "nobody takes over without the store; once it is back, as if the lease had ended")
	return s
}

func simulationTable(out io.Writer, all []simulated) {
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s:\n", clean(s.Fault))
		for _, what := range s.Happens {
			fmt.Fprintf(out, "  %s\n", clean(what))
		}
		for _, name := range slices.Sorted(maps.Keys(s.Not)) {
			fmt.Fprintf(out, "  not %s: %s\n", clean(name), clean(s.Not[name]))
		}
	}
}

// durations prints how long a move would take, as far as files and the history tell.
func durations(ctx context.Context, out io.Writer, s daemon.Store, c daemon.StoreConfig, snap election.Snapshot, to string) error {
	limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	all, err := operate.ReadHistory(limited, s)
	if err != nil {
		return storeError(err, "cannot read the history")
	}
	if c.Controller != nil {
		for _, b := range c.Timing.Bounds(c.Traits(), boundsOf(c.Controller)) {
			if b.Fault == "planned move" {
				fmt.Fprintf(out, "  At most %v until it is started: %s\n", b.Max.Round(time.Millisecond), b.Parts)
			}
		}
	}
	target := nextActive(snap, to)
	if last := lastOf(all, func(h election.History) bool { return h.To == snap.Active.Controller && h.EndStop > 0 }); last != nil {
		fmt.Fprintf(out, "  The last stop of %s took %s.\n", clean(snap.Active.Controller), millis(last.EndStop))
	}
	if last := lastOf(all, func(h election.History) bool { return h.To == target && h.Start > 0 }); last != nil {
		fmt.Fprintf(out, "  The last start of %s took %s.\n", clean(target), millis(last.Start))
	}
	return nil
}

// nextActive returns one who would take over after a move away from the active.
func nextActive(snap election.Snapshot, to string) string {
	if to != "" {
		return to
	}
	if line := election.Successors(snap.Controllers, snap.Active.Controller); len(line) > 0 {
		return line[0].Name
	}
	return ""
}

// lastOf returns the latest reign that is one of those meant. The history has the latest first.
func lastOf(all []election.History, meant func(election.History) bool) *election.History {
	if i := slices.IndexFunc(all, meant); i >= 0 {
		return &all[i]
	}
	return nil
}

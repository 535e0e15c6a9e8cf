package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
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
)

// keepOut makes a controller one that must not become active: `tanist standby NAME on` and `tanist
// ban NAME`.
type keepOut struct {
	name, reason string
	ban, yes     bool
	timeout      time.Duration
}

func (k *keepOut) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.reason, "reason", "", "why, shown by list, explain and events")
	cmd.Flags().BoolVarP(&k.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().DurationVar(&k.timeout, "timeout", 2*time.Minute, "how long to wait: for the active to be moved away, and for the sidecar's confirmation")
}

// run moves the active away first if it is the one. Only when another serves is the wish written, so
// a move that fails changes nothing.
func (k *keepOut) run(ctx context.Context, cmd *cobra.Command, r reading) error {
	if err := member(ctx, r, k.name); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	is, on := r.snap.Standbys[k.name]
	already := on && (is.Ban || !k.ban) // a ban is the stricter one
	if already && !holds(r.snap, k.name) {
		fmt.Fprintf(out, "%s is already %s\n", k.name, clean(is.Words(k.name)))
		return nil
	}
	if holds(r.snap, k.name) {
		if err := k.moveAway(ctx, cmd, r); err != nil {
			return err
		}
	}
	wish := election.Standby{By: operator(), Reason: k.reason, Since: time.Now().UTC(), Ban: k.ban}
	if err := changeStandbys(ctx, r.store, func(all election.Standbys) {
		if !all[k.name].Ban { // somebody may have banned it meanwhile
			all[k.name] = wish
		}
	}); err != nil {
		return err
	}
	return k.confirmed(ctx, out, r.store)
}

// moveAway makes another controller active.
func (k *keepOut) moveAway(ctx context.Context, cmd *cobra.Command, r reading) error {
	target, err := chooseTarget(r.snap, "")
	if err != nil {
		return exit.Errorf(exit.Code(err), "%s is active, and cannot be moved away: %v", k.name, err)
	}
	out := cmd.OutOrStdout()
	if !k.yes {
		question := fmt.Sprintf("%s is active. This moves the active to %s first, as `tanist switchover` does. Continue? [y/N]", k.name, clean(target))
		if err := confirm(ctx, cmd.InOrStdin(), out, question, "y", "yes"); err != nil {
			return err
		}
	}
	return switchover(ctx, cmd, r.store, election.Request{
		ID: rand.Text()[:10], Op: election.OpSwitchover, By: operator(), Reason: cmp.Or(k.reason, k.name+" is to be kept out"), Term: r.snap.Active.Term, For: time.Minute,
	}, k.name, k.timeout, false)
}

// confirmed waits until the sidecar of the controller acts by the wish, and reports what it means.
func (k *keepOut) confirmed(ctx context.Context, out io.Writer, s daemon.Store) error {
	ctx, cancel := context.WithTimeout(ctx, min(k.timeout, confirmWithin))
	defer cancel()
	var version string
	here := false
	snap, err := until(ctx, s, func(snap election.Snapshot) bool {
		if holds(snap, k.name) {
			return true
		}
		i := slices.IndexFunc(snap.Controllers, func(c election.Controller) bool { return c.Name == k.name })
		if here = i >= 0; !here {
			return true
		}
		version = snap.Controllers[i].Version
		return snap.Controllers[i].State == election.StateStandby || snap.Pause != nil // paused is what it reports then
	})
	is, on := snap.Standbys[k.name]
	switch {
	case err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return err
	case err != nil:
		return exit.Errorf(exit.InProgress, "it is written, but the sidecar of %s, version %s, has not confirmed it: an older version ignores it", k.name, clean(version))
	case holds(snap, k.name):
		return exit.Errorf(exit.Failure, "%s took over again meanwhile: it keeps that reign, and gets no other; run the command again to move it away", k.name)
	case !on:
		return exit.Errorf(exit.Failure, "somebody has ended it already: see `tanist list`")
	}
	fmt.Fprintf(out, "%s is %s\n", k.name, clean(is.Words(k.name)))
	if !here {
		fmt.Fprintf(out, "Its sidecar is not here; it learns of it when it starts.\n")
	}
	if a := snap.Active; a.Serving() && len(election.Successors(snap.Controllers, a.Controller)) == 0 {
		fmt.Fprintf(out, "No passive is ready now: if %s fails, nobody takes over.\n", clean(a.Controller))
	}
	return nil
}

// confirmWithin is how long a sidecar may take to act by a wish that it is told of at once.
const confirmWithin = 20 * time.Second

// letIn ends a standby or a ban.
func letIn(ctx context.Context, out io.Writer, r reading, name string, ban bool) error {
	is, on := r.snap.Standbys[name]
	if r.snap.StandbyBad != nil {
		return exit.Errorf(exit.Failure, "%v: `tanist standby --reset` removes it", r.snap.StandbyBad)
	}
	switch {
	case !on:
		fmt.Fprintf(out, "%s is neither on standby nor banned\n", name)
		return nil
	case is.Ban != ban:
		return exit.Errorf(exit.Failure, "%s is %s", name, is.Words(name))
	}
	if err := changeStandbys(ctx, r.store, func(all election.Standbys) { delete(all, name) }); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s may become active again; nothing is moved to it\n", name)
	return nil
}

// changeStandbys changes the standby key by compare-and-swap, and removes it when it is empty.
func changeStandbys(ctx context.Context, s daemon.Store, change func(election.Standbys)) error {
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	for {
		e, err := s.Get(ctx, election.StandbyKey)
		if err != nil {
			return storeError(err, "cannot read who is on standby")
		}
		all := election.Standbys{}
		if e.Version != 0 {
			if all, err = election.DecodeStandbys(e.Value); err != nil {
				return exit.Errorf(exit.Failure, "cannot read who is on standby: %v: `tanist standby --reset` removes it", err)
			}
			all = maps.Clone(all)
		}
		if all == nil {
			all = election.Standbys{}
		}
		change(all)
		if len(all) == 0 {
			err = s.Delete(ctx, election.StandbyKey, e.Version)
		} else {
			err = s.Put(ctx, election.Put{Key: election.StandbyKey, Value: all.Encode(), If: &e.Version})
		}
		if err == nil || !errors.Is(err, election.ErrConflict) || ctx.Err() != nil {
			if err != nil {
				return writeError(err, "who is on standby")
			}
			return nil
		}
	}
}

// member returns an error if the cluster has no controller of that name.
func member(ctx context.Context, r reading, name string) error {
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	members, err := r.store.List(ctx, election.MemberPrefix) // also those that are gone
	if err != nil {
		return storeError(err, "cannot read the members")
	}
	var known []string
	for _, c := range r.snap.Controllers {
		known = append(known, c.Name)
	}
	for _, e := range members {
		known = append(known, strings.TrimPrefix(e.Key, election.MemberPrefix))
	}
	reigns, err := daemon.ReadHistory(ctx, r.store) // a member is recorded some seconds after it came
	if err != nil {
		return storeError(err, "cannot read the history")
	}
	for _, h := range reigns {
		known = append(known, h.To, h.From)
	}
	known = append(known, r.snap.Breadcrumb.Controller)
	if r.snap.Active != nil {
		known = append(known, r.snap.Active.Controller)
	}
	slices.Sort(known)
	known = slices.DeleteFunc(slices.Compact(known), func(name string) bool { return name == "" })
	if !slices.Contains(known, name) {
		return exit.Errorf(exit.Failure, "there is no controller %q in %s; found: %s", name, r.cluster, cmp.Or(clean(strings.Join(known, ", ")), "none"))
	}
	return nil
}

// showStandbys prints who must not become active.
func showStandbys(out io.Writer, r reading) {
	if r.snap.StandbyBad != nil {
		fmt.Fprintf(out, "%s: nobody counts as on standby\n", clean(r.snap.StandbyBad.Error()))
		return
	}
	if len(r.snap.Standbys) == 0 {
		fmt.Fprintln(out, "nobody in "+r.cluster+" is on standby or banned")
	}
	for _, name := range slices.Sorted(maps.Keys(r.snap.Standbys)) {
		fmt.Fprintf(out, "%s is %s%s\n", clean(name), clean(r.snap.Standbys[name].Words(name)), standbyNote(r.snap, name))
	}
}

// standbyNote tells of a holder that is to be kept out that it holds the lease still.
func standbyNote(snap election.Snapshot, name string) string {
	if !holds(snap, name) {
		return ""
	}
	return fmt.Sprintf(". It keeps the lease that it has, term %d: `tanist switchover` moves it", snap.Active.Term)
}

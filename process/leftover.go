package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// outside speaks of a program that need not be below a guard: by its own commands, or through
// systemd.
type outside interface {
	ask(ctx context.Context, of origin) Verdict
	// force ends it.
	force(ctx context.Context, of origin)
}

// origin is what is known of a run whose guard cannot be asked any more. Times are in clock ticks;
// 0: not known.
type origin struct {
	began     uint64 // when its guard did
	main      int    // its main process, as the guard found it
	mainBegan uint64
}

// mainLives reports whether the main process is known and lives.
func (o origin) mainLives() bool {
	if !o.knowsMain() || kernel.IsZombie(o.main) {
		return false
	}
	if began, err := kernel.BeganAt(o.main); err == nil {
		return began == o.mainBegan
	}
	return !errors.Is(unix.Kill(o.main, 0), unix.ESRCH) // what can't be looked at may live
}

func (o origin) knowsMain() bool { return o.main > 0 && o.mainBegan > 0 }

// unknownLead is how long to wait for a deadline of which there is no record.
const unknownLead = election.LongestValidity

// leftover is what can be found of an earlier run.
type leftover struct {
	evidence
	trace  *wire.Trace // nil: no record that can be read
	guards []int
	tree   []int // processes with its mark
	groups []*kernel.Cgroup
	since  election.Instant // when the search began
	last   election.Instant // no deadline was set after this
	empty  int              // how many looks in a row have found nothing alive
	// Without a record: the cgroups that were seen by their names, and whether there was a process
	// of which none was.
	seen  map[string]bool
	loose bool
}

func (l *leftover) close() {
	for _, g := range l.groups {
		g.Close()
	}
	l.groups = nil
}

func (l *leftover) origin() origin {
	if l.trace == nil {
		return origin{}
	}
	return origin{began: l.trace.Began, main: l.trace.Main, mainBegan: l.trace.MainBegan}
}

// lead is how far ahead of its setting a deadline of the run can lie.
func (l *leftover) lead() time.Duration {
	switch {
	case l.trace == nil || l.trace.Lead == 0:
		return unknownLead
	case l.trace.Lead < 0: // without a deadline the guard ended it with its sidecar
		return confirmWithin
	}
	return l.trace.Lead
}

// due is when every deadline of the run has passed. It counts from when the last one can have been
// set, not from the search: a search that begins late does not wait again.
func (l *leftover) due() election.Instant { return l.last.Add(l.lead()) }

// ruling is what a look at what was left leads to.
type ruling uint8

const (
	rulingLook     ruling = iota // too little was seen: look again at once
	rulingGone                   // it is gone
	rulingAlive                  // it cannot be ended
	rulingUntold                 // nothing can be shown, and the caller does not wait
	rulingUnproven               // nothing can be shown, and every deadline has passed
	rulingWait                   // end what was found, and look again
)

// rule decides what to do, from the verdict so far.
func (l *leftover) rule(v Verdict, now election.Instant, patient bool) ruling {
	// so that a kill that has just begun is given time
	overdue := now > max(l.due(), l.since).Add(confirmWithin)
	switch {
	case v != Running && l.empty < l.looks() && l.record != recordOtherBoot:
		return rulingLook
	case v == Gone:
		return rulingGone
	case v == Running && overdue:
		return rulingAlive
	case v == Unknown && !patient:
		return rulingUntold
	// a living guard will soon show more
	case v == Unknown && (overdue || now > l.due() && !l.locked):
		return rulingUnproven
	}
	return rulingWait
}

// Settle ends what an earlier sidecar with the same StateDir left running, and returns nil when it
// is shown to be gone. If that cannot be shown, it waits until every deadline that a guard may hold
// has passed, and returns an error that wraps [election.ErrUnproven]. The wait counts from when
// this driver was made: the earlier sidecar must have ended by then, as the lock on the state
// directory shows. After any other error something is alive. It does not look at what this driver
// keeps itself.
func (d *driver) Settle(ctx context.Context) error {
	if d.cfg.StateDir == "" {
		return nil
	}
	return d.settle(ctx, true)
}

// settleBefore is Settle before a start.
func (d *driver) settleBefore(ctx context.Context) error {
	d.mu.Lock()
	settled := d.settled
	d.mu.Unlock()
	if settled {
		return nil
	}
	err := d.settle(ctx, true)
	if errors.Is(err, election.ErrUnproven) {
		d.cfg.Log.Error().Err(err).Msg("starting, because every earlier deadline has passed")
		return nil
	}
	return err
}

// settle is Settle; without patience it returns at once when nothing can be shown.
func (d *driver) settle(ctx context.Context, patient bool) (err error) {
	d.settling.Lock()
	defer d.settling.Unlock()
	defer func() {
		d.mu.Lock()
		d.settled = err == nil || errors.Is(err, election.ErrUnproven)
		d.mu.Unlock()
	}()
	if st, err := wire.Recall(d.cfg.StateDir); err == nil {
		k, err := d.reach(ctx, st)
		switch {
		case err == nil: // the guard itself ends it, and knows best
			d.cfg.Log.Warn().Int("guard", k.guardPID).Msg("ending what an earlier run left")
			go k.run()
			return k.stop(ctx, 0)
		case errors.Is(err, errBusy) || ctx.Err() != nil:
			return err
		}
	}
	d.mu.Lock()
	l := &leftover{since: election.BootClock(), last: d.alone}
	d.mu.Unlock()
	defer l.close()
	told := false
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		d.look(ctx, l)
		if l.trace != nil && (l.locked || len(l.guards) > 0) { // it may have come up by now
			if k, err := d.reach(ctx, l.trace); err == nil {
				go k.run()
				return k.stop(ctx, 0)
			}
		}
		now := election.BootClock()
		v, why := l.verdict()
		switch l.rule(v, now, patient) {
		case rulingGone:
			d.forget(l)
			return nil
		case rulingAlive:
			return fmt.Errorf("cannot end what an earlier run of %s left: %s", d.cfg.Command[0], l.words())
		case rulingUntold:
			return fmt.Errorf("cannot tell whether an earlier run of %s has ended: %s", d.cfg.Command[0], why)
		case rulingUnproven:
			d.forget(l)
			return fmt.Errorf("%w: %s of an earlier run: %s", election.ErrUnproven, d.cfg.Command[0], why)
		case rulingLook:
			pause = time.Millisecond / 2
		case rulingWait:
			if !told {
				told = true
				d.cfg.Log.Warn().Str("known", v.String()).Str("reason", why).Dur("for_at_most", max(l.due().Sub(now), 0)).
					Msg("guarding what an earlier run left")
			}
		}
		if v == Running || l.asked && l.outside == Unknown && l.living == 0 {
			d.strike(ctx, l, now)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot end what an earlier run of %s left: %w; %s", d.cfg.Command[0], context.Cause(ctx), why)
		case <-time.After(pause):
		}
	}
}

// look collects the evidence. What it finds it finds by the record and, should that be lost, by the
// names that cgroups, guards and processes bear.
func (d *driver) look(ctx context.Context, l *leftover) {
	l.close()
	st, err := wire.Recall(d.cfg.StateDir)
	switch {
	case err == nil:
		l.record, l.trace = recordPresent, st
	case errors.Is(err, wire.ErrNoTrace):
		l.record = recordNone
	case errors.Is(err, wire.ErrOtherBoot):
		l.record = recordOtherBoot
	default:
		l.record = recordUnreadable
	}
	locked, err := wire.Locked(d.cfg.StateDir)
	l.locked = locked || err != nil
	l.guards = kernel.Marked(wire.GuardMark, func(mark string) bool { return d.ours(l, mark) })
	// our own child was started ahead, and is nobody's leftover
	l.guards = slices.DeleteFunc(l.guards, func(pid int) bool {
		parent, uid, err := kernel.ParentAndOwner(pid)
		return err != nil || parent == os.Getpid() || uid != os.Geteuid()
	})
	if st := l.trace; st != nil && st.Guard > 0 && !slices.Contains(l.guards, st.Guard) {
		if began, err := kernel.BeganAt(st.Guard); err == nil && began == st.Began && !kernel.IsZombie(st.Guard) {
			l.guards = append(l.guards, st.Guard)
		}
	}
	l.tree = kernel.Marked(wire.TreeMark, func(mark string) bool { return d.ours(l, mark) })
	if l.trace == nil { // everybody can guess how such a mark begins
		l.tree = slices.DeleteFunc(l.tree, func(pid int) bool { return !ownedBy(pid, os.Geteuid(), d.uid()) })
	}
	l.living = len(l.guards) + len(l.tree)
	l.group = false
	var paths []string
	if l.trace == nil {
		paths = kernel.FindCgroups(kernel.CgroupPrefix + d.cfg.kin())
	}
	if st := l.trace; st != nil && st.Cgroup != "" {
		l.group = st.Unit == "" // a unit's cgroup may yet be filled
		paths = append(paths, st.Cgroup)
	}
	for _, path := range paths {
		group, err := kernel.OpenCgroup(path)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) {
				l.group = false
			}
			continue
		}
		l.groups = append(l.groups, group)
		if group.Populated() {
			l.living++
		}
	}
	if l.trace == nil {
		l.match()
	}
	l.found = l.found || l.living > 0
	l.empty++
	if l.living > 0 {
		l.empty = 0
	}
	// A program that could live elsewhere when it was started is not gone because the configuration
	// has changed since.
	l.asked = (d.outside != nil || l.trace != nil && l.trace.Outside) && (l.record == recordPresent || l.record == recordUnreadable || l.found)
	if l.asked && l.living == 0 {
		l.outside = Unknown
		if d.outside != nil {
			l.outside = d.outside.ask(ctx, l.origin())
		}
	}
}

// match tells, where there is no record, whether all that was found was in cgroups.
func (l *leftover) match() {
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	for _, g := range l.groups {
		l.seen[strings.TrimPrefix(filepath.Base(g.Path()), kernel.CgroupPrefix)] = true
	}
	// of one that has just ended nothing is known, and need not be
	outOfGroup := func(mark string) bool { return !l.seen[mark] }
	for _, pid := range l.guards {
		l.loose = l.loose || kernel.HasMark(pid, wire.GuardMark, outOfGroup)
	}
	for _, pid := range l.tree {
		l.loose = l.loose || kernel.HasMark(pid, wire.TreeMark, outOfGroup)
	}
	l.group = len(l.seen) > 0 && !l.loose
}

// looks is how often nothing has to be found alive before that counts: a process shows no mark
// while it executes another program.
func (l *leftover) looks() int {
	if l.record == recordNone && !l.found {
		return 2
	}
	return emptyScans
}

// ours reports whether a mark is of a tree of this program: of the one on record, or if there is no
// record of any.
func (d *driver) ours(l *leftover, mark string) bool {
	if l.trace != nil {
		return mark == l.trace.Tree
	}
	return strings.HasPrefix(mark, d.cfg.kin())
}

// uid is the user that the program runs as.
func (d *driver) uid() int {
	s := wire.Spec{UID: int64(os.Geteuid())}
	if d.cfg.User != "" {
		_, _ = become(&s, d.cfg.User) // a user that is gone owns nothing
	}
	return int(s.UID)
}

func ownedBy(pid int, uids ...int) bool {
	_, uid, err := kernel.ParentAndOwner(pid)
	return err == nil && slices.Contains(uids, uid)
}

// strike kills what was found. A guard that nobody can talk to is left to its work for as long as
// its deadline may lie ahead, where only the guard can show that nothing of its tree is left.
func (d *driver) strike(ctx context.Context, l *leftover, now election.Instant) {
	alone := len(l.groups) == 0 && d.outside == nil && len(l.guards) > 0
	if alone && now <= l.due() {
		return
	}
	for _, g := range l.groups {
		_ = g.Kill()
	}
	for _, pid := range l.guards {
		began, err := kernel.BeganAt(pid)
		if err == nil {
			kernel.Kill(pid, func(pid int) bool { b, err := kernel.BeganAt(pid); return err == nil && b == began })
		}
	}
	for _, pid := range l.tree {
		kernel.Kill(pid, func(pid int) bool {
			return kernel.HasMark(pid, wire.TreeMark, func(mark string) bool { return d.ours(l, mark) })
		})
	}
	if d.outside != nil && l.living == 0 {
		d.outside.force(ctx, l.origin())
	}
}

// words tells what is left.
func (l *leftover) words() string {
	if all := slices.Concat(l.guards, l.tree); len(all) > 0 {
		return kernel.Describe(len(all), all[0])
	}
	return "something of it runs that cannot be ended"
}

// forget removes the traces of a run.
func (d *driver) forget(l *leftover) {
	for _, g := range l.groups {
		_ = kernel.RemoveCgroup(g.Path())
	}
	dir, err := filepath.Abs(d.cfg.StateDir)
	if err == nil {
		wire.Forget(dir)
	}
}

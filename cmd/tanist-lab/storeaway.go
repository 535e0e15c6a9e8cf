package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// storeGone is how long the store is away: longer than any lease lasts.
const storeGone = 10 * time.Second

// storeAway stops the store for a while. The expected result depends on the policy: with stop the
// active has stopped by its deadline; with failsafe and keep users notice nothing, and the term
// does not change.
func storeAway(ctx context.Context, l *lab, s scenario) (result, error) {
	before, err := l.healthy(ctx, 0)
	if err != nil {
		return result{}, err
	}
	timing, err := election.Profile(l.opts.profile)
	if err != nil {
		return result{}, err
	}
	r := result{Scenario: s.name, From: before.active.Controller, TermBefore: uint64(before.active.Term)}
	policy := election.StoreLoss(l.opts.storeLoss)
	if policy == election.StoreLossFailsafe {
		if err := l.listed(ctx, r.From); err != nil {
			return r, err
		}
	}
	mark, err := l.logPosition(ctx)
	if err != nil {
		return r, err
	}

	from := election.BootClock()
	l.store.kill()
	r.Did = fmt.Sprintf("%s is killed, and stays away for %v; on_store_loss is %s", l.opts.store, storeGone, policy)
	l.out.event(r.Did)
	if err := pause(ctx, storeGone); err != nil {
		return r, err
	}
	back := election.BootClock()
	meanwhile := l.virtual.since(from)
	if err := l.store.start(ctx); err != nil {
		return r, err
	}
	l.out.event(l.opts.store + " is started again")
	after, err := l.healthy(ctx, 0)
	if err != nil {
		return r, err
	}
	if err := pause(ctx, settle); err != nil {
		return r, err
	}
	r.To, r.TermAfter = after.active.Controller, uint64(after.active.Term)
	if err := l.judge(ctx, &r, from, election.BootClock(), mark); err != nil {
		return r, err
	}

	last, failed := from, 0
	for _, p := range meanwhile {
		if p.Err == "" {
			last = max(last, p.Answered)
		} else {
			failed++
		}
	}
	broken := func(format string, args ...any) { r.Broken = append(r.Broken, fmt.Sprintf(format, args...)) }
	if policy == election.StoreLossStop {
		l.out.event(fmt.Sprintf("the last good answer came %v after the store had gone; the lease's validity is %v", last.Sub(from).Round(time.Millisecond), timing.Validity))
		if last.Sub(from) > timing.Validity {
			broken("the active still served %v after the store had gone, the validity is %v", last.Sub(from), timing.Validity)
		}
		return r, nil
	}
	l.out.event(fmt.Sprintf("%d requests in %v without the store, %d failed", len(meanwhile), back.Sub(from).Round(time.Millisecond), failed))
	if failed > 0 || len(meanwhile) == 0 {
		broken("%d of %d requests failed while the store was away", failed, len(meanwhile))
	}
	return r, nil
}

// listed waits until the passives are on the list of a holder with failsafe: only those are asked
// and count. A renewal or two puts them there.
func (l *lab) listed(ctx context.Context, holder string) error {
	return wait(ctx, 30*time.Second, "the passive to be on the list of failsafe", func(ctx context.Context) error {
		all, err := l.store.read(ctx)
		if err != nil {
			return err
		}
		crumb, err := election.DecodeBreadcrumb([]byte(all[election.TermKey]))
		if err != nil {
			return err
		}
		for _, side := range l.sides {
			if side.Name != holder && !strings.Contains(crumb.Heirs, side.Name) {
				return fmt.Errorf("%s is not on it: %q", side.Name, crumb.Heirs)
			}
		}
		return nil
	})
}

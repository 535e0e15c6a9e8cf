package process

import (
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

func TestWatchOfTheGuard(t *testing.T) {
	const (
		ms     = election.Instant(time.Millisecond)
		second = 1000 * ms
		now    = 100 * second
	)
	base := func() watch {
		return watch{patience: 2 * time.Second, deadline: now + 10*second, acked: now + 10*second, killAt: election.Never, lastSent: now - 100*ms}
	}
	for name, test := range map[string]struct {
		change       func(*watch)
		failed, ping bool
	}{
		"nothing is due":                       {func(*watch) {}, false, false},
		"a sign of life is due":                {func(w *watch) { w.lastSent = now - second }, false, true},
		"an answer may take a while":           {func(w *watch) { w.pending = []sent{{1, now - 1900*ms}} }, false, false},
		"but not forever":                      {func(w *watch) { w.pending = []sent{{1, now - 2000*ms}} }, true, false},
		"nor beyond the deadline it replaces":  {func(w *watch) { w.pending, w.acked = []sent{{1, now - 500*ms}}, now }, true, false},
		"which is not held against a late one": {func(w *watch) { w.pending, w.acked = []sent{{1, now - 50*ms}}, now-50*ms }, false, false},
		"at the deadline it is asked":          {func(w *watch) { w.deadline = now }, false, true},
		"and must answer at once": {func(w *watch) {
			w.deadline, w.pending, w.lastSent = now-100*ms, []sent{{1, now - 100*ms}}, now-100*ms
		}, true, false},
		"a stop is not that urgent while the deadline is far": {func(w *watch) {
			w.killAt, w.pending, w.lastSent = now-900*ms, []sent{{1, now - 1500*ms}}, now-90*ms
		}, false, false},
		"but does not wait forever": {func(w *watch) {
			w.killAt, w.pending, w.lastSent = now-1000*ms, []sent{{1, now - 1500*ms}}, now-90*ms
		}, true, false},
		"nor beyond the deadline": {func(w *watch) {
			w.killAt, w.deadline, w.pending, w.lastSent = now-500*ms, now, []sent{{1, now - 500*ms}}, now-90*ms
		}, true, false},
		"unless it is at work": {func(w *watch) {
			w.killAt, w.pending, w.lastSent, w.killing = now-100*ms, []sent{{1, now - 500*ms}}, now-90*ms, true
		}, false, false},
		"a thawed sidecar does not blame it": {func(w *watch) {
			w.pending, w.looked = []sent{{1, now - 5*second}}, now-4*second
		}, false, false},
		"more than once": {func(w *watch) {
			w.pending, w.looked, w.excused = []sent{{1, now - 5*second}}, now-4*second, 1
		}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := base()
			test.change(&w)
			failed, ping, next := w.decide(now)
			if failed != test.failed || ping != test.ping {
				t.Errorf("failed %t, ping %t", failed, ping)
			}
			if !failed && next <= now {
				t.Errorf("looks again %v ago", now.Sub(next))
			}
		})
	}
}

// A guard that freezes with no renewal to come is found out early enough for the tree to be gone
// when the lease ends, whenever it freezes: the deadline lies half of the shortest stop budget
// before that.
func TestGuardFrozenBeforeItsLastDeadlineIsFoundOutInTime(t *testing.T) {
	const deadline = election.Instant(100 * time.Second)
	for name, killAt := range map[string]election.Instant{"": election.Never, ", a stop under way": deadline} {
		for before := time.Duration(0); before <= 3*time.Second; before += 7 * time.Millisecond {
			frozen := deadline.Add(-before)
			now := deadline.Add(-4 * time.Second)
			w := watch{patience: answerWithin, deadline: deadline, acked: deadline, killAt: killAt, lastSent: now}
			for looks := 0; ; looks++ {
				failed, ping, next := w.decide(now)
				if failed {
					break
				}
				if ping {
					w.lastSent = now
					w.pending = append(w.pending, sent{uint32(looks), now})
					if now < frozen {
						w.answered(uint32(looks))
					}
				}
				if looks > 1000 {
					t.Fatalf("frozen %v before the deadline%s: it is looked at all the time", before, name)
				}
				if !ping { // what was sent is looked at once more
					now = next
				}
			}
			limit := deadline.Add(dueAtDeadline)
			if before >= answerDue {
				limit = deadline
			}
			if now > limit {
				t.Errorf("frozen %v before the deadline%s: found out %v after it", before, name, now.Sub(deadline))
			}
		}
	}
}

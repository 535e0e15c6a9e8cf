package process

import (
	"time"

	"github.com/tanist/tanist/election"
)

const (
	// answerWithin is how long a guard may take to acknowledge, by default. A guard with normal
	// priority on a host with 32 busy loops was seen to take 0.6 s.
	answerWithin = 2 * time.Second
	// answerDue is how long before its deadline a guard is asked: one that does not answer by then
	// has frozen, and will not kill.
	answerDue = 100 * time.Millisecond
	// dueAtDeadline is how long after its deadline it may take to say that it kills. With the kill
	// it has to fit into the shortest kill margin that election.Timing allows. By then its own work
	// is due in any case, so no patience is lost.
	dueAtDeadline = 50 * time.Millisecond
	// killDue is how long it may take once a stop is due to end in a kill, and while it kills. Until
	// the deadline only time is lost, and taking over from a guard that is merely slow loses its
	// proof: one that runs a command of the script driver answers when the new process has had its
	// turn on a busy host, and a kill of 850 processes on two loaded cores took 0.7 s.
	killDue = time.Second
	// confirmWithin is how long a Stop waits after the kill until it says that it could not be
	// confirmed.
	confirmWithin = 5 * time.Second
)

// watch is what the sidecar knows about its guard, and decides upon.
type watch struct {
	patience time.Duration // for an answer, in general
	deadline election.Instant
	acked    election.Instant // the deadline that the guard is known to enforce
	killAt   election.Instant // Never: no stop is under way
	lastSent election.Instant
	pending  []sent           // not yet answered, oldest first
	looked   election.Instant // when this process meant to look next
	excused  uint32           // the record whose answer may be late by our own fault
	// the guard has said that it kills, which may keep it from answering for a moment
	killing bool
}

type sent struct {
	seq uint32
	at  election.Instant
}

// must is when the tree has to be gone.
func (w *watch) must() election.Instant { return min(w.deadline, w.killAt) }

// decide tells whether the guard failed, or else whether to ask it for a sign of life, and when to
// look again.
func (w *watch) decide(now election.Instant) (failed, ping bool, next election.Instant) {
	must := w.must()
	limit := election.Never
	if len(w.pending) > 0 {
		// A sidecar that was frozen finds the limit passed and the answers unread. It forgives the
		// guard once.
		if head := &w.pending[0]; w.looked != 0 && now.Sub(w.looked) > answerDue/4 && w.excused != head.seq {
			head.at, w.excused = now, head.seq
		}
		at := w.pending[0].at
		// The guard has to have heard of a renewal before the deadline that the renewal replaces,
		// since at that point it would have killed. One that has neither answered nor killed is not
		// running.
		limit = min(at.Add(w.patience), max(w.acked, at.Add(answerDue)))
		switch {
		case now >= must && w.killing:
			limit = min(at.Add(w.patience), at.Add(killDue))
		case now >= must: // of a stop, or else overdue comes first
			limit = min(limit, max(at, must).Add(killDue), w.overdue(at))
		default:
			limit = min(limit, w.overdue(at))
		}
		if now >= limit {
			return true, false, now
		}
	}
	ask := w.lastSent.Add(w.patience / 2)
	early := w.deadline.Add(-answerDue)
	if now >= must && w.lastSent < must || now >= early && w.lastSent < early {
		ask = now
	}
	if now >= ask {
		ping = true
		ask = now.Add(min(w.patience/2, answerDue))
	}
	next = min(limit, ask)
	for _, at := range []election.Instant{must, early} {
		if at > now {
			next = min(next, at)
		}
	}
	w.looked = next
	return false, ping, next
}

// overdue is when a guard that has not answered what was sent at that instant is known to let its
// deadline pass. It is never before the deadline.
func (w *watch) overdue(at election.Instant) election.Instant {
	if at >= w.deadline {
		return at.Add(dueAtDeadline)
	}
	return min(max(at.Add(answerDue), w.deadline), w.deadline.Add(dueAtDeadline))
}

func (w *watch) answered(seq uint32) {
	for len(w.pending) > 0 && int32(seq-w.pending[0].seq) >= 0 {
		w.pending = w.pending[1:]
	}
}

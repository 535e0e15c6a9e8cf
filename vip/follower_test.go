package vip

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// followedHost is a host in the simulation: its follower, and what its keeper holds until when.
type followedHost struct {
	name   string
	rule   pursuit
	until  election.Instant // 0: nothing is held
	sent   election.Instant // of the read that is under way; 0: none
	seen   *election.Active // what that read found, once the store has answered it
	read   bool
	frozen bool
}

func (h *followedHost) restart() {
	h.rule, h.sent, h.read = pursuit{filter: election.NewFilter(nil)}, 0, false
}

// step does what may happen on a host within one step of time.
func (h *followedHost) step(r *rand.Rand, now election.Instant, role *election.Active) {
	if h.until != 0 && now >= h.until {
		h.until = 0 // by the keeper or by the kernel, whatever is frozen
	}
	switch {
	case r.IntN(200) == 0:
		h.frozen = !h.frozen
	case r.IntN(2000) == 0:
		h.restart()
	case h.sent != 0 && !h.read && r.IntN(3) == 0: // the store answers, even a frozen process
		h.seen, h.read = role, true
	case h.frozen:
	case h.sent == 0 && r.IntN(4) == 0:
		h.sent, h.read = now, false
	case h.sent != 0 && r.IntN(30) == 0: // the answer is lost
		h.sent = 0
	case h.sent != 0 && h.read && r.IntN(3) == 0:
		sent := h.sent
		h.sent = 0
		t, err := h.rule.see(h.seen, time.Unix(0, int64(now)))
		if err != nil {
			return
		}
		d := h.rule.decide(h.name, t, sent, now, h.until != 0)
		switch {
		case d.kind == letGo:
			h.until = 0
		case (d.kind == hold || d.kind == extend && h.until != 0) && now < d.deadline:
			h.until = max(h.until, d.deadline)
		}
	}
}

// TestTwoFollowersNeverHoldTheAddressAtOnce: whatever is frozen, restarted, lost or late, and however
// the controllers change.
func TestTwoFollowersNeverHoldTheAddressAtOnce(t *testing.T) {
	held := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		hosts := []*followedHost{{name: "a"}, {name: "b"}, {name: "c"}}
		for _, h := range hosts {
			h.restart()
		}
		var role *election.Active
		term := election.Term(0)
		now := election.Instant(time.Hour)
		for range 5000 {
			now = now.Add(20 * time.Millisecond)
			switch r.IntN(300) {
			case 0:
				role = nil
			case 1, 2:
				term++
				role = &election.Active{Controller: hosts[r.IntN(3)].name, Term: term, State: election.StateServing, URL: "http://10.0.0.1:80"}
			case 3:
				if role != nil {
					stopping := *role
					stopping.State = election.StateStopping
					role = &stopping
				}
			}
			var holders strings.Builder
			for _, h := range hosts {
				h.step(r, now, role)
				if h.until > now {
					holders.WriteString(h.name)
					held++
				}
			}
			if len(holders.String()) > 1 {
				t.Fatalf("seed %d: held on %s at once", seed, holders.String())
			}
		}
	}
	if held < 100000 {
		t.Errorf("the address was held in %d steps only: little is tested", held)
	}
}

// TestAnswerThatTookLongDoesNotEndTheWait: it may be older than what another host has read since.
func TestAnswerThatTookLongDoesNotEndTheWait(t *testing.T) {
	p := pursuit{filter: election.NewFilter(nil)}
	target := election.Target{Controller: "a", Term: 5, State: election.StateServing}
	first := election.Instant(time.Hour)
	over := first.Add(followWait)
	for _, read := range []struct {
		sent, answered election.Instant
		want           decisionKind
	}{{first.Add(-1), first, prepare}, {over.Add(-followRead), over.Add(1), prepare}, {over, over.Add(1), hold}} {
		if d := p.decide("a", target, read.sent, read.answered, false); d.kind != read.want {
			t.Errorf("sent %v after the first answer: %v, not %v", read.sent.Sub(first), d.kind, read.want)
		}
	}
}

// TestFollowerTakesOverAsSoonAsItIsSafe: a wait that is not needed would be an outage.
func TestFollowerTakesOverAsSoonAsItIsSafe(t *testing.T) {
	serving := func(controller string, term election.Term) election.Target {
		return election.Target{Controller: controller, Term: term, State: election.StateServing}
	}
	stopping := election.Target{Controller: "a", Term: 5, State: election.StateStopping}
	now := election.Instant(time.Hour)
	type sight struct {
		after   time.Duration
		target  election.Target
		holding bool
		want    decisionKind
	}
	for name, sights := range map[string][]sight{
		"first seen":                 {{0, serving("a", 5), false, prepare}, {followWait, serving("a", 5), false, prepare}, {time.Millisecond, serving("a", 5), false, hold}},
		"held by an earlier process": {{0, serving("a", 5), true, hold}, {0, serving("a", 5), true, extend}},
		"of another controller":      {{0, serving("b", 5), true, letGo}},
		"vacant":                     {{0, election.Target{}, true, letGo}},
		"restarted in place":         {{0, serving("a", 5), true, hold}, {0, stopping, true, letGo}, {0, serving("a", 5), false, hold}},
		"next term on the same host": {{0, serving("a", 5), true, hold}, {0, election.Target{}, true, letGo}, {0, serving("a", 6), false, hold}},
		"a term was missed":          {{0, serving("a", 5), true, hold}, {0, election.Target{}, true, letGo}, {0, serving("a", 7), false, prepare}},
		"another was active between": {{0, serving("a", 5), true, hold}, {0, serving("b", 6), true, letGo}, {0, serving("a", 7), false, prepare}},
		"the deadline passed":        {{0, serving("a", 5), true, hold}, {time.Minute, serving("a", 5), false, hold}},
	} {
		t.Run(name, func(t *testing.T) {
			p := pursuit{filter: election.NewFilter(nil)}
			at := now
			for i, s := range sights {
				at = at.Add(s.after)
				d := p.decide("a", s.target, at.Add(-time.Millisecond), at, s.holding)
				if d.kind != s.want {
					t.Fatalf("sight %d: %v, not %v", i, d.kind, s.want)
				}
				if limit := at.Add(followFor - time.Millisecond); (d.kind == hold || d.kind == extend) && d.deadline != limit {
					t.Errorf("sight %d: the deadline is %v after the request, not %v", i, d.deadline.Sub(at), followFor)
				}
			}
		})
	}
	if fmt.Sprint(followFor) != "2s" {
		t.Errorf("followFor is %v: hosts of another version would use another", followFor)
	}
}

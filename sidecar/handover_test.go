package sidecar

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// noHeir prevents h from being handed the reign, so it has to claim.
func (h *host) noHeir() { h.client.DenyKey("heir") }

// move requests a planned move to h and waits until it serves.
func (w *world) move(h *host, from election.Term) time.Duration {
	w.t.Helper()
	return w.outageAfter(30*time.Second, h, func() {
		w.request(election.Request{ID: "1", Op: "switchover", To: h.name, By: "ana", Term: from, For: time.Minute})
	})
}

// vacancies counts how often the role key vanished.
func (w *world) vacancies() (n int) {
	for _, c := range w.store.Changes() {
		if c.Key == "active" && c.Deleted {
			n++
		}
	}
	return n
}

// TestHandOver: the holder makes the passive the holder when it has stopped. Nobody claims, and the
// role key is never absent.
func TestHandOver(t *testing.T) {
	for name, end := range map[string]func(w *world, a *host){
		"request": func(w *world, _ *host) {
			w.request(election.Request{ID: "1", Op: "switchover", By: "ana", Term: 1, For: time.Minute})
		},
		"shutdown": func(w *world, a *host) {
			go a.end()
			w.t.Cleanup(func() {
				if err := <-a.done; err != nil {
					w.t.Errorf("%v", err)
				}
			})
			a.end = nil
		},
		"fault": func(_ *world, a *host) { a.health.set("bad") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := two(t, func(c *Config) { c.URLs = election.URLs(`{"pb":"http://` + c.Name + `:9989"}`) })
				claims := b.client.Calls("Claim")
				w.outageAfter(5*time.Second, b, func() { end(w, a) })
				if n := b.client.Calls("Claim") - claims; n != 0 || w.vacancies() != 0 {
					t.Errorf("%d claims, the role key vanished %d times", n, w.vacancies())
				}
				v := b.sidecar.View()
				why := map[string]election.Why{"request": election.WhySwitchover, "shutdown": election.WhyEnded, "fault": election.WhyFailed}[name]
				if len(v.Takeovers) != 1 || v.Takeovers[why] != 1 || a.sidecar.View().Takeovers[election.WhyFirst] != 1 {
					t.Errorf("counted were %v and %v", a.sidecar.View().Takeovers, v.Takeovers)
				}
				if v.Term != 2 || v.Status.Reason == "" {
					t.Errorf("term %d, reason %q", v.Term, v.Status.Reason)
				}
				if record := w.store.Value("active"); !strings.Contains(record, `"urls":{"pb":"http://ctl-b:9989"}`) {
					t.Errorf("the record is %s", record)
				}
				w.finish()
			})
		})
	}
}

// TestOneHeirOfMany: one of several fit passives is handed the reign, and the others give back what
// they had prepared.
func TestOneHeirOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		c := w.add("ctl-c").start()
		w.wait(5*time.Second, "ctl-c is ready", c.is(election.StateReady))
		a.program.set(func() { a.program.stopsIn = 4 * time.Second })
		w.request(election.Request{ID: "1", Op: "switchover", By: "ana", Term: 1, For: time.Minute})
		w.wait(10*time.Second, "one serves", func() bool { return b.sidecar.Serving() || c.sidecar.Serving() })
		heir, other := b, c
		if c.sidecar.Serving() {
			heir, other = c, b
		}
		if n := heir.client.Calls("Claim") + other.client.Calls("Claim"); n != 0 {
			t.Errorf("%d claims", n)
		}
		w.wait(5*time.Second, "the other's lease was given back", func() bool { return other.client.Calls("Revoke") == 1 })
		w.finish()
	})
}

// TestLostReplyOfAHandOver: the outcome of the hand-over is unknown, and the release that follows
// finds out.
func TestLostReplyOfAHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.client.LoseReplies(1, "HandOver")
		if took := w.move(b, 1); took > 250*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if a.client.Calls("Release") != 1 || b.client.Calls("Claim") != 0 {
			t.Errorf("%d releases, %d claims", a.client.Calls("Release"), b.client.Calls("Claim"))
		}
		w.finish()
	})
}

// TestLateHandOver: a hand-over that arrives after the holder has given it up and released makes
// nobody active.
func TestLateHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.client.DeliverLate(1, 10*time.Second, "HandOver")
		w.move(b, 1)
		if b.client.Calls("Claim") != 1 {
			t.Errorf("%d claims", b.client.Calls("Claim"))
		}
		term := b.sidecar.View().Term
		time.Sleep(30 * time.Second)
		if v := b.sidecar.View(); !b.sidecar.Serving() || v.Term != term || b.program.starts.Load() != 1 {
			t.Error("the late hand-over disturbed the reign")
		}
		w.finish()
	})
}

// TestHandOverBehindAStalledWatch: the heir's watch does not report the hand-over. The heir finds
// out by reading.
func TestHandOverBehindAStalledWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.stopsIn = 2 * time.Second })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(time.Second, "ctl-b has offered itself", func() bool { return w.store.Value("heir") != "" })
		b.client.StallWatch()
		w.wait(5*time.Second, "ctl-b serves", b.is(election.StateServing))
		if n := b.client.Calls("Claim"); n != 0 {
			t.Errorf("%d claims", n)
		}
		w.finish()
	})
}

// TestHeirIsCutOff: the heir is cut off when it is handed the reign. It must not act once its lease
// is over, whatever it learns then. Another waits that out, and takes over.
func TestHeirIsCutOff(t *testing.T) {
	for name, away := range map[string]time.Duration{"shortly": time.Second, "beyond its validity": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := two(t)
				a.program.set(func() { a.program.stopsIn = 500 * time.Millisecond })
				w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
				w.wait(time.Second, "ctl-b has offered itself", func() bool { return w.store.Value("heir") != "" })
				b.client.Partition()
				w.wait(time.Second, "the reign is handed over", func() bool { return w.store.Value("heir") == "" })
				time.Sleep(away)
				b.client.Heal()
				w.wait(60*time.Second, "one serves", func() bool { return a.sidecar.Serving() || b.sidecar.Serving() })
				if name == "shortly" && !b.sidecar.Serving() {
					t.Error("the heir was connected in time, and does not serve")
				}
				w.finish()
			})
		})
	}
}

// TestForgedHeir: a heir key that nobody of the cluster wrote, or that is for another reign, leads
// to no hand-over, and prevents no offer.
func TestForgedHeir(t *testing.T) {
	for name, heir := range map[string]election.Heir{
		"unknown controller": {Controller: "mallory", Incarnation: "m", After: 1, Lease: "lease-0001", URL: "http://mallory", Validity: "4s"},
		"other incarnation":  {Controller: "ctl-b", Incarnation: "old", After: 1, Lease: "lease-0001", URL: "http://ctl-b", Validity: "4s"},
		"other reign":        {Controller: "ctl-b", Incarnation: "ctl-b-1", After: 7, Lease: "lease-0001", URL: "http://ctl-b", Validity: "4s"},
		"dead lease":         {Controller: "ctl-b", Incarnation: "ctl-b-1", After: 1, Lease: "lease-9999", URL: "http://ctl-b", Validity: "4s"},
		"no validity":        {Controller: "ctl-b", Incarnation: "ctl-b-1", After: 1, Lease: "lease-0001", URL: "http://ctl-b"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := two(t)
				w.store.Overwrite("heir", string(heir.Encode()))
				w.wait(time.Second, "ctl-a knows", func() bool { return true })
				if took := w.move(b, 1); took > 250*time.Millisecond {
					t.Errorf("took %v", took)
				}
				if a.client.Calls("HandOver") != 1 || b.client.Calls("Claim") != 0 || b.sidecar.View().Term != 2 {
					t.Errorf("%d hand-overs, %d claims, term %d", a.client.Calls("HandOver"), b.client.Calls("Claim"), b.sidecar.View().Term)
				}
				w.finish()
			})
		})
	}
}

// TestTermThatOnlyThePassiveHasSeenIsOutlived: the counter went back, and only the passive has seen
// the higher term. It offers itself once nobody can act with that term any more.
func TestTermThatOnlyThePassiveHasSeenIsOutlived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		a.now.client.Partition()
		before := w.store.Value("term")
		w.store.Overwrite("term", "9"+strings.TrimPrefix(before, "1"))
		time.Sleep(10 * time.Millisecond) // ctl-b reads it
		w.store.Overwrite("term", before)
		a.now.client.Heal()
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		time.Sleep(5 * time.Second)
		if !a.now.sidecar.Serving() || w.store.Value("request") != "" {
			t.Fatal("the holder of term 9 may still act, and the reign has moved")
		}
		time.Sleep(10 * time.Second)
		w.request(election.Request{ID: "2", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(3*time.Second, "ctl-b serves", b.now.is(election.StateServing))
		if term := b.now.sidecar.View().Term; term != 10 {
			t.Errorf("ctl-b has term %d, want 10", term)
		}
		w.finishSites(all)
	})
}

package sidecar

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// sites makes a world of hosts whose sidecars can be restarted. The first one serves.
func sites(t *testing.T, names ...string) (w *world, all []*site) {
	t.Helper()
	w = newWorld(t)
	for i, name := range names {
		s := w.site(name)
		s.boot()
		all = append(all, s)
		state := election.StateReady
		if i == 0 {
			state = election.StateServing
		}
		w.wait(5*time.Second, name+" is "+string(state), s.now.is(state))
	}
	return w, all
}

// finishSites ends all processes and lets the oracle judge.
func (w *world) finishSites(all []*site) {
	w.t.Helper()
	for _, s := range all {
		if s.lives() {
			s.now.cause(errKilled)
			s.end()
		}
		s.now.end = nil
	}
	time.Sleep(time.Minute) // what killed processes left asleep ends
	w.check()
}

// frozenWithoutTheKey freezes the holder's sidecar, whose guard lets the controller run until the
// lease ends, and removes the role key. The next one claims, and waits.
func frozenWithoutTheKey(w *world, holder, next *site) {
	w.t.Helper()
	renewals := holder.now.client.Calls("Hold")
	w.wait(5*time.Second, "a renewal", func() bool { return holder.now.client.Calls("Hold") > renewals })
	holder.now.gate.freeze()
	w.store.Remove("active")
	w.wait(2*time.Second, next.name+" waits", next.now.is(election.StateStarting))
}

// TestDebtIsWaitedOutWhateverBecomesOfTheClaimant: every later holder waits out a holder that may
// still act, whatever becomes of the first claimant.
func TestDebtIsWaitedOutWhateverBecomesOfTheClaimant(t *testing.T) {
	for name, end := range map[string]func(w *world, b, c *site){
		"told to end": func(_ *world, b, _ *site) {
			b.now.cause(errKilled)
			b.end()
		},
		"told to end, started again": func(_ *world, b, _ *site) {
			b.now.cause(errKilled)
			b.end()
			b.boot()
		},
		"killed, started again": func(_ *world, b, _ *site) {
			b.now.kill()
			b.boot()
		},
		"detached, started again": func(_ *world, b, _ *site) {
			b.now.cause(election.ErrDetach)
			b.end()
			b.boot()
		},
		"switchover": func(w *world, _, c *site) {
			w.request(election.Request{ID: "1", Op: "switchover", To: c.name, By: "ana", Term: 2, For: time.Minute})
		},
		"the repository is ahead": func(w *world, b, _ *site) {
			w.mu.Lock()
			w.fence = 7
			w.mu.Unlock()
			b.now.kill()
			b.boot()
		},
		"the role key is removed again": func(w *world, _, _ *site) { w.store.Remove("active") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, all := sites(t, "ctl-a", "ctl-b")
				a, b, c := all[0], all[1], w.site("ctl-c")
				all = append(all, c)
				a.program.set(func() { a.program.stopsIn = time.Hour })
				b.program.set(func() { b.program.startsIn = 0 })
				c.program.set(func() { c.program.startsIn = 0 })
				frozenWithoutTheKey(w, a, b)
				c.boot()
				w.wait(time.Second, "ctl-c is ready", c.now.is(election.StateReady))
				end(w, b, c)
				w.wait(20*time.Second, "one serves", func() bool { return b.now.sidecar.Serving() || c.now.sidecar.Serving() })
				a.now.gate.thaw()
				time.Sleep(10 * time.Second)
				w.finishSites(all)
			})
		})
	}
}

// TestDebtIsInTheClaimItself: a claimant that is killed before it writes its record again has left
// the debt to the next one.
func TestDebtIsInTheClaimItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		a.program.set(func() { a.program.stopsIn = time.Hour })
		frozenWithoutTheKey(w, a, b)
		claim := slices.IndexFunc(w.store.Changes(), func(c electiontest.Change) bool { return c.Key == "term" && c.By == "ctl-b" })
		if claim < 0 || !strings.Contains(w.store.Changes()[claim].Value, " debt=") {
			t.Errorf("the claim, change %d, has no debt", claim)
		}
		a.now.gate.thaw()
		w.wait(20*time.Second, "ctl-b serves", b.now.is(election.StateServing))
		w.finishSites(all)
	})
}

// TestAdoptedReignKeepsItsTerms: a later process with another configuration continues a reign with
// the reign's timing. The next term has the new one.
func TestAdoptedReignKeepsItsTerms(t *testing.T) {
	for _, profile := range []struct{ from, to string }{
		{election.ProfileDefault, "long"}, {election.ProfileFast, election.ProfileDefault}, {election.ProfileDefault, election.ProfileFast},
	} {
		t.Run(profile.from+" to "+profile.to, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				timing := func(name string) func(*Config) {
					if name == "long" {
						return func(c *Config) { c.Timing.TTL, c.Timing.Validity = 15*time.Second, 12*time.Second }
					}
					p, err := election.Profile(name)
					if err != nil {
						t.Fatal(err)
					}
					return func(c *Config) { c.Timing = p }
				}
				w := newWorld(t)
				a, b := w.site("ctl-a"), w.site("ctl-b")
				a.boot(timing(profile.from))
				w.wait(5*time.Second, "ctl-a serves", a.now.is(election.StateServing))
				b.boot(timing(profile.from))
				w.wait(5*time.Second, "ctl-b is ready", b.now.is(election.StateReady))
				a.program.set(func() { a.program.stopsIn = time.Hour })
				b.program.set(func() { b.program.startsIn = 0 })

				a.now.cause(election.ErrDetach)
				a.end()
				a.boot(timing(profile.to))
				w.wait(time.Second, "the next process serves", a.now.sidecar.Serving)
				time.Sleep(time.Minute)
				if !a.now.sidecar.Serving() || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
					t.Fatal("a healthy reign was ended by an adoption")
				}
				a.now.client.Partition()
				w.wait(20*time.Second, "ctl-b serves", b.now.sidecar.Serving)
				a.now.client.Heal()
				w.finishSites([]*site{a, b})
			})
		})
	}
}

// TestHeirFrozenBeforeTheHandOverIsNotLateToEnd: the heir was frozen before or after it prolonged
// its spare lease. That does not extend a reign that was handed over meanwhile.
func TestHeirFrozenBeforeTheHandOverIsNotLateToEnd(t *testing.T) {
	for steps := range 12 {
		synctest.Test(t, func(t *testing.T) {
			timing, err := election.Profile(election.ProfileFast)
			if err != nil {
				t.Fatal(err)
			}
			fast := func(c *Config) { c.Timing = timing }
			w := newWorld(t)
			a, b, c := w.site("ctl-a"), w.site("ctl-b"), w.site("ctl-c")
			a.boot(fast)
			w.wait(5*time.Second, "ctl-a serves", a.now.is(election.StateServing))
			for _, s := range []*site{b, c} {
				s.boot(fast)
				w.wait(5*time.Second, s.name+" is ready", s.now.is(election.StateReady))
			}
			for _, s := range []*site{a, b, c} {
				s.program.set(func() { s.program.startsIn, s.program.stopsIn = 0, 300*time.Millisecond })
			}
			w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
			w.wait(time.Second, "ctl-b has offered itself", func() bool { return w.store.Value("heir") != "" })
			b.now.gate.trap(1+steps, 790*time.Millisecond)
			time.Sleep(time.Second)
			b.now.client.Partition()
			b.program.set(func() { b.program.stopsIn = time.Hour })
			time.Sleep(10 * time.Second)
			b.now.client.Heal()
			w.wait(10*time.Second, "one serves", func() bool {
				return a.now.sidecar.Serving() || b.now.sidecar.Serving() || c.now.sidecar.Serving()
			})
			w.finishSites([]*site{a, b, c})
		})
	}
}

// TestTermOutlivesARestoreOfTheStoreAndRestarts: the store is restored from a backup and the
// sidecars are restarted. The term does not go back.
func TestTermOutlivesARestoreOfTheStoreAndRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		for range 3 {
			w.outageAfter(10*time.Second, b.now, a.program.crash)
			w.outageAfter(10*time.Second, a.now, b.program.crash)
		}
		for _, s := range all {
			s.now.kill()
		}
		time.Sleep(20 * time.Second)
		w.mu.Lock()
		w.fence = 0 // it was restored too, or there is none
		w.mu.Unlock()
		w.store.Rewind(2)
		for _, s := range all {
			s.boot()
		}
		w.wait(30*time.Second, "one serves", func() bool { return a.now.sidecar.Serving() || b.now.sidecar.Serving() })
		if term := max(a.now.sidecar.View().Term, b.now.sidecar.View().Term); term != 8 {
			t.Errorf("the term is %d, want 8", term)
		}
		w.finishSites(all)
	})
}

// TestRestoreOfTheStoreIsWaitedOutByThoseThatMissedATakeover: the store is restored to a time
// before a takeover that some have not seen. The holder, which the store no longer knows, may act
// for one more validity. The others wait that out, however they are entitled to reign: by the reign
// that one of them left when it was killed, or by the record.
func TestRestoreOfTheStoreIsWaitedOutByThoseThatMissedATakeover(t *testing.T) {
	boot := func(s *site) { s.boot(func(c *Config) { c.YieldWait = 0 }) }
	for name, then := range map[string]func(a, c *site){
		"the previous holder":                func(a, _ *site) { boot(a) },
		"the previous holder, twice":         func(a, _ *site) { boot(a); time.Sleep(time.Second); a.now.kill(); boot(a) },
		"another, after the previous holder": func(a, c *site) { boot(a); boot(c); time.Sleep(10 * time.Millisecond); a.now.kill() },
		"a new one, after the previous holder": func(a, c *site) {
			c.known = election.Known{}
			a.boot() // it leaves the vacancy to others
			time.Sleep(10 * time.Millisecond)
			boot(c)
		},
		"another, with a clean record":        func(_, c *site) { boot(c) },
		"another, twice, with a clean record": func(_, c *site) { boot(c); time.Sleep(time.Second); c.now.kill(); boot(c) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, all := sites(t, "ctl-a", "ctl-b", "ctl-c")
				a, b, c := all[0], all[1], all[2]
				for _, s := range all {
					s.program.set(func() { s.program.startsIn, s.program.stopsIn = 0, time.Hour })
				}
				var restore func()
				c.now.kill()
				if strings.HasSuffix(name, "clean") {
					b.now.gate.freeze()
					a.program.crash()
					w.wait(time.Second, "ctl-a has released", func() bool { return strings.Contains(w.store.Value("term"), " clean ") })
					restore = w.store.Backup()
					b.now.gate.thaw()
				} else {
					restore = w.store.Backup()
				}
				a.now.kill()
				w.wait(20*time.Second, "ctl-b serves", func() bool { return b.now.sidecar.Serving() })
				time.Sleep(5 * time.Second)
				before := b.now.client.Calls("Hold")
				w.wait(5*time.Second, "a renewal", func() bool { return b.now.client.Calls("Hold") > before })
				b.now.client.Partition()
				restore()
				then(a, c)
				w.wait(30*time.Second, "another serves", func() bool { return a.lives() && a.now.sidecar.Serving() || c.lives() && c.now.sidecar.Serving() })
				b.now.client.Heal()
				time.Sleep(5 * time.Second)
				w.finishSites(all)
			})
		})
	}
}

// TestRestoredStoreProvesNoReignOfBefore: the store is restored while a claimant waits out a holder
// that has not learned that it lost the role key. What the restored store reports of the holder's
// lease is no longer true.
func TestRestoredStoreProvesNoReignOfBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		for _, s := range all {
			s.program.set(func() { s.program.startsIn, s.program.stopsIn = 0, time.Hour })
		}
		restore := w.store.Backup()
		before := a.now.client.Calls("Hold")
		w.wait(5*time.Second, "a renewal", func() bool { return a.now.client.Calls("Hold") > before })
		a.now.client.Partition()
		w.store.Remove("active")
		time.Sleep(2500 * time.Millisecond)
		b.now.client.Partition()
		restore()
		a.now.client.Heal()
		w.wait(5*time.Second, "ctl-b serves, or no longer waits", func() bool { return w.runs("ctl-b") || !b.now.is(election.StateStarting)() })
		time.Sleep(5 * time.Second)
		b.now.client.Heal()
		w.wait(30*time.Second, "one serves", func() bool { return a.now.sidecar.Serving() || b.now.sidecar.Serving() })
		w.finishSites(all)
	})
}

// TestReleaseInARestoredStoreProvesNothing: a holder without the store has stopped, and its release
// arrives in a store that was restored from a backup of its reign. Who has taken over since the
// backup is not in it, and may still act.
func TestReleaseInARestoredStoreProvesNothing(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint("restarted ", restarted), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, all := sites(t, "ctl-a", "ctl-c")
				a, b, c := all[0], w.site("ctl-b"), all[1]
				for _, s := range []*site{a, b, c} {
					s.program.set(func() { s.program.startsIn = 0 })
				}
				restore := w.store.Backup()
				a.now.client.Partition()
				w.store.Remove("active")
				w.wait(10*time.Second, "ctl-c serves", c.now.is(election.StateServing))
				if w.runs("ctl-a") || !a.now.is(election.StateYielding)() {
					t.Fatal("ctl-a has not stopped")
				}
				c.program.set(func() { c.program.stopsIn = time.Hour })
				if restarted {
					a.now.kill()
					a.boot()
				}
				c.now.client.Partition()
				restore()
				b.boot() // it has not seen the store before
				w.wait(time.Second, "ctl-b is ready", b.now.is(election.StateReady))
				a.now.client.Heal()
				w.wait(30*time.Second, "another serves", func() bool { return a.now.sidecar.Serving() || b.now.sidecar.Serving() })
				c.now.client.Heal()
				time.Sleep(5 * time.Second)
				w.finishSites([]*site{a, b, c})
			})
		})
	}
}

// TestReignBeforeAKnownOneIsNotTakenUp: in a store without an identity, a side that knows a later
// reign does not adopt the one whose record is still on its disk.
func TestReignBeforeAKnownOneIsNotTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.SetOrigin(election.Origin{})
		a, b, c := w.site("ctl-a"), w.site("ctl-b"), w.site("ctl-c")
		for _, s := range []*site{a, b, c} {
			s.program.set(func() { s.program.startsIn, s.program.stopsIn = 0, time.Hour })
		}
		a.memory.stuck = true
		a.boot()
		w.wait(5*time.Second, "ctl-a serves", a.now.is(election.StateServing))
		restore := w.store.Backup()
		b.boot()
		w.wait(5*time.Second, "ctl-b is ready", b.now.is(election.StateReady))
		a.program.crash()
		w.wait(5*time.Second, "ctl-b serves", b.now.is(election.StateServing))
		w.wait(5*time.Second, "ctl-a is ready", a.now.is(election.StateReady))
		a.now.kill()
		before := b.now.client.Calls("Hold")
		w.wait(5*time.Second, "a renewal", func() bool { return b.now.client.Calls("Hold") > before })
		b.now.client.Partition()
		restore()
		a.boot(func(c *Config) { c.NoFailover = true }) // ctl-c claims
		c.boot()
		w.wait(30*time.Second, "another serves", func() bool { return a.now.sidecar.Serving() || c.now.sidecar.Serving() })
		time.Sleep(10 * time.Millisecond) // or the cut-off ctl-b would learn of it in the same instant
		b.now.client.Heal()
		time.Sleep(5 * time.Second)
		w.finishSites([]*site{a, b, c})
	})
}

// TestTermThatAnOperatorRaisedStays: neither the holder's repair of its record nor its release
// lowers a term that an operator raised.
func TestTermThatAnOperatorRaisedStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		w.store.Overwrite("term", "50")
		w.outageAfter(10*time.Second, b, a.program.crash)
		if term := b.sidecar.View().Term; term != 51 {
			t.Errorf("the term is %d, want 51", term)
		}
		w.finish()
	})
}

// TestTermKeyIsRepaired: the holder repairs garbage in the term key. If it dies before, the next
// one uses the highest term known.
func TestTermKeyIsRepaired(t *testing.T) {
	for _, garbage := range []string{"seven", "", "18446744073709551615", "9223372036854775806"} {
		synctest.Test(t, func(t *testing.T) {
			w, a, b := two(t)
			w.store.Overwrite("term", garbage)
			w.wait(4*time.Second, "the holder repairs it", func() bool {
				crumb, err := election.DecodeBreadcrumb([]byte(w.store.Value("term")))
				return err == nil && crumb.Term == 1 && crumb.Controller == "ctl-a" && crumb.Validity > 0
			})
			if !a.sidecar.Serving() || a.program.starts.Load() != 1 {
				t.Error("the repair disturbed the reign")
			}
			a.client.Partition()

			w.store.Overwrite("term", garbage)
			w.store.Remove("active")
			w.wait(30*time.Second, "ctl-b serves", b.is(election.StateServing))
			if term := b.sidecar.View().Term; term != 2 {
				t.Errorf("the term is %d, want 2", term)
			}
			a.client.Heal()
			w.finish()
		})
	}
}

// TestTermIsTakenFromTheHistory: a sidecar that has never seen the cluster uses the history if the
// term key is unreadable.
func TestTermIsTakenFromTheHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Overwrite("history/0000000041", "{}")
		w.store.Overwrite("history/0000000007", "{}")
		w.store.Overwrite("term", "seven")
		a := w.add("ctl-a").start()
		w.wait(20*time.Second, "ctl-a serves", a.is(election.StateServing))
		if term := a.sidecar.View().Term; term != 42 {
			t.Errorf("the term is %d, want 42", term)
		}
		w.finish()
	})
}

// TestMissingTermKeyIsNoFirstStart: a sidecar that has never seen the cluster finds a history and
// no term key. Somebody has reigned, and may still act. The sidecar waits that out, and the term
// continues from there.
func TestMissingTermKeyIsNoFirstStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Overwrite("history/0000000041", "{}")
		began := time.Now()
		a := w.add("ctl-a").start()
		w.wait(20*time.Second, "ctl-a serves", a.is(election.StateServing))
		if term := a.sidecar.View().Term; term != 42 {
			t.Errorf("the term is %d, want 42", term)
		}
		if waited := time.Since(began); waited < 10*time.Second {
			t.Errorf("it serves after %v, while a holder that it does not know may act", waited)
		}
		w.finish()
	})
}

// TestRoleKeyWithAForeignValueIsRepairedWithinARenewal: the next renewal detects a stranger's value
// under the holder's own lease, and overwrites it.
func TestRoleKeyWithAForeignValueIsRepairedWithinARenewal(t *testing.T) {
	for name, spoil := range map[string]func(before string) string{
		"another's": func(string) string {
			return `{"controller":"mallory","term":99,"state":"serving","url":"http://mallory"}`
		},
		"garbage": func(string) string { return "mine" },
		"of another reign": func(string) string {
			return `{"controller":"ctl-a","term":1,"state":"stopping","url":"http://ctl-a","incarnation":"ctl-a-0"}`
		},
		"with another state":  func(before string) string { return strings.Replace(before, "serving", "stopping", 1) },
		"with another target": func(before string) string { return strings.Replace(before, "http://ctl-a", "http://mallory", 1) },
	} {
		synctest.Test(t, func(t *testing.T) {
			t.Log(name)
			w, a, b := two(t)
			before := w.store.Value("active")
			if spoil(before) == before {
				t.Fatal("the role key is as before")
			}
			w.store.OverwriteKept("active", spoil(before))
			w.wait(1200*time.Millisecond, "the role key is repaired", func() bool { return w.store.Value("active") == before })
			time.Sleep(20 * time.Second)
			if !a.sidecar.Serving() || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
				t.Error("the repair disturbed the reign")
			}
			w.move(b, 1)
			w.finish()
		})
	}
}

// TestReleaseThatWasGivenUpIsMadeWhenTheStoreIsBack: the store comes back and still has the lease
// of an ended reign. The reign is released late, not waited for.
func TestReleaseThatWasGivenUpIsMadeWhenTheStoreIsBack(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, all := sites(t, "ctl-a", "ctl-b")
			a, b := all[0], all[1]
			w.store.Down()
			w.wait(10*time.Second, "ctl-a has stopped", func() bool { return !w.runs("ctl-a") })
			for range 30 {
				w.store.Restart() // it was stopped, and no lease expires in it
				time.Sleep(time.Second)
			}
			if restarted {
				a.now.cause(errKilled)
				a.end()
				a.boot()
				a.now.client.Partition()
			}
			w.store.Restart()
			w.store.Up()
			begun := time.Now()
			w.wait(10*time.Second, "one serves", func() bool { return a.now.sidecar.Serving() || b.now.sidecar.Serving() })
			if took := time.Since(begun); took > 1500*time.Millisecond {
				t.Errorf("restarted %v: one serves only %v after the store is back", restarted, took)
			}
			w.finishSites(all)
		})
	}
}

// TestHolderThatWentOnBindsTheRoleKeyAnew: the only store is frozen, and a holder that rightly
// continued finds its lease gone. It binds the role key to a new one if nobody has claimed.
func TestHolderThatWentOnBindsTheRoleKeyAnew(t *testing.T) {
	for name, policy := range map[string]election.StoreLoss{
		"keep": election.StoreLossKeep, "failsafe": election.StoreLossFailsafe, "keep, lock-delay": election.StoreLossKeep,
		"failsafe, lock-delay": election.StoreLossFailsafe,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				if strings.HasSuffix(name, "lock-delay") {
					// The lease ends 5 s after the store went away. Its delay is over 2 s after the
					// store is back.
					w.store.SetLockDelay(12 * time.Second)
				}
				p := &peers{world: w, down: map[string]bool{}}
				as := func(c *Config) { p.config(c); c.OnStoreLoss = policy }
				a := w.add("ctl-a", as).start()
				w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
				b := w.add("ctl-b", as).start()
				w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
				time.Sleep(5 * time.Second)
				w.store.Down()
				time.Sleep(15 * time.Second)
				w.store.Up()
				time.Sleep(30 * time.Second)
				if v := a.sidecar.View(); !a.sidecar.Serving() || v.Term != 1 || v.Alone || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
					t.Errorf("term %d, alone %v, %d starts there, %d here", v.Term, v.Alone, a.program.starts.Load(), b.program.starts.Load())
				}
				if url := w.store.Value("url"); url != "http://ctl-a" {
					t.Errorf("the URL in the store is %q", url)
				}
				w.move(b, 1)
				w.finish()
			})
		})
	}
}

// TestHolderThatWentOnEndsIfAnotherReignedMeanwhile: another reigned meanwhile, and released. A
// holder that continued without the store is no longer the last one, and ends.
func TestHolderThatWentOnEndsIfAnotherReignedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a", func(c *Config) { c.OnStoreLoss = election.StoreLossKeep }).start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		a.client.Partition()
		time.Sleep(15 * time.Second)
		w.store.Overwrite("term", "2 clean controller=ctl-x incarnation=x validity=4s ttl=5s mode=store nonce=x reason=a move")
		a.client.Heal()
		w.wait(20*time.Second, "ctl-a serves with a term of its own", func() bool { return a.sidecar.Serving() && a.sidecar.View().Term == 3 })
		if a.program.starts.Load() != 2 {
			t.Errorf("%d starts", a.program.starts.Load())
		}
		w.finish()
	})
}

package sidecar

import (
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// spoils are what a stranger may write into a term record without a change of whose it is.
var spoils = map[string]func(record string) string{
	"clean":           func(r string) string { return strings.Replace(r, " held ", " clean ", 1) },
	"a released debt": func(r string) string { return strings.Replace(r, " reason=", " debt=1ms released=true reason=", 1) },
	"validity":        func(r string) string { return regexp.MustCompile(`validity=\S+`).ReplaceAllString(r, "validity=10ms") },
	"ttl":             func(r string) string { return regexp.MustCompile(`ttl=\S+`).ReplaceAllString(r, "ttl=10ms") },
	"beat":            func(r string) string { return strings.Replace(r, " mode=", " beat=true mode=", 1) },
	"mode":            func(r string) string { return strings.Replace(r, " mode=store", "", 1) },
	"incarnation": func(r string) string {
		return regexp.MustCompile(`incarnation=\S+`).ReplaceAllString(r, "incarnation=x")
	},
	"a longer debt": func(r string) string { return strings.Replace(r, " reason=", " debt=59m0s reason=", 1) },
}

// TestTermRecordThatWasChangedByHandIsRepaired: what of the record differs from the terms of the
// reign was not written by its holder, which writes it again, once.
func TestTermRecordThatWasChangedByHandIsRepaired(t *testing.T) {
	for name, spoil := range spoils {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := two(t)
				before := w.store.Value("term")
				if spoil(before) == before {
					t.Fatal("nothing is spoilt")
				}
				w.store.Overwrite("term", spoil(before))
				w.wait(time.Second, "the record is repaired", func() bool { return w.store.Value("term") == before })
				changes := len(w.store.Changes())
				time.Sleep(time.Minute)
				for _, c := range w.store.Changes()[changes:] {
					if c.Key == "term" {
						t.Fatalf("the term record is written again: %s", c.Value)
					}
				}
				if !a.sidecar.Serving() || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
					t.Error("the repair disturbed the reign")
				}
				w.finish()
			})
		})
	}
}

// TestDebtThatWasStruckByHandIsRepaired: the claimant still waits for a frozen holder, so its
// record must have the debt.
func TestDebtThatWasStruckByHandIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		a.program.set(func() { a.program.stopsIn = time.Hour })
		frozenWithoutTheKey(w, a, b)
		debt := regexp.MustCompile(` debt=\S+`)
		before := w.store.Value("term")
		if !debt.MatchString(before) {
			t.Fatalf("no debt in %q", before)
		}
		w.store.Overwrite("term", regexp.MustCompile(`validity=\S+ v=`).ReplaceAllString(debt.ReplaceAllString(before, ""), "validity="))
		w.wait(time.Second, "the debt is in the record again", func() bool { return debt.MatchString(w.store.Value("term")) })
		b.now.kill()
		b.boot()
		w.wait(20*time.Second, "ctl-b serves", b.now.is(election.StateServing))
		time.Sleep(5 * time.Second)
		if v := w.store.Value("term"); debt.MatchString(v) {
			t.Errorf("the debt is paid, and the record says %q", v)
		}
		a.now.gate.thaw()
		w.finishSites(all)
	})
}

// TestRecordChangedByHandDoesNotEndAFrozenHoldersValidity: the holder can't repair its record,
// because it is frozen, or dead with its program running to the deadline. Those who have seen the
// record before know better.
func TestRecordChangedByHandDoesNotEndAFrozenHoldersValidity(t *testing.T) {
	for _, order := range []string{"frozen before", "frozen after", "changed when it is vacant"} {
		for name, spoil := range spoils {
			if name == "a longer debt" {
				continue
			}
			t.Run(order+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, all := sites(t, "ctl-a", "ctl-b")
					a, b := all[0], all[1]
					a.program.set(func() { a.program.stopsIn = time.Hour })
					b.program.set(func() { b.program.startsIn = 0 })
					before := w.store.Value("term")
					renewals := a.now.client.Calls("Hold")
					w.wait(5*time.Second, "a renewal", func() bool { return a.now.client.Calls("Hold") > renewals })
					change := func() {
						w.store.Overwrite("term", spoil(before))
						if name == "beat" {
							w.store.Overwrite("beat", "mallory")
						}
						time.Sleep(10 * time.Millisecond)
					}
					switch order {
					case "frozen before":
						a.now.gate.freeze()
						change()
						w.store.Remove("active")
					case "frozen after":
						change()
						a.now.gate.freeze()
						w.store.Remove("active")
					default:
						a.now.gate.freeze()
						b.now.gate.freeze() // or it would claim
						w.store.Remove("active")
						b.now.gate.thaw()
						b.now.client.DeliverLate(1, time.Hour, "Claim")
						time.Sleep(20 * time.Millisecond)
						change()
					}
					w.wait(30*time.Second, "ctl-b serves", b.now.is(election.StateServing))
					a.now.gate.thaw()
					time.Sleep(5 * time.Second)
					w.finishSites(all)
				})
			})
		}
	}
}

// TestRepairsOfTheTermRecordArePaced: somebody undoes each repair at once. The holder neither gives
// up nor writes in a tight loop.
func TestRepairsOfTheTermRecordArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t)
		undone := spoils["clean"](w.store.Value("term"))
		stop := time.Now().Add(20 * time.Second)
		w.store.Overwrite("term", undone)
		repairs := 0
		for time.Now().Before(stop) {
			time.Sleep(time.Millisecond)
			if w.store.Value("term") != undone {
				repairs++
				w.store.Overwrite("term", undone)
			}
		}
		if repairs < 10 || repairs > 30 {
			t.Errorf("%d repairs in 20 s", repairs)
		}
		w.wait(2*time.Second, "the last one is repaired", func() bool { return w.store.Value("term") != undone })
		if !a.sidecar.Serving() || a.program.starts.Load() != 1 {
			t.Error("the repairs disturbed the reign")
		}
		w.finish()
	})
}

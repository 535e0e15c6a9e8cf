package sidecar

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// TestForeseenIsWhatHappens: in 200 random situations, what is foreseen of a fault or of a move and what
// then happens agree: who takes over, or that nobody does, and by when.
func TestForeseenIsWhatHappens(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { foreseen(t, r) })
		})
	}
}

func foreseen(t *testing.T, r *rand.Rand) {
	w := newWorld(t)
	profile, err := election.Profile([]string{election.ProfileDefault, election.ProfileFast}[r.IntN(2)])
	if err != nil {
		t.Fatal(err)
	}
	timed := func(c *Config) { c.Timing = profile }
	a := w.add("ctl-a", timed).start()
	w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
	standbys := election.Standbys{}
	var others []*host
	for _, name := range []string{"ctl-b", "ctl-c", "ctl-d"}[:1+r.IntN(3)] {
		var unfit error
		if r.IntN(4) == 0 {
			unfit = errors.New("the disk is full")
		}
		if r.IntN(5) == 0 {
			standbys[name] = election.Standby{By: "ana", Ban: r.IntN(2) == 0}
		}
		priority, never := 100*(1+r.IntN(3)), r.IntN(5) == 0
		others = append(others, w.add(name, timed, func(c *Config) {
			c.Priority, c.NoFailover = priority, never
			c.PreFlight = func(context.Context) error { return unfit }
		}).start())
	}
	w.standby(standbys)
	time.Sleep(15 * time.Second)

	snap, err := w.store.Client("operator").Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	suppose, act := election.SupposeHostDies, a.dies
	switch r.IntN(3) {
	case 0:
		suppose, act = election.SupposeRelease, a.program.crash
	case 1: // as `switchover --dry-run` does: to one that is ready, or to anybody
		request := election.Request{ID: "1", Op: election.OpSwitchover, By: "ana", Term: snap.Active.Term, For: time.Minute}
		anybody := false
		for _, c := range snap.Controllers {
			anybody = anybody || c.Fit() && c.Name != a.name
			if c.State == election.StateReady && r.IntN(2) == 0 {
				request.To = c.Name
			}
		}
		if request.To != "" || anybody {
			snap.Request, snap.RequestVer = &request, 1
			suppose, act = election.SupposeRelease, func() { w.request(request) }
		}
	}
	o := election.Foresee(snap, profile, w.store.Client("operator").Traits(), suppose)
	act()
	begun := time.Now()
	serving := func() string {
		for _, h := range others {
			if h.sidecar.Serving() {
				return h.name
			}
		}
		return ""
	}
	const start = 150*time.Millisecond + 200*time.Millisecond // of the program, and until everybody has learned what happened
	for serving() == "" && time.Since(begun) < max(o.Start, 10*time.Second)+start {
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(begun)
	switch who := serving(); {
	case who == "" && len(o.Next) > 0 || who != "" && !slices.Contains(o.Next, who):
		t.Errorf("%s: foreseen: %s; it was %q", suppose, o.Words(), who)
	case who != "" && took > o.Start+start:
		t.Errorf("%s: foreseen: %s starts after at most %v; it served after %v", suppose, who, o.Start, took)
	}
	w.finish()
}

package simulation

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// outcome is what came of one seed.
type outcome struct {
	Seed    uint64        `json:"seed"`
	Wrong   []string      `json:"wrong,omitempty"`
	At      time.Duration `json:"at,omitempty"` // of the first that was wrong
	Sum     uint64        `json:"sum"`
	Figures figures       `json:"figures"`
	story   string
	faults  int
}

// cpu returns what this process has used of the processor.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// play runs one seed. Faults in skip are left out.
func play(t *testing.T, seed uint64, keep bool, skip map[int]bool) (o outcome) {
	t.Helper()
	begun := cpu()
	runtime.GC()
	percent := debug.SetGCPercent(-1) // a collection lets goroutines take turns in another order
	defer debug.SetGCPercent(percent)
	synctest.Test(t, func(t *testing.T) { o = playIn(t, seed, keep, skip) })
	o.Figures.CPU = cpu() - begun
	return o
}

func playIn(t *testing.T, seed uint64, keep bool, skip map[int]bool) outcome {
	w := newWorld(t.Context(), seed, keep)
	f := &fates{world: w, dice: w.seed.dice("fates"), course: &course{plan: planOf(w.seed), kinds: kinds(), skip: skip}}
	f.bag = bagOf(f.plan, w.seed, f.kinds)
	w.beyond, w.open, w.strict = f.plan.beyond, f.plan.open, f.plan.alike && f.plan.policy == election.StoreLossStop && !f.plan.keep
	w.store = newStore(w, f.plan.consul)
	if f.plan.consul && f.IntN(2) == 0 {
		w.store.lockDelay = f.between(0, 15*time.Second)
	}
	var err error
	if f.settings, err = timings(f.plan); err != nil {
		t.Fatal(err)
	}
	w.margin = f.settings[0].KillMargin()
	for _, t := range f.settings {
		w.margin = min(w.margin, t.KillMargin())
	}
	for i := range f.plan.hosts {
		h := &host{
			w: w, name: fmt.Sprintf("ctl-%c", 'a'+i), rate: f.rate(), booted: w.now().Add(-time.Duration(f.Int64N(1e15))),
			cgroup: f.IntN(2) == 0, changed: make(chan struct{}), link: &link{w: w}, toRepository: &link{w: w}, toPeers: &link{w: w},
		}
		w.hosts = append(w.hosts, h)
	}
	for _, h := range w.hosts {
		h.start(f.file())
		time.Sleep(f.between(0, time.Second))
	}
	bound := f.bound()
	for range f.plan.bursts {
		w.mu.Lock()
		w.attended = false
		w.mu.Unlock()
		for range f.plan.faults {
			time.Sleep(f.gap())
			f.fault()
		}
		f.settle()
		w.quiet(bound)
		w.rests(f.rest())
		if len(w.wrong) > 0 {
			break
		}
		time.Sleep(f.between(0, f.plan.idle))
	}
	for _, h := range w.hosts {
		h.process.trap = trap{}
	}
	w.finish(bound)
	o := outcome{Seed: seed, Wrong: w.wrong, At: w.wrongAt, Sum: w.timeline.sum, Figures: w.figures, faults: f.count}
	o.Figures.Seeds = 1
	if keep {
		o.story = w.timeline.String()
	}
	return o
}

// rest is how long it may take, once one serves, until everything in the store is right.
func (f *fates) rest() time.Duration {
	longest := time.Duration(0)
	for _, t := range f.settings {
		longest = max(longest, 5*t.RenewEvery+2*t.TTL)
	}
	return longest + 10*time.Second
}

// rate draws the rate of a host's clock.
func (f *fates) rate() float64 {
	if f.plan.apart {
		return pick(f.dice, 0.9902, 1.0098)
	}
	return 1 + (f.Float64()-0.5)*0.019
}

// bound is how long it may take after the last fault until one serves.
func (f *fates) bound() time.Duration {
	longest := time.Duration(0)
	for _, t := range f.settings {
		longest = max(longest, t.TTL+f.store.traits.ExpirySlack+2*t.Validity)
	}
	return 2*longest + time.Minute
}

package sidecar

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// lasting is a program that outlives its sidecar until its deadline.
type lasting struct {
	*program
	refuseDetach bool
}

func (l *lasting) Adopt(_ context.Context, deadline election.Instant) error {
	r := l.current()
	if r == nil {
		return errors.New("no guard answers")
	}
	select {
	case <-r.gone:
		return errors.New("no guard answers")
	default:
	}
	l.Extend(deadline)
	return nil
}

func (l *lasting) Detach() error {
	if l.refuseDetach {
		return errors.New("no")
	}
	return nil
}

// notes is a memory for one sidecar.
type notes struct {
	mu   sync.Mutex
	held *election.Held
}

func (n *notes) Save(h election.Held) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = &h
	return nil
}

func (n *notes) Clear() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = nil
	return nil
}

func (n *notes) get() *election.Held {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held
}

// upgrade is a world in which ctl-a is active, was detached, and a next process of it can be started.
func upgrade(t *testing.T, refuse bool) (w *world, a, b *host, next func() *host, memory *notes) {
	w = newWorld(t)
	memory = &notes{}
	var kept *lasting
	a = w.add("ctl-a", func(c *Config) {
		kept = &lasting{program: c.Controller.(*program), refuseDetach: refuse}
		c.Controller, c.Memory = kept, memory
	})
	a.start()
	w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
	b = w.add("ctl-b").start()
	w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
	next = func() *host {
		held := memory.get()
		if held == nil {
			t.Fatal("nothing is remembered")
		}
		return w.add("ctl-a", func(c *Config) {
			c.Controller, c.Memory, c.Resume, c.Incarnation, c.Port = kept, memory, held, held.Incarnation, kept.port
		}).start()
	}
	return w, a, b, next, memory
}

func (h *host) detach() error {
	h.cause(election.ErrDetach)
	h.end = nil
	return <-h.done
}

func TestUpgradeOfTheSidecarIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b, next, _ := upgrade(t, false)
		if err := a.detach(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if !w.runs("ctl-a") {
			t.Fatal("the controller did not outlive its sidecar")
		}
		a2 := next()
		w.wait(time.Second, "the next process serves", a2.sidecar.Serving)
		time.Sleep(time.Minute)
		if v := a2.sidecar.View(); v.Term != 1 || !a2.sidecar.Serving() || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
			t.Errorf("term %d, %d starts", v.Term, a.program.starts.Load())
		}
		w.outageAfter(time.Second, b, a.program.crash)
		w.wait(time.Second, "ctl-a is ready", a2.is(election.StateReady))
		a.program.set(func() { a.program.run = nil })
		w.finish()
	})
}

// The next process comes too late: the guard has ended the controller, and the lease is lost or not; either way there is one
// active in the end, and never two.
func TestUpgradeThatComesTooLate(t *testing.T) {
	for _, late := range []time.Duration{3700 * time.Millisecond, 6 * time.Second, 20 * time.Second} {
		t.Run(late.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b, next, _ := upgrade(t, false)
				if err := a.detach(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(late)
				if w.runs("ctl-a") {
					t.Fatal("the controller runs beyond its deadline")
				}
				a2 := next()
				w.wait(20*time.Second, "one serves", func() bool { return b.sidecar.Serving() || a2.sidecar.Serving() })
				w.finish()
			})
		})
	}
}

func TestDetachThatIsRefusedStopsTheController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b, _, memory := upgrade(t, true)
		if err := a.detach(); err != nil {
			t.Fatal(err)
		}
		if w.runs("ctl-a") || memory.get() != nil {
			t.Error("the controller was neither left nor stopped")
		}
		w.wait(time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}

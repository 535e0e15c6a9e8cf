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

// Start ends what an earlier process left, as the drivers do.
func (l *lasting) Start(ctx context.Context, env []string, deadline election.Instant) error {
	if r := l.current(); r != nil {
		select {
		case <-r.gone:
		default:
			r.kill <- "killed: left over"
			<-r.gone
		}
	}
	return l.program.Start(ctx, env, deadline)
}

func (l *lasting) Detach() error {
	if l.refuseDetach {
		return errors.New("no")
	}
	return nil
}

// notes is a Memory for one sidecar.
type notes struct {
	mu    sync.Mutex
	held  *election.Held
	stuck bool  // Clear fails
	fail  error // of Save
}

func (n *notes) Save(h election.Held) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return n.fail
	}
	n.held = &h
	return nil
}

func (n *notes) Clear() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stuck {
		return errors.New("read-only file system")
	}
	n.held = nil
	return nil
}

func (n *notes) get() *election.Held {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held
}

// upgrade returns a world in which ctl-a is active and was detached, and a function that starts its
// next process.
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

// TestUpgradeThatComesTooLate: the next process comes too late. The guard has ended the controller,
// and the lease is lost or not. In the end one is active, and never two are.
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

// TestReignWhoseReleaseWasSentStartsNothingWhenItIsTakenUp: the record of a reign cannot be
// removed, its release is under way when the sidecar is killed, and the next process finds the role
// key still bound. It may only adopt what runs, and nothing does: the release is clean, and that
// must stay true.
func TestReignWhoseReleaseWasSentStartsNothingWhenItIsTakenUp(t *testing.T) {
	for _, verb := range []string{"Release", "HandOver"} {
		for _, ms := range []int{100, 300, 450, 700, 1200} {
			synctest.Test(t, func(t *testing.T) {
				w, all := sites(t, "ctl-a", "ctl-b")
				a, b := all[0], all[1]
				for _, s := range all {
					s.program.set(func() { s.program.startsIn = 0 })
				}
				if verb == "Release" {
					w.store.Overwrite("pause", `{"by":"ana"}`) // so that nobody makes an offer
					w.wait(time.Second, "ctl-b is paused", b.now.is(election.StatePaused))
				}
				a.memory.stuck = true
				a.now.client.DeliverLate(1, time.Duration(ms)*time.Millisecond, verb)
				before := a.now.client.Calls(verb)
				a.now.cause(errKilled)
				w.wait(time.Second, "the release is sent", func() bool { return a.now.client.Calls(verb) > before })
				a.now.kill()
				a.boot()
				w.store.Remove("pause")
				time.Sleep(5 * time.Second)
				w.wait(10*time.Second, "one serves", func() bool { return a.now.sidecar.Serving() || b.now.sidecar.Serving() })
				w.finishSites(all)
			})
		}
	}
}

// TestReignTakenUpWithoutAProgramIsNoFailedStart: a sidecar that is killed between its claim and
// the start finds nothing to adopt when it is back. That is no failed start: it claims again at
// once, without a cool-down.
func TestReignTakenUpWithoutAProgramIsNoFailedStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.site("ctl-a")
		a.boot(func(c *Config) {
			c.Hook = func(ctx context.Context, event string, _ []string) error {
				if event == "pre_start" {
					<-ctx.Done()
				}
				return ctx.Err()
			}
		})
		w.wait(5*time.Second, "ctl-a has claimed", a.now.is(election.StateStarting))
		a.now.kill()
		a.boot()
		w.wait(10*time.Second, "ctl-a serves", a.now.is(election.StateServing))
		w.finishSites([]*site{a})
	})
}

// TestForeignRoleKeyDoesNotCostTheAdoption: somebody wrote over the role key, bound to the lease as
// it is, while no process of the holder ran to repair it. The next process writes it again, and
// takes its reign up.
func TestForeignRoleKeyDoesNotCostTheAdoption(t *testing.T) {
	for _, value := range []string{"garbage", `{"controller":"mallory","term":99,"state":"serving","url":"http://mallory"}`} {
		synctest.Test(t, func(t *testing.T) {
			w, all := sites(t, "ctl-a", "ctl-b")
			a, b := all[0], all[1]
			before := w.store.Value("active")
			a.now.kill()
			w.store.OverwriteKept("active", value)
			a.boot()
			w.wait(2*time.Second, "ctl-a has its reign again", func() bool { return a.now.sidecar.Serving() && w.store.Value("active") == before })
			time.Sleep(10 * time.Second)
			if a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
				t.Error("the controller was started again")
			}
			w.finishSites(all)
		})
	}
}

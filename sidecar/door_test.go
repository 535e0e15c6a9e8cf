package sidecar

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// door is a fake door with its own lock. It shuts at its deadline.
type door struct {
	*host
	deadline election.Instant // 0: shut
	term     election.Term
	broken   bool // Open fails
	jammed   int  // the number of Shuts that cannot be confirmed
	loose    bool // it was jammed
}

// open reports whether users get in. The world's mutex is held.
func (d *door) open() bool { return d.clock() < d.deadline }

func (d *door) Prepare() {}

func (d *door) Open(_ context.Context, term election.Term, deadline election.Instant) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken {
		return errors.New("the interface is down")
	}
	if d.running[d.name] == 0 {
		d.overlaps = append(d.overlaps, d.name+" opened its door without a controller")
	}
	for _, other := range d.hosts {
		if o, ok := other.sidecar.cfg.Door.(*door); ok && o != d && o.open() {
			d.overlaps = append(d.overlaps, d.name+" opened its door while that of "+other.name+" was open")
		}
	}
	d.term, d.deadline = term, deadline
	return nil
}

func (d *door) Extend(deadline election.Instant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open() {
		d.deadline = max(d.deadline, deadline)
	}
}

func (d *door) Shut(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.jammed > 0 {
		d.jammed--
		d.loose = true
		return errors.New("nobody answers")
	}
	d.deadline = 0
	return nil
}

// stopped is the controller of a host with a door. The door must be shut before it stops.
type stopped struct {
	*program
	door *door
}

func (s stopped) Stop(ctx context.Context, grace time.Duration) error {
	s.door.host.mu.Lock()
	if s.door.open() && !s.door.loose {
		s.door.overlaps = append(s.door.overlaps, s.name+" stopped its controller before its door was shut")
	}
	s.door.host.mu.Unlock()
	return s.program.Stop(ctx, grace)
}

// withDoors makes two hosts with doors. The first one serves.
func withDoors(t *testing.T, change func(a, b *door)) (w *world, a, b *host, doorA, doorB *door) {
	w = newWorld(t)
	make := func(name string) (*host, *door) {
		d := &door{}
		h := w.add(name, func(c *Config) {
			c.Door = d
			c.Controller = stopped{c.Controller.(*program), d}
		})
		d.host = h
		return h, d
	}
	a, doorA = make("ctl-a")
	b, doorB = make("ctl-b")
	a.start()
	w.wait(10*time.Second, "ctl-a serves", a.is(election.StateServing))
	if change != nil {
		w.mu.Lock()
		change(doorA, doorB)
		w.mu.Unlock()
	}
	b.start()
	w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
	return w, a, b, doorA, doorB
}

func (d *door) isOpen() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open()
}

func TestDoorIsOpenWhileTheControllerServesAndShutBeforeItIsStopped(t *testing.T) {
	for name, fault := range map[string]func(w *world, a *host){
		"exit":      func(_ *world, a *host) { a.program.crash() },
		"unhealthy": func(_ *world, a *host) { a.health.set("503") },
		"planned": func(w *world, _ *host) {
			w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		},
		"cut off": func(_ *world, a *host) { a.client.Partition() },
		"told to": func(_ *world, a *host) { a.end() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b, doorA, doorB := withDoors(t, nil)
				time.Sleep(10 * time.Second) // longer than a validity
				if !doorA.isOpen() || doorB.isOpen() {
					t.Error("the door of the active is not open, or the passive's is")
				}
				fault(w, a)
				w.wait(30*time.Second, "ctl-b serves", b.is(election.StateServing))
				w.wait(time.Second, "the door of ctl-b is open", doorB.isOpen)
				if doorA.isOpen() {
					t.Error("the door of the old active is open")
				}
				if name == "told to" {
					if err := <-a.done; err != nil {
						t.Error(err)
					}
					a.end = nil
				}
				w.finish()
				if doorB.isOpen() {
					t.Error("the door is open after the end")
				}
			})
		})
	}
}

func TestDoorThatCannotBeOpenedIsAFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b, doorA, doorB := withDoors(t, nil)
		doorB.mu.Lock()
		doorB.broken = true
		doorB.mu.Unlock()
		a.program.crash()
		w.wait(10*time.Second, "ctl-b has tried", func() bool { return b.program.starts.Load() > 0 })
		w.wait(60*time.Second, "ctl-a serves again", a.is(election.StateServing))
		w.wait(time.Second, "its door is open", doorA.isOpen)
		w.finish()
	})
}

func TestLeaseIsKeptUntilTheDoorIsShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b, doorA, doorB := withDoors(t, nil)
		doorA.mu.Lock()
		doorA.jammed = 1
		doorA.mu.Unlock()
		a.program.crash()
		w.wait(60*time.Second, "ctl-b serves", b.is(election.StateServing)) // Open checks whether the other is shut
		w.wait(time.Second, "the door of ctl-b is open", doorB.isOpen)
		w.finish()
	})
}

func TestDoorThatAnEarlierProcessLeftOpenIsShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _, _, doorB := withDoors(t, func(_, b *door) { b.deadline = election.Never })
		if doorB.isOpen() {
			t.Error("the door of the passive is open")
		}
		w.finish()
	})
}

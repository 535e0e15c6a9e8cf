package simulation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	slots "github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
)

// host is one machine: its clock, its disk, its ways out, a sidecar and a program. world.mu is held during its methods, unless they
// say otherwise.
type host struct {
	w            *world
	name         string
	rate         float64 // of its clock
	booted       time.Time
	boots        int
	cgroup       bool
	link         *link
	toRepository *link
	toPeers      *link

	held   *election.Held // on its disk
	boot   int            // in which that was written
	known  election.Known
	before string        // incarnation of the last process
	newest election.Term // that a program began with here
	told   election.Term // the highest term of the repository that a process here was told of, as higher than its own

	process *process
	starts  uint64
	runs    uint64
	trace   *tree     // the run of the program that is on record
	stuck   time.Time // until then no process of the program can be killed
	bad     string    // what is wrong with the program's health
	changed chan struct{}
	reborn  func() // is called when the process has ended; nil: nothing is
	settings
}

// settings is what a configuration file says. The next process may read another.
type settings struct {
	timing   election.Timing
	policy   election.StoreLoss
	drain    time.Duration
	local    int
	priority int
	yield    time.Duration
	pause    time.Duration // between failovers
	nofail   bool
}

// clock is CLOCK_BOOTTIME. It needs no lock.
func (h *host) clock() election.Instant {
	return election.Instant(float64(time.Since(h.booted))*h.rate) + 1
}

// until returns how long it is until an instant of the host's clock.
func (h *host) until(i election.Instant) time.Duration {
	if i == election.Never {
		return 24 * time.Hour
	}
	return time.Duration(float64(i-h.clock())/h.rate) + time.Nanosecond
}

// start boots a process of the sidecar. world.mu is not held.
func (h *host) start(s settings) { h.startTrapped(s, nil) }

// startTrapped boots a process with a trap that set sets, with world.mu held.
func (h *host) startTrapped(s settings, set func(p *process)) {
	w := h.w
	w.mu.Lock()
	h.starts++
	p := &process{
		w: w, host: h, id: fmt.Sprintf("%s.%d", h.name, h.starts), calls: map[string]uint64{},
		dead: make(chan struct{}), done: make(chan struct{}),
	}
	h.process, h.settings = p, s
	if set != nil {
		set(p)
	}
	before, known := h.before, h.known
	h.before = p.id
	var resume *election.Held
	if h.held != nil && h.boot == h.boots {
		resume = new(*h.held)
	}
	w.timeline.add(p.id, "starts", s.timing.Profile, string(s.policy), resume != nil)
	w.processes = append(w.processes, p)
	w.mu.Unlock()

	p.slot = &driver{p: p, born: h.clock()}
	slot := slots.NewSlot(p.slot)
	var guard sidecar.Fence
	if !w.open {
		guard = fence{p}
	}
	p.sidecar = sidecar.New(sidecar.Config{
		Cluster: "simulated", Name: h.name, URL: "http://" + h.name + ":8080", Host: h.name, Priority: s.priority, NoFailover: s.nofail,
		Incarnation: p.id, Backend: client{p}, Timing: s.timing, OnStoreLoss: s.policy, Ask: p.ask,
		Clock: func() election.Instant {
			now := h.clock()
			p.pass("clock")
			return now
		},
		Memory: disk{p}, Resume: resume, Predecessor: before, Known: known, Remember: disk{p}.remember,
		Controller: slot, Health: health{p}, Fence: guard, Port: p.slot.port,
		StartTimeout: 5 * time.Second, StopTimeout: 2 * time.Second, Drain: s.drain, YieldWait: s.yield, FailoverInterval: s.pause,
		RestartLocal: s.local, RestartWithin: time.Minute, FenceTimeout: 10 * time.Second,
		Hook: func(context.Context, string, []string) error { p.pass("Hook"); return nil },
		Log:  w.log(p.id),
	})
	ctx, cancel := context.WithCancelCause(w.ctx)
	p.cancel = cancel
	go p.run(ctx)
}

// run is the process.
func (p *process) run(ctx context.Context) {
	err := errKilled
	defer func() {
		p.w.mu.Lock()
		p.over, p.ended = true, err
		p.host.exposed()
		if then := p.host.reborn; then != nil {
			p.host.reborn = nil
			then()
		}
		if p.w.attended {
			p.w.after(restartAfter, p.host.attend)
		}
		p.w.mu.Unlock()
		close(p.done)
	}()
	err = p.sidecar.Run(ctx)
}

// restartAfter is how long a service manager takes to start a sidecar again.
const restartAfter = 100 * time.Millisecond

// attend is the service manager.
func (h *host) attend() {
	if h.w.attended && !h.process.lives() {
		go h.start(h.settings)
	}
}

// crash is the end of everything on the host. It boots again when its sidecar is started.
func (h *host) crash() {
	if h.process.lives() {
		h.process.kill()
	}
	if t := h.trace; t != nil {
		t.guardDead = true
		t.end("the host crashed")
	}
	h.trace = nil
	h.boots++
	h.booted = h.w.now()
	h.known.CoolTill, h.known.RestTill = 0, 0
}

// suspend freezes everything on the host, but not its clock.
func (h *host) suspend(d time.Duration) {
	if h.process.lives() {
		h.process.freeze(d)
	}
	if t := h.trace; t != nil && !t.over {
		t.excused = true
		t.guardTill = h.w.now().Add(d)
	}
}

// log returns where a process writes its log to.
func (w *world) log(id string) zerolog.Logger {
	if !w.timeline.keep {
		return zerolog.Nop()
	}
	return zerolog.New(logger{w, id}).Level(zerolog.InfoLevel)
}

// disk is the state directory as a process has it.
type disk struct{ p *process }

func (d disk) Save(h election.Held) error {
	d.p.pass("Save")
	d.p.w.mu.Lock()
	d.p.host.held, d.p.host.boot = &h, d.p.host.boots
	d.p.w.mu.Unlock()
	d.p.pass("Save")
	return nil
}

func (d disk) Clear() error {
	d.p.pass("Clear")
	d.p.w.mu.Lock()
	d.p.host.held = nil
	d.p.w.mu.Unlock()
	d.p.pass("Clear")
	return nil
}

func (d disk) remember(k election.Known) {
	d.p.pass("Remember")
	d.p.w.mu.Lock()
	d.p.host.known = k
	d.p.w.mu.Unlock()
}

// health is the verdict on the program.
type health struct{ p *process }

func (c health) Wait(ctx context.Context, waiting func(string)) error {
	for {
		c.p.pass("Health")
		c.p.w.mu.Lock()
		bad, changed := c.p.host.bad, c.p.host.changed
		c.p.w.mu.Unlock()
		if bad == "" {
			return nil
		}
		waiting(bad)
		select {
		case <-ctx.Done():
			return errors.New(bad)
		case <-c.p.dead:
			c.p.pass("Health")
		case <-changed:
		}
	}
}

func (c health) Run(ctx context.Context, report func(bool, string, time.Time)) {
	for {
		c.p.pass("Health")
		c.p.w.mu.Lock()
		bad, changed := c.p.host.bad, c.p.host.changed
		c.p.w.mu.Unlock()
		report(bad == "", bad, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-c.p.dead:
			c.p.pass("Health")
		case <-changed:
		}
	}
}

// setHealth changes what the checks find.
func (h *host) setHealth(bad string) {
	if h.bad == bad {
		return
	}
	h.bad = bad
	close(h.changed)
	h.changed = make(chan struct{})
}

// ask asks the passives directly.
func (p *process) ask(ctx context.Context, a election.Ask) error {
	p.pass("Ask")
	names := map[string]bool{}
	for _, passive := range a.Passives {
		names[passive.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := p.askOne(ctx, a, name); err != nil {
			return err
		}
	}
	p.pass("Ask")
	return nil
}

func (p *process) askOne(ctx context.Context, a election.Ask, name string) error {
	w := p.w
	answer := make(chan error, 1)
	w.mu.Lock()
	other := w.host(name)
	if other == nil {
		w.mu.Unlock()
		return errors.New("no such host")
	}
	c := w.seed.of(p.id, p.count("ask"+name)).of(name, 3)
	t, back := p.host.toPeers.trip(c, time.Time{}), other.toPeers.trip(c.of("back", 4), time.Time{})
	if !t.lost && !back.lost {
		w.after(t.out+back.out, func() {
			q := other.process
			if !q.lives() {
				return // the connection is refused, or nobody answers
			}
			go func() { answer <- q.sidecar.Promise(a) }() // in the other process: it may be frozen, or be killed
		})
	}
	w.mu.Unlock()
	select {
	case err := <-answer:
		if err == nil && (t.silent || t.reset || back.silent || back.reset) {
			return errReset
		}
		if !p.wait(ctx, t.back+back.back+time.Microsecond) {
			return ctx.Err()
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-p.dead:
		p.pass("Ask")
		return nil
	}
}

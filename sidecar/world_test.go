package sidecar

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// world is a cluster in fake time: one store, some hosts, and an oracle that knows which controllers ran when. It
// must be made inside a synctest bubble.
type world struct {
	t     *testing.T
	base  time.Time
	store *electiontest.Store
	hosts []*host

	mu       sync.Mutex
	running  map[string]int
	overlaps []string
	max      map[string]election.Term
	fence    election.Term // of the repository
}

// host is one side: a sidecar and its fake controller.
type host struct {
	*world
	name    string
	client  *electiontest.Client
	program *program
	health  *switchboard
	sidecar *Sidecar
	slow    float64  // the rate of its clock is 1-slow
	events  []string // of hooks
	end     func()
	cause   context.CancelCauseFunc
	done    chan error
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, base: time.Now(), store: electiontest.NewStore(), running: map[string]int{}, max: map[string]election.Term{},
	}
}

// clock is the host's own: it may be slower than the store's and the others'.
func (h *host) clock() election.Instant {
	return election.Instant(float64(time.Since(h.base))*(1-h.slow)) + 1
}

// add makes a host; options change its config before its sidecar starts.
func (w *world) add(name string, options ...func(*Config)) *host {
	h := &host{world: w, name: name, client: w.store.Client(name), done: make(chan error, 1)}
	h.program = &program{host: h, startsIn: 100 * time.Millisecond, stopsIn: 50 * time.Millisecond}
	h.health = &switchboard{changed: make(chan struct{}, 1)}
	timing, err := election.Profile(election.ProfileDefault)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := Config{
		Cluster: "test", Name: name, URL: "http://" + name, Incarnation: name + "-" + fmt.Sprint(len(w.hosts)), Backend: h.client,
		Timing: timing, Clock: h.clock, Controller: h.program, Health: h.health, Fence: (*ledger)(h),
		Port: h.program.port, StartTimeout: 10 * time.Second, StopTimeout: 5 * time.Second, YieldWait: 30 * time.Second,
		FenceTimeout: 10 * time.Second, Priority: 100,
		Hook: func(_ context.Context, event string, _ []string) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.events = append(h.events, event)
			return nil
		},
		Log: zerolog.New(zerolog.ConsoleWriter{Out: w.t.Output(), NoColor: true, TimeFormat: time.StampMilli}).With().Timestamp().Logger(),
	}
	for _, o := range options {
		o(&cfg)
	}
	h.sidecar = New(cfg)
	w.hosts = append(w.hosts, h)
	return h
}

// start runs the sidecar; the test's end stops it.
func (h *host) start() *host {
	ctx, cancel := context.WithCancelCause(h.t.Context())
	h.cause = cancel
	h.end = func() { cancel(errors.New("told to end")) }
	go func() { h.done <- h.sidecar.Run(ctx) }()
	return h
}

// stop ends the sidecar as SIGTERM does and waits for it.
func (h *host) stop() error {
	h.end()
	return <-h.done
}

// wait lets fake time pass until what is true, at most limit.
func (w *world) wait(limit time.Duration, what string, is func() bool) {
	w.t.Helper()
	end := time.Now().Add(limit)
	for {
		synctest.Wait()
		if is() {
			return
		}
		if time.Now().After(end) {
			for _, h := range w.hosts {
				w.t.Logf("%s: %+v", h.name, h.sidecar.View().Status)
			}
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (h *host) is(state election.State) func() bool {
	return func() bool { return h.sidecar.View().Status.State == state }
}

// check is the oracle's verdict, at the end of every test.
func (w *world) check() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.overlaps {
		w.t.Errorf("two controllers at once: %s", o)
	}
	var last election.Term
	for _, c := range w.store.Changes() {
		if c.Key != "term" || c.Deleted {
			continue
		}
		if b, err := election.DecodeBreadcrumb([]byte(c.Value)); err == nil && c.By != "stranger" {
			if b.Term < last {
				w.t.Errorf("the term went back from %d to %d", last, b.Term)
			}
			last = b.Term
		}
	}
}

// finish stops every sidecar and lets the oracle judge.
func (w *world) finish() {
	w.t.Helper()
	for _, h := range w.hosts {
		if h.end != nil {
			h.client.Heal()
			if err := h.stop(); err != nil {
				w.t.Errorf("%s: %v", h.name, err)
			}
		}
	}
	w.check()
}

func (w *world) began(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[name]++
	for other, n := range w.running {
		if n > 0 && other != name {
			w.overlaps = append(w.overlaps, fmt.Sprintf("%s began at %v while %s ran", name, time.Since(w.base), other))
		}
	}
}

func (w *world) ended(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[name]--
}

func (w *world) runs(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[name] > 0
}

// program is a fake controller together with its guard: it ends at its deadline whatever its sidecar does.
type program struct {
	*host
	startsIn time.Duration // until the port answers; negative: never
	diesIn   time.Duration // from KILL until the last process is gone
	stopsIn  time.Duration // after the stop signal
	refuse   int           // so many stops can't be confirmed
	failing  bool          // Start fails

	mu      sync.Mutex
	run     *run
	starts  atomic.Int32
	stops   atomic.Int32
	killed  atomic.Int32
	lastEnv []string

	prepared atomic.Int32
}

func (p *program) Prepare() { p.prepared.Add(1) }

type run struct {
	exited   chan struct{}
	gone     chan struct{}
	deadline chan election.Instant
	stop     chan time.Duration
	kill     chan string
	open     chan struct{}
	how      string
}

func (p *program) Start(ctx context.Context, env []string, deadline election.Instant) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastEnv = env
	p.starts.Add(1)
	if p.failing {
		return errors.New("no such file")
	}
	if p.run != nil {
		select {
		case <-p.run.gone:
		default:
			p.t.Errorf("%s: started twice", p.name)
		}
	}
	r := &run{
		exited: make(chan struct{}), gone: make(chan struct{}), deadline: make(chan election.Instant, 1000),
		stop: make(chan time.Duration, 100), kill: make(chan string, 10), open: make(chan struct{}),
	}
	p.run = r
	p.began(p.name)
	go p.life(r, deadline)
	return nil
}

// life is the program and its guard.
func (p *program) life(r *run, deadline election.Instant) {
	begun := p.clock()
	var dies election.Instant = election.Never // of its own accord, after the stop signal
	end := func(how string) {
		r.how = how
		p.ended(p.name)
		close(r.exited)
		close(r.gone)
	}
	opened := false
	for {
		now := p.clock()
		opens := begun.Add(p.startsIn)
		if p.startsIn < 0 {
			opens = election.Never
		}
		if !opened && now >= opens {
			opened = true
			close(r.open)
		}
		if now >= deadline {
			p.killed.Add(1)
			time.Sleep(p.diesIn)
			end("killed at the deadline")
			return
		}
		if now >= dies {
			end("stopped")
			return
		}
		next := min(deadline, dies)
		if !opened {
			next = min(next, opens)
		}
		timer := time.NewTimer(min(next.Sub(now), time.Hour))
		select {
		case <-timer.C:
		case d := <-r.deadline:
			if now < deadline { // sticky
				deadline = d
			}
		case grace := <-r.stop:
			kill := now.Add(grace)
			p.mu.Lock()
			dies = min(dies, now.Add(p.stopsIn), kill)
			p.mu.Unlock()
		case how := <-r.kill:
			end(how)
			return
		}
		timer.Stop()
	}
}

func (p *program) current() *run {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

func (p *program) Extend(deadline election.Instant) {
	if r := p.current(); r != nil {
		select {
		case r.deadline <- deadline:
		default:
		}
	}
}

func (p *program) Exited() <-chan struct{} { return p.current().exited }
func (p *program) Exit() string            { return p.current().how }

func (p *program) Stop(ctx context.Context, grace time.Duration) error {
	p.mu.Lock()
	r := p.run
	p.stops.Add(1)
	if p.refuse > 0 {
		p.refuse--
		p.mu.Unlock()
		return errors.New("a process is in uninterruptible sleep")
	}
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	r.stop <- grace
	select {
	case <-r.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	p.run = nil
	p.mu.Unlock()
	return nil
}

// set changes how the program behaves.
func (p *program) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// crash is kill -9 of the program.
func (p *program) crash() { p.current().kill <- "killed by SIGKILL" }

func (p *program) port(ctx context.Context) error {
	r := p.current()
	if r == nil {
		return errors.New("not running")
	}
	select {
	case <-r.open:
		return nil
	case <-ctx.Done():
		return errors.New("connection refused")
	}
}

// switchboard is the health of a fake controller.
type switchboard struct {
	mu      sync.Mutex
	bad     string
	changed chan struct{}
}

func (s *switchboard) set(bad string) {
	s.mu.Lock()
	s.bad = bad
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *switchboard) Run(ctx context.Context, report func(bool, string, time.Duration)) {
	for {
		s.mu.Lock()
		bad := s.bad
		s.mu.Unlock()
		report(bad == "", bad, time.Millisecond)
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		}
	}
}

// ledger is a fake repository's fence.
type ledger host

type behind struct{ term election.Term }

func (b behind) Error() string                 { return fmt.Sprintf("the repository is at term %d", b.term) }
func (b behind) RepositoryTerm() election.Term { return b.term }
func (b behind) Superseded() bool              { return true }

func (l *ledger) Raise(_ context.Context, term election.Term) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term <= l.fence {
		return nil, behind{l.fence}
	}
	l.fence = term
	return []string{fmt.Sprintf("PGPASSWORD=secret-%d", term)}, nil
}

func (l *ledger) Assert(_ context.Context, term election.Term) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fence != term {
		return behind{l.fence}
	}
	return nil
}

func (l *ledger) Close(context.Context, election.Term) error { return nil }
func (l *ledger) Ready(context.Context) error                { return nil }

// peers connects the hosts of a world directly, for failsafe; a host in down answers nobody.
type peers struct {
	*world
	down map[string]bool
}

func (p *peers) vouch(ctx context.Context, a election.Ask) error {
	for _, passive := range a.Passives {
		p.mu.Lock()
		down := p.down[passive.Name]
		p.mu.Unlock()
		if down {
			<-ctx.Done()
			return ctx.Err()
		}
		for _, h := range p.hosts {
			if h.name == passive.Name {
				if err := h.sidecar.StandBack(a); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *peers) config(c *Config) { c.OnStoreLoss, c.Vouch = election.StoreLossFailsafe, p.vouch }

package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// world is a cluster in fake time: one store, some hosts, and an oracle that knows which
// controllers ran when. It must be made inside a synctest bubble.
type world struct {
	t     *testing.T
	base  time.Time
	store *electiontest.Store
	hosts []*host

	mu       sync.Mutex
	running  map[string]int
	starts   []start
	overlaps []string
	origin   time.Time     // of the timeline
	events   []string      // of the controllers
	fence    election.Term // of the repository
	fencedBy string        // its holder
	fenced   int           // how often it has fenced the term
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
	hooks   []string // that ran
	end     func()
	cause   context.CancelCauseFunc
	done    chan error
	gate    gate
	on      atomic.Bool // it was started
	over    atomic.Bool // it has ended
}

// lives reports whether the process runs, or is frozen.
func (h *host) lives() bool { return h.on.Load() && !h.over.Load() }

func newWorld(t *testing.T) *world {
	return &world{
		t: t, base: time.Now(), origin: time.Now(), store: electiontest.NewStore(), running: map[string]int{},
	}
}

// note adds an event to the timeline. w.mu is held.
func (w *world) note(format string, args ...any) {
	w.events = append(w.events, fmt.Sprintf("%v ", time.Since(w.origin).Round(10*time.Millisecond))+fmt.Sprintf(format, args...))
}

// from begins a new timeline at this moment.
func (w *world) from() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.origin, w.events = time.Now(), nil
}

// want compares what happened to the controllers since the timeline began, or since the last want:
// "1.2s start ctl-a@7", "1.3s open ctl-a@7" (its port answers), "9s gone ctl-a@7, stopped".
func (w *world) want(t *testing.T, lines ...string) {
	t.Helper()
	w.mu.Lock()
	got, want := strings.Join(w.events, "\n"), strings.Join(lines, "\n")
	w.events = nil
	w.mu.Unlock()
	if got != want {
		t.Errorf("at %v it happened:\n%s\nwant:\n%s", time.Since(w.origin), got, want)
	}
}

// clock is the host's own clock, which may be slower than those of the store and the others.
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
		Port: h.program.port, StartTimeout: 10 * time.Second, StopTimeout: 5 * time.Second, KillTimeout: 2 * time.Second, YieldWait: 30 * time.Second,
		FenceTimeout: 10 * time.Second, Priority: 100,
		Hook: func(_ context.Context, event string, _ []string) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.hooks = append(h.hooks, event)
			return nil
		},
		Log: zerolog.New(zerolog.ConsoleWriter{Out: w.t.Output(), NoColor: true, TimeFormat: time.StampMilli}).With().Timestamp().Logger(),
	}
	for _, o := range options {
		o(&cfg)
	}
	h.gate.through(&cfg, h.client)
	h.sidecar = New(cfg)
	w.mu.Lock()
	w.hosts = append(w.hosts, h)
	w.mu.Unlock()
	return h
}

// start runs the sidecar; the test's end stops it.
func (h *host) start() *host {
	ctx, cancel := context.WithCancelCause(h.t.Context())
	h.cause = cancel
	h.end = func() { cancel(errors.New("told to end")) }
	h.on.Store(true)
	go func() {
		err := errKilled
		defer func() {
			h.over.Store(true)
			h.done <- err
		}()
		err = h.sidecar.Run(ctx)
	}()
	return h
}

var errKilled = errors.New("killed by SIGKILL")

// kill is kill -9 of the sidecar. It returns when nothing of the process is left.
func (h *host) kill() {
	h.gate.kill()
	h.cause(errKilled)
	h.end = nil
	if err := <-h.done; err != nil && !errors.Is(err, errKilled) {
		h.t.Errorf("%s: %v", h.name, err)
	}
}

// stop ends the sidecar as SIGTERM does and waits for it.
func (h *host) stop() error {
	h.end()
	return <-h.done
}

func (w *world) all() []*host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.hosts)
}

// wait lets up to limit of fake time pass until is reports true.
func (w *world) wait(limit time.Duration, what string, is func() bool) {
	w.t.Helper()
	end := time.Now().Add(limit)
	for {
		synctest.Wait()
		if is() {
			return
		}
		if time.Now().After(end) {
			for _, h := range w.all() {
				w.t.Logf("%s: %+v", h.name, h.sidecar.board.get())
			}
			for _, h := range w.all() { // a bubble ends with its last goroutine
				if h.cause != nil {
					h.gate.kill()
					h.cause(errKilled)
				}
			}
			time.Sleep(time.Minute)
			w.t.Fatalf("timed out after %v: %s", limit, what)
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
			if c.By == electiontest.Restored {
				last = b.Term
			}
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
			h.gate.thaw()
			h.client.Heal()
			if err := h.stop(); err != nil {
				w.t.Errorf("%s: %v", h.name, err)
			}
		}
	}
	w.check()
}

// start is one start of a controller.
type start struct {
	name string
	term election.Term
}

// termOf returns the term in a controller's environment.
func termOf(env []string) (term election.Term) {
	for _, e := range env {
		if text, ok := strings.CutPrefix(e, "TANIST_TERM="); ok {
			_, _ = fmt.Sscan(text, &term)
		}
	}
	return term
}

func (w *world) began(name string, term election.Term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("start %s@%d", name, term)
	for _, s := range w.starts {
		if s.term > term || s.term == term && s.name != name {
			w.overlaps = append(w.overlaps, fmt.Sprintf("%s began at %v with term %d after %s had term %d", name, time.Since(w.base), term, s.name, s.term))
		}
	}
	w.starts = append(w.starts, start{name, term})
	if w.running[name] > 0 {
		w.overlaps = append(w.overlaps, fmt.Sprintf("%s began at %v while it ran", name, time.Since(w.base)))
	}
	w.running[name]++
	for other, n := range w.running {
		if n > 0 && other != name {
			w.overlaps = append(w.overlaps, fmt.Sprintf("%s began at %v while %s ran", name, time.Since(w.base), other))
		}
	}
}

func (w *world) opened(name string, term election.Term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("open %s@%d", name, term)
}

func (w *world) failed(name string, term election.Term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("failed %s@%d", name, term)
}

func (w *world) ended(name string, term election.Term, how string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("gone %s@%d, %s", name, term, how)
	w.running[name]--
}

func (w *world) runs(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[name] > 0
}

// program is a fake controller together with its guard, which ends it at its deadline whatever the
// sidecar does.
type program struct {
	*host
	startsIn time.Duration // until the port answers; negative: never
	diesIn   time.Duration // from KILL until the last process is gone
	stopsIn  time.Duration // after the stop signal
	refuse   int           // the number of stops that cannot be confirmed
	failing  bool          // Start fails
	unproven bool          // a stop ends without proof

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
	term     election.Term
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
		p.failed(p.name, termOf(env))
		return errors.New("no such file")
	}
	if p.run != nil {
		select {
		case <-p.run.gone:
		default:
			p.t.Errorf("%s: started twice", p.name)
		}
	}
	if p.clock() >= deadline {
		return errors.New("the deadline has passed")
	}
	r := &run{
		term: termOf(env), exited: make(chan struct{}), gone: make(chan struct{}), deadline: make(chan election.Instant, 1000),
		stop: make(chan time.Duration, 100), kill: make(chan string, 10), open: make(chan struct{}),
	}
	p.run = r
	p.began(p.name, r.term)
	go p.life(r, deadline)
	return nil
}

// life runs the program and its guard.
func (p *program) life(r *run, deadline election.Instant) {
	begun := p.clock()
	var dies election.Instant = election.Never // by itself, after the stop signal
	end := func(how string) {
		r.how = how
		p.ended(p.name, r.term, how)
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
			p.opened(p.name, r.term)
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
			now := p.clock()
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
	unproven := p.unproven
	p.mu.Unlock()
	if unproven {
		return fmt.Errorf("cannot confirm the stop: %w", election.ErrUnproven)
	}
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
	since   time.Time
	slow    time.Duration // from the first sign to the verdict
	changed chan struct{}
}

func (s *switchboard) set(bad string) {
	s.mu.Lock()
	s.bad, s.since = bad, time.Now().Add(-s.slow)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *switchboard) Wait(ctx context.Context, waiting func(string)) error {
	for {
		s.mu.Lock()
		bad := s.bad
		s.mu.Unlock()
		if bad == "" {
			return nil
		}
		waiting(bad)
		select {
		case <-ctx.Done():
			return errors.New(bad)
		case <-s.changed:
		}
	}
}

func (s *switchboard) Run(ctx context.Context, report func(bool, string, time.Time)) {
	for {
		s.mu.Lock()
		bad := s.bad
		since := s.since
		s.mu.Unlock()
		report(bad == "", bad, since)
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
	if term < l.fence || term == l.fence && l.fencedBy != l.name {
		return nil, behind{l.fence}
	}
	if term > l.fence {
		l.fenced = 0
	}
	l.fence, l.fencedBy = term, l.name
	secret := fmt.Sprintf("PGPASSWORD=secret-%d", term)
	if l.fenced++; l.fenced > 1 { // the same holder may fence its term again, and gets another secret
		secret += fmt.Sprintf(".%d", l.fenced)
	}
	return []string{secret}, nil
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

// peers connects the hosts of a world directly, for failsafe. A host in down does not answer.
type peers struct {
	*world
	down map[string]bool
}

func (p *peers) ask(ctx context.Context, a election.Ask) error {
	for _, passive := range a.Passives {
		p.mu.Lock()
		down := p.down[passive.Name]
		p.mu.Unlock()
		if down {
			<-ctx.Done()
			return ctx.Err()
		}
		answer := make(chan error, 1)
		asked := false
		for _, h := range p.all() {
			if h.name == passive.Name && h.lives() {
				asked = true
				go func() { answer <- h.sidecar.Promise(a) }() // in the other process, which may be frozen or killed
			}
		}
		if !asked {
			return errors.New("connection refused")
		}
		select {
		case err := <-answer:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (p *peers) config(c *Config) { c.OnStoreLoss, c.Ask = election.StoreLossFailsafe, p.ask }

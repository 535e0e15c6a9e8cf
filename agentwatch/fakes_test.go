package agentwatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// world is the environment of a watch, in fake time. Every part of it honours contexts.
type world struct {
	t     testing.TB
	began time.Time

	mu          sync.Mutex
	follow      chan election.Sighting
	open        map[string]bool                   // "host:port"
	hang        map[string]bool                   // drops packets
	sidecars    map[string]election.ClusterRecord // by host:port; absent: refuses
	forge       func(h http.Header, body []byte)  // signs instead of the sidecars
	procs       []*fakeProc
	startErr    error
	startLeaves bool // a start that fails leaves something
	startTime   time.Duration
	stopErr     error
	lifetime    time.Duration // agents end by themselves after it; zero: never
	stopTime    time.Duration // how long an agent takes to stop
	signals     []syscall.Signal
	events      []string
}

// secret is shared by the sidecars of this world.
var secret = election.Secret("0123456789abcdef")

func newWorld(t testing.TB) *world {
	return &world{
		t: t, began: time.Now(), follow: make(chan election.Sighting, 1),
		open: map[string]bool{}, hang: map[string]bool{}, sidecars: map[string]election.ClusterRecord{},
	}
}

func (w *world) note(format string, args ...any) {
	w.events = append(w.events, fmt.Sprintf("%v ", time.Since(w.began))+fmt.Sprintf(format, args...))
}

// story returns and clears the events of the agents, one per line.
func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.events, "\n")
	w.events = nil
	return s
}

func (w *world) want(t *testing.T, lines ...string) {
	t.Helper()
	if got, want := w.story(), strings.Join(lines, "\n"); got != want {
		t.Errorf("at %v it happened:\n%s\nwant:\n%s", time.Since(w.began), got, want)
	}
}

func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// Follow delivers sightings as a store does: the newest wins.
func (w *world) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting)
	go func() {
		defer close(out)
		for {
			select {
			case s := <-w.follow:
				select {
				case out <- s:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (w *world) say(s election.Sighting) {
	s.At = time.Now()
	select {
	case <-w.follow:
	default:
	}
	w.follow <- s
}

func active(name string, term election.Term, state election.State) *election.Active {
	return &election.Active{
		Controller: name, Term: term, State: state, URL: urlOf(name), API: "http://" + name + ".test:8710", Incarnation: "i",
	}
}

func urlOf(name string) string { return "http://" + name + ".test:8080" }

func (w *world) serving(name string, term election.Term) {
	w.do(func() { w.open[name+".test:8080"] = true })
	w.say(election.Sighting{Active: active(name, term, election.StateServing)})
}

func (w *world) vacant() { w.say(election.Sighting{}) }

func (w *world) storeDown() { w.say(election.Sighting{Err: errors.New("connection refused")}) }

func (w *world) dead(names ...string) {
	w.do(func() {
		for _, n := range names {
			delete(w.open, n+".test:8080")
			delete(w.sidecars, n+".test:8710")
		}
	})
}

func (w *world) dial(ctx context.Context, addr string) error {
	w.mu.Lock()
	hang, open := w.hang[addr], w.open[addr]
	w.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if !open {
		return errors.New("connection refused")
	}
	return ctx.Err()
}

// RoundTrip answers for the sidecars.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	v, ok := w.sidecars[r.URL.Host]
	w.mu.Unlock()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if !ok || r.URL.Path != "/v1/cluster" {
		return nil, errors.New("connection refused")
	}
	b, _ := json.Marshal(v)
	h := http.Header{}
	if w.forge == nil {
		h.Set(election.SignatureHeader, secret.SignAnswer(r.URL.Path, r.Header.Get(election.NonceHeader), b))
	} else {
		w.forge(h, b)
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Header: h, Body: io.NopCloser(bytes.NewReader(b)), Request: r}, nil
}

// fakeProc is one agent's process.
type fakeProc struct {
	w       *world
	command []string
	env     []string
	pid     int
	exited  chan struct{}
	once    sync.Once
	up      bool
	how     string
}

func (w *world) newProc(command, env []string) Process {
	return &fakeProc{w: w, command: command, env: env, exited: make(chan struct{})}
}

func (p *fakeProc) Start(ctx context.Context, _ []string, deadline election.Instant) error {
	if deadline != election.Never {
		p.w.t.Error("an agent has no deadline")
	}
	p.w.mu.Lock()
	d := p.w.startTime
	p.w.mu.Unlock()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.startErr != nil {
		w.note("start failed")
		if w.startLeaves {
			w.procs = append(w.procs, p)
			p.pid, p.up = len(w.procs), true
		}
		return w.startErr
	}
	w.procs = append(w.procs, p)
	p.pid, p.up = len(w.procs), true
	w.note("start %s", strings.Join(p.command[1:], " "))
	if w.lifetime > 0 {
		time.AfterFunc(w.lifetime, func() { p.die("exit status 1") })
	}
	return nil
}

func (p *fakeProc) die(how string) {
	p.once.Do(func() {
		p.w.mu.Lock()
		p.how = how
		p.w.note("died %s", strings.Join(p.command[1:], " "))
		p.w.mu.Unlock()
		close(p.exited)
	})
}

func (p *fakeProc) Stop(ctx context.Context, grace time.Duration) error {
	w := p.w
	w.mu.Lock()
	d, err := min(w.stopTime, grace), w.stopErr
	w.mu.Unlock()
	select {
	case <-p.exited:
		d = 0
	default:
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	p.once.Do(func() { close(p.exited) })
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.up {
		p.up = false
		w.note("gone %s", strings.Join(p.command[1:], " "))
	}
	return nil
}

func (p *fakeProc) Exited() <-chan struct{} { return p.exited }
func (p *fakeProc) Exit() string            { return p.how }
func (p *fakeProc) PID() int                { return p.pid }

// living returns the targets of the running agents.
func (w *world) living() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var urls []string
	for _, p := range w.procs {
		if p.up {
			urls = append(urls, strings.Join(p.command[1:], " "))
		}
	}
	return urls
}

func (p *fakeProc) term() election.Term {
	for _, e := range p.env {
		if v, ok := strings.CutPrefix(e, "TANIST_TERM="); ok {
			n, _ := strconv.ParseUint(v, 10, 64)
			return election.Term(n)
		}
	}
	return 0
}

// config is the default configuration in this world: one agent, whose command shows its target.
func (w *world) config() Config {
	c := Defaults()
	c.Cluster, c.Host, c.Source, c.Dial = "orders", "h1", w, w.dial
	c.HTTP, c.Secret = &http.Client{Transport: w}, func() (election.Secret, error) { return secret, nil }
	c.Random = func() float64 { return 0 }
	c.Log = zerolog.Nop()
	c.Signal = func(_ int, s syscall.Signal) error {
		w.do(func() { w.signals = append(w.signals, s); w.note("signal %v", s) })
		return nil
	}
	a := AgentDefaults()
	a.Name, a.New = "agt-1", w.newProc
	a.Command = []string{"/bin/agent", "{{ .Active.Controller }}@{{ .Active.Term }}"}
	c.Agents = []Agent{a}
	return c
}

// run starts a watch; end stops it and returns what Run returned.
func (w *world) run(t *testing.T, c Config) (watch *Watch, end func() error) {
	t.Helper()
	watch, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watch.Run(ctx) }()
	return watch, func() error {
		cancel()
		return <-done
	}
}

package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// longEnough bounds every wait for something that must happen. It is not a claim about time: a
// loaded machine may take seconds for what takes milliseconds on a quiet one.
const longEnough = time.Minute

// long reports whether the tests run in their full length.
func long() bool { return os.Getenv("TANIST_LONG") == "1" }

func times(short, full int) int {
	if long() {
		return full
	}
	return short
}

// store is a Source that the test controls. It can be followed several times, one after the other.
type store struct {
	mu     sync.Mutex
	now    *election.Sighting
	active *election.Active
	subs   []chan election.Sighting
}

func (s *store) Follow(ctx context.Context) <-chan election.Sighting {
	in, out := make(chan election.Sighting, 1), make(chan election.Sighting)
	s.mu.Lock()
	s.subs = append(s.subs, in)
	if s.now != nil {
		in <- *s.now
	}
	s.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.subs = slices.DeleteFunc(s.subs, func(c chan election.Sighting) bool { return c == in })
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case v := <-in:
				select {
				case out <- v:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func (s *store) say(v election.Sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.At = time.Now()
	s.now = &v
	for _, c := range s.subs {
		select { // the latest wins
		case <-c:
		default:
		}
		c <- v
	}
}

func (s *store) publish(a election.Active) { s.active = &a; s.say(election.Sighting{Active: &a}) }
func (s *store) vacate()                   { s.active = nil; s.say(election.Sighting{}) }
func (s *store) away() {
	s.say(election.Sighting{Active: s.active, Err: errors.New("no store answers")})
}

// controller is a program that can be started and stopped at one address.
type controller struct {
	t        *testing.T
	name     string
	addr     string
	mu       sync.Mutex
	srv      *http.Server
	active   atomic.Bool // whether the lease is its own, as the test has it
	served   atomic.Int64
	wrong    atomic.Int64 // requests answered while not active
	delay    time.Duration
	inflight atomic.Int64
}

func newController(t *testing.T, name string) *controller {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{t: t, name: name, addr: ln.Addr().String()}
	t.Cleanup(c.kill)
	c.serve(ln)
	return c
}

func (c *controller) serve(ln net.Listener) {
	srv := &http.Server{Handler: c, ReadHeaderTimeout: 10 * time.Second}
	c.mu.Lock()
	c.srv = srv
	c.mu.Unlock()
	go func() { _ = srv.Serve(ln) }()
}

func (c *controller) start() {
	c.t.Helper()
	ln, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.serve(ln)
}

// stop ends like a program that drains on TERM: it accepts no new connections and finishes requests
// in flight.
func (c *controller) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.srv != nil {
		ctx, cancel := context.WithTimeout(context.Background(), longEnough)
		defer cancel()
		_ = c.srv.Shutdown(ctx)
		_ = c.srv.Close()
		c.srv = nil
	}
}

func (c *controller) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.srv != nil {
		_ = c.srv.Close()
		c.srv = nil
	}
}

func (c *controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.inflight.Add(1)
	defer c.inflight.Add(-1)
	if !c.active.Load() {
		c.wrong.Add(1)
	}
	c.served.Add(1)
	if r.URL.Path == "/stream" {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	if c.delay > 0 {
		time.Sleep(c.delay)
	}
	_, _ = io.WriteString(w, c.name)
}

func (c *controller) url() string { return "http://" + c.addr }

func (c *controller) record(term election.Term, state election.State) election.Active {
	return election.Active{
		Controller: c.name, Term: term, State: state, URL: c.url(), Since: time.Now(), Reason: "test", Incarnation: "i-" + c.name,
	}
}

// bed is one Tanist with its HAProxy, in its own directory.
type bed struct {
	t     *testing.T
	dir   string
	cfg   Config
	front string // host:port that users come in at
	store *store
	logs  *lockedBuffer

	mu     sync.Mutex
	proxy  *Proxy
	stopFn func()
	ha     *exec.Cmd
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) count(s string) int { return strings.Count(l.String(), s) }

// newBed prepares a test; change edits the configuration before its use.
func newBed(t *testing.T, change func(*Config)) *bed {
	t.Helper()
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Fatal("haproxy is not installed (Debian package haproxy); scripts/install-deps installs it")
	}
	dir, err := os.MkdirTemp("", "tanist-ha") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, dir: dir, front: testbed.Address(t), store: &store{}, logs: &lockedBuffer{}}
	b.cfg = Config{
		Clusters:   []Cluster{{Name: "orders", Bind: b.front}},
		ConfigFile: filepath.Join(dir, "haproxy.cfg"), AdminSocket: filepath.Join(dir, "admin.sock"),
		MasterSocket: filepath.Join(dir, "master.sock"), Reconcile: 200 * time.Millisecond,
	}
	if change != nil {
		change(&b.cfg)
	}
	t.Cleanup(func() {
		b.stopTanist()
		b.killHAProxy()
		if t.Failed() {
			t.Logf("log of tanist:\n%s", b.logs)
			said, _ := os.ReadFile(filepath.Join(dir, "haproxy.log"))
			t.Logf("log of haproxy:\n%s", said)
		}
		_ = os.RemoveAll(dir)
	})
	return b
}

func (b *bed) startTanist() {
	b.t.Helper()
	sources := map[string]Source{}
	for _, c := range b.cfg.Clusters {
		sources[c.Name] = b.store
	}
	b.startWith(sources)
}

func (b *bed) startWith(sources map[string]Source) {
	b.t.Helper()
	p, err := New(b.cfg, sources, zerolog.New(b.logs).With().Timestamp().Logger())
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	b.mu.Lock()
	b.proxy = p
	b.stopFn = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	b.mu.Unlock()
}

func (b *bed) stopTanist() {
	b.mu.Lock()
	stop := b.stopFn
	b.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (b *bed) startHAProxy() {
	b.t.Helper()
	b.until("the configuration is written", func() bool {
		text, err := os.ReadFile(b.cfg.ConfigFile)
		_, ours := readHeader(text)
		return err == nil && ours
	})
	cmd := exec.Command("haproxy", "-W", "-S", b.cfg.MasterSocket, "-f", b.cfg.ConfigFile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := os.OpenFile(filepath.Join(b.dir, "haproxy.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.ha = cmd
}

// killHAProxy kills master and workers, like a crash.
func (b *bed) killHAProxy() {
	if b.ha != nil {
		_ = syscall.Kill(-b.ha.Process.Pid, syscall.SIGKILL)
		_ = b.ha.Wait()
		b.ha = nil
	}
}

// up starts Tanist with an HAProxy, and waits until Tanist controls it.
func (b *bed) up() {
	b.t.Helper()
	b.startTanist()
	if !b.cfg.Spawn {
		b.startHAProxy()
	}
	b.until("Tanist drives HAProxy", func() bool { s := b.proxy.Status(); return s.HAProxyPID != 0 && s.HAProxyError == "" })
}

// until waits for a condition that must become true.
func (b *bed) until(what string, f func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(longEnough); !f(); {
		if time.Now().After(deadline) {
			b.t.Fatalf("does not come true: %s; status %+v", what, b.proxy.Status())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// get sends one request to the virtual URL, on its own connection.
func (b *bed) get() (code int, body string) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: longEnough / 3}
	resp, err := c.Get("http://" + b.front + "/")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

func (b *bed) routedTo(c *controller) {
	b.t.Helper()
	b.until("the virtual URL leads to "+c.name, func() bool { code, body := b.get(); return code == 200 && body == c.name })
}

func (b *bed) routedNowhere() {
	b.t.Helper()
	b.until("the virtual URL leads nowhere", func() bool { code, _ := b.get(); return code == 503 })
}

// servers returns the servers of HAProxy. It waits for one that is starting.
func (b *bed) servers() (have map[string]server) {
	b.t.Helper()
	b.until("HAProxy answers", func() bool {
		v, err := socket{b.cfg.AdminSocket, longEnough}.look(b.t.Context())
		have = v.servers["orders"]
		return err == nil
	})
	return have
}

func (b *bed) file() string {
	b.t.Helper()
	text, err := os.ReadFile(b.cfg.ConfigFile)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

func quantiles(d []time.Duration) string {
	s := slices.Clone(d)
	slices.Sort(s)
	at := func(q float64) time.Duration { return s[int(q*float64(len(s)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("n=%d median=%v p95=%v p99=%v max=%v", len(s), at(.5), at(.95), at(.99), at(1))
}

func zerologNop() zerolog.Logger { return zerolog.Nop() }

// queued returns the number of requests in the backend's queue, from the CSV of "show stat".
func queued(stat string) int {
	n := 0
	for line := range strings.Lines(stat) {
		if f := strings.Split(line, ","); len(f) > 2 && f[1] == "BACKEND" {
			_, _ = fmt.Sscan(f[2], &n)
		}
	}
	return n
}

// newStream opens a request whose response never ends.
func newStream(front string) (io.Closer, error) {
	resp, err := http.Get("http://" + front + "/stream")
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

package agentwatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/election"
)

// etcdServer starts the pinned etcd of tools/etcd (or the one that TANIST_ETCD names) and returns its URL and process.
func etcdServer(t *testing.T) (url string, pid int) {
	t.Helper()
	bin := os.Getenv("TANIST_ETCD")
	dir := t.TempDir()
	if bin == "" {
		bin = filepath.Join(dir, "etcd")
		build := exec.CommandContext(t.Context(), "go", "build", "-C", "../tools/etcd", "-o", bin, "go.etcd.io/etcd/server/v3")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("cannot build etcd: %v\n%s", err, out)
		}
	}
	free := func() string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return "http://" + ln.Addr().String()
	}
	url, peer := free(), free()
	cmd := exec.Command(bin, "--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/health", nil)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url, cmd.Process.Pid
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("etcd does not come up")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// bareSource follows a key with a client of its own, as a store's Follow does: a read, then a watch from there.
type bareSource struct {
	c   *clientv3.Client
	key string
}

func (b bareSource) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	go func() {
		defer close(out)
		tell := func(s election.Sighting) {
			s.At = time.Now()
			select {
			case <-out:
			default:
			}
			out <- s
		}
		decode := func(value []byte) election.Sighting {
			a, err := election.DecodeActive(value)
			if err != nil {
				return election.Sighting{Err: err}
			}
			return election.Sighting{Active: &a}
		}
		for ctx.Err() == nil {
			resp, err := b.c.Get(ctx, b.key)
			if err != nil {
				tell(election.Sighting{Err: err})
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				continue
			}
			if len(resp.Kvs) == 0 {
				tell(election.Sighting{})
			} else {
				tell(decode(resp.Kvs[0].Value))
			}
			for w := range b.c.Watch(clientv3.WithRequireLeader(ctx), b.key, clientv3.WithRev(resp.Header.Revision+1)) {
				for _, e := range w.Events {
					if e.Type == clientv3.EventTypeDelete {
						tell(election.Sighting{})
					} else {
						tell(decode(e.Kv.Value))
					}
				}
			}
		}
	}()
	return out
}

// rss returns the resident and the anonymous memory of a process, in bytes.
func rss(t *testing.T, pid int) (all, anon int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			all = n << 10
		case "RssAnon:":
			anon = n << 10
		}
	}
	return all, anon
}

// cpu returns the processor time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	sys, _ := strconv.Atoi(f[12])
	return time.Duration(user+sys) * 10 * time.Millisecond
}

// instant is a process that does nothing but tell when it was started.
type instant struct {
	started func()
	exited  chan struct{}
}

func (p *instant) Start(context.Context, []string, election.Instant) error {
	p.started()
	return nil
}
func (p *instant) Stop(context.Context, time.Duration) error { return nil }
func (p *instant) Exited() <-chan struct{}                   { return p.exited }
func (p *instant) Exit() string                              { return "" }
func (p *instant) PID() int                                  { return 1 }

func percentiles(d []time.Duration) string {
	slices.Sort(d)
	at := func(p float64) time.Duration {
		return d[min(int(p*float64(len(d))), len(d)-1)].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("p50 %v, p99 %v, max %v (n=%d)", at(0.5), at(0.99), d[len(d)-1].Round(100*time.Microsecond), len(d))
}

// TestFanOut measures how soon a fleet follows a change of the active: role key written → the new process of each agent
// started. With TANIST_LONG; TANIST_FLEET is the number of agentwatches (5000), each with a connection of its own.
func TestFanOut(t *testing.T) {
	if os.Getenv("TANIST_LONG") == "" {
		t.Skip("long; set TANIST_LONG=1")
	}
	fleet := 5000
	if n, err := strconv.Atoi(os.Getenv("TANIST_FLEET")); err == nil {
		fleet = n
	}
	url, pid := etcdServer(t)
	const key = "/tanist/orders/active"
	open := func() *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop(), DialTimeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ctl := open()
	defer func() { _ = ctl.Close() }()
	term := election.Term(0)
	change := func() time.Time {
		term++
		a := active("a", term, election.StateServing)
		sent := time.Now()
		if _, err := ctl.Put(t.Context(), key, string(a.Encode())); err != nil {
			t.Fatal(err)
		}
		return sent
	}

	run := func(t *testing.T, watches, agents int, clients []*clientv3.Client) {
		total := watches * agents
		var got atomic.Int64
		var mu sync.Mutex
		var when []time.Time
		began := func() {
			mu.Lock()
			when = append(when, time.Now())
			mu.Unlock()
			got.Add(1)
		}
		wait := func(n int) {
			for deadline := time.Now().Add(2 * time.Minute); got.Load() < int64(n); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d of %d agents follow", got.Load(), n)
				}
			}
		}
		change()
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		runtime.GC()
		_, before := rss(t, os.Getpid())
		for i := range watches {
			c := Defaults()
			c.Cluster, c.Host, c.Source, c.Log = "orders", "h", bareSource{clients[i], key}, zerolog.Nop()
			c.Dial = func(context.Context, string) error { return nil } // there is no controller: this is about the store
			for j := range agents {
				a := AgentDefaults()
				a.Name = fmt.Sprintf("agt-%d-%d", i, j)
				a.Command = []string{"/bin/agent", "{{ .Active.URL }}"}
				a.New = func([]string, []string) Process { return &instant{started: began, exited: make(chan struct{})} }
				c.Agents = append(c.Agents, a)
			}
			w, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				if err := w.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		wait(total)
		runtime.GC()
		_, after := rss(t, os.Getpid())
		t.Logf("%d agentwatches of %d agents: %d KiB of memory per agent beyond its share of the connection", watches, agents, (after-before)/total>>10)
		var took, slowest []time.Duration
		const rounds = 10
		ours, theirs := cpu(t, os.Getpid()), cpu(t, pid)
		for range rounds {
			time.Sleep(300 * time.Millisecond)
			mu.Lock()
			when = when[:0]
			mu.Unlock()
			got.Store(0)
			sent := change()
			wait(total)
			mu.Lock()
			last := time.Duration(0)
			for _, at := range when {
				took = append(took, at.Sub(sent))
				last = max(last, at.Sub(sent))
			}
			mu.Unlock()
			slowest = append(slowest, last)
		}
		each := time.Duration(rounds * total)
		t.Logf("processor time per agent and change: %v here, %v in etcd", (cpu(t, os.Getpid())-ours)/each, (cpu(t, pid)-theirs)/each)
		t.Logf("role key written → agent started: %s; the slowest of each change: %s", percentiles(took), percentiles(slowest))
		since := time.Now()
		ours, theirs = cpu(t, os.Getpid()), cpu(t, pid)
		time.Sleep(10 * time.Second)
		share := func(d time.Duration) float64 { return 100 * float64(d) / float64(time.Since(since)) }
		mem, _ := rss(t, pid)
		t.Logf("steady state: etcd %.1f %% of a core, %d MiB; all agentwatches together %.1f %% of a core",
			share(cpu(t, pid)-theirs), mem>>20, share(cpu(t, os.Getpid())-ours))
		cancel()
		all.Wait()
	}

	t.Run("one watch for all", func(t *testing.T) {
		c := open()
		defer func() { _ = c.Close() }()
		run(t, 1, fleet, []*clientv3.Client{c})
	})
	t.Run("a watch each", func(t *testing.T) {
		runtime.GC()
		_, before := rss(t, os.Getpid())
		clients := make([]*clientv3.Client, fleet)
		for i := range clients {
			clients[i] = open()
			defer func() { _ = clients[i].Close() }()
			if _, err := clients[i].Get(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		_, after := rss(t, os.Getpid())
		t.Logf("%d connections: %d KiB of memory each on this side", fleet, (after-before)/fleet>>10)
		run(t, fleet, 1, clients)
	})
}

package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/agentwatch"
	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// TestMain makes the test binary a member of a fleet, too.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fleet-member": fleetMember})
}

// The kinds of members of a fleet.
const (
	fleetBare    = "bare"    // the yardstick: a client of etcd's library and one watch each, nothing else
	fleetEach    = "each"    // an agentwatch of one agent, with a store of its own, as `tanist agentwatch` wires it
	fleetQuiet   = "quiet"   // as each, with presence: false
	fleetShared  = "shared"  // one agentwatch of many agents
	fleetProxied = "proxied" // as each, through etcd's gRPC proxy
)

// seen is when a member of the fleet had a term, on the clock that all processes of a host share.
type seen struct {
	Term election.Term      `json:"term"`
	At   []election.Instant `json:"at"`
}

// gathering collects when each of n members had each term, and tells a term when all have it.
type gathering struct {
	n    int
	tell func(seen)
	mu   sync.Mutex
	at   map[election.Term][]election.Instant
}

func (g *gathering) got(term election.Term) {
	now := election.BootClock()
	g.mu.Lock()
	g.at[term] = append(g.at[term], now)
	all := g.at[term]
	if len(all) == g.n {
		delete(g.at, term)
	}
	g.mu.Unlock()
	if len(all) == g.n {
		g.tell(seen{term, all})
	}
}

// recruit is an agent's process that does nothing but tell when it was started, and pointed at
// which term.
type recruit struct {
	term   election.Term
	got    func(election.Term)
	exited chan struct{}
}

func (p *recruit) Start(context.Context, []string, election.Instant) error {
	p.got(p.term)
	return nil
}

func (p *recruit) Stop(context.Context, time.Duration) error { return nil }

func (p *recruit) Exited() <-chan struct{} { return p.exited }

func (p *recruit) Exit() string { return "" }

func (p *recruit) PID() int { return 1 }

// fleetMember is a part of a fleet in a process of its own: fleet-member KIND STORE URL FIRST N
// PRESENCE-TTL. It writes a line of JSON for each term that all of its members have got, and ends
// with its standard input.
func fleetMember() {
	kind, store, url := os.Args[1], os.Args[2], os.Args[3]
	first, _ := strconv.Atoi(os.Args[4])
	n, _ := strconv.Atoi(os.Args[5])
	ttl, _ := time.ParseDuration(os.Args[6])
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		stop()
	}()
	// A thousand members in one process would have their garbage collected all at once, for the
	// most part just when all of them are busy; each by itself hardly ever would.
	debug.SetGCPercent(400)
	runtime.GOMAXPROCS(1) // nor would its threads be in each other's way
	out := json.NewEncoder(os.Stdout)
	g := &gathering{n: n, at: map[election.Term][]election.Instant{}, tell: func(s seen) { _ = out.Encode(s) }}
	var all sync.WaitGroup
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	watches, agents := n, 1
	if kind == fleetShared {
		watches, agents = 1, n
	}
	for i := range watches {
		if kind == fleetBare {
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
			if err != nil {
				fail(err)
			}
			all.Go(func() { bareMember(ctx, c, g.got) })
			continue
		}
		where := StoreConfig{
			Store: store, Cluster: "orders", Agents: true,
			Etcd: config.Etcd{Endpoints: []string{url}}, Consul: config.Consul{Address: url}, Reread: ttl,
		}
		backend, err := OpenStore(where, zerolog.Nop())
		if err != nil {
			fail(err)
		}
		cfg := agentwatch.Defaults()
		cfg.Cluster, cfg.Host, cfg.Source, cfg.Presence, cfg.Log = where.Cluster, "h", backend, backend, zerolog.Nop()
		cfg.Dial = func(context.Context, string) error { return nil } // there is no controller: this is about the store
		cfg.Retries.Count, cfg.PresenceTTL = 0, ttl
		if kind == fleetQuiet {
			cfg.Presence = nil
		}
		cfg.Probe.Interval = 10 * time.Second // as docs/agents.md advises for fleets
		for j := range agents {
			a := agentwatch.AgentDefaults()
			a.Name = fmt.Sprintf("agt-%d-%d", first+i, j)
			a.Command = []string{"/bin/agent", "--server", "{{ .Active.URL }}"}
			a.New = func(_, env []string) agentwatch.Process {
				p := &recruit{got: g.got, exited: make(chan struct{})}
				for _, e := range env {
					if term, ok := strings.CutPrefix(e, "TANIST_TERM="); ok {
						v, _ := strconv.ParseUint(term, 10, 64)
						p.term = election.Term(v)
					}
				}
				return p
			}
			cfg.Agents = append(cfg.Agents, a)
		}
		w, err := agentwatch.New(cfg)
		if err != nil {
			fail(err)
		}
		all.Go(func() {
			if err := w.Run(ctx); err != nil {
				fail(err)
			}
			_ = backend.Close()
		})
	}
	all.Wait()
}

// bareMember follows the role key with nothing but etcd's client library.
func bareMember(ctx context.Context, c *clientv3.Client, got func(election.Term)) {
	const key = "/tanist/orders/active"
	defer func() { _ = c.Close() }()
	term := func(value []byte) {
		var a struct{ Term election.Term }
		if json.Unmarshal(value, &a) == nil {
			got(a.Term)
		}
	}
	resp, err := c.Get(ctx, key)
	if err != nil {
		return
	}
	for _, kv := range resp.Kvs {
		term(kv.Value)
	}
	for w := range c.Watch(ctx, key, clientv3.WithRev(resp.Header.Revision+1)) {
		for _, e := range w.Events {
			term(e.Kv.Value)
		}
	}
}

// fleet is a running one.
type fleet struct {
	members []*exec.Cmd
	seen    chan seen
}

// place is where a fleet looks: a store, and what is between it and the fleet.
type place struct {
	store string   // as a configuration names it
	urls  []string // the processes of the fleet use one each, in turn
	pids  []int
	// put writes the role key.
	put func(ctx context.Context, active []byte) error
}

// march is what a fleet of n is to do.
type march struct {
	n, processes, rounds int
	settle, steady, ttl  time.Duration // before each change; duration of the steady state; presence_ttl
}

func marching(t *testing.T) (m march, long bool) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	m = march{n: 50, rounds: 2, settle: 200 * time.Millisecond, steady: time.Second, ttl: 20 * time.Second}
	if long = os.Getenv("TANIST_LONG") != ""; long {
		m = march{n: 5000, rounds: 10, settle: 12 * time.Second, steady: 30 * time.Second, ttl: time.Minute}
	}
	if v, err := strconv.Atoi(os.Getenv("TANIST_FLEET")); err == nil {
		m.n = v
	}
	m.processes = min(4, m.n)
	return m, long
}

// startFleet starts the members in a few processes.
func startFleet(t *testing.T, kind string, p place, m march) *fleet {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{seen: make(chan seen, 100)}
	var reading sync.WaitGroup
	for i := range m.processes {
		first, last := m.n*i/m.processes, m.n*(i+1)/m.processes
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Args = []string{"fleet-member", kind, p.store, p.urls[i%len(p.urls)], strconv.Itoa(first), strconv.Itoa(last - first), m.ttl.String()}
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.members = append(f.members, cmd)
		reading.Go(func() {
			for dec := json.NewDecoder(out); ; {
				var s seen
				if dec.Decode(&s) != nil {
					return
				}
				f.seen <- s
			}
		})
		t.Cleanup(func() {
			in.Close()
			reading.Wait()
			_ = cmd.Wait()
		})
	}
	return f
}

// wait returns when all members had a term.
func (f *fleet) wait(t *testing.T, term election.Term, limit time.Duration) []election.Instant {
	t.Helper()
	var all []election.Instant
	timeout := time.After(limit)
	for range f.members {
		select {
		case s := <-f.seen:
			if s.Term != term {
				t.Fatalf("term %d where term %d was awaited", s.Term, term)
			}
			all = append(all, s.At...)
		case <-timeout:
			t.Fatalf("not all members have term %d after %v", term, limit)
		}
	}
	return all
}

// used returns the processor time of some processes, and their resident memory.
func used(t *testing.T, pids ...int) (cpu time.Duration, memory int) {
	t.Helper()
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		pages, _ := strconv.Atoi(f[21])
		cpu += time.Duration(user+system) * 10 * time.Millisecond
		memory += pages * os.Getpagesize()
	}
	return cpu, memory
}

func (f *fleet) pids() []int {
	var pids []int
	for _, m := range f.members {
		pids = append(pids, m.Process.Pid)
	}
	return pids
}

func quantile(d []time.Duration, q float64) time.Duration {
	return d[min(int(q*float64(len(d))), len(d)-1)].Round(100 * time.Microsecond)
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if len(f) < 1 {
		return "?"
	}
	return f[0]
}

// measure lets a fleet follow some changes of the active, and returns the 99th percentile of role
// key written → the start of the agent's process, and the memory of the fleet's processes in bytes.
func (m march) measure(t *testing.T, kind string, p place) (p99 time.Duration, memory int) {
	t.Helper()
	if kind == fleetShared {
		m.processes = 1
	}
	term := election.Term(0)
	change := func() election.Instant {
		t.Helper()
		term++
		name := []string{"ctl-a", "ctl-b"}[term%2]
		a := election.Active{Controller: name, Term: term, State: election.StateServing, URL: "http://" + name + ".test:8080"}
		sent := election.BootClock()
		if err := p.put(t.Context(), a.Encode()); err != nil {
			t.Fatal(err)
		}
		return sent
	}
	change()
	f := startFleet(t, kind, p, m)
	began := time.Now()
	f.wait(t, term, 2*time.Minute)
	t.Logf("all come at once: all follow after %v", time.Since(began).Round(time.Millisecond))
	time.Sleep(m.settle)
	before, _ := used(t, f.pids()...)
	theirs, _ := used(t, p.pids...)
	var took, slowest []time.Duration
	for range m.rounds {
		time.Sleep(m.settle)
		sent := change()
		last := time.Duration(0)
		for _, at := range f.wait(t, term, 2*time.Minute) {
			took = append(took, at.Sub(sent))
			last = max(last, at.Sub(sent))
		}
		slowest = append(slowest, last)
	}
	slices.Sort(took)
	slices.Sort(slowest)
	p99 = quantile(took, 0.99)
	t.Logf("%d × %s, load %s: role key written → followed: p50 %v, p99 %v, max %v; slowest of each change: p50 %v (n=%d)",
		m.n, kind, load(), quantile(took, 0.5), p99, quantile(took, 1), quantile(slowest, 0.5), m.rounds)
	after, memory := used(t, f.pids()...)
	theirsAfter, theirMemory := used(t, p.pids...)
	t.Logf("processor time during the changes: %v here, %v in the store, for %d changes; memory %d MiB here, %d MiB in the store",
		after-before, theirsAfter-theirs, m.rounds, memory>>20, theirMemory>>20)
	time.Sleep(m.settle)
	since := election.BootClock()
	before, _ = used(t, f.pids()...)
	theirs, _ = used(t, p.pids...)
	time.Sleep(m.steady)
	passed := election.BootClock().Sub(since)
	after, _ = used(t, f.pids()...)
	theirsAfter, _ = used(t, p.pids...)
	t.Logf("steady state: the store %.1f %% of a core, the fleet %.1f %%",
		100*float64(theirsAfter-theirs)/float64(passed), 100*float64(after-before)/float64(passed))
	return p99, memory
}

// TestFleetFollows measures how soon every agentwatch of a fleet has a new active: role key written
// → the start of the agent's process. Each has its own connections to one real etcd and is wired as
// the command wires it; the yardstick is as many bare watches of etcd's own library, in the same
// run. The members live in a few processes of their own, so that what is measured is the store's
// fan-out and what an agentwatch does, on as few processors as this machine has for all of them
// together.
//
// The short form is a small fleet and a generous bound. With TANIST_LONG the goal for 5000 (or
// TANIST_FLEET) is 600 ms p99; where the machine does not give that to bare watches with room to
// spare, an agentwatch may take twice as long as they do. An agent that shares an agentwatch may
// take 100 KiB. What the gRPC proxy, which has the same processors, makes of it is reported.
func TestFleetFollows(t *testing.T) {
	m, long := marching(t)
	bound := 30 * time.Second
	if long {
		bound = 600 * time.Millisecond
	}
	p99 := map[string]time.Duration{}
	for _, kind := range []string{fleetBare, fleetQuiet, fleetEach, fleetShared, fleetProxied} {
		t.Run(kind, func(t *testing.T) {
			servers := etcdtest.Start(t, 1)
			ctl, err := clientv3.New(clientv3.Config{Endpoints: servers.Endpoints(), Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ctl.Close() }()
			p := place{store: "etcd", urls: servers.Endpoints(), pids: []int{servers.PID(0)}, put: func(ctx context.Context, active []byte) error {
				_, err := ctl.Put(ctx, "/tanist/orders/active", string(active))
				return err
			}}
			if kind == fleetProxied {
				url, pid := servers.Proxy(t)
				p.urls, p.pids = []string{url}, append(p.pids, pid)
			}
			took, memory := m.measure(t, kind, p)
			p99[kind] = took
			if most := max(bound, 2*p99[fleetBare]); took > most && kind != fleetBare && kind != fleetProxied {
				t.Errorf("p99 %v is beyond %v", took, most)
			}
			if each := memory / m.n; kind == fleetShared && long && each > 100<<10 {
				t.Errorf("%d KiB for each agent is more than 100", each>>10)
			}
		})
	}
	if p99[fleetBare] > 0 && p99[fleetEach] > 0 {
		t.Logf("p99 of an agentwatch each: %.2f times that of bare watches", float64(p99[fleetEach])/float64(p99[fleetBare]))
	}
}

// TestFleetFollowsOnConsul is the same for a smaller fleet on Consul, each with a client agent of
// its own host: four of them, which have the same processors as everything else here. The bound is
// the same.
func TestFleetFollowsOnConsul(t *testing.T) {
	m, long := marching(t)
	m.n = min(m.n, 1000)
	c := consultest.Start(t, consultest.Options{Clients: m.processes, Config: "limits { http_max_conns_per_client = 5000 }"})
	ctl, err := c.Client(c.Servers[0])
	if err != nil {
		t.Fatal(err)
	}
	p := place{store: "consul", pids: []int{c.Servers[0].PID()}, put: func(_ context.Context, active []byte) error {
		_, err := ctl.KV().Put(&api.KVPair{Key: "tanist/orders/active", Value: active}, nil)
		return err
	}}
	for _, agent := range c.Clients {
		p.urls, p.pids = append(p.urls, agent.URL()), append(p.pids, agent.PID())
	}
	bound := 30 * time.Second
	if long {
		bound = 600 * time.Millisecond
	}
	if took, _ := m.measure(t, fleetEach, p); took > bound {
		t.Errorf("p99 %v is beyond %v", took, bound)
	}
}

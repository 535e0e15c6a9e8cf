package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/agentwatch"
	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// The kinds of members of a fleet.
const (
	fleetBare   = "bare"   // the yardstick: a client of etcd's library and one watch each, nothing else
	fleetEach   = "each"   // an agentwatch of one agent, with a store of its own, as `tanist agentwatch` wires it
	fleetShared = "shared" // one agentwatch of many agents
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

// recruit is an agent's process that does nothing but tell when it was started, and pointed at which term.
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
func (p *recruit) Exited() <-chan struct{}                   { return p.exited }
func (p *recruit) Exit() string                              { return "" }
func (p *recruit) PID() int                                  { return 1 }

// fleetMember is a part of a fleet in a process of its own: fleet-member KIND FIRST N URL. It writes a line of JSON for each
// term that all of its members have got, and ends with its standard input.
func fleetMember() {
	kind, url := os.Args[1], os.Args[4]
	first, _ := strconv.Atoi(os.Args[2])
	n, _ := strconv.Atoi(os.Args[3])
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		stop()
	}()
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
		c := config.Agent{Cluster: "orders", Name: fmt.Sprintf("aw-%d", first+i), Store: "etcd", Presence: true}
		where := storeConfig{Store: "etcd", Cluster: c.Cluster, Agents: true, Etcd: config.Etcd{Endpoints: []string{url}}}
		backend, err := openStore(where, zerolog.Nop())
		if err != nil {
			fail(err)
		}
		cfg := agentwatch.Defaults()
		cfg.Cluster, cfg.Host, cfg.Source, cfg.Presence, cfg.Log = c.Cluster, "h", backend, backend, zerolog.Nop()
		cfg.Dial = func(context.Context, string) error { return nil } // there is no controller: this is about the store
		cfg.Retries.Count, cfg.Probe.Interval = 0, 10*time.Second     // as docs/agents.md advises for fleets
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

// startFleet starts n members in a few processes.
func startFleet(t *testing.T, kind, url string, n, processes int) *fleet {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{seen: make(chan seen, 100)}
	var reading sync.WaitGroup
	for i := range processes {
		first, last := n*i/processes, n*(i+1)/processes
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Args = []string{"fleet-member", kind, strconv.Itoa(first), strconv.Itoa(last - first), url}
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

// TestFleetFollows measures how soon every agentwatch of a fleet has a new active: role key written → the start of the agent's
// process. Each has its own connections to one real etcd and is wired as the command wires it; the yardstick is as many bare
// watches of etcd's own library, in the same run. The members live in a few processes of their own, so that what is measured is the
// store's fan-out and what an agentwatch does, on as few processors as this machine has for all of them together.
//
// The short form is a small fleet and a generous bound. With TANIST_LONG, 5000 (or TANIST_FLEET) must have it within 600 ms p99.
func TestFleetFollows(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	long := os.Getenv("TANIST_LONG") != ""
	n, rounds, settle, steady := 50, 2, 200*time.Millisecond, time.Second
	if long {
		n, rounds, settle, steady = 5000, 10, 12*time.Second, 20*time.Second
	}
	if v, err := strconv.Atoi(os.Getenv("TANIST_FLEET")); err == nil {
		n = v
	}
	processes := min(4, n)
	p99 := map[string]time.Duration{}
	for _, kind := range []string{fleetBare, fleetEach, fleetShared} {
		t.Run(kind, func(t *testing.T) {
			servers := etcdtest.Start(t, 1)
			url := servers.Endpoints()[0]
			ctl, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ctl.Close() }()
			term := election.Term(0)
			change := func() election.Instant {
				term++
				name := []string{"ctl-a", "ctl-b"}[term%2]
				a := election.Active{Controller: name, Term: term, State: election.StateServing, URL: "http://" + name + ".test:8080"}
				sent := election.BootClock()
				if _, err := ctl.Put(t.Context(), "/tanist/orders/active", string(a.Encode())); err != nil {
					t.Fatal(err)
				}
				return sent
			}
			change()
			processes := processes
			if kind == fleetShared {
				processes = 1
			}
			f := startFleet(t, kind, url, n, processes)
			began := time.Now()
			f.wait(t, term, 2*time.Minute)
			t.Logf("all come at once: all follow after %v", time.Since(began).Round(time.Millisecond))
			time.Sleep(settle)
			etcdPID := servers.PID(0)
			before, _ := used(t, f.pids()...)
			theirs, _ := used(t, etcdPID)
			var took, slowest []time.Duration
			for range rounds {
				time.Sleep(settle)
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
			p99[kind] = quantile(took, 0.99)
			t.Logf("%d × %s, load %s: role key written → followed: p50 %v, p99 %v, max %v; slowest of each change: p50 %v (n=%d)",
				n, kind, load(), quantile(took, 0.5), p99[kind], quantile(took, 1), quantile(slowest, 0.5), rounds)
			after, mem := used(t, f.pids()...)
			theirsAfter, etcdMem := used(t, etcdPID)
			t.Logf("processor time during the changes: %v here, %v in etcd, for %d changes; memory %d MiB here, %d MiB in etcd",
				after-before, theirsAfter-theirs, rounds, mem>>20, etcdMem>>20)
			time.Sleep(settle)
			since := election.BootClock()
			before, _ = used(t, f.pids()...)
			theirs, _ = used(t, etcdPID)
			time.Sleep(steady)
			passed := election.BootClock().Sub(since)
			after, _ = used(t, f.pids()...)
			theirsAfter, _ = used(t, etcdPID)
			t.Logf("steady state: etcd %.1f %% of a core, the fleet %.1f %%",
				100*float64(theirsAfter-theirs)/float64(passed), 100*float64(after-before)/float64(passed))
		})
	}
	if t.Failed() {
		return
	}
	if p99[fleetBare] > 0 {
		t.Logf("p99 of an agentwatch each: %.2f times that of bare watches", float64(p99[fleetEach])/float64(p99[fleetBare]))
	}
	bound := 10 * time.Second
	if long {
		bound = 600 * time.Millisecond
	}
	for _, kind := range []string{fleetEach, fleetShared} {
		if d, ok := p99[kind]; ok && d > bound {
			t.Errorf("%s: p99 %v is beyond %v", kind, d, bound)
		}
	}
}

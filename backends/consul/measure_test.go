package consul

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// runs returns how often a fault is tried: few times, or as often as a figure needs with
// TANIST_LONG=1.
func runs(few, long int) int {
	if os.Getenv("TANIST_LONG") == "1" {
		return long
	}
	return few
}

// span is a time in which a controller may have run.
type span struct {
	who      string
	term     election.Term
	from, to election.Instant // to: zero while it runs
	why      string
}

// journal is everything that ever ran.
type journal struct {
	mu    sync.Mutex
	spans []*span
}

func (j *journal) begin(who string, term election.Term) *span {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &span{who: who, term: term, from: election.BootClock()}
	j.spans = append(j.spans, s)
	return s
}

func (j *journal) end(s *span, at election.Instant, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.to, s.why = at, why
}

// overlaps returns the pairs of controllers that may have run at the same time.
func (j *journal) overlaps() (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := election.BootClock()
	for i, a := range j.spans {
		for _, b := range j.spans[i+1:] {
			endA, endB := a.to, b.to
			if endA == 0 {
				endA = now
			}
			if endB == 0 {
				endB = now
			}
			if from, to := max(a.from, b.from), min(endA, endB); from < to {
				found = append(found, fmt.Sprintf("%s term %d and %s term %d: %v", a.who, a.term, b.who, b.term, to.Sub(from)))
			}
		}
	}
	return found
}

// tightest returns the shortest time between the end of one controller and the start of the next.
func (j *journal) tightest() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	least := time.Duration(1 << 62)
	for i := 1; i < len(j.spans); i++ {
		if end := j.spans[i-1].to; end != 0 {
			least = min(least, j.spans[i].from.Sub(end))
		}
	}
	return least
}

func (j *journal) terms() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.spans)
}

// candidate is a host with a controller: a real process that does nothing.
type candidate struct {
	name, ip string
	agent    *consultest.Agent
	link     *electiontest.Proxy
	store    *Store
	journal  *journal
	presence *election.Presence
	serving  atomic.Uint64 // the term it serves
	pid      atomic.Int64  // of its controller
	ended    atomic.Int64  // the instant at which its last reign ended
	beats    atomic.Int64  // how many beats it has seen as a passive since then
	beat     election.Version
}

// yieldWait is how long a candidate leaves a vacancy to others after a reign.
const yieldWait = 500 * time.Millisecond

func (h *candidate) observe(s election.Status) {
	if s.Store == nil && s.Snapshot.Beat != h.beat {
		h.beat = s.Snapshot.Beat
		h.beats.Add(1)
	}
}

// settled reports whether h takes part again: it follows the beat, and is not holding off.
func (h *candidate) settled() bool {
	return h.beats.Load() > 3 && election.BootClock().Sub(election.Instant(h.ended.Load())) > yieldWait
}

// say makes the state of h known to the others, who leave a vacancy only to one that is ready.
func (h *candidate) say(state election.State) {
	name, incarnation := h.name, h.name+"-1"
	h.presence.Set("controllers/"+name, election.Controller{Name: name, Incarnation: incarnation, State: state}.Encode())
}

// world is two hosts, three servers, and the virtual URL.
type world struct {
	consul  *consultest.Cluster
	hosts   []*candidate
	journal *journal
	timing  election.Timing
}

func newWorld(t *testing.T, timing election.Timing) *world {
	t.Helper()
	c := locked(t, consultest.Options{Servers: 3, Clients: 2})
	token := granted(t, c, "policy-controller.hcl", "orders")
	w := &world{consul: c, journal: &journal{}, timing: timing}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
		for _, h := range w.hosts {
			h.store.Close()
		}
	})
	for i, agent := range c.Clients {
		h := &candidate{name: fmt.Sprintf("ctl-%c", 'a'+i), ip: neighbour(c, 201+i), agent: agent, journal: w.journal}
		h.link = electiontest.NewProxy(t, agent.HTTP())
		var err error
		h.store, err = Open(Config{
			Cluster: "orders", Address: "https://" + h.link.Addr(), Token: token, TLS: election.TrustFiles{CAFile: c.CAFile, ServerName: "localhost"},
			Log: zerolog.Nop(), LockDelay: timing.Validity, TTL: timing.TTL, Service: &Service{Name: "orders"},
		})
		must(t, err)
		must(t, timing.Validate(h.store.Traits()))
		w.hosts = append(w.hosts, h)
		h.presence = &election.Presence{
			Store: h.store, TTL: timing.TTL, Names: []string{"controllers/" + h.name},
			Owner: func([]byte) election.Owner { return election.Owner{Ours: true} },
		}
		h.say(election.StateReady)
		running.Go(func() { _ = h.presence.Run(ctx) })
		elector := &election.Elector{
			Backend: h.store, Timing: timing, Clock: election.BootClock, YieldWait: yieldWait,
			Self:    func() election.Self { return election.Self{Name: h.name, Incarnation: h.name + "-1", Fit: true} },
			Record:  func() election.Active { return election.Active{URL: "http://" + h.ip + ":8080"} },
			Lead:    func(ctx context.Context, t *election.Tenure) election.End { return h.lead(ctx, timing, t) },
			Observe: h.observe,
		}
		running.Go(func() { elector.Run(ctx) })
		running.Go(func() { _ = h.store.Announcer().Run(ctx) })
	}
	return w
}

// lead runs the controller for one reign. When the store is away the controller uses the whole of
// its validity, and what a kill may take after it, before the lease is given back: as the slowest
// that the guard allows.
func (h *candidate) lead(ctx context.Context, timing election.Timing, tenure *election.Tenure) election.End {
	for election.BootClock() < tenure.NotBefore() && ctx.Err() == nil {
		nap(ctx, tenure.NotBefore().Sub(election.BootClock()))
	}
	ended := func() string { return context.Cause(ctx).Error() }
	if ctx.Err() != nil {
		return election.End{Reason: ended()}
	}
	var last atomic.Int64
	tenure.OnExtend(func(deadline election.Instant) { last.Store(int64(deadline.Add(timing.KillMargin()))) })
	defer tenure.OnExtend(nil)
	h.say(election.StateServing)
	defer h.say(election.StateReady)
	s := h.journal.begin(h.name, tenure.Term)
	controller := exec.Command("sleep", "100000")
	controller.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := controller.Start(); err != nil {
		h.journal.end(s, election.BootClock(), err.Error())
		return election.End{Reason: err.Error(), Yield: true}
	}
	h.pid.Store(int64(controller.Process.Pid))
	exited := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() { _ = controller.Wait(); close(exited) })
	defer waiting.Wait()
	defer func() { _ = controller.Process.Kill() }()

	for ctx.Err() == nil {
		err := tenure.Publish(ctx, election.StateServing)
		if err == nil {
			h.serving.Store(uint64(tenure.Term))
			break
		}
		if errors.Is(err, election.ErrLost) {
			break
		}
	}
	defer func() {
		h.beats.Store(0)
		h.ended.Store(int64(election.BootClock()))
		h.serving.Store(0)
	}()
	select {
	case <-exited:
		h.journal.end(s, election.BootClock(), "killed")
		return election.End{Reason: "the controller was killed", Yield: true}
	case <-ctx.Done():
	}
	at := election.BootClock()
	var ending *election.Ending
	if errors.As(context.Cause(ctx), &ending) && ending.Code == election.CodeStoreAway {
		at = max(at, election.Instant(last.Load()))
		for now := at - 1; now < at; now = election.BootClock() {
			nap(context.WithoutCancel(ctx), at.Sub(now))
		}
	}
	h.journal.end(s, at, ended())
	return election.End{Reason: ended(), Yield: true}
}

// active returns the host that serves, and the other one, once DNS says so too and the other one is
// ready to take over.
func (w *world) active(t *testing.T) (active, passive *candidate) {
	t.Helper()
	for end := time.Now().Add(120 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		a, b := w.hosts[0], w.hosts[1]
		if b.serving.Load() > a.serving.Load() {
			a, b = b, a
		}
		if a.serving.Load() == 0 || b.serving.Load() != 0 || !b.settled() || !w.ready(t, b) {
			continue
		}
		if got, err := w.dig(t, a.ip); err == nil && got {
			return a, b
		}
	}
	t.Fatalf("nobody serves: %+v", w.journal.spans)
	return nil, nil
}

// ready reports whether the others can read that h is ready.
func (w *world) ready(t *testing.T, h *candidate) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	snap, err := h.store.Read(ctx)
	return err == nil && slices.ContainsFunc(snap.Controllers, func(c election.Controller) bool { return c.Name == h.name && c.Fit() })
}

func (w *world) dig(t *testing.T, ip string) (bool, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	got, err := dig(ctx, w.consul.Servers[0].DNS(), "orders.service.consul", dnsmessage.TypeA)
	return err == nil && slices.Equal(got.addrs, []string{ip}), err
}

// until returns how long it takes until DNS answers with a host, asking every 2 ms.
func (w *world) until(t *testing.T, h *candidate, since time.Time, most time.Duration) time.Duration {
	t.Helper()
	for time.Since(since) < most {
		if ok, err := w.dig(t, h.ip); err == nil && ok {
			return time.Since(since)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("%s is not served within %v; %d reigns", h.name, most, w.journal.terms())
	return 0
}

func (w *world) noOverlap(t *testing.T) {
	t.Helper()
	for _, o := range w.journal.overlaps() {
		t.Errorf("two at once: %s", o)
	}
}

// figures says what was measured.
func figures(t *testing.T, what string, all []time.Duration) (median time.Duration) {
	t.Helper()
	slices.Sort(all)
	median = all[len(all)/2]
	t.Logf("%s: n=%d min %v median %v max %v", what, len(all), all[0].Round(time.Millisecond), median.Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
	return median
}

// tooLate reports whether a time that people wait for is beyond the goal, which is judged on a
// quiet machine: in the short form it may be ten times that.
func tooLate(took, goal time.Duration) bool {
	return took > goal*time.Duration(runs(10, 1))
}

// TestControllerKilled: kill -9 of the controller until the other one serves, by DNS.
func TestControllerKilled(t *testing.T) {
	w := newWorld(t, DefaultTiming())
	var all []time.Duration
	for range runs(3, 20) {
		a, b := w.active(t)
		killed := time.Now()
		must(t, syscall.Kill(int(a.pid.Load()), syscall.SIGKILL))
		all = append(all, w.until(t, b, killed, 60*time.Second))
	}
	if m := figures(t, "kill -9 of the controller to the other one in DNS", all); tooLate(m, 250*time.Millisecond) {
		t.Errorf("median %v", m)
	}
	w.noOverlap(t)
}

// printed returns the bound of a host crash that `tanist config check` prints.
func printed(t *testing.T, timing election.Timing, store election.Traits) time.Duration {
	t.Helper()
	for _, b := range timing.Bounds(store, election.Health{}) {
		if strings.HasPrefix(b.Fault, "host crash") {
			return b.Max
		}
	}
	t.Fatal("no bound is printed for a host crash")
	return 0
}

// TestHostCrash: the host, its agent and its link are gone at once.
func TestHostCrash(t *testing.T) {
	for _, test := range []struct {
		timing election.Timing
		few    int
	}{{FastTiming(), 3}, {DefaultTiming(), 1}} {
		t.Run(test.timing.Profile, func(t *testing.T) {
			w := newWorld(t, test.timing)
			var all []time.Duration
			for range runs(test.few, 20) {
				a, b := w.active(t)
				crashed := time.Now()
				a.link.Hold()
				must(t, a.agent.Kill())
				all = append(all, w.until(t, b, crashed, 60*time.Second))
				must(t, a.agent.Start())
				a.link.Cut()
				a.link.Heal()
				must(t, w.consul.Wait(t.Context()))
			}
			m := figures(t, "host crash to the other one in DNS", all)
			if test.timing.Profile == FastTiming().Profile && tooLate(m, 1200*time.Millisecond) {
				t.Errorf("median %v", m)
			}
			bound := printed(t, test.timing, w.hosts[0].store.Traits())
			t.Logf("printed bound: %v", bound)
			if longest := all[len(all)-1]; tooLate(longest, bound) {
				t.Errorf("%v, which is beyond the printed bound %v", longest, bound)
			}
			t.Logf("between the end of one validity and the start of the next controller: at least %v", w.journal.tightest())
			w.noOverlap(t)
		})
	}
	t.Run("consul lock", func(t *testing.T) {
		var all []time.Duration
		for range runs(1, 3) {
			c := consultest.Start(t, consultest.Options{Servers: 3, Clients: 2, Config: deployed(t, "agent.hcl")})
			first := locker(t, c, c.Clients[0].URL(), "one")
			first.wait(t, 60*time.Second)
			second := locker(t, c, c.Clients[1].URL(), "two")
			crashed := time.Now()
			first.kill()
			must(t, c.Clients[0].Kill())
			second.wait(t, 120*time.Second)
			all = append(all, time.Since(crashed))
		}
		figures(t, "consul lock: host crash to the other one started", all)
	})
}

// contender is a `consul lock`.
type contender struct {
	out *output
	cmd *exec.Cmd
}

func locker(t *testing.T, c *consultest.Cluster, address, name string) *contender {
	t.Helper()
	k := &contender{out: &output{}}
	k.cmd = exec.CommandContext(t.Context(), c.Binary(), "lock", "-http-addr="+address, "-verbose", "-name="+name, "lab", "echo started; sleep 100000")
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	k.cmd.Stdout, k.cmd.Stderr = k.out, k.out
	must(t, k.cmd.Start())
	var running sync.WaitGroup
	running.Go(func() { _ = k.cmd.Wait() })
	t.Cleanup(func() { k.kill(); running.Wait() })
	return k
}

// kill kills consul lock and what it started, as a crash of the host does.
func (k *contender) kill() { _ = syscall.Kill(-k.cmd.Process.Pid, syscall.SIGKILL) }

func (k *contender) started() bool {
	return slices.Contains(strings.Split(k.out.String(), "\n"), "started")
}

func (k *contender) wait(t *testing.T, most time.Duration) {
	t.Helper()
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if k.started() {
			return
		}
	}
	t.Fatalf("consul lock did not start its program within %v:\n%s", most, k.out.String())
}

// TestSilentLinkDrops: the link of the active silently drops everything; the host lives.
func TestSilentLinkDrops(t *testing.T) {
	for _, test := range []struct {
		timing    election.Timing
		few, long int
	}{{FastTiming(), 3, 100}, {DefaultTiming(), 1, 50}} {
		t.Run(test.timing.Profile, func(t *testing.T) {
			w := newWorld(t, test.timing)
			var all []time.Duration
			for range runs(test.few, test.long) {
				a, b := w.active(t)
				dropped := time.Now()
				a.link.Hold()
				all = append(all, w.until(t, b, dropped, 60*time.Second))
				a.link.Heal()
			}
			figures(t, "silent link drop to the other one in DNS", all)
			t.Logf("between the end of one validity and the start of the next controller: at least %v", w.journal.tightest())
			w.noOverlap(t)
		})
	}
	t.Run("consul lock", func(t *testing.T) {
		if runs(0, 1) == 0 {
			t.Skip("takes minutes; set TANIST_LONG=1")
		}
		c := consultest.Start(t, consultest.Options{Servers: 3, Clients: 2, Config: deployed(t, "agent.hcl")})
		link := electiontest.NewProxy(t, c.Clients[0].HTTP())
		first := locker(t, c, "http://"+link.Addr(), "one")
		first.wait(t, 60*time.Second)
		second := locker(t, c, c.Clients[1].URL(), "two")
		dropped := time.Now()
		link.Hold()
		second.wait(t, 180*time.Second)
		both := time.Now()
		const watched = 60 * time.Second
		for time.Since(both) < watched && syscall.Kill(first.cmd.Process.Pid, 0) == nil {
			time.Sleep(50 * time.Millisecond)
		}
		t.Logf("consul lock: the second program started %v after the drop; after that the first one ran on for %v (watched for %v)",
			both.Sub(dropped).Round(time.Millisecond), time.Since(both).Round(time.Millisecond), watched)
	})
}

// TestConsulLeaderKilled: the default profile outlives it.
func TestConsulLeaderKilled(t *testing.T) {
	w := newWorld(t, DefaultTiming())
	a, passive := w.active(t)
	var all []time.Duration
	for range runs(1, 20) {
		leader, err := w.consul.Leader(t.Context())
		must(t, err)
		must(t, leader.Kill())
		killed := time.Now()
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := passive.store.Read(ctx)
			cancel()
			if err == nil {
				break
			}
			if time.Since(killed) > 60*time.Second {
				t.Fatal(err)
			}
		}
		gap := time.Since(killed)
		all = append(all, gap)
		must(t, leader.Start())
		must(t, w.consul.Wait(t.Context()))
		// Each death is one of its own: the next comes after the holder has renewed.
		passive.beats.Store(0)
		for end := time.Now().Add(60 * time.Second); !passive.settled() && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if terms := w.journal.terms(); terms != 1 || a.serving.Load() != 1 {
			for _, s := range w.journal.spans {
				t.Logf("%s term %d ended: %s", s.who, s.term, s.why)
			}
			// An election that takes longer than the profile allows for may cost the lease; it is
			// the machine's, and ends the run.
			if gap <= election.ConsulTraits().LeaderGap {
				t.Errorf("%d reigns, want 1, after an election of %v", terms, gap)
			} else if len(all) < runs(1, 20) {
				t.Errorf("only %d elections were within the %v that the profile allows for; the last took %v", len(all)-1, election.ConsulTraits().LeaderGap, gap)
			} else {
				t.Logf("the election took %v, more than the %v that the profile allows for, and cost the lease", gap, election.ConsulTraits().LeaderGap)
			}
			break
		}
	}
	figures(t, "Consul's leader killed to the first linearizable read", all)
	w.noOverlap(t)
}

// TestLocalAgentRestarts: the agent of the active's host is stopped gracefully and started again.
func TestLocalAgentRestarts(t *testing.T) {
	w := newWorld(t, DefaultTiming())
	a, _ := w.active(t)
	stopped := time.Now()
	must(t, a.agent.Stop())
	gone := time.Since(stopped)
	must(t, a.agent.Start())
	must(t, w.consul.Wait(t.Context()))
	away := time.Since(stopped)
	t.Logf("the agent took %v to leave and was back %v after it was told to stop", gone, away)
	time.Sleep(w.timing.Silence + time.Second) // by then everybody has drawn his conclusions
	switch kept := w.journal.terms() == 1 && a.serving.Load() == 1; {
	case away < w.timing.Validity-w.timing.StopBudget-w.timing.RenewEvery && !kept:
		t.Errorf("the agent was back after %v, and there were %d reigns: %+v", away, w.journal.terms(), w.journal.spans[0])
	default:
		t.Logf("kept: %v", kept)
	}
	w.noOverlap(t)

	// Away for longer than the validity: the other one takes over, and never both.
	a, b := w.active(t)
	stopped = time.Now()
	must(t, a.agent.Stop())
	t.Logf("away for good: the other one serves after %v", w.until(t, b, stopped, 60*time.Second).Round(time.Millisecond))
	must(t, a.agent.Start())
	w.noOverlap(t)
}

// BenchmarkRenew is what a renewal costs: one session renewal and one write of the beat, through a
// client agent.
func BenchmarkRenew(b *testing.B) {
	c := consultest.Start(b, consultest.Options{Servers: 3, Clients: 1})
	s, err := Open(Config{Cluster: "orders", Address: c.Clients[0].URL()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	lease, err := s.Grant(b.Context(), time.Minute)
	if err == nil {
		err = s.Claim(b.Context(), claimOf(election.Snapshot{}, lease, election.Active{Controller: "ctl-a", Term: 1}))
	}
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := renewed(b.Context(), s, lease, true); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandOver is a release, the next claim and its publication.
func BenchmarkHandOver(b *testing.B) {
	c := consultest.Start(b, consultest.Options{Servers: 3, Clients: 1})
	s, err := Open(Config{Cluster: "orders", Address: c.Clients[0].URL(), LockDelay: time.Second, Service: &Service{Name: "orders"}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var lease election.LeaseID
	for b.Loop() {
		snap, err := s.Read(b.Context())
		if err == nil && lease != "" {
			if err = s.Release(b.Context(), election.Release{Lease: lease, Breadcrumb: snap.Breadcrumb}); err == nil {
				snap, err = s.Read(b.Context())
			}
		}
		if err == nil {
			lease, err = s.Grant(b.Context(), time.Minute)
		}
		a := election.Active{Controller: "ctl-a", Term: snap.Breadcrumb.Term + 1, State: election.StateServing, URL: "http://127.0.0.1:8080"}
		if err == nil {
			err = s.Claim(b.Context(), claimOf(snap, lease, a))
		}
		if err == nil {
			err = s.Publish(b.Context(), lease, a)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

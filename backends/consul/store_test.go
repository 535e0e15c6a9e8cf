package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// patience bounds calls that must succeed, and waits for something that must happen, on a loaded
// machine.
const patience = time.Minute

// quickTTL makes sessions short enough to test their end. The doubling of the TTL remains.
const quickTTL = `session_ttl_min = "1s"`

var clusters atomic.Int64

// renewed renews a reign once.
func renewed(ctx context.Context, s *Store, lease election.LeaseID, beat bool) error {
	_, err := s.Hold(ctx, election.Hold{Lease: lease, Beat: beat})
	return err
}

func clusterName() string { return fmt.Sprintf("orders-%d", clusters.Add(1)) }

func logger(t *testing.T) zerolog.Logger {
	return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// agents returns the agents that hosts talk to: the client agents, if there are any.
func agents(c *consultest.Cluster) []*consultest.Agent {
	if len(c.Clients) > 0 {
		return c.Clients
	}
	return c.Servers
}

// harness is one Tanist cluster on Consul that other harnesses use too.
type harness struct {
	consul  *consultest.Cluster
	config  Config
	raw     *api.Client
	next    int
	mu      sync.Mutex
	stalled map[electiontest.Host]*staller
}

func newHarness(t *testing.T, c *consultest.Cluster, config Config) *harness {
	t.Helper()
	raw, err := c.Client(agents(c)[0])
	must(t, err)
	config.Cluster, config.Token, config.TLS.CAFile = clusterName(), c.Token, c.CAFile
	return &harness{consul: c, config: config, raw: raw, stalled: map[electiontest.Host]*staller{}}
}

func (h *harness) open(t *testing.T, address string) *Store {
	t.Helper()
	config, stall := h.config, &staller{}
	config.Address, config.Log = address, zerolog.Nop()
	s, err := open(config, func(next http.RoundTripper) http.RoundTripper {
		stall.next = next
		return stall
	})
	must(t, err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stalled[s] = stall
	return s
}

func (h *harness) Open(t *testing.T) electiontest.Host {
	list := agents(h.consul)
	h.next++
	return h.open(t, list[h.next%len(list)].URL())
}

func (h *harness) OpenLinked(t *testing.T) (electiontest.Host, electiontest.Link) {
	agent := agents(h.consul)[0]
	proxy := electiontest.NewProxy(t, agent.HTTP())
	return h.open(t, strings.Replace(agent.URL(), agent.HTTP(), proxy.Addr(), 1)), proxy
}

func (h *harness) Overwrite(t *testing.T, key, value string) {
	_, err := h.raw.KV().Put(&api.KVPair{Key: "tanist/" + h.config.Cluster + "/" + key, Value: []byte(value)}, nil)
	must(t, err)
}

// OverwriteKept is what every plain write does in Consul: the lock stays.
func (h *harness) OverwriteKept(t *testing.T, key, value string) { h.Overwrite(t, key, value) }

func (h *harness) Remove(t *testing.T, key string) {
	_, err := h.raw.KV().Delete("tanist/"+h.config.Cluster+"/"+key, nil)
	must(t, err)
}

// EndLease is what the servers do when a session has not been renewed: its keys are deleted, and
// its lock-delay begins.
func (h *harness) EndLease(t *testing.T, lease election.LeaseID) {
	_, err := h.raw.Session().Destroy(string(lease), nil)
	must(t, err)
}

// staller holds blocking queries until it is told to continue.
type staller struct {
	next http.RoundTripper
	mu   sync.Mutex
	gate chan struct{}
}

func (s *staller) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate != nil && r.URL.Query().Get("index") != "" {
		select {
		case <-gate:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	response, err := s.next.RoundTrip(r)
	s.mu.Lock()
	gate = s.gate
	s.mu.Unlock()
	if err == nil && gate != nil && r.URL.Query().Get("index") != "" {
		response.Body.Close()
		select {
		case <-gate:
		case <-r.Context().Done():
		}
		return nil, fmt.Errorf("held a reply: %w", context.Cause(r.Context()))
	}
	return response, err
}

func (h *harness) StallWatch(_ *testing.T, host electiontest.Host) {
	h.mu.Lock()
	s := h.stalled[host]
	h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = make(chan struct{})
}

func (h *harness) ResumeWatch(_ *testing.T, host electiontest.Host) {
	h.mu.Lock()
	s := h.stalled[host]
	h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.gate)
	s.gate = nil
}

// restartable is a harness that owns its Consul.
type restartable struct{ *harness }

func (h restartable) Stop(t *testing.T) {
	for _, a := range h.consul.Servers {
		must(t, a.Kill())
	}
}

func (h restartable) Start(t *testing.T) {
	for _, a := range h.consul.Servers {
		must(t, a.Start())
	}
	must(t, h.consul.Wait(t.Context()))
}

func (h restartable) ChangeLeader(t *testing.T) {
	if len(h.consul.Servers) < 3 {
		t.Skip("NOT TESTED: with one server there is nobody to take over")
	}
	leader, err := h.consul.Leader(t.Context())
	must(t, err)
	must(t, leader.Kill())
	t.Cleanup(func() {
		must(t, leader.Start())
		must(t, h.consul.Wait(context.WithoutCancel(t.Context())))
	})
}

// TestContractOneServer: every obligation of a store, on a real Consul.
func TestContractOneServer(t *testing.T) {
	c := consultest.Start(t, consultest.Options{Config: quickTTL})
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness {
		return restartable{newHarness(t, c, Config{MinTTL: time.Second, LockDelay: time.Second})}
	})
}

// TestContractThreeServers: the same with three servers, through the client agents of two hosts,
// and without a lock-delay.
func TestContractThreeServers(t *testing.T) {
	c := consultest.Start(t, consultest.Options{Servers: 3, Clients: 2, Config: quickTTL})
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness {
		return restartable{newHarness(t, c, Config{MinTTL: time.Second})}
	})
}

// holder is a store with the lease.
func holder(t *testing.T, config Config, controller string, ttl time.Duration) (*Store, election.LeaseID, election.Active) {
	t.Helper()
	s, err := Open(config)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	snap, err := s.Read(t.Context())
	must(t, err)
	lease, err := s.Grant(t.Context(), ttl)
	must(t, err)
	a := election.Active{
		Controller: controller, Term: snap.Breadcrumb.Term + 1, State: election.StateStarting, URL: "http://127.0.0.1:8080", Incarnation: controller + "-1",
	}
	must(t, s.Claim(t.Context(), claimOf(snap, lease, a)))
	return s, lease, a
}

func claimOf(snap election.Snapshot, lease election.LeaseID, a election.Active) election.Claim {
	return election.Claim{
		Lease: lease, Active: a, TermVersion: snap.TermVersion, Beat: true, Previous: snap.Breadcrumb.Controller,
		Breadcrumb: election.Breadcrumb{Term: a.Term, Controller: a.Controller, Incarnation: a.Incarnation, Validity: time.Second},
	}
}

// TestLockDelayKeepsClaimsOut: after a session ended by itself or by an operator nobody can claim
// for the validity, the watches say when they can, and after a release there is no delay.
func TestLockDelayKeepsClaimsOut(t *testing.T) {
	t.Parallel()
	const delay = 1500 * time.Millisecond
	c := consultest.Start(t, consultest.Options{Config: quickTTL})
	config := Config{Cluster: "orders", Address: c.Servers[0].URL(), MinTTL: time.Second, LockDelay: delay, Log: logger(t)}
	_, lease, _ := holder(t, config, "ctl-a", 10*time.Minute)
	b, err := Open(config)
	must(t, err)
	defer b.Close()
	raw, err := c.Client(c.Servers[0])
	must(t, err)

	ended := time.Now()
	_, err = raw.Session().Destroy(string(lease), nil) // an operator's
	must(t, err)
	hints := b.Watch(t.Context())
	attempts := 0
	for {
		snap, err := b.Read(t.Context())
		must(t, err)
		if !snap.Vacant() {
			t.Fatalf("the role key outlived its session: %+v", snap)
		}
		fresh, err := b.Grant(t.Context(), 10*time.Minute)
		must(t, err)
		attempts++
		asked := time.Now()
		err = b.Claim(t.Context(), claimOf(snap, fresh, election.Active{Controller: "ctl-b", Term: snap.Breadcrumb.Term + 1, Incarnation: "ctl-b-1"}))
		if err == nil {
			if took := time.Since(ended); took < delay {
				t.Errorf("a claim succeeded %v after the end of the session, within the lock-delay of %v", took, delay)
			}
			t.Logf("claimed %v after the end of the session, attempt %d", asked.Sub(ended), attempts)
			lease = fresh
			break
		}
		if time.Since(ended) > delay+patience {
			t.Fatalf("no claim succeeded: %v", err)
		}
		must(t, b.Revoke(t.Context(), fresh))
		select {
		case <-hints:
		case <-time.After(delay + patience):
			t.Fatal("no hint at the end of the lock-delay")
		}
	}

	must(t, b.Release(t.Context(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: 2, Controller: "ctl-b", Clean: true}}))
	released := time.Now()
	_, lease, _ = holder(t, config, "ctl-a", 10*time.Minute)
	t.Logf("claimed %v after a release", time.Since(released))
	// Neither does a lease that is revoked leave a delay behind.
	must(t, b.Revoke(t.Context(), lease))
	holder(t, config, "ctl-b", 10*time.Minute)
}

// TestSessionIsBoundToNothing: no health check and no agent's catalog entry can end it.
func TestSessionIsBoundToNothing(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{Clients: 1})
	config := Config{Cluster: "orders", Address: c.Clients[0].URL(), LockDelay: 8 * time.Second, Log: logger(t)}
	s, lease, _ := holder(t, config, "ctl-a", 5*time.Minute)
	raw, err := c.Client(c.Servers[0])
	must(t, err)
	session, _, err := raw.Session().Info(string(lease), nil)
	must(t, err)
	if len(session.NodeChecks)+len(session.ServiceChecks)+len(session.Checks) != 0 || session.Node != "tanist-orders" ||
		session.Behavior != "delete" || session.TTL != "5m0s" || session.LockDelay != 8*time.Second {
		t.Errorf("the session is %+v", session)
	}
	// The agent of the host is stopped gracefully: its own entry goes, the lease does not.
	must(t, c.Clients[0].Stop())
	for left := false; !left; time.Sleep(50 * time.Millisecond) {
		members, err := raw.Agent().Members(false)
		must(t, err)
		for _, m := range members {
			left = left || (m.Name == "host-1" && m.Status == 3) // serf's "left"
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := renewed(ctx, s, lease, true); err == nil {
		t.Error("renewed through an agent that is stopped")
	}
	must(t, c.Clients[0].Start())
	must(t, c.Wait(t.Context()))
	must(t, renewed(t.Context(), s, lease, true))
}

// TestStoryOfAKeyPrefix: what an operator sees of a reign with Consul's own means is plain words.
func TestStoryOfAKeyPrefix(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	config := Config{Cluster: "orders", Address: c.Servers[0].URL(), Log: logger(t)}
	s, lease, a := holder(t, config, "ctl-a", 10*time.Minute)
	a.State = election.StateServing
	must(t, s.Publish(t.Context(), lease, a))
	raw, err := c.Client(c.Servers[0])
	must(t, err)
	pairs, _, err := raw.KV().List("tanist/orders/", nil)
	must(t, err)
	got := map[string]string{}
	for _, p := range pairs {
		got[p.Key] = string(p.Value)
	}
	if got["tanist/orders/role/ctl-a"] != "active" || got["tanist/orders/url"] != a.URL || !bytes.Equal([]byte(got["tanist/orders/active"]), a.Encode()) {
		t.Errorf("the keys are %q", got)
	}
}

// late holds one transaction that mentions a word, answers its caller with an error, and delivers
// it when told.
type late struct {
	next http.RoundTripper
	word string

	mu        sync.Mutex
	held      func()
	delivered chan error
}

func (l *late) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.word == "" || r.URL.Path != "/v1/txn" {
		return l.next.RoundTrip(r)
	}
	body, err := r.GetBody()
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(body)
	if err != nil || !bytes.Contains(content, []byte(l.word)) {
		return l.next.RoundTrip(r)
	}
	l.word = ""
	again := r.Clone(context.Background())
	again.Body = io.NopCloser(bytes.NewReader(content))
	l.held = func() {
		response, err := l.next.RoundTrip(again)
		if err == nil {
			response.Body.Close()
		}
		l.delivered <- err
	}
	return nil, errors.New("the reply got lost")
}

// TestLatePublicationUndoesNothing: a publication that the network delivers after a later one is
// refused.
func TestLatePublicationUndoesNothing(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	l := &late{delivered: make(chan error, 1)}
	s, err := open(Config{Cluster: "orders", Address: c.Servers[0].URL(), Log: logger(t)}, func(next http.RoundTripper) http.RoundTripper {
		l.next = next
		return l
	})
	must(t, err)
	defer s.Close()
	lease, err := s.Grant(t.Context(), 10*time.Minute)
	must(t, err)
	a := election.Active{Controller: "ctl-a", Term: 1, State: election.StateStarting, URL: "http://127.0.0.1:8080"}
	must(t, s.Claim(t.Context(), claimOf(election.Snapshot{}, lease, a)))
	l.mu.Lock()
	l.word = "role/ctl-a"
	l.mu.Unlock()
	a.State = election.StateServing
	if err := s.Publish(t.Context(), lease, a); err == nil || errors.Is(err, election.ErrLost) {
		t.Fatalf("publication without a reply: %v", err)
	}
	a.State = election.StateStopping
	must(t, s.Publish(t.Context(), lease, a))
	l.held()
	must(t, <-l.delivered)
	snap, err := s.Read(t.Context())
	must(t, err)
	if snap.Active == nil || snap.Active.State != election.StateStopping {
		t.Errorf("a late publication made the role key %+v", snap.Active)
	}
}

// TestIndexThatGoesBackwards: the index of a restored store is lower, and no query spins.
func TestIndexThatGoesBackwards(t *testing.T) {
	for _, c := range []struct{ index, got, want uint64 }{{0, 0, 1}, {0, 7, 7}, {7, 7, 7}, {7, 9, 9}, {9, 7, 0}, {9, 0, 0}} {
		if next := follows(c.index, c.got); next != c.want {
			t.Errorf("after waiting for %d and getting %d the next is %d, want %d", c.index, c.got, next, c.want)
		}
	}
}

// TestTimings: the profiles hold against what the store guarantees, and what they guarantee is told
// truthfully.
func TestTimings(t *testing.T) {
	s, err := Open(Config{Cluster: "orders"})
	must(t, err)
	defer s.Close()
	for _, timing := range []election.Timing{DefaultTiming(), FastTiming()} {
		if err := timing.Validate(s.Traits()); err != nil {
			t.Errorf("%s: %v", timing.Profile, err)
		}
		for _, b := range timing.Bounds(s.Traits(), election.Health{Interval: time.Second, Timeout: 800 * time.Millisecond, Fall: 3, StopTimeout: 10 * time.Second, KillTimeout: 3 * time.Second}) {
			t.Logf("%s: %s: %v (%s)", timing.Profile, b.Fault, b.Max, b.Parts)
		}
	}
	without := DefaultTiming()
	without.Beat = false
	if err := without.Validate(s.Traits()); err != nil {
		t.Errorf("the default profile without a beat: %v", err)
	}
	etcd, err := election.Profile(election.ProfileDefault)
	must(t, err)
	if etcd.Validate(s.Traits()) == nil {
		t.Error("etcd's default profile was accepted: its ttl is below what Consul can do")
	}
}

// TestBadConfiguration: every mistake is told at once, and what to do.
func TestBadConfiguration(t *testing.T) {
	for name, c := range map[string]Config{
		"no cluster":          {},
		"slash":               {Cluster: "a/b"},
		"no scheme":           {Cluster: "a", Address: "127.0.0.1:8500"},
		"unix without a path": {Cluster: "a", Address: "unix://"},
		"tls without":         {Cluster: "a", Address: "http://127.0.0.1:8500", TLS: election.TrustFiles{CAFile: "ca.pem"}},
		"no such ca":          {Cluster: "a", Address: "https://127.0.0.1:8501", TLS: election.TrustFiles{CAFile: "/does/not/exist"}},
		"no such token":       {Cluster: "a", TokenFile: "/does/not/exist"},
		"long delay":          {Cluster: "a", LockDelay: time.Hour},
		"bad service":         {Cluster: "a", Service: &Service{Name: "a.b"}},
		"certificate only":    {Cluster: "a", Address: "https://127.0.0.1:8501", TLS: election.TrustFiles{CertFile: "c.pem"}},
	} {
		if s, err := Open(c); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestTakeoversGrowNothing(t *testing.T) {
	h := newHarness(t, consultest.Start(t, consultest.Options{Config: quickTTL}), Config{MinTTL: time.Second})
	electiontest.TakeoversGrowNothing(t, func() electiontest.Host { return h.Open(t) })
}

// TestHeirNeedNotLookBeforeItPublishes: who was handed the reign, and has read it, publishes in one
// request.
func TestHeirNeedNotLookBeforeItPublishes(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{Config: quickTTL})
	h := newHarness(t, c, Config{MinTTL: time.Second})
	a, b := h.open(t, c.Servers[0].URL()), h.open(t, c.Servers[0].URL())
	electiontest.HeirNeedNotLook(t, a, b, func(ctx context.Context, lease election.LeaseID) (election.Version, error) {
		return b.current(ctx, lease, false)
	})
}

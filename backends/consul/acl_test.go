package consul

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// locked starts a Consul with default deny, TLS, and the agents' policy of deploy/consul.
func locked(t *testing.T, o consultest.Options) *consultest.Cluster {
	t.Helper()
	o.ACL, o.TLS, o.Config = true, true, o.Config+"\n"+deployed(t, "agent.hcl")
	return consultest.Start(t, o)
}

// granted returns a token with a policy of deploy/consul, for a cluster.
func granted(t *testing.T, c *consultest.Cluster, policy, cluster string) string {
	t.Helper()
	token, err := c.Grant(t.Context(), strings.TrimSuffix(policy, ".hcl")+"-"+cluster, strings.ReplaceAll(deployed(t, policy), "orders", cluster))
	must(t, err)
	return token
}

// TestContractWithDefaultDeny: the whole contract with nothing but the controller's policy, over
// TLS.
func TestContractWithDefaultDeny(t *testing.T) {
	c := locked(t, consultest.Options{Clients: 1, Config: quickTTL})
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness {
		h := newHarness(t, c, Config{MinTTL: time.Second, LockDelay: time.Second})
		h.config.Token = granted(t, c, "policy-controller.hcl", h.config.Cluster)
		h.config.TLS.ServerName = "localhost" // the links of the suite are on another address than the agent
		return h
	})
}

// TestLeastPrivilege: who may do what with the policies of deploy/consul.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	c := locked(t, consultest.Options{Clients: 1})
	config := Config{
		Cluster: "orders", Address: c.Clients[0].URL(), TLS: election.TrustFiles{CAFile: c.CAFile}, Log: logger(t),
		LockDelay: time.Second, Service: &Service{Name: "orders", Connect: true},
	}
	config.TokenFile = t.TempDir() + "/token"
	must(t, os.WriteFile(config.TokenFile, []byte(granted(t, c, "policy-controller.hcl", "orders")+"\n"), 0o600))
	a, lease, record := holder(t, config, "ctl-a", 10*time.Minute)
	record.State, record.URL = election.StateServing, "http://127.0.0.2:8081"
	must(t, a.Publish(t.Context(), lease, record))
	must(t, a.Announcer().repair(t.Context()))
	if got := ask(t, c.Clients[0].DNS(), "orders.service.consul", dnsmessage.TypeA); got.String() != "127.0.0.2" {
		t.Errorf("DNS with default deny answers %s", got)
	}

	as := func(token string, agents bool) *Store {
		t.Helper()
		config := config
		config.TokenFile, config.Token, config.Service, config.Agents = "", token, nil, agents
		s, err := Open(config)
		must(t, err)
		t.Cleanup(func() { s.Close() })
		return s
	}
	ctx := t.Context()
	denied := func(who, what string, err error) {
		t.Helper()
		if !errors.Is(err, election.ErrDenied) {
			t.Errorf("%s: %s: %v, want ErrDenied", who, what, err)
		}
	}
	intruder := func(who string, s *Store) {
		t.Helper()
		snap, err := s.Read(ctx)
		must(t, err)
		denied(who, "write of the role key", s.Put(ctx, election.Put{Key: "active", Value: record.Encode()}))
		denied(who, "deletion of the role key", s.Delete(ctx, "active", 0))
		denied(who, "write of the url", s.Put(ctx, election.Put{Key: "url", Value: []byte("http://mallory")}))
		denied(who, "write of the term", s.Put(ctx, election.Put{Key: "term", Value: []byte("9")}))
		denied(who, "write of a role word", s.Put(ctx, election.Put{Key: "role/ctl-b", Value: []byte("active")}))
		denied(who, "write of a controller's status", s.Put(ctx, election.Put{Key: "controllers/ctl-a", Value: []byte("{}")}))
		denied(who, "end of the lease", s.destroy(ctx, lease))
		denied(who, "publication", s.Publish(ctx, lease, record))
		denied(who, "release", s.Release(ctx, election.Release{Lease: lease, Breadcrumb: snap.Breadcrumb}))
		denied(who, "beat", renewed(ctx, s, lease, true))
		claim := claimOf(snap, lease, record)
		claim.Silent = snap.Beat
		denied(who, "claim", s.Claim(ctx, claim))
		raw, err := c.ClientWith(c.Clients[0], s.cfg.Token)
		must(t, err)
		_, err = raw.Catalog().Deregister(&api.CatalogDeregistration{Node: "tanist-orders", ServiceID: "orders"}, nil)
		denied(who, "deregistration", known(err))
	}

	agent := as(granted(t, c, "policy-agent.hcl", "orders"), true)
	presence, err := agent.Grant(ctx, 10*time.Minute)
	must(t, err)
	must(t, agent.Put(ctx, election.Put{Key: "agents/agt-1", Value: []byte("{}"), Lease: presence}))
	must(t, agent.Renew(ctx, presence))
	follow, stop := context.WithCancel(ctx)
	defer stop()
	if seen := <-agent.Follow(follow); seen.Err != nil || seen.Active == nil || *seen.Active != record {
		t.Errorf("an agent sees %+v", seen)
	}
	intruder("agent", agent)
	denied("agent", "request", agent.Put(ctx, election.Put{Key: "request", Value: []byte("{}")}))
	denied("agent", "write of a tanist vip's status", agent.Put(ctx, election.Put{Key: election.VIPKey("vip-1"), Value: []byte("{}")}))
	if _, err := as(agent.cfg.Token, false).Grant(ctx, 10*time.Minute); !errors.Is(err, election.ErrDenied) {
		t.Errorf("an agent's token got a session on the controllers' entry: %v", err)
	}
	must(t, agent.Revoke(ctx, presence))

	operator := as(granted(t, c, "policy-operator.hcl", "orders"), false)
	for _, key := range []string{"request", "pause", "standby", "dead"} {
		must(t, operator.Put(ctx, election.Put{Key: key, Value: []byte("{}")}))
		must(t, operator.Delete(ctx, key, 0))
	}
	intruder("operator", operator)

	proxy := as(granted(t, c, "policy-proxy.hcl", "orders"), true)
	if seen := <-proxy.Follow(follow); seen.Err != nil || seen.Active == nil || *seen.Active != record {
		t.Errorf("a proxy sees %+v", seen)
	}

	host := as(granted(t, c, "policy-vip.hcl", "orders"), true)
	presence, err = host.Grant(ctx, 10*time.Minute)
	must(t, err)
	must(t, host.Put(ctx, election.Put{Key: election.VIPKey("vip-1"), Value: []byte("{}"), Lease: presence}))
	must(t, host.Renew(ctx, presence))
	if own, err := host.Get(ctx, election.VIPKey("vip-1")); err != nil || own.Lease != presence {
		t.Errorf("tanist vip sees its own status as %+v, %v", own, err)
	}
	if seen := <-host.Follow(follow); seen.Err != nil || seen.Active == nil || *seen.Active != record {
		t.Errorf("tanist vip sees %+v", seen)
	}
	if snap, err := host.Read(ctx); err != nil || snap.Active == nil || *snap.Active != record {
		t.Errorf("tanist vip sees %+v, %v", snap.Active, err)
	}
	intruder("tanist vip", host)
	denied("tanist vip", "request", host.Put(ctx, election.Put{Key: "request", Value: []byte("{}")}))
	must(t, host.Revoke(ctx, presence))

	// Who asks an agent about itself needs no rights; only its version may be hidden.
	config.Others = []string{"https://127.0.0.1:1"}
	for token, version := range map[string]bool{c.Token: true, operator.cfg.Token: false} {
		agents := as(token, false).Agents(ctx)
		if len(agents) != 2 || agents[0].Err != nil || agents[0].Leader == "" || (agents[0].Version != "") != version || agents[1].Err == nil {
			t.Errorf("the agents say %+v", agents)
		}
	}
	config.Others = nil

	// What may not be read is not absent.
	for who, s := range map[string]*Store{"proxy": proxy, "nobody": as("", false), "unknown token": as("11111111-2222-3333-4444-555555555555", false)} {
		_, err := s.Read(ctx)
		denied(who, "read", err)
		if who == "proxy" {
			continue
		}
		if seen := <-s.Follow(follow); !errors.Is(seen.Err, election.ErrDenied) || seen.Active != nil {
			t.Errorf("%s sees %+v", who, seen)
		}
	}
	if snap, err := a.Read(ctx); err != nil || snap.ActiveLease != lease {
		t.Errorf("after all that the role key is bound to %q (%v), want %q", snap.ActiveLease, err, lease)
	}

	// A rotated token is picked up.
	must(t, os.WriteFile(config.TokenFile, []byte(agent.cfg.Token), 0o600))
	deadline := time.Now().Add(patience)
	for !errors.Is(renewed(ctx, a, lease, false), election.ErrDenied) {
		if time.Now().After(deadline) {
			t.Fatal("a changed token file was not read")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestTLSRefusesStrangers: a server whose certificate is of another authority is not talked to.
func TestTLSRefusesStrangers(t *testing.T) {
	t.Parallel()
	c := locked(t, consultest.Options{})
	for name, tls := range map[string]election.TrustFiles{"system's authorities": {}, "another name": {CAFile: c.CAFile, ServerName: "elsewhere"}} {
		s, err := Open(Config{Cluster: "orders", Address: c.Servers[0].URL(), Token: c.Token, TLS: tls})
		must(t, err)
		if _, err := s.Read(t.Context()); err == nil || errors.Is(err, election.ErrDenied) || strings.Contains(err.Error(), c.Token) {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
}

package etcd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
)

// TestLeastPrivilege: who may do what with the very commands of deploy/etcd/README.md,
// authentication on.
func TestLeastPrivilege(t *testing.T) {
	c := etcdtest.Start(t, 1)
	h := newHarness(t, c)
	page, err := os.ReadFile(filepath.Join("..", "..", "deploy", "etcd", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	c.Ctl(t, "user", "add", "root:r00t")
	c.Ctl(t, "user", "grant-role", "root", "root")
	commands := 0
	for line := range strings.SplitSeq(string(page), "\n") {
		if args, ok := strings.CutPrefix(line, "etcdctl "); ok {
			args = strings.ReplaceAll(strings.ReplaceAll(args, "/tanist/orders/", h.key("")), "PASSWORD", "secret")
			c.Ctl(t, strings.Fields(args)...)
			commands++
		}
	}
	if commands < 10 {
		t.Fatalf("found %d commands", commands)
	}
	c.Ctl(t, "auth", "enable")
	open := func(user string) *Store {
		s, err := Open(Config{Cluster: h.cluster, Endpoints: c.Endpoints(), Username: user, Password: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	ctx := ctxFor(t, time.Minute)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	holder := open("tanist-orders")
	lease := hold(t, holder, time.Minute)
	record := election.Active{Controller: "ctl-a", Term: 1, State: election.StateServing, URL: "http://127.0.0.1:8080"}
	must(holder.Publish(ctx, lease, record))
	must(holder.Put(ctx, election.Put{Key: "controllers/ctl-a", Value: []byte(`{"name":"ctl-a","incarnation":"i"}`), Lease: lease}))

	denied := func(who, what string, err error) {
		t.Helper()
		if !errors.Is(err, election.ErrDenied) {
			t.Errorf("%s: %s: %v, want ErrDenied", who, what, err)
		}
	}
	intruder := func(who string, s *Store) {
		t.Helper()
		snap, err := s.Read(ctx)
		must(err)
		for _, key := range []string{"active", "url", "term", "beat", "role/ctl-b", "controllers/ctl-a", "request", "pause", "agents/agt-2", "agents/agt-11"} {
			denied(who, "write of "+key, s.Put(ctx, election.Put{Key: key, Value: []byte("{}")}))
			denied(who, "deletion of "+key, s.Delete(ctx, key, 0))
		}
		denied(who, "end of the lease", s.Revoke(ctx, lease))
		denied(who, "publication", s.Publish(ctx, lease, record))
		denied(who, "release", s.Release(ctx, election.Release{Lease: lease, Breadcrumb: snap.Breadcrumb}))
		mine, err := s.Grant(ctx, time.Minute)
		must(err)
		denied(who, "claim", s.Claim(ctx, election.Claim{Lease: mine, Active: record, Breadcrumb: snap.Breadcrumb, TermVersion: snap.TermVersion}))
		follow, stop := context.WithCancel(ctx)
		defer stop()
		if seen := <-s.Follow(follow); seen.Err != nil || seen.Active == nil || seen.Active.Term != record.Term || seen.Active.URL != record.URL {
			t.Errorf("%s sees %+v", who, seen)
		}
	}
	agent := open("orders-agt-1")
	presence, err := agent.Grant(ctx, time.Minute)
	must(err)
	absent := election.Version(0)
	must(agent.Put(ctx, election.Put{Key: "agents/agt-1", Value: []byte("{}"), Lease: presence, If: &absent}))
	must(agent.Renew(ctx, presence))
	intruder("an agentwatch", agent)
	must(agent.Revoke(ctx, presence))
	host := open("orders-vip-1")
	presence, err = host.Grant(ctx, time.Minute)
	must(err)
	must(host.Put(ctx, election.Put{Key: "vips/vip-1", Value: []byte("{}"), Lease: presence, If: &absent}))
	must(host.Renew(ctx, presence))
	intruder("tanist vip", host)
	denied("tanist vip", "write of another's status", host.Put(ctx, election.Put{Key: "vips/vip-2", Value: []byte("{}")}))
	must(host.Revoke(ctx, presence))
	proxy := open("orders-proxy")
	intruder("a proxy", proxy)
	denied("a proxy", "write of an agent's status", proxy.Put(ctx, election.Put{Key: "agents/agt-1", Value: []byte("{}")}))
	if snap, err := holder.Read(ctx); err != nil || snap.ActiveLease != lease {
		t.Errorf("after all that the role key is bound to %q (%v), want %q", snap.ActiveLease, err, lease)
	}
}

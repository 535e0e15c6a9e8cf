package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

var clusters atomic.Int64

// harness is one Tanist cluster on an etcd cluster that other harnesses use too.
type harness struct {
	etcd    *etcdtest.Cluster
	cluster string
	raw     *clientv3.Client
}

func newHarness(t *testing.T, c *etcdtest.Cluster) *harness {
	t.Helper()
	raw, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return &harness{etcd: c, cluster: fmt.Sprintf("orders-%d", clusters.Add(1)), raw: raw}
}

func (h *harness) open(t *testing.T, endpoints ...string) *Store {
	t.Helper()
	s, err := Open(Config{
		Cluster: h.cluster, Endpoints: endpoints, RereadEvery: 2 * time.Second,
		Log: zerolog.New(zerolog.NewTestWriter(t)).With().Timestamp().Logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (h *harness) Open(t *testing.T) electiontest.Host { return h.open(t, h.etcd.Endpoints()...) }

// links is the same fault on the way to every member.
type links []*electiontest.Proxy

func (l links) each(f func(*electiontest.Proxy)) {
	for _, p := range l {
		f(p)
	}
}

func (l links) Hold()        { l.each((*electiontest.Proxy).Hold) }
func (l links) HoldReplies() { l.each((*electiontest.Proxy).HoldReplies) }
func (l links) Cut()         { l.each((*electiontest.Proxy).Cut) }
func (l links) Heal()        { l.each((*electiontest.Proxy).Heal) }

func (h *harness) openLinked(t *testing.T) (*Store, links) {
	t.Helper()
	var l links
	var endpoints []string
	for i := range h.etcd.Len() {
		p := electiontest.NewProxy(t, h.etcd.Addr(i))
		l = append(l, p)
		endpoints = append(endpoints, "http://"+p.Addr())
	}
	return h.open(t, endpoints...), l
}

func (h *harness) OpenLinked(t *testing.T) (electiontest.Host, electiontest.Link) {
	s, l := h.openLinked(t)
	return s, l
}

func (h *harness) key(k string) string { return "/tanist/" + h.cluster + "/" + k }

func (h *harness) Overwrite(t *testing.T, key, value string) {
	if _, err := h.raw.Put(t.Context(), h.key(key), value); err != nil {
		t.Fatal(err)
	}
}

func (h *harness) OverwriteKept(t *testing.T, key, value string) {
	if _, err := h.raw.Put(t.Context(), h.key(key), value, clientv3.WithIgnoreLease()); err != nil {
		t.Fatal(err)
	}
}

func (h *harness) EndLease(t *testing.T, lease election.LeaseID) {
	id, err := leaseID(lease)
	if err == nil {
		_, err = h.raw.Revoke(t.Context(), id)
	}
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) { // a release ends it, too
		t.Fatal(err)
	}
}

func (h *harness) alarm(t *testing.T, action pb.AlarmRequest_AlarmAction) {
	t.Helper()
	maintenance := pb.NewMaintenanceClient(h.raw.ActiveConnection())
	status, err := h.raw.Status(t.Context(), h.etcd.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := maintenance.Alarm(t.Context(), &pb.AlarmRequest{Action: action, Alarm: pb.AlarmType_NOSPACE, MemberID: status.Header.MemberId}); err != nil {
		t.Fatal(err)
	}
}

func (h *harness) Fill(t *testing.T)  { h.alarm(t, pb.AlarmRequest_ACTIVATE) }
func (h *harness) Empty(t *testing.T) { h.alarm(t, pb.AlarmRequest_DEACTIVATE) }

func (h *harness) Remove(t *testing.T, key string) {
	if _, err := h.raw.Delete(t.Context(), h.key(key)); err != nil {
		t.Fatal(err)
	}
}

func (h *harness) Stop(t *testing.T) {
	for i := range h.etcd.Len() {
		h.etcd.Kill(t, i)
	}
}

func (h *harness) Start(t *testing.T) {
	for i := range h.etcd.Len() {
		h.etcd.Restart(t, i)
	}
	h.etcd.WaitHealthy(t)
}

// three adds the faults that need a majority to be left.
type three struct {
	*harness
	frozen int
}

func (h *three) ChangeLeader(t *testing.T) {
	i := h.etcd.Leader(t)
	h.etcd.Kill(t, i)
	t.Cleanup(func() {
		h.etcd.Restart(t, i)
		h.etcd.WaitHealthy(t)
	})
}

// StallWatch freezes the member that the host's watches are on. Its reads go to the others.
func (h *three) StallWatch(t *testing.T, host electiontest.Host) {
	s := host.(*Store)
	h.frozen = s.preferred().index
	h.etcd.Freeze(t, h.frozen)
	h.etcd.Leader(t) // it may have been the leader: wait for another
}

func (h *three) ResumeWatch(t *testing.T, _ electiontest.Host) {
	h.etcd.Thaw(t, h.frozen)
	h.etcd.WaitHealthy(t)
}

func TestContractOneMember(t *testing.T) {
	c := etcdtest.Start(t, 1)
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return newHarness(t, c) })
}

func TestContractThreeMembers(t *testing.T) {
	c := etcdtest.Start(t, 3)
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return &three{harness: newHarness(t, c)} })
}

// Debian 12 ships etcd 3.4.23. The product works with it, and warns.
func TestContractDebian(t *testing.T) {
	bin := etcdtest.Debian()
	if bin == "" {
		t.Skip("NOT TESTED: Debian's etcd-server is not installed")
	}
	c := etcdtest.Start(t, 1, etcdtest.WithBinary(bin))
	t.Run("Warning", func(t *testing.T) {
		s := newHarness(t, c).open(t, c.Endpoints()...)
		servers := s.Versions(t.Context())
		if servers[0].Err != nil {
			t.Fatal(servers[0].Err)
		}
		t.Logf("etcd %s", servers[0].Version)
		if needs(servers[0].Version) == "" {
			t.Skipf("NOT TESTED: etcd %s is not that old any more", servers[0].Version)
		}
		if got := s.Warning(t.Context()); !strings.Contains(got, "upgrade") {
			t.Errorf("warning about etcd %s: %q", servers[0].Version, got)
		}
	})
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return newHarness(t, c) })
}

// patience bounds calls that must succeed, and waits for something that must happen, on a loaded
// machine.
const patience = time.Minute

// await waits until holds reports true.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out after %v: %s", patience, what)
		}
	}
}

func ctxFor(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// renewed renews a reign once.
func renewed(ctx context.Context, s *Store, lease election.LeaseID, beat bool) error {
	_, err := s.Hold(ctx, election.Hold{Lease: lease, Beat: beat})
	return err
}

func hold(t testing.TB, s *Store, ttl time.Duration) election.LeaseID {
	t.Helper()
	ctx := ctxFor(t, patience)
	snap, err := s.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := s.Grant(ctx, ttl)
	if err != nil {
		t.Fatal(err)
	}
	term := snap.Breadcrumb.Term + 1
	if err := s.Claim(ctx, election.Claim{
		Lease: lease, TermVersion: snap.TermVersion, Beat: true,
		Active:     election.Active{Controller: "ctl-a", Term: term, State: election.StateStarting},
		Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Validity: time.Second},
	}); err != nil {
		t.Fatal(err)
	}
	return lease
}

func TestTakeoversGrowNothing(t *testing.T) {
	h := newHarness(t, etcdtest.Start(t, 1))
	electiontest.TakeoversGrowNothing(t, func() electiontest.Host { return h.Open(t) })
}

// TestHeirNeedNotLookBeforeItPublishes: who was handed the reign, and has read it, publishes in one
// request.
func TestHeirNeedNotLookBeforeItPublishes(t *testing.T) {
	c := etcdtest.Start(t, 1)
	h := newHarness(t, c)
	a, b := h.open(t, c.Endpoints()...), h.open(t, c.Endpoints()...)
	electiontest.HeirNeedNotLook(t, a, b, func(ctx context.Context, lease election.LeaseID) (election.Version, error) {
		return b.current(ctx, lease, false)
	})
}

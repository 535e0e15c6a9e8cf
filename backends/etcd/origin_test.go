package etcd

import (
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
)

// A store stays the one it is when it is restarted, with a later epoch, and another cluster is
// another store.
func TestOriginOfTheStore(t *testing.T) {
	c := etcdtest.Start(t, 1)
	read := func(c *etcdtest.Cluster) election.Origin {
		t.Helper()
		c.WaitHealthy(t)
		snap, err := newHarness(t, c).open(t, c.Endpoints()...).Read(ctxFor(t, patience))
		if err != nil {
			t.Fatal(err)
		}
		return snap.Origin
	}
	first := read(c)
	h := newHarness(t, c)
	s := h.open(t, c.Endpoints()...)
	lease := hold(t, s, 20*time.Second)
	if shown, err := s.Hold(ctxFor(t, patience), election.Hold{Lease: lease}); err != nil || shown.Origin != first {
		t.Errorf("a renewal shows %+v, %v, want %+v", shown.Origin, err, first)
	}
	c.Kill(t, 0)
	c.Restart(t, 0)
	if again := read(c); again.Store == "" || again.Store != first.Store || again.Epoch <= first.Epoch {
		t.Errorf("%+v, and after a restart %+v", first, again)
	}
	if other := read(etcdtest.Start(t, 1)); other.Store == first.Store {
		t.Errorf("another cluster is %+v too", other)
	}
}

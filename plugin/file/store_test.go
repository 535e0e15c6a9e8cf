package file

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/plugin"
)

// harness is one cluster in a directory of its own.
type harness struct{ dir string }

func (h harness) store(t *testing.T) *Store {
	s, err := Open(plugin.Settings{Cluster: "orders", Values: map[string]string{"dir": h.dir}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h harness) Open(t *testing.T) electiontest.Host {
	return plugin.NewBackend(h.store(t), plugin.Options{Traits: Traits(), RereadEvery: 2 * time.Second})
}

// Overwrite writes as somebody with an editor does.
func (h harness) Overwrite(t *testing.T, name, value string) {
	h.edit(t, name, key{Value: []byte(value)})
}

func (h harness) OverwriteKept(t *testing.T, name, value string) {
	var lease election.LeaseID
	h.change(t, func(c *content) { lease = c.Keys[name].Lease })
	h.edit(t, name, key{Value: []byte(value), Lease: lease})
}

func (h harness) edit(t *testing.T, name string, k key) {
	h.change(t, func(c *content) {
		c.Revision++
		k.Version = c.Revision
		c.Keys[name] = k
	})
}

func (h harness) Remove(t *testing.T, name string) {
	h.change(t, func(c *content) { delete(c.Keys, name) })
}

func (h harness) EndLease(t *testing.T, lease election.LeaseID) {
	h.change(t, func(c *content) { c.end(lease) })
}

func (h harness) change(t *testing.T, f func(*content)) {
	t.Helper()
	if err := h.store(t).locked(t.Context(), func(c *content) (bool, error) {
		f(c)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return harness{t.TempDir()} })
}

func TestTakeoversGrowNothing(t *testing.T) {
	h := harness{t.TempDir()}
	electiontest.TakeoversGrowNothing(t, func() electiontest.Host { return h.Open(t) })
}

// TestRebootStartsLeasesOver: nobody could renew while the host was down, so no lease ends with the
// boot, and that of a dead holder ends a TTL later.
func TestRebootStartsLeasesOver(t *testing.T) {
	h := harness{t.TempDir()}
	s := h.store(t)
	lease, err := s.Grant(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	var c content
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	v := c.Leases[lease]
	v.Ends = 1 // long ago, by the clock of this boot
	c.Leases[lease], c.Boot = v, "another"
	if b, err = json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Renew(t.Context(), lease); err != nil {
		t.Errorf("renewal after a reboot: %v", err)
	}
}

// TestLockedFileDelaysNobodyForLong: a process that is stopped while it holds the lock makes calls
// fail when their time is up.
func TestLockedFileDelaysNobodyForLong(t *testing.T) {
	s := harness{t.TempDir()}.store(t)
	l, err := os.Create(s.lock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Read(ctx, plugin.Query{}); err == nil {
		t.Error("a read while the file is locked")
	}
}

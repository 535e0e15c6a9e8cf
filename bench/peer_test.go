package bench

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
)

// TestEtcdctlLock runs the same hosts, store and program under `etcdctl lock`, with its default TTL
// of 10 s (5 s in the short form), for comparison in the same run. It has no goal. After a link
// drop both programs serve at once, which shows that the records and their evaluation detect an
// overlap.
func TestEtcdctlLock(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	etcdctl := etcdtest.Ctl(t)
	s := newSite(t, 2, "")
	for i, h := range s.hosts {
		h.boot(etcdctl, "--endpoints", strings.Join(s.outside, ","), "lock", "--ttl", strconv.Itoa(times(5, 10)),
			"bench", self, "controller", h.address()+":8080", h.record)
		if i == 0 {
			s.await(h.name+" serves", func() bool { is, _ := h.serves(); return is })
		}
	}
	// waits returns which host serves and which waits for the lock.
	waits := func() (active, passive *host) {
		s.await("one serves and the other waits", func() bool {
			for _, h := range s.hosts {
				if is, _ := h.serves(); is {
					active, passive = h, s.other(h)
				}
			}
			if active == nil {
				return false
			}
			is, _ := passive.serves()
			return !is && s.queued() == 2
		})
		return active, passive
	}
	served := func(h *host) election.Instant {
		var from election.Instant
		s.await(h.name+" serves", func() (is bool) { is, from = h.serves(); return is })
		return from
	}

	var took []time.Duration
	for range times(1, 5) {
		active, passive := waits()
		begun := election.BootClock()
		active.cut()
		active.crash()
		took = append(took, served(passive).Sub(begun))
		s.heal()
		active.restart()
	}
	stats(t, "etcdctl lock: host crash → the other serves", took)
	s.noOverlap()

	active, passive := waits()
	begun := election.BootClock()
	active.cut()
	from := served(passive)
	watched := time.Duration(times(2, 30)) * time.Second
	time.Sleep(watched) // long enough to see whether the overlap ends by itself
	both := overlap(readLives(t, active.record), readLives(t, passive.record))
	t.Logf("etcdctl lock: link drop → the other serves after %v; both served at once for %v of the %v that were watched",
		from.Sub(begun).Round(time.Millisecond), both.Round(time.Millisecond), watched)
	s.heal()
	if both == 0 {
		t.Error("the records show no overlap, and there must be one")
	}
}

// queued returns how many hold or wait for `etcdctl lock`'s lock.
func (s *site) queued() int {
	s.t.Helper()
	return len(strings.Fields(s.members.Ctl(s.t, "get", "--prefix", "--keys-only", "bench/")))
}

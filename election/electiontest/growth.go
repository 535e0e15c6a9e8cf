package electiontest

import (
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// TakeoversGrowNothing takes the lease over many times, with a watch and a follower on each host,
// and fails the test if the process's memory, goroutines or descriptors grow with it. No other test
// of the process may run at the same time. TANIST_LONG makes it 2,000 takeovers.
func TakeoversGrowNothing(t *testing.T, open func() Host) {
	t.Helper()
	n := 150
	if long, _ := strconv.ParseBool(os.Getenv("TANIST_LONG")); long {
		n = 2000
	}
	hosts := []Host{open(), open()}
	for _, h := range hosts {
		go func() {
			for range h.Watch(t.Context()) {
				_, _ = h.Read(t.Context())
			}
		}()
		go func() {
			for range h.Follow(t.Context()) { //nolint:revive // only followed
			}
		}()
	}
	takeOver := func(i int) {
		h, name := hosts[i%2], "ctl-"+strconv.Itoa(i%2)
		snap, err := h.Read(t.Context())
		fatal(t, err)
		lease, err := h.Grant(t.Context(), long)
		fatal(t, err)
		term := snap.Breadcrumb.Term + 1
		record := election.Active{Controller: name, Term: term, State: election.StateServing, URL: "http://127.0.0.1:8080", Incarnation: name}
		crumb := election.Breadcrumb{Term: term, Controller: name, Incarnation: name, Validity: time.Second}
		fatal(t, h.Claim(t.Context(), election.Claim{Lease: lease, Active: record, Breadcrumb: crumb, TermVersion: snap.TermVersion, Beat: true}))
		fatal(t, h.Publish(t.Context(), lease, record))
		_, err = h.Hold(t.Context(), election.Hold{Lease: lease, Beat: true})
		fatal(t, err)
		crumb.Clean = true
		fatal(t, h.Release(t.Context(), election.Release{Lease: lease, Breadcrumb: crumb}))
	}
	held := func() (kib, goroutines int) {
		var m runtime.MemStats
		for range 3 { // finalizers and pools need more than one
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc / 1024), runtime.NumGoroutine()
	}
	for i := range n / 3 { // buffers and pools reach their size
		takeOver(i)
	}
	kib, goroutines := held()
	for i := range n {
		takeOver(i)
	}
	nowKiB, now := held()
	// Half a kilobyte per takeover would be a leak. A few buffers are not.
	allowed := 256 + n/2
	for end := time.Now().Add(patience); (nowKiB-kib > allowed || now-goroutines > 8) && time.Now().Before(end); nowKiB, now = held() {
		time.Sleep(100 * time.Millisecond) // what is under way ends, a leak does not
	}
	t.Logf("%d takeovers: %d KiB and %d goroutines, then %d KiB and %d", n, kib, goroutines, nowKiB, now)
	if nowKiB-kib > allowed {
		t.Errorf("the heap grew by %d KiB over %d takeovers, more than %d", nowKiB-kib, n, allowed)
	}
	if now-goroutines > 8 {
		t.Errorf("%d goroutines became %d over %d takeovers", goroutines, now, n)
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/postgres/private"
)

// TestManyClustersOnOneServer measures what clusters cost a server: each has a holder that renews and
// a passive that watches and reads, both once a second as in profile default.
func TestManyClustersOnOneServer(t *testing.T) {
	if long, _ := strconv.ParseBool(os.Getenv("TANIST_LONG")); !long {
		t.Skip("measures for a minute: set TANIST_LONG")
	}
	const n, lasts = 100, time.Minute
	server := own(t, func(o *private.Options) { o.Durable, o.Settings["max_connections"] = true, "700" })
	failed := make(chan error, 4*n)
	for i := range n {
		h := newHarness(t, server)
		holder, passive := h.open(t, h.dsn()), h.open(t, h.dsn())
		lease := reign(t, holder, 10*time.Minute)
		for _, call := range []func() error{
			func() error { return hold(t.Context(), holder, lease) },
			func() error { _, err := passive.Read(t.Context()); return err },
		} {
			go func() {
				time.Sleep(time.Second * time.Duration(i) / time.Duration(n))
				for ; t.Context().Err() == nil; time.Sleep(time.Second) {
					if err := call(); err != nil && t.Context().Err() == nil {
						failed <- err
						return
					}
				}
			}()
		}
		for range 2 {
			passive.Watch(t.Context())
		}
	}
	super := superuser(t, server)
	commits := func() (n int) {
		if err := super.QueryRow(t.Context(), "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	time.Sleep(15 * time.Second) // what came before is in the server's statistics
	before, cpu, begun := commits(), used(t, server.PID()), time.Now()
	time.Sleep(lasts)
	took := time.Since(begun)
	t.Logf("%d clusters, with a holder and a passive each: %.0f transactions/s, %.1f %% of a core", n,
		float64(commits()-before)/took.Seconds(), 100*(used(t, server.PID())-cpu).Seconds()/took.Seconds())
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
}

// used returns the processor time of the server's processes. Those that have ended count too.
func used(t *testing.T, postmaster int) (sum time.Duration) {
	t.Helper()
	const tick = 10 * time.Millisecond             // USER_HZ
	paths, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 15 || fields[1] != strconv.Itoa(postmaster) && filepath.Base(filepath.Dir(path)) != strconv.Itoa(postmaster) {
			continue
		}
		own := fields[11:13]
		if fields[1] != strconv.Itoa(postmaster) {
			own = fields[11:15] // with its children that have ended
		}
		for _, field := range own {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				t.Fatal(fmt.Errorf("%s: %v", path, err))
			}
			sum += time.Duration(ticks) * tick
		}
	}
	return sum
}

package postgres

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres/private"
)

// BenchmarkRaise measures begin, drain and open on a server that waits for its disk, by the number
// of idle sessions of the old term. Zero is a clean handover: the old program has ended and its
// sidecar has closed the fence.
func BenchmarkRaise(b *testing.B) {
	server, err := private.Start(b.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), Durable: true, Settings: map[string]string{"max_connections": "300"}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := server.Stop(); err != nil {
			b.Error(err)
		}
	})
	for _, sessions := range []int{0, 2, 50, 150} {
		b.Run(fmt.Sprintf("sessions-%d", sessions), func(b *testing.B) {
			r := newRepositoryOn(b, server, "a", "b")
			fences := []*Fence{r.fence("a"), r.fence("b")}
			var reports []Report
			for _, f := range fences {
				f.cfg.Observe = func(r Report) { reports = append(reports, r) }
				if err := f.Ready(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			var old []*pgx.Conn
			closeOld := func() {
				for _, conn := range old {
					_ = conn.Close(context.Background())
				}
				old = old[:0]
			}
			term := election.Term(0)
			for b.Loop() {
				b.StopTimer()
				if term > 0 {
					if sessions == 0 {
						if err := fences[term%2].Close(b.Context(), term); err != nil {
							b.Fatal(err)
						}
					}
				}
				term++
				b.StartTimer()
				secret := r.raise(fences[term%2], term)
				b.StopTimer()
				closeOld()
				for range sessions {
					old = append(old, r.mustLogin(r.names[term%2], secret))
				}
				b.StartTimer()
			}
			closeOld()
			var all, begin, drain, open []time.Duration
			for _, r := range reports[1:] {
				all = append(all, r.Begin+r.Drain+r.Open)
				begin, drain, open = append(begin, r.Begin), append(drain, r.Drain), append(open, r.Open)
			}
			p := func(d []time.Duration, percent int) float64 {
				slices.Sort(d)
				return float64(d[len(d)*percent/100].Microseconds()) / 1000
			}
			if len(all) == 0 {
				return
			}
			b.ReportMetric(p(all, 50), "p50-ms")
			b.ReportMetric(p(all, 99), "p99-ms")
			b.ReportMetric(p(begin, 50), "begin-p50-ms")
			b.ReportMetric(p(drain, 50), "drain-p50-ms")
			b.ReportMetric(p(open, 50), "open-p50-ms")
		})
	}
}

package daemon

import (
	"errors"
	"sync"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/postgres"
)

// fenceStats counts the operations of one sidecar's fence, for /metrics. Its methods are safe for
// concurrent use.
type fenceStats struct {
	mu       sync.Mutex
	last     postgres.Report // the last one that opened the repository
	ended    int
	refusals int // terms that the repository refused because it had seen a later one
}

// add counts one raise.
func (f *fenceStats) add(r postgres.Report) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended += r.Ended
	if r.Err == nil {
		f.last = r
	}
	if errors.Is(r.Err, postgres.ErrTerm) {
		f.refusals++
	}
}

func (f *fenceStats) samples() []api.Sample {
	f.mu.Lock()
	defer f.mu.Unlock()
	samples := []api.Sample{
		{Name: "tanist_fence_sessions_ended_total", Help: "Sessions of older terms that the fence ended.", Counter: true, Value: float64(f.ended)},
		{Name: "tanist_fence_refusals_total", Help: "Terms of this side that the repository refused as too old.", Counter: true, Value: float64(f.refusals)},
	}
	for step, took := range map[string]float64{
		"begin": f.last.Begin.Seconds(), "drain": f.last.Drain.Seconds(), "open": f.last.Open.Seconds(),
	} {
		samples = append(samples, api.Sample{
			Name: "tanist_fence_step_seconds", Help: "How long each step of the last fence took.", Labels: map[string]string{"step": step}, Value: took,
		})
	}
	return samples
}

package agentwatch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// forgetful accepts every status and keeps none.
type forgetful struct{}

func (forgetful) Traits() election.Traits { return election.Traits{} }

func (forgetful) Grant(context.Context, time.Duration) (election.LeaseID, error) { return "l", nil }
func (forgetful) Renew(context.Context, election.LeaseID) error                  { return nil }
func (forgetful) Revoke(context.Context, election.LeaseID) error                 { return nil }
func (forgetful) Get(context.Context, string) (election.Entry, error)            { return election.Entry{}, nil }
func (forgetful) Put(context.Context, election.Put) error                        { return nil }

// TestThousandsOfTakeoversLeaveNothing: heap and goroutines are the same after 600 takeovers
// (TANIST_LONG: 2,000) as after 200, each by a controller with a new name at a new address, with
// refused records, outages, asked sidecars and ends of the agent in between.
func TestThousandsOfTakeoversLeaveNothing(t *testing.T) {
	takeovers := election.Term(600)
	if os.Getenv("TANIST_LONG") != "" {
		takeovers = 2000
	}
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.StateFile = filepath.Join(t.TempDir(), "state")
		c.Presence, c.Self = forgetful{}, election.AgentWatch{Incarnation: "i"}
		watch, end := w.run(t, c)
		measure := func() (heap uint64, goroutines int) {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc, runtime.NumGoroutine()
		}
		var heap uint64
		var goroutines int
		for term := range takeovers {
			name := fmt.Sprintf("ctl-%d", term)
			w.serving(name, term+1)
			sleep(2 * time.Second)
			switch term % 5 {
			case 1:
				w.vacant()
			case 2:
				w.say(election.Sighting{Active: active(fmt.Sprint("no name!", term), term+1, election.StateServing)})
			case 3:
				w.storeDown()
				w.do(func() {
					w.sidecars[name+".test:8710"] = election.ClusterRecord{Cluster: "orders", Active: active(name, term+1, election.StateServing)}
				})
			case 4:
				w.mu.Lock()
				p := w.procs[len(w.procs)-1]
				w.mu.Unlock()
				p.die("exit status 1")
			}
			sleep(5 * time.Second)
			w.do(func() { // what the world itself remembers
				w.procs, w.events = w.procs[len(w.procs)-1:], nil
				clear(w.open)
				clear(w.sidecars)
				w.open[name+".test:8080"] = true
			})
			if term == 199 {
				heap, goroutines = measure()
			}
		}
		after, running := measure()
		t.Logf("after 200 takeovers %d KiB and %d goroutines, after %d %d KiB and %d", heap>>10, goroutines, takeovers, after>>10, running)
		if after > heap+heap/10+64<<10 || running > goroutines+2 {
			t.Error("something is kept of each takeover")
		}
		if n := len(watch.Snapshot().Known); n > maxPeers {
			t.Errorf("%d controllers are known", n)
		}
		wantNil(t, end())
	})
}

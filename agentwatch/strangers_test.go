package agentwatch

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// TestForgedAnswersOfSidecarsAreNotBelieved: a stranger at a sidecar's address can't name the
// active while the store is away, can't make the agent ignore the true terms that follow, and can't
// make it probe other hosts.
func TestForgedAnswersOfSidecarsAreNotBelieved(t *testing.T) {
	stolen := "" // the signature of an earlier answer
	for name, forge := range map[string]func(h http.Header, body []byte){
		"unsigned": func(http.Header, []byte) {},
		"other secret": func(h http.Header, b []byte) {
			h.Set(election.SignatureHeader, election.Secret("another-secret-0").SignAnswer("/v1/cluster", "n", b))
		},
		"replayed": func(h http.Header, _ []byte) { h.Set(election.SignatureHeader, stolen) },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				c := w.config()
				c.StateFile = filepath.Join(t.TempDir(), "state")
				watch, end := w.run(t, c)
				w.serving("a", 7)
				sleep(time.Second)
				w.storeDown()
				w.dead("a")
				evil := election.ClusterRecord{Cluster: "orders", Active: active("evil", 1<<52, election.StateServing), Controllers: []election.Controller{{Name: "evil", URL: urlOf("evil")}}}
				stolen = secret.SignAnswer("/v1/cluster", "an earlier nonce", []byte("{}"))
				w.do(func() { w.open["evil.test:8080"], w.sidecars["a.test:8710"], w.forge = true, evil, forge })
				sleep(10 * time.Second)
				if got := w.living(); !slices.Equal(got, []string{"a@7"}) {
					t.Errorf("running: %q", got)
				}
				s := watch.Snapshot()
				if s.Seen != 7 || s.Others != 0 || slices.ContainsFunc(s.Known, func(p Peer) bool { return p.Controller == "evil" }) {
					t.Errorf("%+v", s)
				}
				if !strings.Contains(s.Sidecars, "not signed with the cluster's secret") {
					t.Errorf("it is not said why: %q", s.Sidecars)
				}
				w.serving("b", 8) // the store is back
				synctest.Wait()
				if got := w.living(); !slices.Equal(got, []string{"b@8"}) {
					t.Errorf("running: %q", got)
				}
				wantNil(t, end())
			})
		})
	}
}

// TestSidecarsAreNotAskedWithoutTheSecret: no response could be told from a stranger's.
func TestSidecarsAreNotAskedWithoutTheSecret(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Secret = nil
		watch, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Second)
		w.storeDown()
		w.do(func() {
			w.open["b.test:8080"] = true
			w.sidecars["a.test:8710"] = election.ClusterRecord{Cluster: "orders", Active: active("b", 8, election.StateServing)}
		})
		sleep(time.Minute)
		if n := watch.Counters().Asks; n != 0 {
			t.Errorf("asked %d times", n)
		}
		if got := w.living(); !slices.Equal(got, []string{"a@7"}) {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

// TestQuestionProvesTheSecret: a sidecar tells other hosts nothing without it.
func TestQuestionProvesTheSecret(t *testing.T) {
	asked := make(chan bool, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- secret.Proved(r.URL.Path, r.Header.Get(election.NonceHeader), r.Header.Get(election.ProofHeader)):
		default: // the first counts
		}
	}))
	defer server.Close()
	for range 30 { // on a loaded machine a question may end before it is heard
		if _, err := (asker{client: server.Client(), cluster: "orders"}).one(t.Context(), server.URL, secret); err == nil {
			t.Error("believed an answer that is not signed")
		}
		select {
		case proved := <-asked:
			if !proved {
				t.Error("the question proves nothing")
			}
			return
		default:
		}
	}
	t.Fatal("no question was heard")
}

// TestRotatedSecretIsReadAgain: agentwatch, and with it the agents, needs no restart.
func TestRotatedSecretIsReadAgain(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		var now atomic.Value
		now.Store(election.Secret("the-secret-before"))
		c.Secret = func() (election.Secret, error) { return now.Load().(election.Secret), nil }
		_, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Second)
		w.storeDown()
		w.dead("a")
		w.do(func() {
			w.open["b.test:8080"] = true
			w.sidecars["a.test:8710"] = election.ClusterRecord{Cluster: "orders", Active: active("b", 8, election.StateServing)}
		})
		sleep(5 * time.Second)
		w.want(t, "0s start a@7")
		now.Store(secret)
		sleep(5 * time.Second)
		if got := w.living(); !slices.Equal(got, []string{"b@8"}) {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

// TestSignedAnswerOfAForgedTermIsBounded: even a verified sidecar can't raise the term further than
// takeovers do.
func TestSignedAnswerOfAForgedTermIsBounded(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		w.storeDown()
		w.do(func() {
			w.open["b.test:8080"] = true
			w.sidecars["a.test:8710"] = election.ClusterRecord{Cluster: "orders", Active: active("b", 7+election.MaxJump+1, election.StateServing)}
		})
		sleep(10 * time.Second)
		if s := watch.Snapshot(); s.Seen != 7 || watch.Counters().Dropped == 0 {
			t.Errorf("%+v", s)
		}
		wantNil(t, end())
	})
}

// TestStoreThatInsistsOnALowerTermIsFollowed: after a restore of the store, or a forged term,
// agents recover by themselves.
func TestStoreThatInsistsOnALowerTermIsFollowed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.StateFile = filepath.Join(t.TempDir(), "state")
		watch, end := w.run(t, c)
		forged := active("a", election.MaxTerm, election.StateStarting)
		w.say(election.Sighting{Active: forged})
		sleep(time.Second)
		w.serving("b", 7)
		sleep(10 * time.Second)
		w.want(t)
		if s := watch.Snapshot(); s.Seen != election.MaxTerm || !strings.Contains(s.Store, "older than term") {
			t.Errorf("%+v", s)
		}
		w.serving("b", 8)
		sleep(30 * time.Second)
		w.want(t, "31s start b@8")
		w.serving("a", 9)
		synctest.Wait()
		w.want(t, "41s gone b@8", "41s start a@9")
		wantNil(t, end())
		if m, err := loadMemory(c.StateFile, "orders"); err != nil || m.Term != 9 {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

// TestControllerThatIsBeingStartedIsWaitedFor: the start of a controller may take longer than all
// retries.
func TestControllerThatIsBeingStartedIsWaitedFor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Minute)
		w.dead("a")
		w.vacant()
		sleep(10 * time.Second) // five rounds
		w.say(election.Sighting{Active: active("b", 8, election.StateStarting)})
		sleep(10 * time.Minute)
		if s := watch.Snapshot(); s.Misses != 0 {
			t.Errorf("%+v", s)
		}
		w.serving("b", 8)
		sleep(time.Second)
		w.want(t, "0s start a@7", "11m10s gone a@7", "11m10s start b@8")
		// Only a reachable store counts: its last report before it went away is no reason to wait
		// forever.
		w.say(election.Sighting{Active: active("b", 8, election.StateStarting)})
		sleep(time.Second)
		w.storeDown()
		w.dead("b")
		sleep(30 * time.Second)
		if got := w.living(); len(got) != 0 {
			t.Errorf("running: %q", got)
		}
		if end() == nil {
			t.Error("Run returned nil")
		}
	})
}

// TestSchedule: the timing of a picture, without a clock.
func TestSchedule(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	for _, tc := range []struct {
		name string
		t    timetable
		want agenda
	}{
		{"nothing to do", timetable{}, agenda{}},
		{"a probe is due", timetable{probe: at(0)}, agenda{probe: true, tick: true}},
		{"a probe is due soon", timetable{probe: at(1)}, agenda{wake: at(1)}},
		{"one at a time", timetable{probe: at(0), round: at(0), probing: true}, agenda{}},
		{"a round between two probes", timetable{probe: at(1), round: at(0)}, agenda{probe: true, round: true}},
		{"a probe that would make the round late waits for it", timetable{probe: at(0), round: at(0.5), probeTakes: time.Second}, agenda{wake: at(0.5)}},
		{"a probe that would not", timetable{probe: at(0), round: at(2), probeTakes: time.Second}, agenda{probe: true, tick: true}},
		{"the store has said nothing", timetable{probe: at(9), hearBy: at(0)}, agenda{hear: true, wake: at(9)}},
		{"the store insists", timetable{judge: at(0)}, agenda{judge: true}},
		{"the store may insist", timetable{judge: at(3), probe: at(5)}, agenda{wake: at(3)}},
		{"store away: ask", timetable{mayAsk: true, wantAnswer: true, ask: at(0)}, agenda{ask: true}},
		{"store away: ask later", timetable{mayAsk: true, wantAnswer: true, ask: at(2), learn: at(1)}, agenda{wake: at(2)}},
		{"store away, and nobody to ask", timetable{wantAnswer: true, ask: at(0)}, agenda{}},
		{"asking already", timetable{mayAsk: true, wantAnswer: true, asking: true, ask: at(0)}, agenda{}},
		{"store up: learn", timetable{mayAsk: true, storeUp: true, learn: at(0)}, agenda{ask: true}},
		{"store up: learn later", timetable{mayAsk: true, storeUp: true, ask: at(0), learn: at(7)}, agenda{wake: at(7)}},
	} {
		if got := schedule(tc.t, at(0)); got != tc.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

package sidecar

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// reignOf returns the record of a term, as it is in the store.
func (w *world) reignOf(term election.Term) (h election.History) {
	_ = json.Unmarshal([]byte(w.store.Value(election.HistoryKey(term))), &h)
	return h
}

// TestRestartOnRequestIsOneReign: the controller is stopped and started once, in the same term; the
// lease does not move; the record of the reign has the restart, and its own outage is what it was.
func TestRestartOnRequestIsOneReign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		w.wait(5*time.Second, "the reign is recorded", func() bool { return w.reignOf(1).Term == 1 })
		before := w.reignOf(1)
		time.Sleep(time.Hour)
		w.from()
		w.request(election.Request{ID: "1", Op: election.OpRestart, By: "ana", Reason: "new file", Term: 1, For: time.Minute})
		w.wait(5*time.Second, "it is carried out", func() bool { return w.store.Value("request") == "" })
		w.want(t, "50ms gone ctl-a@1, stopped", "50ms start ctl-a@1", "150ms open ctl-a@1")
		w.wait(5*time.Second, "the restart is recorded", func() bool { return len(w.reignOf(1).Restarts) == 1 && w.reignOf(1).Ended.IsZero() })
		after := w.reignOf(1)
		again := after.Restarts[0]
		if again.Why != "restart in place (ana): new file" || again.Outage < 100 || again.Outage > 1000 {
			t.Errorf("the restart is recorded as %+v", again)
		}
		if after.Outage != before.Outage || !after.When.Equal(before.When) {
			t.Errorf("the beginning of the reign was %+v, and is %+v", before, after)
		}
		time.Sleep(time.Minute)
		if n := a.program.starts.Load(); n != 2 || !a.sidecar.Serving() || b.program.starts.Load() != 0 {
			t.Errorf("ctl-a was started %d times, ctl-b %d times", n, b.program.starts.Load())
		}
		if f := a.sidecar.View().Status.Failure; f != nil {
			t.Errorf("a wish is shown as a failure: %+v", f)
		}
		w.finish()
	})
}

// TestRestartThatFailsIsAFailure: one that does not start again is taken over from, and the request
// does not outlive it.
func TestRestartThatFailsIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.failing = true })
		w.request(election.Request{ID: "1", Op: election.OpRestart, By: "ana", Term: 1, For: time.Minute})
		w.wait(10*time.Second, "ctl-b serves", b.sidecar.Serving)
		w.wait(10*time.Second, "the request is gone", func() bool { return w.store.Value("request") == "" })
		if b.program.starts.Load() != 1 {
			t.Errorf("ctl-b was started %d times", b.program.starts.Load())
		}
		w.finish()
	})
}

// TestRestartOfAnAdoptedControllerFencesAgain: only the process that fenced had the secret, so the one
// that adopted the controller gets another for the same term.
func TestRestartOfAnAdoptedControllerFencesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		a.now.cause(election.ErrDetach)
		a.end()
		a.boot()
		w.wait(5*time.Second, "ctl-a has adopted its controller", a.now.sidecar.Serving)
		if a.program.starts.Load() != 1 {
			t.Fatal("nothing was adopted")
		}
		w.request(election.Request{ID: "1", Op: election.OpRestart, By: "ana", Term: 1, For: time.Minute})
		w.wait(5*time.Second, "it is carried out", func() bool { return w.store.Value("request") == "" })
		if env := strings.Join(a.program.lastEnv, " "); a.program.starts.Load() != 2 || !strings.Contains(env, "TANIST_TERM=1 PGPASSWORD=secret-1.2") {
			t.Errorf("%d starts, the last with %s", a.program.starts.Load(), env)
		}
		w.wait(5*time.Second, "the restart is recorded", func() bool { return len(w.reignOf(1).Restarts) == 1 && w.reignOf(1).Ended.IsZero() })
		if b.program.starts.Load() != 0 || !a.now.sidecar.Serving() {
			t.Error("the reign has moved")
		}
		w.finishSites(all)
	})
}

// TestRequestForARestartIsCarriedOutOnce, however often it is read.
func TestRequestForARestartIsCarriedOutOnce(t *testing.T) {
	r := newRestarter()
	if pending, refused := r.take(election.Request{ID: "1"}); !pending || refused != "" {
		t.Errorf("pending %v, refused %q", pending, refused)
	}
	r.finish() // the controller was restarted for another reason, before the request was taken up
	if pending, _ := r.take(election.Request{ID: "1"}); !pending {
		t.Error("a request that nobody has taken up counts as carried out")
	}
	<-r.asked
	r.begin()
	r.finish()
	if pending, _ := r.take(election.Request{ID: "1"}); pending || len(r.asked) > 0 {
		t.Error("a request is carried out twice")
	}
}

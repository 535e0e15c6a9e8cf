package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestFitChecksRunOnlyWhilePassive: they run at their interval while the sidecar asks, and not while
// it does not. Before the first result this side is unfit, afterwards it has the last one.
func TestFitChecksRunOnlyWhilePassive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		runs, result := 0, errors.New("exit status 3: no key listen")
		c := newFitCheck("config", 30*time.Second, func(context.Context) error {
			runs++
			time.Sleep(5 * time.Second)
			return result
		})
		f := &fitness{checks: []*fitCheck{c}}
		other := errors.New("port 8080 is in use")
		ask := f.preFlight(func(context.Context) error { return other })
		go f.loop(ctx)
		expect := func(want string) {
			t.Helper()
			got := ""
			if err := ask(ctx); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		time.Sleep(time.Minute)
		if runs != 0 {
			t.Errorf("%d runs although nobody asked", runs)
		}
		expect("port 8080 is in use\nwaiting for the fit check config")
		other = nil
		time.Sleep(5 * time.Second)
		expect("fit check config: exit status 3: no key listen")
		result = nil
		for range 20 { // 20 s: it is not due
			expect("fit check config: exit status 3: no key listen")
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Second)
		expect("fit check config: exit status 3: no key listen") // the second run has begun
		time.Sleep(6 * time.Second)
		expect("")
		if runs != 2 {
			t.Errorf("%d runs, want 2", runs)
		}
		time.Sleep(time.Hour) // it reigns
		if runs != 2 {
			t.Errorf("%d runs, although nobody asked", runs)
		}
		cancel()
		synctest.Wait()
	})
}

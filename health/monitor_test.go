package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// told collects reports as "<time since start> <healthy> <detail>".
type told struct {
	mu    sync.Mutex
	began time.Time
	lines []string
	since []time.Duration
}

func (r *told) report(healthy bool, detail string, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Sprintf("%v %v %s", time.Since(r.began), healthy, detail)
	if healthy != since.IsZero() {
		line += fmt.Sprintf(" (since %v)", since)
	}
	if !since.IsZero() {
		r.since = append(r.since, since.Sub(r.began))
	}
	r.lines = append(r.lines, line)
}

func (r *told) want(t *testing.T, lines ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if got, want := strings.Join(r.lines, "\n"), strings.Join(lines, "\n"); got != want {
		t.Errorf("reports:\n%s\nwant:\n%s", got, want)
	}
}

// run runs a monitor for d of fake time.
func run(t *testing.T, d time.Duration, cfg Config) (*Monitor, *told) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	m := NewMonitor(cfg, zerolog.Nop())
	r := &told{began: time.Now()}
	m.Run(ctx, r.report)
	return m, r
}

func config(checks ...Check) Config {
	return Config{Interval: time.Second, Timeout: 800 * time.Millisecond, Rise: 1, Fall: 3, Checks: checks}
}

var errSick = errors.New("sick")

// between is a check that fails in [from, to) after the start of the test.
func between(from, to time.Duration) func(context.Context) error {
	began := time.Now()
	return func(context.Context) error {
		if d := time.Since(began); d >= from && d < to {
			return errSick
		}
		return nil
	}
}

func TestFirstVerdictAndChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r := run(t, 20*time.Second, config(Check{Name: "a", Run: between(4500*time.Millisecond, 9500*time.Millisecond)}))
		r.want(t, "0s true ok", "7s false a: sick", "10s true ok")
		if len(r.since) != 1 || r.since[0] != 4*time.Second {
			t.Errorf("down since %v, want the last good run, at 4s", r.since)
		}
	})
}

func TestNeverWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r := run(t, 20*time.Second, config(Check{Name: "a", Run: between(0, time.Hour)}))
		r.want(t, "2s false a: sick")
	})
}

func TestBlipIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r := run(t, 20*time.Second, config(Check{Name: "a", Run: between(5*time.Second, 6500*time.Millisecond)}))
		r.want(t, "0s true ok")
	})
}

func TestTimeoutIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		_, r := run(t, 20*time.Second, config(Check{Name: "a", Run: hang}))
		r.want(t, "2.8s false a: no answer within 800ms")
	})
}

func TestAnswerAfterTheTimeoutIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context) error { time.Sleep(900 * time.Millisecond); return nil } // ignores its context
		_, r := run(t, 19950*time.Millisecond, config(Check{Name: "a", Run: slow}))
		r.want(t, "2.8s false a: no answer within 800ms")
	})
}

func TestCheckThatNeverReturnsFailsAndIsNotRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, runs atomic.Int32
		release := make(chan struct{})
		stuck := func(context.Context) error {
			runs.Add(1)
			if running.Add(1) > 1 {
				t.Error("the check overlaps itself")
			}
			defer running.Add(-1)
			<-release
			return nil
		}
		m, r := run(t, 9500*time.Millisecond, config(Check{Name: "a", Run: stuck}))
		r.want(t, "2s false a: the check has been running for 2s")
		if n := runs.Load(); n != 1 {
			t.Errorf("%d runs, want 1", n)
		}
		if s := m.Status(); s.Verdict != Down || s.Checks[0].Streak != 10 {
			t.Errorf("status %+v", s)
		}
		close(release)
	})
}

func TestStuckCheckRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var once atomic.Bool
		fn := func(context.Context) error {
			if !once.Swap(true) {
				time.Sleep(4500 * time.Millisecond)
			}
			return nil
		}
		_, r := run(t, 10*time.Second, config(Check{Name: "a", Run: fn}))
		r.want(t, "2s false a: the check has been running for 2s", "5s true ok")
	})
}

func TestChecksDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		m, r := run(t, 10500*time.Millisecond, config(
			Check{Name: "slow", Run: hang},
			Check{Name: "quick", Run: between(0, time.Hour)},
			Check{Name: "well", Run: between(0, 0)},
		))
		// quick is down at 2 s; slow, at 2.8 s, adds no change of the verdict but is told by
		// Status.
		r.want(t, "2s false quick: sick")
		s := m.Status()
		if want := "slow: no answer within 800ms; quick: sick"; s.Detail != want {
			t.Errorf("detail %q, want %q", s.Detail, want)
		}
		if got := s.Checks[2]; got.Streak != 11 || got.Err != nil || got.Verdict != Up {
			t.Errorf("the check that is well: %+v", got)
		}
	})
}

func TestSlowChecksRunAtTheirOwnPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		cfg := config(Check{Name: "a", Run: func(context.Context) error {
			runs.Add(1)
			time.Sleep(1500 * time.Millisecond)
			return nil
		}})
		cfg.Timeout = 2 * time.Second // longer than the interval
		_, r := run(t, 15*time.Second-1, cfg)
		r.want(t, "1.5s true ok")
		if n := runs.Load(); n != 10 {
			t.Errorf("%d runs in 15 s, want 10", n)
		}
	})
}

func TestNoChecksIsHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := run(t, time.Minute, config())
		r.want(t, "0s true ok")
		if s := m.Status(); s.Verdict != Up || s.Detail != "ok" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestEndIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// At the end of ctx every well-behaved check returns its error; none may count.
		cfg := config(Check{Name: "a", Run: func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(500 * time.Millisecond):
				return nil
			}
		}})
		cfg.Fall = 1
		_, r := run(t, 3200*time.Millisecond, cfg)
		r.want(t, "500ms true ok")
	})
}

func TestRunAgainBeginsWithNothingKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := 0
		m := NewMonitor(config(Check{Name: "a", Run: between(0, 0), Close: func() { closed++ }}), zerolog.Nop())
		for i := range 3 {
			r := &told{began: time.Now()}
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			m.Run(ctx, r.report)
			cancel()
			r.want(t, "0s true ok")
			if closed != i+1 {
				t.Errorf("closed %d times after %d runs", closed, i+1)
			}
		}
	})
}

// TestStatusTellsSinceWhen: a check that failed was good at its run before, and nobody knows for how
// long after that.
func TestStatusTellsSinceWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		m, _ := run(t, 9500*time.Millisecond, config(
			Check{Name: "a", Run: between(5*time.Second, time.Hour)},
			Check{Name: "b", Run: between(3*time.Second, time.Hour)},
		))
		if got := m.Status().Since.Sub(began); got != 2*time.Second {
			t.Errorf("trouble since %v, want 2s", got)
		}
	})
}

func TestDetectionIsTheWorstCase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, offset := range []time.Duration{0, 1, 499 * time.Millisecond, time.Second - 1} {
			began := time.Now()
			from := 5*time.Second + offset
			cfg := config(Check{Name: "a", Run: func(ctx context.Context) error {
				if time.Since(began) >= from {
					<-ctx.Done()
				}
				return nil
			}})
			ctx, cancel := context.WithCancel(t.Context())
			var after time.Duration
			NewMonitor(cfg, zerolog.Nop()).Run(ctx, func(healthy bool, _ string, _ time.Time) {
				if !healthy {
					after = time.Since(began) - from
					cancel()
				}
			})
			if bound := cfg.Detection(); after > bound || after < bound-cfg.Interval {
				t.Errorf("hang at +%v was reported after %v, want at most %v", offset, after, bound)
			}
		}
	})
}

func TestValidate(t *testing.T) {
	ok := func(context.Context) error { return nil }
	err := Config{Checks: []Check{{Run: ok}, {Name: "a", Run: ok}, {Name: "a", Run: ok}, {Name: "b"}}}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"interval: 0s", "timeout: 0s", "rise: 0", "fall: 0", "health.checks[0].name: it is missing",
		`health.checks[2].name: "a" is the name of another check`, `health.checks[3]: "b" asks nothing`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
}

// wait is the outcome of Monitor.Wait: how long it took, the reasons to wait, and its error.
func wait(t *testing.T, limit time.Duration, cfg Config) (took time.Duration, reasons []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	err = NewMonitor(cfg, zerolog.Nop()).Wait(ctx, func(detail string) { reasons = append(reasons, detail) })
	return time.Since(began), reasons, err
}

func TestWaitEndsSoonAfterTheProgramIsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took, reasons, err := wait(t, 30*time.Second, config(
			Check{Name: "a", Run: between(0, 12*time.Second)}, Check{Name: "b", Run: between(0, time.Second)}))
		if err != nil || took < 12*time.Second || took > 12600*time.Millisecond {
			t.Errorf("it took %v, %v", took, err)
		}
		if got := strings.Join(reasons, "|"); got != "a: sick|a: sick; b: sick|a: sick" && got != "b: sick|a: sick; b: sick|a: sick" {
			t.Errorf("reasons to wait: %q", got)
		}
		took, reasons, err = wait(t, 30*time.Second, config(Check{Name: "a", Run: between(0, 0)}))
		if err != nil || took != 0 || reasons != nil {
			t.Errorf("a program that is well at once: %v, %v, %q", took, err, reasons)
		}
		took, _, err = wait(t, 30*time.Second, config())
		if err != nil || took != 0 {
			t.Errorf("without checks: %v, %v", took, err)
		}
	})
}

func TestWaitHonoursRiseAndNamesWhatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(Check{Name: "a", Run: between(time.Second, time.Hour)})
		cfg.Rise, cfg.Interval = 3, 2*time.Second
		if took, _, err := wait(t, 5*time.Second, cfg); err != nil || took != 40*time.Millisecond {
			t.Errorf("three successes, 20 ms apart: %v, %v", took, err)
		}
		cfg = config(Check{Name: "a", Run: between(0, time.Hour)}, Check{Name: "b", Run: between(0, 0)})
		if took, _, err := wait(t, 5*time.Second, cfg); fmt.Sprint(err) != "a: sick" || took != 5*time.Second {
			t.Errorf("%v, %v", took, err)
		}
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		if _, _, err := wait(t, 100*time.Millisecond, config(Check{Name: "a", Run: hang})); fmt.Sprint(err) != "no check has answered" {
			t.Errorf("%v", err)
		}
	})
}

package agentwatch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// in runs a test in fake time with a world.
func in(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}

func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func wantNil(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestFindsTheActiveAtStartup(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		watch, end := w.run(t, w.config())
		sleep(time.Second)
		w.want(t) // nothing without an active
		if a := watch.Snapshot().Agents[0]; a.State != "waiting" {
			t.Errorf("status %+v", a)
		}
		w.serving("a", 7)
		synctest.Wait()
		w.want(t, "1s start a@7")
		a := watch.Snapshot().Agents[0]
		if a.State != "running" || a.Follows != "a" || a.Term != 7 || a.Restarts != 0 || a.PID != 1 {
			t.Errorf("status %+v", a)
		}
		wantNil(t, end())
		w.want(t, "1s gone a@7")
	})
}

func TestOnlyServingIsFollowed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		_, end := w.run(t, w.config())
		for _, s := range []election.State{election.StateStarting, election.StateStopping, election.StateFailed} {
			w.say(election.Sighting{Active: active("a", 7, s)})
			sleep(time.Second)
		}
		w.want(t)
		w.serving("a", 7)
		synctest.Wait()
		w.want(t, "3s start a@7")
		wantNil(t, end())
	})
}

func TestRestartsAtTheNewActive(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.stopTime = 40 * time.Millisecond
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(10 * time.Second)
		w.dead("a")
		w.vacant()
		sleep(time.Second) // the agent keeps running: nobody to go to yet
		w.say(election.Sighting{Active: active("b", 8, election.StateStarting)})
		sleep(time.Second)
		w.serving("b", 8)
		sleep(time.Second)
		w.want(t, "0s start a@7", "12.04s gone a@7", "12.04s start b@8")
		a := watch.Snapshot().Agents[0]
		if a.Restarts != 1 || a.LastSwitchMS != 40 || a.Follows != "b" {
			t.Errorf("status %+v", a)
		}
		wantNil(t, end())
	})
}

func TestHigherTermAtTheSameControllerRestarts(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		_, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		w.serving("a", 7) // said again
		sleep(time.Second)
		w.serving("a", 8)
		sleep(time.Second)
		w.want(t, "0s start a@7", "2s gone a@7", "2s start a@8")
		wantNil(t, end())
	})
}

func TestAnotherURLOfTheSameTermRestarts(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		_, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		moved := active("a", 7, election.StateServing)
		moved.URL = "http://elsewhere.test:1"
		w.say(election.Sighting{Active: moved})
		sleep(time.Second)
		w.want(t, "0s start a@7", "1s gone a@7", "1s start a@7")
		wantNil(t, end())
	})
}

func TestOlderTermsAreDropped(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		watch, end := w.run(t, w.config())
		w.serving("b", 8)
		sleep(time.Second)
		w.serving("a", 7)
		sleep(10 * time.Second)
		w.want(t, "0s start b@8")
		if c := watch.Counters(); c.Dropped != 1 {
			t.Errorf("counters %+v", c)
		}
		// A term that was only seen in passing counts too.
		w.say(election.Sighting{Active: active("c", 10, election.StateStarting)})
		sleep(time.Second)
		w.serving("a", 9)
		sleep(time.Second)
		w.want(t)
		wantNil(t, end())
	})
}

func TestStrangersAreNotFollowed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Controllers = []string{"http://A.test:8080/", urlOf("b")}
		_, end := w.run(t, c)
		w.serving("evil", 99)
		sleep(time.Second)
		for _, u := range []string{"http://a.test:8080/x'; rm -rf", "file:///etc/passwd", "a.test:8080", "http://u:p@a.test:8080", ""} {
			a := active("a", 98, election.StateServing)
			a.URL = u
			w.say(election.Sighting{Active: a})
			sleep(time.Second)
		}
		w.want(t)
		w.serving("a", 7) // the stranger's term does not count
		sleep(time.Second)
		w.want(t, "6s start a@7")
		wantNil(t, end())
	})
}

func TestAChangeInTheMiddleOfARestartIsNotLost(t *testing.T) {
	for _, gap := range []time.Duration{0, time.Millisecond, 900 * time.Millisecond, 1500 * time.Millisecond, 2500 * time.Millisecond} {
		t.Run(gap.String(), func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.stopTime, w.startTime = 2*time.Second, time.Second
				_, end := w.run(t, w.config())
				w.serving("a", 7)
				sleep(10 * time.Second)
				w.story()
				w.serving("b", 8)
				sleep(gap)
				w.serving("c", 9)
				sleep(gap)
				w.serving("a", 10)
				sleep(20 * time.Second)
				lines := strings.Split(w.story(), "\n")
				if last := lines[len(lines)-1]; !strings.HasSuffix(last, "start a@10") {
					t.Errorf("ended with %q of %q", last, lines)
				}
				if got := w.living(); !slices.Equal(got, []string{"a@10"}) {
					t.Errorf("running: %q", got)
				}
				if gap <= time.Second && len(lines) != 2 {
					t.Errorf("what was not wanted any more was started: %q", lines)
				}
				wantNil(t, end())
			})
		})
	}
}

func TestStoreOutageAloneStopsNothing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		_, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		w.storeDown()
		sleep(3 * time.Hour)
		w.want(t, "0s start a@7")
		wantNil(t, end())
	})
}

func TestStoreOutageAgentDiesAndIsStartedAgain(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		_, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Minute)
		w.storeDown()
		sleep(time.Second)
		w.procs[0].die("signal: killed")
		sleep(time.Minute)
		w.want(t, "0s start a@7", "1m1s died a@7", "1m1s gone a@7", "1m1.5s start a@7")
		wantNil(t, end())
	})
}

// exitsAfter checks that Run gives up d after now, within one probe.
func exitsAfter(t *testing.T, w *world, c Config, end func() error, d time.Duration) {
	t.Helper()
	slack := c.Probe.Interval + c.Probe.Timeout
	sleep(d - time.Millisecond)
	if got := w.living(); len(got) != 1 {
		t.Errorf("stopped before %v: %q", d, got)
	}
	sleep(slack + time.Millisecond)
	if got := w.living(); len(got) != 0 {
		t.Errorf("still running after %v: %q", d+slack, got)
	}
	err := end()
	var un *UnreachableError
	if !errors.As(err, &un) || un.Rounds != c.Retries.Count {
		t.Errorf("Run: %v", err)
	}
}

func TestNobodyReachableStopsTheAgentAfterTheRetries(t *testing.T) {
	total := 10 * 2 * time.Second
	t.Run("store names one that is dead", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			watch, end := w.run(t, c)
			w.serving("a", 7)
			sleep(time.Minute)
			w.dead("a")
			exitsAfter(t, w, c, end, total)
			a := watch.Snapshot().Agents[0]
			if a.State != "unreachable" || !strings.Contains(a.Reason, "http://a.test:8080") {
				t.Errorf("status %+v", a)
			}
		})
	})
	t.Run("store names none", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			_, end := w.run(t, c)
			w.serving("a", 7)
			sleep(time.Minute)
			w.dead("a")
			w.vacant()
			exitsAfter(t, w, c, end, total)
		})
	})
	t.Run("everything hangs, store away", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			c.Controllers = []string{urlOf("a"), urlOf("b")}
			_, end := w.run(t, c)
			w.serving("a", 7)
			sleep(time.Minute)
			w.do(func() { w.hang["a.test:8080"], w.hang["b.test:8080"] = true, true })
			w.storeDown()
			exitsAfter(t, w, c, end, total)
		})
	})
	t.Run("from the start", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			_, end := w.run(t, c)
			w.vacant()
			sleep(total + time.Second)
			var un *UnreachableError
			if err := end(); !errors.As(err, &un) {
				t.Errorf("Run: %v", err)
			}
			w.want(t)
		})
	})
}

func TestASuccessBeginsTheRetriesAnew(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		_, end := w.run(t, c)
		w.serving("a", 7)
		for range 20 {
			sleep(time.Minute)
			w.dead("a")
			sleep(19 * time.Second)
			w.do(func() { w.open["a.test:8080"] = true })
			sleep(2 * time.Second)
		}
		w.want(t, "0s start a@7")
		w.dead("a")
		exitsAfter(t, w, c, end, 20*time.Second)
	})
}

func TestAnotherControllerThatAnswersStopsTheCounting(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Controllers = []string{urlOf("a"), urlOf("b")}
		_, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Minute)
		w.do(func() { w.open["b.test:8080"] = true })
		w.dead("a")
		sleep(time.Hour)
		w.want(t, "0s start a@7")
		wantNil(t, end())
	})
}

func TestZeroRetriesIsForEver(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Retries.Count = 0
		_, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Second)
		w.dead("a")
		sleep(3 * time.Hour)
		w.want(t, "0s start a@7")
		wantNil(t, end())
	})
}

func TestAgentThatKeepsEndingIsStartedLessAndLessOften(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.lifetime = 100 * time.Millisecond
		c := w.config()
		c.Backoff = Backoff{Min: time.Second, Max: 4 * time.Second, Reset: 10 * time.Second}
		watch, end := w.run(t, c)
		w.serving("a", 7)
		sleep(12 * time.Second)
		var starts []string
		for line := range strings.SplitSeq(w.story(), "\n") {
			if at, ok := strings.CutSuffix(line, " start a@7"); ok {
				starts = append(starts, at)
			}
		}
		if got, want := fmt.Sprint(starts), "[0s 1.1s 3.2s 7.3s 11.4s]"; got != want {
			t.Errorf("starts %s, want %s", got, want)
		}
		if a := watch.Snapshot().Agents[0]; a.State != "waiting" || !strings.Contains(a.Reason, "exit status 1") {
			t.Errorf("status %+v", a)
		}
		// A new active is retried at once.
		sleep(time.Second)
		w.serving("b", 8)
		synctest.Wait()
		w.want(t, "13s start b@8")
		// After a long enough run the shortest pause applies again.
		w.do(func() { w.lifetime = time.Minute })
		sleep(5 * time.Minute)
		if s := w.story(); !strings.Contains(s, "2m17.2s start") && !strings.Contains(s, "start b@8") {
			t.Errorf("story:\n%s", s)
		}
		wantNil(t, end())
	})
}

func TestAgentThatDiesInAVacancyWaits(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		_, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Minute)
		w.vacant()
		sleep(time.Second)
		w.procs[0].die("exit status 1")
		sleep(5 * time.Second)
		w.serving("b", 8)
		sleep(time.Second)
		w.want(t, "0s start a@7", "1m1s died a@7", "1m1s gone a@7", "1m6s start b@8")
		wantNil(t, end())
	})
}

func TestStopOnVacancy(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.StopOnVacancy = true
		_, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Minute)
		w.storeDown() // no vacancy
		sleep(time.Second)
		w.vacant()
		sleep(time.Second)
		w.serving("b", 8)
		sleep(time.Second)
		w.want(t, "0s start a@7", "1m1s gone a@7", "1m2s start b@8")
		wantNil(t, end())
	})
}

func TestStartThatFailsIsTriedAgain(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.startErr = errors.New("no such file")
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		if a := watch.Snapshot().Agents[0]; a.State != "waiting" || !strings.Contains(a.Reason, "no such file") {
			t.Errorf("status %+v", a)
		}
		w.do(func() { w.startErr = nil })
		sleep(time.Second)
		w.want(t, "0s start failed", "500ms start failed", "1.5s start a@7")
		wantNil(t, end())
	})
}

// TestFailedStartIsUndoneBeforeTheNext: the remains of a failed start are ended, and nothing else
// starts until that is confirmed.
func TestFailedStartIsUndoneBeforeTheNext(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.startErr, w.startLeaves, w.stopErr = errors.New("no memory"), true, errors.New("cannot confirm")
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(5 * time.Second)
		w.want(t, "0s start failed") // once: its end can't be confirmed
		w.do(func() { w.startErr = nil })
		sleep(5 * time.Second)
		if a := watch.Snapshot().Agents[0]; a.State != "restarting" || !strings.Contains(a.Reason, "cannot confirm that the agent is gone") {
			t.Errorf("%+v", a)
		}
		w.do(func() { w.stopErr = nil })
		sleep(2 * time.Second)
		w.want(t, "10.5s gone a@7", "10.5s start a@7")
		if got := w.living(); !slices.Equal(got, []string{"a@7"}) {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
		if left := w.living(); len(left) != 0 {
			t.Errorf("left running: %q", left)
		}
	})
	t.Run("told to end meanwhile", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			w.startErr, w.startLeaves = errors.New("no memory"), true
			_, end := w.run(t, w.config())
			w.serving("a", 7)
			synctest.Wait()
			wantNil(t, end())
			w.want(t, "0s start failed", "0s gone a@7")
		})
	})
}

func TestNoSecondAgentWhileTheEndOfTheFirstIsNotConfirmed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		w.do(func() { w.stopErr = errors.New("process 17 is in state D") })
		w.serving("b", 8)
		sleep(10 * time.Second)
		w.want(t, "0s start a@7")
		if a := watch.Snapshot().Agents[0]; a.State != "restarting" || !strings.Contains(a.Reason, "state D") {
			t.Errorf("status %+v", a)
		}
		w.serving("c", 9)
		sleep(500 * time.Millisecond)
		w.do(func() { w.stopErr = nil })
		sleep(2 * time.Second)
		w.want(t, "12s gone a@7", "12s start c@9")

		w.do(func() { w.stopErr = errors.New("process 18 is in state D") })
		if err := end(); err == nil || !strings.Contains(err.Error(), "state D") {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestSplayIsWaitedOutBeforeTheAgentIsTouched(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Agents[0].OnChange.Splay = 10 * time.Second
		c.Random = func() float64 { return 0.5 }
		_, end := w.run(t, c)
		w.serving("a", 7)
		sleep(10 * time.Second)
		w.serving("b", 8)
		sleep(2 * time.Second)
		w.serving("c", 9) // the splay does not restart
		sleep(8 * time.Second)
		w.want(t, "0s start a@7", "15s gone a@7", "15s start c@9")
		wantNil(t, end())
	})
}

func TestOverlapStartsTheNewBeforeItStopsTheOld(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.stopTime = time.Second
		c := w.config()
		c.Agents[0].Overlap = true
		_, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Second)
		w.serving("b", 8)
		sleep(2 * time.Second)
		w.want(t, "0s start a@7", "1s start b@8", "2s gone a@7")
		wantNil(t, end())
	})
}

func TestOnChangeSignal(t *testing.T) {
	dir := t.TempDir()
	tmpl, path := filepath.Join(dir, "tmpl"), filepath.Join(dir, "conf")
	if err := os.WriteFile(tmpl, []byte("server={{ .Active.Host }}:{{ .Active.Port }}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := func() string { b, _ := os.ReadFile(path); return strings.TrimSpace(string(b)) }
	config := func(w *world) Config {
		c := w.config()
		c.Agents[0].Command = []string{"/bin/agent", "fixed"}
		c.Agents[0].Files = []File{{Template: tmpl, Path: path, Mode: 0o640}}
		c.Agents[0].OnChange.Action = Signal
		c.Agents[0].OnChange.Signal = syscall.SIGHUP
		return c
	}
	t.Run("files", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			watch, end := w.run(t, config(w))
			w.serving("a", 7)
			sleep(time.Second)
			if conf() != "server=a.test:8080" {
				t.Errorf("file %q", conf())
			}
			w.serving("b", 8)
			sleep(time.Second)
			w.want(t, "0s start fixed", "1s signal hangup")
			if conf() != "server=b.test:8080" {
				t.Errorf("file %q", conf())
			}
			if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o640 {
				t.Errorf("mode %v, %v", fi.Mode(), err)
			}
			if a := watch.Snapshot().Agents[0]; a.Term != 8 || a.Restarts != 0 || a.Follows != "b" {
				t.Errorf("status %+v", a)
			}
			wantNil(t, end())
		})
	})
	t.Run("what is in the command needs a restart", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := config(w)
			c.Agents[0].Command = []string{"/bin/agent", "{{ .Active.Controller }}"}
			_, end := w.run(t, c)
			w.serving("a", 7)
			sleep(time.Second)
			w.serving("b", 8)
			sleep(time.Second)
			w.want(t, "0s start a", "1s gone a", "1s start b")
			wantNil(t, end())
		})
	})
	t.Run("a signal that can't be sent", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := config(w)
			c.Signal = func(int, syscall.Signal) error { return syscall.EPERM }
			_, end := w.run(t, c)
			w.serving("a", 7)
			sleep(time.Second)
			w.serving("b", 8)
			sleep(time.Second)
			w.want(t, "0s start fixed", "1s gone fixed", "1s start fixed")
			wantNil(t, end())
		})
	})
}

func TestBrokenFileDoesNotStopTheOldAgent(t *testing.T) {
	dir := t.TempDir()
	tmpl, path := filepath.Join(dir, "tmpl"), filepath.Join(dir, "conf")
	write := func(s string) {
		if err := os.WriteFile(tmpl, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{{ .Active.Controller }}")
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Agents[0].Files = []File{{Template: tmpl, Path: path, Mode: 0o600}}
		watch, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Second)
		write("{{ .Active.Nonsense }}")
		w.serving("b", 8)
		sleep(time.Second)
		w.want(t, "0s start a@7")
		if b, _ := os.ReadFile(path); string(b) != "a" {
			t.Errorf("the file is %q", b)
		}
		if a := watch.Snapshot().Agents[0]; !strings.Contains(a.Reason, "Nonsense") || a.Follows != "a" {
			t.Errorf("status %+v", a)
		}
		write("{{ .Active.Controller }}")
		sleep(30 * time.Second)
		if b, _ := os.ReadFile(path); string(b) != "b" {
			t.Errorf("the file is %q", b)
		}
		if got := w.living(); !slices.Equal(got, []string{"b@8"}) {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
		if left, _ := os.ReadDir(dir); len(left) != 2 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestStoreAwayTheSidecarsAreAsked(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sidecars["a.test:8710"] = election.ClusterRecord{
			Cluster: "orders", Active: active("a", 7, election.StateServing),
			Controllers: []election.Controller{
				{Name: "a", URL: urlOf("a"), API: "http://a.test:8710"},
				{Name: "b", URL: urlOf("b"), API: "http://b.test:8710"},
			},
		}
		watch, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Minute) // b's sidecar is learned of from a's
		w.storeDown()
		w.dead("a")
		w.do(func() {
			w.open["b.test:8080"] = true
			w.sidecars["b.test:8710"] = election.ClusterRecord{Cluster: "orders", Active: active("b", 8, election.StateServing)}
		})
		sleep(5 * time.Second)
		if got := w.living(); !slices.Equal(got, []string{"b@8"}) {
			t.Errorf("running: %q\n%+v", got, watch.Snapshot())
		}
		// An old picture, a stranger's cluster, and another URL for the same term change nothing.
		w.story()
		odd := active("b", 8, election.StateServing)
		odd.URL = urlOf("x")
		w.do(func() {
			w.open["a.test:8080"], w.open["x.test:8080"] = true, true
			w.sidecars["a.test:8710"] = election.ClusterRecord{Cluster: "orders", Active: active("a", 7, election.StateServing)}
			w.sidecars["b.test:8710"] = election.ClusterRecord{Cluster: "orders", Active: odd}
		})
		sleep(10 * time.Second)
		w.do(func() {
			w.sidecars["a.test:8710"] = election.ClusterRecord{Cluster: "bills", Active: active("a", 99, election.StateServing)}
		})
		sleep(10 * time.Second)
		w.want(t)
		// The store is back and knows better.
		w.serving("a", 9)
		synctest.Wait()
		if got := w.living(); !slices.Equal(got, []string{"a@9"}) {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

func TestStoreAwayAtTheStart(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	t.Run("first life", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			c.StateFile = state
			_, end := w.run(t, c)
			w.serving("a", 7)
			sleep(time.Second)
			wantNil(t, end())
		})
	})
	t.Run("the last known is followed if it answers", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			c.StateFile = state
			_, end := w.run(t, c)
			w.storeDown()
			sleep(5 * time.Second)
			w.want(t)
			w.do(func() { w.open["a.test:8080"] = true })
			sleep(5 * time.Second)
			if got := w.living(); !slices.Equal(got, []string{"a@7"}) {
				t.Errorf("running: %q", got)
			}
			w.story()
			w.serving("a", 7) // the store is back: nothing new
			sleep(time.Second)
			w.want(t)
			wantNil(t, end())
		})
	})
	t.Run("an older term is dropped across lives", func(t *testing.T) {
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			c.StateFile = state
			_, end := w.run(t, c)
			w.serving("b", 6)
			sleep(5 * time.Second)
			w.want(t)
			wantNil(t, end())
		})
	})
	t.Run("a broken state file is no obstacle", func(t *testing.T) {
		if err := os.WriteFile(state, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		in(t, func(t *testing.T, w *world) {
			c := w.config()
			c.StateFile = state
			_, end := w.run(t, c)
			w.serving("b", 6)
			synctest.Wait()
			w.want(t, "0s start b@6")
			wantNil(t, end())
		})
	})
}

func TestOnlyOneAnswersAndNothingElseIsKnown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Controllers = []string{urlOf("a"), urlOf("b")}
		c.Agents[0].Command = []string{"/bin/agent", "{{ .Active.URL }}"}
		_, end := w.run(t, c)
		w.storeDown()
		w.do(func() { w.open["a.test:8080"], w.open["b.test:8080"] = true, true })
		sleep(time.Minute) // two answer: no telling
		w.want(t)
		w.dead("a")
		sleep(2 * time.Second)
		if got := w.living(); !slices.Equal(got, []string{urlOf("b")}) {
			t.Errorf("running: %q", got)
		}
		w.story()
		w.do(func() { w.open["a.test:8080"] = true })
		sleep(time.Minute)
		w.want(t)         // it answers: stay
		w.serving("b", 7) // the term becomes known: no restart
		sleep(time.Second)
		w.want(t)
		w.serving("a", 8)
		synctest.Wait()
		if got := w.living(); !slices.Equal(got, []string{urlOf("a")}) {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

func TestStoreThatNeverSaysAnythingCountsAsAway(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Controllers = []string{urlOf("a")}
		w.open["a.test:8080"] = true
		_, end := w.run(t, c)
		sleep(10 * time.Second)
		if got := w.living(); len(got) != 1 {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

func TestManyAgentsInOneWatch(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		first := c.Agents[0]
		c.Agents = nil
		for i := range 200 {
			a := first
			a.Name = fmt.Sprintf("agt-%d", i)
			c.Agents = append(c.Agents, a)
		}
		watch, end := w.run(t, c)
		w.serving("a", 7)
		sleep(time.Second)
		w.serving("b", 8)
		sleep(time.Second)
		if got := w.living(); len(got) != 200 || slices.Contains(got, "a@7") {
			t.Errorf("running: %d", len(got))
		}
		if got := watch.Counters(); got.Switches != 400 || got.Probes > 6 {
			t.Errorf("counters %+v", got)
		}
		wantNil(t, end())
		if got := w.living(); len(got) != 0 {
			t.Errorf("running after the end: %d", len(got))
		}
	})
}

func TestEndDuringASlowStop(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.stopTime = 3 * time.Second
		_, end := w.run(t, w.config())
		w.serving("a", 7)
		sleep(time.Second)
		w.serving("b", 8)
		sleep(time.Second)
		wantNil(t, end())
		w.want(t, "0s start a@7", "4s gone a@7")
	})
}

func TestOneFailedProbeIsNotFall(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		c := w.config()
		c.Controllers = []string{urlOf("a"), urlOf("b")} // a failed probe of a is completed with b
		c.Probe.Fall = 2
		watch, end := w.run(t, c)
		w.serving("a", 7)
		sleep(10500 * time.Millisecond)
		w.dead("a")
		sleep(time.Second)
		if s := watch.Snapshot(); !s.Answers {
			t.Errorf("after one failed probe: %+v", s)
		}
		sleep(time.Second)
		if s := watch.Snapshot(); s.Answers {
			t.Errorf("after two failed probes: %+v", s)
		}
		wantNil(t, end())
	})
}

package agentwatch

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// status is what the store has of an agent.
func status(t *testing.T, s *electiontest.Store, name string) (a election.Agent, there bool) {
	t.Helper()
	v := s.Value("agents/" + name)
	if v == "" {
		return a, false
	}
	if err := json.Unmarshal([]byte(v), &a); err != nil {
		t.Fatal(err)
	}
	return a, true
}

// withStore is a watch on a store in memory: role key and status.
func withStore(t *testing.T, f func(t *testing.T, w *world, s *electiontest.Store, c Config)) {
	t.Helper()
	in(t, func(t *testing.T, w *world) {
		s := electiontest.NewStore()
		c := w.config()
		c.Source, c.Presence = s.Client("h1"), s.Client("h1")
		f(t, w, s, c)
	})
}

func roleKey(w *world, s *electiontest.Store, name string, term election.Term) {
	w.do(func() { w.open[name+".test:8080"] = true })
	s.Overwrite("active", string(active(name, term, election.StateServing).Encode()))
}

func TestStatusIsKeptInTheStore(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		_, end := w.run(t, c)
		sleep(time.Second)
		if a, _ := status(t, s, "agt-1"); a.State != "waiting" || a.Host != "h1" {
			t.Errorf("status %+v", a)
		}
		roleKey(w, s, "a", 7)
		sleep(time.Second)
		if a, _ := status(t, s, "agt-1"); a.State != "running" || a.Follows != "a" || a.Term != 7 || a.PID != 1 {
			t.Errorf("status %+v", a)
		}
		puts := s.Client("h1").Calls("Put")
		sleep(time.Hour)
		if n := s.Client("h1").Calls("Put") - puts; n != 0 {
			t.Errorf("%d writes in steady state", n)
		}
		if _, there := status(t, s, "agt-1"); !there {
			t.Error("the status is gone after an hour")
		}
		wantNil(t, end())
		synctest.Wait()
		if a, there := status(t, s, "agt-1"); there {
			t.Errorf("left behind: %+v", a)
		}
	})
}

func TestStatusComesBackAfterItsLeaseWasLost(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		_, end := w.run(t, c)
		roleKey(w, s, "a", 7)
		sleep(time.Minute)
		s.Client("h1").Partition()
		sleep(time.Minute)
		if _, there := status(t, s, "agt-1"); there {
			t.Error("the status outlives its lease")
		}
		s.Client("h1").Heal()
		sleep(30 * time.Second)
		if a, _ := status(t, s, "agt-1"); a.State != "running" {
			t.Errorf("status %+v", a)
		}
		w.want(t, "0s start a@7")
		wantNil(t, end())
	})
}

func TestDeniedStatusIsNoHarm(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		c.Presence = s.Client("denied")
		s.Client("denied").Deny(true)
		_, end := w.run(t, c)
		roleKey(w, s, "a", 7)
		sleep(time.Hour)
		w.want(t, "0s start a@7")
		wantNil(t, end())
	})
}

func TestReasonOfGivingUpStaysInTheStoreForAWhile(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		_, end := w.run(t, c)
		roleKey(w, s, "a", 7)
		sleep(time.Second)
		w.dead("a")
		sleep(30 * time.Second)
		if err := end(); err == nil {
			t.Error("did not give up")
		}
		a, _ := status(t, s, "agt-1")
		if a.State != "unreachable" || a.Reason == "" || a.PID != 0 {
			t.Errorf("status %+v", a)
		}
		sleep(epitaph)
		if _, there := status(t, s, "agt-1"); there {
			t.Error("it stays for ever")
		}
	})
}

func TestEndIsNotHeldUpByTheStore(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		_, end := w.run(t, c)
		roleKey(w, s, "a", 7)
		sleep(time.Second)
		s.Client("h1").Partition()
		sleep(time.Second)
		began := time.Now()
		wantNil(t, end())
		if d := time.Since(began); d > presenceCall+byeTimeout {
			t.Errorf("took %v", d)
		}
		if got := w.living(); len(got) > 0 {
			t.Errorf("running: %q", got)
		}
	})
}

func TestOneLeaseForAllAgents(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		second := c.Agents[0]
		second.Name = "agt-2"
		c.Agents = append(c.Agents, second)
		_, end := w.run(t, c)
		roleKey(w, s, "a", 7)
		sleep(time.Minute)
		if n := s.Client("h1").Calls("Grant"); n != 1 {
			t.Errorf("%d leases", n)
		}
		for _, name := range []string{"agt-1", "agt-2"} {
			if a, _ := status(t, s, name); a.State != "running" {
				t.Errorf("status of %s: %+v", name, a)
			}
		}
		wantNil(t, end())
	})
}

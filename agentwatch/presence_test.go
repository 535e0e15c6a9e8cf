package agentwatch

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// status returns the store's status of an agent.
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

// withStore returns a watch on an in-memory store: role key and status.
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
		if d := time.Since(began); d > 5*time.Second {
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

// watchOf makes c that of one process of a host.
func watchOf(c Config, incarnation string, pid int) Config {
	c.Self = election.AgentWatch{Incarnation: incarnation, Home: "h1", PID: pid}
	return c
}

func TestSecondWatchOfTheSameNameIsRefusedAndStartsNothing(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		_, end := w.run(t, watchOf(c, "one", 1))
		roleKey(w, s, "a", 7)
		sleep(time.Minute)
		w.want(t, "0s start a@7")
		second, err := New(watchOf(c, "two", 2))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := second.Run(t.Context()); !errors.Is(err, election.ErrNameTaken) {
			t.Errorf("the second ended with %v", err)
		}
		if d := time.Since(began); d > 2*c.PresenceTTL+c.PresenceTTL/5+2*time.Second {
			t.Errorf("refused after %v", d)
		}
		w.want(t)
		if a, _ := status(t, s, "agt-1"); a.Watch.Incarnation != "one" || a.State != "running" {
			t.Errorf("the status of the first is %+v", a)
		}
		wantNil(t, end())
	})
}

func TestNameOfTheDeadIsTakenAtOnce(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		old := election.Agent{Name: "agt-1", State: "running", Watch: election.AgentWatch{Incarnation: "one", Home: "h1", PID: 1}}
		lease, err := s.Client("h1").Grant(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Client("h1").Put(t.Context(), election.Put{Key: "agents/agt-1", Value: old.Encode(), Lease: lease}); err != nil {
			t.Fatal(err)
		}
		c.Dead = func(o election.AgentWatch) bool { return o.Home == "h1" && o.PID == 1 }
		roleKey(w, s, "a", 7)
		_, end := w.run(t, watchOf(c, "two", 2))
		sleep(3 * time.Second)
		w.want(t, "0s start a@7")
		if a, _ := status(t, s, "agt-1"); a.Watch.Incarnation != "two" || a.State != "running" {
			t.Errorf("status %+v", a)
		}
		wantNil(t, end())
	})
}

// TestStrayStatusKeepsNobodyOut: a status without a lease belongs to nobody; it would never expire.
func TestStrayStatusKeepsNobodyOut(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		old := election.Agent{Name: "agt-1", State: "running", Watch: election.AgentWatch{Incarnation: "one", Home: "h2", PID: 1}}
		s.Overwrite("agents/agt-1", string(old.Encode()))
		roleKey(w, s, "a", 7)
		_, end := w.run(t, watchOf(c, "two", 2))
		sleep(3 * time.Second)
		w.want(t, "0s start a@7")
		if a, _ := status(t, s, "agt-1"); a.Watch.Incarnation != "two" {
			t.Errorf("status %+v", a)
		}
		wantNil(t, end())
	})
}

// TestNameThatIsAboutToBeFreeIsWaitedFor: for as long as the store may keep the lease of a process
// that died, slack included.
func TestNameThatIsAboutToBeFreeIsWaitedFor(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		traits := s.Client("h1").Traits()
		traits.ExpirySlack = c.PresenceTTL // as Consul's
		s.SetTraits(traits)
		old := election.Agent{Name: "agt-1", State: "running", Watch: election.AgentWatch{Incarnation: "one", Home: "h2", PID: 1}}
		lease, err := s.Client("h1").Grant(t.Context(), 3*c.PresenceTTL)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Client("h1").Put(t.Context(), election.Put{Key: "agents/agt-1", Value: old.Encode(), Lease: lease}); err != nil {
			t.Fatal(err)
		}
		roleKey(w, s, "a", 7)
		_, end := w.run(t, watchOf(c, "two", 2))
		sleep(3*c.PresenceTTL + c.PresenceTTL/5)
		if got := w.living(); len(got) != 1 {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

func TestNameIsTakenWhenItsLeaseEnds(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		old := election.Agent{Name: "agt-1", State: "running", Watch: election.AgentWatch{Incarnation: "one", Home: "h2", PID: 1}}
		lease, err := s.Client("h1").Grant(t.Context(), 15*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Client("h1").Put(t.Context(), election.Put{Key: "agents/agt-1", Value: old.Encode(), Lease: lease}); err != nil {
			t.Fatal(err)
		}
		roleKey(w, s, "a", 7)
		_, end := w.run(t, watchOf(c, "two", 2))
		sleep(10 * time.Second)
		w.want(t)
		sleep(10 * time.Second)
		if got := w.living(); len(got) != 1 {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

func TestStoreThatIsAwayHoldsNoAgentBackForItsName(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		s.Client("h2").Partition()
		c.Presence = s.Client("h2")
		roleKey(w, s, "a", 7)
		_, end := w.run(t, watchOf(c, "two", 2))
		sleep(6 * time.Second)
		if got := w.living(); len(got) != 1 {
			t.Errorf("running: %q", got)
		}
		wantNil(t, end())
	})
}

// TestChangeOfTheActiveIsCarriedBeforeTheStatus: in the second in which a fleet learns of its new
// active, no agent writes.
func TestChangeOfTheActiveIsCarriedBeforeTheStatus(t *testing.T) {
	withStore(t, func(t *testing.T, w *world, s *electiontest.Store, c Config) {
		_, end := w.run(t, c)
		roleKey(w, s, "a", 7)
		sleep(time.Minute)
		puts := s.Client("h1").Calls("Put")
		roleKey(w, s, "b", 8)
		sleep(calm - time.Millisecond)
		if n := s.Client("h1").Calls("Put") - puts; n != 0 {
			t.Errorf("%d writes at once", n)
		}
		sleep(c.PresenceSpread + 10*time.Millisecond)
		if n := s.Client("h1").Calls("Put") - puts; n != 1 {
			t.Errorf("%d writes for one switch", n)
		}
		if a, _ := status(t, s, "agt-1"); a.Follows != "b" {
			t.Errorf("status %+v", a)
		}
		wantNil(t, end())
	})
}

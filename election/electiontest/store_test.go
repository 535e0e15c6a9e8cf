package electiontest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

func claim(t *testing.T, c *electiontest.Client, ttl time.Duration, term election.Term, version election.Version) election.LeaseID {
	t.Helper()
	lease, err := c.Grant(t.Context(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Claim(t.Context(), election.Claim{
		Lease: lease, TermVersion: version, Beat: true,
		Active:     election.Active{Controller: c.Name(), Term: term, State: election.StateStarting},
		Breadcrumb: election.Breadcrumb{Term: term, Controller: c.Name(), Validity: ttl},
	})
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

func hold(ctx context.Context, c *electiontest.Client, lease election.LeaseID, beat bool) error {
	_, err := c.Hold(ctx, election.Hold{Lease: lease, Beat: beat})
	return err
}

func TestLeaseEndsInFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a := store.Client("ctl-a")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		hints := a.Watch(ctx)
		<-hints
		lease := claim(t, a, time.Hour, 1, 0)
		<-hints
		time.Sleep(time.Hour - time.Second)
		if err := hold(ctx, a, lease, false); err != nil {
			t.Fatal(err)
		}
		renewed := time.Now()
		<-hints // the lease end, or its beat
		if got := time.Since(renewed); got != time.Hour {
			t.Errorf("the lease ended %v after its renewal, want 1h", got)
		}
		if keys := store.Keys(); len(keys) != 1 {
			t.Errorf("left over: %v, want the term key alone", keys)
		}
		if err := a.Renew(ctx, lease); !errors.Is(err, election.ErrLost) {
			t.Errorf("renewal of a lease that has ended: %v, want ErrLost", err)
		}
	})
}

func TestPartitionHonoursContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a, b := store.Client("ctl-a"), store.Client("ctl-b")
		a.Partition()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := a.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read through a partition: %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("it took %v, want 3s", d)
		}
		if _, err := b.Read(t.Context()); err != nil {
			t.Errorf("the other host: %v", err)
		}
		a.Heal()
		if _, err := a.Read(t.Context()); err != nil {
			t.Errorf("after healing: %v", err)
		}
	})
}

func TestLostReplyIsCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a := store.Client("ctl-a")
		a.LoseReplies(1, "Claim")
		lease, err := a.Grant(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		err = a.Claim(t.Context(), election.Claim{
			Lease: lease, Active: election.Active{Controller: "ctl-a", Term: 1}, Breadcrumb: election.Breadcrumb{Term: 1},
		})
		if err == nil || errors.Is(err, election.ErrConflict) || errors.Is(err, election.ErrLost) {
			t.Errorf("claim whose reply was lost: %v, want an unknown error", err)
		}
		snap, err := a.Read(t.Context())
		if err != nil || snap.ActiveLease != lease {
			t.Errorf("active lease %q, %v; want %q", snap.ActiveLease, err, lease)
		}
	})
}

func TestLateClaimFindsItsLeaseGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a := store.Client("ctl-a")
		lease, err := a.Grant(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		a.DeliverLate(1, 5*time.Second, "Claim")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = a.Claim(ctx, election.Claim{
			Lease: lease, Active: election.Active{Controller: "ctl-a", Term: 1}, Breadcrumb: election.Breadcrumb{Term: 1},
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("late claim: %v", err)
		}
		if err := a.Revoke(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if keys := store.Keys(); len(keys) != 0 {
			t.Errorf("a late claim of a revoked lease was carried out: %v", keys)
		}
	})
}

func TestStalledWatchIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a, b := store.Client("ctl-a"), store.Client("ctl-b")
		ctx, cancel := context.WithCancel(t.Context())
		hints := a.Watch(ctx)
		<-hints
		a.StallWatch()
		claim(t, b, time.Minute, 1, 0)
		synctest.Wait()
		select {
		case <-hints:
			t.Error("a stalled watch gave a hint")
		default:
		}
		a.ResumeWatch()
		<-hints
		cancel()
		if _, open := <-hints; open {
			t.Error("the channel of a watch is open after its context has ended")
		}
	})
}

func TestFollowSeesOutageAndRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a, agent := store.Client("ctl-a"), store.Client("agt-1")
		ctx, cancel := context.WithCancel(t.Context())
		sightings := agent.Follow(ctx)
		if s := <-sightings; s.Active != nil || s.Err != nil {
			t.Fatalf("first sighting %+v, want nobody", s)
		}
		claim(t, a, time.Hour, 1, 0)
		if s := <-sightings; s.Active == nil || s.Active.Term != 1 || s.Err != nil {
			t.Fatalf("second sighting %+v, want term 1", s)
		}
		agent.Partition()
		if s := <-sightings; s.Err == nil || s.Active == nil {
			t.Fatalf("sighting in an outage %+v, want an error and the last active", s)
		}
		agent.Heal()
		if s := <-sightings; s.Err != nil || s.Active == nil {
			t.Fatalf("sighting after an outage %+v, want no error", s)
		}
		cancel()
		for range sightings {
		}
	})
}

func TestStrangerAndRewind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		a := store.Client("ctl-a")
		lease := claim(t, a, time.Hour, 7, 0)
		store.Overwrite("active", "mine")
		if err := hold(t.Context(), a, lease, false); !errors.Is(err, election.ErrLost) {
			t.Errorf("renewal after a stranger's write: %v, want ErrLost", err)
		}
		store.Rewind(3)
		snap, err := a.Read(t.Context())
		if err != nil || snap.Breadcrumb.Term != 3 || snap.ActiveBad == nil || snap.ActiveLease != "" {
			t.Errorf("%+v, %v", snap, err)
		}
		if !store.RevokeEarly(lease) || len(store.Leases()) != 0 {
			t.Error("the lease is still there")
		}
	})
}

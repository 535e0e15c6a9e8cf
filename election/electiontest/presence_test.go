package electiontest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// TestPresenceTakesANameThatNobodyHas: what keeps a process from its name, and for how long.
func TestPresenceTakesANameThatNobodyHas(t *testing.T) {
	const ttl, slack = 5 * time.Second, 10 * time.Second
	for name, test := range map[string]struct {
		lease   time.Duration // of the existing status; zero: it is bound to none
		renewed bool
		want    time.Duration // at the latest
		taken   bool
	}{
		"bound to no lease":      {want: time.Second},
		"about to end":           {lease: 2 * ttl, want: 2*ttl + time.Second},
		"kept by the slack":      {lease: ttl + slack, want: ttl + slack + time.Second},
		"renewed by its process": {lease: ttl, renewed: true, want: 2*(ttl+slack) + 3*time.Second, taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := electiontest.NewStore()
				traits := store.Client("us").Traits()
				traits.ExpirySlack = slack
				store.SetTraits(traits)
				other, us := store.Client("other"), store.Client("us")
				status := election.Controller{Name: "ctl-a", Incarnation: "other"}.Encode()
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if test.lease == 0 {
					store.Overwrite(election.ControllerKey("ctl-a"), string(status))
				} else {
					lease, err := other.Grant(ctx, test.lease)
					if err != nil {
						t.Fatal(err)
					}
					if err := other.Put(ctx, election.Put{Key: election.ControllerKey("ctl-a"), Value: status, Lease: lease}); err != nil {
						t.Fatal(err)
					}
					if test.renewed {
						go func() {
							for other.Renew(ctx, lease) == nil {
								time.Sleep(ttl / 3)
							}
						}()
					}
				}
				begun := time.Now()
				p := &election.Presence{
					Store: us, TTL: ttl, Names: []string{election.ControllerKey("ctl-a")},
					Owner:   func(v []byte) election.Owner { return election.Owner{Ours: string(v) == "us"} },
					Entered: func(string) { stop() },
				}
				p.Set(election.ControllerKey("ctl-a"), []byte("us"))
				err := p.Run(ctx)
				took := time.Since(begun)
				if test.taken != errors.Is(err, election.ErrNameTaken) || took > test.want {
					t.Errorf("ended with %v after %v, want taken %v within %v", err, took, test.taken, test.want)
				}
				stop()
				synctest.Wait()
				time.Sleep(ttl)
			})
		})
	}
}

// occupy writes a name for another process, bound to a lease that nobody renews.
func occupy(t *testing.T, other *electiontest.Client, name string, ttl time.Duration) {
	t.Helper()
	lease, err := other.Grant(t.Context(), ttl)
	if err == nil {
		err = other.Put(t.Context(), election.Put{Key: name, Value: []byte("other"), Lease: lease})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// still is a store whose caller stands still for a minute with its second answer.
type still struct {
	*electiontest.Client
	asked int
}

func (s *still) Get(ctx context.Context, key string) (election.Entry, error) {
	e, err := s.Client.Get(ctx, key)
	if s.asked++; s.asked == 2 {
		time.Sleep(time.Minute)
	}
	return e, err
}

// TestPresenceJudgesNoOldAnswer: a process that stood still, and has an answer from before, does not
// take the lease that was there then for one that is renewed.
func TestPresenceJudgesNoOldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 5 * time.Second
		store := electiontest.NewStore()
		occupy(t, store.Client("other"), "agents/one", 2*ttl)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		entered := false
		p := &election.Presence{
			Store: &still{Client: store.Client("us")}, TTL: ttl, Names: []string{"agents/one"},
			Owner:   func(v []byte) election.Owner { return election.Owner{Ours: string(v) == "us"} },
			Entered: func(string) { entered = true; stop() },
		}
		p.Set("agents/one", []byte("us"))
		if err := p.Run(ctx); err != nil || !entered {
			t.Errorf("it ended with %v, has had the name: %v", err, entered)
		}
		stop()
		synctest.Wait()
		time.Sleep(ttl)
	})
}

// TestPresenceDoesNotCountTheStoresRestarts: a lease that only the restarts of the store prolong is
// nobody's.
func TestPresenceDoesNotCountTheStoresRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 5 * time.Second
		store := electiontest.NewStore()
		occupy(t, store.Client("other"), "agents/one", ttl)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var late atomic.Bool
		var restarts sync.WaitGroup
		restarts.Go(func() {
			for range 20 {
				time.Sleep(ttl / 2)
				store.Down()
				time.Sleep(ttl / 3)
				store.Restart()
				store.Up()
			}
			late.Store(true)
		})
		entered := false
		p := &election.Presence{
			Store: store.Client("us"), TTL: ttl, Names: []string{"agents/one"},
			Owner:   func(v []byte) election.Owner { return election.Owner{Ours: string(v) == "us"} },
			Entered: func(string) { entered = true; stop() },
		}
		p.Set("agents/one", []byte("us"))
		if err := p.Run(ctx); err != nil || !entered || !late.Load() {
			t.Errorf("it ended with %v, has had the name: %v, after the last restart: %v", err, entered, late.Load())
		}
		stop()
		restarts.Wait()
		time.Sleep(ttl)
	})
}

// TestPresenceEntersTheNamesThatAreFree: a name that another process has keeps this one from that name and from the keys
// that are no names, and from nothing else.
func TestPresenceEntersTheNamesThatAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 5 * time.Second
		store := electiontest.NewStore()
		us := store.Client("us")
		occupy(t, store.Client("other"), "agents/taken", 2*ttl)
		p := &election.Presence{
			Store: us, TTL: ttl, Names: []string{"agents/free", "agents/taken"},
			Owner: func(v []byte) election.Owner { return election.Owner{Ours: string(v) == "us"} },
		}
		for _, key := range []string{"agents/free", "agents/taken", "role/us"} {
			p.Set(key, []byte("us"))
		}
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = p.Run(ctx) }() // the checks below see how far it got
		want := func(what string, free, taken, role string) {
			t.Helper()
			if f, n, r := store.Value("agents/free"), store.Value("agents/taken"), store.Value("role/us"); f != free || n != taken || r != role {
				t.Errorf("%s: %q, %q and %q, want %q, %q and %q", what, f, n, r, free, taken, role)
			}
		}
		time.Sleep(ttl)
		want("while the other's lease lasts", "us", "other", "")
		time.Sleep(2 * ttl)
		want("after its end", "us", "us", "us")
		stop()
		synctest.Wait()
		want("after ours", "", "", "")
	})
}

// TestPresenceWritesWhatHasChanged: changes are gathered, a value that has changed back is not written, and a value that
// somebody else took care of meanwhile is.
func TestPresenceWritesWhatHasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		us := store.Client("us")
		p := &election.Presence{Store: us, TTL: time.Minute, Gather: func() time.Duration { return time.Second }}
		p.Set("role/us", []byte("passive"))
		ctx, stop := context.WithCancel(t.Context())
		writes := func(what string, n int, change func()) {
			t.Helper()
			before := us.Calls("Put") // the change may be written at once
			change()
			time.Sleep(2 * time.Second)
			if got := us.Calls("Put") - before; got != n {
				t.Errorf("%s: %d writes, want %d", what, got, n)
			}
		}
		set := func(values ...string) func() {
			return func() {
				for _, v := range values {
					p.Set("role/us", []byte(v))
				}
			}
		}
		writes("the first", 1, func() {
			go func() { _ = p.Run(ctx) }() // the checks below see how far it got
		})
		writes("there and back", 0, set("active", "passive"))
		writes("two in a row", 1, set("active", "idle"))
		p.Unset("role/us")
		store.Overwrite("role/us", "active")
		writes("not ours", 0, func() {})
		writes("ours again", 1, set("idle"))
		if got := store.Value("role/us"); got != "idle" {
			t.Errorf("it is %q", got)
		}
		stop()
		synctest.Wait()
	})
}

// TestPresenceRenewsWhenDueOnly: a change is one call to the store, and however often something
// changes, the lease is renewed and the name read as often as without changes.
func TestPresenceRenewsWhenDueOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		us := store.Client("us")
		const name = "controllers/us"
		p := &election.Presence{
			Store: us, TTL: time.Minute, Names: []string{name}, Recheck: true,
			Owner: func(v []byte) election.Owner { return election.Owner{Ours: len(v) > 0} },
			Every: func() time.Duration { return 20 * time.Second },
		}
		p.Set(name, []byte("state 0"))
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = p.Run(ctx) }() // the counts below show how far it got
		synctest.Wait()
		counts := func() [3]int { return [3]int{us.Calls("Renew"), us.Calls("Get"), us.Calls("Put")} }
		before := counts()
		for i := range 59 { // 118 s, a change every 2 s
			time.Sleep(2 * time.Second)
			p.Set(name, fmt.Appendf(nil, "state %d", i+1))
		}
		synctest.Wait()
		after := counts()
		if got := [3]int{after[0] - before[0], after[1] - before[1], after[2] - before[2]}; got != [3]int{5, 5, 59} {
			t.Errorf("%v renewals, reads and writes, want 5, 5 and 59", got)
		}
		if got := store.Value(name); got != "state 59" {
			t.Errorf("it is %q", got)
		}
		stop()
		synctest.Wait()
	})
}

// TestLateWriteOfAStatusIsPutRight: a write that its caller has given up on arrives after the next
// one. Found by the simulator, seed 6000126: a serving controller was shown as stopping until its
// state changed.
func TestLateWriteOfAStatusIsPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		us, name := store.Client("us"), election.ControllerKey("ctl-a")
		p := &election.Presence{
			Store: us, TTL: 5 * time.Second, Names: []string{name}, Recheck: true,
			Owner: func([]byte) election.Owner { return election.Owner{Ours: true} },
		}
		p.Set(name, []byte("ready"))
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = p.Run(ctx) })
		time.Sleep(time.Second)
		us.DeliverLate(1, 6*time.Second, "Put")
		p.Set(name, []byte("stopping"))
		time.Sleep(3 * time.Second) // it is given up
		p.Set(name, []byte("serving"))
		time.Sleep(time.Second)
		if is := store.Value(name); is != "serving" {
			t.Errorf("the status is %q before the late write", is)
		}
		time.Sleep(10 * time.Second)
		if is := store.Value(name); is != "serving" {
			t.Errorf("the status is %q after the late write", is)
		}
		stop()
		running.Wait()
		time.Sleep(10 * time.Second)
	})
}

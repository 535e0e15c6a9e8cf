package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// receiver notes what arrives.
type receiver struct {
	mu   sync.Mutex
	got  []string
	fail func(member string, n Notice) error
}

// of returns a channel of a member to it.
func (r *receiver) of(member string) Channel {
	return Channel{Name: "ops", Send: func(ctx context.Context, n Notice) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.fail != nil {
			if err := r.fail(member, n); err != nil {
				return err
			}
		}
		r.got = append(r.got, member+" "+n.ID)
		return ctx.Err()
	}}
}

func (r *receiver) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.got, ", ")
}

// members runs an outbox for each, until the test ends. It returns them, and what ends one.
func members(t *testing.T, store *electiontest.Store, r *receiver, names ...string) (map[string]*Outbox, map[string]func()) {
	t.Helper()
	all, stop := map[string]*Outbox{}, map[string]func(){}
	var running sync.WaitGroup
	for _, name := range names {
		o := NewOutbox(Config{Store: store.Client(name), Member: name, Channels: []Channel{r.of(name)}, Log: zerolog.Nop()})
		ctx, cancel := context.WithCancel(t.Context())
		running.Go(func() { o.Run(ctx) })
		all[name], stop[name] = o, cancel
	}
	t.Cleanup(func() {
		for _, end := range stop {
			end()
		}
		running.Wait()
	})
	return all, stop
}

// TestOneOfTheMembersSends: whoever is first sends, and nobody sends it again, not even after a
// restart.
func TestOneOfTheMembersSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := electiontest.NewStore(), &receiver{}
		all, _ := members(t, store, r, "a", "b", "c")
		for _, o := range all {
			o.Tell([]Notice{{ID: "takeover-8"}})
		}
		time.Sleep(time.Minute)
		if got := r.all(); !strings.HasSuffix(got, " takeover-8") || strings.Contains(got, ",") {
			t.Errorf("sent: %s", got)
		}
		time.Sleep(2 * GiveUp)
		for name, o := range all {
			if c := o.Counts()["ops"]; c.Failed != 0 {
				t.Errorf("%s takes what another has sent for failed: %+v", name, c)
			}
		}
		again, _ := members(t, store, r, "d")
		again["d"].Tell([]Notice{{ID: "takeover-8"}, {ID: "down-8"}})
		time.Sleep(time.Minute)
		if got := r.all(); !strings.HasSuffix(got, " takeover-8, d down-8") {
			t.Errorf("sent: %s", got)
		}
	})
}

// TestAnotherMemberSendsForOneThatCannot: the host of one may not reach the receiver.
func TestAnotherMemberSendsForOneThatCannot(t *testing.T) {
	for name, failure := range map[string]error{"it fails": errors.New("no route to host"), "it is refused": &Rejected{errors.New("401")}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, r := electiontest.NewStore(), &receiver{fail: func(member string, _ Notice) error {
					if member == "a" {
						return failure
					}
					return nil
				}}
				all, _ := members(t, store, r, "a", "b")
				all["a"].Tell([]Notice{{ID: "down-7"}})
				time.Sleep(100 * time.Millisecond)
				all["b"].Tell([]Notice{{ID: "down-7"}})
				time.Sleep(20 * time.Second) // and not only when the claim of a has ended
				if got := r.all(); got != "b down-7" {
					t.Errorf("sent: %q", got)
				}
			})
		})
	}
}

// TestAnotherMemberSendsForOneThatDied: its claim ends with its lease.
func TestAnotherMemberSendsForOneThatDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := electiontest.NewStore(), &receiver{}
		dead := store.Client("dead")
		lease, err := dead.Grant(t.Context(), claimTTL)
		if err != nil {
			t.Fatal(err)
		}
		if err := dead.Put(t.Context(), election.Put{Key: election.NoticeKey("ops", "down-7"), Value: []byte("{}"), Lease: lease}); err != nil {
			t.Fatal(err)
		}
		all, _ := members(t, store, r, "a")
		all["a"].Tell([]Notice{{ID: "down-7"}})
		time.Sleep(claimTTL - time.Second)
		if got := r.all(); got != "" {
			t.Errorf("sent while another may be sending: %s", got)
		}
		time.Sleep(10 * time.Second)
		if got := r.all(); got != "a down-7" {
			t.Errorf("sent: %q", got)
		}
	})
}

// TestWhatFailsIsRetriedWithBackOff: and given up after an hour; a receiver may say when.
func TestWhatFailsIsRetriedWithBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries []time.Duration
		begun := time.Now()
		store, r := electiontest.NewStore(), &receiver{}
		r.fail = func(_ string, n Notice) error {
			tries = append(tries, time.Since(begun).Round(time.Second))
			if len(tries) == 3 {
				return &Delayed{errors.New("too many requests"), time.Minute}
			}
			return errors.New("no route to host")
		}
		var log bytes.Buffer
		o := NewOutbox(Config{Store: store.Client("a"), Member: "a", Channels: []Channel{r.of("a")}, Log: zerolog.New(&log)})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { o.Run(ctx) })
		o.Tell([]Notice{{ID: "down-7", Text: "nobody is active"}})
		time.Sleep(3 * time.Hour)
		cancel()
		running.Wait()
		want := "[0s 1s 3s 1m3s 1m11s 1m27s"
		if got := fmt.Sprint(tries); !strings.HasPrefix(got, want) || tries[len(tries)-1] > GiveUp || tries[len(tries)-1] < GiveUp-10*time.Minute {
			t.Errorf("tried at %s, want %s…", got, want)
		}
		if c := o.Counts()["ops"]; c.Failed != 1 || c.Sent != 0 {
			t.Errorf("%+v", c)
		}
		if !strings.Contains(log.String(), `"notice":"down-7"`) || !strings.Contains(log.String(), "giving up") {
			t.Error("it is not logged")
		}
	})
}

// TestTheQueueIsBounded: a receiver that never answers costs the oldest notices, and nobody waits.
func TestTheQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{fail: func(string, Notice) error { return errors.New("away") }}
		o := NewOutbox(Config{Store: electiontest.NewStore().Client("a"), Channels: []Channel{r.of("a")}, Log: zerolog.Nop()})
		begun := time.Now()
		for i := range Waiting + 10 {
			o.Tell([]Notice{{ID: fmt.Sprint(i)}})
		}
		if c := o.Counts()["ops"]; c.Dropped != 10 || time.Since(begun) != 0 || o.lines[0].waiting[0].ID != "10" {
			t.Errorf("%+v after %v, first %s", c, time.Since(begun), o.lines[0].waiting[0].ID)
		}
	})
}

// TestChannelsChooseEvents: a channel gets only what it wants.
func TestChannelsChooseEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		c := r.of("a")
		c.Events = []string{EventDown}
		o := NewOutbox(Config{Store: electiontest.NewStore().Client("a"), Channels: []Channel{c}, Log: zerolog.Nop()})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go o.Run(ctx)
		o.Tell([]Notice{{ID: "takeover-7", Event: EventTakeover}, {ID: "down-7", Event: EventDown}})
		time.Sleep(time.Minute)
		if got := r.all(); got != "a down-7" {
			t.Errorf("sent: %q", got)
		}
	})
}

// TestNoticesWaitForTheStore: while it is away nobody knows who has sent what, except of what only
// this member knows.
func TestNoticesWaitForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := electiontest.NewStore(), &receiver{}
		all, _ := members(t, store, r, "a")
		store.Client("a").Partition()
		all["a"].Tell([]Notice{{ID: "takeover-8"}, {ID: "store-away", local: true}})
		time.Sleep(time.Minute)
		if got := r.all(); got != "a store-away" {
			t.Errorf("sent: %q", got)
		}
		store.Client("a").Heal()
		time.Sleep(5 * time.Minute)
		if got := r.all(); got != "a store-away, a takeover-8" {
			t.Errorf("sent: %q", got)
		}
	})
}

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// TestEventStream: each client first gets the present state, and then every change. One follower
// reads for all of them, and none once they have left. A client that reads nothing is dropped.
func TestEventStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		client := store.Client("ctl-a")
		write := func(key string, value []byte) {
			t.Helper()
			if err := client.Put(t.Context(), election.Put{Key: key, Value: value}); err != nil {
				t.Fatal(err)
			}
		}
		kinds := func(events <-chan api.Event) string {
			time.Sleep(daemon.StoreTimeout + 1500*time.Millisecond) // agents are looked at every second
			synctest.Wait()
			var all []string
			for len(events) > 0 {
				all = append(all, (<-events).Kind)
			}
			return strings.Join(all, " ")
		}
		want := func(what, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		agent := func(n int) {
			write(election.AgentKey(fmt.Sprint("agt-", n)), election.Agent{Name: fmt.Sprint("agt-", n), State: "waiting"}.Encode())
		}
		stream := eventStream(t.Context(), client)
		time.Sleep(time.Minute)
		if n := client.Calls("Read"); n > 0 {
			t.Errorf("%d reads before anybody asked", n)
		}

		agent(1)
		one, leave := context.WithCancel(t.Context())
		first := stream(one)
		want("the first", kinds(first), "agent")
		agent(2)
		want("a change", kinds(first), "agent")
		two, leaveToo := context.WithCancel(t.Context())
		second := stream(two)
		want("the second", kinds(second), "agent agent")
		store.Down()
		want("the store is away", kinds(second), "store-away")
		third := stream(two)
		want("a third, meanwhile", kinds(third), "agent agent store-away")
		store.Up()
		want("it is back", kinds(second), "store-back")

		leave()
		for range first { // until it is closed
		}
		for n := range eventsBehind + 10 { // nobody receives from the third
			agent(3 + n)
			if n%100 == 0 {
				kinds(second)
			}
		}
		kinds(second)
		for range third {
		}
		leaveToo()
		synctest.Wait()
		before := client.Calls("Read")
		time.Sleep(time.Minute)
		if n := client.Calls("Read") - before; n > 0 {
			t.Errorf("%d reads after everybody had left", n)
		}
		again, leaveAgain := context.WithCancel(t.Context())
		if got := strings.Fields(kinds(stream(again))); len(got) != eventsBehind {
			t.Errorf("somebody who comes later gets %d events", len(got))
		}
		leaveAgain()
		synctest.Wait()
	})
}

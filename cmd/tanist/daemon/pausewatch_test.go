package daemon

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/sidecar"
)

// TestPauseForATimeEndsByItself: after that time and not before, whatever the operator's clock shows.
// Another pause is not ended for it.
func TestPauseForATimeEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := electiontest.NewStore().Client("a")
		ctx, stop := context.WithCancel(t.Context())
		get := func() *election.Pause {
			e, err := keys.Get(context.Background(), election.PauseKey) // also while the watch ends
			if err != nil {
				t.Fatal(err)
			}
			p := &election.Pause{}
			if e.Version == 0 || json.Unmarshal(e.Value, p) != nil {
				return nil
			}
			return p
		}
		put := func(p election.Pause) {
			b, err := json.Marshal(p)
			if err == nil {
				err = keys.Put(ctx, election.Put{Key: election.PauseKey, Value: b})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var store error
		w := &pauseWatch{keys: keys, view: func() sidecar.View { return sidecar.View{Store: store, Snapshot: election.Snapshot{Pause: get()}} }, log: zerolog.Nop()}
		go w.run(ctx)
		put(election.Pause{By: "ana", Since: time.Now().Add(-time.Hour).UTC(), For: 2 * time.Minute})
		time.Sleep(2 * time.Minute)
		if get() == nil {
			t.Error("it ended early")
		}
		time.Sleep(2 * pauseEvery)
		if get() != nil {
			t.Error("it did not end")
		}
		put(election.Pause{By: "ana", Since: time.Now().UTC(), For: 2 * time.Minute})
		time.Sleep(time.Minute)
		put(election.Pause{By: "ben", Since: time.Now().UTC(), For: 2 * time.Minute})
		time.Sleep(90 * time.Second)
		if p := get(); p == nil || p.By != "ben" {
			t.Errorf("the later pause is %+v", p)
		}
		time.Sleep(time.Minute)
		put(election.Pause{By: "ana", Since: time.Now().UTC()})
		time.Sleep(24 * time.Hour)
		if get() == nil {
			t.Error("a pause without a time ended")
		}
		stop()
		synctest.Wait()
	})
}

// TestStandbyForATimeEndsByItself: of the one whose time is up, and of no other; a new one counts
// anew.
func TestStandbyForATimeEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := electiontest.NewStore().Client("a")
		read := func() election.Standbys {
			e, err := keys.Get(context.Background(), election.StandbyKey) // also while the watch ends
			if err != nil {
				t.Fatal(err)
			}
			if e.Version == 0 {
				return nil
			}
			all, err := election.DecodeStandbys(e.Value)
			if err != nil {
				t.Fatal(err)
			}
			return all
		}
		put := func(all election.Standbys) {
			if err := keys.Put(t.Context(), election.Put{Key: election.StandbyKey, Value: all.Encode()}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		w := &pauseWatch{keys: keys, log: zerolog.Nop(), view: func() sidecar.View {
			return sidecar.View{Snapshot: election.Snapshot{Standbys: read()}}
		}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.run(ctx)
		}()
		put(election.Standbys{"a": {By: "ana", For: time.Minute}, "b": {By: "ana", Ban: true, For: time.Hour}, "c": {By: "ana"}})
		time.Sleep(58 * time.Second)
		if got := read(); len(got) != 3 {
			t.Errorf("before its time: %v", got)
		}
		time.Sleep(4 * time.Second)
		if got := read(); len(got) != 2 || got["a"].By != "" {
			t.Errorf("after its time: %v", got)
		}
		put(election.Standbys{"b": {By: "bob", Ban: true, For: time.Hour}, "c": {By: "ana"}})
		time.Sleep(59 * time.Minute)
		if got := read(); len(got) != 2 {
			t.Errorf("another of the same name: %v", got)
		}
		time.Sleep(2 * time.Minute)
		if got := read(); len(got) != 1 || got["c"].By != "ana" {
			t.Errorf("at the end: %v", got)
		}
		stop()
		<-done
	})
}

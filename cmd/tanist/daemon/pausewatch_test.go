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

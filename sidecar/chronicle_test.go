package sidecar

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// TestLateWriteOfTheHistoryUndoesNothing: the write of a reign's beginning is given up, and arrives
// after the write of its end. Found by the simulator, seed 2323356185.
func TestLateWriteOfTheHistoryUndoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		client := store.Client("us")
		c := &chronicle{keys: client, attempt: 300 * time.Millisecond}
		h := election.History{Term: 7, To: "ctl-a", When: time.Now()}
		client.DeliverLate(1, 5*time.Second, "Put")
		if err := c.write(t.Context(), h); err == nil {
			t.Fatal("the late write was acknowledged")
		}
		h.Ended, h.EndedBy = time.Now(), "switchover"
		if err := c.write(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		var is election.History
		if err := json.Unmarshal([]byte(store.Value(election.HistoryKey(7))), &is); err != nil || is.EndedBy != "switchover" {
			t.Errorf("the history is %+v (%v)", is, err)
		}
	})
}

package daemon

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/sidecar"
)

// TestMemberThatIsGoneIsStillKnown: since when the active has missed it, until it is back or somebody
// forgets it.
func TestMemberThatIsGoneIsStillKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := electiontest.NewStore().Client("a")
		here := func(names ...string) (all []election.Controller) {
			for _, name := range names {
				all = append(all, election.Controller{Name: name, URL: "http://" + name, Host: "host-of-" + name + "/boot-1"})
			}
			return all
		}
		view := sidecar.View{Term: 7, Snapshot: election.Snapshot{Active: &election.Active{Controller: "ctl-a"}, Controllers: here("ctl-a", "ctl-b")}}
		var mu sync.Mutex // guards view, which only this goroutine changes
		now := func() sidecar.View {
			mu.Lock()
			defer mu.Unlock()
			return view
		}
		change := func(term election.Term, names ...string) {
			mu.Lock()
			defer mu.Unlock()
			view.Term, view.Snapshot.Controllers = term, here(names...)
		}
		w := &memberWatch{keys: keys, view: now, log: zerolog.Nop()}
		ctx, stop := context.WithCancel(t.Context())
		go w.run(ctx)
		gone := func() []election.Member {
			t.Helper()
			synctest.Wait()
			all, err := operate.ReadGone(ctx, keys, view.Snapshot.Controllers)
			if err != nil {
				t.Fatal(err)
			}
			return all
		}
		time.Sleep(time.Minute)
		if got := gone(); len(got) != 0 {
			t.Errorf("gone are %+v", got)
		}
		change(7, "ctl-a")
		since := time.Now()
		time.Sleep(time.Hour)
		got := gone()
		if len(got) != 1 || got[0].Name != "ctl-b" || got[0].Host != "host-of-ctl-b" || got[0].Gone.Sub(since) < 0 || got[0].Gone.Sub(since) > membersEvery {
			t.Errorf("gone are %+v, want ctl-b since %v", got, since)
		}
		change(7, "ctl-a", "ctl-b")
		time.Sleep(membersEvery)
		if got := gone(); len(got) != 0 {
			t.Errorf("gone are %+v", got)
		}
		if e, _ := keys.Get(ctx, election.MemberKey("ctl-b")); string(e.Value) != `{"name":"ctl-b","url":"http://ctl-b","host":"host-of-ctl-b"}` {
			t.Errorf("the record is %s", e.Value)
		}
		// A passive writes nothing.
		change(0, "ctl-a", "ctl-b", "ctl-c")
		time.Sleep(time.Minute)
		if e, _ := keys.Get(ctx, election.MemberKey("ctl-c")); e.Version != 0 {
			t.Errorf("a passive wrote %s", e.Value)
		}
		stop()
		synctest.Wait()
	})
}

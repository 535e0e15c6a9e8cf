package electiontest

import (
	"context"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// HeirNeedNotLook fails the test if b, to which a hands the reign and which has read that, cannot
// publish in one request: current asks b for the version of the role key, from memory. What another
// has written since is noticed all the same. The store of a and b is empty.
func HeirNeedNotLook(t *testing.T, a, b election.Backend, current func(context.Context, election.LeaseID) (election.Version, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lease, err := a.Grant(ctx, 10*time.Minute)
	must(err)
	must(a.Claim(ctx, election.Claim{
		Lease: lease, Active: election.Active{Controller: "ctl-a", Term: 1, State: election.StateStarting},
		Breadcrumb: election.Breadcrumb{Term: 1, Controller: "ctl-a", Validity: time.Second},
	}))
	heir, err := b.Grant(ctx, 10*time.Minute)
	must(err)
	must(b.Put(ctx, election.Put{
		Key: election.HeirKey, Value: election.Heir{Controller: "ctl-b", After: 1, Lease: heir, Validity: "1s"}.Encode(), Lease: heir,
	}))
	snap, err := a.Read(ctx)
	must(err)
	record := election.Active{Controller: "ctl-b", Term: 2, State: election.StateStarting}
	must(a.HandOver(ctx, lease, election.HandOver{
		From: "ctl-a", Heir: snap.HeirVersion, TermVersion: snap.TermVersion, Lease: heir, Active: record,
		Breadcrumb: election.Breadcrumb{Term: 2, Controller: "ctl-b", Validity: time.Second},
	}))
	_, err = b.Read(ctx)
	must(err)
	over, end := context.WithCancel(ctx)
	end()
	if at, err := current(over, heir); err != nil || at == 0 {
		t.Errorf("the heir has to look: version %d, %v", at, err)
	}
	record.State = election.StateServing
	must(b.Publish(ctx, heir, record))
	must(b.Publish(ctx, heir, record))
	must(a.Publish(ctx, heir, election.Active{Controller: "ctl-b", Term: 2, State: election.StateStopping})) // by whoever has the lease
	must(b.Publish(ctx, heir, record))
	if snap, err = a.Read(ctx); err != nil || !snap.Active.Serving() {
		t.Errorf("the role key: %+v, %v", snap.Active, err)
	}
}

package operate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// silent is a [Say] that nobody hears.
func silent(string) {}

// TestWhatOperatorsAskForIsRecorded: who, how, the equivalent command and the outcome, of what is
// done and of what is refused; and nothing of what changes nothing.
func TestWhatOperatorsAskForIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		c := &Cluster{Name: "orders", Store: store.Client("ana"), By: "ana"}
		run := func(v Verb) error {
			t.Helper()
			if err := c.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
			unrecorded, err := c.Run(t.Context(), v, Asker{Via: "token", Role: "operator"}, silent)
			if unrecorded != nil {
				t.Error(unrecorded)
			}
			time.Sleep(time.Second)
			return err
		}
		for _, v := range []Verb{&Pause{For: time.Hour, Reason: "it's time"}, &Pause{}, &Cancel{}, &Resume{}, &Resume{}} {
			if err := run(v); err != nil {
				t.Error(err)
			}
		}
		if err := run(failing{}); err == nil {
			t.Error("the failure is lost")
		}
		all, err := ReadAudit(t.Context(), c.Store)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range all {
			got = append(got, fmt.Sprintf("%s %s %s: %s: %s", a.By, a.Via, a.Role, a.Command, a.Outcome))
			if a.At.IsZero() || a.Ended.IsZero() {
				t.Errorf("no times: %+v", a)
			}
		}
		want := []string{
			"ana token operator: tanist failing: it is not possible",
			"ana token operator: tanist resume: done",
			`ana token operator: tanist pause --for 1h0m0s --reason 'it'\''s time': done`,
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// failing is a verb that cannot be carried out.
type failing struct{}

func (failing) Command() string                             { return "tanist failing" }
func (failing) Check(context.Context, *Cluster) error       { return nil }
func (failing) Begin(context.Context, *Cluster) error       { return errors.New("it is\nnot possible") }
func (failing) Follow(context.Context, *Cluster, Say) error { return nil }

// TestOldRecordsAreRemoved: the store keeps a bounded number.
func TestOldRecordsAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{Name: "orders", Store: electiontest.NewStore().Client("ana"), By: "ana"}
		for range auditsKept + 5 {
			if _, err := c.Run(t.Context(), failing{}, Asker{Via: "command"}, silent); err == nil {
				t.Fatal("the failure is lost")
			}
			time.Sleep(time.Millisecond)
		}
		all, err := c.Store.List(t.Context(), election.AuditPrefix)
		if err != nil || len(all) != auditsKept {
			t.Errorf("%d records, %v", len(all), err)
		}
	})
}

// TestWhatCannotBeRecordedIsDone: the rights to keep records may be missing.
func TestWhatCannotBeRecordedIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{Name: "orders", Store: unrecording{electiontest.NewStore().Client("ana")}, By: "ana"}
		unrecorded, err := c.Run(t.Context(), &Pause{}, Asker{Via: "command"}, silent)
		if KindOf(unrecorded) != Denied || err != nil {
			t.Errorf("%v, %v", unrecorded, err)
		}
		if err := c.Look(t.Context()); err != nil || c.Snap.Pause == nil {
			t.Errorf("it is not done: %v", err)
		}
	})
}

// unrecording is a store whose login may not write records.
type unrecording struct{ *electiontest.Client }

func (u unrecording) Put(ctx context.Context, p election.Put) error {
	if strings.HasPrefix(p.Key, election.AuditPrefix) {
		return election.ErrDenied
	}
	return u.Client.Put(ctx, p)
}

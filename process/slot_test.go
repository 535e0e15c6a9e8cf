package process

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// TestAbsenceOfEvidenceIsNotEvidence: what was not found is gone only where something shows that it
// is.
func TestAbsenceOfEvidenceIsNotEvidence(t *testing.T) {
	for name, test := range map[string]struct {
		e    evidence
		want Verdict
	}{
		"nothing was ever started":                       {evidence{}, Gone},
		"the host was booted since":                      {evidence{record: recordOtherBoot}, Gone},
		"something lives":                                {evidence{living: 1}, Running},
		"something lives, whatever its status says":      {evidence{record: recordPresent, living: 1, asked: true, outside: Gone}, Running},
		"a guard lives that was not found":               {evidence{locked: true}, Unknown},
		"its cgroup is empty, but a guard may fill it":   {evidence{record: recordPresent, locked: true, group: true}, Unknown},
		"its cgroup is empty, and there is no guard":     {evidence{record: recordPresent, group: true}, Gone},
		"its orphans would be ours, and there are none":  {evidence{record: recordPresent, orphans: true}, Gone},
		"no cgroup, and its guard is dead":               {evidence{record: recordPresent}, Unknown},
		"its record is unreadable":                       {evidence{record: recordUnreadable}, Unknown},
		"the same, and a cgroup that was found is empty": {evidence{record: recordUnreadable, found: true, group: true}, Unknown},
		"no record, but something was found and killed":  {evidence{found: true}, Unknown},
		"the same, in a cgroup":                          {evidence{found: true, group: true}, Gone},
		"its status says that it runs":                   {evidence{record: recordPresent, group: true, asked: true, outside: Running}, Running},
		"its status says that it does not":               {evidence{record: recordPresent, asked: true, outside: Gone}, Gone},
		"its status hangs, and its cgroup is empty":      {evidence{record: recordPresent, group: true, asked: true}, Unknown},
	} {
		if got, why := test.e.verdict(); got != test.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", name, got, why, test.want)
		}
	}
}

// fakeDriver does what it is told, and notes what it was asked.
type fakeDriver struct {
	Driver
	adopt, settle, stop, start error
	asked                      []string
}

func (f *fakeDriver) Start(context.Context, []string, election.Instant) error {
	f.asked = append(f.asked, "start")
	return f.start
}

func (f *fakeDriver) Adopt(context.Context) error {
	f.asked = append(f.asked, "adopt")
	return f.adopt
}

func (f *fakeDriver) Settle(context.Context) error {
	f.asked = append(f.asked, "settle")
	return f.settle
}

func (f *fakeDriver) Stop(context.Context, time.Duration) error {
	f.asked = append(f.asked, "stop")
	return f.stop
}

func (f *fakeDriver) Extend(election.Instant) {}

// TestSlotIsSettledBeforeItIsUsed: in no order of calls is a program started, or a stop confirmed,
// while it is not known what an earlier process left.
func TestSlotIsSettledBeforeItIsUsed(t *testing.T) {
	alive := errors.New("alive")
	type call func(s *Slot) error
	start := func(s *Slot) error { return s.Start(t.Context(), nil, 0) }
	stop := func(s *Slot) error { return s.Stop(t.Context(), 0) }
	adopt := func(s *Slot) error { return s.Adopt(t.Context(), 0) }
	for name, test := range map[string]struct {
		driver fakeDriver
		calls  []call
		want   []string
		last   error
	}{
		"a first start":                            {fakeDriver{}, []call{start, stop}, []string{"settle", "start", "stop"}, nil},
		"what is left lives":                       {fakeDriver{settle: alive}, []call{start}, []string{"settle"}, alive},
		"and lives still":                          {fakeDriver{settle: alive}, []call{start, stop}, []string{"settle", "settle"}, alive},
		"nothing can be proved of it":              {fakeDriver{settle: election.ErrUnproven}, []call{start}, []string{"settle", "start"}, nil},
		"adopted":                                  {fakeDriver{}, []call{adopt, stop, start}, []string{"adopt", "stop", "start"}, nil},
		"nothing to adopt":                         {fakeDriver{adopt: ErrNothingToAdopt}, []call{adopt, stop}, []string{"adopt"}, nil},
		"it cannot be told whether there is":       {fakeDriver{adopt: alive}, []call{adopt, stop}, []string{"adopt", "settle"}, nil},
		"nor proved, which is not confirmed":       {fakeDriver{adopt: alive, settle: election.ErrUnproven}, []call{adopt, stop}, []string{"adopt", "settle"}, election.ErrUnproven},
		"but it is not asked again for ever":       {fakeDriver{adopt: alive, settle: election.ErrUnproven}, []call{adopt, stop, stop}, []string{"adopt", "settle"}, nil},
		"a stop before anything":                   {fakeDriver{}, []call{stop}, []string{"settle"}, nil},
		"a start that failed is stopped as others": {fakeDriver{start: alive}, []call{start, stop}, []string{"settle", "start", "stop"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewSlot(&test.driver)
			var err error
			for _, c := range test.calls {
				err = c(s)
			}
			if !errors.Is(err, test.last) {
				t.Errorf("err = %v, want %v", err, test.last)
			}
			if !slices.Equal(test.driver.asked, test.want) {
				t.Errorf("asked %v, want %v", test.driver.asked, test.want)
			}
		})
	}
}

// TestIdentitiesAreUnambiguous: no two programs of a host share a name, whatever their clusters and
// controllers are called.
func TestIdentitiesAreUnambiguous(t *testing.T) {
	seen := map[string]Identity{}
	names := map[string]Identity{}
	for _, i := range []Identity{{"a", "b-c"}, {"a-b", "c"}, {"a--b", "c"}, {"a", "b--c"}, {"a+b", "c"}, {"a", "b+c"}, {"a%2Bb", "c"}, {"a.b", "c"}, {"a", "b.c"}} {
		if other, is := seen[i.String()]; is {
			t.Errorf("%+v and %+v are both %s", i, other, i)
		}
		seen[i.String()] = i
		name := StateName(i.Cluster, i.Controller)
		if other, is := names[name]; is {
			t.Errorf("%+v and %+v both keep their state in %s", i, other, name)
		}
		names[name] = i
	}
}

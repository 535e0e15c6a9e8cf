package notify

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// at is the time of the first look.
var at = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// serving is a scene in which ctl-a serves with term 7.
func serving(change func(*Scene)) Scene {
	s := Scene{
		Snap:    election.Snapshot{Active: &election.Active{Controller: "ctl-a", Term: 7, State: election.StateServing}},
		History: []election.History{{Term: 7, When: at.Add(-time.Hour), From: "ctl-b", To: "ctl-a"}, {Term: 6, When: at.Add(-2 * time.Hour), To: "ctl-b"}},
	}
	if change != nil {
		change(&s)
	}
	return s
}

// TestWhatIsTold: the notices of a sequence of scenes.
func TestWhatIsTold(t *testing.T) {
	second := func(n int) time.Time { return at.Add(time.Duration(n) * time.Second) }
	type look struct {
		at    int // seconds after the first
		scene Scene
	}
	vacant := func(s *Scene) { s.Snap.Active = nil }
	paused := func(s *Scene) { s.Snap.Pause, s.Snap.PauseVer = &election.Pause{By: "ana", Reason: "work"}, 41 }
	gone := func(s *Scene) {
		s.Members = []election.Member{{Name: "ctl-a", Host: "h1"}, {Name: "ctl-b", Host: "h2", Gone: second(-40)}}
	}
	unfit := func(s *Scene) {
		s.Snap.Controllers = []election.Controller{{Name: "ctl-b", Incarnation: "INCARNATION", State: election.StateUnfit, Reason: "no disk\x1b[2J", Since: at}}
	}
	next := func(s *Scene) {
		s.Snap.Active = &election.Active{Controller: "ctl-b", Term: 8, State: election.StateServing}
		s.History = append([]election.History{{Term: 8, When: second(40), From: "ctl-a", To: "ctl-b", Reason: "lease expired", Outage: 9100, OutageAtMost: true}}, s.History...)
	}
	for name, c := range map[string]struct {
		looks []look
		want  []string
	}{
		"nothing new at the beginning": {[]look{{0, serving(nil)}}, nil},
		"a takeover": {[]look{{0, serving(nil)}, {10, serving(vacant)}, {41, serving(next)}, {42, serving(next)}}, []string{
			"takeover-8 warning: ctl-b took over from ctl-a, term 8: lease expired (outage at most 9.1s)",
		}},
		"a takeover a moment before the beginning": {[]look{{41, serving(next)}}, []string{
			"takeover-8 warning: ctl-b took over from ctl-a, term 8: lease expired (outage at most 9.1s)",
		}},
		"nobody for long": {[]look{{0, serving(nil)}, {1, serving(vacant)}, {30, serving(vacant)}, {31, serving(vacant)}, {40, serving(vacant)}, {41, serving(next)}}, []string{
			"down-7 critical: nobody is active; the last was ctl-a, term 7",
			"takeover-8 warning: ctl-b took over from ctl-a, term 8: lease expired (outage at most 9.1s)",
			"down-7-over critical: it is over: nobody is active; the last was ctl-a, term 7",
		}},
		"a pause": {[]look{{0, serving(paused)}, {1, serving(paused)}, {2, serving(nil)}}, []string{
			"paused-41 info: ana paused the cluster: nothing fails over: work",
			"paused-41-over info: it is over: ana paused the cluster: nothing fails over: work",
		}},
		"a member that is gone": {[]look{{0, serving(gone)}, {29, serving(gone)}, {30, serving(gone)}, {31, serving(nil)}}, []string{
			"gone-ctl-b-1795867160000 warning: the sidecar of ctl-b on h2 is gone",
			"gone-ctl-b-1795867160000-over warning: it is over: the sidecar of ctl-b on h2 is gone",
		}},
		"one that is restarted": {[]look{{0, serving(gone)}, {29, serving(nil)}, {40, serving(nil)}}, nil},
		"an unfit passive, without its control characters": {[]look{{0, serving(unfit)}, {60, serving(unfit)}}, []string{
			"unfit-ctl-b-INCARNAT-1795867200000 warning: ctl-b could not take over: no disk [2J",
		}},
		"a store that is away changes nothing else": {[]look{{0, serving(paused)}, {1, Scene{Away: true}}, {61, Scene{Away: true}}, {62, serving(paused)}}, []string{
			"paused-41 info: ana paused the cluster: nothing fails over: work",
			"store-away-ctl-x-1795867201000 critical: ctl-x cannot read the store",
			"store-away-ctl-x-1795867201000-over critical: it is over: ctl-x cannot read the store",
		}},
		"a restart in place, a standby and a confirmation": {[]look{{0, serving(nil)}, {1, serving(func(s *Scene) {
			s.History[0].Restarts = []election.Restart{{At: second(1), Why: "restart in place after a failure: exit status 3", Outage: 1200}}
			s.Snap.Standbys = election.Standbys{"ctl-b/../x": {By: "ana", Since: at}}
			s.Snap.Dead = &election.Dead{Controller: "ctl-b", Term: 6, By: "ana", At: second(0)}
		})}}, []string{
			"confirmed-dead-ctl-b-1795867200000 warning: ana confirmed that ctl-b is dead, up to term 6",
			"restarted-7-1795867201000 warning: ctl-a was restarted in place, term 7: after a failure: exit status 3 (outage 1.2s)",
			"standby-ctl-b_.._x-1795867200000 info: ctl-b/../x is on standby, by ana; `tanist standby ctl-b/../x off` ends that",
		}},
	} {
		o := NewObserver("orders", "ctl-x")
		var got []string
		for _, l := range c.looks {
			for _, n := range o.Look(l.scene, second(l.at)) {
				got = append(got, fmt.Sprintf("%s %s: %s", n.ID, n.Severity, n.Text))
				if n.Cluster != "orders" || n.At.IsZero() {
					t.Errorf("%s: %+v", name, n)
				}
			}
		}
		if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: got\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// TestMembersMakeTheSameIDs: claims are by ID.
func TestMembersMakeTheSameIDs(t *testing.T) {
	scene := serving(func(s *Scene) {
		s.Snap.Pause, s.Snap.PauseVer = &election.Pause{By: "ana"}, 41
		s.History[0].When = at
	})
	a, b := NewObserver("orders", "ctl-a").Look(scene, at), NewObserver("orders", "ctl-b").Look(scene, at.Add(time.Minute))
	if len(a) != 2 || len(b) != 2 || a[0].ID != b[0].ID || a[1].ID != b[1].ID {
		t.Errorf("%+v\n%+v", a, b)
	}
}

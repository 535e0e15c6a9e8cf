package election

import (
	"encoding/json"
	"fmt"
	"strings"
)

// SnapshotKeys returns the keys of a [Snapshot], except those with [ControllerPrefix].
func SnapshotKeys() []string {
	return []string{ActiveKey, BeatKey, TermKey, RequestKey, PauseKey, HeirKey, StandbyKey, DeadKey}
}

// SnapshotOf builds a snapshot from the entries that a store read. Those of controllers must be in
// order of keys. Values in the store are untrusted: an unreadable one is reported under the name of
// its key, with its version, so that it can be removed, and never makes the store look unreachable.
func SnapshotOf(entries []Entry) Snapshot {
	var s Snapshot
	for _, e := range entries {
		switch e.Key {
		case ActiveKey:
			s.ActiveLease, s.ActiveVersion = e.Lease, e.Version
			if a, err := DecodeActive(e.Value); err != nil {
				s.ActiveBad = err
			} else {
				s.Active = &a
			}
		case BeatKey:
			s.Beat = e.Version
		case TermKey:
			s.TermVersion = e.Version
			s.Breadcrumb, s.TermBad = DecodeBreadcrumb(e.Value)
		case RequestKey:
			s.RequestVer = e.Version
			var r Request
			if err := json.Unmarshal(e.Value, &r); err != nil {
				s.RequestBad = unreadable(e, err)
			} else {
				s.Request = &r
			}
		case PauseKey:
			s.PauseVer = e.Version
			var p Pause
			if err := json.Unmarshal(e.Value, &p); err != nil {
				s.PauseBad = unreadable(e, err)
				p = Pause{By: "somebody unknown", Reason: s.PauseBad.Error()} // somebody wanted a pause
			}
			s.Pause = &p
		case StandbyKey:
			var err error
			s.StandbyVer = e.Version
			if s.Standbys, err = DecodeStandbys(e.Value); err != nil {
				s.StandbyBad = unreadable(e, err) // a value that names nobody must not keep everybody from taking over
			}
		case DeadKey:
			if d, err := DecodeDead(e.Value); err != nil {
				s.DeadBad = unreadable(e, err)
			} else {
				s.Dead = &d
			}
		case HeirKey:
			s.HeirVersion = e.Version
			if h, err := DecodeHeir(e.Value); err == nil {
				s.Heir = &h
			}
		default:
			name, ok := strings.CutPrefix(e.Key, ControllerPrefix)
			var c Controller
			if ok && json.Unmarshal(e.Value, &c) == nil && c.Name == name {
				s.Controllers = append(s.Controllers, c)
			}
		}
	}
	return s
}

func unreadable(e Entry, err error) error {
	return fmt.Errorf("cannot read the %s key, version %d: %.80q is not a record: %v", e.Key, e.Version, e.Value, err)
}

package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/sidecar"
)

// memberWatch keeps the list of the cluster's controllers, so that one whose sidecar is gone is still
// listed. Only the active's sidecar writes it. Nothing depends on it; people read it.
type memberWatch struct {
	keys election.Keys
	view func() sidecar.View
	log  zerolog.Logger
}

// membersEvery is how often the active compares the list with who is present.
const membersEvery = 5 * time.Second

// run compares until ctx ends.
func (w *memberWatch) run(ctx context.Context) {
	tick := time.NewTicker(membersEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if v := w.view(); v.Term != 0 && v.Store == nil && v.Snapshot.Active != nil {
			if err := w.look(ctx, v.Snapshot.Controllers); err != nil && ctx.Err() == nil {
				w.log.Debug().Err(err).Msg("cannot keep the list of members; trying again")
			}
		}
	}
}

// look writes what has changed since the last time.
func (w *memberWatch) look(ctx context.Context, present []election.Controller) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	entries, err := w.keys.List(ctx, election.MemberPrefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range memberChanges(entries, present, time.Now().UTC()) {
		if m.member.Gone.IsZero() {
			w.log.Info().Str("member", m.member.Name).Msg("a controller's sidecar is here")
		} else {
			w.log.Warn().Str("member", m.member.Name).Msg("a controller's sidecar is gone")
		}
		err := w.keys.Put(ctx, election.Put{Key: election.MemberKey(m.member.Name), Value: m.member.Encode(), If: &m.version})
		if !errors.Is(err, election.ErrConflict) { // otherwise somebody has forgotten it just now
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// memberChange is a record to write over a version of it.
type memberChange struct {
	member  election.Member
	version election.Version
}

// memberChanges returns the records that no longer describe who is present. It is pure.
func memberChanges(entries []election.Entry, present []election.Controller, now time.Time) []memberChange {
	var changes []memberChange
	known := map[string]bool{}
	for _, e := range entries {
		name := strings.TrimPrefix(e.Key, election.MemberPrefix)
		known[name] = true
		m, err := election.DecodeMember(e.Value)
		i := slices.IndexFunc(present, func(c election.Controller) bool { return c.Name == name })
		switch {
		case i >= 0 && (err != nil || !m.Gone.IsZero() || m.URL != present[i].URL || m.Host != hostName(present[i].Host)):
			changes = append(changes, memberChange{memberOf(present[i]), e.Version})
		case i < 0 && err == nil && m.Gone.IsZero():
			m.Gone = now
			changes = append(changes, memberChange{m, e.Version})
		}
	}
	for _, c := range present {
		if !known[c.Name] && election.CheckName(c.Name) == nil {
			changes = append(changes, memberChange{memberOf(c), 0})
		}
	}
	return changes
}

func memberOf(c election.Controller) election.Member {
	return election.Member{Name: c.Name, URL: c.URL, Host: hostName(c.Host)}
}

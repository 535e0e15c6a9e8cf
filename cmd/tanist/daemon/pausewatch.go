package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/sidecar"
)

// pauseWatch ends a pause, standbys and bans that were asked for a limited time. Every sidecar counts
// the time from when it first saw them, so no clocks need to agree; the first whose time is up removes
// them.
type pauseWatch struct {
	keys election.Keys
	view func() sidecar.View
	log  zerolog.Logger

	seen   election.Pause
	seenAt time.Time
	kept   map[string]kept // who is kept out
}

// kept is a standby or a ban, and when it was first seen.
type kept struct {
	election.Standby
	at time.Time
}

// pauseEvery is how late a pause may end.
const pauseEvery = time.Second

// run watches until ctx ends.
func (w *pauseWatch) run(ctx context.Context) {
	tick := time.NewTicker(pauseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			v := w.view()
			if v.Store != nil {
				continue
			}
			if w.over(v.Snapshot.Pause, now) {
				w.end(ctx)
			}
			if over := w.expired(v.Snapshot.Standbys, now); len(over) > 0 {
				w.letIn(ctx, over)
			}
		}
	}
}

// over records a pause, and reports whether its time is up.
func (w *pauseWatch) over(p *election.Pause, now time.Time) bool {
	if p == nil {
		w.seen = election.Pause{}
		return false
	}
	if *p != w.seen {
		w.seen, w.seenAt = *p, now
	}
	return p.For > 0 && now.Sub(w.seenAt) >= p.For
}

// end removes the pause that was seen, and no other.
func (w *pauseWatch) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	e, err := w.keys.Get(ctx, election.PauseKey)
	if err != nil || e.Version == 0 {
		return // tried again, or somebody was faster
	}
	var is election.Pause
	if json.Unmarshal(e.Value, &is) != nil || is != w.seen {
		return // another pause, which is seen soon
	}
	switch err := w.keys.Delete(ctx, election.PauseKey, e.Version); {
	case err == nil:
		w.log.Info().Str("by", is.By).Dur("for_ms", is.For).Msg("the time of the pause is over; resumed")
	case !errors.Is(err, election.ErrConflict) && ctx.Err() == nil:
		w.log.Warn().Err(err).Msg("cannot end the pause, whose time is over; trying again")
	}
}

// expired records who is kept out, and returns those whose time is up.
func (w *pauseWatch) expired(all election.Standbys, now time.Time) election.Standbys {
	over, next := election.Standbys{}, map[string]kept{}
	for name, is := range all {
		k, known := w.kept[name]
		if !known || k.Standby != is {
			k = kept{is, now}
		}
		next[name] = k
		if is.For > 0 && now.Sub(k.at) >= is.For {
			over[name] = is
		}
	}
	w.kept = next
	return over
}

// letIn ends standbys and bans whose time is up.
func (w *pauseWatch) letIn(ctx context.Context, over election.Standbys) {
	if err := operate.EndStandbys(ctx, w.keys, over); err != nil && ctx.Err() == nil {
		w.log.Warn().Err(err).Msg("cannot end a standby, whose time is over; trying again")
		return
	}
	for name, is := range over {
		w.log.Info().Str("member", name).Str("by", is.By).Dur("for_ms", is.For).Msg("the time of the standby is over; it may become active again")
	}
}

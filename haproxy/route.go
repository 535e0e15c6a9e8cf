package haproxy

import (
	"errors"
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// route is one cluster in a run: its role key, and where its virtual URL should lead.
type route struct {
	cl      Cluster
	index   int
	known   bool // a record or a vacancy was received
	filter  *election.Filter
	target  *election.Target // nil: nobody is active
	learned time.Time
	reason  string // of the record, one line, for people
	know    baked  // what the file should contain
	moved   bool   // the move to target has been logged and counted

	sightings int         // number of sightings; only the last one counts
	again     *time.Timer // rejudges a sighting of an older term
	refused   uint64      // fingerprint of the last refused record
	dropped   election.Term

	probe    probe          // of target's startup port
	accepted netip.AddrPort // address at which the startup port of target accepted here; zero: not yet
	api      netip.AddrPort // of target's sidecar
	holder   *holder

	serving *election.Target // as last reported to the hooks
	last    *election.Target // the last one that served, if none does now
}

// sighting handles what the store reports about one cluster.
func (r *run) sighting(t *route, s election.Sighting) {
	t.sightings++
	if t.again != nil {
		t.again.Stop()
	}
	storeErr := r.storeError(t, s.Err)
	defer r.update(func(st *Status) {
		c := &st.Clusters[t.index]
		c.StoreError, c.Term = storeErr, t.filter.Seen()
		c.Controller, c.State, c.URL = "", "", ""
		if t.target != nil {
			c.Controller, c.State, c.URL = t.target.Controller, t.target.State, t.target.URL
		}
	})
	v := t.filter.Sighting(s, time.Now())
	switch {
	case s.Err != nil:
	case s.Active == nil:
		r.follow(t, nil)
	default:
		r.judged(t, s, v)
	}
}

// storeError records whether the store is readable, and returns the error on one line.
func (r *run) storeError(t *route, err error) string {
	subject, text := "store "+t.cl.Name, ""
	if err != nil {
		text = oneLine(err.Error(), 300)
	}
	log := r.log.With().Str("cluster", t.cl.Name).Logger()
	if text == "" && r.said[subject] != "" {
		log.Info().Msg("store reachable")
	}
	if r.said[subject] == "" || text == "" { // another wording of the same outage is not logged
		r.note(zerolog.WarnLevel, subject, text, "store unreachable")
	}
	return text
}

// judged acts on the verdict about a record.
func (r *run) judged(t *route, s election.Sighting, v election.Verdict) {
	log := r.log.With().Str("cluster", t.cl.Name).Logger()
	if v.Err == nil {
		v.Err = t.cl.carries(v.Target, r.cfg)
	}
	if old, ok := errors.AsType[*election.OldTermError](v.Err); ok {
		// The same sighting counts once the store has kept reporting it for long enough.
		id := t.sightings
		t.again = time.AfterFunc(time.Until(v.Again), func() {
			r.post(func() {
				if t.sightings == id {
					r.sighting(t, s)
				}
			})
		})
		if t.dropped != old.Term {
			t.dropped = old.Term
			log.Warn().Uint64("term", uint64(old.Term)).Uint64("known", uint64(old.Seen)).Dur("believed_in_ms", time.Until(v.Again)).
				Msg("dropped a record of an older term")
		}
		return
	}
	if v.Err != nil {
		why := oneLine(v.Err.Error(), 300)
		if print := maphash.Bytes(r.seed, s.Active.Encode()); print != t.refused {
			t.refused = print
			log.Error().Str("reason", why).Msg("refused a record in the role key")
		}
		r.update(func(st *Status) { st.Clusters[t.index].Refused = why })
		return
	}
	if v.Back {
		log.Warn().Uint64("term", uint64(v.Target.Term)).
			Msg("following a lower term that the store keeps reporting: it was restored, or a term was forged")
	}
	r.update(func(st *Status) { st.Clusters[t.index].Refused = "" })
	t.refused, t.dropped, t.reason = 0, 0, oneLine(s.Active.Reason, 200)
	r.follow(t, &v.Target)
}

// follow sets the target of the cluster; nil: nobody.
func (r *run) follow(t *route, to *election.Target) {
	if t.known && (to == nil && t.target == nil || to != nil && t.target != nil && *to == *t.target) {
		return
	}
	same := to != nil && t.target != nil && to.At == t.target.At && to.API == t.target.API && to.Term == t.target.Term
	serving := to != nil && to.Serving()
	t.known, t.target, t.learned, t.moved = true, to, time.Now(), false
	if !same || !serving {
		t.probe.stop()
	}
	if !same {
		t.accepted, t.api = netip.AddrPort{}, netip.AddrPort{}
	}
	log := r.log.Info().Str("cluster", t.cl.Name)
	if to == nil {
		log.Uint64("term", uint64(t.filter.Seen())).Msg("nobody is active")
	} else {
		log.Str("controller", to.Controller).Uint64("term", uint64(to.Term)).Str("state", string(to.State)).Str("url", to.URL).
			Msg("the role key changed")
	}
	switch {
	case serving && !t.accepted.IsValid():
		r.probe(t)
	case !serving && t.serving != nil:
		r.hook(t, nil)
	}
}

// desired returns the desired state of t's backend.
func (t *route) desired() desired {
	d := desired{known: t.known}
	if t.target == nil || t.target.URL == "" || (!t.target.Serving() && t.target.State != election.StateStopping) {
		return d
	}
	d.active, d.drain, d.queue = true, t.target.State == election.StateStopping, t.cl.HoldRequests > 0
	if len(t.cl.Controllers) > 0 {
		d.server = serverName(t.target.At)
	}
	d.accept, d.addr, d.check = t.accepted.IsValid(), t.accepted, t.api
	if a, err := netip.ParseAddr(t.target.At.Host); err == nil && !d.addr.IsValid() {
		d.addr = netip.AddrPortFrom(a, t.target.At.Port)
	}
	return d
}

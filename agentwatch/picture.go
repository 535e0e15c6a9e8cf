package agentwatch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// UnreachableError ends a watch whose retries reached no controller.
type UnreachableError struct {
	Cluster string
	Rounds  int
	Every   time.Duration
	Detail  string // the last attempts
}

// Error reports how long the watch tried, and what.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("cannot reach any controller of %s in %d attempts, %v apart: %s", e.Cluster, e.Rounds, e.Every, e.Detail)
}

// wish is what the picture wants from every agent.
type wish struct {
	action Action
	target Aim
	why    string
}

// maxPeers bounds what a hostile store or sidecar can make the watch remember and probe.
const maxPeers = 64

// picture is the known state of the cluster. It belongs to the goroutine of its run.
type picture struct {
	cfg   *Config
	log   zerolog.Logger
	count *counters
	wish  func(wish)

	filter *election.Filter
	hosts  map[string]bool // of Controllers; nil: any
	peers  []Peer
	listed int // number of peers from the configuration; they come first

	target   Aim // the last named or guessed one; URL empty: none
	storeUp  bool
	heard    bool              // the store has reported, or has had its time to
	last     election.Sighting // the last report of the store
	judge    time.Time         // when last is judged again; zero: not needed
	named    bool              // the store named target when last reachable
	underWay bool              // the store, when last reachable, named a controller that starts or stops, or keeps reporting an older term
	storeSay string            // why target is not named, for people
	said     string            // last complaint about a record, so that it is logged once

	portUp bool                           // of target: open within the last Fall probes
	fails  int                            // of target, in a row
	opened map[election.URL]bool          // results of the newest probe
	urls   map[election.URL]election.URLs // of the controllers that were followed, by their URL
	asked  string                         // last result from the sidecars, for people

	retries retries

	wished wish
	kept   memory // as last written
	facts  Facts
	decide Decision
}

// probed is the result of one probe.
type probed struct {
	began   time.Time
	open    map[election.URL]bool
	round   bool         // the probe is a retry
	counted election.URL // the followed URL whose result has been counted, if the probe was extended with more addresses
}

type answered struct {
	clusters []election.ClusterRecord
	err      error
}

func newPicture(cfg *Config, log zerolog.Logger, count *counters, publish func(wish)) *picture {
	controllers, _ := election.ParseControllers(cfg.Controllers) // Validate has checked them
	v := &picture{
		cfg: cfg, log: log, count: count, wish: publish, opened: map[election.URL]bool{}, urls: map[election.URL]election.URLs{}, storeSay: notAsked,
		filter: election.NewFilter(controllers), retries: retries{limit: cfg.Retries},
	}
	for i, u := range controllers {
		if v.hosts == nil {
			v.hosts = map[string]bool{}
		}
		v.hosts[u.Host] = true
		v.learn(Peer{URL: cfg.Controllers[i]})
	}
	for _, s := range cfg.Sidecars {
		if !slices.ContainsFunc(v.peers, func(p Peer) bool { return p.API == s }) {
			v.peers = append(v.peers, Peer{API: s})
		}
	}
	v.listed = len(v.peers)
	return v
}

// learn remembers a controller. It skips addresses that must not be followed or asked.
func (v *picture) learn(p Peer) {
	if p.URL != "" {
		var err error
		if p.at, err = v.filter.CheckURL(p.URL); err != nil {
			return
		}
	}
	if p.API != "" {
		if u, err := election.ParseURL(p.API); err != nil || (v.hosts != nil && !v.hosts[u.Host]) {
			p.API = ""
		}
	}
	if p.URL == "" && p.API == "" {
		return
	}
	if election.CheckName(p.Controller) != nil {
		p.Controller = ""
	}
	for i := range v.peers {
		old := &v.peers[i]
		if (p.URL == "" || old.at != p.at) && (old.URL != "" || old.API != p.API) {
			continue
		}
		if p.URL != "" && old.URL == "" {
			old.URL, old.at = p.URL, p.at
		}
		if p.Controller != "" {
			old.Controller = p.Controller
		}
		if p.API != "" {
			old.API = p.API
		}
		return
	}
	if len(v.peers) >= maxPeers { // the one learned first makes room
		if v.listed >= maxPeers {
			return
		}
		v.peers = slices.Delete(v.peers, v.listed, v.listed+1)
	}
	v.peers = append(v.peers, p)
}

func (v *picture) load() {
	if v.cfg.StateFile == "" {
		return
	}
	m, err := loadMemory(v.cfg.StateFile, v.cfg.Cluster)
	if err != nil {
		v.log.Warn().Err(err).Msg("cannot read the saved state; starting without it")
		return
	}
	v.kept = m
	v.filter.Remember(m.Term)
	for _, p := range m.Known {
		v.learn(p)
	}
	t := m.Active
	if t == nil || t.Term == 0 || t.Term > election.MaxTerm || election.CheckName(t.Controller) != nil {
		return
	}
	if at, err := v.filter.CheckURL(t.URL); err == nil {
		v.target = Aim{Controller: t.Controller, URL: t.URL, Term: t.Term, Via: viaMemory, Seen: time.Now(), at: at}
		if _, err := t.URLs.Check(at); err == nil {
			v.target.URLs = t.URLs
			v.urls[at] = t.URLs
		}
		v.filter.Remember(t.Term)
		v.learn(Peer{Controller: t.Controller, URL: t.URL})
	}
}

func (v *picture) save() {
	if v.cfg.StateFile == "" {
		return
	}
	m := memory{Cluster: v.cfg.Cluster, Term: v.filter.Seen(), Known: v.peers}
	if v.target.Term > 0 {
		t := v.target
		t.Seen = t.Seen.UTC().Round(0)
		m.Active = &t
	}
	same := m.Term == v.kept.Term && slices.Equal(m.Known, v.kept.Known) && (m.Active == nil) == (v.kept.Active == nil) &&
		(m.Active == nil || (m.Active.URL == v.kept.Active.URL && m.Active.Term == v.kept.Active.Term))
	if same {
		return
	}
	m.Known = slices.Clone(m.Known)
	v.kept = m // even if the write fails: the next change retries it, and each failure is logged once
	if err := m.save(v.cfg.StateFile); err != nil {
		v.log.Warn().Err(err).Msg("cannot save the state; the next start will not have it")
	}
}

// take considers a record that has passed the filter, and reports whether it names the controller
// to follow.
func (v *picture) take(t election.Target, via string, at time.Time) bool {
	api := ""
	if t.API.Host != "" {
		api = t.API.String()
	}
	if t.URL != "" {
		v.learn(Peer{Controller: t.Controller, URL: t.URL, API: api})
	}
	if !t.Serving() {
		return false
	}
	v.said = ""
	next := Aim{Controller: t.Controller, URL: t.URL, URLs: t.URLs, Term: t.Term, Via: via, Seen: at, at: t.At}
	v.urls[t.At] = t.URLs
	if v.target.Term == next.Term && v.target.URL == next.URL {
		v.target.Via, v.target.URLs = via, next.URLs
		return true
	}
	v.point(next)
	return true
}

func (v *picture) complain(err error) {
	v.count.dropped.Add(1)
	if what := err.Error(); what != v.said {
		v.said = what
		v.log.Warn().Str("reason", what).Msg("refused a record in the role key")
	}
}

// point changes the target.
func (v *picture) point(t Aim) {
	if v.target.at != t.at {
		v.portUp, v.fails = v.opened[t.at], 0
	}
	v.log.Info().Str("controller", t.Controller).Str("url", t.URL).Uint64("term", uint64(t.Term)).Str("via", t.Via).
		Msg("following controller")
	v.target = t
}

// sighting handles a report of the store.
func (v *picture) sighting(s election.Sighting) {
	if s.At.IsZero() {
		s.At = time.Now()
	}
	v.last, v.judge = s, time.Time{}
	was, first := v.storeUp, v.storeSay == notAsked
	v.storeUp, v.heard = s.Err == nil, true
	if s.Err != nil {
		v.away(s, was || first)
		return
	}
	if !was {
		v.log.Info().Msg("store reachable")
	}
	v.named, v.underWay = false, false
	if s.Active == nil {
		v.storeSay = "has no active"
		v.filter.Sighting(s, time.Now())
		return
	}
	v.judged()
}

// away handles a failure of the store.
func (v *picture) away(s election.Sighting, news bool) {
	v.count.storeErrors.Add(1)
	if news {
		v.log.Warn().Err(s.Err).Msg("store unreachable")
	}
	v.storeSay = "is unreadable: " + s.Err.Error()
	v.named, v.underWay = false, false
	seen := v.filter.Seen()
	if got := v.filter.Sighting(s, time.Now()); got.Err == nil && got.Target.Term > seen {
		v.take(got.Target, viaStore, s.At)
	}
}

// judged judges the record that the store last reported.
func (v *picture) judged() {
	s := v.last
	got := v.filter.Sighting(s, time.Now())
	v.judge = got.Again
	if got.Back {
		v.log.Warn().Uint64("term", uint64(got.Target.Term)).
			Msg("following a lower term that the store keeps reporting: it was restored, or a term was forged")
		v.target, s.At = Aim{}, time.Now()
	}
	if got.Err != nil {
		v.complain(got.Err)
		v.storeSay = "has nobody to follow: " + got.Err.Error()
		v.underWay = !got.Again.IsZero() // it may still turn out to be the one
		return
	}
	t := got.Target
	v.underWay = t.State == election.StateStarting || t.State == election.StateStopping
	if v.named = v.take(t, viaStore, s.At); v.named {
		v.storeSay = fmt.Sprintf("names %s (term %d)", t.Controller, t.Term)
	} else {
		v.storeSay = fmt.Sprintf("reports that %s (term %d) is %s", t.Controller, t.Term, t.State)
	}
}

func (v *picture) answer(r answered) {
	v.count.asks.Add(1)
	var best *election.Active
	for _, c := range r.clusters {
		for _, ctl := range c.Controllers {
			v.learn(Peer{Controller: ctl.Name, URL: ctl.URL, API: ctl.API})
		}
		if c.Active != nil && (best == nil || c.Active.Term > best.Term) {
			best = c.Active
		}
	}
	switch {
	case best != nil:
		v.asked = fmt.Sprintf("%.63q, term %d, %.20q", best.Controller, best.Term, best.State)
	case r.err != nil:
		v.asked = r.err.Error()
	default:
		v.asked = "nobody"
	}
	if v.storeUp {
		return // asked only for peers; the store has the authority
	}
	// Only the store may give another URL for the same term.
	if best == nil || (best.Term <= v.filter.Seen() && best.Term <= v.target.Term) {
		return
	}
	if got := v.filter.Answer(best); got.Err != nil {
		v.complain(got.Err)
	} else {
		v.take(got.Target, viaSidecar, time.Now())
	}
}

// look decides from the facts and publishes the wish.
func (v *picture) look() {
	v.facts = v.factsWith(v.portUp)
	v.decide = Decide(v.facts)
	if !v.heard { // an agent that is started at the remembered target may have to move a moment later
		v.decide.Agent, v.decide.Ask = Leave, false
	}
	w := wish{action: v.decide.Agent, target: v.target, why: v.why()}
	switch {
	case w.action == Guess:
		if !v.facts.Port {
			v.guess()
			w.target = v.target
		}
		w.action = Follow
	case w.action == Leave && v.cfg.StopOnVacancy && v.facts.StoreUp && !v.facts.Named:
		w.action = Stop
	}
	if w == v.wished {
		return
	}
	v.wished = w
	v.wish(w)
}

// guess targets the only known controller that responds.
func (v *picture) guess() {
	for _, p := range v.peers {
		if p.URL != "" && v.opened[p.at] && p.at != v.target.at {
			v.point(Aim{Controller: p.Controller, URL: p.URL, URLs: v.urls[p.at], Via: viaProbe, Seen: time.Now(), at: p.at})
			return
		}
	}
}

func (v *picture) factsWith(port bool) Facts {
	f := Facts{StoreUp: v.storeUp, UnderWay: v.underWay, Port: port && v.target.URL != "", TermSeen: v.filter.Seen() > 0}
	if v.storeUp {
		f.Named = v.named
	} else {
		f.Named = v.target.Term > 0 && v.target.Term >= v.filter.Seen()
	}
	for _, p := range v.peers {
		if p.URL != "" && v.opened[p.at] && p.at != v.target.at {
			f.Others++
		}
	}
	return f
}

// why explains what an agent that is not running is waiting for.
func (v *picture) why() string {
	switch {
	case !v.heard:
		return "asking the store"
	case v.facts.StoreUp && !v.facts.Named:
		return "the store " + v.storeSay
	case !v.facts.StoreUp && v.decide.Agent == Leave && !v.facts.Named:
		return "the store is away and nobody is known to be active"
	case !v.facts.StoreUp && v.decide.Agent == Leave:
		return "the store is away and the last known active does not answer"
	}
	return ""
}

// addresses returns what a probe must dial: the followed controller, and all others if that one is
// not enough.
func (v *picture) addresses() []election.URL {
	if !v.retries.going() && v.portUp && v.fails == 0 && (v.storeUp || v.facts.Named) && v.target.URL != "" {
		return []election.URL{v.target.at}
	}
	return v.everybody()
}

// everybody returns the URL of every startup port that is known.
func (v *picture) everybody() []election.URL {
	var urls []election.URL
	if v.target.URL != "" {
		urls = append(urls, v.target.at)
	}
	for _, p := range v.peers {
		if p.URL != "" && !slices.Contains(urls, p.at) {
			urls = append(urls, p.at)
		}
	}
	return urls
}

// unknown returns those of everybody that a probe has not dialed.
func (v *picture) unknown(p probed) []election.URL {
	return slices.DeleteFunc(v.everybody(), func(u election.URL) bool { _, looked := p.open[u]; return looked })
}

func (v *picture) probe(ctx context.Context, urls []election.URL) map[election.URL]bool {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Probe.Timeout)
	defer cancel()
	open := map[election.URL]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, u := range urls {
		v.count.probes.Add(1)
		wg.Go(func() {
			err := v.cfg.Dial(ctx, u.Address())
			if err != nil {
				v.count.probesFailed.Add(1)
			}
			mu.Lock()
			open[u] = err == nil && ctx.Err() == nil
			mu.Unlock()
		})
	}
	wg.Wait()
	return open
}

// found handles the result of a probe. It returns what else must be dialed before the probe means
// that nobody is reachable.
func (v *picture) found(p *probed, now time.Time) (more []election.URL, err error) {
	clear(v.opened)
	maps.Copy(v.opened, p.open)
	answers, looked := p.open[v.target.at]
	if v.target.URL != "" && p.counted != v.target.at {
		if !looked {
			return v.unknown(*p), nil // the target changed during the probe
		}
		v.counted(answers)
		p.counted = v.target.at
	}
	if !Decide(v.factsWith(answers)).Miss {
		if missed := v.retries.hit(); missed > 0 {
			v.log.Info().Int("attempts", missed).Msg("some controller reachable")
		}
		return nil, nil
	}
	switch {
	case !v.retries.going() && !v.heard:
		// The store has not had the time to report controllers.
	case !v.retries.going():
		if more := v.unknown(*p); len(more) > 0 {
			return more, nil
		}
		v.retries.begin(p.began)
		v.log.Warn().Str("store", v.storeSay).Msg("no controller reachable")
	case p.round:
		v.count.misses.Add(1)
		if v.retries.miss(now) {
			return nil, &UnreachableError{Cluster: v.cfg.Cluster, Rounds: v.retries.count, Every: v.cfg.Retries.Every, Detail: v.detail()}
		}
	}
	return nil, nil
}

// counted counts a success or failure of the followed controller.
func (v *picture) counted(answers bool) {
	if answers {
		if !v.portUp {
			v.log.Info().Str("url", v.target.URL).Msg("controller reachable")
		}
		v.portUp, v.fails = true, 0
		return
	}
	v.fails++
	if v.portUp && v.fails >= v.cfg.Probe.Fall {
		v.portUp = false
		v.log.Warn().Str("url", v.target.URL).Int("attempts", v.fails).Msg("controller unreachable")
	}
}

func (v *picture) detail() string {
	d := "the store " + v.storeSay
	var tried []string
	for u := range v.opened {
		tried = append(tried, u.String())
	}
	slices.Sort(tried)
	if len(tried) == 0 {
		return d + "; no controller is known"
	}
	return d + "; no answer from " + strings.Join(tried, " ")
}

func (v *picture) apis() []string {
	var apis []string
	for _, p := range v.peers {
		if p.API != "" && !slices.Contains(apis, p.API) {
			apis = append(apis, p.API)
		}
	}
	return apis
}

const notAsked = "not asked yet"

// errFollowEnded replaces the reports of a store whose channel has closed.
var errFollowEnded = errors.New("the watch of the store has ended")

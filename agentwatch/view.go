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

// UnreachableError ends a watch whose retries found no controller.
type UnreachableError struct {
	Cluster string
	Rounds  int
	Every   time.Duration
	Detail  string // what was tried last
}

// Error says how long was tried, and what.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("cannot reach any controller of %s in %d attempts, %v apart: %s", e.Cluster, e.Rounds, e.Every, e.Detail)
}

// wish is what the view wants of every agent.
type wish struct {
	action Action
	target Target
	why    string
}

// maxPeers bounds what a hostile store or sidecar can make us remember and probe.
const maxPeers = 64

// view is what is known of the cluster. It belongs to the goroutine of its run.
type view struct {
	cfg   *Config
	log   zerolog.Logger
	count *counters
	wish  func(wish)

	allowed map[string]bool // by sameURL; nil: any
	hosts   map[string]bool // of the allowed
	peers   []Peer
	listed  int // how many of the peers, the first ones, are from the configuration

	seen     election.Term
	target   Target // the last named or guessed; URL empty: none
	storeUp  bool
	heard    bool      // the store has been asked, or was given the time to be
	hearBy   time.Time // that time
	named    bool      // the store, when last asked, named target
	storeSay string    // why not, for people
	said     string    // the last complaint about a record, so that it is said once

	portUp bool              // of target: answered within the last Fall probes
	fails  int               // of target, in a row
	opened map[string]bool   // by URL: what the newest probe of it found
	places map[string]string // what [sameURL] made of URLs: they are compared at every look
	asked  string            // what the sidecars said last, for people

	missing time.Time // when it was first found that nothing can be reached; zero: something can
	misses  int
	round   time.Time // when the next retry is due

	last   wish
	kept   memory // as last saved
	facts  Facts
	decide Decision
}

// probed is what one probe found.
type probed struct {
	began   time.Time
	open    map[string]bool
	round   bool   // it is a retry
	counted string // the URL followed whose answer has been counted, if the probe is one that was completed with more addresses
}

type answered struct {
	views []clusterView
	err   error
}

func newView(cfg *Config, log zerolog.Logger, count *counters, publish func(wish)) *view {
	v := &view{cfg: cfg, log: log, count: count, wish: publish, opened: map[string]bool{}, places: map[string]string{}, storeSay: notAsked}
	if len(cfg.Controllers) > 0 {
		v.allowed, v.hosts = map[string]bool{}, map[string]bool{}
		for _, u := range cfg.Controllers {
			v.allowed[sameURL(u)] = true
			a, _ := parseURL(u)
			v.hosts[a.host] = true
			v.learn(Peer{URL: u})
		}
	}
	for _, s := range cfg.Sidecars {
		if !slices.ContainsFunc(v.peers, func(p Peer) bool { return p.API == s }) {
			v.peers = append(v.peers, Peer{API: s})
		}
	}
	v.listed = len(v.peers)
	return v
}

// mayFollow tells whether a URL may be followed, and why not.
func (v *view) mayFollow(rawURL string) error {
	if _, err := parseURL(rawURL); err != nil {
		return err
	}
	if v.allowed != nil && !v.allowed[sameURL(rawURL)] {
		return errors.New("is not one of controllers")
	}
	return nil
}

// learn remembers a controller. What may not be followed or asked is left out.
func (v *view) learn(p Peer) {
	if p.URL != "" && v.mayFollow(p.URL) != nil {
		return
	}
	if p.API != "" {
		a, err := parseURL(p.API)
		if err != nil || (v.hosts != nil && !v.hosts[a.host]) {
			p.API = ""
		}
	}
	if p.URL == "" && p.API == "" {
		return
	}
	for i := range v.peers {
		old := &v.peers[i]
		if (p.URL != "" && v.same(old.URL, p.URL)) || (old.URL == "" && old.API == p.API) {
			if p.URL != "" && old.URL == "" {
				old.URL = p.URL
			}
			if validName(p.Controller) {
				old.Controller = p.Controller
			}
			if p.API != "" {
				old.API = p.API
			}
			return
		}
	}
	if len(v.peers) >= maxPeers { // the one learned first makes room
		if v.listed >= maxPeers {
			return
		}
		v.peers = slices.Delete(v.peers, v.listed, v.listed+1)
	}
	if !validName(p.Controller) {
		p.Controller = ""
	}
	v.peers = append(v.peers, p)
}

// same reports whether two URLs are the same place.
func (v *view) same(a, b string) bool {
	return a == b || (a != "" && b != "" && v.place(a) == v.place(b))
}

func (v *view) place(url string) string {
	p, ok := v.places[url]
	if !ok {
		if len(v.places) > 4*maxPeers {
			clear(v.places)
		}
		p = sameURL(url)
		v.places[url] = p
	}
	return p
}

func (v *view) load() {
	if v.cfg.StateFile == "" {
		return
	}
	m, err := loadMemory(v.cfg.StateFile, v.cfg.Cluster)
	if err != nil {
		v.log.Warn().Err(err).Msg("going on without what was known")
		return
	}
	v.kept = m
	v.seen = m.Term
	for _, p := range m.Known {
		v.learn(p)
	}
	if t := m.Active; t != nil && t.Term > 0 && v.mayFollow(t.URL) == nil && validName(t.Controller) {
		v.target = Target{Controller: t.Controller, URL: t.URL, Term: t.Term, Via: viaMemory, Seen: time.Now()}
		v.seen = max(v.seen, t.Term)
		v.learn(Peer{Controller: t.Controller, URL: t.URL})
	}
}

func (v *view) save() {
	if v.cfg.StateFile == "" {
		return
	}
	m := memory{Cluster: v.cfg.Cluster, Term: v.seen, Known: v.peers}
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
	v.kept = m // also if it can't be written: it is tried again with the next change, and said once each
	if err := m.save(v.cfg.StateFile); err != nil {
		v.log.Warn().Err(err).Msg("what is known does not outlive this process")
	}
}

// take considers a record and reports whether it names the controller to follow.
func (v *view) take(a *election.Active, via string, at time.Time) bool {
	err := v.mayFollow(a.URL)
	switch {
	case !validName(a.Controller):
		v.complain(fmt.Sprintf("term %d: %.60q is not the name of a controller", a.Term, a.Controller))
		return false
	case a.State != election.StateServing && a.URL == "":
		// on its way, and does not say where to
	case err != nil:
		v.complain(fmt.Sprintf("term %d: %s's URL %.100q %v", a.Term, a.Controller, a.URL, err))
		return false
	}
	if a.Term < v.seen {
		v.complain(fmt.Sprintf("term %d (%s) is older than term %d, which has been seen", a.Term, a.Controller, v.seen))
		return false
	}
	v.seen = a.Term
	v.learn(Peer{Controller: a.Controller, URL: a.URL, API: a.API})
	if !a.Serving() {
		return false
	}
	v.said = ""
	next := Target{Controller: a.Controller, URL: a.URL, Term: a.Term, Via: via, Seen: at}
	if v.target.Term == next.Term && v.target.URL == next.URL {
		v.target.Via = via
		return true
	}
	v.point(next)
	return true
}

func (v *view) complain(what string) {
	v.count.dropped.Add(1)
	if what != v.said {
		v.said = what
		v.log.Warn().Str("why", what).Msg("dropped what can't be followed")
	}
}

// point changes the target.
func (v *view) point(t Target) {
	if v.target.URL != t.URL {
		v.portUp, v.fails = v.opened[t.URL], 0
	}
	v.log.Info().Str("controller", t.Controller).Str("url", t.URL).Uint64("term", uint64(t.Term)).Str("via", t.Via).
		Msg("found whom to follow")
	v.target = t
}

// sighting takes what the store says.
func (v *view) sighting(s election.Sighting) {
	at := s.At
	if at.IsZero() {
		at = time.Now()
	}
	was, first := v.storeUp, v.storeSay == notAsked
	v.storeUp, v.heard = s.Err == nil, true
	if s.Err != nil {
		v.count.storeErrors.Add(1)
		if was || first {
			v.log.Warn().Err(s.Err).Msg("the store can't be asked; the agents stay as they are")
		}
		v.storeSay = "can't be asked: " + s.Err.Error()
		v.named = false
		if s.Active != nil && s.Active.Term > v.seen {
			v.take(s.Active, viaStore, at)
		}
		return
	}
	if !was {
		v.log.Info().Msg("the store can be asked")
	}
	switch {
	case s.Active == nil:
		v.named, v.storeSay = false, "names nobody"
	case v.take(s.Active, viaStore, at):
		v.named, v.storeSay = true, fmt.Sprintf("names %s (term %d)", v.target.Controller, v.target.Term)
	case s.Active.Term < v.seen:
		v.named, v.storeSay = false, fmt.Sprintf("names %s with term %d, older than %d", s.Active.Controller, s.Active.Term, v.seen)
	default:
		v.named, v.storeSay = false, fmt.Sprintf("says that %.60q (term %d) is %.20s", s.Active.Controller, s.Active.Term, s.Active.State)
	}
}

func (v *view) answer(r answered) {
	v.count.asks.Add(1)
	var best *election.Active
	for _, c := range r.views {
		for _, ctl := range c.Controllers {
			v.learn(Peer{Controller: ctl.Name, URL: ctl.URL, API: ctl.API})
		}
		if c.Active != nil && c.Active.Controller != "" && c.Active.Term > 0 && (best == nil || c.Active.Term > best.Term) {
			best = c.Active
		}
	}
	switch {
	case best != nil:
		v.asked = fmt.Sprintf("%s, term %d, %s", best.Controller, best.Term, best.State)
	case r.err != nil:
		v.asked = r.err.Error()
	default:
		v.asked = "nobody"
	}
	if v.storeUp {
		return // asked to learn who there is; the store is the one to be believed
	}
	// Another URL for the same term: only the store is believed that.
	if best != nil && (best.Term > v.seen || best.Term > v.target.Term) {
		v.take(best, viaSidecar, time.Now())
	}
}

// look judges the facts and publishes what is to be done.
func (v *view) look() {
	v.facts = v.factsWith(v.portUp)
	v.decide = Decide(v.facts)
	if !v.heard { // who starts at what is remembered may have to move a moment later
		v.decide.Agent, v.decide.Ask = Keep, false
	}
	w := wish{action: v.decide.Agent, target: v.target, why: v.why()}
	switch {
	case w.action == Guess && !v.facts.Port:
		for _, p := range v.peers {
			if p.URL != "" && v.opened[p.URL] && !v.same(p.URL, v.target.URL) {
				v.point(Target{Controller: p.Controller, URL: p.URL, Via: viaProbe, Seen: time.Now()})
				w.target = v.target
				break
			}
		}
		w.action = Follow
	case w.action == Guess:
		w.action = Follow
	case w.action == Keep && v.cfg.StopOnVacancy && v.facts.StoreUp && !v.facts.Named:
		w.action = Stop
	}
	if w.action == v.last.action && w.target == v.last.target && w.why == v.last.why {
		return
	}
	v.last = w
	v.wish(w)
}

func (v *view) factsWith(port bool) Facts {
	f := Facts{StoreUp: v.storeUp, Port: port && v.target.URL != "", TermSeen: v.seen > 0}
	if v.storeUp {
		f.Named = v.named
	} else {
		f.Named = v.target.Term > 0 && v.target.Term >= v.seen
	}
	for _, p := range v.peers {
		if p.URL != "" && v.opened[p.URL] && !v.same(p.URL, v.target.URL) {
			f.Others++
		}
	}
	return f
}

// why says in words what an agent that is not running is waiting for.
func (v *view) why() string {
	switch {
	case !v.heard:
		return "asking the store"
	case v.facts.StoreUp && !v.facts.Named:
		return "the store " + v.storeSay
	case !v.facts.StoreUp && v.decide.Agent == Keep && !v.facts.Named:
		return "the store is away and nobody is known to be active"
	case !v.facts.StoreUp && v.decide.Agent == Keep:
		return "the store is away and the last known active does not answer"
	}
	return ""
}

// addresses returns what a probe has to look at: the one followed, and everybody known if that is not enough to be content.
func (v *view) addresses() []string {
	var urls []string
	if v.target.URL != "" {
		urls = append(urls, v.target.URL)
	}
	if v.missing.IsZero() && v.portUp && v.fails == 0 && (v.storeUp || v.facts.Named) {
		return urls
	}
	return v.everybody()
}

// everybody returns the URL of every startup port that is known.
func (v *view) everybody() []string {
	var urls []string
	if v.target.URL != "" {
		urls = append(urls, v.target.URL)
	}
	for _, p := range v.peers {
		if p.URL != "" && !slices.Contains(urls, p.URL) {
			urls = append(urls, p.URL)
		}
	}
	return urls
}

func (v *view) probe(ctx context.Context, urls []string) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Probe.Timeout)
	defer cancel()
	open := map[string]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, u := range urls {
		a, err := parseURL(u)
		if err != nil {
			mu.Lock()
			open[u] = false
			mu.Unlock()
			continue
		}
		v.count.probes.Add(1)
		wg.Go(func() {
			err := v.cfg.Dial(ctx, a.dial())
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

// found takes the result of a probe. It reports whether more has to be looked at before it means that nobody can be reached.
func (v *view) found(p *probed, now time.Time) (again bool, err error) {
	clear(v.opened)
	maps.Copy(v.opened, p.open)
	answers, looked := p.open[v.target.URL]
	switch {
	case v.target.URL == "" || p.counted == v.target.URL:
	case !looked:
		return true, nil // the target changed while the probe was under way
	case answers:
		if !v.portUp {
			v.log.Info().Str("url", v.target.URL).Msg("the controller answers")
		}
		v.portUp, v.fails = true, 0
	default:
		v.fails++
		if v.portUp && v.fails >= v.cfg.Probe.Fall {
			v.portUp = false
			v.log.Warn().Str("url", v.target.URL).Int("attempts", v.fails).Msg("the controller does not answer")
		}
	}
	p.counted = v.target.URL
	f := v.factsWith(answers)
	if !Decide(f).Miss {
		if !v.missing.IsZero() && v.misses > 0 {
			v.log.Info().Int("attempts", v.misses).Msg("a controller can be reached again")
		}
		v.missing, v.misses = time.Time{}, 0
		return false, nil
	}
	if v.missing.IsZero() {
		if !v.heard {
			return false, nil // the store has not had the time to say whom there is to be reached
		}
		for _, u := range v.everybody() {
			if _, ok := p.open[u]; !ok {
				return true, nil // not looked at everybody yet
			}
		}
		v.missing, v.round = p.began, p.began.Add(v.cfg.Retries.Every)
		v.log.Warn().Str("store", v.storeSay).Msg("no controller can be reached")
		return false, nil
	}
	if !p.round {
		return false, nil
	}
	v.misses++
	v.count.misses.Add(1)
	v.round = v.round.Add(v.cfg.Retries.Every)
	if v.round.Before(now) {
		v.round = now
	}
	if n := v.cfg.Retries.Count; n > 0 && v.misses >= n {
		return false, &UnreachableError{Cluster: v.cfg.Cluster, Rounds: v.misses, Every: v.cfg.Retries.Every, Detail: v.detail()}
	}
	return false, nil
}

func (v *view) detail() string {
	d := "the store " + v.storeSay
	var tried []string
	for u := range v.opened {
		tried = append(tried, u)
	}
	slices.Sort(tried)
	if len(tried) == 0 {
		return d + "; no controller is known"
	}
	return d + "; no answer from " + strings.Join(tried, " ")
}

func (v *view) apis() []string {
	var apis []string
	for _, p := range v.peers {
		if p.API != "" && !slices.Contains(apis, p.API) {
			apis = append(apis, p.API)
		}
	}
	return apis
}

// How often sidecars are asked while the store is up, to learn who there is: once soon, spread over learnSoon, and then seldom.
const (
	learnSoon = 30 * time.Second
	learnLate = 10 * time.Minute
)

const notAsked = "not asked yet"

// hearWithin is how long the store may take for its first word until it counts as away.
const hearWithin = 5 * time.Second

// run keeps the view until ctx has ended (nil) or the retries are used up.
func (v *view) run(ctx context.Context, sightings <-chan election.Sighting, show func()) error {
	v.load()
	found := make(chan probed, 1)
	answers := make(chan answered, 1)
	probing, asking := false, false
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	begin := func(p probed, urls []string) {
		probing = true
		work.Go(func() {
			open := v.probe(ctx, urls)
			maps.Copy(open, p.open)
			p.open = open
			found <- p
		})
	}
	now := time.Now()
	v.hearBy = now.Add(hearWithin)
	tick := now
	learn := now.Add(time.Duration(v.cfg.Random() * float64(learnSoon)))
	askAt := now
	v.look()
	show()
	for {
		now = time.Now()
		if !v.heard && !now.Before(v.hearBy) {
			v.heard = true
			v.look()
		}
		due := !v.missing.IsZero() && !now.Before(v.round)
		if !v.missing.IsZero() && !due && !now.Before(tick) && v.round.Sub(now) < v.cfg.Probe.Timeout {
			tick = v.round // a probe now would make the retry late
		}
		if !probing && (due || !now.Before(tick)) {
			if !now.Before(tick) {
				tick = now.Add(v.cfg.Probe.Interval)
			}
			begin(probed{began: now, round: due}, v.addresses())
		}
		wantAsk := v.decide.Ask && !now.Before(askAt) || v.storeUp && !now.Before(learn)
		if apis := v.apis(); wantAsk && !asking && len(apis) > 0 {
			asking = true
			work.Go(func() {
				views, err := ask(ctx, v.cfg.HTTP, v.cfg.Cluster, apis)
				answers <- answered{views, err}
			})
			askAt = now.Add(v.cfg.Retries.Every * 3 / 4).Add(time.Duration(v.cfg.Random() * float64(v.cfg.Retries.Every) / 2))
			learn = now.Add(learnLate).Add(time.Duration(v.cfg.Random() * float64(learnLate)))
		}

		next := time.Hour
		if !probing {
			next = time.Until(tick)
			if !v.missing.IsZero() {
				next = min(next, time.Until(v.round))
			}
		}
		if !v.heard {
			next = min(next, time.Until(v.hearBy))
		}
		if !asking && len(v.apis()) > 0 {
			if v.decide.Ask {
				next = min(next, time.Until(askAt))
			} else if v.storeUp {
				next = min(next, time.Until(learn))
			}
		}
		timer := time.NewTimer(max(next, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case s, ok := <-sightings:
			if !ok {
				sightings = nil
				if ctx.Err() == nil {
					s = election.Sighting{Err: errors.New("the watch of the store has ended"), At: time.Now()}
				} else {
					s.Err = ctx.Err()
				}
			}
			before := v.target.URL
			v.sighting(s)
			switch now := time.Now(); {
			case v.target.URL == before:
			case v.storeUp:
				// Soon; but a fleet is not to knock all at once at a controller that has just begun to serve.
				if soon := now.Add(time.Duration(v.cfg.Random() * float64(v.cfg.Probe.Interval))); soon.Before(tick) {
					tick = soon
				}
			default:
				tick = now // what to do depends on it
			}
		case p := <-found:
			probing = false
			again, err := v.found(&p, time.Now())
			if err != nil {
				v.look()
				show()
				timer.Stop()
				return err
			}
			if again {
				begin(p, slices.DeleteFunc(v.everybody(), func(u string) bool { _, ok := p.open[u]; return ok }))
			}
		case r := <-answers:
			asking = false
			before := v.target.URL
			v.answer(r)
			if v.target.URL != before {
				tick = time.Now()
			}
		case <-timer.C:
		}
		timer.Stop()
		v.look()
		v.save()
		show()
	}
}

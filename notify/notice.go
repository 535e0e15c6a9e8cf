package notify

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/tanist/tanist/election"
)

// Severity is how bad it is.
type Severity string

// The severities.
const (
	Info     Severity = "info"
	Warning  Severity = "warning"
	Critical Severity = "critical"
)

// The events.
const (
	EventTakeover  = "takeover"       // another reign serves
	EventRestarted = "restarted"      // the controller was restarted in place
	EventDown      = "down"           // nobody serves
	EventPaused    = "paused"         // an operator suspended failovers
	EventStandby   = "standby"        // an operator keeps a controller from becoming active
	EventDead      = "confirmed-dead" // an operator confirmed that a holder is dead
	EventGone      = "gone"           // the sidecar of a controller is gone
	EventFailed    = "failed"         // a controller cannot be confirmed gone, and the lease is kept
	EventUnfit     = "unfit"          // a passive could not take over
	EventStoreAway = "store-away"     // this member cannot read the store
	EventTest      = "test"           // an operator tries the channels
)

// Events lists the events.
func Events() []string {
	return []string{EventTakeover, EventRestarted, EventDown, EventPaused, EventStandby, EventDead, EventGone, EventFailed, EventUnfit, EventStoreAway}
}

// Notice is one thing to tell. Every member that observes it makes the same ID of it.
type Notice struct {
	ID       string        `json:"id"`
	Event    string        `json:"event"`
	Severity Severity      `json:"severity"`
	Cluster  string        `json:"cluster"`
	Name     string        `json:"name,omitempty"` // of the controller that it is about
	Term     election.Term `json:"term,omitempty"`
	Text     string        `json:"text"`     // a sentence
	At       time.Time     `json:"at"`       // when it happened, or was seen
	Resolved bool          `json:"resolved"` // it is over
	// Lasts: it is a state that will be reported as resolved, not a moment.
	Lasts bool `json:"lasts"`

	local bool // only this member knows it, so it is not claimed in the store
}

// Title returns a headline.
func (n Notice) Title() string {
	if n.Resolved {
		return fmt.Sprintf("%s: %s is over", n.Cluster, n.Event)
	}
	return fmt.Sprintf("%s: %s", n.Cluster, n.Event)
}

// Scene is a cluster at one moment.
type Scene struct {
	Snap    election.Snapshot
	History []election.History // newest first
	Members []election.Member
	Away    bool // the store cannot be read; the rest is old
}

// Observer makes notices of what changes between scenes. It is not safe for concurrent use.
type Observer struct {
	cluster, self string
	begun         bool
	told          map[string]bool      // moments that are known
	seen          map[string]time.Time // states: when they were first seen
	open          map[string]Notice    // states that were told
}

// NewObserver returns an observer for the member self.
func NewObserver(cluster, self string) *Observer {
	return &Observer{cluster: cluster, self: self, told: map[string]bool{}, seen: map[string]time.Time{}, open: map[string]Notice{}}
}

// How long states must last before they are told: shorter ones are part of ordinary events.
const (
	downAfter  = 30 * time.Second
	goneAfter  = 30 * time.Second
	unfitAfter = time.Minute
	awayAfter  = time.Minute
)

// oldNews is the age beyond which a moment is not told by a member that has just begun to observe.
const oldNews = 15 * time.Minute

// reignsLooked bounds how many reigns back moments are told.
const reignsLooked = 5

// Look returns what has happened since the last look. The first look returns what is true now, which
// others may have told already; the claims in the store sort that out.
func (o *Observer) Look(s Scene, now time.Time) []Notice {
	var all []Notice
	if !s.Away {
		all = o.moments(s, now)
		o.begun = true
	}
	return append(all, o.states(s, now)...)
}

// moments returns the new reigns, restarts and confirmations.
func (o *Observer) moments(s Scene, now time.Time) []Notice {
	var all []Notice
	known := map[string]bool{}
	take := func(n Notice) {
		n.ID, n.Text = keyed(n.ID), plain(n.Text)
		known[n.ID] = true
		if !o.told[n.ID] && (o.begun || now.Sub(n.At) < oldNews) {
			n.Cluster = o.cluster
			all = append(all, n)
		}
	}
	for _, h := range s.History[:min(len(s.History), reignsLooked)] {
		take(takeover(h))
		for _, r := range h.Restarts {
			take(Notice{
				ID: fmt.Sprintf("restarted-%d-%d", h.Term, r.At.UnixMilli()), Event: EventRestarted, Severity: Warning, Name: h.To, Term: h.Term, At: r.At,
				Text: fmt.Sprintf("%s was restarted in place, term %d%s (outage %s)", h.To, h.Term, because(strings.TrimPrefix(r.Why, "restart in place ")), millis(r.Outage)),
			})
		}
	}
	if d := s.Snap.Dead; d != nil {
		take(Notice{
			ID: fmt.Sprintf("confirmed-dead-%s-%d", d.Controller, d.At.UnixMilli()), Event: EventDead, Severity: Warning, Name: d.Controller, Term: d.Term, At: d.At,
			Text: fmt.Sprintf("%s confirmed that %s is dead, up to term %d%s", d.By, d.Controller, d.Term, because(d.Reason)),
		})
	}
	o.told = known
	slices.SortFunc(all, func(a, b Notice) int { return a.At.Compare(b.At) })
	return all
}

// takeover returns the notice of a reign.
func takeover(h election.History) Notice {
	n := Notice{ID: fmt.Sprintf("takeover-%d", h.Term), Event: EventTakeover, Severity: Info, Name: h.To, Term: h.Term, At: h.When}
	n.Text = fmt.Sprintf("%s is active, term %d%s", h.To, h.Term, because(h.Reason))
	if h.From != "" {
		n.Text = fmt.Sprintf("%s took over from %s, term %d%s", h.To, h.From, h.Term, because(h.Reason))
	}
	if !h.Clean && h.From != "" {
		n.Severity = Warning // it was not planned
	}
	if h.Outage > 0 {
		bound := ""
		if h.OutageAtMost {
			bound = "at most "
		}
		n.Text += fmt.Sprintf(" (outage %s%s)", bound, millis(h.Outage))
	}
	return n
}

// states returns the states that have lasted long enough, and those that are over.
func (o *Observer) states(s Scene, now time.Time) []Notice {
	var all []Notice
	present := map[string]bool{}
	for _, c := range o.conditions(s, now) {
		present[c.key] = true
		since, known := o.seen[c.key]
		if !known {
			since = now
			o.seen[c.key] = now
		}
		if _, told := o.open[c.key]; told || now.Sub(since) < c.after {
			continue
		}
		n := c.Notice
		n.Cluster, n.Lasts, n.At = o.cluster, true, since
		o.open[c.key] = n
		all = append(all, n)
	}
	for key := range o.seen {
		// While the store is away, nothing is known of the rest.
		if present[key] || s.Away && key != EventStoreAway {
			continue
		}
		if n, told := o.open[key]; told {
			n.ID, n.Resolved, n.At, n.Text = n.ID+"-over", true, now, "it is over: "+n.Text
			all = append(all, n)
		}
		delete(o.seen, key)
		delete(o.open, key)
	}
	slices.SortFunc(all, func(a, b Notice) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// condition is a state that may be told.
type condition struct {
	Notice
	key   string // identifies it for this observer
	after time.Duration
}

// conditions returns the states of a scene.
func (o *Observer) conditions(s Scene, now time.Time) []condition {
	if s.Away {
		since := now
		if at, ok := o.seen[EventStoreAway]; ok {
			since = at
		}
		return []condition{{key: EventStoreAway, after: awayAfter, Notice: Notice{
			ID: fmt.Sprintf("store-away-%s-%d", o.self, since.UnixMilli()), Event: EventStoreAway, Severity: Critical, Name: o.self, local: true,
			Text: o.self + " cannot read the store",
		}}}
	}
	var all []condition
	add := func(after time.Duration, n Notice) {
		n.ID, n.Text = keyed(n.ID), plain(n.Text)
		all = append(all, condition{n, n.ID, after})
	}
	if !s.Snap.Active.Serving() && len(s.History) > 0 {
		last := s.History[0]
		add(downAfter, Notice{
			ID: fmt.Sprintf("down-%d", last.Term), Event: EventDown, Severity: Critical, Name: last.To, Term: last.Term,
			Text: fmt.Sprintf("nobody is active; the last was %s, term %d%s", last.To, last.Term, because(last.EndedBy)),
		})
	}
	if p := s.Snap.Pause; p != nil {
		add(0, Notice{
			ID: fmt.Sprintf("paused-%d", s.Snap.PauseVer), Event: EventPaused, Severity: Info,
			Text: fmt.Sprintf("%s paused the cluster: nothing fails over%s", p.By, because(p.Reason)),
		})
	}
	for name, by := range s.Snap.Standbys {
		add(0, Notice{
			ID: fmt.Sprintf("standby-%s-%d", name, by.Since.UnixMilli()), Event: EventStandby, Severity: Info, Name: name, Text: name + " is " + by.Words(name),
		})
	}
	for _, m := range s.Members {
		if !m.Gone.IsZero() {
			add(goneAfter, Notice{
				ID: fmt.Sprintf("gone-%s-%d", m.Name, m.Gone.UnixMilli()), Event: EventGone, Severity: Warning, Name: m.Name,
				Text: fmt.Sprintf("the sidecar of %s on %s is gone", m.Name, m.Host),
			})
		}
	}
	for _, c := range s.Snap.Controllers {
		id := fmt.Sprintf("%s-%s-%.8s-%d", c.State, c.Name, c.Incarnation, c.Since.UnixMilli())
		switch c.State {
		case election.StateFailed:
			add(0, Notice{ID: id, Event: EventFailed, Severity: Critical, Name: c.Name, Text: fmt.Sprintf("%s failed%s", c.Name, because(c.Reason))})
		case election.StateUnfit:
			add(unfitAfter, Notice{ID: id, Event: EventUnfit, Severity: Warning, Name: c.Name, Text: fmt.Sprintf("%s could not take over%s", c.Name, because(c.Reason))})
		}
	}
	return all
}

// plain returns a text without control characters: what is in the store may be from anybody.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// keyed returns a text that may be part of a key.
func keyed(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-", r)) {
			return r
		}
		return '_'
	}, fmt.Sprintf("%.150s", s))
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func millis(m election.Millis) string {
	return time.Duration(float64(m) * float64(time.Millisecond)).Round(time.Millisecond).String()
}

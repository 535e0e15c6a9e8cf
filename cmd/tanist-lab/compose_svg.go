package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// stretch is a time without a gap in which one controller served.
type stretch struct {
	name     string
	term     uint64
	from, to election.Instant
}

// apart is how long nothing may have been noted within a stretch.
const apart = 400 * time.Millisecond

// stretches joins instants of answers, in order, to stretches.
func stretches(at []stretch) []stretch {
	slices.SortFunc(at, func(a, b stretch) int { return int(a.from - b.from) })
	var all []stretch
	for _, s := range at {
		if n := len(all) - 1; n >= 0 && all[n].term == s.term && s.from.Sub(all[n].to) < apart {
			all[n].to = max(all[n].to, s.to)
		} else {
			all = append(all, s)
		}
	}
	return all
}

// The timeline's measures, in pixels.
const (
	svgLeft, svgWidth, svgLane, svgTop = 130, 1200, 34, 70
)

// svg draws the evidence: who answered at the virtual URL, who served, who worked, and what was done
// when.
func (e *evidence) svg(title string) string {
	names := map[uint64]string{} // of the terms' controllers
	var virtual, all []stretch
	for _, p := range e.virtual {
		if p.Err == "" {
			names[p.Answer.Term] = p.Answer.Name
			virtual = append(virtual, stretch{p.Answer.Name, p.Answer.Term, p.Answered, p.Answered})
		}
	}
	from := e.until
	for _, p := range e.virtual {
		from = min(from, p.Sent)
	}
	if len(e.actions) > 0 {
		from = max(from, e.actions[0].At.Add(-3*time.Second))
	}
	lanes := map[string][]stretch{"virtual URL": stretches(virtual)}
	for _, s := range e.spans {
		all = append(all, stretch{names[s.Term], s.Term, s.Begun, s.Done})
	}
	for _, name := range []string{"ctl-a", "ctl-b"} {
		lanes[name] = stretches(slices.DeleteFunc(slices.Clone(all), func(s stretch) bool { return s.name != name }))
	}
	for _, name := range []string{"agt-1", "agt-2"} {
		var worked []stretch
		for _, w := range e.confirmed {
			if strings.HasPrefix(w.ID, name+"-") {
				worked = append(worked, stretch{names[w.Term], w.Term, w.At, w.At})
			}
		}
		lanes[name] = stretches(worked)
	}
	return drawTimeline(title, lanes, e.scenes(), from, e.until)
}

func drawTimeline(title string, lanes map[string][]stretch, scenes []scene, from, to election.Instant) string {
	x := func(at election.Instant) float64 {
		return svgLeft + (svgWidth-svgLeft-20)*float64(max(at, from)-from)/float64(max(1, to-from))
	}
	rows := []string{"virtual URL", "ctl-a", "ctl-b", "agt-1", "agt-2"}
	colour := map[string]string{"ctl-a": "#2563eb", "ctl-b": "#d97706"}
	bottom := svgTop + svgLane*len(rows)
	height := bottom + 50 + 18*len(scenes)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui,sans-serif" font-size="12">`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="10" y="22" font-size="16" font-weight="600">%s</text>`+"\n", html.EscapeString(title))
	fmt.Fprintf(&b, `<text x="10" y="40" fill="#555">%.0f s; blue: ctl-a, orange: ctl-b, the number is the term; red: no answer</text>`+"\n", to.Sub(from).Seconds())
	for i, name := range rows {
		y := svgTop + svgLane*i
		fmt.Fprintf(&b, `<text x="10" y="%d">%s</text><line x1="%d" x2="%d" y1="%d" y2="%[5]d" stroke="#ddd"/>`+"\n", y+20, name, svgLeft, svgWidth-20, y+svgLane-4)
		if i == 0 {
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="20" fill="#dc2626"/>`+"\n", svgLeft, y+5, svgWidth-svgLeft-20)
		}
		for _, s := range lanes[name] {
			if s.to < from {
				continue
			}
			w := max(1, x(s.to)-x(s.from))
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="20" fill="%s"><title>%s, term %d, %.2f s to %.2f s</title></rect>`+"\n",
				x(s.from), y+5, w, colour[s.name], s.name, s.term, s.from.Sub(from).Seconds(), s.to.Sub(from).Seconds())
			if w > 24 {
				fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#fff" font-size="11">%d</text>`+"\n", x(s.from)+4, y+19, s.term)
			}
		}
	}
	for i, s := range scenes {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%[1]f" y1="%d" y2="%d" stroke="#111" stroke-dasharray="3 3"/><text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n",
			x(s.At), svgTop-4, bottom, x(s.At), svgTop-8, i+1)
		fmt.Fprintf(&b, `<text x="10" y="%d">%d. %s: %s → %s, outage %d ms</text>`+"\n", bottom+30+18*i, i+1,
			html.EscapeString(strings.TrimSpace(s.What+" "+s.Host)), s.before.Name, s.after.Name, s.outage.Milliseconds())
	}
	b.WriteString("</svg>\n")
	return b.String()
}

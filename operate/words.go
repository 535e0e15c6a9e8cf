package operate

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/tanist/tanist/election"
)

// Clean makes a text from the store safe for one line on a terminal: it replaces what could move
// the cursor or break a table with a space. Write access to the store must not give control of the
// operator's screen.
func Clean(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "\ufffd"), func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	}), " ")
}

// RequestWords describes a request for people.
func RequestWords(r election.Request) string {
	text := fmt.Sprintf("%s of term %d", r.Op, r.Term)
	switch r.Op {
	case election.OpRestart:
		return Clean(text)
	case election.OpScheduledRestart:
		return Clean(fmt.Sprintf("restart of term %d at %s", r.Term, r.At.Local().Format(time.DateTime)))
	case election.OpScheduled:
		text = fmt.Sprintf("switchover of term %d at %s", r.Term, r.At.Local().Format(time.DateTime))
	}
	return Clean(text + " to " + cmp.Or(r.To, "any passive"))
}

// ParseWhen returns the time that an operator means, in the future and within a year. An empty text
// is now.
func ParseWhen(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return now, nil
	}
	when, ok := time.Time{}, false
	if after, plus := strings.CutPrefix(text, "+"); plus {
		d, err := time.ParseDuration(after)
		when, ok = now.Add(d), err == nil
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			when, ok = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location()), true
			if !when.After(now) {
				when = time.Date(now.Year(), now.Month(), now.Day()+1, t.Hour(), t.Minute(), t.Second(), 0, now.Location())
			}
		}
	}
	for _, layout := range []string{"2006-01-02 15:04", time.DateTime, "2006-01-02T15:04", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			when, ok = t, true
		}
	}
	switch {
	case !ok:
		return when, Errorf(Invalid, "%q is no time: give 15:04, '2006-01-02 15:04', an RFC 3339 time, or +45m", text)
	case !when.After(now):
		return when, Errorf(Invalid, "%s has passed: it is %s now", when.Format(time.DateTime), now.Format(time.DateTime))
	case when.Sub(now) > 366*24*time.Hour:
		return when, Errorf(Invalid, "%s is more than a year away", when.Format(time.DateTime))
	}
	return when, nil
}

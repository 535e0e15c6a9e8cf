package simulation

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"
)

// timeline is what happened, in order. It keeps a sum of everything, and the words too if they are wanted.
type timeline struct {
	base   time.Time
	keep   bool
	sum    uint64
	events uint64
	lines  []line
}

// line is one event of a timeline.
type line struct {
	at    time.Duration
	who   string
	what  string
	notes []any
}

func (l line) String() string {
	words := make([]string, 0, 2+len(l.notes))
	words = append(words, l.what)
	for _, n := range l.notes {
		words = append(words, fmt.Sprint(n))
	}
	return fmt.Sprintf("%14v  %-10s %s", l.at, l.who, strings.Join(words, " "))
}

// add records an event. Notes are numbers and plain words, so that the sum costs little.
func (t *timeline) add(who, what string, notes ...any) {
	at := time.Since(t.base)
	h := uint64(chance(t.sum).of(who, uint64(at)).of(what, uint64(len(notes))))
	for _, n := range notes {
		switch n := n.(type) {
		case string:
			h = uint64(chance(h).of(n, 0))
		case time.Duration:
			h = uint64(chance(h).of("", uint64(n)))
		case int:
			h = uint64(chance(h).of("", uint64(n)))
		default:
			f := fnv.New64a()
			fmt.Fprint(f, n)
			h = uint64(chance(h).of("", f.Sum64()))
		}
	}
	t.sum = h
	t.events++
	if t.keep {
		t.lines = append(t.lines, line{at, who, what, notes})
	}
}

func (t *timeline) String() string {
	var b strings.Builder
	for _, l := range t.lines {
		fmt.Fprintln(&b, l)
	}
	return b.String()
}

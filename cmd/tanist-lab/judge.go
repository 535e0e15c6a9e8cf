package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// span is a time in which a controller served: from begun to done it processed one request.
type span struct {
	Term        uint64
	PID         int
	Begun, Done election.Instant
}

// confirmed is a piece of work that a controller confirmed to a client.
type confirmed struct {
	ID   string
	Term uint64
	At   election.Instant
}

func (c confirmed) line() string { return fmt.Sprintf("%s %d %d", c.ID, c.Term, c.At) }

// row is a row of the repository with the position of its commit in the write-ahead log.
type row struct {
	ID     string
	Term   uint64
	Commit uint64 // LSN
}

// opened is the opening of a term at the repository: after this commit, no older term may commit.
type opened struct {
	Term   uint64
	Commit uint64 // LSN
}

// probe is one request to the virtual URL or to a controller.
type probe struct {
	Sent, Answered election.Instant
	Answer         answer
	Err            string // empty: a good response
}

func (p probe) line() string {
	return fmt.Sprintf("%d %d %d %d %q %q", p.Sent, p.Answered, p.Answer.Term, p.Answer.PID, p.Answer.Name, p.Err)
}

func parseProbe(line string) (p probe, err error) {
	_, err = fmt.Sscanf(line, "%d %d %d %d %q %q", &p.Sent, &p.Answered, &p.Answer.Term, &p.Answer.PID, &p.Answer.Name, &p.Err)
	return p, err
}

// overlap returns how long a controller served after one of a newer term had started to serve: the
// worst over all pairs of terms. Zero means that it never happened. Records of many processes of
// one term count as one.
func overlap(spans []span) (worst time.Duration, older, newer uint64) {
	first, last := map[uint64]election.Instant{}, map[uint64]election.Instant{}
	for _, s := range spans {
		if at, ok := first[s.Term]; !ok || s.Begun < at {
			first[s.Term] = s.Begun
		}
		last[s.Term] = max(last[s.Term], s.Done)
	}
	for low, end := range last {
		for high, begin := range first {
			if d := end.Sub(begin); low < high && d > worst {
				worst, older, newer = d, low, high
			}
		}
	}
	return worst, older, newer
}

// spansOf converts good responses into times at which the controller certainly served. A response
// proves only that it was made between Sent and Answered. So spansOf claims only what no other
// order of events explains: as evidence for serving too long, the controller served at Sent or
// later; for serving too early, at Answered or before.
func spansOf(probes []probe) []span {
	var spans []span
	for _, p := range probes {
		if p.Err == "" {
			spans = append(spans, span{Term: p.Answer.Term, PID: p.Answer.PID, Begun: p.Answered, Done: p.Sent})
		}
	}
	return spans
}

// lost returns the confirmed work that is not in the repository.
func lost(work []confirmed, rows []row) []confirmed {
	have := make(map[string]bool, len(rows))
	for _, r := range rows {
		have[r.ID] = true
	}
	var missing []confirmed
	for _, c := range work {
		if !have[c.ID] {
			missing = append(missing, c)
		}
	}
	return missing
}

// stale returns the rows of a term whose commit comes after the opening of a newer term in the log.
func stale(rows []row, opens []opened) []row {
	var bad []row
	for _, r := range rows {
		if slices.ContainsFunc(opens, func(o opened) bool { return o.Term > r.Term && o.Commit < r.Commit }) {
			bad = append(bad, r)
		}
	}
	return bad
}

// early returns the rows of a term whose commit comes before the opening of that term, or whose
// term was never opened.
func early(rows []row, opens []opened) []row {
	at := map[uint64]uint64{}
	for _, o := range opens {
		at[o.Term] = o.Commit
	}
	var bad []row
	for _, r := range rows {
		if o, ok := at[r.Term]; !ok || r.Commit < o {
			bad = append(bad, r)
		}
	}
	return bad
}

// outage returns the longest time without a good response in [from, to]: between the ends of two
// good responses, and from the last one to the end.
func outage(probes []probe, from, to election.Instant) time.Duration {
	var good []election.Instant
	for _, p := range probes {
		if p.Err == "" && p.Answered >= from && p.Answered <= to {
			good = append(good, p.Answered)
		}
	}
	slices.Sort(good)
	worst, prev := time.Duration(0), from
	for _, at := range append(good, to) {
		worst = max(worst, at.Sub(prev))
		prev = at
	}
	return worst
}

// servedAgain returns when the virtual URL first gave a good response of a term above than, or
// false.
func servedAgain(probes []probe, than uint64) (first election.Instant, by answer, ok bool) {
	for _, p := range probes {
		if p.Err == "" && p.Answer.Term > than && (!ok || p.Answered < first) {
			first, by, ok = p.Answered, p.Answer, true
		}
	}
	return first, by, ok
}

// readSpans reads the records of all demo controllers. It ignores a last line that a kill cut off.
func readSpans(dir string) ([]span, error) {
	var all []span
	err := readLines(filepath.Join(dir, "served-*"), func(f []string) error {
		if len(f) != 4 {
			return errors.New("not four fields")
		}
		var n [4]int64
		for i := range f {
			var err error
			if n[i], err = strconv.ParseInt(f[i], 10, 64); err != nil {
				return err
			}
		}
		all = append(all, span{Term: uint64(n[0]), PID: int(n[1]), Begun: election.Instant(n[2]), Done: election.Instant(n[3])})
		return nil
	})
	return all, err
}

// readConfirmed reads the records of all clients.
func readConfirmed(dir string) ([]confirmed, error) {
	var all []confirmed
	err := readLines(filepath.Join(dir, "confirmed-*"), func(f []string) error {
		if len(f) != 3 {
			return errors.New("not three fields")
		}
		term, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return err
		}
		at, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			return err
		}
		all = append(all, confirmed{ID: f[0], Term: term, At: election.Instant(at)})
		return nil
	})
	return all, err
}

// readLines calls f with the fields of each whole line of the files that match.
func readLines(pattern string, f func([]string) error) error {
	return readWhole(pattern, func(line string) error { return f(strings.Fields(line)) })
}

// readWhole calls f with each whole line of the files that match.
func readWhole(pattern string, f func(string) error) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, name := range files {
		file, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("cannot read the records: %v", err)
		}
		defer file.Close()
		r := bufio.NewReader(file)
		for n := 1; ; n++ {
			line, err := r.ReadString('\n')
			if err != nil {
				break // the end, or a truncated line
			}
			if err := f(line); err != nil {
				return fmt.Errorf("cannot read the records: %s:%d: %v", name, n, err)
			}
		}
	}
	return nil
}

// median returns the median of some durations; zero for none.
func median[T cmp.Ordered](all []T) T {
	var zero T
	if len(all) == 0 {
		return zero
	}
	s := slices.Sorted(slices.Values(all))
	return s[(len(s)-1)/2]
}

package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tanist/tanist/election"
)

const ms = election.Instant(time.Millisecond)

func TestOverlap(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spans []span
		want  time.Duration
	}{
		{"nothing", nil, 0},
		{"one term, two processes", []span{{1, 10, 0, 5 * ms}, {1, 11, 3 * ms, 9 * ms}}, 0},
		{"one after the other", []span{{1, 10, 0, 5 * ms}, {2, 11, 6 * ms, 9 * ms}}, 0},
		{"the older one still serves", []span{{1, 10, 0, 5 * ms}, {2, 11, 6 * ms, 7 * ms}, {1, 10, 8 * ms, 9 * ms}}, 3 * time.Millisecond},
		{"a request was in flight", []span{{1, 10, 0, 8 * ms}, {2, 11, 6 * ms, 7 * ms}}, 2 * time.Millisecond},
		{"the worst pair is not adjacent", []span{{1, 10, 0, 50 * ms}, {2, 11, 40 * ms, 41 * ms}, {3, 12, 45 * ms, 46 * ms}}, 10 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, _, _ := overlap(tc.spans); got != tc.want {
				t.Errorf("overlap %v, want %v", got, tc.want)
			}
		})
	}
}

// TestSlowAnswerIsNoOverlap: an answer of the old controller that arrives late proves nothing about
// when it was made.
func TestSlowAnswerIsNoOverlap(t *testing.T) {
	probes := []probe{
		{Sent: 0, Answered: 90 * ms, Answer: answer{Term: 1}},
		{Sent: 40 * ms, Answered: 50 * ms, Answer: answer{Term: 2}},
		{Sent: 95 * ms, Answered: 96 * ms, Err: "refused", Answer: answer{Term: 1}},
	}
	if got, _, _ := overlap(spansOf(probes)); got != 0 {
		t.Errorf("overlap %v, want none", got)
	}
	probes = append(probes, probe{Sent: 60 * ms, Answered: 61 * ms, Answer: answer{Term: 1}})
	if got, older, newer := overlap(spansOf(probes)); got != 10*time.Millisecond || older != 1 || newer != 2 {
		t.Errorf("overlap %v of term %d over %d, want 10ms of 1 over 2", got, older, newer)
	}
}

func TestLostStaleEarly(t *testing.T) {
	rows := []row{{"a", 1, 100}, {"b", 1, 110}, {"c", 2, 210}, {"d", 1, 220}, {"e", 2, 190}, {"f", 9, 300}}
	opens := []opened{{1, 50}, {2, 200}}
	if got, want := lost([]confirmed{{ID: "a"}, {ID: "x"}, {ID: "c"}}, rows), []confirmed{{ID: "x"}}; !cmp.Equal(got, want) {
		t.Errorf("lost: %s", cmp.Diff(want, got))
	}
	if got, want := stale(rows, opens), []row{{"d", 1, 220}}; !cmp.Equal(got, want) {
		t.Errorf("stale: %s", cmp.Diff(want, got))
	}
	if got, want := early(rows, opens), []row{{"e", 2, 190}, {"f", 9, 300}}; !cmp.Equal(got, want) {
		t.Errorf("early: %s", cmp.Diff(want, got))
	}
}

func TestOutage(t *testing.T) {
	good := func(at election.Instant) probe { return probe{Sent: at - ms, Answered: at} }
	bad := func(at election.Instant) probe { return probe{Sent: at - ms, Answered: at, Err: "503"} }
	for _, tc := range []struct {
		name   string
		probes []probe
		want   time.Duration
	}{
		{"no answer at all", nil, 100 * time.Millisecond},
		{"a gap in the middle", []probe{good(10 * ms), good(20 * ms), bad(30 * ms), good(70 * ms), good(95 * ms)}, 50 * time.Millisecond},
		{"still out at the end", []probe{good(10 * ms), good(20 * ms), bad(30 * ms)}, 80 * time.Millisecond},
		{"answers out of order", []probe{good(70 * ms), good(20 * ms), good(45 * ms), good(90 * ms)}, 25 * time.Millisecond},
		{"answers before the fault do not count", []probe{good(-5 * ms), good(60 * ms), good(90 * ms)}, 60 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := outage(tc.probes, 0, 100*ms); got != tc.want {
				t.Errorf("outage %v, want %v", got, tc.want)
			}
		})
	}
}

// TestRecordsSurviveAKill: the last line of a process that was killed may be cut off; all before it
// count.
func TestRecordsSurviveAKill(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("served-a", "1 10 100 200\n1 10 300 4")
	write("served-b", "2 11 500 600\n")
	write("confirmed-agt", "x-1 1 100\nx-2 2 2")
	spans, err := readSpans(dir)
	if want := []span{{1, 10, 100, 200}, {2, 11, 500, 600}}; err != nil || !cmp.Equal(spans, want) {
		t.Errorf("spans: %v, %s", err, cmp.Diff(want, spans))
	}
	work, err := readConfirmed(dir)
	if want := []confirmed{{"x-1", 1, 100}}; err != nil || !cmp.Equal(work, want) {
		t.Errorf("confirmed: %v, %s", err, cmp.Diff(want, work))
	}
	write("served-c", "not a record\n")
	if _, err := readSpans(dir); err == nil {
		t.Error("a line that is no record was accepted")
	}
}

func TestMedian(t *testing.T) {
	if got := median([]int{5, 1, 9}); got != 5 {
		t.Errorf("median %d", got)
	}
	if got := median([]int{4, 1}); got != 1 {
		t.Errorf("median %d", got)
	}
	if got := median[int](nil); got != 0 {
		t.Errorf("median of nothing %d", got)
	}
}

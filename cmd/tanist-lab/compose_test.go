package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// at is a second of the evidence.
func at(s float64) election.Instant { return election.Instant(s * float64(time.Second)) }

// recorded is evidence of a move from ctl-a, term 1, to ctl-b, term 2, at 10 s, in which all is well.
func recorded() *evidence {
	e := &evidence{until: at(20), actions: []action{{at(8), 1, "ctl-a", "kill"}, {at(12), 0, "", "heal"}}}
	for _, term := range []uint64{1, 2} {
		name, from := "ctl-a", 0.0
		if term == 2 {
			name, from = "ctl-b", 10
		}
		for s := from; s < from+8; s += 0.1 {
			id := name + time.Duration(at(s)).String()
			e.virtual = append(e.virtual, probe{Sent: at(s), Answered: at(s + 0.01), Answer: answer{Name: name, Term: term, PID: 1}})
			e.spans = append(e.spans, span{Term: term, PID: 1, Begun: at(s), Done: at(s + 0.01)})
			e.confirmed = append(e.confirmed, confirmed{ID: "agt-1-" + id, Term: term, At: at(s)})
			e.rows = append(e.rows, committed{row{ID: "agt-1-" + id, Term: term}, s})
		}
	}
	return e
}

// TestReportFindsWhatIsBroken: each guarantee is found broken by its own evidence, and none is without.
func TestReportFindsWhatIsBroken(t *testing.T) {
	if got := recorded().broken(); len(got) != 0 {
		t.Errorf("good evidence: %q", got)
	}
	for name, tc := range map[string]struct {
		spoil func(e *evidence)
		want  string
	}{
		"two serve": {func(e *evidence) { e.spans = append(e.spans, span{Term: 1, PID: 1, Begun: at(11), Done: at(11.1)}) }, "two controllers served"},
		"two answer": {func(e *evidence) {
			e.direct = append(e.direct, probe{Sent: at(11), Answered: at(11.1), Answer: answer{Name: "ctl-a", Term: 1}})
		}, "two controllers served"},
		"the URL leads back": {func(e *evidence) {
			e.virtual = append(e.virtual, probe{Sent: at(11), Answered: at(11.1), Answer: answer{Name: "ctl-a", Term: 1}})
		}, "led back to term 1"},
		"a stale row": {func(e *evidence) { e.rows = append(e.rows, committed{row{ID: "x", Term: 1}, 11}) }, "1 rows of an older term"},
		"a lost row":  {func(e *evidence) { e.rows = e.rows[1:] }, "1 confirmed rows are not in the repository"},
	} {
		e := recorded()
		tc.spoil(e)
		if got := e.broken(); len(got) != 1 || !strings.Contains(got[0], tc.want) {
			t.Errorf("%s: %q, want one with %q", name, got, tc.want)
		}
	}
	// A whole frozen host may serve when it thaws. It may not before the freeze, nor may another term.
	e := recorded()
	e.actions[0].What = "freeze"
	e.spans = append(e.spans, span{Term: 1, PID: 1, Begun: at(7), Done: at(11.1)})
	if got := e.broken(); len(got) != 0 {
		t.Errorf("a request that thawed: %q", got)
	}
	e.actions[0] = action{at(17.5), 2, "ctl-b", "freeze"}
	if got := e.broken(); len(got) != 1 {
		t.Errorf("a request that thawed in a term that was not frozen: %q", got)
	}
}

// TestReportReadsWhatWasNoted: what the commands in the containers note is what the report reads.
func TestReportReadsWhatWasNoted(t *testing.T) {
	dir, want := t.TempDir(), recorded()
	write := func(name string, lines []string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var answers, actions, work []string
	for _, p := range append(want.virtual, probe{Sent: at(9), Answered: at(9.1), Err: `503 "nobody"`}) {
		answers = append(answers, p.line())
	}
	for _, a := range append(want.actions, action{At: want.until, What: "report"}) {
		actions = append(actions, a.line())
	}
	for _, c := range want.confirmed {
		work = append(work, c.line())
	}
	write("answers-virtual", answers)
	write("answers-ctl-a", answers[:3])
	write("actions", actions)
	write("confirmed-agt-1", work)
	write("failed-agt-1", []string{"agt-1-1 9000000000", "agt-1-1 9000000001"})
	write("served-ctl-a", []string{"1 1 0 10", "1 1 20 30"})
	var e evidence
	if err := e.read(dir); err != nil {
		t.Fatal(err)
	}
	if len(e.virtual) != len(answers) || e.virtual[0] != want.virtual[0] || e.virtual[len(answers)-1].Err != `503 "nobody"` {
		t.Errorf("%d answers at the virtual URL, the last is %+v", len(e.virtual), e.virtual[len(e.virtual)-1])
	}
	if len(e.direct) != 3 || len(e.failed) != 2 || len(e.spans) != 2 || e.until != want.until || !slices.Equal(e.actions, want.actions) {
		t.Errorf("read %d direct answers, %d failures, %d spans, the actions %+v until %d", len(e.direct), len(e.failed), len(e.spans), e.actions, e.until)
	}
	scenes := e.scenes()
	if len(scenes) != 1 || scenes[0].failed != 2 || scenes[0].before.Name != "ctl-a" || scenes[0].after.Name != "ctl-b" || scenes[0].outage.Round(100*time.Millisecond) != 2100*time.Millisecond {
		t.Errorf("the scenes are %+v", scenes)
	}
}

// TestTimelineIsAnImage: the timeline is well-formed, and shows every action and both controllers.
func TestTimelineIsAnImage(t *testing.T) {
	text := recorded().svg("Lab on <etcd>")
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
	for _, want := range []string{"1. kill ctl-a: ctl-a → ctl-b, outage ", "ctl-a, term 1, ", "ctl-b, term 2, "} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not contain %q:\n%s", want, text)
		}
	}
}

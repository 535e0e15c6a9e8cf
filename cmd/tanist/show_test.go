package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"plain words":                "plain words",
		" two\n lines\t":             "two lines",
		"\x1b[31mred\x1b[0m":         "[31mred [0m",
		"bell\a, \u009bCSI":          "bell , CSI",
		"right\u202eleft":            "right left",
		"não → 日本":                   "não → 日本",
		string([]byte{'a', 0xff, 0}): "a\ufffd",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := short(strings.Repeat("é", 100)); got != strings.Repeat("é", 59)+"…" {
		t.Errorf("got %q", got)
	}
}

func TestSinceAndMillis(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", // another host's clock
		0:          "0s", 59 * time.Second: "59s", 14*time.Minute + 3*time.Second: "14m03s", 3*time.Hour + 12*time.Minute: "3h12m",
		47 * time.Hour: "47h00m", 49 * time.Hour: "2d01h",
	} {
		if got := since(now, now.Add(-d)); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	if got := since(now, time.Time{}); got != "-" {
		t.Errorf("never: %s", got)
	}
	for m, want := range map[election.Millis]string{-1: "-", 0: "-", 6.04: "6.0ms", 41: "41ms", 800: "800ms", 1200: "1.2s", 2000: "2s"} {
		if got := millis(m); got != want {
			t.Errorf("%v: %s, want %s", m, got, want)
		}
	}
}

// TestConditions: what `tanist wait` understands, and what it refuses.
func TestConditions(t *testing.T) {
	serving := election.Snapshot{Active: &election.Active{Controller: "ctl-a", Term: 7, State: election.StateServing}}
	starting := election.Snapshot{Active: &election.Active{Controller: "ctl-a", Term: 7, State: election.StateStarting}}
	for text, want := range map[string]bool{
		"active": true, "controller=ctl-a": true, "controller=ctl-b": false, "term>6": true, "term>7": false,
		"active,controller=ctl-a,term>6": true, "controller=ctl-a,term>7": false,
	} {
		holds, err := parseConditions(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if holds(serving) != want {
			t.Errorf("%s: %v", text, !want)
		}
		if holds(starting) || holds(election.Snapshot{}) {
			t.Errorf("%s holds while nobody serves", text)
		}
	}
	for _, text := range []string{"", "active,", "controller=", "term>", "term>x", "term>-1", "term>5x", "term=5", "serving", "7"} {
		if _, err := parseConditions(text); exitCode(err) != exitUsage {
			t.Errorf("%q was accepted: %v", text, err)
		}
	}
}

// TestChooseTarget: a move that can't be carried out is refused before anything is asked for.
func TestChooseTarget(t *testing.T) {
	controller := func(name string, state election.State, no bool) election.Controller {
		return election.Controller{Name: name, State: state, NoFailover: no, Reason: "why"}
	}
	snap := func(change func(*election.Snapshot)) election.Snapshot {
		s := election.Snapshot{
			Active: &election.Active{Controller: "a", Term: 7, State: election.StateServing},
			Controllers: []election.Controller{
				controller("a", election.StateServing, false), controller("b", election.StateReady, false), controller("c", election.StateUnfit, false),
				controller("d", election.StateReady, true),
			},
		}
		change(&s)
		return s
	}
	for _, tc := range []struct {
		name   string
		change func(*election.Snapshot)
		to     string
		target string
		code   int
		say    string
	}{
		{"anybody", func(*election.Snapshot) {}, "", "b", 0, ""},
		{"by name", func(*election.Snapshot) {}, "b", "b", 0, ""},
		{"one that is only moved to by name", func(*election.Snapshot) {}, "d", "d", 0, ""},
		{"the active", func(*election.Snapshot) {}, "a", "", 1, "a is active already"},
		{"one that is not fit", func(*election.Snapshot) {}, "c", "", 1, "c is unfit: why"},
		{"a stranger", func(*election.Snapshot) {}, "x", "", 1, "there is no controller x in this cluster; ready are: b"},
		{"nobody is active", func(s *election.Snapshot) { s.Active = nil }, "b", "", 3, "nothing to move"},
		{"it is starting", func(s *election.Snapshot) { s.Active.State = election.StateStarting }, "b", "", 3, "nothing to move"},
		{"paused", func(s *election.Snapshot) { s.Pause = &election.Pause{By: "ana"} }, "b", "", 1, "paused by ana"},
		{"nobody is ready", func(s *election.Snapshot) { s.Controllers = s.Controllers[:1] }, "", "", 1, "no passive is ready"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target, err := chooseTarget(snap(tc.change), tc.to)
			if target != tc.target || exitCode(err) != tc.code {
				t.Errorf("got %q, code %d, %v", target, exitCode(err), err)
			}
			if tc.say != "" && (err == nil || !strings.Contains(err.Error(), tc.say)) {
				t.Errorf("%v does not say %q", err, tc.say)
			}
		})
	}
}

// TestChanges: every kind of change, as it is told.
func TestChanges(t *testing.T) {
	a := func(state election.State, term election.Term) *election.Active {
		return &election.Active{Controller: "ctl-a", Term: term, State: state, URL: "http://a", Reason: "why"}
	}
	c := func(name string, state election.State) election.Controller {
		return election.Controller{Name: name, Incarnation: "1", State: state, Health: "-"}
	}
	with := func(cs ...election.Controller) election.Snapshot { return election.Snapshot{Controllers: cs} }
	restarted := c("ctl-b", election.StateReady)
	restarted.Incarnation = "2"
	unfit := c("ctl-b", election.StateUnfit)
	unfit.Reason = "no disk"
	worse := unfit
	worse.Reason = "no disk; no port"
	sick := c("ctl-b", election.StateReady)
	sick.Health = "http: 503"
	agent := func(follows, state string) []election.Agent {
		return []election.Agent{{Name: "agt", Follows: follows, Term: 7, State: state}}
	}
	for _, tc := range []struct {
		name     string
		old, now scene
		want     []string
	}{
		{"nothing", scene{snap: with(c("b", "ready"))}, scene{snap: with(c("b", "ready"))}, nil},
		{"acquired", scene{}, scene{snap: election.Snapshot{Active: a("starting", 7)}}, []string{"ctl-a acquired the lease, term 7: why"}},
		{
			"served",
			scene{snap: election.Snapshot{Active: a("starting", 7)}},
			scene{snap: election.Snapshot{Active: a("serving", 7)}},
			[]string{"ctl-a is active at http://a, term 7: why"},
		},
		{
			"stopping",
			scene{snap: election.Snapshot{Active: a("serving", 7)}},
			scene{snap: election.Snapshot{Active: a("stopping", 7)}},
			[]string{"ctl-a, which holds the lease, is stopping, term 7"},
		},
		{
			"released",
			scene{snap: election.Snapshot{Active: a("stopping", 7)}},
			scene{snap: election.Snapshot{Breadcrumb: election.Breadcrumb{Term: 7, Clean: true, Reason: "switchover (ana)"}}},
			[]string{"ctl-a released its lease, term 7: switchover (ana)"},
		},
		{
			"lost",
			scene{snap: election.Snapshot{Active: a("serving", 7)}},
			scene{snap: election.Snapshot{Breadcrumb: election.Breadcrumb{Term: 7}}},
			[]string{"the lease of ctl-a ended without a release, term 7"},
		},
		{"a new term at once", scene{snap: election.Snapshot{Active: a("serving", 7)}}, scene{snap: election.Snapshot{Active: a("serving", 8)}}, []string{"ctl-a is active at http://a, term 8: why"}},
		{"joined", scene{}, scene{snap: with(c("ctl-b", "ready"))}, []string{"the sidecar of ctl-b is here: ready"}},
		{"left", scene{snap: with(c("ctl-b", "ready"))}, scene{}, []string{"the sidecar of ctl-b is gone"}},
		{"restarted", scene{snap: with(c("ctl-b", "ready"))}, scene{snap: with(restarted)}, []string{"the sidecar of ctl-b was restarted: ready"}},
		{"unfit", scene{snap: with(c("ctl-b", "ready"))}, scene{snap: with(unfit)}, []string{"ctl-b: ready → unfit: no disk"}},
		{"worse", scene{snap: with(unfit)}, scene{snap: with(worse)}, []string{"ctl-b is unfit: no disk; no port"}},
		{"health", scene{snap: with(c("ctl-b", "ready"))}, scene{snap: with(sick)}, []string{"the health of ctl-b: http: 503"}},
		{
			"paused",
			scene{},
			scene{snap: election.Snapshot{Pause: &election.Pause{By: "ana", Reason: "upgrade"}}},
			[]string{"ana paused the cluster: nothing fails over: upgrade"},
		},
		{"resumed", scene{snap: election.Snapshot{Pause: &election.Pause{By: "ana"}}}, scene{}, []string{"the pause is over"}},
		{
			"asked",
			scene{},
			scene{snap: election.Snapshot{Request: &election.Request{ID: "1", Op: "switchover", By: "ana"}}},
			[]string{"ana asked for a switchover to any passive"},
		},
		{"done", scene{snap: election.Snapshot{Request: &election.Request{ID: "1", By: "ana"}}}, scene{}, []string{"the request of ana is done with"}},
		{"an agent", scene{}, scene{agents: agent("", "waiting")}, []string{"agent agt is here: waiting"}},
		{"an agent that follows", scene{agents: agent("", "waiting")}, scene{agents: agent("ctl-a", "running")}, []string{"agent agt follows ctl-a, term 7: running"}},
		{"an agent that stops", scene{agents: agent("ctl-a", "running")}, scene{agents: agent("ctl-a", "stopped")}, []string{"agent agt: running → stopped"}},
		{"an agent that left", scene{agents: agent("ctl-a", "running")}, scene{}, []string{"agent agt is gone"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, e := range changes(tc.old, tc.now) {
				got = append(got, e.Text)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestHistoryTable: what stopped before is shown with what began after.
func TestHistoryTable(t *testing.T) {
	when := time.Date(2026, 11, 22, 12, 5, 10, 0, time.UTC)
	all := []election.History{
		{Term: 8, When: when, From: "ctl-a", To: "ctl-b", Reason: "switchover (ana)", Fence: 6, Start: 800, Outage: 2100},
		{Term: 7, When: when, To: "ctl-a", Reason: "first start", Start: 800, EndDetect: 30, EndStop: 1200},
		{Term: 6, When: when, From: "ctl-b", To: "ctl-a", Reason: "the lease of ctl-b ended", Wait: 4130, Outage: 9000, OutageAtMost: true},
	}
	var out bytes.Buffer
	historyTable(&out, all[:1], all)
	line := strings.Fields(strings.Split(out.String(), "\n")[1])
	if got, want := strings.Join(line[3:], " "), "ctl-a → ctl-b switchover (ana) 30ms 1.2s - 6.0ms 800ms 2.1s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	out.Reset()
	historyTable(&out, all[2:], all)
	if !strings.Contains(out.String(), "≤ 9s") {
		t.Errorf("an outage that is only bounded:\n%s", out.String())
	}
}

// TestExitCodes: the same error has the same code, however it is wrapped.
func TestExitCodes(t *testing.T) {
	for code, err := range map[int]error{
		0:   nil,
		1:   errors.New("x"),
		3:   exit(exitNotActive, "x"),
		69:  storeError(errors.New("x"), "y"),
		77:  errors.Join(election.ErrDenied),
		78:  config.Problems{{What: "x"}},
		107: exit(exitForce, "x"),
	} {
		if got := exitCode(err); got != code {
			t.Errorf("%v: %d, want %d", err, got, code)
		}
	}
	if got := exitCode(writeError(election.ErrDenied, "the pause")); got != exitDenied {
		t.Errorf("a denied write: %d", got)
	}
	if got := exitCode(loadError(errors.New("x"))); got != exitConfig {
		t.Errorf("a file: %d", got)
	}
}

// TestBug: a panic is told as a bug, with 70.
func TestBug(t *testing.T) {
	root := newRoot()
	root.AddCommand(&cobra.Command{Use: "break", RunE: func(*cobra.Command, []string) error { panic("broken") }})
	root.SetArgs([]string{"break"})
	err := execute(t.Context(), root)
	if exitCode(err) != exitBug || !strings.Contains(err.Error(), "this is a bug in tanist") || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %d, %v", exitCode(err), err)
	}
}

// TestEveryCommandIsDocumented: a sentence, and the same words for the same flags.
func TestEveryCommandIsDocumented(t *testing.T) {
	var page bytes.Buffer
	root := newRoot()
	manPage(&page, root)
	words := map[string]string{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no sentence", c.CommandPath())
		}
		if c.Runnable() && c.Name() != "help" && c.Name() != "completion" && c.Parent() != nil && c.Parent().Name() != "completion" && c.Args == nil {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		if c.Parent() != nil && c.Name() != "help" && !strings.Contains(page.String(), ".SS "+roff(c.CommandPath())) {
			t.Errorf("%s is not in the manual page", c.CommandPath())
		}
		for _, name := range []string{"output", "watch", "yes", "force", "cluster", "endpoints"} {
			f := c.Flags().Lookup(name)
			if f == nil || c.CommandPath() == "tanist events" || strings.HasPrefix(c.CommandPath(), "tanist repository") {
				continue
			}
			if before, ok := words[name]; ok && before != f.Shorthand+f.Usage {
				t.Errorf("%s: --%s is %q here, and %q elsewhere", c.CommandPath(), name, f.Shorthand+f.Usage, before)
			}
			words[name] = f.Shorthand + f.Usage
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// TestExitCodesAreDocumented: the manual page names all of them.
func TestExitCodesAreDocumented(t *testing.T) {
	var all []int
	for _, c := range exitCodes() {
		all = append(all, c.code)
	}
	if want := []int{0, 1, 3, 64, 69, 70, 75, 77, 78, 107}; !slices.Equal(all, want) {
		t.Errorf("got %v, want %v", all, want)
	}
}

// TestRoff: a text can't become a request of the page's language.
func TestRoff(t *testing.T) {
	if got, want := roff(".SH x\n'y\n--a\\b"), "\\&.SH x\n\\&'y\n\\-\\-a\\eb"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDocumentsHaveLists: a script that asks for the length of a list gets one, never null.
func TestDocumentsHaveLists(t *testing.T) {
	b, err := json.Marshal(clusterOf("orders", election.Snapshot{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"controllers":[]`, `"agents":[]`, `"active":null`} {
		if !strings.Contains(string(b), part) {
			t.Errorf("%s is not in %s", part, b)
		}
	}
}

// TestFollowing: a store that blinks does not end `list -w`; one that was never there, and any other error, do.
func TestFollowing(t *testing.T) {
	away, broken := storeError(errors.New("no route"), "the store can't be read"), errors.New("broken")
	for _, tc := range []struct {
		name string
		errs []error // one per look; after the last one, ctx ends
		code int
		want string
	}{
		{"it blinks", []error{nil, away, nil}, 0, "here the store can't be read: no route here"},
		{"it was never there", []error{away}, exitStore, ""},
		{"something else", []error{nil, broken}, exitFailure, "here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			v := view{output: "table", watch: time.Millisecond}
			err := v.show(ctx, &out, func() (any, func(io.Writer), error) {
				err := tc.errs[0]
				if tc.errs = tc.errs[1:]; len(tc.errs) == 0 && err == nil {
					cancel()
				}
				return nil, func(w io.Writer) { fmt.Fprintln(w, "here") }, err
			})
			if exitCode(err) != tc.code {
				t.Errorf("code %d, want %d: %v", exitCode(err), tc.code, err)
			}
			if got := strings.Join(strings.Fields(strings.ReplaceAll(out.String(), "\x1b[H\x1b[2J", "")), " "); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestInterrupted: an operator who interrupts a command is not told that the store is away.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	away := storeError(context.Canceled, "the store can't be read")
	if err := interrupted(ctx, away); exitCode(err) != exitStore {
		t.Errorf("not interrupted: %v", err)
	}
	cancel(errors.New("the command was told to end (interrupt)"))
	if err := interrupted(ctx, nil); err != nil {
		t.Errorf("done before: %v", err)
	}
	want := "the command was told to end (interrupt); what was asked for before that goes on: see `tanist list`"
	if err := interrupted(ctx, away); exitCode(err) != exitFailure || err.Error() != want {
		t.Errorf("interrupted: %v", err)
	}
}

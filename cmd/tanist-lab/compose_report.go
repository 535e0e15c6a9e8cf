package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tanist/tanist/election"
)

// evidence is what clients, controllers and the repository's server noted. None of it comes from
// Tanist. All instants are of the one kernel that runs the containers.
type evidence struct {
	actions   []action
	virtual   []probe
	direct    []probe
	spans     []span // by the controllers' own records
	confirmed []confirmed
	failed    []election.Instant // when an attempt of an agent was not confirmed
	rows      []committed
	until     election.Instant
}

// committed is a row of the repository with the time of its commit, by the server's clock.
type committed struct {
	row
	at float64 // seconds since 1970
}

// collect copies the evidence out of the containers.
func (c *containers) collect(ctx context.Context) (e evidence, err error) {
	dir, err := os.MkdirTemp("", "tanist-lab-evidence-")
	if err != nil {
		return e, fmt.Errorf("cannot collect the evidence: %v", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	if err := c.note(ctx, 0, "", "report"); err != nil {
		return e, err
	}
	if _, err := c.docker(ctx, "cp", c.name("user")+":/evidence/.", dir); err != nil {
		return e, err
	}
	if err := e.read(dir); err != nil {
		return e, err
	}
	text, err := c.sql(ctx, "SELECT id, term, extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM lab.work")
	if err != nil {
		return e, err
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 3 {
			return e, fmt.Errorf("cannot read the repository: %q", line)
		}
		term, err1 := strconv.ParseUint(f[1], 10, 64)
		at, err2 := strconv.ParseFloat(f[2], 64)
		if err := errors.Join(err1, err2); err != nil {
			return e, fmt.Errorf("cannot read the repository: %v", err)
		}
		e.rows = append(e.rows, committed{row{ID: f[0], Term: term}, at})
	}
	return e, nil
}

// read reads the files of /evidence.
func (e *evidence) read(dir string) error {
	errs := []error{
		readWhole(filepath.Join(dir, "actions"), func(line string) error {
			a, err := parseAction(line)
			if a.What == "report" {
				e.until = a.At
			} else {
				e.actions = append(e.actions, a)
			}
			return err
		}),
		readWhole(filepath.Join(dir, "answers-ctl-*"), func(line string) error {
			p, err := parseProbe(line)
			e.direct = append(e.direct, p)
			return err
		}),
		readWhole(filepath.Join(dir, "answers-virtual"), func(line string) error {
			p, err := parseProbe(line)
			e.virtual = append(e.virtual, p)
			return err
		}),
		readLines(filepath.Join(dir, "failed-*"), func(f []string) error { // the id, and when
			at, err := strconv.ParseInt(f[len(f)-1], 10, 64)
			e.failed = append(e.failed, election.Instant(at))
			return err
		}),
	}
	var err error
	e.spans, err = readSpans(dir)
	errs = append(errs, err)
	e.confirmed, err = readConfirmed(dir)
	return errors.Join(append(errs, err)...)
}

// sql runs a query in the repository.
func (c *containers) sql(ctx context.Context, query string) (string, error) {
	return c.exec(ctx, "postgres", "sh", "-c",
		`PGPASSWORD="$(cat /run/secrets/postgres)" exec psql -X -At -h 127.0.0.1 -U postgres -d lab -c "$0"`, query)
}

// broken returns the broken guarantees.
func (e *evidence) broken() []string {
	var broken []string
	say := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	if d, older, newer := overlap(e.withoutFrozen(slices.Concat(e.spans, spansOf(e.direct)))); d > 0 {
		say("two controllers served at the same time: term %d still served %v after term %d had begun", older, d, newer)
	}
	if d, older, newer := overlap(spansOf(e.virtual)); d > 0 {
		say("the virtual URL led back to term %d %v after term %d had answered", older, d, newer)
	}
	if n := e.staleRows(); n > 0 {
		say("%d rows of an older term were committed after one of a newer term", n)
	}
	if missing := lost(e.confirmed, plain(e.rows)); len(missing) > 0 {
		say("%d confirmed rows are not in the repository, such as %s", len(missing), missing[0].ID)
	}
	return broken
}

// withoutFrozen drops what a controller of a frozen host served after the freeze: a whole frozen host
// is beyond the second guarantee. The other guarantees still hold.
func (e *evidence) withoutFrozen(spans []span) []span {
	frozen := map[uint64]election.Instant{}
	for _, a := range e.actions {
		if at, known := frozen[a.Term]; a.What == "freeze" && strings.HasPrefix(a.Host, "ctl-") && (!known || a.At < at) {
			frozen[a.Term] = a.At
		}
	}
	return slices.DeleteFunc(spans, func(s span) bool {
		at, ok := frozen[s.Term]
		return ok && s.Done > at
	})
}

// staleRows returns how many rows of an older term were committed after the first row of a newer one.
func (e *evidence) staleRows() int {
	first := map[uint64]float64{}
	for _, r := range e.rows {
		if at, ok := first[r.Term]; !ok || r.at < at {
			first[r.Term] = r.at
		}
	}
	n := 0
	for _, r := range e.rows {
		for term, at := range first {
			if term > r.Term && at < r.at {
				n++
				break
			}
		}
	}
	return n
}

func plain(rows []committed) []row {
	all := make([]row, len(rows))
	for i, r := range rows {
		all[i] = r.row
	}
	return all
}

// scene is the time from one action to the next.
type scene struct {
	action
	before, after answer // at the virtual URL
	outage        time.Duration
	failed        int // attempts of agents that were not confirmed
}

// scenes returns what each action did to users. Healing belongs to the action before it.
func (e *evidence) scenes() []scene {
	virtual := slices.Clone(e.virtual)
	slices.SortFunc(virtual, func(a, b probe) int { return int(a.Answered - b.Answered) })
	last := func(until election.Instant) (a answer) {
		for _, p := range virtual {
			if p.Answered > until {
				break
			}
			if p.Err == "" {
				a = p.Answer
			}
		}
		return a
	}
	var all []scene
	acts := slices.DeleteFunc(slices.Clone(e.actions), func(a action) bool { return a.What == "heal" })
	for i, a := range acts {
		end := e.until
		if i+1 < len(acts) {
			end = acts[i+1].At
		}
		s := scene{action: a, before: last(a.At), after: last(end), outage: outage(virtual, a.At, end)}
		for _, at := range e.failed {
			if a.At <= at && at < end {
				s.failed++
			}
		}
		all = append(all, s)
	}
	return all
}

// report prints the table, writes the timeline and returns the broken guarantees.
func (c *containers) report(ctx context.Context) ([]string, error) {
	e, err := c.collect(ctx)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "  WHAT\tHOST\tACTIVE BEFORE → AFTER\tTERM\tOUTAGE AT THE VIRTUAL URL\tAGENTS' FAILED REQUESTS")
	for _, s := range e.scenes() {
		fmt.Fprintf(t, "  %s\t%s\t%s → %s\t%d → %d\t%d ms\t%d\n",
			s.What, s.Host, s.before.Name, s.after.Name, s.before.Term, s.after.Term, s.outage.Milliseconds(), s.failed)
	}
	if err := t.Flush(); err != nil {
		return nil, err
	}
	c.out.section("What users saw")
	c.out.print("%s", b.String())
	broken := e.broken()
	c.out.print("\n  %d answers at the virtual URL, %d confirmed rows, %d failed requests of agents\n", len(e.virtual), len(e.confirmed), len(e.failed))
	for _, text := range broken {
		c.out.print("  %s\n", c.out.paint("31;1", "BROKEN: "+text))
	}
	if len(broken) == 0 {
		c.out.print("  Exactly one controller served at any time; the virtual URL never led back; nothing confirmed was lost; nothing stale was committed.\n")
	}
	file := filepath.Join(c.dir, "timeline-"+c.lab+".svg")
	if err := os.WriteFile(file, []byte(e.svg("Lab on "+c.lab)), 0o644); err != nil {
		return broken, fmt.Errorf("cannot write the timeline: %v", err)
	}
	c.out.print("  The timeline is in %s.\n", file)
	return broken, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// scenario is one part of the tour.
type scenario struct {
	name  string
	title string
	// strike breaks the active side and describes that in plain words.
	strike func(ctx context.Context, l *lab, active *side, who answer) (string, error)
	// mend reverts strike once the other side serves. Sidecars that ended are restarted after it.
	mend func(l *lab, was *side) string
	// beyond marks a scenario that exceeds the guarantees about processes, so it is not part of the
	// tour. It shows that the judge convicts, and that the repository's fence still holds.
	beyond bool
	// play shows something other than a takeover, and is not part of the tour either.
	play func(ctx context.Context, l *lab, s scenario) (result, error)
}

// scenarios is the tour, in order.
func tourScenarios() []scenario {
	return []scenario{
		{
			name: "kill-controller", title: "The controller is killed (kill -9)",
			strike: func(_ context.Context, _ *lab, s *side, who answer) (string, error) {
				return fmt.Sprintf("kill -9 %d, the controller of %s", who.PID, s.Name), unix.Kill(who.PID, unix.SIGKILL)
			},
		},
		{
			name: "hang-controller", title: "The controller hangs",
			strike: func(ctx context.Context, _ *lab, s *side, _ answer) (string, error) {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/hang", http.NoBody)
				if err != nil {
					return "", err
				}
				resp, err := (&http.Client{Timeout: 2 * time.Second}).Do(req)
				if err != nil {
					return "", err
				}
				return fmt.Sprintf("%s accepts connections and answers nothing any more", s.Name), resp.Body.Close()
			},
		},
		{
			name: "kill-sidecar", title: "The sidecar is killed (kill -9)",
			strike: func(_ context.Context, _ *lab, s *side, _ answer) (string, error) {
				return fmt.Sprintf("kill -9 %d, the sidecar of %s; its controller lives", s.sidecar.pid(), s.Name), unix.Kill(s.sidecar.pid(), unix.SIGKILL)
			},
		},
		{
			name: "freeze-sidecar", title: "The sidecar is frozen (SIGSTOP), and thaws later",
			strike: func(_ context.Context, _ *lab, s *side, _ answer) (string, error) {
				return fmt.Sprintf("kill -STOP %d, the sidecar of %s; its controller lives", s.sidecar.pid(), s.Name), unix.Kill(s.sidecar.pid(), unix.SIGSTOP)
			},
			mend: func(_ *lab, s *side) string {
				if err := unix.Kill(s.sidecar.pid(), unix.SIGCONT); err != nil {
					return err.Error()
				}
				return fmt.Sprintf("kill -CONT %d: the sidecar of %s continues, with a lease that ended long ago", s.sidecar.pid(), s.Name)
			},
		},
		{
			name: "crash-host", title: "The host crashes",
			strike: func(_ context.Context, l *lab, s *side, _ answer) (string, error) {
				all := l.crash(s)
				return fmt.Sprintf("sidecar, guard and controller of %s, %d processes, gone at the same instant", s.Name, len(all)), nil
			},
		},
		{
			name: "move", title: "Planned move",
			strike: func(ctx context.Context, l *lab, s *side, _ answer) (string, error) { return l.switchOver(ctx, s) },
		},
		{
			name: "freeze-all-but-controller", title: "Sidecar and guard are frozen, the controller is not", beyond: true,
			strike: func(_ context.Context, l *lab, s *side, who answer) (string, error) { return l.freezeKeepers(s, who) },
			mend: func(l *lab, s *side) string {
				for _, pid := range l.frozen {
					_ = unix.Kill(pid, unix.SIGCONT) // a process that has ended needs none
				}
				return fmt.Sprintf("kill -CONT: sidecar and guard of %s go on", s.Name)
			},
		},
		{name: "store-away", title: "The store is away (see --on-store-loss)", beyond: true, play: storeAway},
	}
}

// switchOver moves the active away from s, as planned.
func (l *lab) switchOver(ctx context.Context, s *side) (string, error) {
	to := l.sides[0]
	if to == s {
		to = l.sides[1]
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.tanist, "switchover", "-y", "--to", to.Name, "-c", s.Config)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot switch over: %v\n%s", err, out)
	}
	return fmt.Sprintf("tanist switchover --to %s", to.Name), nil
}

// freezeKeepers freezes the sidecar and the guard of a controller that keeps running.
func (l *lab) freezeKeepers(s *side, who answer) (string, error) {
	l.frozen = nil
	for _, p := range processes() {
		if p.pid == who.PID {
			l.frozen = []int{s.sidecar.pid(), p.parent}
		}
	}
	var errs []error
	for _, pid := range l.frozen {
		errs = append(errs, unix.Kill(pid, unix.SIGSTOP))
	}
	return fmt.Sprintf("kill -STOP %v, the sidecar and the guard of %s; nobody is left to end its controller", l.frozen, s.Name), errors.Join(errs...)
}

func scenarioNames() []string {
	var names []string
	for _, s := range tourScenarios() {
		names = append(names, s.name)
	}
	return names
}

// result is the result of one run of a scenario.
type result struct {
	Scenario   string          `json:"scenario"`
	Did        string          `json:"did"`
	From       string          `json:"from"`
	To         string          `json:"to"`
	TermBefore uint64          `json:"term_before"`
	TermAfter  uint64          `json:"term_after"`
	Takeover   election.Millis `json:"takeover_ms"`  // fault → first good response of the new term at the virtual URL
	Outage     election.Millis `json:"outage_ms"`    // longest time without a good response
	OwnStart   election.Millis `json:"own_start_ms"` // the controller's own start, within Outage
	Fence      election.Millis `json:"fence_ms"`     // the repository's fence, within Outage
	Overlap    election.Millis `json:"overlap_ms"`
	Confirmed  int             `json:"confirmed"` // rows confirmed to clients during the scenario
	Lost       int             `json:"lost"`
	Stale      int             `json:"stale"`
	Early      int             `json:"early"`   // rows written before their own term was opened
	Refused    int             `json:"refused"` // requests to the virtual URL without a good response
	Requests   int             `json:"requests"`
	Broken     []string        `json:"broken,omitempty"`
}

// results is the output of --json.
type results struct {
	OK      bool     `json:"ok"`
	Profile string   `json:"profile"`
	Runs    []result `json:"runs"`
	Broken  []string `json:"broken,omitempty"`
	Story   string   `json:"story"` // what `etcdctl watch --prefix /tanist/lab/role/` showed
}

// tour runs the selected scenarios.
func (l *lab) tour(ctx context.Context) (*results, error) {
	r := &results{OK: true, Profile: l.opts.profile}
	number := 0
	for _, s := range tourScenarios() {
		if asked := slices.Contains(l.opts.scenarios, s.name); !asked && (s.beyond || len(l.opts.scenarios) > 0) {
			continue
		}
		for run := range l.opts.runs {
			number++
			title := s.title
			if l.opts.runs > 1 {
				title += fmt.Sprintf(" (%d of %d)", run+1, l.opts.runs)
			}
			l.out.section(fmt.Sprintf("%d. %s", number, title))
			play := l.takeover
			if s.play != nil {
				play = func(ctx context.Context, _ scenario) (result, error) { return s.play(ctx, l, s) }
			}
			one, err := play(ctx, s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			l.out.verdict(one)
			r.Runs = append(r.Runs, one)
			for _, b := range one.Broken {
				r.OK, r.Broken = false, append(r.Broken, s.name+": "+b)
			}
		}
	}
	r.Story = l.story.text()
	return r, nil
}

// settle is how long the lab observes after the takeover, and again after everything was mended.
const settle = 700 * time.Millisecond

// takeover runs one scenario once and judges it.
func (l *lab) takeover(ctx context.Context, s scenario) (result, error) {
	before, err := l.healthy(ctx, 0)
	if err != nil {
		return result{}, err
	}
	r := result{Scenario: s.name, From: before.active.Controller, TermBefore: uint64(before.active.Term)}
	was, err := l.of(r.From)
	if err != nil {
		return r, err
	}
	var who answer
	if err := wait(ctx, 30*time.Second, was.Name+" to answer at the virtual URL", func(context.Context) error {
		var ok bool
		_, who, ok = servedAgain(l.virtual.since(election.BootClock().Add(-300*time.Millisecond)), r.TermBefore-1)
		if !ok || who.Name != was.Name {
			return fmt.Errorf("cannot see %s at the virtual URL", was.Name)
		}
		return nil
	}); err != nil {
		return r, err
	}
	mark, err := l.logPosition(ctx)
	if err != nil {
		return r, err
	}

	from := election.BootClock()
	if r.Did, err = s.strike(ctx, l, was, who); err != nil {
		return r, err
	}
	l.out.event(r.Did)
	var served election.Instant
	if err := wait(ctx, 60*time.Second, "the passive to take over", func(context.Context) error {
		at, by, ok := servedAgain(l.virtual.since(from), r.TermBefore)
		if !ok {
			return fmt.Errorf("nobody above term %d answers at the virtual URL", r.TermBefore)
		}
		served, r.To, r.TermAfter = at, by.Name, by.Term
		return nil
	}); err != nil {
		return r, err
	}
	l.out.event(fmt.Sprintf("%s answers at the virtual URL, term %d", r.To, r.TermAfter))
	r.Takeover = election.ToMillis(served.Sub(from))
	if err := pause(ctx, settle); err != nil {
		return r, err
	}
	if s.mend != nil {
		l.out.event(s.mend(l, was))
		if err := pause(ctx, settle); err != nil {
			return r, err
		}
	}
	for _, side := range l.sides {
		if !side.sidecar.alive() {
			l.out.event(fmt.Sprintf("the sidecar of %s is started again", side.Name))
			if err := l.startSidecar(side); err != nil {
				return r, err
			}
		}
	}
	after, err := l.healthy(ctx, r.TermBefore)
	if err != nil {
		return r, err
	}
	if err := pause(ctx, settle); err != nil {
		return r, err
	}
	to := election.BootClock()
	if h, ok := after.histories[election.Term(r.TermAfter)]; ok {
		r.OwnStart, r.Fence = h.Start, h.Fence
	}
	err = l.judge(ctx, &r, from, to, mark)
	if r.From == r.To {
		r.Broken = append(r.Broken, fmt.Sprintf("%s is active again: the passive did not take over", r.To))
	}
	return r, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// judge fills in the evidence about [from, to].
func (l *lab) judge(ctx context.Context, r *result, from, to election.Instant, mark string) error {
	work, err := readConfirmed(l.path("records"))
	if err != nil {
		return err
	}
	spans, err := readSpans(l.path("records"))
	if err != nil {
		return err
	}
	var direct []probe
	for _, s := range l.sides {
		direct = append(direct, s.direct.since(from)...)
	}
	virtual := l.virtual.since(from)

	within := slices.DeleteFunc(work, func(c confirmed) bool { return c.At < from || c.At > to })
	spans = slices.DeleteFunc(spans, func(s span) bool { return s.Done < from || s.Begun > to })
	rows, opens, err := l.readLog(ctx, mark)
	if err != nil {
		return err
	}
	all, err := l.readRows(ctx)
	if err != nil {
		return err
	}
	byRecord, low, high := overlap(spans)
	byProbe, plow, phigh := overlap(spansOf(slices.Concat(direct, virtual)))
	if byProbe > byRecord {
		byRecord, low, high = byProbe, plow, phigh
	}
	r.Overlap = election.ToMillis(byRecord)
	r.Outage = election.ToMillis(outage(virtual, from, to))
	r.Confirmed = len(within)
	for _, p := range virtual {
		r.Requests++
		if p.Err != "" {
			r.Refused++
		}
	}
	missing, bad, soon := lost(within, all), stale(rows, opens), early(rows, opens)
	r.Lost, r.Stale, r.Early = len(missing), len(bad), len(soon)

	broken := func(format string, args ...any) { r.Broken = append(r.Broken, fmt.Sprintf(format, args...)) }
	if byRecord > 0 {
		broken("a controller of term %d still served %v after one of term %d had begun to", low, byRecord, high)
	}
	if len(missing) > 0 {
		broken("%d confirmed rows are not in the repository, the first is %s", len(missing), missing[0].ID)
	}
	if len(bad) > 0 {
		broken("%d rows of an older term were accepted, the first is %s of term %d", len(bad), bad[0].ID, bad[0].Term)
	}
	if len(soon) > 0 {
		broken("%d rows were accepted before their term was opened, the first is %s of term %d", len(soon), soon[0].ID, soon[0].Term)
	}
	if r.Confirmed == 0 {
		broken("nothing was confirmed to any client, so nothing was shown")
	}
	return nil
}

// logPosition returns the end of the repository's write-ahead log.
func (l *lab) logPosition(ctx context.Context) (string, error) {
	var lsn string
	err := l.query(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&lsn)
	})
	return lsn, err
}

// readLog reads from the write-ahead log in which order rows and openings of terms were committed
// since mark. Openings before mark have position zero; only their being first matters.
func (l *lab) readLog(ctx context.Context, mark string) (rows []row, opens []opened, err error) {
	err = l.query(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// The function refuses to read from the very end of the log, so there must be a record
		// after mark.
		if _, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(true, 'lab', 'judged')"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `CREATE TEMP TABLE commits AS
			SELECT xid, start_lsn - '0/0'::pg_lsn AS lsn FROM pg_get_wal_records_info($1, pg_current_wal_flush_lsn())
			WHERE resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%'`, mark); err != nil {
			return err
		}
		found, err := conn.Query(ctx, "SELECT w.id, w.term, c.lsn::bigint FROM lab.work w JOIN commits c ON c.xid = w.xmin")
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(found, func(r pgx.CollectableRow) (one row, err error) {
			err = r.Scan(&one.ID, &one.Term, &one.Commit)
			return one, err
		})
		if err != nil {
			return err
		}
		// xid is the lower half of xid8; a lab does not live for four billion transactions.
		found, err = conn.Query(ctx, `SELECT h.term, coalesce(c.lsn, 0)::bigint FROM tanist.history h
			LEFT JOIN commits c ON c.xid = h.opened_xid::xid WHERE h.cluster = $1 AND h.opened_xid IS NOT NULL`, cluster)
		if err != nil {
			return err
		}
		opens, err = pgx.CollectRows(found, func(r pgx.CollectableRow) (one opened, err error) {
			err = r.Scan(&one.Term, &one.Commit)
			return one, err
		})
		return err
	})
	return rows, opens, err
}

// readRows reads all rows of the repository, without their positions.
func (l *lab) readRows(ctx context.Context) (rows []row, err error) {
	err = l.query(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		found, err := conn.Query(ctx, "SELECT id, term FROM lab.work")
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(found, func(r pgx.CollectableRow) (one row, err error) {
			err = r.Scan(&one.ID, &one.Term)
			return one, err
		})
		return err
	})
	return rows, err
}

// query runs f on a connection of the repository's superuser.
func (l *lab) query(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, l.super)
	if err == nil {
		err = errors.Join(f(ctx, conn), conn.Close(ctx))
	}
	if err != nil {
		return fmt.Errorf("cannot ask the repository: %w", err)
	}
	return nil
}

// crash ends everything of one side at once: its sidecar with all descendants and, wherever it is
// in the process tree, its controller with the guard that started it.
func (l *lab) crash(s *side) []int {
	var all []int
	add := func(pid int) {
		if !slices.Contains(all, pid) {
			all = append(all, pid)
			_ = unix.Kill(pid, unix.SIGSTOP) // nobody must react to the death of another
		}
	}
	for {
		known := len(all)
		if s.sidecar.alive() {
			add(s.sidecar.pid())
			for _, pid := range descendants(s.sidecar.pid()) {
				add(pid)
			}
		}
		parents := map[int]int{}
		for _, p := range processes() {
			parents[p.pid] = p.parent
		}
		for _, pid := range descendants(os.Getpid()) {
			if !strings.Contains(commandLine(pid), "\x00controller\x00--name\x00"+s.Name+"\x00") {
				continue
			}
			for ; pid > 1 && pid != os.Getpid(); pid = parents[pid] {
				add(pid)
			}
		}
		if len(all) == known {
			break
		}
	}
	for _, pid := range all {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return all
}

// commandLine returns the arguments of a process, each ended by a zero byte.
func commandLine(pid int) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return "" // it has ended
	}
	return string(b)
}

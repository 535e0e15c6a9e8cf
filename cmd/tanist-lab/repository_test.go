package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tanist/tanist/election"
)

// newRepository is a lab with nothing but its repository.
func newRepository(t *testing.T) *lab {
	t.Helper()
	l := &lab{dir: t.TempDir(), sides: []*side{{Name: "ctl-a"}, {Name: "ctl-b"}}}
	if err := l.repositoryUp(t.Context()); err != nil {
		t.Skipf("no PostgreSQL here (scripts/install-deps installs it): %v", err)
	}
	t.Cleanup(func() {
		if err := l.repository.Stop(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *lab) exec(t *testing.T, sql string) {
	t.Helper()
	if err := l.query(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestJudgeFindsAStaleWrite: a judge that can't find a violation proves nothing. Terms are opened
// by hand, and a row of term 1 is written after term 2 was opened.
func TestJudgeFindsAStaleWrite(t *testing.T) {
	l := newRepository(t)
	mark, err := l.logPosition(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := func(term int) {
		l.exec(t, fmt.Sprintf(`INSERT INTO tanist.history (cluster, term, controller, begun_at, begun_xid, opened_at, opened_xid)
			VALUES ('lab', %d, 'x', now(), pg_current_xact_id(), now(), pg_current_xact_id())`, term))
	}
	write := func(id string, term int) {
		l.exec(t, fmt.Sprintf("INSERT INTO lab.work (id, term, controller) VALUES ('%s', %d, 'x')", id, term))
	}
	write("too-early", 1)
	open(1)
	write("fine-1", 1)
	open(2)
	write("fine-2", 2)

	check := func(wantStale, wantEarly string) {
		t.Helper()
		rows, opens, err := l.readLog(t.Context(), mark)
		if err != nil {
			t.Fatal(err)
		}
		ids := func(rows []row) string {
			var all []string
			for _, r := range rows {
				all = append(all, r.ID)
			}
			return strings.Join(all, " ")
		}
		if got := ids(stale(rows, opens)); got != wantStale {
			t.Errorf("stale writes %q, want %q", got, wantStale)
		}
		if got := ids(early(rows, opens)); got != wantEarly {
			t.Errorf("early writes %q, want %q", got, wantEarly)
		}
	}
	check("", "too-early")
	write("too-late", 1)
	check("too-late", "too-early")

	// The judge of a later window sees only what was committed in it.
	if mark, err = l.logPosition(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("", "")
	write("late-again", 1)
	check("late-again", "")
}

// TestDemoController: what the demo controller confirms is in the repository, once, and a hang
// answers nothing and claims nothing.
func TestDemoController(t *testing.T) {
	l := newRepository(t)
	pool, err := pgxpool.New(t.Context(), l.super)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	notes, err := appendTo(filepath.Join(l.dir, "served-x"))
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{name: "x", term: 7, pool: pool, record: notes}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /work", d.work)
	mux.HandleFunc("GET /healthz", d.healthz)
	mux.HandleFunc("GET /{$}", d.page)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	client := &http.Client{Timeout: time.Minute}

	first, err := sendWork(t.Context(), client, srv.URL, "one")
	if err != nil {
		t.Fatal(err)
	}
	again, err := sendWork(t.Context(), client, srv.URL, "one") // the client did not see the confirmation
	if err != nil {
		t.Fatal(err)
	}
	if first != again || first.Term != 7 || first.Row == 0 {
		t.Errorf("the same work was answered %+v, then %+v", first, again)
	}
	rows, err := l.readRows(t.Context())
	if err != nil || len(rows) != 1 || rows[0].ID != "one" {
		t.Errorf("rows %v, %v", rows, err)
	}
	resp, err := client.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(body), "is active, term 7") {
		t.Errorf("page: %v, %s", err, body)
	}

	d.hang.Store(true)
	hung := election.BootClock()
	client.Timeout = 50 * time.Millisecond
	if _, err := sendWork(t.Context(), client, srv.URL, "two"); err == nil {
		t.Error("a hung controller answered")
	}
	srv.CloseClientConnections()
	srv.Close() // waits for the handlers
	spans, err := readSpans(l.dir)
	if err != nil || len(spans) != 3 {
		t.Errorf("%d records, %v; want three", len(spans), err)
	}
	for _, s := range spans {
		if s.Done > hung {
			t.Errorf("a hung controller claims to have served: %+v", s)
		}
	}
}

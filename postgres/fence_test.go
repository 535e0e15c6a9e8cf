package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres/private"
)

// A reign that began before the repository was configured has nothing to lose there: there is no
// failover, but Assert does not report that the repository is this term's.
func TestReignOlderThanTheRepositoryIsNotLost(t *testing.T) {
	r := newRepository(t, "a", "b")
	a := r.fence("a")
	if err := a.Assert(t.Context(), 5); err == nil || errors.Is(err, ErrTerm) || !strings.Contains(err.Error(), "was not fenced for term 5") {
		t.Errorf("Assert of a term that was never raised: %v", err)
	}
	r.raise(a, 6)
	if err := a.Assert(t.Context(), 6); err != nil {
		t.Error(err)
	}
}

// A repository that was restored from before its first term has lost the term of a reign that
// another process of the sidecar began, if this process has seen a term there.
func TestRepositoryRestoredFromBeforeItsFirstTermIsLost(t *testing.T) {
	r := newRepository(t, "a")
	r.raise(r.fence("a"), 5)
	for name, look := range map[string]func(*Fence) error{
		"as the active":  func(f *Fence) error { return f.Assert(t.Context(), 5) },
		"as the passive": func(f *Fence) error { return f.Ready(t.Context()) },
	} {
		next := r.fence("a")
		if err := look(next); err != nil {
			t.Fatal(err)
		}
		if _, err := Reset(t.Context(), r.server.SuperDSN(r.database), r.cluster, 0); err != nil {
			t.Fatal(err)
		}
		var lost *LostError
		if err := next.Assert(t.Context(), 5); !errors.As(err, &lost) || lost.Theirs != 0 {
			t.Errorf("%s: %v", name, err)
		}
		r.raise(next, 5)
	}
}

func TestHandover(t *testing.T) {
	r := newRepository(t, "a", "b")
	a, b := r.fence("a"), r.fence("b")

	one := r.raise(a, 1)
	old := r.mustLogin("a", one)
	if err := insert(t.Context(), old, 1, "a"); err != nil {
		t.Fatal(err)
	}
	if err := a.Assert(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Exec(t.Context(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), old, 1, "a"); err != nil {
		t.Fatal(err)
	}

	two := r.raise(b, 2)
	if _, err := old.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("a transaction of term 1 committed after term 2 was opened")
	}
	if _, err := r.login("a", one); err == nil {
		t.Error("the secret of term 1 still lets a log in")
	}
	if err := insert(t.Context(), r.mustLogin("b", two), 2, "b"); err != nil {
		t.Fatal(err)
	}
	var ahead interface{ RepositoryTerm() election.Term }
	if err := a.Assert(t.Context(), 1); !errors.Is(err, ErrTerm) || !errors.As(err, &ahead) || ahead.RepositoryTerm() != 2 {
		t.Errorf("Assert of an old term: %v", err)
	}
	if err := b.Assert(t.Context(), 2); err != nil {
		t.Error(err)
	}
	if err := a.Close(t.Context(), 1); err != nil {
		t.Errorf("Close of a term that is over: %v", err)
	}
	if got := r.loginsAllowed(); len(got) != 1 || got[0] != r.role("b") {
		t.Errorf("may log in: %v", got)
	}
	// The same controller again: the process of its older term must not come back in the new one.
	three := r.raise(b, 3)
	if _, err := r.login("b", two); err == nil {
		t.Error("the secret of term 2 is good in term 3 of the same controller")
	}
	r.mustLogin("b", three)
	if err := b.Close(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if got := r.loginsAllowed(); len(got) != 0 {
		t.Errorf("may log in after Close: %v", got)
	}
	var lost *LostError
	if err := b.Assert(t.Context(), 3); !errors.As(err, &lost) || lost.Phase != "closed" || !lost.Superseded() {
		t.Errorf("Assert of a closed term: %v", err)
	}
}

func TestOlderTermRefused(t *testing.T) {
	r := newRepository(t, "a", "b")
	a, b := r.fence("a"), r.fence("b")
	secret := r.raise(b, 7)
	session := r.mustLogin("b", secret)

	for _, term := range []election.Term{6, 7} { // 7: the same term with another holder
		_, err := a.Raise(t.Context(), term)
		var ahead *AheadError
		if !errors.As(err, &ahead) || ahead.RepositoryTerm() != 7 || ahead.Holder != "b" || !errors.Is(err, ErrTerm) {
			t.Errorf("Raise(%d) while b has 7: %v", term, err)
		}
	}
	if err := insert(t.Context(), session, 7, "b"); err != nil {
		t.Errorf("a refused term disturbed the holder: %v", err)
	}
	if err := b.Assert(t.Context(), 8); err == nil {
		t.Error("Assert of a term that was never raised")
	} else if lost := (*LostError)(nil); !errors.As(err, &lost) || lost.Theirs != 7 {
		t.Errorf("Assert while the repository is behind: %v", err)
	}
}

func TestHalfDoneNobodyLogsInAndNextTermRepairs(t *testing.T) {
	for _, step := range []string{"begin", "begun", "drain", "deliver", "open", "opened"} {
		t.Run(step, func(t *testing.T) {
			r := newRepository(t, "a", "b")
			a, b := r.fence("a"), r.fence("b")
			one := r.raise(a, 1)
			b.step = func(name string) error {
				if name == step {
					return errors.New("crash")
				}
				return nil
			}
			if _, err := b.Raise(t.Context(), 2); !errors.Is(err, errAbandoned) {
				t.Fatalf("not abandoned: %v", err)
			}
			switch got := r.loginsAllowed(); {
			case step == "begin": // nothing has happened yet
				r.mustLogin("a", one)
			case step == "opened":
				if len(got) != 1 || got[0] != r.role("b") {
					t.Errorf("may log in after open: %v", got)
				}
			case len(got) != 0:
				t.Errorf("half done, and may log in: %v", got)
			}
			if step != "begin" {
				if _, err := r.login("a", one); err == nil {
					t.Error("the old secret is still good")
				}
				if _, err := a.Raise(t.Context(), 1); !errors.Is(err, ErrTerm) {
					t.Errorf("the old term can be raised again: %v", err)
				}
			}
			// The same term again, by another run of the sidecar that does not know the first
			// attempt; then the next term.
			b2 := r.fence("b")
			r.mustLogin("b", r.raise(b2, 2))
			r.mustLogin("a", r.raise(a, 3))
		})
	}
}

func TestLateAttemptDoesNotUndoTheNext(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	secret := r.raise(a, 1)
	session := r.mustLogin("a", secret)
	sc := connect(t, a.cfg.DSN)
	v, err := verifier("some other secret")
	if err != nil {
		t.Fatal(err)
	}
	_, err = sc.Exec(t.Context(), "SELECT tanist.begin($1, 1, 1, $2)", r.cluster, v)
	if code, d := refusal(err); code != stateOvertaken || d.Attempt != 1 {
		t.Errorf("a repeated attempt: %v", err)
	}
	if err := insert(t.Context(), session, 1, "a"); err != nil {
		t.Errorf("a late attempt disturbed the present one: %v", err)
	}
}

func TestSidecarMayDoNothingElse(t *testing.T) {
	r := newRepository(t, "a", "b")
	other := newRepository(t, "c")
	f := r.fence("a")
	secret := r.raise(f, 1)
	v, err := verifier("x")
	if err != nil {
		t.Fatal(err)
	}
	sc := connect(t, r.server.DSN(r.sidecar("a"), "sidecar-a", r.database))
	program := r.mustLogin("a", secret)
	foreign := connect(t, other.server.DSN(other.sidecar("c"), "sidecar-c", r.database))
	for _, c := range []struct {
		who  *pgx.Conn
		code string
		sql  string
	}{
		{sc, "42501", "UPDATE tanist.fence SET term = 0"},
		{sc, "42501", "SELECT * FROM tanist.fence"},
		{sc, "42501", "UPDATE tanist.controller SET sidecar = session_user"},
		{sc, "42501", "SELECT tanist.reset('" + r.cluster + "', 0)"},
		{sc, "42501", "SELECT tanist.terminate('" + r.cluster + "')"},
		{sc, "42501", "SELECT tanist.me('" + r.cluster + "')"},
		{sc, "42501", "ALTER ROLE " + r.role("a") + " LOGIN"},
		{sc, "42501", "SET ROLE tanist_owner"},
		{sc, "42501", "SELECT * FROM work"},
		{sc, "42501", "CREATE TABLE tanist.x (i int)"},
		{sc, "TN004", "SELECT tanist.begin('" + other.cluster + "', 9, 1, '" + v + "')"},
		{sc, "22023", "SELECT tanist.begin('" + r.cluster + "', 9, 1, 'a clear text password')"},
		{foreign, "42501", "SELECT tanist.begin('" + r.cluster + "', 9, 1, '" + v + "')"},
		{program, "42501", "SELECT tanist.begin('" + r.cluster + "', 9, 1, '" + v + "')"},
		{program, "42501", "SELECT tanist.assert('" + r.cluster + "')"},
		{program, "42501", "UPDATE tanist.fence SET term = 0"},
		{program, "42501", "ALTER ROLE " + r.role("b") + " LOGIN"},
	} {
		_, err := c.who.Exec(t.Context(), c.sql)
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || pe.Code != c.code {
			t.Errorf("%s: %v, not %s", c.sql, err, c.code)
		}
	}
	// A call always concerns the caller's own controller: b's sidecar can't open what a began.
	scb := connect(t, r.server.DSN(r.sidecar("b"), "sidecar-b", r.database))
	_, err = scb.Exec(t.Context(), "SELECT tanist.open($1, 1, 1, 0, $2)", r.cluster, v)
	if code, _ := refusal(err); code != stateAhead {
		t.Errorf("b opens a's term: %v", err)
	}
	var closed bool
	if err := scb.QueryRow(t.Context(), "SELECT tanist.close($1, 1)", r.cluster).Scan(&closed); err != nil || closed {
		t.Errorf("b closes a's term: %v %v", closed, err)
	}
}

func TestSecretIsNowhere(t *testing.T) {
	r := newRepository(t, "a")
	cfg := r.config("a")
	var log bytes.Buffer
	cfg.Log = zerolog.New(&log)
	dir := t.TempDir()
	template := filepath.Join(dir, "tmpl")
	if err := os.WriteFile(template, []byte("url=postgres://{{.Role}}:{{.Secret}}@{{.Host}}:{{.Port}}/{{.Database}}?application_name={{.Cluster}}-{{.Controller}}-{{.Term}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	watcher := connect(t, r.server.SuperDSN(r.database))
	var seen strings.Builder
	for i, how := range []Secret{
		{Env: "PGPASSWORD"},
		{Passfile: filepath.Join(dir, "pass")},
		{File: &SecretFile{Template: template, Path: filepath.Join(dir, "app.conf")}},
	} {
		cfg.Secret = how
		f, err := NewFence(cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.step = func(string) error { // at every step: what the server shows of the sidecar
			rows, err := watcher.Query(t.Context(), "SELECT coalesce(query, '') FROM pg_stat_activity")
			if err != nil {
				return err
			}
			queries, err := pgx.CollectRows(rows, pgx.RowTo[string])
			seen.WriteString(strings.Join(queries, "\n"))
			return err
		}
		term := election.Term(i + 1)
		env, err := f.Raise(t.Context(), term)
		if err != nil {
			t.Fatal(err)
		}
		var secret string
		switch {
		case how.Env != "":
			secret = password(t, env)
		case how.Passfile != "":
			if len(env) != 1 || env[0] != "PGPASSFILE="+how.Passfile {
				t.Errorf("environment: %q", env)
			}
			line := readPrivate(t, how.Passfile)
			secret = strings.TrimSpace(line[strings.LastIndex(line, ":")+1:])
			t.Setenv("PGPASSFILE", how.Passfile)
			conn, err := pgx.Connect(t.Context(), r.server.DSN(r.role("a"), "", r.database))
			if err != nil {
				t.Errorf("log-in with the password file: %v", err)
			} else {
				_ = conn.Close(t.Context())
			}
		default:
			line := readPrivate(t, how.File.Path)
			dsn, _, _ := strings.Cut(strings.TrimPrefix(line, "url="), "\n")
			conn, err := pgx.Connect(t.Context(), dsn)
			if err != nil {
				t.Fatalf("log-in with the rendered file: %v", err)
			}
			secret = conn.Config().Password
			_ = conn.Close(t.Context())
		}
		if len(secret) < 40 {
			t.Fatalf("a secret of %d characters", len(secret))
		}
		_, err = f.Raise(t.Context(), term-1)
		for where, text := range map[string]string{
			"the sidecar's log": log.String(), "the server's log": r.server.Log(), "pg_stat_activity": seen.String(),
			"an error": fmt.Sprint(err), "the configuration printed": fmt.Sprintf("%+v", f.delivery),
		} {
			if strings.Contains(text, secret) || strings.Contains(text, "sidecar-a") {
				t.Errorf("a secret is in %s", where)
			}
		}
		f.Shutdown()
	}
	if !strings.Contains(r.server.Log(), "tanist.begin") {
		t.Error("the server's log does not have the statements; this test shows nothing")
	}
}

func readPrivate(t *testing.T, path string) string {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v", path, fi.Mode())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWarmConnectionFencesWhenAllSlotsAreEaten(t *testing.T) {
	r := newRepository(t, "a", "b")
	a, b := r.fence("a"), r.fence("b")
	one := r.raise(a, 1)
	if err := b.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Shutdown()
	n := 0
	for ; ; n++ {
		conn, err := r.login("a", one)
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	if n < 195 {
		t.Fatalf("only %d slots eaten", n)
	}
	if c, err := pgx.Connect(t.Context(), r.server.DSN(r.sidecar("b"), "sidecar-b", r.database)); err == nil {
		_ = c.Close(t.Context())
		t.Fatal("there is a slot left; this test shows nothing")
	}
	if err := b.Ready(t.Context()); err != nil {
		t.Fatalf("fitness with all slots eaten: %v", err)
	}
	var report Report
	b.cfg.Observe = func(r Report) { report = r }
	start := time.Now()
	two := r.raise(b, 2)
	t.Logf("%d slots eaten, fenced in %v: begin %v, drain %v, open %v; %d ended", n, time.Since(start), report.Begin, report.Drain, report.Open, report.Ended)
	r.mustLogin("b", two)
}

// A dying session of the own role changes the password between begin and its end. Without the
// comparison, that password would open the new term to an old process.
func TestPasswordChangedWhileFencing(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	one := r.raise(a, 1)
	evil := r.mustLogin("a", one)
	stopped := int(evil.PgConn().PID())
	stopProcess(t, stopped) // it does not receive the signal to end
	t.Cleanup(func() { continueProcess(stopped) })
	known, err := verifier("known to the old process")
	if err != nil {
		t.Fatal(err)
	}
	drains := 0
	a.step = func(name string) error {
		if name == "drain" {
			drains++
		}
		if name == "drain" && drains == 1 {
			// The effect of the session's own ALTER ROLE, which can't be timed from outside.
			_, err := r.super.Exec(t.Context(), "ALTER ROLE "+r.role("a")+" PASSWORD '"+known+"'")
			return err
		}
		if name == "drain" && drains == 2 {
			continueProcess(stopped)
		}
		return nil
	}
	two := r.raise(a, 2)
	if _, err := r.login("a", "known to the old process"); err == nil {
		t.Error("an old process knows the password of the new term")
	}
	r.mustLogin("a", two)
}

func TestUnreachableIsNotDefinitive(t *testing.T) {
	r := newRepository(t, "a")
	cfg := r.config("a")
	cfg.DSN = "postgres://nobody:secretword@127.0.0.1:1/none?sslmode=disable"
	f, err := NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Shutdown()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, raised := f.Raise(ctx, 1)
	for what, err := range map[string]error{"Raise": raised, "Assert": f.Assert(t.Context(), 1), "Ready": f.Ready(t.Context()), "Close": f.Close(t.Context(), 1)} {
		if err == nil || errors.Is(err, ErrTerm) || strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReadySaysWhatIsWrong(t *testing.T) {
	r := newRepository(t, "a", "b")
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Controller = "b" }, "belongs to controller a"},
		{func(c *Config) { c.Role = "other" }, "repository.role"},
		{func(c *Config) { c.Cluster = "other" }, "repository init"},
		{func(c *Config) { c.DSN = r.server.DSN(r.sidecar("a"), "wrong", r.database) }, "password"},
		{func(c *Config) { c.DSN = r.server.DSN(r.sidecar("a"), "sidecar-a", "postgres") }, "repository init"},
		{func(c *Config) {
			c.DSN = r.server.DSN(r.sidecar("a"), "sidecar-a", r.database) + "&options=-cdefault_transaction_read_only%3Don"
		}, "read-only"},
	} {
		cfg := r.config("a")
		c.change(&cfg)
		f, err := NewFence(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v does not say %q", err, c.want)
		}
		f.Shutdown()
	}
}

func TestSetupTwiceDisturbsNothing(t *testing.T) {
	r := newRepository(t, "a", "b")
	a := r.fence("a")
	session := r.mustLogin("a", r.raise(a, 1))
	o := r.setup()
	o.Controllers = append(o.Controllers, SetupController{Name: "c", Role: r.role("c"), Sidecar: r.sidecar("c")})
	if err := Init(t.Context(), r.server.SuperDSN(r.database), o); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), session, 1, "a"); err != nil {
		t.Error(err)
	}
	if err := a.Assert(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if n, err := Reset(t.Context(), r.server.SuperDSN(r.database), r.cluster, 0); err != nil || n != 1 {
		t.Errorf("Reset: %d sessions, %v", n, err)
	}
	if got := r.loginsAllowed(); len(got) != 0 {
		t.Errorf("may log in after Reset: %v", got)
	}
	r.raise(r.fence("b"), 1)
}

func TestSetupRefuses(t *testing.T) {
	_, err := SetupSQL(SetupOptions{Controllers: []SetupController{{Name: "a", Role: "x", Sidecar: "x"}, {Name: "a", Role: "pg_x"}}})
	for _, want := range []string{"no name", "another role", "twice", "reserved", "empty"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	sql, err := SetupSQL(SetupOptions{Cluster: `o'r\d`, Controllers: []SetupController{{Name: "a'\nDROP", Role: `we"ird`, Sidecar: "s'c", SidecarPassword: "pässword"}}})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(sql, "pässword") {
		t.Error("a password is in the SQL")
	}
	r := newRepository(t, "a")
	conn := connect(t, r.server.SuperDSN(r.database))
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Errorf("names that need quoting: %v", err)
	}
}

// If the repository is down when a term begins, nothing is opened, and the fence is raised once it
// is back.
func TestRaiseWaitsForARepositoryThatIsDown(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	r := newRepositoryOn(t, server, "a")
	a := r.fence("a")
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Crash()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := a.Raise(ctx, 1); err == nil || errors.Is(err, ErrTerm) {
		t.Errorf("Raise while the repository is down: %v", err)
	}
	raised := make(chan error, 1)
	go func() {
		_, err := a.Raise(t.Context(), 1)
		raised <- err
	}()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-raised; err != nil {
		t.Error(err)
	}
	if err := a.Assert(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// If the repository hangs, every query returns in time, no connections pile up, and the warm
// connection is not lost.
func TestHangingRepositoryKeepsOneConnection(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	// The calls end long before the link opens another connection. On a loaded machine the last
	// one, which must succeed, would take long enough for that.
	a.link.patience, a.link.hedge = longEnough, longEnough
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := r.super.QueryRow(t.Context(), "SELECT pid FROM pg_stat_activity WHERE usename = $1 AND application_name = $2", r.sidecar("a"), application).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	stopProcess(t, pid)
	t.Cleanup(func() { continueProcess(pid) })
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := a.Assert(ctx, 1); err == nil || errors.Is(err, ErrTerm) {
			t.Errorf("Assert of a repository that hangs: %v", err)
		}
		cancel()
	}
	continueProcess(pid)
	if err := a.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	rows, err := r.super.Query(t.Context(), "SELECT pid FROM pg_stat_activity WHERE usename = $1", r.sidecar("a"))
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := pgx.CollectRows(rows, pgx.RowTo[int]); err != nil || len(pids) != 1 || pids[0] != pid {
		t.Errorf("connections %v, not only %d (%v)", pids, pid, err)
	}
}

func TestErrorsDoNotQuoteTheConnectionString(t *testing.T) {
	for _, dsn := range []string{"host=h password = geheim sslmode=bogus", "geheim"} {
		_, err := NewFence(Config{Cluster: "c", Controller: "a", Role: "r", DSN: dsn, Secret: Secret{Env: "PGPASSWORD"}})
		if err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%v", err)
		}
	}
}

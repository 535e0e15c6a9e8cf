package postgres

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/postgres/private"
)

func codes(findings []Finding) []string {
	var codes []string
	for _, f := range findings {
		codes = append(codes, string(f.Severity)+" "+f.Code)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

func TestCheckFindsWhatMakesTheFenceHollow(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{
		BinDir:   os.Getenv("TANIST_PG_BINDIR"),
		Settings: map[string]string{"max_prepared_transactions": "5", "authentication_timeout": "60s"},
		HBA:      []string{"host all trusted 127.0.0.1/32 trust"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	r := newRepositoryWith(t, server, func(o *SetupOptions) { o.AllowPrepared = true }, "a", "b")
	options := func(name string) CheckOptions {
		return CheckOptions{DSN: server.DSN(r.sidecar(name), "sidecar-"+name, r.database), Cluster: r.cluster, Role: r.role(name)}
	}
	check := func(o CheckOptions) []Finding {
		t.Helper()
		findings, err := Check(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if strings.Contains(f.String(), "sidecar-a") {
				t.Errorf("a password is in %v", f)
			}
		}
		return findings
	}
	usual := []string{"advice connection-limit", "warning fsync", "warning prepared-transactions"}
	if got := codes(check(options("a"))); !slices.Equal(got, usual) {
		t.Errorf("findings %q, not %q", got, usual)
	}
	o := options("a")
	o.Role = "trusted" // does not exist and would be let in
	if got := codes(check(o)); !slices.Contains(got, "warning login-untried") {
		t.Errorf("a role that does not exist: %q", got)
	}
	mustExec(t, r.super, "CREATE ROLE trusted LOGIN")
	if got := codes(check(o)); !slices.Contains(got, "error trust") {
		t.Errorf("a role that is let in: %q", got)
	}
	mustExec(t, r.super, "ALTER ROLE trusted NOLOGIN")
	if got := codes(check(o)); !slices.Contains(got, "error trust") {
		t.Errorf("a role that would be let in if it could log in: %q", got)
	}
	for _, c := range []struct{ do, undo, want string }{
		{"ALTER ROLE " + r.role("b") + " SUPERUSER", "NOSUPERUSER", "SUPERUSER"},
		{"ALTER ROLE " + r.role("b") + " REPLICATION", "NOREPLICATION", "REPLICATION"},
		{"ALTER ROLE " + r.role("b") + " CREATEROLE", "NOCREATEROLE", "CREATEROLE"},
		{"ALTER ROLE " + r.app() + " CREATEROLE", "NOCREATEROLE", "CREATEROLE (through " + r.app() + ")"},
		{"GRANT tanist_owner TO " + r.role("b"), "", "the fence itself (through tanist_owner)"},
	} {
		mustExec(t, r.super, c.do)
		findings := check(options("a"))
		if !slices.ContainsFunc(findings, func(f Finding) bool {
			return f.Severity == Refuse && strings.Contains(f.Text, r.role("b")) && strings.Contains(f.Text, c.want)
		}) {
			t.Errorf("%s: %v", c.do, findings)
		}
		if c.undo != "" {
			mustExec(t, r.super, c.do[:strings.LastIndex(c.do, " ")+1]+c.undo)
		}
	}
	mustExec(t, r.super, "REVOKE tanist_owner FROM "+r.role("b"))
	// The operator's superuser may check too; a stranger may not.
	o = options("a")
	o.DSN = server.SuperDSN(r.database)
	check(o)
	stranger := newRepositoryWith(t, server, func(o *SetupOptions) { o.AllowPrepared = true }, "z")
	o.DSN = server.DSN(stranger.sidecar("z"), "sidecar-z", stranger.database)
	if _, err := Check(t.Context(), o); err == nil || !strings.Contains(err.Error(), "repository init") {
		t.Errorf("a stranger's check: %v", err)
	}
}

// A failover to an asynchronous standby loses the fence. This package does not prevent that. It
// guarantees that the risk is reported before, detected afterwards, and repaired by the next term.
func TestFailoverToAnAsynchronousStandby(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	stop := func(s *private.Server) func() {
		return func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop(server))
	r := newRepositoryOn(t, server, "a", "b")
	a := r.fence("a")
	one := r.raise(a, 1)
	standby, err := server.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop(standby))
	there := connect(t, standby.SuperDSN(r.database))
	wait := func(conn *pgx.Conn, what, sql string) {
		t.Helper()
		for ok := false; !ok; {
			if err := conn.QueryRow(t.Context(), sql).Scan(&ok); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if !ok && sleep(t.Context(), 10*time.Millisecond) != nil {
				t.Fatal(what)
			}
		}
	}
	wait(r.super, "the standby receives", "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")

	o := CheckOptions{DSN: server.DSN(r.sidecar("a"), "sidecar-a", r.database), Cluster: r.cluster}
	check := func(want string) {
		t.Helper()
		findings, err := Check(t.Context(), o)
		if err != nil || !slices.Contains(codes(findings), want) {
			t.Errorf("%q does not have %q (%v)", codes(findings), want, err)
		}
	}
	check("error async-standby")
	o.AllowAsync = true
	check("warning async-standby")
	o.DSN = standby.DSN(r.sidecar("a"), "sidecar-a", r.database)
	check("error standby")

	wait(r.super, "the standby has term 1", "SELECT count(*) = 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()")
	mustExec(t, there, "ALTER SYSTEM SET primary_conninfo = ''")
	mustExec(t, there, "SELECT pg_reload_conf()")
	wait(there, "the standby is cut off", "SELECT count(*) = 0 FROM pg_stat_wal_receiver")
	b := r.fence("b")
	r.raise(b, 2)
	mustExec(t, there, "SELECT pg_promote()")

	moved := func(name string) *Fence {
		t.Helper()
		cfg := r.config(name)
		cfg.DSN = standby.DSN(r.sidecar(name), "sidecar-"+name, r.database)
		f, err := NewFence(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Shutdown)
		return f
	}
	b = moved("b")
	var lost *LostError
	if err := b.Assert(t.Context(), 2); !errors.As(err, &lost) || lost.Theirs != 1 {
		t.Errorf("Assert after the fence was lost: %v", err)
	}
	old, err := pgx.Connect(t.Context(), standby.DSN(r.role("a"), one, r.database))
	if err != nil {
		t.Fatalf("the old term should be let in; this test shows nothing: %v", err)
	}
	defer old.Close(context.Background()) //nolint:errcheck // it is closed by the server
	r.raise(b, 3)
	if err := insert(t.Context(), old, 1, "a"); err == nil {
		t.Error("the old term writes after the fence was raised again")
	}
}

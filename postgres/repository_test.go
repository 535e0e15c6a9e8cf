package postgres

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres/private"
)

// longEnough bounds every wait for something that must happen. It is not a claim about time: a
// loaded machine may take seconds for what takes milliseconds on a quiet one.
const longEnough = time.Minute

// shared is the server of all tests that do not need one of their own.
var shared = sync.OnceValues(func() (*private.Server, error) {
	return private.Start(context.Background(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), Settings: map[string]string{
		"max_connections": "215", "max_wal_size": "8GB", "wal_keep_size": "8GB", "checkpoint_timeout": "1h", "log_statement": "all", "log_min_messages": "info",
	}})
})

func TestMain(m *testing.M) {
	if dsn := os.Getenv("LATE_WRITER"); dsn != "" {
		os.Exit(lateWriter(dsn))
	}
	code := m.Run()
	if s, err := shared(); err == nil { // started before, or needlessly now
		if err := s.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// repository is one database that has been set up for one cluster.
type repository struct {
	t        testing.TB
	server   *private.Server
	database string
	cluster  string
	names    []string
	super    *pgx.Conn
}

var repositories atomic.Int64

func newRepository(t testing.TB, controllers ...string) *repository {
	t.Helper()
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return newRepositoryOn(t, server, controllers...)
}

func newRepositoryOn(t testing.TB, server *private.Server, controllers ...string) *repository {
	t.Helper()
	return newRepositoryWith(t, server, func(*SetupOptions) {}, controllers...)
}

func newRepositoryWith(t testing.TB, server *private.Server, with func(*SetupOptions), controllers ...string) *repository {
	t.Helper()
	n := repositories.Add(1)
	r := &repository{t: t, server: server, database: fmt.Sprintf("app%d", n), cluster: fmt.Sprintf("orders-%d", n), names: controllers}
	admin := connect(t, server.SuperDSN("postgres"))
	mustExec(t, admin, "CREATE DATABASE "+r.database)
	setup := r.setup()
	with(&setup)
	if err := Init(t.Context(), server.SuperDSN(r.database), setup); err != nil {
		t.Fatal(err)
	}
	r.super = connect(t, server.SuperDSN(r.database))
	mustExec(t, r.super, "CREATE EXTENSION pg_walinspect")
	mustExec(t, r.super, "CREATE TABLE work (id bigserial PRIMARY KEY, term bigint NOT NULL, writer text NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id())")
	mustExec(t, r.super, "ALTER TABLE work OWNER TO "+r.app())
	return r
}

func (r *repository) app() string                { return r.database + "_owner" }
func (r *repository) role(name string) string    { return r.database + "_" + name }
func (r *repository) sidecar(name string) string { return r.database + "_sc_" + name }

func (r *repository) setup() SetupOptions {
	o := SetupOptions{Cluster: r.cluster, AppRole: r.app(), AppSchema: "public"}
	for _, name := range r.names {
		o.Controllers = append(o.Controllers, SetupController{
			Name: name, Role: r.role(name), Sidecar: r.sidecar(name), SidecarPassword: "sidecar-" + name,
		})
	}
	return o
}

func (r *repository) config(name string) Config {
	return Config{
		Cluster: r.cluster, Controller: name, Role: r.role(name), DSN: r.server.DSN(r.sidecar(name), "sidecar-"+name, r.database),
		Secret: Secret{Env: "PGPASSWORD"}, Log: zerolog.Nop(),
	}
}

func (r *repository) fence(name string) *Fence {
	r.t.Helper()
	f, err := NewFence(r.config(name))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(f.Shutdown)
	return f
}

// raise raises the fence and returns the secret.
func (r *repository) raise(f *Fence, term election.Term) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), longEnough)
	defer cancel()
	env, err := f.Raise(ctx, term)
	if err != nil {
		r.t.Fatal(err)
	}
	return password(r.t, env)
}

func password(t testing.TB, env []string) string {
	t.Helper()
	secret, ok := strings.CutPrefix(strings.Join(env, " "), "PGPASSWORD=")
	if !ok || len(secret) < 32 {
		t.Fatalf("environment without a secret")
	}
	return secret
}

func (r *repository) login(name, secret string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), longEnough)
	defer cancel()
	return pgx.Connect(ctx, r.server.DSN(r.role(name), secret, r.database))
}

func (r *repository) mustLogin(name, secret string) *pgx.Conn {
	r.t.Helper()
	conn, err := r.login(name, secret)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// gone returns when a backend has ended.
func (r *repository) gone(pid int) {
	r.t.Helper()
	for n := 1; n > 0; {
		if err := r.super.QueryRow(r.t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid).Scan(&n); err != nil {
			r.t.Fatal(err)
		}
	}
}

// loginsAllowed returns the roles of controllers that may log in.
func (r *repository) loginsAllowed() []string {
	r.t.Helper()
	rows, err := r.super.Query(r.t.Context(), "SELECT rolname FROM pg_roles JOIN tanist.controller ON role = rolname WHERE rolcanlogin AND cluster = $1", r.cluster)
	if err != nil {
		r.t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Fatal(err)
	}
	return names
}

// audit judges every row of work by the write-ahead log: it compares the position of the writing
// transaction's commit record with those of the opens. It returns the rows that were committed
// after the open of a later term, and those before the open of their own.
func (r *repository) audit(from string) (rows, stale, early int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	err := r.super.QueryRow(ctx, `
WITH commits AS MATERIALIZED (
    SELECT xid::text::bigint AS xid, min(end_lsn) AS lsn
      FROM pg_get_wal_records_info_till_end_of_wal($1::pg_lsn)
     WHERE resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%' GROUP BY 1),
opens AS MATERIALIZED (
    SELECT h.term, c.lsn FROM tanist.history h JOIN commits c ON c.xid = h.opened_xid::text::bigint WHERE h.cluster = $2),
judged AS (
    SELECT w.id, w.term, c.lsn,
           EXISTS (SELECT FROM opens o WHERE o.term > w.term AND o.lsn < c.lsn) AS stale,
           NOT EXISTS (SELECT FROM opens o WHERE o.term = w.term AND o.lsn < c.lsn) AS early
      FROM work w LEFT JOIN commits c ON c.xid = w.xid::text::bigint)
SELECT count(*), count(*) FILTER (WHERE stale), count(*) FILTER (WHERE early) FROM judged`, from, r.cluster).Scan(&rows, &stale, &early)
	if err != nil {
		r.t.Fatal(err)
	}
	return rows, stale, early
}

func (r *repository) walPosition() string {
	r.t.Helper()
	var lsn string
	if err := r.super.QueryRow(r.t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&lsn); err != nil {
		r.t.Fatal(err)
	}
	return lsn
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func mustExec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func insert(ctx context.Context, conn *pgx.Conn, term election.Term, writer string) error {
	_, err := conn.Exec(ctx, "INSERT INTO work (term, writer) VALUES ($1, $2)", int64(term), writer)
	return err
}

package gate

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
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/private"
)

// shared is the server of all tests that do not need one of their own.
var shared = sync.OnceValues(func() (*private.Server, error) {
	return private.Start(context.Background(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), TLS: true})
})

func TestMain(m *testing.M) {
	if os.Getenv("GATE_SECRET") != "" {
		os.Exit(gateProcess())
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
	super    *pgx.Conn
	tls      bool // the gate speaks TLS with the server
}

// upstream returns how the gate reaches the server.
func (r *repository) upstream() string {
	dsn := r.server.DSN("", "", "")
	if r.tls {
		dsn = strings.Replace(dsn, "sslmode=disable", "sslmode=verify-full&sslrootcert="+r.server.CA(), 1)
	}
	return dsn
}

// both runs a test with a gate that speaks TLS with the server, and with one that does not.
func both(t *testing.T, test func(t *testing.T, r *repository), controllers ...string) {
	t.Helper()
	for name, tls := range map[string]bool{"plain": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			r := newRepository(t, controllers...)
			r.tls = tls
			test(t, r)
		})
	}
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
	r := &repository{t: t, server: server, database: fmt.Sprintf("app%d", repositories.Add(1))}
	mustExec(t, connect(t, server.SuperDSN("postgres")), "CREATE DATABASE "+r.database)
	setup := postgres.SetupOptions{Cluster: r.database, AppRole: r.database + "_owner", AppSchema: "public"}
	for _, name := range controllers {
		setup.Controllers = append(setup.Controllers, postgres.SetupController{
			Name: name, Role: r.role(name), Sidecar: r.sidecar(name), SidecarPassword: "sidecar-" + name,
		})
	}
	if err := postgres.Init(t.Context(), server.SuperDSN(r.database), setup); err != nil {
		t.Fatal(err)
	}
	r.super = connect(t, server.SuperDSN(r.database))
	mustExec(t, r.super, "CREATE TABLE work (id bigserial PRIMARY KEY, term bigint NOT NULL, writer text NOT NULL)")
	mustExec(t, r.super, "ALTER TABLE work OWNER TO "+setup.AppRole)
	return r
}

func (r *repository) role(name string) string    { return r.database + "_" + name }
func (r *repository) sidecar(name string) string { return r.database + "_sc_" + name }

func (r *repository) config(name string) postgres.Config {
	return postgres.Config{
		Cluster: r.database, Controller: name, Role: r.role(name), DSN: r.server.DSN(r.sidecar(name), "sidecar-"+name, r.database),
		Secret: postgres.Secret{Env: "PGPASSWORD"}, Log: zerolog.Nop(),
	}
}

func (r *repository) fence(name string) *postgres.Fence {
	r.t.Helper()
	f, err := postgres.NewFence(r.config(name))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(f.Shutdown)
	return f
}

// raise raises the fence and returns the secret.
func (r *repository) raise(f *postgres.Fence, term election.Term) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	env, err := f.Raise(ctx, term)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimPrefix(strings.Join(env, " "), "PGPASSWORD=")
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

func mustExec(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func insert(ctx context.Context, conn *pgx.Conn, term election.Term, writer string) error {
	_, err := conn.Exec(ctx, "INSERT INTO work (term, writer) VALUES ($1, $2)", int64(term), writer)
	return err
}

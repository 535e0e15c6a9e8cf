package postgres

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/postgres/private"
)

// patience bounds calls that must succeed, and waits for something that must happen, on a loaded
// machine.
const patience = time.Minute

var clusters atomic.Int64

// shared is the server of the tests that do not stop it.
var shared = sync.OnceValues(func() (*private.Server, error) { return private.Start(context.Background(), options()) })

func options() private.Options {
	return private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), Settings: map[string]string{"max_connections": "200"}}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if s, err := shared(); err == nil {
		if err := s.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func common(t testing.TB) *private.Server {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// own starts a server that only one test uses.
func own(t testing.TB, change func(*private.Options)) *private.Server {
	t.Helper()
	o := options()
	if change != nil {
		change(&o)
	}
	s, err := private.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// harness is one cluster in a server that other harnesses may use too.
type harness struct {
	server  *private.Server
	cluster string
	login   string
	frozen  int
}

const password = "s3cret"

func superuser(t testing.TB, s *private.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.SuperDSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func newHarness(t testing.TB, s *private.Server) *harness {
	t.Helper()
	n := clusters.Add(1)
	h := &harness{server: s, cluster: fmt.Sprintf("orders-%d", n), login: fmt.Sprintf("tanist_%d", n)}
	h.init(t, Login{Name: h.login, Kind: KindController})
	h.sql(t, "ALTER ROLE "+h.login+" PASSWORD '"+password+"'")
	return h
}

func (h *harness) init(t testing.TB, logins ...Login) {
	t.Helper()
	if err := Init(t.Context(), h.server.SuperDSN("postgres"), SetupOptions{Cluster: h.cluster, Logins: logins}); err != nil {
		t.Fatal(err)
	}
}

func (h *harness) dsn() string { return h.server.DSN(h.login, password, "postgres") }

func (h *harness) open(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(Config{
		Cluster: h.cluster, DSN: dsn, RereadEvery: 2 * time.Second,
		Log: zerolog.New(zerolog.NewTestWriter(t)).With().Timestamp().Logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (h *harness) Open(t *testing.T) electiontest.Host { return h.open(t, h.dsn()) }

func (h *harness) openLinked(t testing.TB) (*Store, *electiontest.Proxy) {
	p := electiontest.NewProxy(t, h.server.Host+":"+strconv.Itoa(h.server.Port))
	return h.open(t, "postgres://"+h.login+":"+password+"@"+p.Addr()+"/postgres?sslmode=disable"), p
}

func (h *harness) OpenLinked(t *testing.T) (electiontest.Host, electiontest.Link) {
	s, p := h.openLinked(t)
	return s, p
}

// sql runs a statement as a superuser.
func (h *harness) sql(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := superuser(t, h.server).Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (h *harness) Overwrite(t *testing.T, key, value string) {
	h.sql(t, "UPDATE tanist_store.entry SET value = $3, lease = NULL WHERE cluster = $1 AND key = $2", h.cluster, key, []byte(value))
}

func (h *harness) OverwriteKept(t *testing.T, key, value string) {
	h.sql(t, "UPDATE tanist_store.entry SET value = $3 WHERE cluster = $1 AND key = $2", h.cluster, key, []byte(value))
}

func (h *harness) Remove(t *testing.T, key string) {
	h.sql(t, "DELETE FROM tanist_store.entry WHERE cluster = $1 AND key = $2", h.cluster, key)
}

func (h *harness) EndLease(t *testing.T, lease election.LeaseID) {
	h.sql(t, "SELECT tanist_store.revoke_lease($1, $2)", h.cluster, string(lease))
}

// StallWatch stops the server's process that the host's watch is connected to.
func (h *harness) StallWatch(t *testing.T, host electiontest.Host) {
	s := host.(*Store)
	await(t, "the watch is connected", func() bool { return s.watching() != 0 })
	h.frozen = s.watching()
	if err := syscall.Kill(h.frozen, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(h.frozen, syscall.SIGCONT) }) // it may have ended
}

func (h *harness) ResumeWatch(t *testing.T, _ electiontest.Host) {
	if err := syscall.Kill(h.frozen, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// watching is the server's process that the watch is connected to; zero: none.
func (s *Store) watching() int {
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	if s.listener.link == nil {
		return 0
	}
	return int(s.listener.link.PgConn().PID())
}

// restartable has a server of its own.
type restartable struct{ *harness }

func (h restartable) Stop(*testing.T) { h.server.Crash() }

func (h restartable) Start(t *testing.T) {
	if err := h.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	server := own(t, nil)
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return restartable{newHarness(t, server)} })
}

func TestTakeoversGrowNothing(t *testing.T) {
	h := newHarness(t, common(t))
	electiontest.TakeoversGrowNothing(t, func() electiontest.Host { return h.Open(t) })
}

// await waits until holds reports true.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out after %v: %s", patience, what)
		}
	}
}

func ctxFor(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestHeirNeedNotLookBeforeItPublishes: who was handed the reign, and has read it, publishes in one
// request.
func TestHeirNeedNotLookBeforeItPublishes(t *testing.T) {
	h := newHarness(t, common(t))
	a, b := h.open(t, h.dsn()), h.open(t, h.dsn())
	electiontest.HeirNeedNotLook(t, a, b, func(ctx context.Context, lease election.LeaseID) (election.Version, error) {
		return b.current(ctx, lease, false)
	})
}

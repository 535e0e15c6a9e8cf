package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	pgstore "github.com/tanist/tanist/backends/postgres"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
)

// postgresStore is the repository's own server. Only its tables are read here, not through the
// product.
type postgresStore struct {
	lab *lab

	mu   sync.Mutex
	conn *pgx.Conn // of the superuser; nil: none
	away bool
}

func (s *postgresStore) file() string { return s.lab.path("store.dsn") }

func (s *postgresStore) start(ctx context.Context) error {
	s.mu.Lock()
	away := s.away
	s.mu.Unlock()
	if !away {
		return s.prepare(ctx)
	}
	if err := s.lab.repository.Restart(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.away = false
	s.mu.Unlock()
	return nil
}

// prepare makes the repository's database the store too.
func (s *postgresStore) prepare(ctx context.Context) error {
	const login = "lab_store"
	secret := rand.Text()
	verifier, err := postgres.Verifier(secret)
	if err != nil {
		return fmt.Errorf("cannot prepare the store: %v", err)
	}
	if err := os.WriteFile(s.file(), []byte(s.lab.repository.DSN(login, secret, "lab")+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot prepare the store: %v", err)
	}
	return pgstore.Init(ctx, s.lab.super, pgstore.SetupOptions{
		Cluster: cluster, Logins: []pgstore.Login{{Name: login, Kind: pgstore.KindController, Verifier: verifier}},
	})
}

func (s *postgresStore) kill() {
	s.lab.repository.Crash()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = true
}

func (s *postgresStore) read(ctx context.Context) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		conn, err := pgx.Connect(ctx, s.lab.super)
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	rows, err := s.conn.Query(ctx, "SELECT key, value FROM tanist_store.show WHERE cluster = $1", cluster)
	all := map[string]string{}
	if err == nil {
		var key, value string
		_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error { all[key] = value; return nil })
	}
	if err != nil {
		_ = s.conn.Close(context.WithoutCancel(ctx)) // it failed
		s.conn = nil
	}
	return all, err
}

// lookEvery is how often the role words are read: people would use \watch.
const lookEvery = 20 * time.Millisecond

// follow sees states instead of events: of two changes at once it reports only the last.
func (s *postgresStore) follow(ctx context.Context, tell func(kind, key, value string)) {
	last := map[string]string{}
	for pause(ctx, lookEvery) == nil {
		all, err := s.read(ctx)
		if err != nil {
			continue
		}
		now := maps.Clone(all)
		maps.DeleteFunc(now, func(key, _ string) bool { return !strings.HasPrefix(key, election.RoleWordPrefix) })
		for _, key := range slices.Sorted(maps.Keys(last)) {
			if _, ok := now[key]; !ok {
				tell("DELETE", key, "")
			}
		}
		for _, key := range slices.Sorted(maps.Keys(now)) {
			if old, ok := last[key]; !ok || old != now[key] {
				tell("PUT", key, now[key])
			}
		}
		last = now
	}
}

func (s *postgresStore) config() string {
	return fmt.Sprintf("store: postgres\npostgres: {dsn_file: %q}", s.file())
}
func (s *postgresStore) url() string    { return "" }
func (s *postgresStore) process() *proc { return nil }

func (s *postgresStore) commands() (environment, watch, get string) {
	const from = "SELECT key, value FROM tanist_store.show WHERE cluster = '" + cluster + "'"
	return "PGHOST=" + s.lab.repository.Dir + " PGPORT=" + strconv.Itoa(s.lab.repository.Port) + " PGUSER=postgres PGDATABASE=lab",
		fmt.Sprintf(`watch -n1 psql -c "%s AND key LIKE '%s%%'"`, from, election.RoleWordPrefix), fmt.Sprintf(`psql -c "%s"`, from)
}

func (s *postgresStore) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close(context.Background()) // the server is stopped next
	}
}

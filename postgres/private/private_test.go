package private_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/postgres/private"
)

func TestStopLeavesNothing(t *testing.T) {
	s, err := private.Start(t.Context(), private.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop() //nolint:errcheck // it is checked below
	count := func() (n int) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), s.SuperDSN("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context()) //nolint:errcheck // the server is stopped next
		if _, err := conn.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS t (i int)"); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), "INSERT INTO t VALUES (1) RETURNING (SELECT count(*) FROM t)").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 0 {
		t.Errorf("%d rows in a new table", n)
	}
	s.Crash()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 1 {
		t.Errorf("%d rows after a crash, not 1", n)
	}
	// Only the superuser is let in without a password, and only over the socket.
	if conn, err := pgx.Connect(t.Context(), s.DSN(private.Superuser, "", "postgres")); err == nil {
		_ = conn.Close(t.Context())
		t.Error("let in over TCP without a password")
	}
	pid := s.PID()
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", s.Dir, err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d is left", pid)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	for want, o := range map[string]private.Options{
		"initdb":  {BinDir: "/nonexistent"},
		"no_such": {Settings: map[string]string{"no_such_setting": "1"}},
	} {
		s, err := private.Start(t.Context(), o)
		if err == nil {
			_ = s.Stop()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

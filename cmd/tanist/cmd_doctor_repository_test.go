package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/private"
)

// TestDoctorExaminesTheRepository: a login that does not work, and conditions that make the fence
// hollow, are reported as failures.
func TestDoctorExaminesTheRepository(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	super, err := pgx.Connect(t.Context(), server.SuperDSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer super.Close(t.Context()) //nolint:errcheck // of a test
	if err := postgres.Init(t.Context(), server.SuperDSN("postgres"), postgres.SetupOptions{
		Cluster: "orders", Controllers: []postgres.SetupController{{Name: "ctl-a", Role: "orders_a", Sidecar: "tanist_a", SidecarPassword: "geheim"}},
	}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dsn")
	examine := func(dsn string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(dsn), 0o600); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		c := daemon.StoreConfig{Cluster: "orders", Repository: &config.Repository{DSNFile: file, Role: "orders_a", GiveUp: 30 * time.Second}}
		examineRepository(t.Context(), c, func(level, about, format string, args ...any) {
			fmt.Fprintf(&said, "%s %s %s\n", level, about, fmt.Sprintf(format, args...))
		})
		if strings.Contains(said.String(), "geheim") {
			t.Errorf("the password is in %s", said.String())
		}
		return said.String()
	}
	good := server.DSN("tanist_a", "geheim", "postgres")
	for _, c := range []struct{ dsn, sql, want string }{
		{good, "", "warning repository fsync is off"}, // it is, on a private server
		{server.DSN("tanist_a", "geheim?", "postgres"), "", "failure repository cannot check the repository: cannot connect to"},
		{"postgres://tanist_a:geheim@geheim@127.0.0.1/postgres", "", "failure repository cannot read the connection string: it has more than one @"},
		{good, "ALTER ROLE orders_a REPLICATION", "failure repository the program's login orders_a of controller ctl-a has REPLICATION"},
	} {
		if c.sql != "" {
			if _, err := super.Exec(t.Context(), c.sql); err != nil {
				t.Fatal(err)
			}
		}
		if got := examine(c.dsn); !strings.Contains(got, c.want) || c.sql == "" && c.dsn == good && strings.Contains(got, "failure") {
			t.Errorf("%s: doctor does not say %q:\n%s", c.sql, c.want, got)
		}
	}
}

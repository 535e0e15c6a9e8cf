package postgres

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/postgres/private"
)

// TestInitDependsOnTheVersion: on PostgreSQL 16 and later, and not before, init grants
// pg_use_reserved_connections to the sidecars, and to the fence's owner the right to alter the
// programs' logins. The blocks of init decide it on the server that is there: they get another
// version, and report the statement instead of executing it.
func TestInitDependsOnTheVersion(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	sql, err := SetupSQL(SetupOptions{Cluster: "orders", Controllers: []SetupController{
		{Name: "a", Role: "orders_a", Sidecar: "tanist_a"}, {Name: "b", Role: "orders_b", Sidecar: `od"d`},
	}})
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile(`(?m)^DO .*server_version_num.*$`).FindAllString(sql, -1)
	conn, err := pgx.Connect(t.Context(), server.SuperDSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // of a test
	statements := []string{
		"GRANT orders_a TO tanist_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", "GRANT pg_use_reserved_connections TO tanist_a WITH INHERIT TRUE",
		"GRANT orders_b TO tanist_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", `GRANT pg_use_reserved_connections TO "od""d" WITH INHERIT TRUE`,
	}
	if len(blocks) != len(statements) {
		t.Fatalf("%d blocks depend on the version, want %d:\n%s", len(blocks), len(statements), sql)
	}
	for i, want := range statements {
		for version, granted := range map[int]bool{150008: false, 159999: false, 160000: true, 170001: true} {
			block := strings.Replace(blocks[i], "current_setting('server_version_num')::int", fmt.Sprint(version), 1)
			block = strings.Replace(block, "EXECUTE format(", "RAISE EXCEPTION '%', format(", 1)
			_, err := conn.Exec(t.Context(), block)
			if granted && (err == nil || !strings.Contains(err.Error(), want)) || !granted && err != nil {
				t.Errorf("version %d: %v, want %s", version, err, want)
			}
		}
	}
}

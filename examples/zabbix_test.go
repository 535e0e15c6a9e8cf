package examples

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tanist/tanist/postgres/private"
)

// postgres starts a private PostgreSQL, and returns the variables of its superuser.
func postgres(t *testing.T) []string {
	t.Helper()
	server, err := private.Start(t.Context(), private.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	password, err := os.ReadFile(filepath.Join(server.Dir, "superuser"))
	if err != nil {
		t.Fatal(err)
	}
	return []string{"PGHOST=" + server.Host, "PGPORT=" + strconv.Itoa(server.Port), "PGUSER=" + private.Superuser, "PGPASSWORD=" + string(password)}
}

// needsZabbix skips a test if Zabbix is not installed.
func needsZabbix(t *testing.T) {
	t.Helper()
	long(t)
	needs(t, "zabbix-server-pgsql zabbix-agent postgresql", "zabbix_server", "zabbix_agentd", "zabbix_sender", "psql", "createdb")
}

// TestZabbixMoves: the values of an agent's active check keep arriving after a planned move.
func TestZabbixMoves(t *testing.T) {
	needsZabbix(t)
	if out := readme(t, "zabbix", postgres(t)...).output; strings.Count(out, "● active") != 1 || !strings.Contains(out, "switchover") {
		t.Errorf("it prints %q", out)
	}
}

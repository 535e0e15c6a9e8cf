package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/private"
)

// TestMigrationOfAnExistingDatabase runs the commands of docs/repository-migration.md, there and
// back.
func TestMigrationOfAnExistingDatabase(t *testing.T) {
	text, err := os.ReadFile("../../docs/repository-migration.md")
	if err != nil {
		t.Fatal(err)
	}
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	dir := t.TempDir()
	run := func(script string, env ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "bash", "-euc", script)
		cmd.Dir = dir
		cmd.Env = append(append(os.Environ(),
			"PGHOST="+server.Dir, "PGPORT="+strconv.Itoa(server.Port), "PGUSER="+private.Superuser, "PGDATABASE=orders"), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(script string, env ...string) {
		t.Helper()
		if out, err := run(script, env...); err != nil {
			t.Fatalf("%s\n%v\n%s", script, err, out)
		}
	}
	// What is there: the program's database, with its login, and a login that may act as it.
	must(`psql -q -v ON_ERROR_STOP=1 -d postgres -c "CREATE ROLE orders LOGIN PASSWORD 'as ever'" -c "CREATE ROLE report LOGIN PASSWORD 'as ever' IN ROLE orders" -c 'CREATE DATABASE orders OWNER orders'`)
	old := server.DSN("orders", "as ever", "orders")
	program, err := pgx.Connect(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close(t.Context()) //nolint:errcheck // it is ended below
	if _, err := program.Exec(t.Context(), "CREATE TABLE work (n int); INSERT INTO work VALUES (1)"); err != nil {
		t.Fatal(err)
	}

	blocks := regexp.MustCompile("(?ms)^```sh ?([a-z]*)\n(.*?)^```").FindAllStringSubmatch(string(text), -1)
	back := 0
	for _, block := range blocks {
		kind, script := block[1], block[2]
		if kind == "back" {
			if back++; back == 1 {
				fenced(t, server, dir, program)
			}
		}
		env := "PGPASSWORD="
		if strings.Contains(script, "-U orders") {
			env = "PGPASSWORD=as ever"
		}
		out, err := run(script, env)
		switch {
		case kind == "refused" && err == nil:
			t.Fatalf("not refused:\n%s\n%s", script, out)
		case kind != "refused" && err != nil:
			t.Fatalf("%s\n%v\n%s", script, err, out)
		case kind == "refused" && strings.Contains(script, "init"):
			for _, want := range []string{"orders can log in and act as orders, the owner of the program's objects", "report can log in", "--shut-out report", "nothing was changed"} {
				if !strings.Contains(out, want) {
					t.Errorf("the refusal does not say %q:\n%s", want, out)
				}
			}
		case kind == "back" && back == 2: // the old program is back
			again, err := pgx.Connect(t.Context(), old)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := again.Exec(t.Context(), "INSERT INTO work VALUES (4)"); err != nil {
				t.Error(err)
			}
			_ = again.Close(t.Context())
		}
	}
	if len(blocks) < 7 || back != 3 {
		t.Errorf("%d commands, %d of them back: the chapter has lost some", len(blocks), back)
	}
}

// fenced: the old program is out, and the new one works with the tables of the old.
func fenced(t *testing.T, server *private.Server, dir string, old *pgx.Conn) {
	t.Helper()
	if _, err := old.Exec(t.Context(), "INSERT INTO work VALUES (2)"); err == nil {
		t.Error("a session of the old program writes on")
	}
	secret, err := os.ReadFile(filepath.Join(dir, "tanist_a.secret"))
	if err != nil {
		t.Fatal(err)
	}
	passfile := filepath.Join(dir, "pgpass")
	fence, err := postgres.NewFence(postgres.Config{
		Cluster: "orders", Controller: "ctl-a", Role: "orders_a", DSN: server.DSN("tanist_a", strings.TrimSpace(string(secret)), "orders"),
		Secret: postgres.Secret{Passfile: passfile}, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer fence.Shutdown()
	if err := fence.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := fence.Raise(t.Context(), election.Term(1)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", passfile)
	program, err := pgx.Connect(t.Context(), server.DSN("orders_a", "", "orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close(t.Context()) //nolint:errcheck // of a test
	if _, err := program.Exec(t.Context(), "INSERT INTO work VALUES (3); CREATE TABLE more (n int)"); err != nil {
		t.Error(err)
	}
	for _, who := range []string{"orders", "report"} {
		if conn, err := pgx.Connect(t.Context(), server.DSN(who, "as ever", "orders")); err == nil {
			_ = conn.Close(t.Context())
			t.Errorf("%s may log in without the fence", who)
		}
	}
}

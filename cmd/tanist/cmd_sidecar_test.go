package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/private"
)

// TestGateOutlivesTheSidecar: connections through the gate survive when the sidecar is killed and
// restarts; if it does not restart, they are cut at the end of the lease.
func TestGateOutlivesTheSidecar(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	err = postgres.Init(t.Context(), server.SuperDSN("postgres"), postgres.SetupOptions{
		Cluster: "orders", AppRole: "app", AppSchema: "public",
		Controllers: []postgres.SetupController{{Name: "ctl-a", Role: "orders_a", Sidecar: "orders_a_sidecar", SidecarPassword: "geheim"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	super, err := pgx.Connect(t.Context(), server.SuperDSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer super.Close(context.Background()) //nolint:errcheck // only read from
	if _, err := super.Exec(t.Context(), "CREATE TABLE work (id int PRIMARY KEY); ALTER TABLE work OWNER TO app"); err != nil {
		t.Fatal(err)
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// Long enough for a busy machine to start the next sidecar within it.
	const validity = 12 * time.Second
	addresses := testbed.Addresses(t, 2)
	gate, url := addresses[0], addresses[1]
	path := func(name string) string { return filepath.Join(dir, name) }
	err = errors.Join(os.Symlink(self, path("tanist")), os.Symlink(self, path("demo-controller")),
		os.WriteFile(path("dsn"), []byte(server.DSN("orders_a_sidecar", "geheim", "postgres")), 0o600),
		os.WriteFile(path("password"), []byte("fixed\n"), 0o600),
		os.WriteFile(path("ctl-a.yml"), fmt.Appendf(nil, `kind: controller
cluster: orders
name: ctl-a
etcd: {endpoints: [%q]}
lease: {ttl: 14s, validity: %v}
run: {command: [%s, %q], url: "http://%s", output: "file:%s"}
repository:
  dsn_file: %s
  role: orders_a
  secret: {gate: {listen: %q, password_file: %s}}
listen: {http: "127.0.0.1:0", admin: ""}
state_dir: %s
`, etcdtest.Start(t, 1).Endpoints()[0], validity, path("demo-controller"), url, url, path("output"), path("dsn"), gate, path("password"), dir), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	sidecar := func() *exec.Cmd {
		cmd := exec.Command(path("tanist"), "sidecar", "-c", path("ctl-a.yml"))
		log, err := os.OpenFile(path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
	defer func() {
		if b, err := os.ReadFile(path("log")); err == nil && t.Failed() {
			t.Logf("%s", b)
		}
	}()
	first := sidecar()
	var conn *pgx.Conn
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err = pgx.Connect(t.Context(), "postgres://anybody:fixed@"+gate+"/postgres?sslmode=disable")
		if err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	var role string
	if err := conn.QueryRow(t.Context(), "SELECT session_user").Scan(&role); err != nil || role != "orders_a" {
		t.Fatal(role, err)
	}
	pids := gatesOf(first.Process.Pid)
	if len(pids) != 1 {
		t.Fatalf("gates %v below the sidecar, want one", pids)
	}
	gatePID := pids[0]

	kill := func(cmd *exec.Cmd) (deadline election.Instant) {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		return election.BootClock().Add(validity)
	}
	confirmed := 0
	write := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), validity+patience)
		defer cancel()
		_, err := conn.Exec(ctx, "INSERT INTO work VALUES ($1)", confirmed+1)
		if err == nil {
			confirmed++
		}
		return err
	}
	old := kill(first)
	second := sidecar()
	for election.BootClock() < old.Add(time.Second) {
		if err := write(); err != nil {
			t.Fatalf("the session was cut although a sidecar came back: %v", err)
		}
	}
	if syscall.Kill(gatePID, 0) != nil {
		t.Error("the gate is another one")
	}

	deadline := kill(second)
	var last election.Instant
	for err = nil; err == nil; {
		sent := election.BootClock()
		if err = write(); err == nil {
			last = sent // this process may be late to see the confirmation
		}
		if election.BootClock() > deadline.Add(patience) {
			t.Fatal("never cut")
		}
	}
	cut := election.BootClock()
	if last > deadline {
		t.Errorf("a statement that was sent %v after the deadline was confirmed", last.Sub(deadline))
	}
	if c, err := pgx.Connect(t.Context(), "postgres://anybody:fixed@"+gate+"/postgres?sslmode=disable"); err == nil {
		_ = c.Close(t.Context())
		t.Error("the gate is open after the deadline")
	}
	for limit := time.Now().Add(patience); syscall.Kill(gatePID, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the gate outlived the deadline")
		}
	}
	var rows int
	if err := super.QueryRow(t.Context(), "SELECT count(*) FROM work").Scan(&rows); err != nil || rows < confirmed || rows > confirmed+1 {
		t.Errorf("%d rows, %d of them confirmed (%v)", rows, confirmed, err)
	}
	t.Logf("%d statements; the last one that was confirmed was sent %v before the lease's end, the session was cut %v before it", confirmed, deadline.Sub(last), deadline.Sub(cut))
}

// gatesOf returns the gates below the guards that are children of a sidecar.
func gatesOf(sidecar int) []int {
	var gates []int
	for _, guard := range childrenOf(sidecar) {
		for _, child := range childrenOf(guard) {
			if b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(child), "comm")); err == nil && strings.TrimSpace(string(b)) == "tanist-gate" {
				gates = append(gates, child)
			}
		}
	}
	return gates
}

func childrenOf(pid int) []int {
	var all []int
	files, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "children"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for word := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(word); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

package postgres

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
)

// startPooler starts a PgBouncer for r, with the given names and passwords of users, and returns
// its address.
func startPooler(t *testing.T, r *repository, users map[string]string, settings string) string {
	t.Helper()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("pgbouncer is not installed (package pgbouncer)")
	}
	dir, err := os.MkdirTemp("", "tanist-pooler-") // not t.TempDir(): another user has to get in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	var list strings.Builder
	for name, password := range users {
		fmt.Fprintf(&list, "%q %q\n", name, password)
	}
	ini := fmt.Sprintf("[databases]\n* = host=%s port=%d\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port=%d\nunix_socket_dir=\nauth_type=scram-sha-256\nauth_file=%s/users\npool_mode=session\nserver_login_retry=1\nquery_wait_timeout=10\n%s\n",
		r.server.Host, r.server.Port, port, dir, settings)
	for name, content := range map[string]string{"users": list.String(), "ini": ini} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, filepath.Join(dir, "ini"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.Args = []string{path, "-u", "postgres", filepath.Join(dir, "ini")}
	}
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			return address
		}
		if cmd.Process.Signal(syscall.Signal(0)) != nil || sleep(t.Context(), 1e7) != nil {
			t.Fatal("the pooler did not start")
		}
	}
}

// The sidecar must not use a pooler, and in both situations in which it could, an error reports it.
func TestSidecarThroughPoolerIsRefused(t *testing.T) {
	r := newRepository(t, "a")
	users := map[string]string{r.sidecar("a"): "sidecar-a"}
	dsn := func(address string) string {
		return fmt.Sprintf("postgres://%s:sidecar-a@%s/%s?sslmode=disable", r.sidecar("a"), address, r.database)
	}
	_, err := Check(t.Context(), CheckOptions{DSN: dsn(startPooler(t, r, users, "")), Cluster: r.cluster})
	if err == nil || !strings.Contains(err.Error(), "connection pooler") {
		t.Errorf("a pooler that does not know our settings: %v", err)
	}
	ignore := "ignore_startup_parameters=statement_timeout,lock_timeout,idle_in_transaction_session_timeout,client_min_messages"
	findings, err := Check(t.Context(), CheckOptions{DSN: dsn(startPooler(t, r, users, ignore)), Cluster: r.cluster})
	if err != nil || !slices.Contains(codes(findings), "error pooler") {
		t.Errorf("a pooler that swallows our settings: %q (%v)", codes(findings), err)
	}
}

// The program may use one: its sessions end with the term, and the pooler can't open new ones.
func TestProgramThroughPoolerIsFenced(t *testing.T) {
	r := newRepository(t, "a", "b")
	secret := r.raise(r.fence("a"), 1)
	address := startPooler(t, r, map[string]string{r.role("a"): secret}, "")
	dsn := fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", r.role("a"), secret, address, r.database)
	conn := connect(t, dsn)
	if err := insert(t.Context(), conn, 1, "pooled"); err != nil {
		t.Fatal(err)
	}
	r.raise(r.fence("b"), 2)
	if err := insert(t.Context(), conn, 1, "pooled"); err == nil {
		t.Error("an old term writes through a pooler")
	}
	if again, err := pgx.Connect(t.Context(), dsn); err == nil {
		if err := insert(t.Context(), again, 1, "pooled"); err == nil {
			t.Error("an old term comes back through a pooler")
		}
		_ = again.Close(t.Context())
	}
	var late int
	if err := r.super.QueryRow(t.Context(), "SELECT count(*) FROM work WHERE term = $1", int64(election.Term(1))).Scan(&late); err != nil || late != 1 {
		t.Errorf("%d rows of term 1, not 1 (%v)", late, err)
	}
}

package health

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// database starts a private PostgreSQL and returns its socket directory and a function that stops
// it.
func database(t testing.TB) (dir string, stop func()) {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("no PostgreSQL is installed (Debian: postgresql-15)")
	}
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "tanist-health-") //nolint:usetesting // t.TempDir is inside a directory that the user postgres may not enter, and too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skipf("no user to run PostgreSQL as: %v", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(t.Context(), filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = dir, attr
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("cannot run initdb: %v\n%s", err, out)
	}
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "log_min_messages=panic")
	server.Dir, server.SysProcAttr = dir, attr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = server.Process.Signal(syscall.SIGQUIT)
			_ = server.Wait()
		}
	}
	t.Cleanup(stop)
	return dir, stop
}

func TestPostgres(t *testing.T) {
	dir, stop := database(t)
	file := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(file, fmt.Appendf(nil, "host=%s user=postgres dbname=postgres\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	check := must[Check](t)(Postgres("repository", file, nil))
	defer check.Close()
	for deadline := time.Now().Add(60 * time.Second); ; {
		err := check.Run(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the database does not come up: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	wantErr(t, check.Run(t.Context()), "")
	check.Close()
	wantErr(t, check.Run(t.Context()), "") // usable after Close

	stop()
	err := check.Run(t.Context())
	wantErr(t, err, "cannot ask the database")
	wantErr(t, check.Run(t.Context()), "cannot connect to the database")
	if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "dbname") {
		t.Errorf("error %v", err)
	}
}

func BenchmarkPostgres(b *testing.B) {
	dir, _ := database(b)
	file := filepath.Join(b.TempDir(), "dsn")
	if err := os.WriteFile(file, fmt.Appendf(nil, "host=%s user=postgres dbname=postgres", dir), 0o600); err != nil {
		b.Fatal(err)
	}
	check := must[Check](b)(Postgres("repository", file, nil))
	defer check.Close()
	for check.Run(b.Context()) != nil {
		time.Sleep(5 * time.Millisecond)
	}
	benchCheck(b, check.Run)
}

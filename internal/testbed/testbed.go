package testbed

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Addresses returns n distinct host:port on loopback on which nobody listens. They are below the
// ports that Linux gives to outgoing connections, one of which could otherwise take an address
// before its use.
func Addresses(tb testing.TB, n int) []string {
	tb.Helper()
	var found []string
	for range 1000 {
		if len(found) == n {
			return found
		}
		port := 10000 + rand.N(22000)
		if !reserve(tb, port) {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := new(net.ListenConfig).Listen(context.WithoutCancel(tb.Context()), "tcp", address)
		if err == nil {
			defer l.Close() // held until all are found, so that all differ
			found = append(found, address)
		}
	}
	tb.Fatalf("cannot find %d free ports between 10000 and 32000", n)
	return nil
}

// reserve reports whether no other test, of this process or another, has been given a port. A test has
// it until its end, so that no other takes it before its use, or between two uses.
func reserve(tb testing.TB, port int) bool {
	tb.Helper()
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("tanist-ports-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		tb.Fatal(err)
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		f.Close()
		return false
	}
	tb.Cleanup(func() { f.Close() })
	return true
}

// Address returns one of [Addresses].
func Address(tb testing.TB) string {
	tb.Helper()
	return Addresses(tb, 1)[0]
}

// Dir returns a directory for the test. It is removed with the test, unless TANIST_KEEP names a
// place where it stays. Its path is short enough for Unix sockets, and other users may enter it. If
// the test fails, the ends of its *.log files are printed.
func Dir(tb testing.TB) string {
	tb.Helper()
	keep := os.Getenv("TANIST_KEEP")
	if keep != "" {
		if err := os.MkdirAll(keep, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(keep, "tanist-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			printLogs(tb, dir)
		}
		if keep == "" {
			_ = os.RemoveAll(dir)
		} else {
			tb.Logf("the files of %s are in %s", tb.Name(), dir)
		}
	})
	return dir
}

// printLogs prints the ends of the logs below a directory.
func printLogs(tb testing.TB, dir string) {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".log" {
			return nil //nolint:nilerr // unreadable files are skipped
		}
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			tb.Logf("the end of %s:\n%s", path, tail(string(b), 40))
		}
		return nil
	})
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// builds are the commands that this test process has built; [Main] removes them.
var builds struct {
	sync.Mutex
	done map[string]func() (string, error)
	dir  string
}

// Main runs the tests of a package that uses [Binary], and removes the built commands:
// os.Exit(testbed.Main(m)).
func Main(m *testing.M) int {
	code := m.Run()
	builds.Lock()
	defer builds.Unlock()
	if builds.dir != "" {
		_ = os.RemoveAll(builds.dir)
	}
	return code
}

// Binary returns the path of a command of this project, built as released: without the race
// detector, which would distort measurements. It is built once per test process; all commands are
// in the same directory.
func Binary(tb testing.TB, name string) string {
	tb.Helper()
	builds.Lock()
	if builds.done == nil {
		builds.done = map[string]func() (string, error){}
	}
	build, ok := builds.done[name]
	if !ok {
		build = sync.OnceValues(func() (string, error) { return buildCommand(name) })
		builds.done[name] = build
	}
	builds.Unlock()
	path, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func buildCommand(name string) (string, error) {
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/tanist/tanist/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build %s: %v\n%s", name, err, strings.TrimSpace(string(out)))
	}
	return path, nil
}

// buildDir returns the directory of the commands. Other users may execute them.
func buildDir() (string, error) {
	builds.Lock()
	defer builds.Unlock()
	if builds.dir != "" {
		return builds.dir, nil
	}
	dir, err := os.MkdirTemp("", "tanist-bin-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		return "", err
	}
	builds.dir = dir
	return dir, nil
}

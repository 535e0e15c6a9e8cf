package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

// keysOnce fails if a line of a JSON log has a key twice: readers keep one of the values or reject
// the line.
func keysOnce(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		seen, depth, isKey := map[string]bool{}, 0, false
		for d := json.NewDecoder(strings.NewReader(line)); ; {
			token, err := d.Token()
			if err != nil {
				break // the end of the line
			}
			if delim, ok := token.(json.Delim); ok {
				depth += map[json.Delim]int{'{': 1, '[': 1, '}': -1, ']': -1}[delim]
				isKey = depth == 1
				continue
			}
			if key, ok := token.(string); ok && depth == 1 && isKey {
				if seen[key] {
					t.Errorf("%q occurs twice: %s", key, line)
				}
				seen[key] = true
			}
			isKey = depth == 1 && !isKey
		}
	}
}

// TestProxyLogsEveryKeyOnce: a line about one of several clusters names that one.
func TestProxyLogsEveryKeyOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	servers, dir := etcdtest.Start(t, 1), t.TempDir()
	tanist, file := filepath.Join(dir, "tanist"), filepath.Join(dir, "proxy.yml")
	if err := os.Symlink(self, tanist); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("kind: haproxy\ncluster: orders\netcd: {endpoints: [%q]}\nhaproxy: {config: \"\"}\nhooks: [{command: [\"true\"]}]\nlisten: {http: \"\"}\n",
		servers.Endpoints()[0])
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := testbed.Start(t, exec.Command(tanist, "haproxy", "-c", file))
	p.Await(`"cluster":"orders".*"message":"nobody is active"`, patience)
	p.Signal(syscall.SIGTERM)
	if err := p.End(patience); err != nil {
		t.Errorf("the end: %v", err)
	}
	keysOnce(t, p.Text())
}

// fullPipe returns the write end of a full pipe, and the read end.
func fullPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(r.Close(), w.Close()) })
	fd := int(w.Fd()) // blocking, as what a shell hands on
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = unix.Write(fd, bytes.Repeat([]byte("x"), 512))
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// brokenPipe returns the write end of a pipe without a reader.
func brokenPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	_ = w.Fd() // blocking, as what a shell hands on
	return w
}

// soloSidecar writes the configuration of a sidecar that is alone in its cluster. It returns the
// command that starts it and the flags that select the cluster.
func soloSidecar(t *testing.T, endpoint string) (start func() *exec.Cmd, access []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	url := testbed.Address(t)
	prefix := fmt.Sprintf("/t%d", rand.Uint32())
	err = errors.Join(os.Symlink(self, path("tanist")), os.Symlink(self, path("demo-controller")),
		os.WriteFile(path("ctl-a.yml"), fmt.Appendf(nil, `kind: controller
cluster: orders
name: ctl-a
etcd: {endpoints: [%q], prefix: %s}
run: {command: [%s, %q], url: "http://%s", output: "file:%s"}
listen: {http: ""}
state_dir: %s
`, endpoint, prefix, path("demo-controller"), url, url, path("program.log"), path("state")), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return func() *exec.Cmd {
		return exec.Command(path("tanist"), "sidecar", "-c", path("ctl-a.yml"))
	}, []string{"-c", path("ctl-a.yml")}
}

// ends waits a limited time for a process.
func ends(t *testing.T, cmd *exec.Cmd, within time.Duration) error {
	t.Helper()
	late := time.AfterFunc(within, func() {
		t.Errorf("%s has not ended within %v", filepath.Base(cmd.Path), within)
		_ = cmd.Process.Kill()
	})
	defer late.Stop()
	return cmd.Wait()
}

// quiet runs a command of ours in this process and returns its exit code.
func quiet(ctx context.Context, args ...string) int {
	var out bytes.Buffer
	return run(ctx, args, &out, &out, &out)
}

// becomesActive waits until the cluster that access selects has an active controller.
func becomesActive(t *testing.T, access []string) {
	t.Helper()
	if code := quiet(t.Context(), append([]string{"wait", "--for", "active", "--timeout", patience.String()}, access...)...); code != 0 {
		t.Errorf("nobody is active: exit code %d", code)
	}
}

// hasReleased requires that nobody is active in the cluster that access selects.
func hasReleased(t *testing.T, access []string) {
	t.Helper()
	if code := quiet(t.Context(), append([]string{"is-active"}, access...)...); code != 3 {
		t.Errorf("the lease was not released: exit code %d", code)
	}
}

// TestLogThatNobodyReadsStopsNothing: the log's pipe is full from the start. The sidecar still
// becomes active, and ends as planned when told to.
func TestLogThatNobodyReadsStopsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	start, access := soloSidecar(t, servers.Endpoints()[0])
	_, w := fullPipe(t)
	cmd := start()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	becomesActive(t, access)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := ends(t, cmd, patience); err != nil {
		t.Errorf("the planned end: %v", err)
	}
	hasReleased(t, access)
}

// TestLogWhoseReaderIsGoneEndsNothing: what `tanist sidecar … | head` leaves is a sidecar without a
// log.
func TestLogWhoseReaderIsGoneEndsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	start, access := soloSidecar(t, servers.Endpoints()[0])
	cmd := start()
	w := brokenPipe(t)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	becomesActive(t, access)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := ends(t, cmd, patience); err != nil {
		t.Errorf("the planned end: %v", err)
	}
}

// TestRunSurvivesItsLog: neither a log that nobody reads nor one whose reader is gone touches the
// command.
func TestRunSurvivesItsLog(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tanist := filepath.Join(t.TempDir(), "tanist")
	if err := os.Symlink(self, tanist); err != nil {
		t.Fatal(err)
	}
	_, full := fullPipe(t)
	for what, stderr := range map[string]*os.File{"full": full, "broken": brokenPipe(t)} {
		t.Run(what, func(t *testing.T) {
			cmd := exec.Command(tanist, "run", "-C", what, "--endpoints", servers.Endpoints()[0], "--", "sh", "-c", "echo ran; exit 5")
			cmd.Stderr = stderr
			var out bytes.Buffer
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			err := ends(t, cmd, patience)
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 5 || out.String() != "ran\n" {
				t.Errorf("the command ended with %v and said %q, want exit code 5 and %q", err, out.String(), "ran\n")
			}
		})
	}
}

// TestAgentwatchAndProxyDriverEndThoughNobodyReadsTheirLog: as the sidecar does.
func TestAgentwatchAndProxyDriverEndThoughNobodyReadsTheirLog(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := testbed.Dir(t)
	tanist := filepath.Join(dir, "tanist")
	if err := os.Symlink(self, tanist); err != nil {
		t.Fatal(err)
	}
	for command, text := range map[string]string{
		"agentwatch": "kind: agent\nname: agt-1\nrun: {command: [sleep, \"60\"]}\nretries: {count: 0}\nstate_file: " + filepath.Join(dir, "seen") + "\n",
		"haproxy":    "kind: haproxy\nhaproxy: {config: \"\"}\nhooks: [{command: [\"true\"]}]\ncontrollers: [\"http://127.0.0.1:1\"]\n",
	} {
		t.Run(command, func(t *testing.T) {
			file, address := filepath.Join(dir, command+".yml"), testbed.Address(t)
			text += fmt.Sprintf("cluster: orders\netcd: {endpoints: [%q]}\nlisten: {http: %q}\n", servers.Endpoints()[0], address)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, w := fullPipe(t)
			cmd := exec.Command(tanist, command, "-c", file)
			cmd.Stdout, cmd.Stderr = w, w
			p := testbed.Start(t, cmd)
			for begun := time.Now(); ; {
				c, err := net.Dial("tcp", address)
				if err == nil {
					c.Close()
					break
				}
				if time.Since(begun) > patience {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Millisecond) // until it listens
			}
			p.Signal(syscall.SIGTERM)
			if err := p.End(patience); err != nil {
				t.Error(err)
			}
		})
	}
}

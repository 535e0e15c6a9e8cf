package examples

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m)) }

// long skips a test that takes longer than continuous integration has time for.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("TANIST_LONG") == "" {
		t.Skip("TANIST_LONG is not set: task example -- NAME")
	}
}

// needs skips a test if programs are not installed, or fails if it was asked for.
func needs(t *testing.T, debian string, programs ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("TANIST_LONG") != "" {
			t.Fatalf("%s is not installed: apt-get install %s", p, debian)
		}
		t.Skipf("%s is not installed: apt-get install %s", p, debian)
	}
}

// readme runs the commands of an example's README, word for word: all blocks that are marked as sh, in
// a directory that has the example's files, with a private etcd and more variables. Everything that they leave running is ended with the
// test.
func readme(t *testing.T, example string, env ...string) session {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(example, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -eu -o pipefail\n")
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Fatalf("the README of %s has no commands", example)
	}
	for _, b := range blocks {
		script.Write(b[1])
	}
	dir := testbed.Dir(t)
	if err := os.CopyFS(filepath.Join(dir, "example"), os.DirFS(example)); err != nil {
		t.Fatal(err)
	}
	store := etcdtest.Start(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = filepath.Join(dir, "example")
	cmd.Env = append(append(os.Environ(), env...), "ETCDCTL_ENDPOINTS="+strings.Join(store.Endpoints(), ","), "PATH="+filepath.Dir(testbed.Binary(t, "tanist"))+":/usr/bin:/usr/sbin:"+os.Getenv("PATH"))
	// Debian's programs come first. Killing its group ends everything that it started: the guards end their own programs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out := filepath.Join(dir, "output.log")
	file, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, -cmd.Process.Pid) })
	err = cmd.Wait()
	printed, readErr := os.ReadFile(out)
	if err != nil || readErr != nil {
		t.Fatalf("the README of %s: %v, %v\n%s", example, err, readErr, printed)
	}
	t.Logf("what the README of %s prints:\n%s", example, printed)
	return session{cmd.Dir, string(printed)}
}

// session is what the commands of a README left behind.
type session struct{ dir, output string }

// end ends a group of processes: it asks them, waits until they are gone, and kills what remains.
func end(t *testing.T, group int) {
	t.Helper()
	_ = syscall.Kill(group, syscall.SIGTERM)
	for begun := time.Now(); syscall.Kill(group, 0) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > 30*time.Second {
			t.Errorf("what the README started does not end within 30s")
			_ = syscall.Kill(group, syscall.SIGKILL)
			return
		}
	}
}

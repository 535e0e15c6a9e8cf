package torture

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/process/internal/kernel"
)

// TestForgottenTreeStopsForking: a tree that nobody ends does not take up all process numbers of
// the host with the zombies that it leaves.
func TestForgottenTreeStopsForking(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	const limit = 50
	t.Run("after so many forks", func(t *testing.T) {
		ready := filepath.Join(t.TempDir(), "ready")
		forked := start(t, command(0, ready, limit))
		for forked() < limit {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if n := forked(); n > limit+10 { // some make the rest of the tree
			t.Errorf("%d processes were forked, want %d", n, limit)
		}
	})
	t.Run("when its directory is removed", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "dir")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		forked := start(t, command(0, filepath.Join(dir, "ready"), 1<<30))
		for forked() < limit {
			time.Sleep(time.Millisecond)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		until := time.Now().Add(time.Minute)
		for before := -1; before != forked(); time.Sleep(2 * time.Second) {
			before = forked()
			if time.Now().After(until) {
				t.Fatalf("it forks still: %d", before)
			}
		}
	})
}

// start starts a tree, and returns a function that reaps and counts what of it has ended.
func start(t *testing.T, argv []string) (forked func() int) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	forked = func() int {
		for {
			if pid, _ := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); pid <= 0 {
				return n
			}
			n++
		}
	}
	t.Cleanup(func() {
		for h := kernel.NewHunter(); h.Strike(unix.SIGKILL, nil) > 0; forked() {
		}
	})
	return forked
}

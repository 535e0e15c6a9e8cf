package process

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

func TestOrphansAreReapedAndChildrenAreNot(t *testing.T) {
	// as PID 1 is by nature
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { ReapOrphans(ctx) })
	defer all.Wait()
	defer cancel()

	out, err := exec.Command("sh", "-c", "true >/dev/null & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	orphan, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	slow := exec.Command("sh", "-c", "exit 7")
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- slow.Wait() }()
	eventually(t, "the orphan is reaped", func() bool { return unix.Kill(orphan, 0) == unix.ESRCH })
	if err := <-done; err == nil || err.Error() != "exit status 7" {
		t.Error(err)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	dir := t.TempDir()
	ready, got := filepath.Join(dir, "ready"), filepath.Join(dir, "got")
	e := newExec(t, Config{Command: []string{"sh", "-c", `trap ': >"$1"; exit 5' USR2; : >"$0"; while :; do sleep 1000 & wait $!; done`, ready, got}})
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { e.ForwardSignals(ctx) })
	defer all.Wait()
	defer cancel()
	awaitFile(t, ready)
	e.Signal(unix.SIGWINCH) // means nothing to it
	// The signal would kill this process until somebody here has asked for it, and reaches the
	// program once the goroutine above has.
	mine := make(chan os.Signal, 1)
	signal.Notify(mine, unix.SIGUSR2)
	defer signal.Stop(mine)
	eventually(t, "the signal reaches the program", func() bool {
		_ = unix.Kill(os.Getpid(), unix.SIGUSR2)
		return e.Exit() != ""
	})
	awaitClosed(t, "exit", e.Exited())
	if e.ExitCode() != 5 {
		t.Error(e.Exit())
	}
	awaitFile(t, got)
}

// TestGuardThatHasEndedIsLeftToItsDriver: while one driver kills the orphans of its guard, the
// guard of another ends. Its exit code tells that driver whether anything is left.
func TestGuardThatHasEndedIsLeftToItsDriver(t *testing.T) {
	ended := exec.Command("sh", "-c", "echo "+wire.GuardName+" >/proc/$$/comm; exit 12")
	ended.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool { return kernel.IsZombie(ended.Process.Pid) })
	if found := New(Config{Command: []string{"x"}}).newHandle("x").strikeOrphans(kernel.NewHunter()); found != 0 {
		t.Errorf("%d orphans", found)
	}
	_ = ended.Wait() // its end is the answer
	if code := ended.ProcessState.ExitCode(); code != 12 {
		t.Errorf("exit code %d", code)
	}
}

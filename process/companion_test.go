package process

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/attend"
	"github.com/tanist/tanist/process/internal/kernel"
)

// testCompanion tells whoever connects to the socket that its input names its PID, its deadline,
// and whether others may look into it.
func testCompanion() int {
	a, err := attend.Attend("companion")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := net.Listen("unix", string(a.Input))
	a.Ready(err)
	if err != nil {
		select {} // the guard sees to it
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return 1
		}
		dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		_, _ = fmt.Fprintln(c, os.Getpid(), int64(a.Deadline()), dumpable)
		_ = c.Close()
	}
}

// askCompanion returns its PID, or 0, and its deadline.
func askCompanion(socket string) (pid int, deadline election.Instant) {
	pid, deadline, _ = lookAtCompanion(socket)
	return pid, deadline
}

func lookAtCompanion(socket string) (pid int, deadline election.Instant, dumpable int) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, 0, -1
	}
	defer c.Close()
	line, _ := bufio.NewReader(c).ReadString('\n')
	_, _ = fmt.Sscan(line, &pid, &deadline, &dumpable)
	return pid, deadline, dumpable
}

func withCompanion(t *testing.T, noCgroup bool, program string) (*Exec, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	e := newExec(t, Config{Command: []string{"sh", "-c", program}, NoCgroup: noCgroup})
	e.Accompany(&Companion{Args: []string{"companion"}, Env: os.Environ(), Input: []byte(socket)})
	return e, socket
}

func TestCompanionServesUntilTheProgramHasEnded(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		dir := t.TempDir()
		e, socket := withCompanion(t, noCgroup, fmt.Sprintf(
			`cd %s; trap 'test -d /proc/$(cat pid) && touch served; exit 0' TERM; test -S "$SOCKET" && touch first; while :; do sleep 0.05; done`, dir))
		if noCgroup {
			e.Prepare() // a guard that was started ahead does it too
		}
		deadline := soon(time.Minute)
		if err := e.Start(t.Context(), []string{"SOCKET=" + socket}, deadline); err != nil {
			t.Fatal(err)
		}
		pid, got := askCompanion(socket)
		if pid == 0 || got != deadline {
			t.Fatalf("PID %d, deadline %d, want %d", pid, got, deadline)
		}
		awaitFile(t, filepath.Join(dir, "first")) // it was ready before the program began
		if sid, err := unix.Getsid(pid); err != nil || sid != pid {
			t.Errorf("session %d (%v), want its own: a signal to the program's group must not reach it", sid, err)
		}
		later := deadline.Add(time.Minute)
		e.Extend(later)
		eventually(t, "it sees the new deadline", func() bool { _, got := askCompanion(socket); return got == later })
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
			_ = unix.Kill(pid, sig) // as a service manager that signals everything
		}
		if err := os.WriteFile(filepath.Join(dir, "pid"), fmt.Append(nil, pid), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := e.Stop(t.Context(), 20*time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "served")); err != nil || e.Exit() != "exit status 0" {
			t.Errorf("it did not serve the program while that was stopping: %v; %s", err, e.Exit())
		}
		if unix.Kill(pid, 0) == nil {
			t.Error("it outlived the program")
		}
	})
}

func TestCompanionEndsWithItsTree(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		for how, end := range map[string]func(e *Exec){
			"program exits":   func(e *Exec) { _ = unix.Kill(e.PID(), unix.SIGKILL) },
			"forced stop":     func(e *Exec) { _ = e.Stop(context.Background(), 0) },
			"guard is killed": func(e *Exec) { _ = unix.Kill(e.tree.guardPID, unix.SIGKILL) },
			"deadline":        func(e *Exec) { setDeadline(e.tree, soon(100*time.Millisecond)) },
		} {
			e, socket := withCompanion(t, noCgroup, "exec sleep 1000")
			if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
				t.Fatal(how, err)
			}
			pid, _ := askCompanion(socket)
			if pid == 0 {
				t.Fatal(how, "it does not answer")
			}
			end(e)
			awaitClosed(t, how+": the tree is gone", e.tree.gone)
			if unix.Kill(pid, 0) == nil {
				t.Errorf("%s: it is still there", how)
			}
		}
	})
}

// A program without its companion is a failed one.
func TestCompanionThatEndsFailsTheProgram(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		e, socket := withCompanion(t, noCgroup, "exec sleep 1000")
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		pid, _ := askCompanion(socket)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitClosed(t, "the program has ended", e.Exited())
		if e.Exit() != "guard: its companion ended" {
			t.Error(e.Exit())
		}
		if err := e.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
	})
}

func TestCompanionThatCannotStart(t *testing.T) {
	t.Parallel()
	e, _ := withCompanion(t, false, "exec sleep 1000")
	e.companion.Input = []byte("/nonexistent/socket")
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err == nil || !strings.Contains(err.Error(), "/nonexistent/socket") {
		t.Errorf("its words are not in %v", err)
	}
	e.companion.Args = []string{"mute"}
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err == nil || !strings.Contains(err.Error(), "it ended at once") {
		t.Error(err)
	}
}

// What the companion was told is neither in its environment nor, for others of the same user, in
// its memory or its files.
func TestCompanionIsPrivate(t *testing.T) {
	t.Parallel()
	e, socket := withCompanion(t, false, "exec sleep 1000")
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	pid, _, dumpable := lookAtCompanion(socket)
	if dumpable != 0 {
		t.Errorf("dumpable: %d", dumpable)
	}
	for _, of := range []int{pid, e.tree.guardPID, e.PID()} {
		for _, name := range []string{"environ", "cmdline"} {
			if b, err := os.ReadFile(kernel.ProcPath(of, name)); err == nil && strings.Contains(string(b), socket) {
				t.Errorf("%s of %d has it", name, of)
			}
		}
		fds, _ := filepath.Glob(kernel.ProcPath(of, "fd/*"))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.Contains(to, "memfd:input") {
				t.Errorf("%d still holds the input", of)
			}
		}
	}
}

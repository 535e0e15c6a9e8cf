package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/tanist/tanist/process/internal/kernel"
)

// TestStatusCommandAnswersTheSidecarToo: where no guard is left to ask, the sidecar runs the status
// command itself, and believes it no more than the guard does.
func TestStatusCommandAnswersTheSidecarToo(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]Verdict{
		"exit 0":                                 Running,
		"exit 3":                                 Gone,
		"exit 1":                                 Unknown, // nobody has seen the program below its guard
		"exit 5":                                 Unknown,
		"exit 127":                               Unknown,
		"kill -KILL $$":                          Unknown,
		"/no/such/command":                       Unknown,
		`[ -e "$0" ] && exit 3; : >"$0"; exit 5`: Unknown,
	} {
		cfg := ScriptConfig{Config: Config{Command: []string{"true"}, Dir: t.TempDir()}, StatusCommand: []string{"sh", "-c", script, filepath.Join(t.TempDir(), "asked")}}
		if got := (byCommand{cfg}).ask(t.Context(), origin{}); got != want {
			t.Errorf("%s: %v, want %v", script, got, want)
		}
	}
}

// TestPIDFileOfAStrangerIsNotBelievedBySidecars: a process that is older than the guard, or another
// user's, is not the program, whoever wrote its number into the PID file.
func TestPIDFileOfAStrangerIsNotBelievedBySidecars(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pid")
	run := func(uid uint32) (pid int, began uint64) {
		t.Helper()
		cmd := exec.Command("sleep", "1000")
		if uid != 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		if err := os.WriteFile(file, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
			t.Fatal(err)
		}
		began, err := kernel.BeganAt(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid, began
	}
	c := byCommand{ScriptConfig{Config: Config{Command: []string{"true"}}, PIDFile: file}}
	pid, began := run(0)
	if got := c.main(origin{began: began}); got != pid {
		t.Errorf("the program is %d, want %d", got, pid)
	}
	if got := c.main(origin{began: began + 1}); got != 0 {
		t.Errorf("a process that is older than the guard was taken for the program: %d", got)
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can be another user")
	}
	_, began = run(65534)
	if got := c.main(origin{began: began}); got != 0 {
		t.Errorf("another user's process was taken for the program: %d", got)
	}
}

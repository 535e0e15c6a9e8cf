package kernel

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Confine takes from the calling thread what its children must not inherit: the ambient and the
// inheritable capabilities and, where noNewPrivs is set, the chance to gain others by executing a
// file that has them. What the thread itself may do stays. The caller is locked to the thread.
func Confine(noNewPrivs bool) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL { //nolint:errorlint // a bare errno; EINVAL: a kernel before 4.3 has none
		return os.NewSyscallError("prctl", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	caps[0].Inheritable, caps[1].Inheritable = 0, 0
	if err := unix.Capset(&head, &caps[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	if noNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
	return nil
}

// StartConfined starts cmd as a child that inherits nothing of what Confine takes away, and that
// the kernel's memory killer treats as any other process. Only the child is confined, not the
// caller.
func StartConfined(cmd *exec.Cmd, noNewPrivs bool) error {
	started := make(chan error, 1)
	go func() {
		// not unlocked: the thread ends with the goroutine, confined as it is
		runtime.LockOSThread()
		if err := Confine(noNewPrivs); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		if err == nil {
			SetOOMScore(cmd.Process.Pid, 0)
		}
		started <- err
	}()
	return <-started
}

// OOMScore returns how ready the kernel is to end this process for its memory.
func OOMScore() int {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// SetOOMScore sets how ready the kernel is to end a process for its memory. To lower it takes
// privileges.
func SetOOMScore(pid, score int) bool {
	return os.WriteFile(ProcPath(pid, "oom_score_adj"), []byte(strconv.Itoa(score)), 0) == nil
}

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

// As PID 1 of a container: orphans are reaped, signals reach the command, and its exit code is the
// container's.
func TestRunAsInit(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a PID namespace")
	}
	servers := etcdtest.Start(t, 1)
	tanist := testbed.Binary(t, "tanist")
	run := func(script string) *exec.Cmd {
		cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc", tanist, "run", "-C", "jobs", "--prefix", fmt.Sprintf("/t%d", rand.Uint32()),
			"--endpoints", servers.Endpoints()[0], "-q", "--", "sh", "-c", script)
		cmd.Stderr = t.Output()
		return cmd
	}
	code := func(err error) int {
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return exit.ExitCode()
	}

	// An orphan that has ended and was not reaped would stay visible there.
	out, err := run(`(sh -c 'sleep 0.05 & exit'); while grep -qsx sleep /proc/[0-9]*/comm; do :; done; cat /proc/1/comm; exit 5`).Output()
	if got := code(err); got != 5 || strings.TrimSpace(string(out)) != "tanist" {
		t.Errorf("exit code %d, PID 1 is %q", got, out)
	}

	cmd := run(`trap 'echo told; exit 9' TERM; echo up; while :; do sleep 0.01; done`)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := pipe.Read(buf)
	if err != nil || string(buf[:n]) != "up\n" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	// unshare itself ends with its child; its exit code is that of PID 1 inside.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	var init int
	if _, scan := fmt.Sscan(string(children), &init); err != nil || scan != nil {
		t.Fatal(err, scan)
	}
	if err := syscall.Kill(init, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = syscall.Kill(init, syscall.SIGKILL) })
	defer late.Stop()
	n, _ = pipe.Read(buf)
	if got := code(cmd.Wait()); got != 9 || string(buf[:n]) != "told\n" {
		t.Errorf("exit code %d, said %q", got, buf[:n])
	}
}

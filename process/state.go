package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	stateFile  = "guard.json"
	socketFile = "guard.sock"
)

// state is what a restarted sidecar needs to find the guard again.
type state struct {
	Boot   string `json:"boot"`   // of which PID and clock are
	Guard  int    `json:"guard"`  // PID of the guard
	Began  uint64 `json:"began"`  // when it began, in clock ticks: a PID alone may be somebody else's by now
	Main   int    `json:"main"`   // PID of the main process
	Tree   string `json:"tree"`   // mark of the tree
	Cgroup string `json:"cgroup"` // directory, or empty
}

// listen makes the socket at which the guard can be found, in a directory that is the user's own.
func listen(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the state directory can't be made: %v", err)
	}
	handle, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("the state directory can't be opened: %v", err)
	}
	defer handle.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the guard's socket can't be made: %v", err)
	}
	f := os.NewFile(uintptr(fd), socketFile)
	if err := os.Remove(filepath.Join(dir, socketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("an old socket can't be removed: %v", err), f.Close())
	}
	if err := unix.Bind(fd, socketAddress(handle)); err != nil {
		return nil, errors.Join(fmt.Errorf("the guard's socket can't be made in %s: %v", dir, err), f.Close())
	}
	if err := os.Chmod(filepath.Join(dir, socketFile), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("the guard's socket can't be protected: %v", err), f.Close())
	}
	return f, nil
}

// socketAddress names the socket by way of a handle of its directory, for an address holds 107 bytes only.
func socketAddress(dir *os.File) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + socketFile}
}

// remember writes down where the guard is. The file is whole or not there, as seen by later processes of this boot; it need not
// outlive the host, because the guard does not, and so nothing waits for the disk.
func remember(dir string, k *kept) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	began, err := beganAt(k.guardPID)
	if err != nil {
		return err
	}
	b, err := json.Marshal(state{Boot: boot, Guard: k.guardPID, Began: began, Main: k.pid, Tree: k.mark, Cgroup: k.cgroupPath})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// forget removes what remember and listen made.
func forget(dir string) {
	_ = os.Remove(filepath.Join(dir, stateFile))
	_ = os.Remove(filepath.Join(dir, socketFile))
}

// forgotten tells whether the state file was removed, which a guard does when its tree is confirmed gone.
func forgotten(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, stateFile))
	return errors.Is(err, os.ErrNotExist)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %v", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// beganAt returns when a process began, in clock ticks since the host booted.
func beganAt(pid int) (uint64, error) {
	b, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest) // from field 3 on
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("cannot read when process %d began", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

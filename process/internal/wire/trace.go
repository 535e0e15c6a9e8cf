package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/process/internal/kernel"
)

// The names in a state directory. Those of the trace and of the socket are as old as Tanist, so
// that an upgraded sidecar finds the guard of the version before it.
const (
	TraceFile  = "guard.json"
	SocketFile = "guard.sock"
	LockFile   = "guard.lock"
)

// Trace leads a later sidecar to what an earlier one started. It is written before the guard is
// started, and again when it is known who the guard is; it is removed when nothing of the tree is
// left.
type Trace struct {
	Boot  string `json:"boot"`  // of which PID and clock are
	Guard int    `json:"guard"` // PID of the guard; 0 until it has answered
	Began uint64 `json:"began"` // when it began, in clock ticks: a PID alone may be somebody else's by now
	Main  int    `json:"main"`  // PID of the main process
	// MainBegan is when the main process began, in clock ticks. Zero: not known (an older version).
	MainBegan uint64 `json:"main_began,omitempty"`
	// Outside tells that the program need not be below the guard.
	Outside bool   `json:"outside,omitempty"`
	Tree    string `json:"tree"`   // mark of the tree
	Cgroup  string `json:"cgroup"` // directory, or empty: then the tree is not in one
	// Lead is how far ahead of its setting the deadline of this tree ever lies, at the most. Zero:
	// not known (an older version).
	Lead time.Duration `json:"lead,omitempty"`
	Unit string        `json:"unit,omitempty"` // of the systemd driver
}

// Listen makes the socket at which the guard can be found, in a directory that is the user's own.
func Listen(dir string) (*os.File, error) {
	handle, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("the state directory can't be opened: %v", err)
	}
	defer handle.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the guard's socket can't be made: %v", err)
	}
	f := os.NewFile(uintptr(fd), SocketFile)
	if err := os.Remove(filepath.Join(dir, SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("an old socket can't be removed: %v", err), f.Close())
	}
	if err := unix.Bind(fd, SocketAddress(handle)); err != nil {
		return nil, errors.Join(fmt.Errorf("the guard's socket can't be made in %s: %v", dir, err), f.Close())
	}
	if err := os.Chmod(filepath.Join(dir, SocketFile), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("the guard's socket can't be protected: %v", err), f.Close())
	}
	return f, nil
}

// SocketAddress names the socket by way of a handle of its directory, for an address holds 107
// bytes only.
func SocketAddress(dir *os.File) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + SocketFile}
}

// ErrLocked says that a guard lives, or a sidecar that is about to start one.
var ErrLocked = errors.New("a guard of this program is alive")

// Lock takes the lock that a guard holds from before its first instruction to after its last. The
// kernel drops it with the last process that holds the file, so that whoever gets it knows that
// there is no guard, and none on its way.
func Lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, LockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the guard's lock can't be made: %v", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		err = ErrLocked
	default:
		err = fmt.Errorf("the guard's lock can't be taken in %s: %v", dir, err)
	}
	_ = f.Close()
	return nil, err
}

// Locked reports whether a guard holds the lock.
func Locked(dir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, LockFile), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("the guard's lock can't be tried: %v", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("the guard's lock can't be tried: %v", err)
	}
	return false, nil
}

// Remember writes a trace. The file is whole or not there, as seen by later processes of this boot;
// it need not outlive the host, because the guard does not, and so nothing waits for the disk.
func Remember(dir string, st Trace) error {
	var err error
	if st.Boot, err = kernel.BootID(); err != nil {
		return err
	}
	if st.Guard > 0 {
		if st.Began, err = kernel.BeganAt(st.Guard); err != nil {
			return err
		}
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, TraceFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Errors of Recall.
var (
	ErrNoTrace    = errors.New("there is none")
	ErrOtherBoot  = errors.New("the host was booted since")
	errUnreadable = errors.New("it can't be read")
)

// Recall reads what Remember wrote.
func Recall(dir string) (*Trace, error) {
	path := filepath.Join(dir, TraceFile)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoTrace
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errUnreadable, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errUnreadable, err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() && owner != 0 {
		return nil, fmt.Errorf("%w: %s belongs to user %d", errUnreadable, path, owner)
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errUnreadable, err)
	}
	if len(bytes.Trim(b, "\x00")) == 0 { // the host crashed before the file reached the disk
		return nil, ErrOtherBoot
	}
	var st Trace
	if err := json.Unmarshal(b, &st); err != nil || st.Guard < 0 || st.Guard == 1 || st.Tree == "" {
		return nil, fmt.Errorf("%w: %s", errUnreadable, path)
	}
	boot, err := kernel.BootID()
	if err != nil {
		return nil, err
	}
	if st.Boot != boot {
		return nil, ErrOtherBoot
	}
	return &st, nil
}

// Forget removes what Remember and Listen made. The lock stays: its absence would tell nothing.
func Forget(dir string) {
	_ = os.Remove(filepath.Join(dir, TraceFile))
	_ = os.Remove(filepath.Join(dir, SocketFile))
}

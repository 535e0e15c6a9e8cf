package kernel

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Hunter walks the descendants of this process and signals them. It allocates nothing once made,
// for it works when a host may be out of memory.
//
// It rests on one property of the kernel: a process whose parent dies becomes the child of its
// nearest ancestor that is a subreaper, whatever session, group or user it has moved to. So whoever
// is a subreaper, kills its children, reaps them and repeats until wait4 says that there are none,
// has killed every descendant. Deeper descendants are struck in the same pass for speed, and to
// outrun those that fork.
type Hunter struct {
	Self    int32
	PIDs    []int32
	Parents []int32
	N       int
	byScan  bool // this kernel has no /proc/PID/task/TID/children
	path    [64]byte
	dents   [8192]byte
	text    [8192]byte
}

func NewHunter() *Hunter {
	h := &Hunter{Self: int32(os.Getpid()), PIDs: make([]int32, 1<<16), Parents: make([]int32, 1<<16)}
	h.join("/proc/", h.Self, "/task/", h.Self, "/children")
	fd := h.open()
	h.byScan = fd < 0
	if fd >= 0 {
		unix.Close(fd)
	}
	return h
}

// Strike sends sig to every descendant that it finds and returns how many there were. accept, if
// not nil, tells which children of this process (and with them their descendants) are meant. Only a
// zombie's own children can be missed, and are found as children of this process when strike is
// called again.
func (h *Hunter) Strike(sig unix.Signal, accept func(pid int) bool) int {
	h.Find(accept)
	for i := range h.N {
		// a child can't be recycled before it is reaped, which only we do
		if h.Parents[i] == h.Self {
			_ = unix.Kill(int(h.PIDs[i]), sig)
		} else {
			h.strikeDeep(h.PIDs[i], h.Parents[i], sig)
		}
	}
	return h.N
}

// Find collects descendants, parents first.
func (h *Hunter) Find(accept func(pid int) bool) {
	h.N = 0
	h.Children(h.Self)
	if accept != nil {
		kept := 0
		for i := range h.N {
			if accept(int(h.PIDs[i])) {
				h.PIDs[kept], h.Parents[kept] = h.PIDs[i], h.Parents[i]
				kept++
			}
		}
		h.N = kept
	}
	if h.byScan {
		return // the children of what dies come to us, and are found then
	}
	for i := 0; i < h.N; i++ { //nolint:intrange // children appends, and those are looked at too
		h.Children(h.PIDs[i])
	}
}

// strikeDeep signals a process that somebody else may reap at any moment, through a handle that
// can't slip to another process with the same number.
func (h *Hunter) strikeDeep(pid, parent int32, sig unix.Signal) {
	fd, _, errno := unix.RawSyscall(unix.SYS_PIDFD_OPEN, uintptr(pid), 0, 0)
	if errno != 0 {
		return
	}
	if _, ppid, ok := h.Stat(pid); ok && (ppid == parent || ppid == h.Self) {
		_, _, _ = unix.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, fd, uintptr(sig), 0, 0, 0, 0)
	}
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
}

// Children appends the children of pid.
func (h *Hunter) Children(pid int32) {
	if h.byScan {
		h.scan(pid)
		return
	}
	h.join("/proc/", pid, "/task", -1, "")
	dir := h.open()
	if dir < 0 {
		return
	}
	defer unix.Close(dir)
	for {
		n, err := unix.Getdents(dir, h.dents[:])
		if err != nil || n <= 0 {
			return
		}
		for off := 0; off < n; {
			reclen := int(*(*uint16)(unsafe.Pointer(&h.dents[off+16])))
			if tid, _ := atoi(h.dents[off+19 : off+reclen]); tid > 0 {
				h.join("/proc/", pid, "/task/", tid, "/children")
				h.list(pid)
			}
			off += reclen
		}
	}
}

// list appends the numbers in the file at h.path as children of parent.
func (h *Hunter) list(parent int32) {
	fd := h.open()
	if fd < 0 {
		return
	}
	defer unix.Close(fd)
	rest := 0 // bytes of a number that the last read cut
	for {
		n, err := unix.Read(fd, h.text[rest:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		b := h.text[:rest+n]
		for len(b) > 0 {
			pid, used := atoi(b)
			if used == len(b) {
				break // cut: each number is followed by a space
			}
			h.add(pid, parent)
			b = b[used+1:]
		}
		rest = copy(h.text[:], b)
	}
}

// scan appends the children of this process by reading the whole of /proc.
func (h *Hunter) scan(parent int32) {
	h.join("/proc", -1, "", -1, "")
	dir := h.open()
	if dir < 0 {
		return
	}
	defer unix.Close(dir)
	for {
		n, err := unix.Getdents(dir, h.dents[:])
		if err != nil || n <= 0 {
			return
		}
		for off := 0; off < n; {
			reclen := int(*(*uint16)(unsafe.Pointer(&h.dents[off+16])))
			if pid, _ := atoi(h.dents[off+19 : off+reclen]); pid > 0 {
				if _, ppid, ok := h.Stat(pid); ok && ppid == parent {
					h.add(pid, parent)
				}
			}
			off += reclen
		}
	}
}

func (h *Hunter) add(pid, parent int32) {
	if pid > 0 && h.N < len(h.PIDs) {
		h.PIDs[h.N], h.Parents[h.N] = pid, parent
		h.N++
	}
}

// Stat reads the state and the parent of pid.
func (h *Hunter) Stat(pid int32) (state byte, ppid int32, ok bool) {
	h.join("/proc/", pid, "/stat", -1, "")
	fd := h.open()
	if fd < 0 {
		return 0, 0, false
	}
	n, err := unix.Read(fd, h.text[:])
	unix.Close(fd)
	if err != nil {
		return 0, 0, false
	}
	b := h.text[:n]
	end := -1 // of the name, which may hold anything
	for i := range b {
		if b[i] == ')' {
			end = i
		}
	}
	if end < 0 || end+4 >= len(b) {
		return 0, 0, false
	}
	ppid, _ = atoi(b[end+4:])
	return b[end+2], ppid, true
}

// join makes h.path of words and numbers (left out if negative), with a zero byte at the end.
func (h *Hunter) join(a string, x int32, b string, y int32, c string) {
	p := append(h.path[:0], a...)
	p = appendInt(p, x)
	p = append(p, b...)
	p = appendInt(p, y)
	p = append(p, c...)
	_ = append(p, 0)
}

func (h *Hunter) open() int {
	const atCwd = -100
	at := atCwd
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(&h.path[0])), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return -1
	}
	return int(fd)
}

func appendInt(p []byte, v int32) []byte {
	if v < 0 {
		return p
	}
	var digits [10]byte
	i := len(digits)
	for {
		i--
		digits[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return append(p, digits[i:]...)
		}
	}
}

// atoi reads the number that b begins with and returns how many bytes it took.
func atoi(b []byte) (v int32, used int) {
	for used < len(b) && b[used] >= '0' && b[used] <= '9' {
		v = v*10 + int32(b[used]-'0')
		used++
	}
	return v, used
}

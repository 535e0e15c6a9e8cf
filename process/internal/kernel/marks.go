package kernel

import (
	"bytes"
	"cmp"
	"math"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Marked returns the processes whose environment sets the variable name to a value that match
// accepts. The newest come first, because a process that forks and exits all the time is gone when
// the list is read from its beginning. A process that wiped its environment, or whose environment
// may not be read, is not found.
func Marked(name string, match func(value string) bool) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	pids := make([]int, 0, len(names))
	for _, entry := range names {
		if pid, err := strconv.Atoi(entry); err == nil {
			pids = append(pids, pid)
		}
	}
	newestFirst(pids, lastPID())
	var found []int
	prefix := []byte(name + "=")
	for _, pid := range pids {
		env, err := os.ReadFile(ProcPath(pid, "environ"))
		if err != nil {
			continue
		}
		for kv := range bytes.SplitSeq(env, []byte{0}) {
			if value, ok := bytes.CutPrefix(kv, prefix); ok && match(string(value)) && !IsZombie(pid) {
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

// newestFirst orders processes by age, where last is the number that was given out last: numbers
// above it are of the round before, for they begin anew at pid_max.
func newestFirst(pids []int, last int) {
	slices.SortFunc(pids, func(a, b int) int {
		if (a > last) != (b > last) {
			return cmp.Compare(a, b)
		}
		return cmp.Compare(b, a)
	})
}

// lastPID returns the number of the process or thread that was created last.
func lastPID() int {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return math.MaxInt
	}
	fields := bytes.Fields(b)
	last, err := strconv.Atoi(string(fields[len(fields)-1]))
	if err != nil {
		return math.MaxInt
	}
	return last
}

// Kill kills what was found to be one's own a moment ago, and checks once more that it is, through
// a handle that can't slip to another process with the same number.
func Kill(pid int, still func(pid int) bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if still(pid) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// HasMark reports whether the environment of a process sets the variable name to a value that match
// accepts.
func HasMark(pid int, name string, match func(value string) bool) bool {
	env, err := os.ReadFile(ProcPath(pid, "environ"))
	if err != nil {
		return false
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if value, ok := bytes.CutPrefix(kv, []byte(name+"=")); ok {
			return match(string(value))
		}
	}
	return false
}

// Descends reports whether pid is a descendant of ancestor, as far as /proc tells at this moment.
func Descends(pid, ancestor int) bool {
	for range 1 << 10 {
		parent, _, err := ParentAndOwner(pid)
		if err != nil || parent <= 1 {
			return false
		}
		if parent == ancestor {
			return true
		}
		pid = parent
	}
	return false
}

// ParentAndOwner returns the parent and the real user of a process.
func ParentAndOwner(pid int) (parent, uid int, err error) {
	b, err := os.ReadFile(ProcPath(pid, "status"))
	if err != nil {
		return 0, 0, err
	}
	uid = -1
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch string(fields[0]) {
		case "PPid:":
			parent, _ = strconv.Atoi(string(fields[1]))
		case "Uid:":
			uid, _ = strconv.Atoi(string(fields[1]))
		}
	}
	return parent, uid, nil
}

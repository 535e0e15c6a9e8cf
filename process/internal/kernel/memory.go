package kernel

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const PageSize = 4096

func MapPage(fd, prot int) (*int64, error) {
	b, err := unix.Mmap(fd, 0, PageSize, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*int64)(unsafe.Pointer(unsafe.SliceData(b))), nil
}

// MemoryFile returns a file that exists in memory only.
func MemoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a memory file: %v", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot write a memory file: %v", err)
	}
	return f, nil
}

// ShedText gives back the pages of the binary that the start of this process touched. What runs for
// long and does little (a guard, an agentwatch) needs few of them, and those come back when they
// are used: from the page cache, which all processes of the same binary share.
func ShedText() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var perms string
		if !strings.HasSuffix(strings.TrimSpace(line), exe) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); err != nil || strings.Contains(perms, "w") {
			continue // what can be written holds what was written
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
	}
}

package private

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Freeze stops a process, as a page fault on a dead disk would, and returns once every thread of it
// has stopped.
func Freeze(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("cannot stop process %d: %v", pid, err)
	}
	for !stopped(pid) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// Thaw continues a frozen process. It has no effect on one that has ended.
func Thaw(pid int) { _ = syscall.Kill(pid, syscall.SIGCONT) }

func stopped(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is well-formed
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		// The state follows the name, which is in parentheses and may contain parentheses.
		if after := stat[bytes.LastIndexByte(stat, ')')+1:]; len(after) < 2 || after[1] != 'T' {
			return false
		}
	}
	return true
}

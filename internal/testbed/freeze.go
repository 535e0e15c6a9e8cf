package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// freezeLimit is generous because test machines are busy.
const freezeLimit = time.Minute

// Freeze sends SIGSTOP to a process and returns once every thread has stopped, which takes a
// while on a busy machine: the first thread to be scheduled stops the others.
func Freeze(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("cannot freeze process %d: %w", pid, err)
	}
	for end := time.Now().Add(freezeLimit); !stopped(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("process %d still runs %v after SIGSTOP", pid, freezeLimit)
		}
	}
	return nil
}

// stopped reports whether no thread of a process runs: all are stopped or have ended.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is well-formed
	for _, t := range threads {
		stat, err := os.ReadFile(t)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		_, state, _ := strings.Cut(string(stat), ") ") // after the name, which may contain anything
		if !strings.HasPrefix(state, "T") && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X") {
			return false
		}
	}
	return true
}

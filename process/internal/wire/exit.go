package wire

import (
	"strconv"

	"golang.org/x/sys/unix"
)

func ExitWords(s unix.WaitStatus, why Cause) string {
	switch {
	case why == CauseDeadline:
		return "guard: lease deadline passed"
	case why == CauseOrphan:
		return "guard: the sidecar was gone"
	case why == CauseCompanion:
		return "guard: its companion ended"
	case s == StatusUnknown:
		return "ended"
	case s.Signaled():
		name := unix.SignalName(s.Signal())
		if name == "" {
			name = "signal " + strconv.Itoa(int(s.Signal()))
		}
		if s.CoreDump() {
			name += " (core dumped)"
		}
		return "killed by " + name
	}
	return "exit status " + strconv.Itoa(s.ExitStatus())
}

// ExitCode is what a shell would say.
func ExitCode(s unix.WaitStatus) int {
	if s == StatusUnknown {
		return -1
	}
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

func WaitStatusOfSignal(n int, dumped bool) unix.WaitStatus {
	if dumped {
		n |= 0x80
	}
	return unix.WaitStatus(n)
}

// StatusUnknown is what is reported for a process that was not the guard's child: as if it had been
// killed by signal 0x7e.
const StatusUnknown = 0x7e

package attend

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// Attendance is the companion's side. Its methods are safe for concurrent use.
type Attendance struct {
	Input []byte // as in [Companion]
	page  *int64
	ready *os.File
}

// Attend must be called by a companion before it does anything else. From then on no other process
// of the same user can look into it, and only the guard ends it: signals that service managers and
// terminals send to everybody have no effect.
func Attend(name string) (*Attendance, error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("cannot protect the memory: %v", err)
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE, unix.SIGTSTP,
		unix.SIGTTIN, unix.SIGTTOU)
	kernel.SetName(name)
	for _, fd := range []int{wire.PageFD, wire.InputFD, wire.ReadyFD} {
		unix.CloseOnExec(fd)
	}
	a := &Attendance{ready: os.NewFile(wire.ReadyFD, "ready")}
	input := os.NewFile(wire.InputFD, "input")
	defer input.Close()
	page, err := kernel.MapPage(wire.PageFD, unix.PROT_READ)
	if err != nil {
		return nil, errors.New("no guard has started it")
	}
	a.page = page
	unix.Close(wire.PageFD)
	if a.Input, err = io.ReadAll(io.NewSectionReader(input, 0, 1<<20)); err != nil {
		return nil, fmt.Errorf("cannot read what to do: %v", err)
	}
	return a, nil
}

// Deadline returns the instant at which the guard kills the tree; 0 when it has begun to. It may
// move on until it has passed, and is final then. A companion must not act at or after it.
func (a *Attendance) Deadline() election.Instant { return election.Instant(atomic.LoadInt64(a.page)) }

// Ready tells the guard that the program may be started, or why it can't be. It is called once.
func (a *Attendance) Ready(err error) {
	text := wire.CompanionReady
	if err != nil {
		text = err.Error()
	}
	_, _ = a.ready.WriteString(text) // a guard that is gone takes this process along
	_ = a.ready.Close()
}

package process

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/wire"
)

// readiedUse is how long a guard that was started ahead is used.
const readiedUse = 20 * time.Second

// readied is a guard that waits for its spec.
type readied struct {
	mark    string
	guard   *guardProcess
	conn    *net.UnixConn
	started election.Instant
}

// Prepare starts a guard ahead of the next Start, which then is about 10 ms faster. It waits for
// half a minute, and then ends. Prepare does nothing if one is waiting already or the program runs,
// and nothing is lost if it fails. It does not block.
func (d *driver) Prepare() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.starting || d.ahead.fresh() {
		return
	}
	d.ahead.drop()
	ahead, err := d.startReadied()
	if err != nil {
		d.cfg.Log.Debug().Err(err).Msg("cannot start a guard in advance")
	}
	d.ahead = ahead
}

// Dismiss lets go of a guard that was started ahead, and returns when it has ended, or after a second:
// a sidecar that exits leaves no guard behind that the next one would find and wait for. It returns
// nil.
func (d *driver) Dismiss() error {
	d.mu.Lock()
	ahead := d.ahead
	d.ahead = nil
	d.mu.Unlock()
	if ahead == nil {
		return nil
	}
	ahead.drop()
	select {
	case <-ahead.guard.dead:
	case <-time.After(dismissWithin):
	}
	return nil
}

const dismissWithin = time.Second

// takeReadied returns the guard that was started ahead, if it can be used, else nil. The caller
// owns it.
func (d *driver) takeReadied() *readied {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.ahead
	d.ahead = nil
	if !s.fresh() {
		s.drop()
		return nil
	}
	return s
}

func (d *driver) startReadied() (*readied, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	conn, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	files := []*os.File{null, os.Stderr, os.Stderr, theirs}
	for len(files) < wire.ReadiedFDs {
		// keeps the Go runtime of the guard off the numbers that are needed later
		files = append(files, null)
	}
	s := &readied{mark: d.cfg.mark(), conn: conn, started: election.BootClock()}
	if s.guard, err = d.startGuard(s.mark, files, wire.ReadiedMark+"=1"); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

// fresh reports whether s can be used.
func (s *readied) fresh() bool {
	if s == nil || election.BootClock().Sub(s.started) > readiedUse {
		return false
	}
	select {
	case <-s.guard.dead:
		return false
	default:
		return true
	}
}

// drop lets go of a guard that is not needed. It ends when it sees that.
func (s *readied) drop() {
	if s != nil {
		_ = s.conn.Close()
	}
}

// begin sends the files of a guard that begins, numbered from specFD on.
func (s *readied) begin(files []*os.File) error {
	if len(files) > wire.ReadiedFDs-wire.SpecFD {
		return errors.New("too many files")
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, _, err := s.conn.WriteMsgUnix([]byte(wire.ReadiedText), unix.UnixRights(fds...), nil)
	return err
}

package process

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// A guard is a Go program, and takes some 10 ms to come up. One that is started when a takeover is near has that behind it
// when it is needed. It comes up with nothing but its control socket, and is sent the rest, files included, in one message.

const (
	spareMark = "TANIST_GUARD_SPARE" // in the environment of a guard that is to wait for its spec
	// spareFor is how long a guard waits for one. The sidecar forgets it sooner, so that it is not sent one as it leaves.
	spareFor  = 30 * time.Second
	spareUse  = 20 * time.Second
	spareFDs  = 16 // descriptors kept free for what is sent, control socket and those before it included
	spareText = "go"
)

// spare is a guard that waits for its spec.
type spare struct {
	mark    string
	guard   *guardProcess
	conn    *net.UnixConn
	started election.Instant
}

// Prepare starts a guard ahead of the next Start, which then is about 10 ms faster. It waits for half a minute, and then
// ends. Prepare does nothing if one is waiting already or the program runs, and nothing is lost if it fails. It does not block.
func (d *driver) Prepare() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.starting || d.ahead.fresh() {
		return
	}
	d.ahead.drop()
	ahead, err := d.startSpare()
	if err != nil {
		d.cfg.Log.Debug().Err(err).Msg("Cannot start a guard ahead")
	}
	d.ahead = ahead
}

// takeSpare returns the guard that was started ahead, if it can be used, else nil. The caller owns it.
func (d *driver) takeSpare() *spare {
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

func (d *driver) startSpare() (*spare, error) {
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
	for len(files) < spareFDs {
		files = append(files, null) // keeps the Go runtime of the guard off the numbers that are needed later
	}
	s := &spare{mark: rand.Text(), conn: conn, started: election.BootClock()}
	if s.guard, err = d.startGuard(s.mark, files, spareMark+"=1"); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

// fresh reports whether s can be used.
func (s *spare) fresh() bool {
	if s == nil || election.BootClock().Sub(s.started) > spareUse {
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
func (s *spare) drop() {
	if s != nil {
		_ = s.conn.Close()
	}
}

// begin sends the files of a guard that begins, numbered from specFD on.
func (s *spare) begin(files []*os.File) error {
	if len(files) > spareFDs-specFD {
		return errors.New("too many files")
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, _, err := s.conn.WriteMsgUnix([]byte(spareText), unix.UnixRights(fds...), nil)
	return err
}

// awaitBegin is the guard's side: it waits for the files, and puts them where a guard that was not started ahead finds
// them. It returns false if there is nothing to do (any more).
func awaitBegin() (bool, error) {
	if err := unix.SetsockoptTimeval(controlFD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, new(unix.NsecToTimeval(int64(spareFor)))); err != nil {
		return false, fmt.Errorf("cannot wait for what to guard: %v", err)
	}
	text, rights := make([]byte, 8), make([]byte, unix.CmsgSpace(4*spareFDs))
	var n, oobn int
	for {
		var err error
		n, oobn, _, _, err = unix.Recvmsg(controlFD, text, rights, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil || n == 0 {
			return false, nil //nolint:nilerr // nobody is there, or it took too long: not needed
		}
		break
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oobn])
	if err != nil || len(messages) != 1 || string(text[:n]) != spareText {
		return false, errors.New("cannot read what to guard: the message is not one of ours")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return false, fmt.Errorf("cannot read what to guard: %v", err)
	}
	for i := specFD; i < spareFDs; i++ {
		if i-specFD < len(fds) {
			err = errors.Join(err, unix.Dup3(fds[i-specFD], i, unix.O_CLOEXEC))
			_ = unix.Close(fds[i-specFD])
		} else {
			_ = unix.Close(i)
		}
	}
	return err == nil, err
}

// controlPair returns the two ends of a control socket.
func controlPair() (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// guardProcess is a guard that is a child of this process.
type guardProcess struct {
	*os.Process
	dead chan struct{} // closed when it has ended
	code int           // its exit code, -1 if it is not known; valid after dead
}

// startGuard starts a guard with files as its descriptors.
func (d *driver) startGuard(mark string, files []*os.File, more ...string) (*guardProcess, error) {
	self := d.cfg.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	p, err := os.StartProcess(self, []string{"tanist", "guard", "--", d.cfg.Command[0]}, &os.ProcAttr{
		Dir: "/", Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
		Env: append([]string{
			guardMark + "=" + mark, "GOGC=off", "GOMAXPROCS=2", "GOTRACEBACK=single", "GODEBUG=madvdontneed=1",
		}, more...),
	})
	if err != nil {
		return nil, err
	}
	g := &guardProcess{Process: p, dead: make(chan struct{}), code: -1}
	go func() {
		if state, err := p.Wait(); err == nil {
			g.code = state.ExitCode()
		}
		close(g.dead)
	}()
	return g, nil
}

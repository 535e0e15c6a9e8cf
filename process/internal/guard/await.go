package guard

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/process/internal/wire"
)

// readiedFor is how long a guard waits for its spec. The sidecar forgets it sooner, so that it is
// not sent one as it leaves.
const readiedFor = 30 * time.Second

// awaitBegin is the guard's side: it waits for the files, and puts them where a guard that was not
// started ahead finds them. It returns false if there is nothing to do (any more).
func awaitBegin() (bool, error) {
	if err := unix.SetsockoptTimeval(wire.ControlFD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, new(unix.NsecToTimeval(int64(readiedFor)))); err != nil {
		return false, fmt.Errorf("cannot wait for what to guard: %v", err)
	}
	text, rights := make([]byte, 8), make([]byte, unix.CmsgSpace(4*wire.ReadiedFDs))
	var n, oobn int
	for {
		var err error
		n, oobn, _, _, err = unix.Recvmsg(wire.ControlFD, text, rights, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil || n == 0 {
			return false, nil //nolint:nilerr // nobody is there, or it took too long: not needed
		}
		break
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oobn])
	if err != nil || len(messages) != 1 || string(text[:n]) != wire.ReadiedText {
		return false, errors.New("cannot read what to guard: the message is not one of ours")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return false, fmt.Errorf("cannot read what to guard: %v", err)
	}
	for i := wire.SpecFD; i < wire.ReadiedFDs; i++ {
		if i-wire.SpecFD < len(fds) {
			err = errors.Join(err, unix.Dup3(fds[i-wire.SpecFD], i, unix.O_CLOEXEC))
			_ = unix.Close(fds[i-wire.SpecFD])
		} else {
			_ = unix.Close(i)
		}
	}
	return err == nil, err
}

package guard

import (
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/wire"
)

// admit takes in a sidecar that wants to adopt the tree. Only the guard's own user, or root, may,
// and one at a time.
func (g *guard) admit() {
	fd, _, err := unix.Accept4(g.listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	no := ""
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	switch {
	case err != nil || peer.Uid != 0 && int(peer.Uid) != unix.Geteuid():
		no = "the user is another"
	case g.control >= 0:
		no = wire.Busy
	case g.killing || election.BootClock() >= g.deadline:
		no = "the tree is being ended"
	}
	if no != "" {
		refusal := wire.Record{Kind: wire.KindRefused, Text: no}
		_ = unix.Send(fd, refusal.Put(g.out[:]), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		unix.Close(fd)
		return
	}
	g.control, g.greeting, g.saidExit = fd, true, false
	// the other side waits for it: a refusal would be lost under an unread hello
	g.say(wire.Record{Kind: wire.KindAck, A: int64(g.deadline)})
}

// receive reads a record; the first of an adopting sidecar may bring the pipe for the output.
func (g *guard) receive() (int, error) {
	if !g.greeting {
		return unix.Read(g.control, g.in[:])
	}
	rights := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(g.control, g.in[:], rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return n, err
	}
	g.greeting = false
	// without rights that can be read there is nothing to close
	messages, _ := unix.ParseSocketControlMessage(rights[:oobn])
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if g.output != nil {
				g.output.adopt(fd)
			} else {
				unix.Close(fd)
			}
		}
	}
	return n, nil
}

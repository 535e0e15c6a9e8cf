package process

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// setName sets the name under which ps shows the guard, and under which it is told from what it guards.
func setName(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0)
}

// ShedText gives back the pages of the binary that the start of this process touched. What runs for long and does little (a
// guard, an agentwatch) needs few of them, and those come back when they are used: from the page cache, which all processes
// of the same binary share.
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

// admit takes in a sidecar that wants to adopt the tree. Only the guard's own user, or root, may, and one at a time.
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
		no = busy
	case g.killing || election.BootClock() >= g.deadline:
		no = "the tree is being ended"
	}
	if no != "" {
		refusal := record{kind: kindRefused, text: no}
		_ = unix.Send(fd, refusal.put(g.out[:]), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		unix.Close(fd)
		return
	}
	g.control, g.greeting, g.saidExit = fd, true, false
	g.say(record{kind: kindAck, a: int64(g.deadline)}) // the other side waits for it: a refusal would be lost under an unread hello
}

// busy is what a guard answers a second sidecar.
const busy = "another sidecar keeps it"

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
	messages, _ := unix.ParseSocketControlMessage(rights[:oobn]) // without rights that can be read there is nothing to close
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

package gate

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// relay forwards both directions of each session, chunk by chunk, with a clock check before each
// chunk. One thread serves all sessions with its own system calls instead of the runtime's network
// poller: a chunk then costs one wake-up less, and none during a lively exchange, because the
// thread polls for a moment before it sleeps.
type relay struct {
	past func() bool // whether the deadline has passed
	left func() time.Duration
	poll int // epoll
	wake int // eventfd
	done chan struct{}

	mu     sync.Mutex
	fresh  []*lane // not yet adopted by the thread
	closed bool

	lanes map[int32]*lane // by either descriptor; used by the thread only
	buf   []byte
}

// lane is one session: two sockets, and the data that one of them could not accept yet.
type lane struct {
	ends [2]end
	over chan struct{} // closed once the sockets are
}

// end is one side of a lane. Nothing is read from it while data from it still waits for the other
// side.
type end struct {
	fd      int
	waiting []byte // came from the other end, to be written here
	watched uint32 // the events that epoll watches
}

// chunk is how much is forwarded between two clock checks.
const chunk = 64 << 10

// lively is how long the thread polls before it sleeps, if recent wake-ups came sooner than that.
// It is longer with a single session: then nobody else needs the processor that the program and its
// server take turns on.
const (
	lively      = 60 * time.Microsecond
	livelyAlone = 300 * time.Microsecond
)

// newRelay starts the thread. It ends when the relay is closed.
func newRelay(past func() bool, left func() time.Duration) (*relay, error) {
	r := &relay{past: past, left: left, done: make(chan struct{}), lanes: map[int32]*lane{}, buf: make([]byte, chunk)}
	var err error
	if r.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot wait for sockets: %v", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = unix.EpollCtl(r.poll, unix.EPOLL_CTL_ADD, r.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(r.wake)})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot wait for sockets: %v", err)
	}
	go r.run()
	return r, nil
}

// raw takes the socket out of a connection and closes the connection. It fails for connections that
// are more than a socket.
func raw(c net.Conn) (int, error) {
	var sc syscall.Conn
	switch c := c.(type) {
	case *net.TCPConn:
		sc = c
	case *net.UnixConn:
		sc = c
	default:
		return -1, errors.New("not a plain socket")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if e := rc.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
		return -1, errors.Join(e, err)
	}
	_ = c.Close() // the socket itself lives on
	return fd, nil
}

// pass serves a session until it ends. The relay closes both sockets.
func (r *relay) pass(client, server int) {
	l := &lane{ends: [2]end{{fd: client}, {fd: server}}, over: make(chan struct{})}
	abort(server, true) // if this process is killed, its unsent data must be lost
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.fresh = append(r.fresh, l)
	}
	r.mu.Unlock()
	if closed {
		unix.Close(client)
		unix.Close(server)
		return
	}
	r.nudge()
	<-l.over
}

func (r *relay) nudge() { _, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// close ends all sessions and returns when the thread has ended.
func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.nudge()
	<-r.done
}

// abort sets whether closing a socket drops its send buffer and resets the connection.
func abort(fd int, yes bool) {
	linger := unix.Linger{}
	if yes {
		linger.Onoff = 1
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger)
}

func (r *relay) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(r.done)
	defer func() {
		for _, l := range r.lanes {
			r.end(l, true)
		}
		unix.Close(r.poll)
		unix.Close(r.wake)
	}()
	var events [64]unix.EpollEvent
	look := time.Duration(0)
	for {
		n := r.await(events[:], &look)
		if r.past() {
			for _, l := range r.lanes {
				r.end(l, true)
			}
		}
		for i := range n {
			if events[i].Fd == int32(r.wake) {
				if !r.takeIn() {
					return
				}
			} else if l := r.lanes[events[i].Fd]; l != nil { // otherwise it ended a moment ago
				r.serve(l, &events[i])
			}
		}
	}
}

// await returns how many sockets are ready. It sleeps no longer than until the deadline.
func (r *relay) await(events []unix.EpollEvent, look *time.Duration) int {
	begun := time.Now()
	for first := true; first || time.Since(begun) < *look; first = false {
		if n := epollReady(r.poll, events); n > 0 {
			return n
		}
	}
	asleep := time.Now()
	// A deadline that is extended does not wake us and need not.
	limit := min(r.left(), time.Second) + time.Millisecond
	n, _ := unix.EpollWait(r.poll, events, int(limit.Milliseconds())) // interrupted: no events
	most := lively
	if len(r.lanes) <= 2 { // by both descriptors
		most = livelyAlone
	}
	*look = 0
	if time.Since(asleep) < most {
		*look = most
	}
	return max(n, 0)
}

// takeIn adopts new lanes and reports whether to continue.
func (r *relay) takeIn() bool {
	var b [8]byte
	_, _ = unix.Read(r.wake, b[:])
	r.mu.Lock()
	fresh, closed := r.fresh, r.closed
	r.fresh = nil
	r.mu.Unlock()
	for _, l := range fresh {
		for i := range l.ends {
			e := &l.ends[i]
			r.lanes[int32(e.fd)] = l
			e.watched = unix.EPOLLIN
			if err := unix.EpollCtl(r.poll, unix.EPOLL_CTL_ADD, e.fd, &unix.EpollEvent{Events: e.watched, Fd: int32(e.fd)}); err != nil {
				r.end(l, true)
				break
			}
		}
	}
	return !closed
}

// serve does what is possible for one socket of a lane now.
func (r *relay) serve(l *lane, event *unix.EpollEvent) {
	this, other := &l.ends[0], &l.ends[1]
	if event.Fd == int32(other.fd) {
		this, other = other, this
	}
	switch {
	case len(this.waiting) > 0:
		if event.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			r.end(l, true)
			return
		}
		if event.Events&unix.EPOLLOUT != 0 && !r.send(l, this, this.waiting) {
			return
		}
	case len(other.waiting) > 0 && event.Events&unix.EPOLLIN == 0:
		r.end(l, true) // hung up, while the other end accepts nothing
		return
	}
	if event.Events&^unix.EPOLLOUT != 0 && len(other.waiting) == 0 {
		n, errno := read(this.fd, r.buf)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
		case errno != 0 || n == 0:
			r.end(l, false)
			return
		case !r.send(l, other, r.buf[:n]):
			return
		}
	}
	r.watch(this, other)
	r.watch(other, this)
}

// send writes what it can and keeps the rest. It reports whether the lane continues. It is the only
// place where data leaves the gate.
func (r *relay) send(l *lane, to *end, b []byte) bool {
	if r.past() {
		r.end(l, true)
		return false
	}
	n, errno := write(to.fd, b)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		n = 0
	case errno != 0:
		r.end(l, false)
		return false
	}
	to.waiting = append(to.waiting[:0], b[n:]...)
	if len(to.waiting) == 0 {
		to.waiting = nil
	}
	return true
}

// watch sets the events that epoll watches for e.
func (r *relay) watch(e, other *end) {
	var want uint32
	if len(other.waiting) == 0 {
		want = unix.EPOLLIN
	}
	if len(e.waiting) > 0 {
		want |= unix.EPOLLOUT
	}
	if want != e.watched {
		e.watched = want
		_ = unix.EpollCtl(r.poll, unix.EPOLL_CTL_MOD, e.fd, &unix.EpollEvent{Events: want, Fd: int32(e.fd)}) // it is registered
	}
}

// end closes both sockets. If it is hard, data still in their buffers is dropped.
func (r *relay) end(l *lane, hard bool) {
	for i := range l.ends {
		fd := l.ends[i].fd
		abort(fd, hard)
		delete(r.lanes, int32(fd))
		unix.Close(fd)
	}
	close(l.over)
}

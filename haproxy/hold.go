package haproxy

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// holdServer is the last server of a backend whose requests are held.
const holdServer = "hold"

// holder keeps the one place of the server "hold" taken, so that HAProxy finds it full and queues. It is both ends of
// one connection that goes through HAProxy: it comes in at the hold socket and arrives at the holder's own listener.
// Whatever else arrives there is a request that found the place empty; it is turned away.
type holder struct {
	cl     Cluster
	socket string
	token  string
	ln     net.Listener
	log    zerolog.Logger
	pids   chan int // the worker, whenever it is another one
	pid    int      // what was sent last; belongs to the caller of worker

	mu    sync.Mutex
	taken map[int]int // by worker: connections through it that arrived at the other end and are open
}

// holds reports whether the place is taken in the worker pid.
func (h *holder) holds(pid int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken[pid] > 0
}

func (h *holder) count(pid, by int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.taken[pid] += by; h.taken[pid] == 0 {
		delete(h.taken, pid)
	}
}

func newHolder(cl Cluster, socket string, log zerolog.Logger) (*holder, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen for held requests: %v", err)
	}
	return &holder{cl: cl, socket: socket, token: rand.Text(), ln: ln, log: log, pids: make(chan int, 1), taken: map[int]int{}}, nil
}

func (h *holder) addr() netip.AddrPort {
	a := h.ln.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// plan returns what is to be done to the server "hold" of a backend.
func (h *holder) plan(backend string, s server) (commands []string) {
	at := backend + "/" + holdServer
	if s.addr != h.addr() {
		commands = append(commands, fmt.Sprintf("set server %s addr %s port %d", at, h.addr().Addr(), h.addr().Port()))
		h.pid = 0 // whatever took the place leads elsewhere
	}
	if s.maint() || s.drain() {
		commands = append(commands, fmt.Sprintf("set server %s state ready", at))
	}
	return commands
}

// worker tells which worker of HAProxy has to be occupied; zero: none can be reached.
func (h *holder) worker(pid int) {
	if pid == 0 || pid == h.pid {
		return
	}
	h.pid = pid
	select {
	case <-h.pids:
	default:
	}
	h.pids <- pid // the only sender; there is room now
}

// run holds the place until ctx ends.
func (h *holder) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	// Not by context.AfterFunc: ctx is seen to have ended before such a function runs, and stopping it then would leave
	// Accept waiting for ever.
	defer h.ln.Close()
	wg.Go(func() {
		for {
			c, err := h.ln.Accept()
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // out of descriptors; nothing better to do than to try again
				continue
			}
			wg.Go(func() { h.serve(ctx, c) })
		}
	})
	var give context.CancelFunc
	gone := make(chan struct{}, 1)
	defer func() {
		if give != nil {
			give()
		}
	}()
	pid := 0
	take := func() {
		pid := pid
		before := give
		hold, cancel := context.WithCancel(ctx)
		give = cancel
		wg.Go(func() {
			h.occupy(hold, pid)
			if hold.Err() == nil {
				select {
				case gone <- struct{}{}:
				default:
				}
			}
		})
		if before != nil {
			before()
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case pid = <-h.pids:
			take()
		case <-gone:
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			take()
		}
	}
}

// occupy takes the place and keeps it until the connection ends or ctx does. A byte now and then keeps
// HAProxy's time-outs away.
func (h *holder) occupy(ctx context.Context, pid int) {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", h.socket)
	if err != nil {
		return
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	name := fmt.Sprintf("%s-%d", h.token, pid)
	hello, beat := name+"\n", "."
	if h.cl.Mode == ModeHTTP {
		hello = "POST /" + name + " HTTP/1.1\r\nHost: hold\r\nTransfer-Encoding: chunked\r\n\r\n"
		beat = "1\r\n.\r\n"
	}
	if _, err := io.WriteString(c, hello); err != nil {
		return
	}
	ended := make(chan struct{})
	go func() { // ends with the connection, which is closed when occupy returns
		defer close(ended)
		_, _ = io.Copy(io.Discard, c)
	}()
	defer func() { _ = c.Close(); <-ended }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, beat); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
			return
		case <-tick.C:
		}
	}
}

// serve is the other end.
func (h *holder) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	in := bufio.NewReader(io.LimitReader(c, 64<<10))
	line, err := in.ReadString('\n')
	if err != nil || !strings.Contains(line, h.token) {
		if h.cl.Mode == ModeHTTP {
			_, _ = io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: 1\r\n\r\n")
		}
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	pid := 0 // the worker that the one at the other end meant
	if _, rest, ok := strings.Cut(line, h.token+"-"); ok {
		_, _ = fmt.Sscanf(rest, "%d", &pid)
	}
	h.count(pid, 1)
	defer h.count(pid, -1)
	_, _ = io.Copy(io.Discard, c)
}

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

// holdServer is the last server of a backend with held requests.
const holdServer = "hold"

// holder keeps the single slot of the server "hold" occupied, so that HAProxy finds it full and
// queues. It is both ends of one connection through HAProxy: it connects to the hold socket, and
// the connection arrives at the holder's own listener. Any other connection there is a request that
// found the slot free; it is rejected.
type holder struct {
	cl     Cluster
	socket string
	token  string
	ln     net.Listener
	log    zerolog.Logger
	pids   chan int // the worker, whenever it changes
	pid    int      // last value sent; used by the caller of worker only

	mu    sync.Mutex
	taken map[int]int // by worker: open connections through it that have arrived at the other end
}

// holds reports whether the slot is occupied in the worker pid.
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

// plan returns the commands for the server "hold" of a backend.
func (h *holder) plan(backend string, s server) (commands []string) {
	at := backend + "/" + holdServer
	if s.addr != h.addr() {
		commands = append(commands, fmt.Sprintf("set server %s addr %s port %d", at, h.addr().Addr(), h.addr().Port()))
		h.pid = 0 // the occupied slot leads to another address
	}
	if s.maint() || s.drain() {
		commands = append(commands, fmt.Sprintf("set server %s state ready", at))
	}
	return commands
}

// worker sets the worker of HAProxy whose slot must be occupied; zero: none is reachable.
func (h *holder) worker(pid int) {
	if pid == 0 || pid == h.pid {
		return
	}
	h.pid = pid
	select {
	case <-h.pids:
	default:
	}
	h.pids <- pid // this is the only sender, so there is room now
}

// run occupies the slot until ctx ends.
func (h *holder) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	// context.AfterFunc does not work here: a goroutine can see the end of ctx before such a
	// function runs, and stopping it then would leave Accept waiting forever.
	defer h.ln.Close()
	wg.Go(func() {
		for {
			c, err := h.ln.Accept()
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // out of descriptors; the only remedy is to retry
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

// occupy takes the slot and keeps it until the connection or ctx ends. A byte now and then prevents
// HAProxy's timeouts.
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
	pid := 0 // the worker that the peer named
	if _, rest, ok := strings.Cut(line, h.token+"-"); ok {
		_, _ = fmt.Sscanf(rest, "%d", &pid)
	}
	h.count(pid, 1)
	defer h.count(pid, -1)
	_, _ = io.Copy(io.Discard, c)
}

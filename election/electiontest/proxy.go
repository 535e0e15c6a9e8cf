package electiontest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
)

// Link is the network between one host and the store, with its faults.
type Link interface {
	// Hold silently swallows everything in both directions. What was swallowed arrives after Heal,
	// as with TCP.
	Hold()
	// HoldReplies lets requests pass and holds replies.
	HoldReplies()
	// Cut breaks connections and refuses new ones.
	Cut()
	// Heal ends every fault.
	Heal()
}

// Proxy is a TCP [Link] on the loopback interface.
type Proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu            sync.Mutex
	changed       *sync.Cond
	up, down, cut bool   // up: requests pass; down: replies pass
	word          string // part of the request that HoldRequest holds; empty: any
	single        int    // how many requests pass although up is false
	held          int    // connections of which something was read and has not passed yet
	closed        bool
	connections   map[net.Conn]bool
}

// NewProxy listens on a free port and forwards connections to target (host:port). It is closed with
// the test.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	listener, err := new(net.ListenConfig).Listen(context.WithoutCancel(tb.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("cannot open a proxy: %v", err)
	}
	p := &Proxy{target: target, listener: listener, up: true, down: true, connections: map[net.Conn]bool{}}
	p.changed = sync.NewCond(&p.mu)
	p.running.Go(p.accept)
	tb.Cleanup(p.close)
	return p
}

// Addr returns the proxy's host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Hold implements [Link].
func (p *Proxy) Hold() { p.set(false, false, false) }

// HoldRequest is Hold for the one request that contains word. What is read is kept together until it
// contains word, because a request may come in several pieces, and after something else. Nothing
// else passes any more, even after Heal.
func (p *Proxy) HoldRequest(word string) {
	p.mu.Lock()
	p.word = word
	p.mu.Unlock()
	p.Hold()
}

// HoldReplies implements [Link].
func (p *Proxy) HoldReplies() { p.set(true, false, false) }

// Cut implements [Link].
func (p *Proxy) Cut() { p.set(true, true, true) }

// Heal implements [Link].
func (p *Proxy) Heal() { p.set(true, true, false) }

// PassOne lets the request of HoldRequest pass, and nothing that follows it, such as its
// cancellation.
func (p *Proxy) PassOne() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.single++
	p.changed.Broadcast()
}

// Held reports whether the request of HoldRequest was read and has not passed yet.
func (p *Proxy) Held() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held > 0
}

func (p *Proxy) set(up, down, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up, p.down, p.cut = up, down, cut
	if cut {
		for c := range p.connections {
			c.Close()
		}
	}
	p.changed.Broadcast()
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.listener.Close()
	p.set(true, true, true)
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.running.Go(func() { p.serve(client) })
		}
	}
}

// track reports false, and closes c, if there is a cut.
func (p *Proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connections[c] = true
	if p.cut {
		c.Close()
	}
	return !p.cut
}

// pass waits until *open, and reports whether the proxy still runs.
func (p *Proxy) pass(open *bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !*open && !p.closed {
		if open == &p.up && p.single > 0 {
			p.single--
			break
		}
		p.changed.Wait()
	}
	return !p.closed
}

// partial reports whether what was read is not yet the request of HoldRequest.
func (p *Proxy) partial(open *bool, read []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return open == &p.up && p.word != "" && !bytes.Contains(read, []byte(p.word))
}

// passRead is pass for n bytes that were read.
func (p *Proxy) passRead(open *bool, n int) bool {
	if open == &p.up && n > 0 {
		p.count(1)
		defer p.count(-1)
	}
	return p.pass(open)
}

func (p *Proxy) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held += n
}

func (p *Proxy) serve(client net.Conn) {
	defer p.drop(client)
	if !p.track(client) || !p.pass(&p.up) {
		return
	}
	server, err := net.Dial("tcp", p.target) //nolint:noctx // loopback; ends with the connection
	if err != nil {
		return
	}
	defer p.drop(server)
	if !p.track(server) {
		return
	}
	var replies sync.WaitGroup
	replies.Go(func() { p.copy(client, server, &p.down) })
	p.copy(server, client, &p.up)
	replies.Wait()
}

func (p *Proxy) copy(to, from net.Conn, open *bool) {
	defer to.Close()
	defer from.Close()
	buffer, kept := make([]byte, 64<<10), 0
	for {
		n, err := from.Read(buffer[kept:])
		n += kept
		if kept = n; err == nil && n < len(buffer) && p.partial(open, buffer[:n]) {
			continue
		}
		if kept = 0; !p.passRead(open, n) {
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.connections, c)
	c.Close()
}

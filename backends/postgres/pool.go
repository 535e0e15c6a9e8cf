package postgres

import (
	"context"
	"sync"
)

// pool keeps a few idle connections. A new one is opened in the background, so that a server that
// takes longer to log in than one call may wait is reached by the next call.
type pool struct {
	open func() (*link, error)
	run  func(func()) error

	mu     sync.Mutex
	idle   []*link
	dials  []*dial
	closed bool
}

// mostIdle and mostDials bound what one process holds. A call that finds mostDials under way waits
// for the oldest.
const (
	mostIdle  = 3
	mostDials = 3
)

// dial is one connection being opened.
type dial struct {
	done    chan struct{}
	link    *link // until somebody takes it
	err     error
	waiting int
}

// take returns an idle connection, or a new one if there is none or with fresh.
func (p *pool) take(ctx context.Context, fresh bool) (*link, error) {
	for {
		if !fresh {
			if l := p.pop(); l != nil {
				return l, nil
			}
		}
		d, err := p.dial()
		if err != nil {
			return nil, err
		}
		select {
		case <-d.done:
		case <-ctx.Done():
		}
		if l := p.leave(d, ctx.Err() == nil); l != nil {
			return l, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case d.err != nil:
			return nil, d.err
		}
	}
}

// pop returns an idle connection that is not known to be dead.
func (p *pool) pop() *link {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		l := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if l.PgConn().CheckConn() == nil { //nolint:staticcheck // Ping costs a round trip; a hedge covers what this misses
			return l
		}
		l.close()
	}
}

// dial joins a connection being opened.
func (p *pool) dial() (*dial, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if len(p.dials) >= mostDials {
		p.dials[0].waiting++
		return p.dials[0], nil
	}
	d := &dial{done: make(chan struct{}), waiting: 1}
	if err := p.run(func() { p.finish(d) }); err != nil {
		return nil, err
	}
	p.dials = append(p.dials, d)
	return d, nil
}

func (p *pool) finish(d *dial) {
	l, err := p.open()
	p.mu.Lock()
	for i := range p.dials {
		if p.dials[i] == d {
			p.dials = append(p.dials[:i], p.dials[i+1:]...)
			break
		}
	}
	d.link, d.err = l, err
	abandoned := l != nil && d.waiting == 0
	close(d.done)
	p.mu.Unlock()
	if abandoned {
		p.give(l)
	}
}

// leave ends the wait for d. The first to leave after its end takes the connection; if nobody wants
// it, it becomes idle.
func (p *pool) leave(d *dial, want bool) *link {
	p.mu.Lock()
	d.waiting--
	l := d.link
	if l != nil && (want || d.waiting == 0) {
		d.link = nil
	} else {
		l = nil
	}
	p.mu.Unlock()
	if l != nil && !want {
		p.give(l)
		return nil
	}
	return l
}

// give makes a connection idle if it can be used again.
func (p *pool) give(l *link) {
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < mostIdle && !l.IsClosed() && l.PgConn().TxStatus() == 'I'
	if keep {
		p.idle = append(p.idle, l)
	}
	p.mu.Unlock()
	if !keep {
		l.close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, l := range idle {
		l.close()
	}
}

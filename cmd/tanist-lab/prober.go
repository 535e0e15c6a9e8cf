package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// prober sends requests at fixed times, whether or not earlier ones were answered. (A closed loop
// would stop asking during an outage and see one failure instead of many.)
type prober struct {
	name  string
	every time.Duration
	send  func(ctx context.Context, n int) (answer, error)
	file  *syncFile // notes the answers here instead of keeping them; nil: kept

	mu   sync.Mutex
	seen []probe
}

// newVirtualProber writes a row through the virtual URL with each request, over a new connection
// like a new user; confirmed rows are recorded like the agents' work. A nil dial connects as usual.
func newVirtualProber(url string, every time.Duration, notes *syncFile, dial func(ctx context.Context, network, address string) (net.Conn, error)) *prober {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	run := election.BootClock()
	return &prober{name: "the virtual URL", every: every, send: func(ctx context.Context, n int) (answer, error) {
		id := fmt.Sprintf("user-%d-%d", run, n)
		a, err := sendWork(ctx, client, url, id)
		if err != nil {
			return a, err
		}
		return a, notes.line("%s", (confirmed{ID: id, Term: a.Term, At: election.BootClock()}).line())
	}}
}

// newDirectProber asks one controller who it is, past the virtual URL.
func newDirectProber(name, url string, every time.Duration) *prober {
	client := &http.Client{Timeout: 500 * time.Millisecond, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	return &prober{name: name, every: every, send: func(ctx context.Context, _ int) (answer, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/whoami", http.NoBody)
		if err != nil {
			return answer{}, err
		}
		return ask(client, req)
	}}
}

// maxInFlight bounds the requests that pile up at a hung controller.
const maxInFlight = 400

// run probes until ctx ends, and returns when the last response is in.
func (p *prober) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxInFlight)
	ticker := time.NewTicker(p.every)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			p.note(probe{Sent: election.BootClock(), Answered: election.BootClock(), Err: "too many requests without an answer"})
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			pr := probe{Sent: election.BootClock()}
			a, err := p.send(ctx, n)
			pr.Answered, pr.Answer = election.BootClock(), a
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				pr.Err = err.Error()
			}
			p.note(pr)
		})
	}
}

func (p *prober) note(pr probe) {
	if p.file != nil {
		if err := p.file.line("%s", pr.line()); err != nil {
			fmt.Printf("cannot note an answer of %s: %v\n", p.name, err)
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, pr)
}

// since returns what was sent or answered at or after from.
func (p *prober) since(from election.Instant) []probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	var some []probe
	for _, pr := range p.seen {
		if pr.Answered >= from {
			some = append(some, pr)
		}
	}
	return some
}

// forget drops what was answered before from, so that a lab that runs for days does not grow.
func (p *prober) forget(from election.Instant) {
	kept := p.since(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = kept
}

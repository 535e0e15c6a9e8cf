package consul

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// spread sends requests to the first of several addresses that answers. One that does not answer is put last for a while.
//
// A request that may be carried out twice (see [repeatable]) is hedged: if there is no answer within a third of the time that
// it has, it is sent to the next address too. Any other goes to the next address only if it surely was not sent.
type spread struct {
	next  http.RoundTripper
	hosts []string // host:port, in order of preference

	mu    sync.Mutex
	first int              // where to begin
	until election.Instant // then the order of preference is tried again
}

const (
	avoidFor   = 5 * time.Second
	hedgeAfter = time.Second // without a deadline
)

type repeatableKey struct{}

// repeatable marks the requests of a context: carried out twice they do what they do once.
func repeatable(ctx context.Context) context.Context {
	return context.WithValue(ctx, repeatableKey{}, true)
}

func (s *spread) begin() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first != 0 && election.BootClock() >= s.until {
		s.first = 0
	}
	return s.first
}

// avoid makes requests begin after host i for a while.
func (s *spread) avoid(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == i {
		s.first, s.until = (i+1)%len(s.hosts), election.BootClock().Add(avoidFor)
	}
}

// reply is the outcome of one attempt.
type reply struct {
	host     int
	response *http.Response
	err      error
	cancel   context.CancelFunc
}

func (p reply) drop() {
	if p.response != nil {
		p.response.Body.Close()
	}
	p.cancel()
}

func (s *spread) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	blocking := r.URL.Query().Get("index") != ""
	again := r.Method == http.MethodGet || ctx.Value(repeatableKey{}) != nil
	replies := make(chan reply, len(s.hosts))
	first, sent, open := s.begin(), 0, 0
	// Whoever is not needed any more is cancelled when the caller is answered.
	cancels := map[int]context.CancelFunc{}
	defer func() {
		for _, cancel := range cancels {
			cancel()
		}
		if left := open; left > 0 {
			go func() {
				for range left {
					(<-replies).drop()
				}
			}()
		}
	}()
	send := func() error {
		i := (first + sent) % len(s.hosts)
		attempt, cancel := context.WithCancel(ctx)
		copied := r.Clone(attempt)
		if sent > 0 && r.Body != nil {
			body, err := r.GetBody()
			if err != nil {
				cancel()
				return err
			}
			copied.Body = body
		}
		copied.URL.Host, copied.Host = s.hosts[i], s.hosts[i]
		sent++
		open++
		cancels[i] = cancel
		go func() {
			response, err := s.next.RoundTrip(copied) //nolint:bodyclose // whoever receives the reply closes it
			replies <- reply{i, response, err, cancel}
		}()
		return nil
	}
	if err := send(); err != nil {
		return nil, err
	}
	var hedge <-chan time.Time
	if again && !blocking {
		wait := hedgeAfter
		if end, ok := ctx.Deadline(); ok {
			wait = time.Until(end) / 3
		}
		timer := time.NewTicker(max(wait, time.Millisecond))
		defer timer.Stop()
		hedge = timer.C
	}
	var last *reply
	for {
		select {
		case <-hedge:
			if sent < len(s.hosts) {
				if err := send(); err != nil {
					return nil, err
				}
			}
		case got := <-replies:
			open--
			delete(cancels, got.host)
			failed := got.err != nil || (again && got.response.StatusCode >= http.StatusInternalServerError)
			if !failed {
				if last != nil {
					last.drop()
				}
				if got.host != first {
					s.avoid(first) // it was slower than somebody who was asked later
				}
				got.response.Body = &finishing{got.response.Body, got.cancel}
				return got.response, nil
			}
			if !errors.Is(context.Cause(ctx), context.Canceled) {
				s.avoid(got.host)
			}
			if last != nil {
				last.drop()
			}
			last = &got
			if sent < len(s.hosts) && ctx.Err() == nil && (again || notSent(got.err)) {
				if err := send(); err != nil {
					got.drop()
					return nil, err
				}
				continue
			}
			if open > 0 {
				continue
			}
			if got.err != nil {
				got.cancel()
				return nil, got.err
			}
			got.response.Body = &finishing{got.response.Body, got.cancel}
			return got.response, nil
		}
	}
}

// notSent reports whether a request surely did not leave this host.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// finishing ends the context of a request when its reply has been read.
type finishing struct {
	io.ReadCloser
	done context.CancelFunc
}

func (f *finishing) Close() error {
	defer f.done()
	return f.ReadCloser.Close()
}

package election

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Hedge asks the endpoints of one store. The same rule applies to every store:
//
//   - A repeatable request, which has the same effect if it is carried out twice, also goes to the
//     next endpoint if an endpoint has failed or has not answered for a moment. The first definite
//     answer counts.
//   - Any other request goes to the next endpoint only if it certainly did not leave this host.
//     Otherwise its outcome is unknown, and the caller finds out by reading.
//
// It remembers which endpoint answers, and asks that one first. Its fields must not change after
// the first use. All methods may be called from any goroutine.
type Hedge struct {
	Endpoints int // the number of endpoints, at least one
	// Home is how long an endpoint that answered instead of the first stays preferred. Zero: until
	// it fails.
	Home time.Duration
	// Down reports whether an endpoint is known to be unreachable. Such endpoints are asked last.
	// May be nil.
	Down func(endpoint int) bool
	// Go starts an attempt. Nil: in a new goroutine.
	Go func(attempt func()) error
	// Moved is called when another endpoint becomes the first to be asked. It must not block. May
	// be nil.
	Moved func(from, to int)

	mu    sync.Mutex
	first int
	until time.Time // when the first endpoint is preferred again
}

// hedgeAfter is how long an endpoint may take before the next is asked too, if the deadline allows
// it.
const hedgeAfter = 200 * time.Millisecond

// Question is one request, for any endpoint.
type Question[T any] struct {
	// Repeatable: carrying it out twice has the same effect as once.
	Repeatable bool
	// Patient: an endpoint that takes its time has not failed (a query that blocks until something
	// changes).
	Patient bool
	// Ask makes one attempt and returns soon after ctx has ended. It calls sent before the request
	// leaves this host. ctx ends when the question is answered, by this attempt or another.
	Ask func(ctx context.Context, endpoint int, sent func()) (T, error)
	// Definite reports whether an error is the store's answer, so that no other endpoint is asked.
	// May be nil.
	Definite func(error) bool
	// Drop discards an answer that is not needed. May be nil.
	Drop func(T)
}

// Failures is why no endpoint answered: the error of each attempt, in the order of their ends.
type Failures []error

// Error implements error. A refusal of the credentials explains all others.
func (f Failures) Error() string {
	texts := make([]string, 0, len(f))
	for _, err := range f {
		if errors.Is(err, ErrDenied) {
			return err.Error()
		}
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// Unwrap exposes every failure to errors.Is and errors.As.
func (f Failures) Unwrap() []error { return f }

// Order returns the endpoints in the order in which they are asked.
func (h *Hedge) Order() []int {
	h.mu.Lock()
	if h.Home > 0 && h.first != 0 && !time.Now().Before(h.until) {
		h.first = 0
	}
	first := h.first
	h.mu.Unlock()
	all := make([]int, 0, h.Endpoints)
	var down []int
	for i := range h.Endpoints {
		endpoint := (first + i) % h.Endpoints
		if h.Down != nil && h.Down(endpoint) {
			down = append(down, endpoint)
		} else {
			all = append(all, endpoint)
		}
	}
	return append(all, down...)
}

// Prefer makes an endpoint the first to be asked.
func (h *Hedge) Prefer(endpoint int) { h.move(-1, endpoint) }

// Avoid makes an endpoint the last to be asked, if it was the first.
func (h *Hedge) Avoid(endpoint int) { h.move(endpoint, (endpoint+1)%h.Endpoints) }

func (h *Hedge) move(only, to int) {
	h.mu.Lock()
	from := h.first
	if only >= 0 && from != only || from == to {
		h.mu.Unlock()
		return
	}
	h.first, h.until = to, time.Now().Add(h.Home)
	h.mu.Unlock()
	if h.Moved != nil {
		h.Moved(from, to)
	}
}

// attempt is the result of one endpoint.
type attempt[T any] struct {
	endpoint int
	sent     *atomic.Bool
	value    T
	err      error
}

// asking is one question under way.
type asking[T any] struct {
	h        *Hedge
	q        Question[T]
	order    []int // not asked yet
	patience time.Duration
	results  chan attempt[T]
	running  int
	sent     *atomic.Bool       // of the last attempt
	giveUp   context.CancelFunc // of the last attempt
}

// FirstAnswer returns the first definite answer to q. If there is none, the error is a [Failures],
// and the value is that of the last attempt.
func FirstAnswer[T any](ctx context.Context, h *Hedge, q Question[T]) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &asking[T]{h: h, q: q, order: h.Order(), results: make(chan attempt[T], h.Endpoints)}
	defer a.leave()
	a.patience = hedgeAfter
	if deadline, ok := ctx.Deadline(); ok {
		a.patience = min(a.patience, time.Until(deadline)/time.Duration(h.Endpoints+1))
	}
	a.patience = max(a.patience, time.Millisecond)
	var last attempt[T]
	if err := a.next(ctx); err != nil {
		return last.value, err
	}
	slow := time.NewTicker(a.patience)
	defer slow.Stop()
	var failures Failures
	for {
		select {
		case <-slow.C:
			if ctx.Err() != nil {
				continue // the attempts end too, and report why
			}
			if err := a.slow(ctx); err != nil {
				return last.value, err
			}
		case got := <-a.results:
			a.running--
			if got.err == nil || q.Definite != nil && q.Definite(got.err) {
				a.drop(len(failures) > 0, last.value)
				h.Prefer(got.endpoint)
				return got.value, got.err
			}
			if !errors.Is(context.Cause(ctx), context.Canceled) { // otherwise the caller gave up
				h.Avoid(got.endpoint)
			}
			a.drop(len(failures) > 0, last.value)
			last, failures = got, append(failures, got.err)
			if len(a.order) > 0 && ctx.Err() == nil && (q.Repeatable || !got.sent.Load()) {
				if err := a.next(ctx); err != nil {
					return last.value, err
				}
				slow.Reset(a.patience)
			} else if a.running == 0 {
				return last.value, failures
			}
		}
	}
}

// next asks the next endpoint.
func (a *asking[T]) next(ctx context.Context) error {
	endpoint := a.order[0]
	a.order = a.order[1:]
	ctx, cancel := context.WithCancel(ctx)
	sent := new(atomic.Bool)
	run := func() {
		defer cancel()
		value, err := a.q.Ask(ctx, endpoint, func() { sent.Store(true) })
		a.results <- attempt[T]{endpoint, sent, value, err}
	}
	if a.h.Go == nil {
		go run()
	} else if err := a.h.Go(run); err != nil {
		cancel()
		return err
	}
	a.running++
	a.sent, a.giveUp = sent, cancel
	return nil
}

// slow is called when the last endpoint asked has taken a while.
func (a *asking[T]) slow(ctx context.Context) error {
	switch {
	case len(a.order) == 0 || a.q.Patient:
	case a.q.Repeatable:
		return a.next(ctx)
	case !a.sent.Load(): // otherwise it is under way, and its answer is awaited
		a.giveUp() // its end makes room for the next
	}
	return nil
}

// leave abandons the attempts still under way.
func (a *asking[T]) leave() {
	if a.q.Drop == nil || a.running == 0 {
		return // the channel has room for all of them
	}
	go func() {
		for range a.running {
			a.drop(true, (<-a.results).value)
		}
	}()
}

func (a *asking[T]) drop(there bool, value T) {
	if there && a.q.Drop != nil {
		a.q.Drop(value)
	}
}

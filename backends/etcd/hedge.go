package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

const (
	// callLimit bounds calls whose context allows for more; the server itself gives up after 7 s.
	callLimit = 5 * time.Second
	// hedgeAfter is when the next endpoint is asked too, if there is time for it.
	hedgeAfter = 200 * time.Millisecond
)

// order returns the endpoints in the order in which to ask them: the one that answered last first, those that can't be
// connected to last.
func (s *Store) order() []*endpoint {
	first := int(s.first.Load())
	all := slices.Concat(s.endpoints[first:], s.endpoints[:first])
	slices.SortStableFunc(all, func(a, b *endpoint) int {
		switch down := a.down(); {
		case down == b.down():
			return 0
		case down:
			return 1
		}
		return -1
	})
	return all
}

// prefer asks e first from now on.
func (s *Store) prefer(e *endpoint) {
	i := int32(slices.Index(s.endpoints, e))
	if old := s.first.Swap(i); old != i {
		s.log.Debug().Str("from", s.endpoints[old].url).Str("to", e.url).Msg("another etcd endpoint answers first")
	}
}

// avoid asks e last from now on, if it was first.
func (s *Store) avoid(e *endpoint) {
	i := slices.Index(s.endpoints, e)
	if next := (i + 1) % len(s.endpoints); s.first.CompareAndSwap(int32(i), int32(next)) && next != i {
		s.log.Debug().Str("from", e.url).Str("to", s.endpoints[next].url).Msg("an etcd endpoint does not answer; asking another first")
	}
}

// step is the time to wait for one of n endpoints before the next is asked too.
func step(ctx context.Context, n int) time.Duration {
	d := hedgeAfter
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline)/time.Duration(n+1))
	}
	return max(d, time.Millisecond)
}

func final(err error) bool {
	return err == nil || errors.Is(err, election.ErrConflict) || errors.Is(err, election.ErrLost)
}

// hedge carries out a request that may be repeated. The next endpoint is asked when one has failed or has not answered
// for a moment; the first definite answer counts, and the other attempts are cancelled.
func hedge[T any](ctx context.Context, s *Store, verb string, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	type result struct {
		endpoint *endpoint
		value    T
		err      error
	}
	waiting := s.order()
	results := make(chan result, len(waiting))
	delay := step(ctx, len(waiting))
	timer := time.NewTimer(delay)
	defer timer.Stop()
	running := 0
	ask := func() error {
		e := waiting[0]
		waiting = waiting[1:]
		running++
		timer.Reset(delay)
		return s.spawn(func() {
			var r result
			r.endpoint = e
			r.err = e.do(ctx, &attempt{}, func(ctx context.Context, c *clientv3.Client) (err error) {
				r.value, err = f(ctx, c)
				return err
			})
			results <- r
		})
	}
	if err := ask(); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	var failures []error
	for {
		var next bool
		select {
		case r := <-results:
			if final(r.err) {
				s.prefer(r.endpoint)
				if r.err != nil {
					return none, fmt.Errorf("cannot %s: %w", verb, r.err)
				}
				return r.value, nil
			}
			running--
			s.avoid(r.endpoint)
			failures = append(failures, r.err)
			if running == 0 && len(waiting) == 0 {
				return none, summary(verb, failures)
			}
			next = true
		case <-timer.C:
			next = true
		case <-ctx.Done():
			// The attempts end with it and say what they were waiting for.
			for range running {
				r := <-results
				if final(r.err) {
					s.prefer(r.endpoint)
					if r.err != nil {
						return none, fmt.Errorf("cannot %s: %w", verb, r.err)
					}
					return r.value, nil
				}
				s.avoid(r.endpoint)
				failures = append(failures, r.err)
			}
			return none, summary(verb, failures)
		}
		if next && len(waiting) > 0 {
			if err := ask(); err != nil {
				return none, fmt.Errorf("cannot %s: %w", verb, err)
			}
		}
	}
}

// summary is the error of a request that no endpoint carried out.
func summary(verb string, failures []error) error {
	for _, err := range failures {
		if errors.Is(err, election.ErrDenied) {
			return fmt.Errorf("cannot %s: %w", verb, err)
		}
	}
	var others strings.Builder
	for _, err := range failures[1:] {
		others.WriteString("; " + err.Error())
	}
	return fmt.Errorf("cannot %s: %w%s", verb, failures[0], others.String())
}

// once carries out a request that must not be repeated: another endpoint is asked only when this one certainly was
// not sent anything.
func (s *Store) once(ctx context.Context, verb string, f func(context.Context, *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot %s: %w", verb, err)
	}
	all := s.order()
	delay := step(ctx, len(all))
	var failures []error
	for i, e := range all {
		var a attempt
		one, give := context.WithCancel(ctx)
		var late *time.Timer
		if i < len(all)-1 {
			late = time.AfterFunc(delay, func() {
				if !a.sent.Load() { // else it is under way, and its answer is awaited to the end
					give()
				}
			})
		}
		err := e.do(one, &a, f)
		if late != nil {
			late.Stop()
		}
		give()
		if final(err) {
			s.prefer(e)
			if err != nil {
				return fmt.Errorf("cannot %s: %w", verb, err)
			}
			return nil
		}
		s.avoid(e)
		failures = append(failures, err)
		if a.sent.Load() || ctx.Err() != nil {
			break
		}
	}
	return summary(verb, failures)
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
)

// The two ways to send a request, as the endpoints of a hedge: on a connection that exists, which may
// hang in a dead network, and on a new one.
const (
	warm = iota
	fresh
	ways
)

// repeatable sends a request that has the same effect if it is carried out twice.
func repeatable[T any](ctx context.Context, s *Store, verb string, f func(context.Context, *link) (T, error)) (T, error) {
	return ask(ctx, s, verb, true, f)
}

// once sends a request that must not be repeated.
func once[T any](ctx context.Context, s *Store, verb string, f func(context.Context, *link) (T, error)) (T, error) {
	return ask(ctx, s, verb, false, f)
}

func ask[T any](ctx context.Context, s *Store, verb string, again bool, f func(context.Context, *link) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	value, err := election.FirstAnswer(ctx, &s.hedge, election.Question[T]{
		Repeatable: again,
		Definite:   definite,
		Ask: func(ctx context.Context, way int, sent func()) (T, error) {
			return attempt(ctx, s, way == fresh, sent, f)
		},
	})
	if err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, unrepeated(err))
	}
	return value, nil
}

// unrepeated returns the first of several failures if the others say the same.
func unrepeated(err error) error {
	var all election.Failures
	if !errors.As(err, &all) {
		return err
	}
	for _, other := range all[1:] {
		if other.Error() != all[0].Error() {
			return err
		}
	}
	return all[0]
}

// definite reports whether an error is the store's answer.
func definite(err error) bool {
	return errors.Is(err, election.ErrConflict) || errors.Is(err, election.ErrLost)
}

func attempt[T any](ctx context.Context, s *Store, anew bool, sent func(), f func(context.Context, *link) (T, error)) (value T, err error) {
	l, err := s.pool.take(ctx, anew)
	if err != nil {
		return value, err
	}
	defer s.pool.give(l)
	if err := ctx.Err(); err != nil {
		return value, err
	}
	l.unconfirmed.Store(false)
	sent()
	if value, err = f(ctx, l); err != nil && !definite(err) {
		return value, meaning(err)
	}
	if l.unconfirmed.Load() {
		return value, errUnconfirmed
	}
	return value, err
}

// row reads the only row that a statement returns.
func row[T any](ctx context.Context, l *link, scan func(pgx.Row, *T) error, sql string, args ...any) (value T, err error) {
	err = scan(l.QueryRow(ctx, sql, args...), &value)
	return value, err
}

// one scans a row with one column.
func one[T any](r pgx.Row, to *T) error { return r.Scan(to) }

// newHedge returns the rule by which requests are repeated. The first way is always asked first.
func (s *Store) newHedge() election.Hedge {
	return election.Hedge{Endpoints: ways, Home: time.Nanosecond, Go: s.spawn}
}

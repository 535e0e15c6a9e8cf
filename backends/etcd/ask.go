package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

// callLimit bounds calls whose context allows more; the server itself gives up after 7 s.
const callLimit = 5 * time.Second

// hedge sends a repeatable request.
func hedge[T any](ctx context.Context, s *Store, verb string, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	return ask(ctx, s, verb, true, f)
}

// once sends a request that must not be repeated.
func (s *Store) once(ctx context.Context, verb string, f func(context.Context, *clientv3.Client) error) error {
	_, err := ask(ctx, s, verb, false, func(ctx context.Context, c *clientv3.Client) (struct{}, error) { return struct{}{}, f(ctx, c) })
	return err
}

func ask[T any](ctx context.Context, s *Store, verb string, repeatable bool, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	value, err := election.FirstAnswer(ctx, &s.hedge, election.Question[T]{
		Repeatable: repeatable,
		Definite:   func(err error) bool { return errors.Is(err, election.ErrConflict) || errors.Is(err, election.ErrLost) },
		Ask: func(ctx context.Context, endpoint int, sent func()) (value T, err error) {
			err = s.endpoints[endpoint].do(ctx, &attempt{sent: sent}, func(ctx context.Context, c *clientv3.Client) (err error) {
				value, err = f(ctx, c)
				return err
			})
			return value, err
		},
	})
	if err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	return value, nil
}

// preferred returns the endpoint to ask first.
func (s *Store) preferred() *endpoint { return s.endpoints[s.hedge.Order()[0]] }

package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/tanist/tanist/election"
)

// op is one operation of a transaction, with the meaning of its refusal.
type op struct {
	api.TxnOp
	refused error
}

// The refusals that election does not define.
var (
	errLockDelay = errors.New("the lock-delay of the last lease is not over")
	errNoEntry   = errors.New("the catalog entry of the cluster is missing")
	errMoved     = errors.New("the key has changed meanwhile")
	errRefused   = errors.New("the store refused the transaction")
)

func (s *Store) kv(verb api.KVOp, key string, refused error) op {
	return op{api.TxnOp{KV: &api.KVTxnOp{Verb: verb, Key: s.prefix + key}}, refused}
}

// set writes a key and unbinds it: a plain write would leave it bound to the session that locks it.
func (s *Store) set(key string, value []byte) []op {
	write := s.kv(api.KVSet, key, nil)
	write.KV.Value = value
	return []op{s.remove(key), write}
}

// bind writes a key and locks it, even if another session locked it before.
func (s *Store) bind(key string, value []byte, lease election.LeaseID) []op {
	return []op{s.remove(key), s.lock(key, value, lease, election.ErrConflict)}
}

func (s *Store) lock(key string, value []byte, lease election.LeaseID, refused error) op {
	o := s.kv(api.KVLock, key, refused)
	o.KV.Value, o.KV.Session = value, string(lease)
	return o
}

func (s *Store) remove(key string) op { return s.kv(api.KVDelete, key, nil) }

func (s *Store) absent(key string, refused error) op { return s.kv(api.KVCheckNotExists, key, refused) }

func (s *Store) unchanged(key string, version election.Version, refused error) op {
	if version == 0 {
		return s.absent(key, refused)
	}
	o := s.kv(api.KVCheckIndex, key, refused)
	o.KV.Index = uint64(version)
	return o
}

// bound is the precondition that a key is locked by lease.
func (s *Store) bound(key string, lease election.LeaseID) op {
	o := s.kv(api.KVCheckSession, key, election.ErrLost)
	o.KV.Session = string(lease)
	return o
}

// commit runs a transaction: all of it or, if it returns ErrConflict, ErrLost, ErrDenied or another
// refusal, nothing of it.
func (s *Store) commit(ctx context.Context, ops []op) (api.TxnResults, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	list := make(api.TxnOps, len(ops))
	for i := range ops {
		list[i] = &ops[i].TxnOp
	}
	ok, response, _, err := s.client.Txn().Txn(list, consistent(ctx))
	if err != nil {
		return nil, known(err)
	}
	if ok {
		return response.Results, nil
	}
	return nil, refusal(ops, response.Errors)
}

// refusal combines the refusals of a transaction into one. A lost lease outweighs a failed
// precondition, because the caller can do nothing with it.
func refusal(ops []op, refused api.TxnErrors) error {
	var worst error
	var what string
	weigh := func(err error, text string) {
		if weight(err) > weight(worst) {
			worst, what = err, text
		}
	}
	for _, r := range refused {
		switch {
		case deniedText(r.What):
			weigh(election.ErrDenied, r.What)
		case strings.Contains(r.What, "invalid session"), strings.Contains(r.What, "missing session"):
			weigh(election.ErrLost, r.What)
		case strings.Contains(r.What, "due to lock delay"):
			weigh(errLockDelay, r.What)
		case strings.Contains(r.What, "Missing node registration"):
			weigh(errNoEntry, r.What)
		case r.OpIndex >= 0 && r.OpIndex < len(ops) && ops[r.OpIndex].refused != nil:
			weigh(ops[r.OpIndex].refused, r.What)
		default:
			weigh(errRefused, r.What)
		}
	}
	if worst == nil {
		return errors.New("the store refused the transaction and did not say why")
	}
	return fmt.Errorf("%w (%s)", worst, what)
}

// weight ranks refusals; one that is not listed weighs most.
func weight(err error) int {
	order := []error{nil, errRefused, errNoEntry, errMoved, errLockDelay, election.ErrConflict, election.ErrLost}
	for i, e := range order {
		if errors.Is(err, e) {
			return i
		}
	}
	return len(order)
}

func deniedText(text string) bool {
	return strings.Contains(text, "Permission denied") || strings.Contains(text, "ACL not found") || strings.Contains(text, "lacks permission")
}

// known recognizes the request errors with a definite meaning; all others remain unknown outcomes.
func known(err error) error {
	var status api.StatusError
	switch {
	case errors.As(err, &status) && (status.Code == http.StatusForbidden || status.Code == http.StatusUnauthorized):
		return fmt.Errorf("%w: %s", election.ErrDenied, strings.TrimSpace(status.Body))
	case deniedText(err.Error()):
		return fmt.Errorf("%w: %v", election.ErrDenied, err)
	}
	return err
}

func consistent(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

func write(ctx context.Context) *api.WriteOptions { return new(api.WriteOptions).WithContext(ctx) }

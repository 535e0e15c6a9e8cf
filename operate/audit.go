package operate

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/tanist/tanist/election"
)

// auditsKept bounds the records in the store.
const auditsKept = 200

// Operation is a verb that has begun.
type Operation struct {
	ID string // letters and digits; unique

	cluster *Cluster
	verb    Verb
	record  election.Audit
	silent  bool // it changes nothing, so there is nothing to record
}

// Asker is who asks, for the record.
type Asker struct {
	Via  string // how he was recognized
	Role string
}

// Begin records the operation and begins it, after its Check. A failure to record it does not stop
// it: unrecorded is then not nil, for a log. If err is not nil, nothing follows.
func (c *Cluster) Begin(ctx context.Context, v Verb, who Asker) (o *Operation, unrecorded, err error) {
	host, _ := os.Hostname() // for people
	id := rand.Text()[:16]
	o = &Operation{ID: id, cluster: c, verb: v, record: election.Audit{
		ID: id, At: time.Now().UTC(), By: cmp.Or(c.By, "unknown"), Role: who.Role, Via: who.Via, On: host, Command: v.Command(), Outcome: election.OutcomeOpen,
	}}
	if n, ok := v.(interface{ nothing(*Cluster) bool }); ok {
		o.silent = n.nothing(c)
	}
	unrecorded = o.write(ctx)
	if err := v.Begin(ctx, c); err != nil {
		return nil, errors.Join(unrecorded, o.end(ctx, err)), err
	}
	return o, unrecorded, nil
}

// Record returns the record of the operation.
func (o *Operation) Record() election.Audit { return o.record }

// Follow waits until the operation has ended, and records how. It works even if ctx ends.
func (o *Operation) Follow(ctx context.Context, say Say) (unrecorded, err error) {
	err = o.verb.Follow(ctx, o.cluster, say)
	return o.end(context.WithoutCancel(ctx), err), err
}

func (o *Operation) end(ctx context.Context, err error) error {
	o.record.Outcome, o.record.Ended = election.OutcomeDone, time.Now().UTC()
	if err != nil {
		o.record.Outcome = Clean(err.Error())
	}
	return o.write(ctx)
}

// write writes the record, and removes those that are too old when it is new.
func (o *Operation) write(ctx context.Context) error {
	if o.silent {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	s, key := o.cluster.Store, election.AuditKey(o.record)
	begins := o.record.Ended.IsZero()
	if err := s.Put(ctx, election.Put{Key: key, Value: o.record.Encode()}); err != nil {
		return WriteError(err, "the record of the operation")
	}
	if !begins {
		return nil
	}
	entries, err := s.List(ctx, election.AuditPrefix)
	if err != nil {
		return ReadError(err, "cannot read the records of operations")
	}
	for _, e := range entries[:max(0, len(entries)-auditsKept)] {
		if err := s.Delete(ctx, e.Key, 0); err != nil {
			return WriteError(err, "the end of an old record")
		}
	}
	return nil
}

// Run carries out a verb after its Check, and records it.
func (c *Cluster) Run(ctx context.Context, v Verb, who Asker, say Say) (unrecorded, err error) {
	o, unrecorded, err := c.Begin(ctx, v, who)
	if err != nil {
		return unrecorded, err
	}
	later, err := o.Follow(ctx, say)
	return errors.Join(unrecorded, later), err
}

// ReadAudit returns the records of operations, newest first. It skips unreadable entries.
func ReadAudit(ctx context.Context, keys election.Keys) ([]election.Audit, error) {
	entries, err := keys.List(ctx, election.AuditPrefix)
	if err != nil {
		return nil, err
	}
	all := []election.Audit{}
	for _, e := range slices.Backward(entries) {
		if a, err := election.DecodeAudit(e.Value); err == nil {
			all = append(all, a)
		}
	}
	return all, nil
}

package election

import (
	"context"
	"errors"
	"fmt"
)

// Proof is what moves a validity: as of a request that was sent at a known instant, nobody but this
// holder could act. Only the functions of this file make one, each from the evidence that it names.
// A prolonged lease is no such evidence, because it does not involve the role key: [Backend.Renew]
// gives no Proof.
type Proof struct {
	sent Instant // the validity counts from here; the zero Proof proves nothing
}

// errForeign: the role key is bound to our lease, but another wrote its value.
var errForeign = errors.New("the role key is bound to this lease, and somebody else wrote its value")

// errElsewhere: another store answered, for example one restored from a backup. Its answers were
// true once.
var errElsewhere = fmt.Errorf("%w: the store is not the one that the reign began in", ErrLost)

// prove asks the store in which the reign began, and proves that the role key is bound to the
// lease, that its value is the holder's own, and that the beat was written if h.Beat. It also
// returns the role key, so that the caller can check whether it is up to date.
func prove(ctx context.Context, b Backend, clock Clock, h Hold, in Origin, mine func(Active) bool) (Proof, Active, error) {
	sent := clock()
	entry, err := b.Hold(ctx, h)
	if err != nil {
		return Proof{}, Active{}, err
	}
	if !entry.Origin.continues(in) {
		return Proof{}, Active{}, errElsewhere
	}
	a, err := DecodeActive(entry.Value)
	if err != nil {
		return Proof{}, a, fmt.Errorf("%w: %v", errForeign, err)
	}
	if entry.Lease != h.Lease || !mine(a) {
		return Proof{}, a, fmt.Errorf("%w: it has %s, term %d", errForeign, a.Controller, a.Term)
	}
	return Proof{sent}, a, nil
}

// claimed returns the proof of a claim that the store carried out: it bound the role key, and wrote
// the beat. The validity counts from the request for the lease, because the lease lives from then.
func claimed(granted Instant) Proof { return Proof{granted} }

// handed returns the proof of a hand-over: it bound the role key to the heir's lease, and wrote the
// beat. That happened after elsewhere, when a read was sent that still showed the role key bound to
// another lease. The heir's lease lives from its last prolongation.
func handed(elsewhere, prolonged Instant) Proof { return Proof{min(elsewhere, prolonged)} }

// promised returns the proof given by all passives that may claim: each promised not to for one
// validity, after a request sent at sent.
func promised(sent Instant) Proof { return Proof{sent} }

// kept is no proof. The operator chose to continue without one ([StoreLossKeep]).
func kept(now Instant) Proof { return Proof{now} }

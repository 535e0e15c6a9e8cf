package election

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// StoreLoss is what a holder does when its renewals get no answer from the store. An answer that
// the lease is lost ends the reign under every policy.
type StoreLoss string

const (
	// StoreLossStop ends the reign before the validity does.
	StoreLossStop StoreLoss = "stop"
	// StoreLossFailsafe continues the reign for as long as every passive that may take over
	// promises, directly and each time anew, to leave the lease to the holder for one validity. The
	// first missing answer ends it.
	//
	// The list of those who may take over is in the term record. An unlisted passive does not take
	// over unless the holder released. Every claim compares the term record, so no claim is based
	// on an outdated list. The holder asks everybody whom it ever tried to list, until a list
	// without them is known to be written. If the record is lost, the list seen last counts.
	StoreLossFailsafe StoreLoss = "failsafe"
	// StoreLossKeep continues the reign without any promise. Another may claim meanwhile. Then only
	// a fence at the repository separates the two, and both may serve users until the store is
	// reachable again.
	StoreLossKeep StoreLoss = "keep"
)

// Ask is a holder's request for a promise not to claim.
type Ask struct {
	Controller  string        `json:"controller"`
	Incarnation string        `json:"incarnation"`
	Term        Term          `json:"term"`
	Validity    time.Duration `json:"validity"` // the length of the promise, from receipt of the ask
	Passives    []Controller  `json:"-"`        // the controllers to ask
}

// promise is what a candidate has promised to a holder. A promise and a claim exclude each other.
type promise struct {
	mu       sync.Mutex
	to       string
	till     Instant
	claiming bool // a claim is under way, or a reign
	latest   Term // the latest reign that is known of, also from earlier processes
}

// seen notes a reign that is known of.
func (p *promise) seen(reign Term) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latest = max(p.latest, reign)
}

func (p *promise) get() (to string, till Instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.to, p.till
}

func (p *promise) beginClaim(now Instant) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now < p.till {
		return false
	}
	p.claiming = true
	return true
}

func (p *promise) endClaim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claiming = false
}

// Promise promises the holder a.Controller not to claim for a.Validity, by the holder's clock. It
// refuses while this side claims or reigns, or if it knows a later term. It may be called from any
// goroutine.
func (e *Elector) Promise(a Ask, seen Snapshot) error {
	if a.Controller == "" || a.Term == 0 || a.Validity <= 0 {
		return errors.New("cannot promise anything: the ask is incomplete")
	}
	now := e.Clock()
	e.promise.mu.Lock()
	defer e.promise.mu.Unlock()
	if latest := max(seen.Breadcrumb.Of(), e.promise.latest); latest > a.Term {
		return fmt.Errorf("cannot promise anything for term %d: term %d has been seen", a.Term, latest)
	}
	if e.promise.claiming {
		return fmt.Errorf("cannot promise anything for term %d: this side claims or holds the lease", a.Term)
	}
	e.promise.to = a.Controller
	e.promise.till = max(e.promise.till, now.Add(Outlast(a.Validity)))
	return nil
}

// heirs returns the list of those who may take over from a holder, in order: the controllers that
// are present, and the holder itself, because the next process of its sidecar may. Invalid names
// are not listed.
func heirs(self string, present map[string]Controller) string {
	names := append(slices.Collect(maps.Keys(present)), self)
	slices.Sort(names)
	return strings.Join(slices.DeleteFunc(names, func(name string) bool { return CheckName(name) != nil }), ",")
}

// isHeir reports whether a controller is on a list.
func isHeir(list, name string) bool { return slices.Contains(strings.Split(list, ","), name) }

// wants returns the list that the term record must have. It is empty unless the holder may continue
// on the promises of the passives. Once a list was sent, everybody on it must promise, because it
// may be written even if the reply is lost.
func (t *Tenure) wants(snap Snapshot) (list string, present map[string]Controller) {
	if t.onStoreLoss != StoreLossFailsafe {
		return "", nil
	}
	self := t.crumb.Controller
	present = map[string]Controller{}
	for _, c := range snap.Controllers {
		if c.Name != self {
			present[c.Name] = c
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked == nil {
		t.asked = map[string]Controller{}
	}
	maps.Copy(t.asked, present)
	return heirs(self, present), present
}

// errNotAlone: the policy does not allow the reign to continue without the store.
var errNotAlone = errors.New("the reign does not continue without the store")

// proveAlone returns what extends the validity while the store is unavailable, if the policy allows
// that.
func (t *Tenure) proveAlone(ctx context.Context) (Proof, error) {
	sent := t.clock()
	switch t.onStoreLoss {
	case StoreLossKeep:
		return kept(sent), nil
	case StoreLossFailsafe:
		t.mu.Lock()
		ask := Ask{
			Controller: t.record.Controller, Incarnation: t.record.Incarnation, Term: t.Term, Validity: t.timing.Validity,
			Passives: slices.Collect(maps.Values(t.asked)),
		}
		known := t.written != ""
		t.mu.Unlock()
		if !known || t.ask == nil {
			return Proof{}, errNotAlone // a list that was never written keeps nobody out
		}
		if err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error { return t.ask(ctx, ask) }); err != nil {
			return Proof{}, fmt.Errorf("the store is away, and not every passive promises to leave the lease: %v", err)
		}
		return promised(sent), nil
	}
	return Proof{}, errNotAlone
}

// goOnAlone extends the validity without the store, if the policy allows that.
func (t *Tenure) goOnAlone(ctx context.Context) {
	proof, err := t.proveAlone(ctx)
	if err != nil {
		if !errors.Is(err, errNotAlone) {
			t.fail(err)
		}
		return
	}
	if t.extend(proof) {
		t.mu.Lock()
		t.alone = true
		t.mu.Unlock()
	}
}

// Stranded reports whether no other candidate could take over now: the store is unavailable, and
// every passive that may take over has just promised not to. With [StoreLossKeep] that is unknown.
func (t *Tenure) Stranded(ctx context.Context) bool {
	if t.onStoreLoss != StoreLossFailsafe {
		return false
	}
	err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error {
		_, err := t.backend.Read(ctx)
		return err
	})
	if err == nil {
		return false
	}
	proof, err := t.proveAlone(ctx)
	return err == nil && t.extend(proof)
}

// Alone reports whether the reign continues without the store.
func (t *Tenure) Alone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.alone
}

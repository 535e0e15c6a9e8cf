package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// StoreLoss is what a holder does when its renewals get no answer from the store. A store that answers that the lease is
// lost ends the reign under every policy.
type StoreLoss string

const (
	// StoreLossStop ends the reign before the validity does.
	StoreLossStop StoreLoss = "stop"
	// StoreLossFailsafe goes on for as long as every passive that may take over promises, directly and each time anew,
	// to leave the holder alone for one validity. One that does not answer ends it.
	//
	// Who may take over is a list that the holder keeps in the store (key "failsafe"): a passive that is not on the list of
	// the last holder does not take over unless that holder released. The holder asks everybody whom it ever tried to
	// put on the list, until a list without them is known to be written.
	StoreLossFailsafe StoreLoss = "failsafe"
	// StoreLossKeep goes on without anybody's promise. Another may claim meanwhile: only a fence at the repository keeps
	// the two apart, and both may serve users until the store can be reached again.
	StoreLossKeep StoreLoss = "keep"
)

// Ask is a holder's request to be left alone.
type Ask struct {
	Controller  string        `json:"controller"`
	Incarnation string        `json:"incarnation"`
	Term        Term          `json:"term"`
	Validity    time.Duration `json:"validity"` // for so long, from when the ask was received
	Passives    []Controller  `json:"-"`        // whom to ask
}

// failsafeKey holds the list of who may take over from a holder that did not release.
const failsafeKey = "failsafe"

type failsafeList struct {
	Term        Term     `json:"term"`
	Controllers []string `json:"controllers"`
}

// promise is what a candidate has promised to a holder. A promise and a claim exclude each other.
type promise struct {
	mu       sync.Mutex
	to       string
	till     Instant
	claiming bool // a claim is under way, or a reign
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

// StandBack promises the holder a.Controller not to claim for a.Validity, as the holder's clock counts it. It refuses while this
// side claims or reigns, or knows of a later term. It may be called from any goroutine.
func (e *Elector) StandBack(a Ask, seen Snapshot) error {
	if a.Controller == "" || a.Term == 0 || a.Validity <= 0 {
		return errors.New("cannot promise anything: the ask is incomplete")
	}
	if seen.Breadcrumb.Term > a.Term {
		return fmt.Errorf("cannot stand back for term %d: term %d has been seen", a.Term, seen.Breadcrumb.Term)
	}
	e.promise.mu.Lock()
	defer e.promise.mu.Unlock()
	if e.promise.claiming {
		return fmt.Errorf("cannot stand back for term %d: this side claims or holds the lease", a.Term)
	}
	e.promise.to = a.Controller
	e.promise.till = max(e.promise.till, e.Clock().Add(Outlast(a.Validity)))
	return nil
}

// listed reports whether this candidate may take over from the last holder. A holder that released, or one without
// failsafe, keeps nobody out.
func (e *Elector) listed(ctx context.Context, self Self, snap Snapshot, d Decision) (bool, error) {
	if d.NotBefore == 0 && d.Silent == 0 {
		return true, nil
	}
	var entry Entry
	err := e.bounded(ctx, func(ctx context.Context) (err error) {
		entry, err = e.Backend.Get(ctx, failsafeKey)
		return err
	})
	if err != nil {
		return false, err
	}
	list, ok := readList(entry)
	return !ok || list.Term != snap.Breadcrumb.Term || slices.Contains(list.Controllers, self.Name), nil
}

// readList reads a list. One that is absent, or that a stranger wrote, is none: no holder relies on it, because a holder
// relies on what it has written itself.
func readList(e Entry) (list failsafeList, ok bool) {
	return list, e.Version != 0 && json.Unmarshal(e.Value, &list) == nil
}

// keepList keeps the list of who may take over up to date.
func (e *Elector) keepList(ctx context.Context, t *Tenure, snap Snapshot) {
	if e.OnStoreLoss != StoreLossFailsafe {
		return
	}
	self := e.Self().Name
	present := map[string]Controller{}
	for _, c := range snap.Controllers {
		if c.Name != self {
			present[c.Name] = c
		}
	}
	names := slices.Sorted(maps.Keys(present))
	t.mu.Lock()
	if t.asked == nil {
		t.asked = map[string]Controller{}
	}
	maps.Copy(t.asked, present) // from the attempt on: the list may be written although the reply gets lost
	same := t.written != nil && slices.Equal(names, t.written)
	t.mu.Unlock()
	if same {
		return
	}
	value := mustJSON(failsafeList{Term: t.Term, Controllers: append(slices.Clone(names), self)})
	err := e.bounded(ctx, func(ctx context.Context) error {
		// By compare-and-swap, so that a late write of an older holder can't undo it.
		entry, err := e.Backend.Get(ctx, failsafeKey)
		if err != nil {
			return err
		}
		if list, ok := readList(entry); ok && list.Term > t.Term {
			return ErrConflict
		}
		return e.Backend.Put(ctx, Put{Key: failsafeKey, Value: value, If: &entry.Version})
	})
	if err != nil {
		return // tried again with the next look
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written = append([]string{}, names...)
	t.asked = present
}

// goOnAlone extends the validity without the store, if the policy allows it.
func (t *Tenure) goOnAlone(ctx context.Context) {
	sent := t.clock()
	switch t.onStoreLoss {
	case StoreLossKeep:
	case StoreLossFailsafe:
		t.mu.Lock()
		ask := Ask{
			Controller: t.record.Controller, Incarnation: t.record.Incarnation, Term: t.Term, Validity: t.timing.Validity,
			Passives: slices.Collect(maps.Values(t.asked)),
		}
		known := t.written != nil
		t.mu.Unlock()
		if !known || t.vouch == nil {
			return // nobody is kept out by a list that was never written
		}
		if err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error { return t.vouch(ctx, ask) }); err != nil {
			t.fail(fmt.Errorf("the store is away, and not every passive vouches: %v", err))
			return
		}
	default:
		return
	}
	if t.extend(sent) {
		t.mu.Lock()
		t.alone = true
		t.mu.Unlock()
	}
}

// Alone reports whether the reign goes on without the store.
func (t *Tenure) Alone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.alone
}

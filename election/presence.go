package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Presence keeps a few keys of one process in the store for as long as it runs: its status, its role word. They are
// bound to a lease of their own, which says nothing about the right to act. The fields are set before Run and not
// changed after. Set and Unset may be called from any goroutine, before and during Run.
type Presence struct {
	Store interface {
		Keys
		Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)
		Renew(ctx context.Context, r Renewal) error
		Revoke(ctx context.Context, lease LeaseID) error
	}
	TTL time.Duration

	// Name is the key that no other live process may have ("controllers/ctl-a").
	Name string
	// Mine reports whether a value of Name was written by this process.
	Mine func(value []byte) bool
	// Dead reports whether the process that wrote the value of Name is known to be gone (same host, no such process).
	Dead func(value []byte) bool

	// Keep reports, when Run ends, whether the keys are to be left for a later process to take up. May be nil.
	Keep func() bool

	// Entered is called once, when Name is ours. It must not block. May be nil.
	Entered func()

	putting sync.Mutex // held during each write
	mu      sync.Mutex
	want    map[string][]byte
	stale   map[string]bool // keys whose stored value may differ from want
	changed chan struct{}
}

// ErrNameTaken: another live process has the name.
var ErrNameTaken = errors.New("the name is taken by another live process")

// Set makes key have value, soon and for as long as Run runs.
func (p *Presence) Set(key string, value []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.init()
	if old, ok := p.want[key]; ok && bytes.Equal(old, value) {
		return
	}
	p.want[key] = value
	p.touch(key)
}

// Unset stops keeping key, without removing it from the store: somebody else takes care of it now. It waits for a
// write that is under way, so that no write of the presence comes after.
func (p *Presence) Unset(key string) {
	p.putting.Lock()
	defer p.putting.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.init()
	delete(p.want, key)
	delete(p.stale, key)
}

func (p *Presence) init() {
	if p.want == nil {
		p.want, p.stale, p.changed = map[string][]byte{}, map[string]bool{}, make(chan struct{}, 1)
	}
}

func (p *Presence) touch(key string) {
	p.stale[key] = true
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Run keeps the keys until ctx ends, then removes them. It returns [ErrNameTaken] (wrapped, with who) if another live
// process has the name; store errors are outlived.
func (p *Presence) Run(ctx context.Context) error {
	p.mu.Lock()
	p.init()
	p.mu.Unlock()
	var lease LeaseID
	entered := false
	defer func() {
		if lease != "" && (p.Keep == nil || !p.Keep()) {
			_ = bounded(context.WithoutCancel(ctx), time.Second, func(ctx context.Context) error { return p.Store.Revoke(ctx, lease) })
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		case <-timer.C:
		}
		next := p.TTL / 3
		var err error
		if lease == "" {
			err = bounded(ctx, p.TTL/3, func(ctx context.Context) (err error) {
				lease, err = p.Store.Grant(ctx, p.TTL)
				return err
			})
			p.all()
		} else {
			err = bounded(ctx, p.TTL/3, func(ctx context.Context) error { return p.Store.Renew(ctx, Renewal{Lease: lease}) })
		}
		if err == nil {
			err = p.enter(ctx, lease)
		}
		if err == nil {
			if !entered && p.Entered != nil {
				p.Entered()
			}
			entered = true
			err = p.flush(ctx, lease)
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrNameTaken):
			return err
		case errors.Is(err, ErrLost):
			lease, next = "", 0
		default:
			next = min(next, time.Second)
		}
		timer.Reset(next)
	}
}

// all marks every key to be written again: the lease is new.
func (p *Presence) all() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.want {
		p.stale[key] = true
	}
}

// enter makes sure that Name is ours, bound to lease. It waits for the key of a process that may have died to end with
// its lease.
func (p *Presence) enter(ctx context.Context, lease LeaseID) error {
	if p.Name == "" {
		return nil
	}
	giveUp := time.Now().Add(2*p.TTL + time.Second)
	for ctx.Err() == nil {
		var e Entry
		err := bounded(ctx, p.TTL/3, func(ctx context.Context) (err error) {
			e, err = p.Store.Get(ctx, p.Name)
			return err
		})
		if err != nil {
			return err
		}
		if e.Version != 0 && p.Mine(e.Value) {
			return nil
		}
		if e.Version == 0 || p.Dead(e.Value) {
			p.mu.Lock()
			value := p.want[p.Name]
			p.mu.Unlock()
			version := e.Version
			err := bounded(ctx, p.TTL/3, func(ctx context.Context) error {
				return p.Store.Put(ctx, Put{Key: p.Name, Value: value, Lease: lease, If: &version})
			})
			if err == nil || !errors.Is(err, ErrConflict) {
				return err
			}
			continue
		}
		// A lease that nobody renews ends within its TTL and the store's slack.
		if time.Now().After(giveUp) {
			return fmt.Errorf("%w: %s is kept by %.200s", ErrNameTaken, p.Name, e.Value)
		}
		if err := bounded(ctx, p.TTL/3, func(ctx context.Context) error { return p.Store.Renew(ctx, Renewal{Lease: lease}) }); err != nil {
			return err
		}
		if !sleep(ctx, p.TTL/10) {
			break
		}
	}
	return ctx.Err()
}

// flush writes what is stale.
func (p *Presence) flush(ctx context.Context, lease LeaseID) error {
	put := func() (done bool, err error) {
		p.putting.Lock()
		defer p.putting.Unlock()
		p.mu.Lock()
		var key string
		var value []byte
		for k := range p.stale {
			key, value = k, p.want[k]
			break
		}
		if key == "" {
			p.mu.Unlock()
			return true, nil
		}
		delete(p.stale, key)
		p.mu.Unlock()
		err = bounded(ctx, p.TTL/3, func(ctx context.Context) error {
			return p.Store.Put(ctx, Put{Key: key, Value: value, Lease: lease})
		})
		if err != nil {
			p.mu.Lock()
			if _, ok := p.want[key]; ok {
				p.stale[key] = true
			}
			p.mu.Unlock()
		}
		return false, err
	}
	for {
		if done, err := put(); done || err != nil {
			return err
		}
	}
}

package sidecar

import (
	"context"
	"slices"
	"time"

	"github.com/tanist/tanist/election"
)

// Door is a way to the controller that the sidecar opens on its own host, such as a virtual IP. Two
// hosts with an open door are as bad for its users as two actives, so a door has a deadline of its
// own.
type Door interface {
	// Prepare does in advance what takes time in Open. It never blocks.
	Prepare()
	// Open lets users in. The door shuts at deadline, whatever happens to this process, unless
	// Extend moves the deadline first. An error means that users cannot get in here. Open keeps a
	// door open that an earlier process of this sidecar opened.
	Open(ctx context.Context, term election.Term, deadline election.Instant) error
	// Extend moves the deadline. It never blocks. It does not move a deadline that has passed.
	Extend(deadline election.Instant)
	// Shut returns nil when nobody can get in here any more. It may be called at any time, and
	// repeatedly.
	Shut(ctx context.Context) error
}

const (
	openWithin = 2 * time.Second
	shutWithin = 250 * time.Millisecond // before the controller is stopped
	shutFinal  = 15 * time.Second       // before the lease is released
)

// prepareDoor prepares an open door, and shuts one that an earlier process of this sidecar left
// open.
func (r *reign) prepareDoor(ctx context.Context) {
	if r.cfg.Door == nil {
		return
	}
	r.shutDoor(ctx, shutFinal)
	r.cfg.Door.Prepare()
}

// openDoor lets users in, after the controller was published.
func (r *reign) openDoor(ctx context.Context) error {
	if r.cfg.Door == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	r.ajar = true
	return r.cfg.Door.Open(ctx, r.tenure.Term, r.tenure.Deadline())
}

// extend moves all deadlines.
func (r *reign) extend(deadline election.Instant) {
	r.cfg.Controller.Extend(deadline)
	if r.cfg.Door != nil {
		r.cfg.Door.Extend(deadline)
	}
}

// shutDoor shuts the door if it may be open. If that cannot be confirmed, the next caller tries
// again.
func (s *Sidecar) shutDoor(ctx context.Context, within time.Duration) {
	if s.cfg.Door == nil || !s.ajar {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	if err := s.cfg.Door.Shut(ctx); err != nil {
		s.cfg.Log.Warn().Err(err).Uint64("term", uint64(s.board.term())).Msg("cannot confirm that the virtual IP was removed")
		return
	}
	s.ajar = false
}

// ShowVirtualIPs sets the addresses in the status of this sidecar. It may be called from any
// goroutine.
func (s *Sidecar) ShowVirtualIPs(all []election.VirtualIP) {
	if status, changed := s.board.show(all); changed {
		s.presence.Set(election.ControllerKey(s.cfg.Name), status.Encode())
	}
}

func (b *board) show(all []election.VirtualIP) (status election.Controller, changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = !slices.Equal(b.status.VirtualIPs, all)
	b.status.VirtualIPs = all
	return b.status, changed
}

package process

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// Verdict is what is known about a program. Not finding it is not a verdict: see
// [evidence.verdict].
type Verdict uint8

// What can be known of a program.
const (
	Unknown Verdict = iota // nothing shows whether it runs
	// the kernel, systemd or the program's own status command has shown that nothing of it runs
	Gone
	Running // something of it was seen alive, or can be started without us
)

func (v Verdict) String() string { return [...]string{"unknown", "gone", "running"}[v] }

// record is what the trace in the state directory says of an earlier run.
type record uint8

const (
	// nothing was started since the last run was shown to be gone, or the files are lost
	recordNone       record = iota
	recordOtherBoot         // the host was booted since
	recordUnreadable        // there is one, which tells nothing
	recordPresent
)

// evidence is what a look at the host has shown about one run. The decision whether a second
// program may be started follows from it.
type evidence struct {
	record record
	// somebody holds the guard's lock: a guard lives or is about to, whether it was found or not
	locked bool
	found  bool // something was found earlier in this look, without a record, and killed
	// guards, members of the tree's cgroups and processes with its mark that were found just now
	living  int
	group   bool // the tree was in a cgroup, in which nothing is
	orphans bool // the tree's orphans are our children, and there are none
	// outside is what the program's own commands, or systemd, say of it; asked tells whether there
	// was anybody to ask.
	asked   bool
	outside Verdict
}

// verdict decides what is known, and why.
func (e evidence) verdict() (Verdict, string) {
	switch {
	case e.living > 0:
		return Running, "processes of it are left"
	case e.locked:
		return Unknown, "its guard is alive and cannot be found"
	case e.record == recordOtherBoot:
		return Gone, "the host was booted since"
	case e.asked && e.outside == Running:
		return Running, "it runs without being below the guard"
	case e.record == recordNone && !e.found:
		return Gone, "nothing was started"
	case e.asked && e.outside == Unknown:
		return Unknown, "its own status tells nothing"
	case e.record == recordUnreadable:
		return Unknown, "the record of it cannot be read"
	case e.asked, e.group, e.orphans:
		return Gone, "nothing of it is left"
	}
	return Unknown, "its guard has ended without a word and it was not in a cgroup, so that nobody can tell whether a descendant is left"
}

// Driver keeps one program: [Exec], [Script] and [Systemd] do.
type Driver interface {
	Accompany(c *Companion)
	Prepare()
	Dismiss() error
	Start(ctx context.Context, env []string, deadline election.Instant) error
	Adopt(ctx context.Context) error
	Settle(ctx context.Context) error
	Extend(deadline election.Instant)
	Exited() <-chan struct{}
	Exit() string
	Stop(ctx context.Context, grace time.Duration) error
	Detach(ctx context.Context, until election.Instant) error
	PID() int
}

// Slot is the one place where a controller's program runs. It knows what an earlier process of the
// sidecar may have left there, and starts nothing next to it. Its methods are safe for concurrent
// use.
type Slot struct {
	Driver
	mu      sync.Mutex
	earlier Verdict          // what is known of that
	own     bool             // this process has started a program, or adopted one
	last    election.Instant // deadline
}

// NewSlot makes a slot for what d keeps. Nothing is known yet of an earlier process.
func NewSlot(d Driver) *Slot { return &Slot{Driver: d} }

// step is what has to be done before a slot may be used.
type step uint8

const (
	stepGo     step = iota // nothing
	stepSettle             // end, or wait out, what an earlier process left
	stepNone               // there is nothing to do it with
)

// mayStart decides what comes before a start.
func mayStart(earlier Verdict) step {
	if earlier == Gone {
		return stepGo
	}
	return stepSettle
}

// howToStop decides what to stop: our own program, what an earlier process left, or nothing.
func howToStop(earlier Verdict, own bool) step {
	switch {
	case own:
		return stepGo
	case earlier == Gone:
		return stepNone
	}
	return stepSettle
}

// Start starts the program, after it has ended what an earlier process of this sidecar may have
// left. What cannot be proved gone, although every deadline that it was given has passed, does not
// hold up a start for ever.
func (s *Slot) Start(ctx context.Context, env []string, deadline election.Instant) error {
	s.mu.Lock()
	earlier := s.earlier
	s.mu.Unlock()
	if mayStart(earlier) == stepSettle {
		if err := s.settle(ctx); err != nil && !errors.Is(err, election.ErrUnproven) {
			return err
		}
	}
	s.mu.Lock()
	s.own, s.last = true, deadline
	s.mu.Unlock()
	return s.Driver.Start(ctx, env, deadline)
}

// Adopt takes up what an earlier process left, and moves its deadline. After an error that is not
// [ErrNothingToAdopt] it is unknown whether something runs.
func (s *Slot) Adopt(ctx context.Context, deadline election.Instant) error {
	err := s.Driver.Adopt(ctx)
	s.mu.Lock()
	switch {
	case err == nil:
		s.own, s.earlier = true, Gone // it is our own from now on
	case errors.Is(err, ErrNothingToAdopt):
		s.earlier = Gone
	default:
		s.earlier = Unknown
	}
	s.mu.Unlock()
	if err == nil {
		s.Extend(deadline)
	}
	return err
}

// Settle ends what an earlier process of this sidecar left, unless this one has something running
// already.
func (s *Slot) Settle(ctx context.Context) error {
	s.mu.Lock()
	done := s.own || s.earlier == Gone
	s.mu.Unlock()
	if done {
		return nil
	}
	return s.settle(ctx)
}

func (s *Slot) settle(ctx context.Context) error {
	err := s.Driver.Settle(ctx)
	if err == nil || errors.Is(err, election.ErrUnproven) {
		s.mu.Lock()
		s.earlier = Gone // or as good as: no later look would prove more
		s.mu.Unlock()
	}
	return err
}

// Extend moves the deadline. It never blocks.
func (s *Slot) Extend(deadline election.Instant) {
	s.mu.Lock()
	s.last = deadline
	s.mu.Unlock()
	s.Driver.Extend(deadline)
}

// Stop ends the program, or what an earlier process left of it; see [Exec.Stop].
func (s *Slot) Stop(ctx context.Context, grace time.Duration) error {
	s.mu.Lock()
	how := howToStop(s.earlier, s.own)
	s.mu.Unlock()
	switch how {
	case stepSettle:
		return s.settle(ctx)
	case stepNone:
		return nil
	}
	return s.Driver.Stop(ctx, grace)
}

// Detach lets go of the program without ending it. It runs on until its deadline.
func (s *Slot) Detach() error {
	s.mu.Lock()
	own, last := s.own, s.last
	s.mu.Unlock()
	if !own {
		return errors.New("nothing is running")
	}
	ctx, cancel := context.WithTimeout(context.Background(), detachWithin)
	defer cancel()
	return s.Driver.Detach(ctx, last)
}

const detachWithin = time.Second

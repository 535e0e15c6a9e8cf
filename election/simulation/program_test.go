package simulation

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
	slots "github.com/tanist/tanist/process"
)

// tree is one run of a program with its guard, which are processes of their own. It is on record on its host before it
// begins. world.mu is held during its methods.
type tree struct {
	host *host
	id   string
	term election.Term

	owner    *process      // whose guard it is
	parent   bool          // owner started it, so that it can wait for its orphans
	lead     time.Duration // no deadline is further ahead than this when it is set
	deadline election.Instant
	timer    *time.Timer

	begun, running, over bool
	hidden               bool // a later process can't find it
	excused              bool // what was to end it was frozen or dead all together: that is beyond the guarantees
	started              chan struct{}
	open                 chan struct{}
	exited, gone         chan struct{}
	how                  string

	guardDead bool
	guardTill time.Time // the guard is frozen until then
	opensIn   time.Duration
	stopsIn   time.Duration
	diesIn    time.Duration
}

// launch makes a guard that will start the program.
func (h *host) launch(p *process, term election.Term, deadline election.Instant) *tree {
	h.runs++
	c := h.w.seed.of(h.name, h.runs).of("run", 0)
	t := &tree{
		host: h, id: fmt.Sprintf("%s/%d", h.name, h.runs), term: term, owner: p, parent: true, deadline: deadline, lead: max(h.timing.Validity, h.timing.TTL),
		started: make(chan struct{}), open: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}),
		opensIn: c.of("opens", 0).between(time.Millisecond, 300*time.Millisecond),
		stopsIn: c.of("stops", 0).between(time.Millisecond, 1500*time.Millisecond),
		diesIn:  c.of("dies", 0).between(100*time.Microsecond, 20*time.Millisecond),
	}
	if c.of("many", 0).one(4) { // a big tree takes longer, but not longer than the guard has
		t.diesIn = c.of("dies", 1).between(0, h.w.margin*3/4)
	}
	h.trace = t
	h.w.after(c.of("forks", 0).between(time.Millisecond, 25*time.Millisecond), t.fork)
	return t
}

// fork is the guard, when it is ready.
func (t *tree) fork() {
	w := t.host.w
	switch {
	case t.over:
		return
	case t.guardTill.After(w.now()):
		w.after(t.guardTill.Sub(w.now())+time.Microsecond, t.fork)
		return
	case t.host.clock() >= t.deadline:
		t.end("guard: the deadline has passed")
		return
	}
	t.begun, t.running = true, true
	w.began(t)
	close(t.started)
	t.timer = time.AfterFunc(t.host.until(t.deadline), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		t.look()
	})
	w.after(t.opensIn, func() {
		if !t.over {
			close(t.open)
			w.opened[fmt.Sprint(t.host.name, t.term)] = true
			w.work(t)
		}
	})
}

// look is the guard at its deadline.
func (t *tree) look() {
	w := t.host.w
	switch left := t.host.until(t.deadline); {
	case t.over || t.guardDead:
	case t.guardTill.After(w.now()):
		t.timer.Reset(t.guardTill.Sub(w.now()) + time.Microsecond)
	case left > 0:
		t.timer.Reset(left)
	default:
		t.kill("guard: lease deadline passed")
	}
}

// extend moves the deadline, which is sticky. A frozen guard reads it when it thaws, after the clock.
func (t *tree) extend(deadline election.Instant) {
	w := t.host.w
	if t.over || t.guardDead {
		return
	}
	if left := t.guardTill.Sub(w.now()); left > 0 {
		w.after(left+2*time.Microsecond, func() { t.extend(deadline) })
		return
	}
	if t.host.clock() >= t.deadline {
		return
	}
	earlier := deadline < t.deadline
	if deadline > t.deadline || deadline <= t.host.clock() {
		t.deadline = deadline
	}
	if earlier && t.timer != nil {
		t.timer.Reset(max(0, t.host.until(t.deadline)) + time.Microsecond)
	}
}

// kill ends the whole tree.
func (t *tree) kill(how string) {
	w := t.host.w
	if t.over {
		return
	}
	if left := t.host.stuck.Sub(w.now()); left > 0 { // uninterruptible sleep
		t.excused = true
		w.after(left, func() { t.kill(how) })
		return
	}
	w.after(t.diesIn, func() { t.end(how) })
}

// end is when nothing of the tree is left.
func (t *tree) end(how string) {
	if t.over {
		return
	}
	t.over, t.running, t.how = true, false, how
	if t.timer != nil {
		t.timer.Stop()
	}
	t.host.w.ended(t)
	close(t.exited)
	close(t.gone)
}

// killGuard is kill -9 of the guard: the main process dies with it.
func (t *tree) killGuard() {
	if t.over || t.guardDead {
		return
	}
	t.guardDead = true
	if t.parent && t.owner.lives() || t.host.cgroup {
		t.end("its guard was killed")
		return
	}
	t.over, t.running, t.how = true, false, "its guard was killed" // and nobody can tell whether a descendant is left
	t.host.w.ended(t)
	close(t.exited)
}

// freezeGuard stops the guard. Its sidecar checks it before its deadline, and ends the tree itself.
func (t *tree) freezeGuard(d time.Duration) {
	t.guardTill = t.host.w.now().Add(d)
	t.host.exposed()
	t.attend()
}

func (t *tree) attend() {
	w := t.host.w
	left := t.guardTill.Sub(w.now())
	if t.over || left <= 0 {
		return
	}
	if t.owner.acts() && t.host.until(t.deadline) < 30*time.Millisecond {
		t.kill("the guard did not answer: ended by the sidecar")
		return
	}
	w.after(min(left, max(time.Millisecond, t.host.until(t.deadline)-20*time.Millisecond)), t.attend)
}

// exposed looks whether everything that could end the program at its deadline is frozen or dead.
func (h *host) exposed() {
	t := h.trace
	if t == nil || t.over {
		return
	}
	if (t.guardDead || t.guardTill.After(h.w.now())) && !t.owner.acts() {
		t.excused = true
	}
}

// driver is the driver of one process of a sidecar, as package process has them. The [slots.Slot] is the real one.
type driver struct {
	p    *process
	t    *tree // its own
	born election.Instant
}

var _ slots.Driver = (*driver)(nil)

func (d *driver) Accompany(*slots.Companion) {}
func (d *driver) Prepare()                   {}
func (d *driver) Dismiss() error             { return nil }
func (d *driver) PID() int                   { return 1 }

// current returns the tree of this process.
func (d *driver) current() *tree {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	return d.t
}

func (d *driver) Start(ctx context.Context, env []string, deadline election.Instant) error {
	d.p.pass("Start")
	var term election.Term
	for _, e := range env {
		if text, ok := strings.CutPrefix(e, "TANIST_TERM="); ok {
			_, _ = fmt.Sscan(text, &term)
		}
	}
	w := d.p.w
	w.mu.Lock()
	if w.seed.of(d.p.id, d.p.count("start")).of("bad start", 0).one(200) {
		w.mu.Unlock()
		return errors.New("no such file")
	}
	if told := d.p.host.told; told >= term && !w.beyond {
		w.violates("%s starts its program for term %d, although the repository told it of term %d", d.p.id, term, told)
	}
	t := d.p.host.launch(d.p, term, deadline)
	d.t = t
	w.mu.Unlock()
	var err error
	select {
	case <-t.started:
	case <-t.gone:
		err = errors.New(t.how)
	case <-ctx.Done():
		err = ctx.Err()
	case <-d.p.dead:
		runtime.Goexit()
	}
	d.p.pass("Start")
	return err
}

func (d *driver) Extend(deadline election.Instant) {
	d.p.pass("Extend")
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.t != nil {
		d.t.extend(deadline)
	}
}

func (d *driver) Exited() <-chan struct{} {
	if t := d.current(); t != nil {
		return t.exited
	}
	return nil
}

func (d *driver) Exit() string {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.t == nil {
		return ""
	}
	return d.t.how
}

// stopWithin is how long a kill may take until a stop reports that it can't be confirmed.
const stopWithin = 5 * time.Second

func (d *driver) Stop(ctx context.Context, grace time.Duration) error {
	d.p.pass("Stop")
	if t := d.current(); t != nil {
		if err := d.finish(ctx, t, grace); err != nil {
			return err
		}
	}
	return nil
}

// finish ends a tree, and returns nil when nothing of it is left.
func (d *driver) finish(ctx context.Context, t *tree, grace time.Duration) error {
	w := d.p.w
	w.mu.Lock()
	if !t.over && !t.guardDead {
		ask := func() {
			w.after(min(t.stopsIn, grace), func() { t.end("stopped") })
			w.after(grace, func() { t.kill("killed after its grace") })
		}
		if t.host.stuck.After(w.now()) {
			ask = func() { w.after(grace, func() { t.kill("killed after its grace") }) }
		}
		if left := t.guardTill.Sub(w.now()); left > 0 {
			w.after(min(left, 300*time.Millisecond), func() { t.kill("killed by the sidecar") })
		} else {
			ask()
		}
	}
	unproven := t.over && t.guardDead
	select {
	case <-t.gone:
		unproven = false
	default:
	}
	left := max(0, t.host.until(t.deadline)) + time.Millisecond
	w.mu.Unlock()
	if unproven {
		if !d.p.wait(ctx, left) {
			return ctx.Err()
		}
		d.forget(t)
		return fmt.Errorf("the guard is dead: %w", election.ErrUnproven)
	}
	timer := time.NewTimer(grace + stopWithin)
	defer timer.Stop()
	select {
	case <-t.gone:
	case <-timer.C:
		return errors.New("a process is in uninterruptible sleep")
	case <-ctx.Done():
		return ctx.Err()
	case <-d.p.dead:
		runtime.Goexit()
	}
	d.p.pass("Stop")
	d.forget(t)
	return nil
}

// forget clears the record of a tree that is gone.
func (d *driver) forget(t *tree) {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.p.host.trace == t {
		d.p.host.trace = nil
	}
}

// left returns what an earlier process left.
func (d *driver) left() *tree {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.p.host.trace == d.t {
		return nil
	}
	return d.p.host.trace
}

func (d *driver) Adopt(ctx context.Context) error {
	d.p.pass("Adopt")
	t := d.left()
	if t == nil {
		return slots.ErrNothingToAdopt
	}
	if t.hidden {
		return errors.New("the record of the program can't be read")
	}
	select { // a guard on its way is waited for
	case <-t.started:
	case <-t.exited:
	case <-ctx.Done():
		return ctx.Err()
	case <-d.p.dead:
		runtime.Goexit()
	}
	w := d.p.w
	w.mu.Lock()
	frozen := t.guardTill.After(w.now())
	if !t.over && !frozen {
		t.owner, t.parent, d.t = d.p, false, t
		w.timeline.add(d.p.id, "adopts", t.id)
	}
	over := t.over
	w.mu.Unlock()
	switch {
	case over:
		if err := d.finish(ctx, t, 0); err != nil {
			return fmt.Errorf("no guard answers: %w", err)
		}
		return fmt.Errorf("%w: no guard answers", slots.ErrNothingToAdopt)
	case frozen:
		d.p.wait(ctx, time.Second)
		return errors.New("the guard does not answer")
	}
	d.p.pass("Adopt")
	return nil
}

func (d *driver) Settle(ctx context.Context) error {
	d.p.pass("Settle")
	t := d.left()
	if t == nil {
		return nil
	}
	if t.hidden {
		return d.outlast(ctx, t)
	}
	return d.finish(ctx, t, 0)
}

// outlast waits until every deadline that a guard that can't be found may have has passed. An earlier
// process has set none since this one was started.
func (d *driver) outlast(ctx context.Context, t *tree) error {
	w := d.p.w
	w.mu.Lock()
	left := d.p.host.until(d.born.Add(t.lead)) + time.Millisecond
	w.mu.Unlock()
	if left > 0 && !d.p.wait(ctx, left) {
		return ctx.Err()
	}
	d.forget(t)
	return fmt.Errorf("the guard can't be found: %w", election.ErrUnproven)
}

func (d *driver) Detach(ctx context.Context, _ election.Instant) error {
	d.p.pass("Detach")
	if d.frozen() && (!d.p.wait(ctx, time.Second) || d.frozen()) {
		return errors.New("the guard does not answer")
	}
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.t == nil || d.t.over {
		return errors.New("nothing is running")
	}
	d.t = nil
	return nil
}

// frozen reports whether its guard is.
func (d *driver) frozen() bool {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	return d.t != nil && !d.t.over && d.t.guardTill.After(d.p.w.now())
}

// port waits until the startup port answers.
func (d *driver) port(ctx context.Context) error {
	t := d.current()
	if t == nil {
		return errors.New("not running")
	}
	select {
	case <-t.open:
		return nil
	case <-ctx.Done():
		return errors.New("connection refused")
	case <-d.p.dead:
		runtime.Goexit()
		return nil
	}
}

package simulation

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/tanist/tanist/sidecar"
)

// process is one process of a sidecar. At every step that others can see, and whenever it reads its clock, it passes its gate:
// there it is frozen (SIGSTOP), thawed, and killed (SIGKILL). What a frozen process has read before is old when it thaws.
type process struct {
	w     *world
	host  *host
	id    string // unique
	calls map[string]uint64

	frozen chan struct{} // not nil while it is frozen; closed when it thaws
	thaws  time.Time
	passed uint64 // by those who waited for the thaw
	dead   chan struct{}
	killed bool
	trap   trap
	thawed func() // is called at the next thaw; nil: nothing is

	cancel  context.CancelCauseFunc
	sidecar *sidecar.Sidecar
	slot    *driver
	done    chan struct{}
	over    bool
	ended   error
}

// trap lets something happen to a process at a step.
type trap struct {
	verb string // empty: any
	skip int
	do   func() // with world.mu held; nil: there is no trap
}

var errKilled = errors.New("killed by SIGKILL")

// pass is one step. It does not return to a process that was killed.
func (p *process) pass(verb string) {
	p.w.mu.Lock()
	for {
		if p.killed {
			p.w.mu.Unlock()
			runtime.Goexit()
		}
		p.spring(verb)
		frozen := p.frozen
		if frozen == nil && !p.killed {
			p.w.mu.Unlock()
			return
		}
		if frozen == nil {
			continue
		}
		p.passed++
		late := p.w.seed.of(p.id, p.passed).of("thaw", 0).between(time.Microsecond, 60*time.Microsecond)
		p.w.mu.Unlock()
		select {
		case <-frozen:
			time.Sleep(late) // no two threads go on in one instant
		case <-p.dead:
		}
		p.w.mu.Lock()
	}
}

// spring lets a trap snap, if verb is the step that it waits for.
func (p *process) spring(verb string) {
	t := &p.trap
	if t.do == nil || t.verb != "" && t.verb != verb || t.verb == "" && verb == "clock" {
		return
	}
	if t.skip > 0 {
		t.skip--
		return
	}
	do := t.do
	t.do = nil
	p.w.timeline.add(p.id, "is trapped at", verb)
	do()
}

// freeze stops the process for d, at least.
func (p *process) freeze(d time.Duration) {
	if p.killed || p.over {
		return
	}
	until := p.w.now().Add(d)
	if p.frozen != nil {
		if until.After(p.thaws) {
			p.thaws = until
		}
		return
	}
	p.frozen, p.thaws = make(chan struct{}), until
	p.host.exposed()
	p.w.after(d, p.tryThaw)
}

func (p *process) tryThaw() {
	if p.frozen == nil {
		return
	}
	if left := p.thaws.Sub(p.w.now()); left > 0 {
		p.w.after(left, p.tryThaw)
		return
	}
	p.thaw()
}

func (p *process) thaw() {
	if p.frozen == nil {
		return
	}
	p.w.timeline.add(p.id, "thaws")
	close(p.frozen)
	p.frozen = nil
	if then := p.thawed; then != nil {
		p.thawed = nil
		then()
	}
}

// kill is kill -9. What is left of the process ends at its next step.
func (p *process) kill() {
	if p.killed || p.over {
		return
	}
	p.killed = true
	close(p.dead)
	p.host.exposed()
	cancel := p.cancel
	time.AfterFunc(0, func() { cancel(errKilled) })
}

// lives reports whether the process is there, frozen or not.
func (p *process) lives() bool { return p != nil && !p.killed && !p.over }

// acts reports whether it can do something now.
func (p *process) acts() bool { return p.lives() && p.frozen == nil }

// count returns how often something was done before.
func (p *process) count(what string) uint64 {
	n := p.calls[what]
	p.calls[what] = n + 1
	return n
}

// wait lets d pass, and reports whether ctx still goes on. It does not return to a process that was killed.
func (p *process) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		timer.Stop()
		return false
	case <-p.dead:
		timer.Stop()
		runtime.Goexit()
		return false
	}
}

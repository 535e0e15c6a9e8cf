package simulation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tanist/tanist/election"
)

// repository is the metadata repository behind its fence: begin, drain, open. world.mu is held during its methods.
type repository struct {
	term     election.Term
	attempt  uint64 // of its holder to raise it; a late request of an earlier one changes nothing
	by       string
	opened   bool
	highest  election.Term // that was ever opened
	sessions []*tree
	commits  int
	refused  int
	away     time.Time // it can't be reached until then
}

// behind is the answer to a term that is not the repository's.
type behind struct{ term election.Term }

func (b behind) Error() string                 { return fmt.Sprintf("the repository is at term %d", b.term) }
func (b behind) RepositoryTerm() election.Term { return b.term }
func (b behind) Superseded() bool              { return true }

// overtaken is the answer to an attempt that is not the latest.
type overtaken struct{ attempt uint64 }

func (o overtaken) Error() string { return fmt.Sprintf("attempt %d is under way", o.attempt) }

// fence is the repository as a process has it.
type fence struct{ p *process }

// ask is one request to the repository.
func (f fence) ask(ctx context.Context, verb string, do func(r *repository) error) error {
	f.p.pass(verb)
	w := f.p.w
	w.mu.Lock()
	t := f.p.host.toRepository.trip(w.seed.of(f.p.id, f.p.count(verb)).of(verb, 2), w.repository.away)
	w.mu.Unlock()
	_, err := travel(ctx, f.p, t, false, func() (struct{}, error) { return struct{}{}, do(w.repository) })
	f.p.pass(verb)
	return err
}

// Raise keeps trying while that may help.
func (f fence) Raise(ctx context.Context, term election.Term) ([]string, error) {
	name, attempt := f.p.host.name, uint64(1)
	current := func(r *repository) error {
		if r.term != term || r.by != name {
			return behind{r.term}
		}
		if r.attempt != attempt {
			return overtaken{r.attempt}
		}
		return nil
	}
	steps := []func(r *repository) error{
		func(r *repository) error { // begin
			switch {
			case r.term > term || r.term == term && r.by != name:
				return behind{r.term}
			case r.term == term && r.attempt > attempt, r.term == term && r.attempt == attempt && r.opened:
				return overtaken{r.attempt}
			}
			r.term, r.by, r.attempt, r.opened = term, name, attempt, false
			return nil
		},
		func(r *repository) error { // drain
			err := current(r)
			if err == nil && !r.opened {
				r.sessions = nil
			}
			return err
		},
		func(r *repository) error { // open
			err := current(r)
			if err == nil {
				r.opened, r.highest = true, max(r.highest, term)
			}
			return err
		},
	}
	for i := 0; i < len(steps); {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		err := f.ask(limited, "Raise", steps[i])
		cancel()
		if b, old := errors.AsType[behind](err); old {
			return nil, f.told(b)
		}
		if o, late := errors.AsType[overtaken](err); late { // by an earlier process, or before a restart in place
			attempt, i = o.attempt+1, 0
			continue
		}
		if err == nil {
			i++
			continue
		}
		if ctx.Err() != nil || !f.p.wait(ctx, 100*time.Millisecond) {
			return nil, fmt.Errorf("cannot fence the repository: %v", err)
		}
	}
	return []string{fmt.Sprintf("PGPASSWORD=%d", term)}, nil
}

// told notes that the process has learned of another term.
func (f fence) told(b behind) error {
	f.p.w.mu.Lock()
	f.p.host.told = max(f.p.host.told, b.term)
	f.p.w.mu.Unlock()
	return b
}

func (f fence) Assert(ctx context.Context, term election.Term) error {
	if f.quiet() {
		f.p.w.mu.Lock()
		is := f.p.w.repository.term
		f.p.w.mu.Unlock()
		if is != term {
			return f.told(behind{is})
		}
		return nil
	}
	err := f.ask(ctx, "Assert", func(r *repository) error {
		if r.term != term {
			return behind{r.term}
		}
		return nil
	})
	if b, old := errors.AsType[behind](err); old {
		return f.told(b)
	}
	return err
}

func (f fence) Close(ctx context.Context, term election.Term) error {
	return f.ask(ctx, "Close", func(r *repository) error {
		if r.term == term {
			r.opened, r.sessions = false, nil
		}
		return nil
	})
}

func (f fence) Ready(ctx context.Context) error {
	if f.quiet() {
		return nil
	}
	return f.ask(ctx, "Ready", func(*repository) error { return nil })
}

// quiet reports whether nothing is wrong on the way to the repository: then a question whose answer changes nothing takes no time,
// because there are many.
func (f fence) quiet() bool {
	f.p.pass("clock")
	w := f.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	l, now := f.p.host.toRepository, w.now()
	return !w.repository.away.After(now) && l.awayFor() == 0 && !l.slow.After(now) && !l.lossy.After(now)
}

// work is a program at work: it logs in, and commits now and then. What it sends may be long under way.
func (w *world) work(t *tree) {
	r := w.repository
	if w.open {
		return
	}
	if r.term == t.term && r.opened && r.by == t.host.name {
		r.sessions = append(r.sessions, t)
	}
	w.commit(t, 0)
}

func (w *world) commit(t *tree, n uint64) {
	if t.over {
		return
	}
	c := w.seed.of(t.id, n).of("commit", 0)
	late := c.of("late", 0).between(100*time.Microsecond, 5*time.Millisecond)
	if c.of("buffered", 0).one(4) {
		late = c.of("buffered", 1).between(time.Millisecond, 30*time.Second)
	}
	w.after(late, func() { w.repository.commit(w, t) })
	if n < 6 {
		w.after(c.of("next", 0).between(time.Millisecond, 20*time.Second), func() { w.commit(t, n+1) })
	}
}

// commit is a statement that arrives.
func (r *repository) commit(w *world, t *tree) {
	if !slices.Contains(r.sessions, t) {
		r.refused++
		return
	}
	r.commits++
	if t.term < r.highest {
		w.violates("a commit of term %d landed after the repository was opened for term %d", t.term, r.highest)
	}
}

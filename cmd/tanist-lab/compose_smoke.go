package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tour is the smoke test of a lab.
type tour struct {
	*containers
	broken []string // guarantees that waiting found broken
}

// smoke starts a lab under its own name, breaks it, judges it and removes it.
func smoke(ctx context.Context, c *containers, _ string) (err error) {
	begun := time.Now()
	t := &tour{containers: c}
	if err := c.down(ctx); err != nil { // what an interrupted run left
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			c.logs(context.WithoutCancel(ctx))
		}
		err = errors.Join(err, c.down(context.WithoutCancel(ctx)))
	}()
	if err := c.up(ctx); err != nil {
		return err
	}
	scenes := slices.Concat(t.planned(), t.members(), t.hosts(), t.last())
	for _, s := range scenes {
		c.out.section(s.title)
		if err := s.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	broken, err := c.report(ctx)
	if err != nil {
		return err
	}
	if err := c.list(ctx); err != nil {
		return err
	}
	if broken = append(t.broken, broken...); len(broken) > 0 {
		return fmt.Errorf("a guarantee was broken: %s", strings.Join(broken, "; "))
	}
	c.out.print("\n%d scenes, every guarantee held (%.0f s)\n", len(scenes), time.Since(begun).Seconds())
	return nil
}

// logs prints the state of every container, and the end of the logs of some.
func (c *containers) logs(ctx context.Context) {
	if text, err := c.docker(ctx, "ps", "-a", "--filter", "label=com.docker.compose.project="+c.project, "--format", "{{.Names}}: {{.Status}}"); err == nil {
		c.out.print("%s", text)
	}
	for _, s := range []string{"ctl-a", "ctl-b", "agt-1", "agt-2", "user", "proxy", "postgres", "consul-setup", "ctl-a-consul", "ctl-b-consul", "user-mesh"} {
		if text, err := output(ctx, "", nil, "sh", "-c", "docker logs --tail 25 \"$0\" 2>&1", c.name(s)); err == nil {
			c.out.print("--- %s\n%s", s, text)
		}
	}
}

// part is a scene of the tour.
type part struct {
	title string
	play  func(ctx context.Context) error
}

// moves is a scene after which the other controller must be active: do, see the old controller gone
// within gone (zero: its containers are gone), see the takeover, heal, see the cluster whole.
func (t *tour) moves(title, what string, gone time.Duration) part {
	return part{title, func(ctx context.Context) error {
		from, term, err := t.active(ctx)
		if err != nil {
			return err
		}
		if err := t.inject(ctx, what, ""); err != nil {
			return err
		}
		if gone > 0 {
			if err := t.ends(ctx, from, gone); err != nil {
				return err
			}
		}
		to, err := t.moved(ctx, from, term)
		if err != nil {
			return err
		}
		if err := t.healed(ctx); err != nil {
			return err
		}
		if what == "freeze" { // the thawed guard kills what it should have killed long ago
			if err := t.ends(ctx, from, 15*time.Second); err != nil {
				return err
			}
		}
		if err := t.whole(ctx, term, 90*time.Second); err != nil {
			return err
		}
		now, _, err := t.active(ctx)
		if err == nil && now != to {
			err = fmt.Errorf("%s became active again without need", now)
		}
		if runs, _ := t.runs(ctx, from); err == nil && runs {
			t.broken = append(t.broken, fmt.Sprintf("%s: the controller of %s runs although it is passive", title, from))
		}
		return err
	}}
}

// ends waits until no controller runs on a host.
func (t *tour) ends(ctx context.Context, host string, limit time.Duration) error {
	return wait(ctx, limit, "the controller of "+host+" to end", func(ctx context.Context) error {
		runs, err := t.runs(ctx, host)
		if err == nil && runs {
			err = errors.New("it runs")
		}
		return err
	})
}

// moved waits until another controller than from is active, and returns it.
func (t *tour) moved(ctx context.Context, from string, term uint64) (to string, err error) {
	begun := time.Now()
	err = wait(ctx, 45*time.Second, "another controller to become active", func(ctx context.Context) error {
		var now uint64
		var err error
		to, now, err = t.active(ctx)
		if err == nil && (to == from || now <= term) {
			err = fmt.Errorf("%s is active, term %d", to, now)
		}
		return err
	})
	if err == nil {
		t.out.step(fmt.Sprintf("%s is active, seen after %.1f s", to, time.Since(begun).Seconds()))
	}
	return to, err
}

func (t *tour) healed(ctx context.Context) error {
	if err := t.note(ctx, 0, "", "heal"); err != nil {
		return err
	}
	return t.heal(ctx)
}

// stays is a scene after which the same controller must be active, in the same term.
func (t *tour) stays(title string, pause time.Duration, do func(ctx context.Context) error) part {
	return part{title, func(ctx context.Context) error {
		from, term, err := t.active(ctx)
		if err != nil {
			return err
		}
		if err := do(ctx); err != nil {
			return err
		}
		if err := rest(ctx, pause); err != nil {
			return err
		}
		if err := t.healed(ctx); err != nil {
			return err
		}
		if err := t.whole(ctx, 0, 90*time.Second); err != nil {
			return err
		}
		to, now, err := t.active(ctx)
		if err == nil && (to != from || now != term) {
			t.broken = append(t.broken, fmt.Sprintf("%s: the active changed from %s, term %d, to %s, term %d", title, from, term, to, now))
		}
		return err
	}}
}

// rest lets the lab run.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (t *tour) planned() []part {
	all := []part{
		t.stays("Nothing (the cost of measuring)", 5*time.Second, func(ctx context.Context) error {
			_, term, err := t.active(ctx)
			return errors.Join(err, t.note(ctx, term, "", "nothing"))
		}),
		t.moves("A planned move (tanist switchover)", "switchover", 0),
		t.moves("The active host is stopped (docker stop)", "stop", 0),
		t.moves("The active controller hangs", "hang", 0),
	}
	if t.lab == "mesh" {
		all = append(all, part{"A stranger in the mesh", t.stranger}, part{"20 planned moves", t.twenty})
	}
	return all
}

// stranger checks that a service without an intention does not get through the mesh, and that nobody
// gets an answer past it.
func (t *tour) stranger(ctx context.Context) error {
	for _, url := range []string{"http://127.0.0.1:9292", "http://ctl-a:8080", "http://ctl-b:8080"} {
		if _, err := t.exec(ctx, "user", "tanist-lab", "hang", url); err == nil {
			return fmt.Errorf("%s answered", url)
		}
	}
	t.out.step("neither a service without an intention nor a request past the mesh was answered")
	return nil
}

// twenty moves the active controller twenty times, and counts the agents' attempts that failed.
func (t *tour) twenty(ctx context.Context) error {
	for range 20 {
		from, term, err := t.active(ctx)
		if err != nil {
			return err
		}
		if err := t.inject(ctx, "switchover", ""); err != nil {
			return err
		}
		if _, err := t.moved(ctx, from, term); err != nil {
			return err
		}
		if err := t.whole(ctx, term, time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// members is what happens to the store's members.
func (t *tour) members() []part {
	each := func(what, host string) func(ctx context.Context) error {
		return func(ctx context.Context) error { return t.inject(ctx, what, host) }
	}
	if t.lab == "postgres" {
		return nil // see last
	}
	name := "etcd"
	if t.lab != "etcd" {
		name = "consul"
	}
	return []part{
		t.stays("A member of the store dies (docker kill)", 8*time.Second, each("kill", name+"-3")),
		t.stays("A member of the store freezes (docker pause)", 8*time.Second, each("freeze", name+"-2")),
		t.stays("A member of the store is cut off (network disconnect)", 8*time.Second, each("cut", name+"-3")),
		{"The store has no majority, and comes back", func(ctx context.Context) error {
			return t.away(ctx, func(ctx context.Context) error {
				return errors.Join(t.inject(ctx, "kill", name+"-2"), t.do(ctx, "kill", name+"-3"))
			})
		}},
	}
}

// away takes the store away until the controller has stopped by itself, and brings it back.
func (t *tour) away(ctx context.Context, do func(ctx context.Context) error) error {
	from, term, err := t.active(ctx)
	if err != nil {
		return err
	}
	if err := do(ctx); err != nil {
		return err
	}
	if err := t.ends(ctx, from, 20*time.Second); err != nil {
		return err
	}
	t.out.step("the controller of " + from + " stopped by itself")
	if err := t.healed(ctx); err != nil {
		return err
	}
	return t.whole(ctx, term, 90*time.Second)
}

func (t *tour) hosts() []part {
	return []part{
		t.moves("The active host dies (docker kill)", "kill", 0),
		t.moves("The sidecar freezes (docker kill -s STOP)", "stall", 15*time.Second),
		t.moves("The active host freezes (docker pause)", "freeze", 0),
		t.moves("The active host is cut off (network disconnect)", "cut", 20*time.Second),
	}
}

// last is what leaves nobody active for a while.
func (t *tour) last() []part {
	return []part{
		{"PostgreSQL dies (docker kill)", func(ctx context.Context) error {
			return t.away(ctx, func(ctx context.Context) error { return t.inject(ctx, "kill", "postgres") })
		}},
		{"Both controllers die: the agents give up", t.abandoned},
	}
}

// abandoned kills both controllers' hosts. An agentwatch tries 30 times, once a second, and then ends
// with its agent; Docker starts it again.
func (t *tour) abandoned(ctx context.Context) error {
	_, term, err := t.active(ctx)
	if err != nil {
		return err
	}
	restarts := func(ctx context.Context) (int, error) {
		text, err := t.docker(ctx, "inspect", "-f", "{{.RestartCount}}", t.name("agt-1"))
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(text))
	}
	before, err := restarts(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(t.inject(ctx, "kill", "ctl-a"), t.do(ctx, "kill", "ctl-b")); err != nil {
		return err
	}
	if err := wait(ctx, time.Minute, "the agentwatch to give up", func(ctx context.Context) error {
		now, err := restarts(ctx)
		if err == nil && now == before {
			err = errors.New("it runs")
		}
		return err
	}); err != nil {
		return err
	}
	t.out.step("the agentwatch of agt-1 gave up, and was started again")
	if err := t.healed(ctx); err != nil {
		return err
	}
	return t.whole(ctx, term, 90*time.Second)
}

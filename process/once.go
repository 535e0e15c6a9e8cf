package process

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// RunOnce runs the program that cfg describes to its end, under a guard that kills the whole tree
// when within has passed, whatever becomes of this process. It returns nil if the program exited
// with status 0. Otherwise the error has the first line of its output. Nothing of it is left when
// RunOnce returns, unless the error says so. StateDir, Identity and Output of cfg have no effect.
func RunOnce(ctx context.Context, cfg Config, within time.Duration) error {
	said := &firstLine{}
	cfg.StateDir, cfg.Identity, cfg.Output = "", Identity{}, Output{Line: said.take}
	e := New(cfg)
	err := e.complete(ctx, nil, election.BootClock().Add(within+onceSlack), within)
	stopped := e.Stop(context.WithoutCancel(ctx), 0)
	if line := said.get(); err != nil && line != "" {
		err = fmt.Errorf("%w: %s", err, line)
	}
	return errors.Join(err, stopped)
}

// onceSlack is how much later than this process the guard of [RunOnce] ends the tree.
const onceSlack = time.Second

// complete starts the program and waits until it has ended. It returns nil if the program exited
// with status 0 within the time. Stop is due after any other result, and for what the program left
// behind.
func (d *driver) complete(ctx context.Context, env []string, deadline election.Instant, within time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("it did not end within %v", within))
	defer cancel()
	if err := d.Start(ctx, env, deadline); err != nil {
		return err
	}
	select {
	case <-d.Exited():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if d.ExitCode() != 0 {
		return errors.New(d.Exit())
	}
	return nil
}

// maxSaid bounds how much of a program's output an error has.
const maxSaid = 200

// firstLine keeps the first line that is not empty.
type firstLine struct {
	mu   sync.Mutex
	text string
}

func (l *firstLine) take(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text == "" {
		l.text = strings.ToValidUTF8(strings.TrimSpace(string(line[:min(len(line), maxSaid)])), "?")
	}
}

func (l *firstLine) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

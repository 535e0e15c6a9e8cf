package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/wire"
)

// Exec keeps one program: a driver for programs that stay in the foreground. Its methods are safe
// for concurrent use.
type Exec struct{ driver }

// New makes a driver for the program that cfg describes. It starts nothing. No other process may
// use cfg.StateDir from here on.
func New(cfg Config) *Exec {
	return &Exec{driver{cfg: cfg, alone: election.BootClock(), plan: func(*wire.Spec) error { return nil }}}
}

// driver is what all drivers have in common: at most one tree at a time.
type driver struct {
	cfg  Config
	plan func(*wire.Spec) error // what the driver adds to the spec
	// startWithin bounds the start; 0 means startWithin.
	startWithin time.Duration

	mu        sync.Mutex
	starting  bool
	launching *handle
	renewed   election.Instant // the last deadline that came while a start was being prepared
	tree      *handle          // the last one, nil before the first start
	ahead     *readied         // nil: none
	companion *Companion
	settling  sync.Mutex
	settled   bool             // nothing of an earlier process is left, as far as can be known
	alone     election.Instant // since when nobody but this driver has set a deadline
	outside   outside          // nil: the program is below its guard
	unit      string           // of the systemd driver
}

// Start starts the program with env added to its environment, under a guard that kills the whole
// tree at the deadline unless Extend moves it. It returns once the program runs, or with an error
// after which nothing of it is left. When ctx ends before that, the start is undone. Start may be
// called again after a Stop that returned nil, or after the tree ended by itself.
func (d *driver) Start(ctx context.Context, env []string, deadline election.Instant) error {
	if len(d.cfg.Command) == 0 {
		return errors.New("cannot start: no command is given")
	}
	d.mu.Lock()
	if d.starting {
		d.mu.Unlock()
		return fmt.Errorf("cannot start %s: it is being started", d.cfg.Command[0])
	}
	if k := d.tree; k != nil {
		select {
		case <-k.gone:
		case <-k.unproven:
		default:
			d.mu.Unlock()
			return fmt.Errorf("cannot start %s: the last run is not confirmed to be gone", k.what)
		}
	}
	d.starting, d.renewed = true, 0
	d.mu.Unlock()
	k, err := d.launch(ctx, env, deadline)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.starting, d.launching = false, nil
	if k != nil {
		d.tree = k
	}
	return err
}

// Extend moves the deadline. It never blocks. An earlier deadline than the one in force, or one
// that comes after that one has passed, is ignored.
func (d *driver) Extend(deadline election.Instant) {
	d.mu.Lock()
	k := d.launching
	switch {
	case k != nil:
	case d.starting:
		d.renewed = deadline
	default:
		k = d.tree
	}
	d.mu.Unlock()
	if k != nil {
		k.extend(deadline)
	}
}

// Stop sends the stop signal, kills the whole tree after grace or at the deadline, whichever is
// first, and returns nil only when no process of the tree is left: confirmed by the kernel. If that
// cannot be shown, although nothing is found alive and the last deadline has passed, the error
// wraps [election.ErrUnproven]. It may be called at the same time with a shorter grace; the
// shortest wins. Otherwise it returns an error when ctx ends, or 5 s after the kill; the killing
// goes on. A driver that was never started is stopped.
func (d *driver) Stop(ctx context.Context, grace time.Duration) error {
	if k := d.current(); k != nil {
		return k.stop(ctx, grace)
	}
	return nil
}

// Exited returns a channel that is closed when the main process has ended, or its guard has.
// Descendants may be left, so Stop is still due. It is nil before the first start, and each start
// makes a new one.
func (d *driver) Exited() <-chan struct{} {
	if k := d.current(); k != nil {
		return k.exited
	}
	return nil
}

// Exit tells in plain words how the program ended, such as "exit status 3", "killed by SIGKILL" or
// "guard: lease deadline passed"; it is empty while the program runs.
func (d *driver) Exit() string {
	k := d.current()
	if k == nil {
		return ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.exit
}

// ExitCode returns the exit status as a shell gives it (128 + number of the signal), or -1 if it is
// not known (yet).
func (d *driver) ExitCode() int {
	k := d.current()
	if k == nil {
		return -1
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.hasEnded {
		return -1
	}
	return k.code
}

// EndedByItself reports whether the program has ended, and neither its guard nor the deadline made
// it. An end that followed the stop signal is one's own too.
func (d *driver) EndedByItself() bool {
	k := d.current()
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.hasEnded && k.itself
}

// PID returns the process id of the main process, 0 before the first start.
func (d *driver) PID() int {
	if k := d.current(); k != nil {
		return k.mainPID()
	}
	return 0
}

// Signal forwards a signal to the main process.
func (d *driver) Signal(sig syscall.Signal) {
	if k := d.current(); k != nil {
		k.send(wire.Record{Kind: wire.KindSignal, A: int64(sig)})
	}
}

func (d *driver) current() *handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tree
}

// ForwardSignals forwards to the main process the signals that have a meaning to programs but none to
// a sidecar: SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH; until ctx ends. SIGTERM and SIGINT end a
// sidecar, which then stops the program in the way that is configured, so these are not forwarded.
// What was ignored when this process started stays ignored, for the program too.
func (d *driver) ForwardSignals(ctx context.Context) {
	got := make(chan os.Signal, 8)
	signal.Notify(got, slices.DeleteFunc([]os.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}, signal.Ignored)...)
	defer signal.Stop(got)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-got:
			d.Signal(s.(syscall.Signal))
		}
	}
}

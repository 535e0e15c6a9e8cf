package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// ErrNothingToAdopt is returned, possibly wrapped with the reason, by [Adopt] when no tree is left
// of an earlier sidecar: a new one may be started.
var ErrNothingToAdopt = errors.New("nothing to adopt")

// errBusy: another sidecar keeps the tree.
var errBusy = errors.New("another sidecar keeps this program: is one running already?")

// Adopt makes an [Exec] and lets it Adopt.
func Adopt(ctx context.Context, cfg Config) (*Exec, error) {
	e := New(cfg)
	return e, e.Adopt(ctx)
}

// Adopt takes over the tree that an earlier sidecar with the same StateDir left running, be it that
// it crashed, was killed or called Detach. The program does not notice. Its deadline goes on as it
// was, so Extend is due soon. What the configuration says about the start of the program has no
// effect.
//
// If the guard is dead or does not answer, what may be left of the tree is killed.
// [ErrNothingToAdopt] is returned only if it is shown that nothing is left. Any other error means
// that something may be running: do not start another, but Settle first.
func (d *driver) Adopt(ctx context.Context) error {
	if len(d.cfg.Command) == 0 || d.cfg.StateDir == "" {
		return errors.New("cannot adopt: a command and a state directory must be given")
	}
	st, err := wire.Recall(d.cfg.StateDir)
	if err == nil {
		var k *handle
		if k, err = d.reach(ctx, st); err == nil {
			if err := k.record(); err != nil {
				d.cfg.Log.Warn().Err(err).Msg("cannot record the adopted guard")
			}
			d.mu.Lock()
			d.tree, d.settled = k, true
			d.mu.Unlock()
			d.cfg.Log.Info().Int("pid", k.pid).Int("guard", k.guardPID).Msg("adopted " + k.what)
			go k.run()
			return nil
		}
		if errors.Is(err, errBusy) || ctx.Err() != nil {
			return fmt.Errorf("cannot adopt %s: %w", d.cfg.Command[0], err)
		}
	}
	if e := d.settle(ctx, false); e != nil {
		return errors.Join(err, e)
	}
	return fmt.Errorf("%w: %v", ErrNothingToAdopt, err)
}

// reach connects to the guard of st and takes its tree over.
func (d *driver) reach(ctx context.Context, st *wire.Trace) (*handle, error) {
	k := d.newHandle(st.Tree)
	k.guardPID, k.cgroupPath, k.lead, k.unit = st.Guard, st.Cgroup, st.Lead, st.Unit
	k.guardDead, k.stateDir = make(chan struct{}), d.cfg.StateDir
	if st.Guard == 0 { // its sidecar died before it had answered
		if k.guardPID = d.guardAtSocket(ctx, st); k.guardPID == 0 {
			return nil, errors.New("the guard can't be reached")
		}
	}
	var err error
	if k.guardFD, err = unix.PidfdOpen(k.guardPID, 0); err != nil {
		return nil, errors.New("the guard is gone")
	}
	began, err := kernel.BeganAt(k.guardPID)
	if err != nil || st.Guard != 0 && began != st.Began || kernel.IsZombie(k.guardPID) {
		unix.Close(k.guardFD)
		return nil, errors.New("the guard is gone")
	}
	k.began = began
	var out *opened
	if d.cfg.Output.Line != nil {
		if out, err = d.cfg.Output.open(k.what); err != nil {
			unix.Close(k.guardFD)
			return nil, err
		}
		defer out.close() //nolint:errcheck // nothing was written
	}
	// Its last sidecar's end may be known to us before it is known to the guard, hence the second
	// tries.
	until := time.Now().Add(k.watch.patience)
	for {
		k.conn, err = dialGuard(ctx, d.cfg.StateDir, k.guardPID)
		if err == nil {
			var sink *os.File
			if out != nil {
				sink = out.sink
			}
			err = k.takeFrom(sink, st)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errBusy) || time.Now().After(until) || ctx.Err() != nil {
			if out != nil {
				_ = out.source.Close()
			}
			unix.Close(k.guardFD)
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	if out != nil {
		go out.read(k.outputDone)
	} else {
		close(k.outputDone)
	}
	go func() {
		fds := []unix.PollFd{{Fd: int32(k.guardFD), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(fds, -1); n > 0 || err != nil && err != unix.EINTR {
				break
			}
		}
		close(k.guardDead)
	}()
	return k, nil
}

func (k *handle) takeFrom(sink *os.File, st *wire.Trace) error {
	records, err := hello(k.conn, sink, k.watch.patience)
	if err != nil {
		_ = k.conn.Close()
		return err
	}
	started, ack := records[0], records[1]
	k.mu.Lock()
	k.setMainLocked(int(started.A))
	if st.Main == k.pid && st.MainBegan > 0 {
		k.pidBegan = st.MainBegan // the number may be somebody else's by now
	}
	k.able = wire.Ability(started.B)
	k.mu.Unlock()
	k.watch.deadline, k.watch.acked, k.watch.killAt = election.Instant(ack.A), election.Instant(ack.A), election.Instant(ack.B)
	k.watch.lastSent = election.BootClock()
	return nil
}

// dialGuard connects to the socket and makes sure that it is that guard which answers there.
func dialGuard(ctx context.Context, dir string, guard int) (*net.UnixConn, error) {
	handle, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("the state directory can't be opened: %v", err)
	}
	defer handle.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unixpacket", wire.SocketAddress(handle).Name)
	if err != nil {
		return nil, fmt.Errorf("the guard can't be reached: %v", err)
	}
	conn := c.(*net.UnixConn)
	if guard != 0 && peerOf(conn) != guard {
		return nil, errors.Join(errors.New("somebody else than the guard answers at its socket"), conn.Close())
	}
	return conn, nil
}

// peerOf returns the PID of the process that listens at the other end, or 0.
func peerOf(conn *net.UnixConn) (pid int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid
}

// guardAtSocket returns the PID of the guard of st, if it answers at its socket, or 0.
func (d *driver) guardAtSocket(ctx context.Context, st *wire.Trace) int {
	conn, err := dialGuard(ctx, d.cfg.StateDir, 0)
	if err != nil {
		return 0
	}
	defer conn.Close() //nolint:errcheck // nothing was said
	for _, pid := range kernel.Marked(wire.GuardMark, func(mark string) bool { return mark == st.Tree }) {
		if peerOf(conn) == pid {
			return pid
		}
	}
	return 0
}

// hello introduces us and returns the guard's two answers: what it runs, and until when.
func hello(conn *net.UnixConn, sink *os.File, within time.Duration) ([2]wire.Record, error) {
	var got [2]wire.Record
	_ = conn.SetDeadline(time.Now().Add(within))
	defer conn.SetDeadline(time.Time{}) //nolint:errcheck // a connection that is broken shows with its next use
	var buf [wire.RecordMax]byte
	expect := func(want wire.Kind) (wire.Record, error) {
		n, err := conn.Read(buf[:])
		if err != nil || n == 0 {
			return wire.Record{}, errors.New("the guard did not answer")
		}
		r, ok := wire.ParseRecord(buf[:n])
		switch {
		case ok && r.Kind == wire.KindRefused && r.Text == wire.Busy:
			return r, errBusy
		case ok && r.Kind == wire.KindRefused:
			return r, fmt.Errorf("the guard refused: %s", r.Text)
		case !ok || r.Kind != want:
			return r, errors.New("the guard answered something else")
		}
		return r, nil
	}
	if _, err := expect(wire.KindAck); err != nil {
		return got, err
	}
	var rights []byte
	if sink != nil {
		rights = unix.UnixRights(int(sink.Fd()))
	}
	r := wire.Record{Kind: wire.KindHello}
	_, _, err := conn.WriteMsgUnix(r.Put(buf[:]), rights, nil)
	if err != nil {
		return got, fmt.Errorf("the guard can't be reached: %v", err)
	}
	if got[0], err = expect(wire.KindStarted); err != nil {
		return got, err
	}
	got[1], err = expect(wire.KindAck)
	return got, err
}

// Detach lets go of the program without ending it, so that another sidecar can Adopt it. The guard
// keeps it until the deadline; where there is none, until the given instant. The driver is then as
// if never started. It fails, with the program still kept, if nobody could adopt.
func (d *driver) Detach(ctx context.Context, until election.Instant) error {
	d.mu.Lock()
	k := d.tree
	d.mu.Unlock()
	if k == nil {
		return errors.New("cannot detach: nothing is running")
	}
	if d.cfg.StateDir == "" {
		return fmt.Errorf("cannot detach from %s: without a state directory nobody could find it again", k.what)
	}
	k.mu.Lock()
	k.sendLocked(wire.Record{Kind: wire.KindDetach, A: int64(until)})
	seq := k.seq
	k.mu.Unlock()
	for {
		k.mu.Lock()
		heard := len(k.watch.pending) == 0 || int32(k.watch.pending[0].seq-seq) > 0
		k.mu.Unlock()
		if heard {
			break
		}
		select {
		case <-k.gone:
			return fmt.Errorf("cannot detach from %s: it ended", k.what)
		case <-ctx.Done():
			return fmt.Errorf("cannot detach from %s: %w", k.what, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tree == k {
		d.tree, d.settled, d.alone = nil, false, election.BootClock()
	}
	close(k.leave)
	return nil
}

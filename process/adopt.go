package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// ErrNothingToAdopt is returned, possibly wrapped with the reason, by [Adopt] when no tree is left of an earlier sidecar:
// a new one may be started.
var ErrNothingToAdopt = errors.New("nothing to adopt")

// errBusy: another sidecar keeps the tree.
var errBusy = errors.New("another sidecar keeps this program: is one running already?")

// Adopt makes an [Exec] and lets it Adopt.
func Adopt(ctx context.Context, cfg Config) (*Exec, error) {
	e := New(cfg)
	return e, e.Adopt(ctx)
}

// Adopt takes over the tree that an earlier sidecar with the same StateDir left running, be it that it
// crashed, was killed or called Detach. The program does not notice. Its deadline goes on as it was, so Extend is due
// soon. What the configuration says about the start of the program has no effect.
//
// If there is none, or the guard is dead or does not answer, what may be left of the tree is killed and
// [ErrNothingToAdopt] is returned. Any other error means that something may be running: do not start another.
func (d *driver) Adopt(ctx context.Context) error {
	if len(d.cfg.Command) == 0 || d.cfg.StateDir == "" {
		return errors.New("cannot adopt: a command and a state directory must be given")
	}
	st, err := recall(d.cfg.StateDir)
	if err != nil {
		return err
	}
	k, err := d.reach(ctx, st)
	switch {
	case err == nil:
		d.mu.Lock()
		d.tree = k
		d.mu.Unlock()
		d.cfg.Log.Info().Int("pid", k.pid).Int("guard", k.guardPID).Msg("Adopted " + k.what)
		go k.run()
		return nil
	case errors.Is(err, errBusy) || ctx.Err() != nil:
		return fmt.Errorf("cannot adopt %s: %w", d.cfg.Command[0], err)
	}
	if e := d.clear(ctx, st); e != nil {
		return errors.Join(err, e)
	}
	return fmt.Errorf("%w: %v", ErrNothingToAdopt, err)
}

// sweep kills what an earlier sidecar may have left, before something new is started in its place.
func (d *driver) sweep(ctx context.Context) error {
	st, err := recall(d.cfg.StateDir)
	if errors.Is(err, ErrNothingToAdopt) {
		return nil
	}
	if err != nil {
		return err
	}
	// Ask whose it is, and let go again at once.
	conn, err := dialGuard(ctx, d.cfg.StateDir, st)
	if err == nil {
		_, err = hello(conn, nil, answerWithin)
		_ = conn.Close()
		if errors.Is(err, errBusy) {
			return err
		}
	}
	return d.clear(ctx, st)
}

// clear kills guard and tree of st, and returns nil when they are gone.
func (d *driver) clear(ctx context.Context, st *state) error {
	d.cfg.Log.Warn().Int("guard", st.Guard).Msg("Killing what an earlier run may have left")
	var group *cgroup
	if st.Cgroup != "" {
		var err error
		if group, err = openCgroup(st.Cgroup); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if group != nil {
			defer group.close()
		}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		left := 0
		if group != nil {
			_ = group.kill()
			if group.populated() {
				left++
			}
		}
		if began, err := beganAt(st.Guard); err == nil && began == st.Began && !isZombie(st.Guard) {
			_ = unix.Kill(st.Guard, unix.SIGKILL)
			left++
		}
		left += strikeMarked(st.Tree)
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot end what an earlier run of %s left: %w", d.cfg.Command[0], context.Cause(ctx))
		case <-time.After(pause):
		}
	}
	if st.Cgroup != "" {
		_ = removeCgroup(st.Cgroup)
	}
	forget(d.cfg.StateDir)
	return nil
}

func isZombie(pid int) bool {
	b, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return true
	}
	i := strings.LastIndexByte(string(b), ')')
	return i+2 < len(b) && b[i+2] == 'Z'
}

// recall reads what remember wrote.
func recall(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNothingToAdopt
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look for an earlier run: %v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot look for an earlier run: %v", err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() && owner != 0 {
		return nil, fmt.Errorf("cannot believe %s: it belongs to user %d", path, owner)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("cannot look for an earlier run: %v", err)
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		forget(dir)
		return nil, fmt.Errorf("%w: the host crashed since", ErrNothingToAdopt) // before the file reached the disk
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil || st.Guard <= 1 || st.Tree == "" {
		return nil, fmt.Errorf("cannot understand %s: end what it may speak of, then remove it", path)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if st.Boot != boot {
		forget(dir)
		return nil, fmt.Errorf("%w: the host was booted since", ErrNothingToAdopt)
	}
	return &st, nil
}

// reach connects to the guard of st and takes its tree over.
func (d *driver) reach(ctx context.Context, st *state) (*kept, error) {
	k := &kept{
		log: d.cfg.Log, what: d.cfg.Command[0], mark: st.Tree, guardPID: st.Guard, cgroupPath: st.Cgroup,
		guardDead: make(chan struct{}), outputDone: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}),
		poke: make(chan struct{}, 1), leave: make(chan struct{}),
		watch: watch{patience: d.cfg.AnswerWithin, killAt: election.Never}, stateDir: d.cfg.StateDir,
	}
	if k.watch.patience <= 0 {
		k.watch.patience = answerWithin
	}
	var err error
	if k.guardFD, err = unix.PidfdOpen(st.Guard, 0); err != nil {
		return nil, errors.New("the guard is gone")
	}
	began, err := beganAt(st.Guard)
	if err != nil || began != st.Began || isZombie(st.Guard) {
		unix.Close(k.guardFD)
		return nil, errors.New("the guard is gone")
	}
	var out *opened
	if d.cfg.Output.Line != nil {
		if out, err = d.cfg.Output.open(k.what); err != nil {
			unix.Close(k.guardFD)
			return nil, err
		}
		defer out.close() //nolint:errcheck // nothing was written
	}
	// Its last sidecar's end may be known to us before it is known to the guard, hence the second tries.
	until := time.Now().Add(k.watch.patience)
	for {
		k.conn, err = dialGuard(ctx, d.cfg.StateDir, st)
		if err == nil {
			var sink *os.File
			if out != nil {
				sink = out.sink
			}
			err = k.takeFrom(sink)
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

func (k *kept) takeFrom(sink *os.File) error {
	records, err := hello(k.conn, sink, k.watch.patience)
	if err != nil {
		_ = k.conn.Close()
		return err
	}
	started, ack := records[0], records[1]
	k.pid, k.able = int(started.a), ability(started.b)
	k.watch.deadline, k.watch.acked, k.watch.killAt = election.Instant(ack.a), election.Instant(ack.a), election.Instant(ack.b)
	k.watch.lastSent = election.BootClock()
	return nil
}

// dialGuard connects to the socket and makes sure that it is that guard which answers there.
func dialGuard(ctx context.Context, dir string, st *state) (*net.UnixConn, error) {
	handle, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("the state directory can't be opened: %v", err)
	}
	defer handle.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unixpacket", socketAddress(handle).Name)
	if err != nil {
		return nil, fmt.Errorf("the guard can't be reached: %v", err)
	}
	conn := c.(*net.UnixConn)
	var peer *unix.Ucred
	raw, err := conn.SyscallConn()
	if err == nil {
		e := raw.Control(func(fd uintptr) {
			peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		})
		err = errors.Join(err, e)
	}
	if err != nil || int(peer.Pid) != st.Guard {
		return nil, errors.Join(errors.New("somebody else than the guard answers at its socket"), err, conn.Close())
	}
	return conn, nil
}

// hello introduces us and returns the guard's two answers: what it runs, and until when.
func hello(conn *net.UnixConn, sink *os.File, within time.Duration) ([2]record, error) {
	var got [2]record
	_ = conn.SetDeadline(time.Now().Add(within))
	defer conn.SetDeadline(time.Time{}) //nolint:errcheck // a connection that is broken shows with its next use
	var buf [recordMax]byte
	expect := func(want kind) (record, error) {
		n, err := conn.Read(buf[:])
		if err != nil || n == 0 {
			return record{}, errors.New("the guard did not answer")
		}
		r, ok := parseRecord(buf[:n])
		switch {
		case ok && r.kind == kindRefused && r.text == busy:
			return r, errBusy
		case ok && r.kind == kindRefused:
			return r, fmt.Errorf("the guard refused: %s", r.text)
		case !ok || r.kind != want:
			return r, errors.New("the guard answered something else")
		}
		return r, nil
	}
	if _, err := expect(kindAck); err != nil {
		return got, err
	}
	var rights []byte
	if sink != nil {
		rights = unix.UnixRights(int(sink.Fd()))
	}
	r := record{kind: kindHello}
	_, _, err := conn.WriteMsgUnix(r.put(buf[:]), rights, nil)
	if err != nil {
		return got, fmt.Errorf("the guard can't be reached: %v", err)
	}
	if got[0], err = expect(kindStarted); err != nil {
		return got, err
	}
	got[1], err = expect(kindAck)
	return got, err
}

// Detach lets go of the program without ending it, so that another sidecar can Adopt it. The guard keeps it until
// the deadline; where there is none, until the given instant. The driver is then as if never started. It fails, with the program still
// kept, if nobody could adopt.
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
	k.sendLocked(record{kind: kindDetach, a: int64(until)})
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
		d.tree = nil
	}
	close(k.leave)
	return nil
}

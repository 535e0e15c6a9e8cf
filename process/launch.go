package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// start is what the start of one guard needs, and gives back when it is over.
type start struct {
	*driver
	k       *handle
	spec    *wire.Spec
	files   []*os.File // the guard's descriptors, by number
	out     *opened
	ahead   *readied // nil: no guard waits
	closers []func() error
}

// launch starts a guard, which starts the program. It returns the tree also with an error if
// something may be left of it.
func (d *driver) launch(ctx context.Context, env []string, deadline election.Instant) (*handle, error) {
	fail := func(err error) error { return fmt.Errorf("cannot start %s: %w", d.cfg.Command[0], err) }
	// Should the guard die, its orphans become our children.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fail(fmt.Errorf("cannot become a subreaper: %v", err))
	}
	s := &start{driver: d, ahead: d.takeReadied()}
	defer s.close()
	mark := d.cfg.mark()
	if s.ahead != nil {
		mark = s.ahead.mark
	}
	s.k = d.newHandle(mark)
	s.k.watch.deadline, s.k.watch.acked = deadline, deadline
	s.k.noteLead(deadline, election.BootClock())
	err := s.prepare(ctx, env, deadline)
	if err == nil {
		err = s.begin()
	}
	if err != nil {
		s.undo()
		return nil, fail(err)
	}
	k := s.k
	d.mu.Lock()
	d.launching = k
	renewed := d.renewed
	d.mu.Unlock()
	if renewed > 0 {
		k.extend(renewed)
	}
	go s.out.read(k.outputDone)
	_ = s.files[wire.ControlFD].Close() // lest the guard's end be hidden by our own handle
	if err = k.greet(ctx, cmp.Or(d.startWithin, startWithin)+answerWithin); err == nil {
		if err = k.record(); err == nil {
			k.logAbilities()
			go k.run()
			return k, nil
		}
	} else if errors.Is(err, errRefused) && k.endedWithin(confirmWithin) {
		s.undo()
		return nil, fail(errors.Unwrap(err))
	}
	// It may run. Undo it.
	k.end(election.BootClock())
	go k.run()
	if e := k.stop(context.WithoutCancel(ctx), 0); e != nil {
		return k, errors.Join(fail(err), e)
	}
	return nil, fail(err)
}

func (s *start) close() {
	for _, c := range slices.Backward(s.closers) {
		_ = c()
	}
	s.ahead.drop() // unless it has begun
}

// undo removes the traces of a start of which nothing is left.
func (s *start) undo() {
	if s.k.conn != nil {
		_ = s.k.conn.Close()
	}
	if s.out != nil && s.out.source != nil {
		_ = s.out.source.Close()
	}
	if s.k.cgroupPath != "" {
		_ = kernel.RemoveCgroup(s.k.cgroupPath)
	}
	if s.k.stateDir != "" {
		wire.Forget(s.k.stateDir)
	}
}

// prepare collects what the guard is given, and puts on record what is about to be started.
func (s *start) prepare(ctx context.Context, env []string, deadline election.Instant) (err error) {
	if s.spec, err = s.driver.spec(s.k, env, deadline); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, null.Close)
	conn, theirs, err := controlPair()
	if err != nil {
		return err
	}
	s.k.conn = conn
	s.closers = append(s.closers, theirs.Close)
	s.files = []*os.File{null, os.Stderr, os.Stderr, theirs, nil}
	if err := s.claim(ctx); err != nil {
		return err
	}
	switch {
	case s.spec.Mode == wire.ModeUnit:
		s.k.cgroupPath = s.spec.Cgroup
	case !s.cfg.NoCgroup:
		if s.k.cgroupPath, err = kernel.MakeCgroup(kernel.CgroupPrefix + s.k.mark); err != nil {
			s.cfg.Log.Debug().Err(err).Msg("no cgroup available; continuing without one")
		}
		s.spec.Cgroup = s.k.cgroupPath
	}
	if s.out, err = s.cfg.Output.open(s.cfg.Command[0]); err != nil {
		return err
	}
	s.closers = append(s.closers, s.out.close)
	if s.out.sink != nil {
		s.spec.SinkFD = s.pass(s.out.sink)
	} else {
		s.spec.OutFD, s.spec.ErrFD = s.pass(s.out.stdout), s.pass(s.out.stderr)
	}
	if err := s.accompany(); err != nil {
		return err
	}
	memory, err := kernel.MemoryFile("spec", s.spec.Encode())
	if err != nil {
		return err
	}
	s.closers = append(s.closers, memory.Close)
	s.files[wire.SpecFD] = memory
	return s.k.record()
}

// pass gives the guard one more descriptor and returns its number there.
func (s *start) pass(f *os.File) int64 {
	s.files = append(s.files, f)
	return int64(len(s.files) - 1)
}

// claim makes sure that nothing of an earlier run is left, and takes the place of a guard in the
// state directory.
func (s *start) claim(ctx context.Context) error {
	if s.cfg.StateDir == "" {
		return nil
	}
	dir, err := filepath.Abs(s.cfg.StateDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("the state directory can't be made: %v", err)
	}
	if err := s.settleBefore(ctx); err != nil {
		return err
	}
	lock, err := wire.Lock(dir)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, lock.Close)
	s.spec.LockFD = s.pass(lock)
	l, err := wire.Listen(dir)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, l.Close)
	s.spec.ListenFD, s.spec.StateDir, s.k.stateDir = s.pass(l), dir, dir
	return nil
}

// accompany passes on what the companion is told, if there is one.
func (s *start) accompany() error {
	s.mu.Lock()
	c := s.companion
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	input, err := kernel.MemoryFile("input", c.Input)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, input.Close)
	s.spec.InputFD, s.spec.CompanionEnv = s.pass(input), slices.Concat(c.Env, []string{wire.TreeMark + "=" + s.k.mark})
	s.spec.Companion = append([]string{"tanist"}, c.Args...)
	return nil
}

// begin has a guard begin: the one that waits, or a new one.
func (s *start) begin() (err error) {
	k := s.k
	if s.ahead != nil && s.ahead.begin(s.files[wire.SpecFD:]) == nil {
		_ = k.conn.Close()
		k.conn, k.guard, s.ahead = s.ahead.conn, s.ahead.guard, nil
	} else if k.guard, err = s.startGuard(k.mark, s.files); err != nil {
		return fmt.Errorf("cannot run the guard: %v", err)
	}
	k.guardPID, k.guardDead = k.guard.Pid, k.guard.dead
	k.began, _ = kernel.BeganAt(k.guardPID) // of one that has ended at once nothing is asked
	return nil
}

type refusedError struct{ err error }

var errRefused = errors.New("refused")

// ErrLate is the error of a start that was not done because its deadline had passed: the lease was
// lost, and nothing is wrong with the command.
var ErrLate = errors.New(wire.Late)

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

func (e *refusedError) Is(target error) bool { return target == errRefused }

// endedWithin waits for the end of a guard that refused, which comes after the end of what it had
// started, and tells whether it says that nothing is left.
func (k *handle) endedWithin(d time.Duration) bool {
	_ = k.conn.CloseWrite() // it need not wait for us
	select {
	case <-k.guardDead:
		return k.guard.code == wire.GuardGone || k.guard.code == wire.GuardRefused
	case <-time.After(d):
		return false
	}
}

// greet waits for the guard's first word.
func (k *handle) greet(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, errors.New("the guard did not answer"))
	defer cancel()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = k.conn.SetReadDeadline(time.Unix(1, 0))
	})
	buf := make([]byte, wire.RecordMax)
	n, err := k.conn.Read(buf)
	for err == nil && n > 0 {
		r, ok := wire.ParseRecord(buf[:n])
		if !ok || r.Kind != wire.KindAck {
			break
		}
		k.take(r) // of an Extend while it starts
		n, err = k.conn.Read(buf)
	}
	if !stop() {
		<-interrupted
		_ = k.conn.SetReadDeadline(time.Time{})
		return context.Cause(ctx)
	}
	r, ok := wire.ParseRecord(buf[:max(n, 0)])
	switch {
	case err != nil || n == 0 || !ok:
		return errors.New("the guard ended at once: is the subcommand guard there?")
	case r.Kind == wire.KindRefused:
		why := strings.TrimPrefix(r.Text, "cannot start "+k.what+": ")
		if why == wire.Late {
			return &refusedError{ErrLate}
		}
		return &refusedError{errors.New(why)}
	case r.Kind == wire.KindExited || r.Kind == wire.KindKilling || r.Kind == wire.KindGone:
		why := wire.Cause(r.A)
		if r.Kind == wire.KindExited {
			why = wire.Cause(r.B)
		}
		return &refusedError{fmt.Errorf("it was killed before it ran: %s", wire.ExitWords(wire.StatusUnknown, why))}
	case r.Kind != wire.KindStarted:
		return errors.New("the guard answered something else")
	}
	k.mu.Lock()
	k.setMainLocked(int(r.A))
	k.able = wire.Ability(r.B)
	k.watch.lastSent = election.BootClock() // renewals may come already
	k.mu.Unlock()
	return nil
}

// spec makes what the guard is told.
func (d *driver) spec(k *handle, extra []string, deadline election.Instant) (*wire.Spec, error) {
	s := &wire.Spec{
		Dir: d.cfg.Dir, UID: -1, GID: -1, StopSignal: int64(d.cfg.StopSignal), Deadline: int64(deadline), Tree: k.mark,
		SinkFD: -1, ListenFD: -1, OutFD: -1, ErrFD: -1, InputFD: -1, LockFD: -1,
		Watchdog: int64(d.cfg.Watchdog), WatchdogPath: d.cfg.WatchdogPath, WatchdogTimeout: int64(d.cfg.WatchdogTimeout),
	}
	s.OOMScore = int64(d.cfg.OOMScore)
	if !d.cfg.NewPrivs {
		s.NoNewPrivs = 1
	}
	if s.StopSignal == 0 {
		s.StopSignal = int64(syscall.SIGTERM)
	}
	if s.WatchdogPath == "" {
		s.WatchdogPath = "/dev/watchdog"
	}
	dir, err := filepath.Abs(d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	s.Dir = dir
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("the working directory can't be used: %v", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("the working directory %s is not a directory", dir)
	}
	env := d.cfg.Inherit
	if env == nil {
		env = os.Environ()
	}
	var about []string
	if d.cfg.User != "" {
		if about, err = become(s, d.cfg.User); err != nil {
			return nil, err
		}
	}
	s.Env = lastOfEach(slices.Concat(env, about, d.cfg.Env, extra, []string{wire.TreeMark + "=" + k.mark}))
	if err := d.plan(s); err != nil {
		return nil, err
	}
	if s.Mode == wire.ModeUnit {
		s.Argv, s.Env = d.cfg.Command, nil
		if bus := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); bus != "" {
			s.Env = []string{"DBUS_SYSTEM_BUS_ADDRESS=" + bus}
		}
		return s, nil
	}
	s.Argv, err = resolve(d.cfg.Command, s.Env, dir)
	return s, err
}

// become sets the identity, and returns the variables that tell the program about it.
func become(s *wire.Spec, name string) ([]string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("there is no user %q", name)
		}
	}
	if u.Uid == strconv.Itoa(os.Geteuid()) {
		return nil, nil // nothing to become, and we may not be allowed to set even this
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("only root can run it as user %q", name)
	}
	s.UID, _ = strconv.ParseInt(u.Uid, 10, 64)
	s.GID, _ = strconv.ParseInt(u.Gid, 10, 64)
	if s.Groups, err = u.GroupIds(); err != nil {
		return nil, fmt.Errorf("the groups of user %q can't be read: %v", name, err)
	}
	return []string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username}, nil
}

// lastOfEach keeps of each variable the last value.
func lastOfEach(env []string) []string {
	seen := make(map[string]bool, len(env))
	out := make([]string, 0, len(env))
	for _, kv := range slices.Backward(env) {
		key, _, _ := strings.Cut(kv, "=")
		if !seen[key] {
			seen[key] = true
			out = append(out, kv)
		}
	}
	slices.Reverse(out)
	return out
}

// resolve finds the program of a command as a shell with that environment would.
func resolve(command, env []string, dir string) ([]string, error) {
	name := command[0]
	var tried []string
	if strings.ContainsRune(name, '/') {
		tried = []string{name}
	} else {
		path := ""
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, "PATH="); ok {
				path = v
			}
		}
		for _, p := range filepath.SplitList(path) {
			tried = append(tried, filepath.Join(p, name))
		}
	}
	var why error = exec.ErrNotFound
	for _, file := range tried {
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		info, err := os.Stat(file)
		switch {
		case err != nil:
			if len(tried) == 1 {
				why = err
			}
		case info.IsDir():
			why = fmt.Errorf("%s is a directory", file)
		case info.Mode()&0o111 == 0:
			why = fmt.Errorf("%s is not executable", file)
		default:
			return append([]string{file}, command[1:]...), nil
		}
	}
	return nil, why
}

// controlPair returns the two ends of a control socket.
func controlPair() (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// guardProcess is a guard that is a child of this process.
type guardProcess struct {
	*os.Process
	dead chan struct{} // closed when it has ended
	code int           // its exit code, -1 if it is not known; valid after dead
}

// startGuard starts a guard with files as its descriptors.
func (d *driver) startGuard(mark string, files []*os.File, more ...string) (*guardProcess, error) {
	self := d.cfg.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	p, err := os.StartProcess(self, []string{"tanist", "guard", "--", d.cfg.Command[0]}, &os.ProcAttr{
		Dir: "/", Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
		Env: append([]string{
			wire.GuardMark + "=" + mark, "GOGC=off", "GOMAXPROCS=2", "GOTRACEBACK=single", "GODEBUG=madvdontneed=1",
		}, more...),
	})
	if err != nil {
		return nil, err
	}
	g := &guardProcess{Process: p, dead: make(chan struct{}), code: -1}
	go func() {
		if state, err := p.Wait(); err == nil {
			g.code = state.ExitCode()
		}
		close(g.dead)
	}()
	return g, nil
}

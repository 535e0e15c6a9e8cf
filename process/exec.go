package process

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

const (
	guardName = "tanist-guard"
	guardMark = "TANIST_GUARD" // in the environment of a guard
	treeMark  = "TANIST_TREE"  // in the environment of what it guards; its value is one tree's own
)

// startWithin bounds what a guard needs to start a program; a loaded host was seen to take 1 s.
const startWithin = 30 * time.Second

// Watchdog says whether the guard feeds a hardware watchdog.
type Watchdog int

// The choices for a watchdog.
const (
	WatchdogOff      Watchdog = iota
	WatchdogAuto              // if there is one
	WatchdogRequired          // without one, nothing is started
)

// Config describes a program to keep. The zero value of each field but Command is usable.
type Config struct {
	// Command is the program and its arguments. A name without a slash is searched in the PATH of the program's environment.
	Command []string
	// Env is the whole environment of the program, as KEY=VALUE, to which Start adds; nil means that of this process. Of
	// entries with the same key the last one counts.
	Env []string
	// Dir is the working directory; empty means that of this process.
	Dir string
	// User is the name or number of the user to run as; empty means that of this process.
	User string
	// StopSignal asks for a graceful end; 0 means SIGTERM. It goes to the process group of the main process.
	StopSignal syscall.Signal
	// Self is the binary to run as guard; empty means this one (/proc/self/exe).
	Self string
	// Output says where the program's stdout and stderr go.
	Output Output
	// StateDir is where a restarted sidecar finds the guard again (see [Adopt]); it is made if it does not exist, and must
	// belong to this program alone. Empty means that nobody can adopt.
	StateDir string
	// NoCgroup does without a cgroup where one could be had.
	NoCgroup bool
	// AnswerWithin is how long the guard may take to acknowledge before it is taken for dead; 0 means 2 s.
	AnswerWithin time.Duration
	// Watchdog, with the path of the device (empty: /dev/watchdog) and how long the device waits for food (0: as it is set).
	Watchdog        Watchdog
	WatchdogPath    string
	WatchdogTimeout time.Duration
	// Log receives starts, and what goes wrong with guards.
	Log zerolog.Logger
}

// Exec keeps one program: a driver for programs that stay in the foreground. Its methods are safe for concurrent use.
type Exec struct{ driver }

// New makes a driver for the program that cfg describes. It starts nothing.
func New(cfg Config) *Exec {
	return &Exec{driver{cfg: cfg, plan: func(*spec) error { return nil }}}
}

// driver is what all drivers have in common: at most one tree at a time.
type driver struct {
	cfg  Config
	plan func(*spec) error // what the driver adds to the spec
	// startWithin bounds the start; 0 means startWithin.
	startWithin time.Duration

	mu        sync.Mutex
	starting  bool
	launching *kept
	tree      *kept  // the last one, nil before the first start
	ahead     *spare // nil: none
	companion *Companion
}

// Start starts the program with env added to its environment, under a guard that kills the whole tree at the deadline
// unless Extend moves it. It returns once the program runs, or with an error after which nothing of it is left. When ctx
// ends before that, the start is undone. Start may be called again after a Stop that returned nil, or after the tree
// ended by itself.
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
		default:
			d.mu.Unlock()
			return fmt.Errorf("cannot start %s: the last run is not confirmed to be gone", k.what)
		}
	}
	d.starting = true
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

// Extend moves the deadline. It never blocks. An earlier deadline than the one in force, or one that comes after that one has
// passed, is ignored.
func (d *driver) Extend(deadline election.Instant) {
	d.mu.Lock()
	k := d.launching
	if k == nil {
		k = d.tree
	}
	d.mu.Unlock()
	if k != nil {
		k.extend(deadline)
	}
}

// Stop sends the stop signal, kills the whole tree after grace or at the deadline, whichever is first, and returns nil
// only when no process of the tree is left: confirmed by the kernel. It may be called at the same time with a
// shorter grace; the shortest wins. Otherwise it returns an error when ctx ends, or 5 s after the kill; the killing goes on. A
// driver that was never started is stopped.
func (d *driver) Stop(ctx context.Context, grace time.Duration) error {
	if k := d.current(); k != nil {
		return k.stop(ctx, grace)
	}
	return nil
}

// Exited returns a channel that is closed when the main process has ended, or its guard has. Descendants may be left,
// so Stop is still due. It is nil before the first start, and each start makes a new one.
func (d *driver) Exited() <-chan struct{} {
	if k := d.current(); k != nil {
		return k.exited
	}
	return nil
}

// Exit tells in plain words how the program ended, such as "exit status 3", "killed by SIGKILL" or "guard: lease
// deadline passed"; it is empty while the program runs.
func (d *driver) Exit() string {
	k := d.current()
	if k == nil {
		return ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.exit
}

// ExitCode returns the exit status as a shell gives it (128 + number of the signal), or -1 if it is not known (yet).
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

// EndedByItself reports whether the program has ended, and neither its guard nor the deadline made it. An end that followed the
// stop signal is one's own too.
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
	k := d.current()
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pid
}

// Signal relays a signal to the main process.
func (d *driver) Signal(sig syscall.Signal) {
	if k := d.current(); k != nil {
		k.send(record{kind: kindSignal, a: int64(sig)})
	}
}

func (d *driver) current() *kept {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tree
}

// launch starts a guard, which starts the program. It returns the tree also with an error if something may be left of it.
func (d *driver) launch(ctx context.Context, env []string, deadline election.Instant) (*kept, error) {
	var closers []func() error
	defer func() {
		for _, c := range slices.Backward(closers) {
			_ = c()
		}
	}()
	// Of the guard's orphans we are the next of kin, should it die.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("cannot start %s: cannot become a subreaper: %v", d.cfg.Command[0], err)
	}
	ahead := d.takeSpare()
	defer func() { ahead.drop() }() // unless it has begun
	mark := rand.Text()
	if ahead != nil {
		mark = ahead.mark
	}
	k := &kept{
		log: d.cfg.Log, what: d.cfg.Command[0], mark: mark, guardFD: -1,
		outputDone: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}),
		poke: make(chan struct{}, 1), leave: make(chan struct{}),
		watch: watch{patience: d.cfg.AnswerWithin, deadline: deadline, acked: deadline, killAt: election.Never},
	}
	if k.watch.patience <= 0 {
		k.watch.patience = answerWithin
	}
	s, err := d.spec(k, env, deadline)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", d.cfg.Command[0], err)
	}
	var out *opened
	fail := func(err error) (*kept, error) {
		if k.conn != nil {
			_ = k.conn.Close()
		}
		if out != nil && out.source != nil {
			_ = out.source.Close()
		}
		if k.cgroupPath != "" {
			_ = removeCgroup(k.cgroupPath)
		}
		if k.stateDir != "" {
			forget(k.stateDir)
		}
		return nil, fmt.Errorf("cannot start %s: %w", d.cfg.Command[0], err)
	}
	if !d.cfg.NoCgroup && s.mode != modeUnit {
		k.cgroupPath, err = makeCgroup(cgroupPrefix + k.mark[:12])
		if err != nil {
			d.cfg.Log.Debug().Err(err).Msg("Going without a cgroup")
		}
		s.cgroup = k.cgroupPath
	}
	if s.mode == modeUnit {
		k.cgroupPath = s.cgroup
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	closers = append(closers, null.Close)
	conn, theirs, err := controlPair()
	if err != nil {
		return fail(err)
	}
	k.conn = conn
	closers = append(closers, theirs.Close)
	files := []*os.File{null, os.Stderr, os.Stderr, theirs, nil}
	pass := func(f *os.File) int64 {
		files = append(files, f)
		return int64(len(files) - 1)
	}
	out, err = d.cfg.Output.open(d.cfg.Command[0])
	if err != nil {
		return fail(err)
	}
	closers = append(closers, out.close)
	if out.sink != nil {
		s.sinkFD = pass(out.sink)
	} else {
		s.outFD, s.errFD = pass(out.stdout), pass(out.stderr)
	}
	if d.cfg.StateDir != "" {
		if s.stateDir, err = filepath.Abs(d.cfg.StateDir); err != nil {
			return fail(err)
		}
		if err := d.sweep(ctx); err != nil {
			return fail(err)
		}
		l, err := listen(d.cfg.StateDir)
		if err != nil {
			return fail(err)
		}
		closers = append(closers, l.Close)
		s.listenFD = pass(l)
		k.stateDir = s.stateDir
	}
	d.mu.Lock()
	c := d.companion
	d.mu.Unlock()
	if c != nil {
		input, err := memoryFile("input", c.Input)
		if err != nil {
			return fail(err)
		}
		closers = append(closers, input.Close)
		s.inputFD, s.companionEnv = pass(input), slices.Concat(c.Env, []string{treeMark + "=" + k.mark})
		s.companion = append([]string{"tanist"}, c.Args...)
	}
	memory, err := memoryFile("spec", s.encode())
	if err != nil {
		return fail(err)
	}
	closers = append(closers, memory.Close)
	files[specFD] = memory

	if ahead != nil && ahead.begin(files[specFD:]) == nil {
		_ = k.conn.Close()
		k.conn, k.guard, ahead = ahead.conn, ahead.guard, nil
	} else {
		if k.guard, err = d.startGuard(k.mark, files); err != nil {
			return fail(fmt.Errorf("cannot run the guard: %v", err))
		}
	}
	k.guardPID, k.guardDead = k.guard.Pid, k.guard.dead
	d.mu.Lock()
	d.launching = k
	d.mu.Unlock()
	go out.read(k.outputDone)
	_ = theirs.Close() // lest the guard's end be hidden by our own handle
	if err := k.greet(ctx, cmp.Or(d.startWithin, startWithin)+answerWithin); err != nil {
		if errors.Is(err, errRefused) && k.endedWithin(confirmWithin) {
			return fail(errors.Unwrap(err))
		}
		// It may run. Undo it.
		k.end(election.BootClock())
		go k.run()
		if e := k.stop(context.WithoutCancel(ctx), 0); e != nil {
			return k, errors.Join(fmt.Errorf("cannot start %s: %w", k.what, err), e)
		}
		return nil, fmt.Errorf("cannot start %s: %w", k.what, err)
	}
	if d.cfg.StateDir != "" {
		if err := remember(d.cfg.StateDir, k); err != nil {
			d.cfg.Log.Warn().Err(err).Msg("Cannot write down where the guard is: a restarted sidecar won't find it")
		}
	}
	k.logAbilities()
	go k.run()
	return k, nil
}

type refusedError struct{ err error }

var errRefused = errors.New("refused")

func (e *refusedError) Error() string        { return e.err.Error() }
func (e *refusedError) Unwrap() error        { return e.err }
func (e *refusedError) Is(target error) bool { return target == errRefused }

// endedWithin waits for the end of a guard that refused, which comes after the end of what it had started, and tells whether
// it says that nothing is left.
func (k *kept) endedWithin(d time.Duration) bool {
	_ = k.conn.CloseWrite() // it need not wait for us
	select {
	case <-k.guardDead:
		return k.guard.code == guardGone || k.guard.code == guardRefused
	case <-time.After(d):
		return false
	}
}

// greet waits for the guard's first word.
func (k *kept) greet(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, errors.New("the guard did not answer"))
	defer cancel()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = k.conn.SetReadDeadline(time.Unix(1, 0))
	})
	buf := make([]byte, recordMax)
	n, err := k.conn.Read(buf)
	for err == nil && n > 0 {
		r, ok := parseRecord(buf[:n])
		if !ok || r.kind != kindAck {
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
	r, ok := parseRecord(buf[:max(n, 0)])
	switch {
	case err != nil || n == 0 || !ok:
		return errors.New("the guard ended at once: is the subcommand guard there?")
	case r.kind == kindRefused:
		return &refusedError{errors.New(strings.TrimPrefix(r.text, "cannot start "+k.what+": "))}
	case r.kind == kindExited || r.kind == kindKilling || r.kind == kindGone:
		why := cause(r.a)
		if r.kind == kindExited {
			why = cause(r.b)
		}
		return &refusedError{fmt.Errorf("it was killed before it ran: %s", exitWords(statusUnknown, why))}
	case r.kind != kindStarted:
		return errors.New("the guard answered something else")
	}
	k.pid, k.able = int(r.a), ability(r.b)
	k.watch.lastSent = election.BootClock()
	return nil
}

// spec makes what the guard is told.
func (d *driver) spec(k *kept, extra []string, deadline election.Instant) (*spec, error) {
	s := &spec{
		dir: d.cfg.Dir, uid: -1, gid: -1, stopSignal: int64(d.cfg.StopSignal), deadline: int64(deadline), tree: k.mark,
		sinkFD: -1, listenFD: -1, outFD: -1, errFD: -1, inputFD: -1,
		watchdog: int64(d.cfg.Watchdog), watchdogPath: d.cfg.WatchdogPath, watchdogTimeout: int64(d.cfg.WatchdogTimeout),
	}
	if s.stopSignal == 0 {
		s.stopSignal = int64(syscall.SIGTERM)
	}
	if s.watchdogPath == "" {
		s.watchdogPath = "/dev/watchdog"
	}
	dir, err := filepath.Abs(d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	s.dir = dir
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("the working directory can't be used: %v", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("the working directory %s is not a directory", dir)
	}
	env := d.cfg.Env
	if env == nil {
		env = os.Environ()
	}
	if d.cfg.User != "" {
		var about []string
		if about, err = s.become(d.cfg.User); err != nil {
			return nil, err
		}
		env = slices.Concat(env, about)
		if d.cfg.Env != nil {
			env = slices.Concat(about, d.cfg.Env) // what is said expressly wins
		}
	}
	s.env = lastOfEach(slices.Concat(env, extra, []string{treeMark + "=" + k.mark}))
	if err := d.plan(s); err != nil {
		return nil, err
	}
	if s.mode == modeUnit {
		s.argv, s.env = d.cfg.Command, nil
		return s, nil
	}
	s.argv, err = resolve(d.cfg.Command, s.env, dir)
	return s, err
}

// become sets the identity, and returns the variables that tell the program about it.
func (s *spec) become(name string) ([]string, error) {
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
	s.uid, _ = strconv.ParseInt(u.Uid, 10, 64)
	s.gid, _ = strconv.ParseInt(u.Gid, 10, 64)
	if s.groups, err = u.GroupIds(); err != nil {
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

// memoryFile returns a file that exists in memory only.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a memory file: %v", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot write a memory file: %v", err)
	}
	return f, nil
}

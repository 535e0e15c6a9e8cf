package guard

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/unit"
	"github.com/tanist/tanist/process/internal/wire"
)

const (
	// reap zombies at least so often; most wake the guard themselves
	orphanSweep   = 5 * time.Second
	killRetry     = time.Millisecond      // between two strikes
	killRetrySlow = 20 * time.Millisecond // once there is something that does not die
	// for the status command to answer twice, once all is killed
	doubtWithin = helperWithin
	sayLeft     = 250 * time.Millisecond // between two reports of what does not die
)

// guard is the state of the guard process. Everything that its loop needs is made before the
// program is started, and the loop runs on one thread, so that killing waits for no memory, no lock
// and no other goroutine.
type guard struct {
	spec    *wire.Spec
	able    wire.Ability
	steeled bool
	hunter  *kernel.Hunter
	group   *kernel.Cgroup // nil: no cgroup
	output  *spool         // nil: the program writes elsewhere by itself
	dog     *watchdog

	timer    int
	control  int  // -1: no sidecar
	greeting bool // the sidecar has yet to say hello
	listen   int  // -1: nobody can adopt
	mainFD   int  // pidfd of the main process, -1 if there is none (any more)
	mainPID  int

	deadline election.Instant
	expired  bool // the deadline has passed; there is no way back
	stopping bool
	killAt   election.Instant // while stopping
	killing  bool
	due      election.Instant // when killing ought to have begun
	cause    wire.Cause
	begun    bool // the program is being started, or has been
	exited   bool
	status   unix.WaitStatus
	saidExit bool
	saidLeft election.Instant

	doubtEnd election.Instant // while doubting: when that ends without a proof
	// all that could be killed has been, and nothing shows that this was all: the deadline is final
	doubting bool

	script script    // of the script driver
	beside companion // what runs beside the program

	in, out [wire.RecordMax]byte
	polled  [10]unix.PollFd
}

// Main is the guard: what `tanist guard` runs. It is started by the drivers of this package only,
// as a re-executed copy of the running binary, and must be called from the main goroutine, before
// anything else. It returns the exit code.
func Main() int {
	if code, is := unit.Main(os.Args[min(len(os.Args), 2):]); is {
		return code
	}
	// the kernel ties a child's death signal, and the priority, to the thread
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // little is allocated, and nothing by the loop
	debug.SetMemoryLimit(64 << 20)
	// what leaked into us goes no further
	_ = unix.CloseRange(wire.ExtraFD, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC)
	unix.CloseOnExec(wire.ControlFD)
	unix.CloseOnExec(wire.SpecFD)
	kernel.SetName(wire.GuardName)
	// Handled and dropped, rather than ignored, because the program would inherit the latter. A
	// guard ends when its tree does: whoever signals everything, as service managers do, must not
	// turn it into the first victim.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGPIPE, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGVTALRM, unix.SIGPROF, unix.SIGIO, unix.SIGPWR)

	g := &guard{hunter: kernel.NewHunter(), script: script{asker: helper{fd: -1}, killer: helper{fd: -1}}, beside: companion{fd: -1}, control: wire.ControlFD, mainFD: -1, killAt: election.Never}
	if os.Getenv(wire.ReadiedMark) != "" {
		g.steel()
		if needed, err := awaitBegin(); err != nil {
			fmt.Fprintf(os.Stderr, "tanist guard: %v\n", err)
			return wire.GuardUsage
		} else if !needed {
			return wire.GuardRefused
		}
	}
	spec, err := readSpec(wire.SpecFD)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tanist guard: %v (it is started by a sidecar, not by hand)\n", err)
		return wire.GuardUsage
	}
	g.spec, g.listen, g.deadline = spec, int(spec.ListenFD), election.Instant(spec.Deadline)
	if err := g.prepare(); err != nil {
		return g.refuse(err)
	}
	if err := g.start(); err != nil {
		return g.refuse(err)
	}
	if spec.Mode != wire.ModeScript { // a script has to end first
		g.say(wire.Record{Kind: wire.KindStarted, A: int64(g.mainPID), B: int64(g.able)})
	}
	return g.loop()
}

func readSpec(fd int) (*wire.Spec, error) {
	f := os.NewFile(uintptr(fd), "spec")
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read what to guard: %v", err)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("cannot read what to guard: %v", err)
	}
	return wire.DecodeSpec(b)
}

func (g *guard) refuse(err error) int {
	g.beside.abandon()
	if g.group != nil {
		_ = kernel.RemoveCgroup(g.spec.Cgroup)
	}
	if g.spec.StateDir != "" { // should nobody be there to do it
		wire.Forget(g.spec.StateDir)
	}
	g.say(wire.Record{Kind: wire.KindRefused, Text: err.Error()})
	return wire.GuardRefused
}

// prepare gets everything that the loop needs, while it can still fail without harm.
func (g *guard) prepare() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become a subreaper: %v", err)
	}
	var err error
	if g.timer, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("cannot make a timer: %v", err)
	}
	if err := unix.SetNonblock(g.control, true); err != nil {
		return fmt.Errorf("cannot use the control socket: %v", err)
	}
	if g.listen >= 0 {
		if err := errors.Join(unix.SetNonblock(g.listen, true), unix.Listen(g.listen, 4)); err != nil {
			return fmt.Errorf("cannot listen at the guard's socket: %v", err)
		}
	}
	if g.spec.Cgroup != "" && g.spec.Mode != wire.ModeUnit {
		if g.group, err = kernel.OpenCgroup(g.spec.Cgroup); err != nil {
			return err
		}
		g.able |= wire.AbleCgroup
	}
	if g.spec.SinkFD >= 0 {
		if g.output, err = newSpool(int(g.spec.SinkFD)); err != nil {
			return err
		}
	}
	if g.dog, err = openWatchdog(g.spec); err != nil {
		return err
	}
	if g.dog != nil {
		g.able |= wire.AbleWatchdog
	}
	if !g.steeled {
		g.steel()
	}
	if g.group != nil {
		g.group.Rehearse()
	}
	if election.BootClock() >= g.deadline {
		return fmt.Errorf("cannot start %s: %s", g.spec.Argv[0], wire.Late)
	}
	g.arm()
	return nil
}

// steel makes the guard small, and hard to hold up. It rehearses first, so that the pages of the
// kill path are in memory when they are locked there.
func (g *guard) steel() {
	kernel.ShedText()
	g.hunter.Strike(unix.SIGKILL, nil)
	g.reap()
	g.able |= strengthen()
	g.steeled = true
}

// start runs the program: in its own session, told to die with the guard, and in the cgroup from
// its first instruction.
func (g *guard) start() error {
	s := g.spec
	// from here on all that is started is the program's
	if err := kernel.Confine(s.NoNewPrivs != 0); err != nil {
		return fmt.Errorf("cannot start %s: its privileges can't be taken away: %v", s.Argv[0], err)
	}
	if err := g.accompany(); err != nil {
		return err
	}
	if err := g.mayStillStart(); err != nil {
		return err
	}
	g.begun = true
	if s.Mode == wire.ModeUnit {
		return nil // the service manager starts it, once we are ready to end it
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open /dev/null: %v", err)
	}
	defer unix.Close(null)
	out, errs := int(s.OutFD), int(s.ErrFD)
	if g.output != nil {
		out, errs = g.output.programEnd, g.output.programEnd
	}
	pid, fd, err := g.spawn(s.Argv, []uintptr{uintptr(null), uintptr(out), uintptr(errs)})
	if g.output != nil {
		unix.Close(g.output.programEnd)
	} else {
		unix.Close(out)
		unix.Close(errs)
	}
	if err != nil {
		return fmt.Errorf("cannot start %s: %v", s.Argv[0], err)
	}
	if s.Mode == wire.ModeScript {
		g.script.begin(pid, fd)
		return nil
	}
	g.mainPID, g.mainFD = pid, fd
	return nil
}

// mayStillStart looks again at the deadline and at the sidecar: for the companion to be ready took
// its time. What nobody waits for is not started.
func (g *guard) mayStillStart() error {
	g.hear()
	g.judge(election.BootClock())
	switch {
	case g.expired:
		return fmt.Errorf("cannot start %s: %s", g.spec.Argv[0], wire.Late)
	case g.killing || g.stopping:
		return fmt.Errorf("cannot start %s: it was to be stopped before it ran", g.spec.Argv[0])
	case g.control < 0:
		return fmt.Errorf("cannot start %s: the sidecar has ended", g.spec.Argv[0])
	}
	return nil
}

// spawn starts a program in the tree.
func (g *guard) spawn(argv []string, files []uintptr) (pid, pidfd int, err error) {
	attr, err := g.asProgram(files)
	if err != nil {
		return 0, -1, err
	}
	return g.spawnAs(argv[0], argv, attr)
}

// asProgram describes a process with the environment and the credentials of the program: itself,
// and each of its commands.
func (g *guard) asProgram(files []uintptr) (*syscall.ProcAttr, error) {
	s := g.spec
	attr := &syscall.ProcAttr{
		Dir: s.Dir, Env: s.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if s.UID < 0 {
		return attr, nil
	}
	cred := &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)}
	for _, id := range s.Groups {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group %q is not a number", id)
		}
		cred.Groups = append(cred.Groups, uint32(n))
	}
	attr.Sys.Credential = cred
	return attr, nil
}

// spawnAs starts what attr describes, in the tree's cgroup if there is one.
func (g *guard) spawnAs(file string, argv []string, attr *syscall.ProcAttr) (pid, pidfd int, err error) {
	pidfd = -1
	attr.Sys.PidFD = &pidfd
	if g.group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, g.group.Dir
	}
	pid, err = g.fork(file, argv, attr)
	if err != nil && g.group != nil && cgroupRefused(err) {
		if err := g.leaveCgroup(); err != nil {
			return 0, -1, err
		}
		attr.Sys.UseCgroupFD = false
		pid, err = g.fork(file, argv, attr)
	}
	if err != nil {
		return 0, -1, err
	}
	if pidfd < 0 { // a kernel before 5.4
		return pid, -1, nil
	}
	unix.CloseOnExec(pidfd)
	return pid, pidfd, nil
}

// fork starts a process that the kernel's memory killer treats as is configured, from its first
// instruction on: what the sidecar or the guard was given is meant for them only.
func (g *guard) fork(file string, argv []string, attr *syscall.ProcAttr) (int, error) {
	own := kernel.OOMScore()
	score := int(g.spec.OOMScore)
	if own != score {
		// Not to be had is a lower one on a host that does not allow it; only one that was asked
		// for has to be.
		if !kernel.SetOOMScore(os.Getpid(), score) && score < 0 {
			return 0, fmt.Errorf("its oom_score_adj can't be set to %d", score)
		}
		defer kernel.SetOOMScore(os.Getpid(), own)
	}
	return syscall.ForkExec(file, argv, attr)
}

// leaveCgroup goes on without the cgroup. A later sidecar must not take it, empty as it is, for a
// proof.
func (g *guard) leaveCgroup() error {
	s := g.spec
	if s.StateDir != "" {
		lead := election.Instant(s.Deadline).Sub(election.BootClock())
		if st, err := wire.Recall(s.StateDir); err == nil {
			lead = st.Lead
		}
		if err := wire.Remember(s.StateDir, wire.Trace{Guard: os.Getpid(), Tree: s.Tree, Lead: lead}); err != nil {
			return err
		}
	}
	g.able &^= wire.AbleCgroup
	g.group.Close()
	g.group = nil
	_ = kernel.RemoveCgroup(s.Cgroup)
	return nil
}

// cgroupRefused tells whether a start failed for the cgroup's sake, possibly.
func cgroupRefused(err error) bool {
	switch err {
	//nolint:errorlint // a bare errno of a system call, never wrapped
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EBUSY, unix.EACCES, unix.EPERM, unix.ENOENT, unix.ENODEV, unix.EAGAIN:
		return true
	}
	return false
}

// loop runs until no process of the tree is left. The order in it matters: the clock is looked at
// before each record is read, so that a renewal that comes after the deadline can't undo it.
func (g *guard) loop() int {
	for {
		now := election.BootClock()
		g.judge(now)
		if g.killing {
			g.strike()
		}
		left := g.reap()
		g.judgeCompanion(now)
		g.script.settle(g, now)
		g.sayExited()
		if g.doubtful() {
			g.doubt()
		}
		if g.doubting && now >= g.doubtEnd {
			g.script.asker.till = now // nobody waits for another answer
		}
		switch {
		case left && !g.lonely():
		case left:
			g.beside.dismiss(g, now)
		case g.populated():
		case g.over(now):
			return g.finish(wire.KindGone)
		case g.doubting && now >= g.deadline && (g.script.answers.Row >= 2 || now >= g.doubtEnd) && g.script.answers.Last != wire.AnswerRuns:
			return g.finish(wire.KindUnproven)
		}
		if g.killing {
			g.sayStubborn(now)
		}
		g.dog.feed(now, g.expired)
		g.wait(g.patience(now))
		if g.polled[slotControl].Revents != 0 {
			g.hear()
		}
		if g.polled[slotMain].Revents != 0 && g.spec.Mode == wire.ModeScript {
			g.script.mainEnded(g)
		}
		if g.polled[slotListen].Revents != 0 {
			g.admit()
		}
		if g.output != nil {
			g.output.pump()
		}
	}
}

// judge starts to kill if it is time.
func (g *guard) judge(now election.Instant) {
	if now >= g.deadline {
		g.expired = true
		g.startKilling(wire.CauseDeadline, g.deadline)
	}
	if g.stopping && now >= g.killAt {
		g.startKilling(wire.CauseStop, g.killAt)
	}
}

func (g *guard) startKilling(why wire.Cause, due election.Instant) {
	if g.killing {
		return
	}
	g.killing, g.cause, g.due = true, why, due
	g.script.answers = wire.Answers{} // from here on another one is to be expected
	g.beside.tell(0)
	g.say(wire.Record{Kind: wire.KindKilling, A: int64(why)})
}

// strike kills what there is at this moment. One stroke is not always enough: what is just being
// forked, and what has moved to another cgroup, is found by the next.
func (g *guard) strike() {
	if g.group != nil {
		_ = g.group.Kill()
	}
	g.hunter.Strike(unix.SIGKILL, g.notHelper)
	g.script.strike(g)
}

// over tells whether the program has ended, given that no child and nothing in the cgroup is left.
func (g *guard) over(now election.Instant) bool {
	switch g.spec.Mode {
	case wire.ModeScript:
		return g.script.over(g, now)
	case wire.ModeUnit:
		// Once it has run, its cgroup tells. Before, that is empty while the commands of a start
		// follow one another, or for as long as systemd puts the start off: then systemd has to say
		// that nothing will come.
		return g.mainPID > 0 || g.killing && g.script.absent(g, now)
	}
	return true
}

// doubtful tells whether the kill has done all it can, and it is for the program's own status to
// say that this was all.
func (g *guard) doubtful() bool {
	if !g.killing || g.doubting || len(g.spec.Status) == 0 || g.spec.Mode == wire.ModeUnit && g.mainPID > 0 {
		return false
	}
	g.hunter.Find(g.notHelper)
	return g.hunter.N == 0 && !g.populated() && !(g.mainFD >= 0 && !g.exited) && !g.script.answers.Absent(g.script.resident)
}

// doubt is called when all that can be killed is dead and nothing shows that this was all. The
// deadline is waited out, so it is not moved any more.
func (g *guard) doubt() {
	if g.doubting {
		return
	}
	g.doubting = true
	now := election.BootClock()
	if g.deadline == election.Never {
		g.deadline = now
		g.arm()
	}
	g.doubtEnd = max(g.deadline, now.Add(doubtWithin))
	g.say(wire.Record{Kind: wire.KindDoubt, A: int64(g.doubtEnd)})
}

// reap collects the dead and tells whether there are children left, living or dying.
func (g *guard) reap() bool {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err == unix.EINTR: //nolint:errorlint // a bare errno
			continue
		case err != nil: // ECHILD
			return false
		case pid == 0:
			return true
		}
		switch {
		case pid == g.mainPID && !g.exited:
			g.ended(status)
		case pid == g.beside.pid:
			g.beside.reaped()
		default:
			g.script.reaped(g, pid, status)
		}
	}
}

// ended is the end of the main process.
func (g *guard) ended(status unix.WaitStatus) {
	g.exited, g.status = true, status
	if g.mainFD >= 0 {
		unix.Close(g.mainFD)
		g.mainFD = -1
	}
	if g.control < 0 && !g.killing {
		// Nobody is there to learn of it, and what is left is of no use to whoever comes.
		g.startKilling(wire.CauseOrphan, election.BootClock())
	}
	switch {
	case g.stopping && g.spec.Mode == wire.ModeScript && len(g.spec.Stop) > 0:
		// The stop command speaks to the main process. What else there is, its group included,
		// hears of the stop now.
		g.hunter.Strike(unix.Signal(g.spec.StopSignal), g.ofProgram)
	case g.stopping:
		// The stop signal went to the main process's group. What had left it hears of the stop now.
		g.hunter.Strike(unix.Signal(g.spec.StopSignal), g.outsideGroup)
	}
}

func (g *guard) notHelper(pid int) bool {
	return pid != g.script.asker.pid && pid != g.script.killer.pid
}

// ofProgram tells of a child whether it is the program's, rather than one of those that serve it.
func (g *guard) ofProgram(pid int) bool {
	return g.notHelper(pid) && pid != g.beside.pid && pid != g.script.stopper
}

// outsideGroup is ofProgram, less what is in the main process's group. That had the stop signal
// with the main process, and a second one tells many programs not to be polite any more.
func (g *guard) outsideGroup(pid int) bool {
	group, err := unix.Getpgid(pid)
	return g.ofProgram(pid) && (err != nil || group != g.mainPID)
}

func (g *guard) populated() bool {
	if g.spec.Mode == wire.ModeUnit && g.group == nil {
		g.group, _ = kernel.OpenCgroup(g.spec.Cgroup) // it comes with the unit's start
	}
	if g.group == nil || !g.group.Populated() {
		return false
	}
	return true
}

// finish tells that no process is left, or that nothing more can be shown, hands on the last of the
// output and removes the traces. What is unproven is left on record, for whoever comes.
func (g *guard) finish(last wire.Kind) int {
	g.dog.release()
	if !g.exited && g.spec.Mode != wire.ModeExec {
		g.exited, g.status = true, wire.StatusUnknown
		g.sayExited()
	}
	now := election.BootClock()
	late := int64(0)
	if g.killing {
		late = int64(now - g.due)
	}
	if g.group != nil && g.spec.Mode != wire.ModeUnit {
		_ = kernel.RemoveCgroup(g.spec.Cgroup)
	}
	if g.spec.StateDir != "" && last == wire.KindGone {
		wire.Forget(g.spec.StateDir)
	}
	if g.spec.LockFD >= 0 {
		unix.Close(int(g.spec.LockFD)) // the next guard may come
	}
	g.say(wire.Record{Kind: last, A: int64(g.cause), B: late})
	if g.output != nil {
		g.output.drain(wire.FlushWithin)
		g.output.lost()
	}
	g.linger()
	if last == wire.KindUnproven {
		return wire.GuardUnproven
	}
	return wire.GuardGone
}

// linger waits until the sidecar hangs up, and reads what it still sends: to close over an unread
// record would take back what was said last.
func (g *guard) linger() {
	until := election.BootClock().Add(wire.FlushWithin)
	for g.control >= 0 {
		left := until.Sub(election.BootClock())
		if left <= 0 {
			return
		}
		fds := []unix.PollFd{{Fd: int32(g.control), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); n > 0 && err == nil {
			if n, err := unix.Read(g.control, g.in[:]); n == 0 || err != nil && err != unix.EAGAIN {
				return
			}
		}
	}
}

// The slots of guard.polled.
const (
	slotTimer = iota
	slotControl
	slotListen
	slotMain
	slotProgram // the program's output
	slotSink
	slotAsker
	slotKiller
	slotUnit
	slotCompanion
)

func (g *guard) wait(timeout time.Duration) {
	for i, fd := range [...]int{g.timer, g.control, g.listen, g.mainFD, -1, -1, g.script.asker.fd, g.script.killer.fd, -1, g.beside.fd} {
		g.polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	if g.output != nil {
		g.polled[slotProgram].Fd = int32(g.output.from)
		if g.output.n > 0 && g.output.to >= 0 {
			g.polled[slotSink] = unix.PollFd{Fd: int32(g.output.to), Events: unix.POLLOUT}
		}
	}
	if g.spec.Mode == wire.ModeUnit && g.group != nil {
		g.polled[slotUnit] = unix.PollFd{Fd: int32(g.group.Events), Events: unix.POLLPRI}
	}
	// EINTR is welcome: a SIGCHLD, most likely, and the loop reaps. The main process's end is seen
	// through its pidfd.
	_, _ = unix.Poll(g.polled[:], int((timeout+time.Millisecond-1)/time.Millisecond))
	if g.polled[slotTimer].Revents != 0 {
		_, _ = unix.Read(g.timer, g.in[:8])
	}
}

func (g *guard) patience(now election.Instant) time.Duration {
	p := orphanSweep
	if g.killing {
		p = killRetry
		if now.Sub(g.due) > time.Second {
			p = killRetrySlow
		}
	}
	if g.mainFD < 0 && g.mainPID > 0 && !g.exited {
		p = min(p, 20*time.Millisecond) // no pidfd on this kernel
	}
	switch {
	case g.spec.Mode == wire.ModeScript:
		p = min(p, g.script.patience())
	case g.spec.Mode == wire.ModeUnit && g.killing && g.mainPID == 0:
		p = min(p, stopEvery)
	case g.spec.Mode == wire.ModeUnit && g.group == nil:
		p = min(p, 10*time.Millisecond) // until the unit has its cgroup
	}
	return min(p, g.dog.patience(now))
}

// arm sets the timer to the next instant that matters.
func (g *guard) arm() {
	at := g.deadline
	if g.stopping {
		at = min(at, g.killAt)
	}
	var when unix.ItimerSpec
	if at != election.Never {
		when.Value = unix.NsecToTimespec(max(int64(at), 1))
	}
	if !g.killing {
		g.beside.tell(g.deadline)
	}
	_ = unix.TimerfdSettime(g.timer, unix.TFD_TIMER_ABSTIME, &when, nil)
}

// hear reads what the sidecar sends, one record at a time, with a look at the clock before each.
func (g *guard) hear() {
	for g.control >= 0 {
		g.judge(election.BootClock())
		n, err := g.receive()
		switch {
		case err == unix.EINTR: //nolint:errorlint // a bare errno
			continue
		case err == unix.EAGAIN: //nolint:errorlint // a bare errno
			return
		case err != nil || n == 0:
			g.abandoned()
			return
		}
		r, ok := wire.ParseRecord(g.in[:n])
		if !ok {
			continue
		}
		g.obey(r)
	}
}

func (g *guard) obey(r wire.Record) {
	switch r.Kind {
	case wire.KindExtend:
		if !g.expired && !g.doubting {
			g.deadline = election.Instant(r.A)
			g.judge(election.BootClock())
			g.arm()
		}
	case wire.KindStop:
		g.stop(election.Instant(r.A))
	case wire.KindSignal:
		if g.mainPID > 0 && !g.exited {
			_ = unix.Kill(g.mainPID, unix.Signal(r.A))
		}
	case wire.KindRunning:
		g.mainPID = int(r.A)
	case wire.KindHello:
		g.say(wire.Record{Kind: wire.KindStarted, A: int64(g.mainPID), B: int64(g.able)})
	case wire.KindDetach:
		if g.deadline == election.Never {
			g.deadline = election.Instant(r.A)
			g.arm()
		}
	}
	at := election.Never
	if g.stopping {
		at = g.killAt
	}
	g.say(wire.Record{Kind: wire.KindAck, Seq: r.Seq, A: int64(g.deadline), B: int64(at)})
}

// stop begins a stop that ends in a kill at the given instant, or brings that forward if one is
// under way.
func (g *guard) stop(killAt election.Instant) {
	first := !g.stopping
	g.stopping = true
	g.killAt = min(g.killAt, killAt)
	g.arm()
	g.judge(election.BootClock())
	if !first || g.killing || !g.begun {
		return
	}
	if g.spec.Mode == wire.ModeUnit {
		return // the service manager stops it
	}
	if g.spec.Mode == wire.ModeScript && g.script.stop(g) {
		return
	}
	sig := unix.Signal(g.spec.StopSignal)
	if g.exited || g.mainPID == 0 {
		g.hunter.Strike(sig, g.ofProgram) // the program left children behind
		return
	}
	// The group rather than the process alone: a shell does not pass signals on to what it runs.
	if unix.Kill(-g.mainPID, sig) != nil {
		_ = unix.Kill(g.mainPID, sig)
	}
}

// abandoned is the end of the sidecar: keep the program until the deadline, for somebody may adopt
// it.
func (g *guard) abandoned() {
	unix.Close(g.control)
	g.control, g.greeting = -1, false
	if g.output != nil {
		g.output.lost()
	}
	switch {
	case g.deadline == election.Never:
		g.startKilling(wire.CauseOrphan, election.BootClock())
	case g.exited:
		g.startKilling(wire.CauseOrphan, election.BootClock())
	}
}

// say sends a record to the sidecar. It never waits: a sidecar that does not read is as good as
// none.
func (g *guard) say(r wire.Record) bool {
	if g.control < 0 {
		return false
	}
	return unix.Send(g.control, r.Put(g.out[:]), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) == nil
}

func (g *guard) sayExited() {
	if g.exited && !g.saidExit && g.control >= 0 {
		why := wire.CauseNone
		if g.killing {
			why = g.cause
		}
		g.saidExit = g.say(wire.Record{Kind: wire.KindExited, A: int64(g.status), B: int64(why)})
	}
}

func (g *guard) sayStubborn(now election.Instant) {
	if now.Sub(max(g.due, g.saidLeft)) < sayLeft {
		return
	}
	g.saidLeft = now
	g.hunter.Find(nil)
	if g.hunter.N > 0 {
		g.say(wire.Record{Kind: wire.KindLeft, A: int64(g.hunter.N), B: int64(g.hunter.PIDs[g.hunter.N-1])})
	}
}

// strengthen asks for what makes the guard run when the host is in trouble, and tells what it got.
func strengthen() wire.Ability {
	var got wire.Ability
	rt := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 10, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	nice := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	switch {
	case unix.SchedSetAttr(0, &rt, 0) == nil:
		got |= wire.AbleRealtime
	case unix.SchedSetAttr(0, &nice, 0) == nil:
		got |= wire.AbleNice
	}
	// On fault: only what has been touched stays, instead of every page of the binary. Where the
	// limit of locked memory is in force the call fails as a whole, so that it can't make a later
	// allocation fail.
	if unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT) == nil {
		got |= wire.AbleLocked
	}
	if os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) == nil {
		got |= wire.AbleOOM
	}
	return got
}

package process

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
)

// Exit codes of the guard, for the sidecar.
const (
	guardGone    = 80 // no process of the tree is left: confirmed
	guardRefused = 65 // nothing was started
	guardUsage   = 64
)

// File descriptors that a guard is started with.
const (
	controlFD = 3
	specFD    = 4
	extraFD   = 5 // the first of those that the spec numbers
)

const (
	orphanSweep   = 5 * time.Second        // reap zombies at least so often; most wake the guard themselves
	killRetry     = time.Millisecond       // between two strikes
	killRetrySlow = 20 * time.Millisecond  // once there is something that does not die
	unitQuiet     = time.Second            // how long a unit's cgroup is empty before a start that was cut off is over
	sayLeft       = 250 * time.Millisecond // between two reports of what does not die
	flushWithin   = 300 * time.Millisecond // for the last output, after the tree is gone
)

// guard is the state of the guard process. Everything that its loop needs is made before the program is started, and
// the loop runs on one thread, so that killing waits for no memory, no lock and no other goroutine.
type guard struct {
	spec    *spec
	able    ability
	steeled bool
	hunter  *hunter
	group   *cgroup // nil: no cgroup
	output  *relay  // nil: the program writes elsewhere by itself
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
	cause    cause
	exited   bool
	status   unix.WaitStatus
	saidExit bool
	saidLeft election.Instant

	script script           // of the script driver
	beside companion        // what runs beside the program
	quiet  election.Instant // since when the cgroup of the unit is empty, 0 if it is not

	in, out [recordMax]byte
	polled  [9]unix.PollFd
}

// GuardMain is the guard: what `tanist guard` runs. It is started by the drivers of this package only, as a re-executed
// copy of the running binary, and must be called from the main goroutine, before anything else. It returns the exit code.
func GuardMain(args []string) int {
	runtime.LockOSThread() // the kernel ties a child's death signal, and the priority, to the thread
	debug.SetGCPercent(-1) // little is allocated, and nothing by the loop
	debug.SetMemoryLimit(64 << 20)
	_ = unix.CloseRange(extraFD, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC) // what leaked into us goes no further
	unix.CloseOnExec(controlFD)
	unix.CloseOnExec(specFD)
	setName(guardName)
	// Handled and dropped, rather than ignored, because the program would inherit the latter. A guard ends when its tree
	// does: whoever signals everything, as service managers do, must not turn it into the first victim.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGPIPE, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGVTALRM, unix.SIGPROF, unix.SIGIO, unix.SIGPWR)

	g := &guard{hunter: newHunter(), script: script{helperFD: -1}, beside: companion{fd: -1}, control: controlFD, mainFD: -1, killAt: election.Never}
	if os.Getenv(spareMark) != "" {
		g.steel()
		if needed, err := awaitBegin(); err != nil {
			fmt.Fprintf(os.Stderr, "tanist guard: %v\n", err)
			return guardUsage
		} else if !needed {
			return guardRefused
		}
	}
	spec, err := readSpec(specFD)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tanist guard: %v (it is started by a sidecar, not by hand)\n", err)
		return guardUsage
	}
	g.spec, g.listen, g.deadline = spec, int(spec.listenFD), election.Instant(spec.deadline)
	if err := g.prepare(); err != nil {
		return g.refuse(err)
	}
	if err := g.start(); err != nil {
		return g.refuse(err)
	}
	if spec.mode != modeScript { // a script has to end first
		g.say(record{kind: kindStarted, a: int64(g.mainPID), b: int64(g.able)})
	}
	return g.loop()
}

func readSpec(fd int) (*spec, error) {
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
	return decodeSpec(b)
}

func (g *guard) refuse(err error) int {
	g.beside.abandon()
	g.say(record{kind: kindRefused, text: err.Error()})
	if g.group != nil {
		_ = removeCgroup(g.spec.cgroup)
	}
	return guardRefused
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
	if g.spec.cgroup != "" && g.spec.mode != modeUnit {
		if g.group, err = openCgroup(g.spec.cgroup); err != nil {
			return err
		}
		g.able |= ableCgroup
	}
	if g.spec.sinkFD >= 0 {
		if g.output, err = newRelay(int(g.spec.sinkFD)); err != nil {
			return err
		}
	}
	if g.dog, err = openWatchdog(g.spec); err != nil {
		return err
	}
	if g.dog != nil {
		g.able |= ableWatchdog
	}
	if !g.steeled {
		g.steel()
	}
	if g.group != nil {
		g.group.rehearse()
	}
	if election.BootClock() >= g.deadline {
		return fmt.Errorf("cannot start %s: the lease deadline has passed", g.spec.argv[0])
	}
	g.arm()
	return nil
}

// steel makes the guard small, and hard to hold up. It rehearses first, so that the pages of the kill path are in memory
// when they are locked there.
func (g *guard) steel() {
	ShedText()
	g.hunter.strike(unix.SIGKILL, nil)
	g.reap()
	g.able |= strengthen()
	g.steeled = true
}

// start runs the program: in its own session, told to die with the guard, and in the cgroup from its first instruction.
func (g *guard) start() error {
	s := g.spec
	if err := g.accompany(); err != nil {
		return err
	}
	if s.mode == modeUnit {
		return nil // the service manager starts it, once we are ready to end it
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open /dev/null: %v", err)
	}
	defer unix.Close(null)
	out, errs := int(s.outFD), int(s.errFD)
	if g.output != nil {
		out, errs = g.output.programEnd, g.output.programEnd
	}
	pid, fd, err := g.spawn(s.argv, []uintptr{uintptr(null), uintptr(out), uintptr(errs)})
	if g.output != nil {
		unix.Close(g.output.programEnd)
	} else {
		unix.Close(out)
		unix.Close(errs)
	}
	if err != nil {
		return fmt.Errorf("cannot start %s: %v", s.argv[0], err)
	}
	if s.mode == modeScript {
		g.script.begin(pid, fd)
		return nil
	}
	g.mainPID, g.mainFD = pid, fd
	return nil
}

// spawn starts a program in the tree.
func (g *guard) spawn(argv []string, files []uintptr) (pid, pidfd int, err error) {
	s := g.spec
	attr := &syscall.ProcAttr{
		Dir: s.dir, Env: s.env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if s.uid >= 0 {
		cred := &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.gid)}
		for _, id := range s.groups {
			n, err := strconv.ParseUint(id, 10, 32)
			if err != nil {
				return 0, -1, fmt.Errorf("group %q is not a number", id)
			}
			cred.Groups = append(cred.Groups, uint32(n))
		}
		attr.Sys.Credential = cred
	}
	return g.spawnAs(argv[0], argv, attr)
}

// spawnAs starts what attr describes, in the tree's cgroup if there is one.
func (g *guard) spawnAs(file string, argv []string, attr *syscall.ProcAttr) (pid, pidfd int, err error) {
	pidfd = -1
	attr.Sys.PidFD = &pidfd
	if g.group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, g.group.dir
	}
	pid, err = syscall.ForkExec(file, argv, attr)
	if err != nil && g.group != nil && cgroupRefused(err) {
		attr.Sys.UseCgroupFD = false
		if pid, err = syscall.ForkExec(file, argv, attr); err == nil {
			g.able &^= ableCgroup
			g.group = nil
			_ = removeCgroup(g.spec.cgroup)
		}
	}
	if err != nil {
		return 0, -1, err
	}
	if pidfd < 0 { // a kernel before 5.4
		return pid, -1, nil
	}
	unix.CloseOnExec(pidfd)
	if g.able&ableOOM != 0 {
		// It inherited that the OOM killer spares it, which is meant for the guard only.
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
	}
	return pid, pidfd, nil
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

// loop runs until no process of the tree is left. The order in it matters: the clock is looked at before each
// record is read, so that a renewal that comes after the deadline can't undo it.
func (g *guard) loop() int {
	for {
		now := election.BootClock()
		g.judge(now)
		if g.killing {
			g.strike()
		}
		left := g.reap()
		g.judgeCompanion(now)
		if g.spec.mode == modeScript {
			g.script.settle(g, now)
		}
		g.sayExited()
		switch {
		case left && !g.lonely():
		case left:
			g.beside.dismiss(g, now)
		case !g.populated() && g.over(now):
			return g.finish()
		}
		if g.killing {
			g.sayStubborn(now)
		}
		g.dog.feed(now, g.expired)
		g.wait(g.patience(now))
		if g.polled[slotControl].Revents != 0 {
			g.hear()
		}
		if g.polled[slotMain].Revents != 0 && g.spec.mode == modeScript {
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
		g.startKilling(causeDeadline, g.deadline)
	}
	if g.stopping && now >= g.killAt {
		g.startKilling(causeStop, g.killAt)
	}
}

func (g *guard) startKilling(why cause, due election.Instant) {
	if g.killing {
		return
	}
	g.killing, g.cause, g.due = true, why, due
	g.beside.tell(0)
	g.say(record{kind: kindKilling, a: int64(why)})
}

// strike kills what there is at this moment. One stroke is not always enough: what is just being forked, and what has
// moved to another cgroup, is found by the next.
func (g *guard) strike() {
	if g.group != nil {
		_ = g.group.kill()
	}
	g.hunter.strike(unix.SIGKILL, g.notHelper)
	if g.spec.mode == modeScript {
		g.script.strike(g)
	}
}

// over tells whether the program has ended, given that no child and nothing in the cgroup is left.
func (g *guard) over(now election.Instant) bool {
	switch g.spec.mode {
	case modeScript:
		return g.script.over(g, now)
	case modeUnit:
		// Between the commands of a start its cgroup may be empty for a moment.
		if g.mainPID == 0 && g.quiet == 0 {
			g.quiet = now
		}
		return g.mainPID > 0 || g.killing && now.Sub(g.quiet) > unitQuiet
	}
	return true
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
		case g.spec.mode == modeScript:
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
		g.startKilling(causeOrphan, election.BootClock())
	}
	if g.stopping {
		// The stop signal went to the main process's group. What had left it hears of the stop now.
		g.hunter.strike(unix.Signal(g.spec.stopSignal), g.outsideGroup)
	}
}

func (g *guard) notHelper(pid int) bool { return pid != g.script.helper }

// ofProgram tells of a child whether it is the program's, rather than one of those that serve it.
func (g *guard) ofProgram(pid int) bool { return g.notHelper(pid) && pid != g.beside.pid }

// outsideGroup is ofProgram, less what is in the main process's group. That had the stop signal with the main process, and a
// second one tells many programs not to be polite any more.
func (g *guard) outsideGroup(pid int) bool {
	group, err := unix.Getpgid(pid)
	return g.ofProgram(pid) && (err != nil || group != g.mainPID)
}

func (g *guard) populated() bool {
	if g.spec.mode == modeUnit && g.group == nil {
		g.group, _ = openCgroup(g.spec.cgroup) // it comes with the unit's start
	}
	if g.group == nil || !g.group.populated() {
		return false
	}
	g.quiet = 0
	return true
}

// finish tells that no process is left, hands on the last of the output and removes the traces.
func (g *guard) finish() int {
	g.dog.release()
	if !g.exited && g.spec.mode != modeExec {
		g.exited, g.status = true, statusUnknown
		g.sayExited()
	}
	now := election.BootClock()
	late := int64(0)
	if g.killing {
		late = int64(now - g.due)
	}
	if g.group != nil && g.spec.mode != modeUnit {
		_ = removeCgroup(g.spec.cgroup)
	}
	if g.spec.stateDir != "" {
		forget(g.spec.stateDir)
	}
	g.say(record{kind: kindGone, a: int64(g.cause), b: late})
	if g.output != nil {
		g.output.drain(flushWithin)
		g.output.lost()
	}
	g.linger()
	return guardGone
}

// linger waits until the sidecar hangs up, and reads what it still sends: to close over an unread record would take back what
// was said last.
func (g *guard) linger() {
	until := election.BootClock().Add(flushWithin)
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
	slotHelper
	slotUnit
	slotCompanion
)

func (g *guard) wait(timeout time.Duration) {
	for i, fd := range [...]int{g.timer, g.control, g.listen, g.mainFD, -1, -1, g.script.helperFD, -1, g.beside.fd} {
		g.polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	if g.output != nil {
		g.polled[slotProgram].Fd = int32(g.output.from)
		if g.output.n > 0 && g.output.to >= 0 {
			g.polled[slotSink] = unix.PollFd{Fd: int32(g.output.to), Events: unix.POLLOUT}
		}
	}
	if g.spec.mode == modeUnit && g.group != nil {
		g.polled[slotUnit] = unix.PollFd{Fd: int32(g.group.events), Events: unix.POLLPRI}
	}
	// EINTR is welcome: a SIGCHLD, most likely, and the loop reaps. The main process's end is seen through its pidfd.
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
	case g.spec.mode == modeScript:
		p = min(p, g.script.patience())
	case g.spec.mode == modeUnit && g.group == nil:
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
		r, ok := parseRecord(g.in[:n])
		if !ok {
			continue
		}
		g.obey(r)
	}
}

func (g *guard) obey(r record) {
	switch r.kind {
	case kindExtend:
		if !g.expired {
			g.deadline = election.Instant(r.a)
			g.judge(election.BootClock())
			g.arm()
		}
	case kindStop:
		g.stop(election.Instant(r.a))
	case kindSignal:
		if g.mainPID > 0 && !g.exited {
			_ = unix.Kill(g.mainPID, unix.Signal(r.a))
		}
	case kindRunning:
		g.mainPID = int(r.a)
	case kindHello:
		g.say(record{kind: kindStarted, a: int64(g.mainPID), b: int64(g.able)})
	case kindDetach:
		if g.deadline == election.Never {
			g.deadline = election.Instant(r.a)
			g.arm()
		}
	}
	at := election.Never
	if g.stopping {
		at = g.killAt
	}
	g.say(record{kind: kindAck, seq: r.seq, a: int64(g.deadline), b: int64(at)})
}

// stop begins a stop that ends in a kill at the given instant, or brings that forward if one is under way.
func (g *guard) stop(killAt election.Instant) {
	first := !g.stopping
	g.stopping = true
	g.killAt = min(g.killAt, killAt)
	g.arm()
	g.judge(election.BootClock())
	if !first || g.killing {
		return
	}
	if g.spec.mode == modeUnit {
		return // the service manager stops it
	}
	if g.spec.mode == modeScript && g.script.stop(g) {
		return
	}
	sig := unix.Signal(g.spec.stopSignal)
	if g.exited || g.mainPID == 0 {
		g.hunter.strike(sig, g.ofProgram) // the program left children behind
		return
	}
	// The group rather than the process alone: a shell does not pass signals on to what it runs.
	if unix.Kill(-g.mainPID, sig) != nil {
		_ = unix.Kill(g.mainPID, sig)
	}
}

// abandoned is the end of the sidecar: keep the program until the deadline, for somebody may adopt it.
func (g *guard) abandoned() {
	unix.Close(g.control)
	g.control, g.greeting = -1, false
	if g.output != nil {
		g.output.lost()
	}
	switch {
	case g.deadline == election.Never:
		g.startKilling(causeOrphan, election.BootClock())
	case g.exited:
		g.startKilling(causeOrphan, election.BootClock())
	}
}

// say sends a record to the sidecar. It never waits: a sidecar that does not read is as good as none.
func (g *guard) say(r record) bool {
	if g.control < 0 {
		return false
	}
	return unix.Send(g.control, r.put(g.out[:]), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) == nil
}

func (g *guard) sayExited() {
	if g.exited && !g.saidExit && g.control >= 0 {
		why := causeNone
		if g.killing {
			why = g.cause
		}
		g.saidExit = g.say(record{kind: kindExited, a: int64(g.status), b: int64(why)})
	}
}

func (g *guard) sayStubborn(now election.Instant) {
	if now.Sub(max(g.due, g.saidLeft)) < sayLeft {
		return
	}
	g.saidLeft = now
	g.hunter.find(nil)
	if g.hunter.n > 0 {
		g.say(record{kind: kindLeft, a: int64(g.hunter.n), b: int64(g.hunter.pids[g.hunter.n-1])})
	}
}

// strengthen asks for what makes the guard run when the host is in trouble, and tells what it got.
func strengthen() ability {
	var got ability
	rt := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 10, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	nice := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	switch {
	case unix.SchedSetAttr(0, &rt, 0) == nil:
		got |= ableRealtime
	case unix.SchedSetAttr(0, &nice, 0) == nil:
		got |= ableNice
	}
	// On fault: only what has been touched stays, instead of every page of the binary. Where the limit of locked memory
	// is in force the call fails as a whole, so that it can't make a later allocation fail.
	if unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT) == nil {
		got |= ableLocked
	}
	if os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) == nil {
		got |= ableOOM
	}
	return got
}

package process

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

const (
	// answerWithin is how long a guard may take to acknowledge, by default. A guard with normal priority on a host with
	// 32 busy loops was seen to take 0.6 s.
	answerWithin = 2 * time.Second
	// answerDue is how long it may take once the tree must be gone.
	answerDue = 100 * time.Millisecond
	// killDue is how long it may take while it kills; 850 processes on two loaded cores took 0.7 s.
	killDue = time.Second
	// confirmWithin is how long a Stop waits after the kill until it says that it could not be confirmed.
	confirmWithin = 5 * time.Second
)

// kept is the sidecar's side of one guarded tree: it passes orders on, watches the guard, and does the guard's work
// should the guard fail.
type kept struct {
	log        zerolog.Logger
	conn       *net.UnixConn
	guard      *guardProcess // nil if adopted: not our child
	guardPID   int
	guardFD    int           // pidfd of an adopted guard, else -1
	guardDead  chan struct{} // closed when the guard has ended
	cgroupPath string
	mark       string
	what       string // for messages: the command's name
	outputDone chan struct{}
	stateDir   string // "" if nobody can adopt

	exited chan struct{}
	gone   chan struct{}
	poke   chan struct{} // the watch loop has something new to think about
	leave  chan struct{} // closed by detach

	mu       sync.Mutex
	watch    watch
	seq      uint32
	pid      int
	able     ability
	hasEnded bool
	itself   bool // it ended without having been made to
	exit     string
	code     int
	left     string // what could not be killed, in words
}

// watch is what the sidecar knows about its guard, and decides upon.
type watch struct {
	patience time.Duration // for an answer, in general
	deadline election.Instant
	acked    election.Instant // the deadline that the guard is known to enforce
	killAt   election.Instant // Never: no stop is under way
	lastSent election.Instant
	pending  []sent           // not yet answered, oldest first
	looked   election.Instant // when this process meant to look next
	excused  uint32           // the record whose answer may be late by our own fault
	killing  bool             // the guard has said that it kills, which may keep it from answering for a moment
}

type sent struct {
	seq uint32
	at  election.Instant
}

// must is when the tree has to be gone.
func (w *watch) must() election.Instant { return min(w.deadline, w.killAt) }

// decide tells whether the guard failed, or else whether to ask it for a sign of life, and when to look again.
func (w *watch) decide(now election.Instant) (failed, ping bool, next election.Instant) {
	must := w.must()
	limit := election.Never
	if len(w.pending) > 0 {
		// A sidecar that was frozen finds the time over and the answers unread. It does not blame the guard, once.
		if head := &w.pending[0]; w.looked != 0 && now.Sub(w.looked) > answerDue/4 && w.excused != head.seq {
			head.at, w.excused = now, head.seq
		}
		at := w.pending[0].at
		// The guard has to have heard of a renewal before the deadline that the renewal replaces, since at
		// that point it would have killed. One that has neither answered nor killed is not running.
		limit = min(at.Add(w.patience), max(w.acked, at.Add(answerDue)))
		if now >= must && !w.killing {
			limit = min(limit, max(at, must).Add(answerDue))
		} else if now >= must {
			limit = min(at.Add(w.patience), at.Add(killDue))
		}
		if now >= limit {
			return true, false, now
		}
	}
	ask := w.lastSent.Add(w.patience / 2)
	if now >= must && w.lastSent < must {
		ask = now
	}
	if now >= ask {
		ping = true
		ask = now.Add(min(w.patience/2, answerDue))
	}
	next = min(limit, ask)
	if must > now {
		next = min(next, must)
	}
	w.looked = next
	return false, ping, next
}

func (w *watch) answered(seq uint32) {
	for len(w.pending) > 0 && int32(seq-w.pending[0].seq) >= 0 {
		w.pending = w.pending[1:]
	}
}

// send passes a record on without waiting; a guard that does not take it will be found out by the missing answer.
func (k *kept) send(r record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sendLocked(r)
}

func (k *kept) sendLocked(r record) {
	k.seq++
	r.seq = k.seq
	now := election.BootClock()
	k.watch.lastSent = now
	if len(k.watch.pending) < 64 { // the oldest is what counts
		k.watch.pending = append(k.watch.pending, sent{r.seq, now})
	}
	var buf [recordMax]byte
	b := r.put(buf[:])
	if raw, err := k.conn.SyscallConn(); err == nil {
		_ = raw.Write(func(fd uintptr) bool {
			_ = unix.Send(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return true
		})
	}
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

func (k *kept) extend(deadline election.Instant) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if deadline <= k.watch.deadline {
		return
	}
	if election.BootClock() >= k.watch.deadline {
		return // the guard would not take it either
	}
	k.watch.deadline = deadline
	k.sendLocked(record{kind: kindExtend, a: int64(deadline)})
}

// end orders the tree to be killed at the given instant, after a stop signal now.
func (k *kept) end(killAt election.Instant) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if killAt < k.watch.killAt {
		k.watch.killAt = killAt
		k.sendLocked(record{kind: kindStop, a: int64(killAt)})
	}
}

// run watches until no process of the tree is left, or the sidecar detaches.
func (k *kept) run() {
	records := make(chan record, 64)
	go k.read(records)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case r, ok := <-records:
			if !ok {
				k.guardEnded()
				return
			}
			if k.take(r) {
				k.settle()
				return
			}
		case <-k.poke:
		case <-timer.C:
		case <-k.leave:
			_ = k.conn.Close()
			for range records {
			}
			return
		}
		k.mu.Lock()
		now := election.BootClock()
		failed, ping, next := k.watch.decide(now)
		if ping {
			k.sendLocked(record{kind: kindPing})
		}
		due := now >= k.watch.must()
		k.mu.Unlock()
		if failed && (len(records) > 0 || k.unread()) {
			timer.Reset(time.Millisecond) // it has answered, and it is we who are late
			continue
		}
		if failed {
			why := "guard: it did not answer"
			if due {
				why = "guard: it did not answer when the tree was due to end"
			}
			go func() {
				for range records {
				}
			}()
			k.takeOver(why)
			return
		}
		timer.Reset(max(next.Sub(now), 0))
	}
}

// unread tells whether there is something of the guard to be read, be it its end.
func (k *kept) unread() bool {
	is := false
	if raw, err := k.conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			is = n > 0 && err == nil
		})
	}
	return is
}

func (k *kept) read(to chan<- record) {
	defer close(to)
	buf := make([]byte, recordMax)
	for {
		n, err := k.conn.Read(buf)
		if err != nil || n == 0 {
			return
		}
		if r, ok := parseRecord(buf[:n]); ok {
			to <- r
		}
	}
}

// take handles a record of the guard and tells whether it was the last.
func (k *kept) take(r record) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r.kind {
	case kindStarted: // after the start of a script: the main process is known only then
		k.pid = int(r.a)
	case kindAck:
		k.watch.answered(r.seq)
		k.watch.acked = election.Instant(r.a)
	case kindExited:
		status := unix.WaitStatus(r.a)
		if !k.hasEnded {
			k.itself = cause(r.b) == causeNone && status != statusUnknown
		}
		k.endedLocked(exitWords(status, cause(r.b)), exitCode(status))
	case kindKilling:
		k.watch.killing = true
	case kindLeft:
		k.left = describe(int(r.a), int(r.b))
	case kindGone:
		why := cause(r.a)
		k.endedLocked(exitWords(0, why), -1)
		if why != causeNone {
			k.log.Debug().Dur("after", time.Duration(r.b)).Msg("The guard killed the process tree")
		}
		return true
	}
	return false
}

func (k *kept) endedLocked(words string, code int) {
	if k.hasEnded {
		return
	}
	k.hasEnded, k.exit, k.code = true, words, code
	close(k.exited)
}

func exitWords(s unix.WaitStatus, why cause) string {
	switch {
	case why == causeDeadline:
		return "guard: lease deadline passed"
	case why == causeOrphan:
		return "guard: the sidecar was gone"
	case why == causeCompanion:
		return "guard: its companion ended"
	case s == statusUnknown:
		return "ended"
	case s.Signaled():
		name := unix.SignalName(s.Signal())
		if name == "" {
			name = "signal " + strconv.Itoa(int(s.Signal()))
		}
		if s.CoreDump() {
			name += " (core dumped)"
		}
		return "killed by " + name
	}
	return "exit status " + strconv.Itoa(s.ExitStatus())
}

// exitCode is what a shell would say.
func exitCode(s unix.WaitStatus) int {
	if s == statusUnknown {
		return -1
	}
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// guardEnded handles the end of the guard's stream: either its job is done, or it died.
func (k *kept) guardEnded() {
	select {
	case <-k.guardDead:
	case <-time.After(answerDue):
	}
	select {
	case <-k.guardDead:
		// It says so once more by its exit code, and by having removed its state file.
		if k.guard != nil && k.guard.code == guardGone || k.guard == nil && forgotten(k.stateDir) {
			k.settle()
			return
		}
	default:
	}
	k.takeOver("guard: it died")
}

// settle is the confirmed end.
func (k *kept) settle() {
	k.mu.Lock()
	k.endedLocked("ended", -1)
	k.mu.Unlock()
	_ = k.conn.Close()
	if k.cgroupPath != "" {
		_ = removeCgroup(k.cgroupPath) // most likely the guard has
	}
	if k.stateDir != "" {
		forget(k.stateDir)
	}
	close(k.gone)
}

// takeOver does what the guard should have done. The guard is killed first: its main child dies with it, and the kernel
// makes the rest of the tree ours, for we are a subreaper too.
func (k *kept) takeOver(why string) {
	k.log.Warn().Str("reason", why).Int("guard", k.guardPID).Msg("The guard failed: killing the process tree")
	group, err := openCgroup(k.cgroupPath)
	if k.cgroupPath == "" || err != nil {
		group = nil
	} else {
		defer group.close()
	}
	if group != nil {
		_ = group.kill()
	}
	k.killGuard()
	k.mu.Lock()
	k.endedLocked(why, -1)
	k.mu.Unlock()
	h := newHunter()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var found int
		if group != nil {
			_ = group.kill()
		}
		if k.guard != nil {
			found = k.strikeOrphans(h)
		} else {
			found = strikeMarked(k.mark)
		}
		dead := false
		select {
		case <-k.guardDead:
			dead = true
		default:
		}
		if dead && found == 0 && (group == nil || !group.populated()) {
			if k.guard == nil && group == nil {
				k.setLeft("the guard died, and without a cgroup nobody can tell whether a descendant is left")
				k.log.Error().Msg("Cannot confirm that the process tree is gone: its guard died after it was adopted, and there is no cgroup")
				return
			}
			k.settle()
			return
		}
		if found > 0 {
			k.setLeft(describe(found, int(h.pids[0])))
		} else if !dead {
			k.setLeft(describe(1, k.guardPID))
		}
		if found > 0 && pause < 20*time.Millisecond {
			pause = time.Millisecond / 2
		}
		time.Sleep(pause)
	}
}

func (k *kept) setLeft(s string) {
	k.mu.Lock()
	k.left = s
	k.mu.Unlock()
}

func (k *kept) killGuard() {
	if k.guard != nil {
		_ = k.guard.Kill()
		return
	}
	_ = unix.PidfdSendSignal(k.guardFD, unix.SIGKILL, nil, 0)
}

// strikeOrphans kills what the guard's end made our children, reaps it, and returns how many there were.
func (k *kept) strikeOrphans(h *hunter) int {
	session, err := unix.Getsid(0)
	if err != nil {
		return 1
	}
	h.self = int32(os.Getpid())
	found := h.strike(unix.SIGKILL, func(pid int) bool {
		if pid == k.guardPID {
			return false
		}
		// What this process started itself is in its session. The tree is not, and can't come back into it.
		if sid, err := unix.Getsid(pid); err != nil || sid == session {
			return false
		}
		return k.owns(pid)
	})
	for i := range found {
		if h.parents[i] == h.self {
			_, _ = unix.Wait4(int(h.pids[i]), nil, unix.WNOHANG|unix.WALL, nil)
		}
	}
	return found
}

// owns tells whether a child of ours in a foreign session is of this tree. Only other guards, and what carries the mark
// of another tree, is not; a program that wiped its environment is.
func (k *kept) owns(pid int) bool {
	if comm, err := os.ReadFile(procPath(pid, "comm")); err == nil && string(bytes.TrimSpace(comm)) == guardName {
		return false
	}
	env, err := os.ReadFile(procPath(pid, "environ"))
	if err != nil {
		return true
	}
	mine := true
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.HasPrefix(kv, []byte(guardMark+"=")) {
			return false
		}
		if mark, ok := bytes.CutPrefix(kv, []byte(treeMark+"=")); ok {
			mine = string(mark) == k.mark
		}
	}
	return mine
}

// strikeMarked kills what carries the mark of a tree, and returns how many there were. It is the last resort where
// neither cgroup nor ancestry helps. The newest come first: a process that forks and exits all the time is gone when the list is
// read from its beginning.
func strikeMarked(mark string) int {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer dir.Close()
	want := []byte(treeMark + "=" + mark)
	found := 0
	for range emptyScans {
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return found
		}
		here := 0
		for _, name := range slices.Backward(names) {
			pid, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			env, err := os.ReadFile(procPath(pid, "environ"))
			if err != nil {
				continue
			}
			for kv := range bytes.SplitSeq(env, []byte{0}) {
				if bytes.Equal(kv, want) {
					_ = unix.Kill(pid, unix.SIGKILL)
					here++
					break
				}
			}
		}
		found += here
		if here > 0 {
			return found
		}
		if _, err := dir.Seek(0, 0); err != nil {
			return found
		}
	}
	return found
}

// emptyScans is how many times nothing is to be found before it is believed.
const emptyScans = 20

// stop ends the tree and returns nil only once no process of it is left.
func (k *kept) stop(ctx context.Context, grace time.Duration) error {
	k.end(election.BootClock().Add(max(grace, 0)))
	for {
		select {
		case <-k.gone: // possibly long ago
			k.awaitOutput()
			return nil
		default:
		}
		k.mu.Lock()
		limit := k.watch.must().Add(confirmWithin).Sub(election.BootClock())
		k.mu.Unlock()
		timer := time.NewTimer(max(limit, 0))
		select {
		case <-k.gone:
			timer.Stop()
			k.awaitOutput()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("cannot confirm the stop of %s: %w; %s", k.what, context.Cause(ctx), k.leftWords())
		case <-timer.C:
			return fmt.Errorf("cannot confirm the stop of %s: %s", k.what, k.leftWords())
		}
	}
}

// awaitOutput waits for the last lines, but not for a receiver that is stuck.
func (k *kept) awaitOutput() {
	select {
	case <-k.outputDone:
	case <-time.After(flushWithin):
	}
}

func (k *kept) leftWords() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left == "" {
		return "the guard has not said that the process tree is gone"
	}
	return k.left
}

// describe tells what could not be killed.
func describe(count, pid int) string {
	words := fmt.Sprintf("%d processes are left", count)
	if count == 1 {
		words = "1 process is left"
	}
	b, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return words
	}
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open || shut+2 >= len(b) {
		return words
	}
	return fmt.Sprintf("%s, such as %d (%s) in state %c", words, pid, b[open+1:shut], b[shut+2])
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// abilities tells in words how well the tree is guarded.
func (k *kept) logAbilities() {
	priority := "normal"
	switch {
	case k.able&ableRealtime != 0:
		priority = "SCHED_RR"
	case k.able&ableNice != 0:
		priority = "nice -20"
	}
	method := "descendants"
	if k.able&ableCgroup != 0 {
		method = "cgroup and descendants"
	}
	k.log.Info().Int("pid", k.pid).Int("guard", k.guardPID).Str("kill", method).Str("priority", priority).
		Bool("memory_locked", k.able&ableLocked != 0).Bool("spared_by_oom", k.able&ableOOM != 0).
		Bool("watchdog", k.able&ableWatchdog != 0).Msg("Started " + k.what)
}

func waitStatusOfSignal(n int, dumped bool) unix.WaitStatus {
	if dumped {
		n |= 0x80
	}
	return unix.WaitStatus(n)
}

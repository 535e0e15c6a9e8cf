package process

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// handle is the sidecar's side of one guarded tree: it passes orders on, watches the guard, and
// does the guard's work should the guard fail.
type handle struct {
	log        zerolog.Logger
	conn       *net.UnixConn
	guard      *guardProcess // nil if adopted: not our child
	guardPID   int
	began      uint64        // when the guard did, in clock ticks
	guardFD    int           // pidfd of an adopted guard, else -1
	guardDead  chan struct{} // closed when the guard has ended
	cgroupPath string
	mark       string
	what       string // for messages: the command's name
	outputDone chan struct{}
	stateDir   string // "" if nobody can adopt
	unit       string // of the systemd driver
	outside    outside
	isGuard    func(pid int) bool

	exited chan struct{}
	gone   chan struct{}
	poke   chan struct{} // the watch loop has something new to think about
	leave  chan struct{} // closed by detach
	// unproven is closed when nothing more can be shown, and the last deadline has passed; why says
	// it in words.
	unproven chan struct{}
	why      string

	mu       sync.Mutex
	watch    watch
	seq      uint32
	pid      int
	pidBegan uint64 // when that process did, in clock ticks; 0: not known
	able     wire.Ability
	hasEnded bool
	itself   bool // it ended without having been made to
	exit     string
	code     int
	inHand   bool             // a record was read that run has not got yet
	left     string           // what could not be killed, in words
	lead     time.Duration    // how far ahead deadlines lie, at the most; negative: without end
	wanted   election.Instant // a deadline further ahead than is on record, which is being changed
	final    bool             // the guard has failed: its last deadline is the last
}

// newHandle makes the sidecar's side of a tree.
func (d *driver) newHandle(mark string) *handle {
	k := &handle{
		log: d.cfg.Log, what: d.cfg.Command[0], mark: mark, guardFD: -1, unit: d.unit, outside: d.outside, isGuard: d.isGuard, lead: d.cfg.Lead,
		outputDone: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}), unproven: make(chan struct{}),
		poke: make(chan struct{}, 1), leave: make(chan struct{}),
		watch: watch{patience: d.cfg.AnswerWithin, killAt: election.Never},
	}
	if k.watch.patience <= 0 {
		k.watch.patience = answerWithin
	}
	return k
}

// noteLead keeps how far ahead of now a deadline lies, and reports whether that is further than any
// before.
func (k *handle) noteLead(deadline, now election.Instant) bool {
	switch {
	case k.lead < 0:
		return false
	case deadline == election.Never:
		k.lead = -1
		return true
	}
	lead := deadline.Sub(now)
	if lead <= k.lead {
		return false
	}
	k.lead = lead + lead/4 // so that it does not grow with every renewal
	return true
}

// record writes down what a later sidecar needs to find the tree.
func (k *handle) record() error {
	if k.stateDir == "" {
		return nil
	}
	k.mu.Lock()
	st := wire.Trace{Guard: k.guardPID, Main: k.pid, MainBegan: k.pidBegan, Outside: k.outside != nil, Tree: k.mark, Cgroup: k.cgroupPath, Lead: k.lead, Unit: k.unit}
	if k.guardPID > 0 && k.able&wire.AbleCgroup == 0 && k.unit == "" {
		st.Cgroup = ""
	}
	k.mu.Unlock()
	if err := wire.Remember(k.stateDir, st); err != nil {
		return fmt.Errorf("it can't be written down where the guard is, so that nobody would find it again: %v", err)
	}
	return nil
}

// stoodStill is how late the watch has to be for this process to have been frozen, or starved.
const stoodStill = time.Second

func (k *handle) mainPID() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pid
}

// setMainLocked takes note of the main process, which a number alone does not name for good.
func (k *handle) setMainLocked(pid int) {
	k.pid, k.pidBegan = pid, 0
	if pid > 0 {
		k.pidBegan, _ = kernel.BeganAt(pid)
	}
}

// origin is what is known of the run when its guard fails.
func (k *handle) origin() origin {
	k.mu.Lock()
	defer k.mu.Unlock()
	return origin{began: k.began, main: k.pid, mainBegan: k.pidBegan}
}

// runs tells the guard which process somebody else has started in the cgroup.
func (k *handle) runs(pid int) {
	k.mu.Lock()
	k.setMainLocked(pid)
	k.mu.Unlock()
	k.send(wire.Record{Kind: wire.KindRunning, A: int64(pid)})
}

// send passes a record on without waiting; a guard that does not take it will be found out by the
// missing answer.
func (k *handle) send(r wire.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sendLocked(r)
}

func (k *handle) sendLocked(r wire.Record) {
	k.seq++
	r.Seq = k.seq
	now := election.BootClock()
	k.watch.lastSent = now
	if len(k.watch.pending) < 64 { // the oldest is what counts
		k.watch.pending = append(k.watch.pending, sent{r.Seq, now})
	}
	var buf [wire.RecordMax]byte
	b := r.Put(buf[:])
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

func (k *handle) extend(deadline election.Instant) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if deadline <= k.watch.deadline {
		return
	}
	now := election.BootClock()
	if now >= k.watch.deadline || k.final {
		return // the guard would not take it either
	}
	if k.noteLead(deadline, now) && k.stateDir != "" {
		if k.wanted == 0 {
			go k.extendOnRecord()
		}
		k.wanted = deadline
		return
	}
	k.extendLocked(deadline)
}

func (k *handle) extendLocked(deadline election.Instant) {
	k.watch.deadline = deadline
	k.sendLocked(wire.Record{Kind: wire.KindExtend, A: int64(deadline)})
}

// extendOnRecord moves the deadline further ahead than ever, after that has been written down.
func (k *handle) extendOnRecord() {
	if err := k.record(); err != nil {
		k.log.Warn().Err(err).Msg("cannot record the deadline")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wanted > k.watch.deadline && election.BootClock() < k.watch.deadline && !k.final {
		k.extendLocked(k.wanted)
	}
	k.wanted = 0
}

// end orders the tree to be killed at the given instant, after a stop signal now.
func (k *handle) end(killAt election.Instant) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if killAt < k.watch.killAt {
		k.watch.killAt = killAt
		k.sendLocked(wire.Record{Kind: wire.KindStop, A: int64(killAt)})
	}
}

// run watches until no process of the tree is left, or the sidecar detaches.
func (k *handle) run() {
	records := make(chan wire.Record, 64)
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
			if r.Kind == wire.KindUnproven {
				k.giveUp("")
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
		if still := now.Sub(k.watch.looked); k.watch.looked != 0 && still > stoodStill {
			k.log.Warn().Dur("still_ms", still).Msg("this process stood still")
		}
		failed, ping, next := k.watch.decide(now)
		if ping {
			k.sendLocked(wire.Record{Kind: wire.KindPing})
		}
		due := now >= k.watch.must()
		k.mu.Unlock()
		if failed && (k.unread() || len(records) > 0) { // in the order in which a record moves
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

// unread tells whether there is something of the guard that run has not got yet, be it its end.
func (k *handle) unread() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	is := k.inHand
	if raw, err := k.conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			is = is || n > 0 && err == nil
		})
	}
	return is
}

func (k *handle) read(to chan<- wire.Record) {
	defer close(to)
	raw, err := k.conn.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, wire.RecordMax)
	for {
		n := k.receive(raw, buf)
		if n <= 0 {
			return
		}
		if r, ok := wire.ParseRecord(buf[:n]); ok {
			to <- r
		}
		k.mu.Lock()
		k.inHand = false
		k.mu.Unlock()
	}
}

// receive reads one record, and returns its length. It marks what it takes from the socket in the
// same step, so that a record is at all times where unread finds it.
func (k *handle) receive(raw syscall.RawConn, buf []byte) (n int) {
	var err error
	closed := raw.Read(func(fd uintptr) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for {
			if n, err = unix.Read(int(fd), buf); err != unix.EINTR { //nolint:errorlint // a bare errno
				break
			}
		}
		k.inHand = n > 0
		return err != unix.EAGAIN //nolint:errorlint // a bare errno
	})
	if closed != nil || err != nil {
		return 0
	}
	return n
}

// take handles a record of the guard and tells whether it was the last.
func (k *handle) take(r wire.Record) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r.Kind {
	case wire.KindStarted: // after the start of a script: the main process is known only then
		k.setMainLocked(int(r.A))
	case wire.KindAck:
		k.watch.answered(r.Seq)
		k.watch.acked = election.Instant(r.A)
	case wire.KindExited:
		status := unix.WaitStatus(r.A)
		if !k.hasEnded {
			k.itself = wire.Cause(r.B) == wire.CauseNone && status != wire.StatusUnknown
		}
		k.endedLocked(wire.ExitWords(status, wire.Cause(r.B)), wire.ExitCode(status))
	case wire.KindKilling:
		k.watch.killing = true
	case wire.KindDoubt:
		k.final = true
		k.watch.deadline = election.Instant(r.A)
		k.left = "all that can be killed is dead, and nothing shows that this was all"
	case wire.KindUnproven:
		k.endedLocked(wire.ExitWords(0, wire.Cause(r.A)), -1)
		k.why = "the program's own status tells nothing"
	case wire.KindLeft:
		if k.left = r.Text; r.Text != "" {
			break
		}
		k.left = kernel.Describe(int(r.A), int(r.B))
	case wire.KindGone:
		why := wire.Cause(r.A)
		k.endedLocked(wire.ExitWords(0, why), -1)
		if why != wire.CauseNone {
			k.log.Debug().Dur("after_ms", time.Duration(r.B)).Msg("the guard killed the process tree")
		}
		return true
	}
	return false
}

func (k *handle) endedLocked(words string, code int) {
	if k.hasEnded {
		return
	}
	k.hasEnded, k.exit, k.code = true, words, code
	close(k.exited)
}

// stop ends the tree and returns nil only once no process of it is left.
func (k *handle) stop(ctx context.Context, grace time.Duration) error {
	asked := election.BootClock()
	k.end(asked.Add(max(grace, 0)))
	return k.confirm(ctx, asked)
}

// confirm waits for the end of the tree after a stop that was asked for at an instant.
func (k *handle) confirm(ctx context.Context, asked election.Instant) error {
	for {
		select {
		case <-k.gone: // possibly long ago
			k.awaitOutput()
			return nil
		default:
		}
		limit := k.confirmBy(asked)
		timer := time.NewTimer(max(limit.Sub(election.BootClock()), 0))
		select {
		case <-k.gone:
			timer.Stop()
			k.awaitOutput()
			return nil
		case <-k.unproven:
			timer.Stop()
			return fmt.Errorf("cannot confirm the stop of %s: %w: %s", k.what, election.ErrUnproven, k.why)
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("cannot confirm the stop of %s: %w; %s", k.what, context.Cause(ctx), k.leftWords())
		case <-timer.C:
			// If this process stood still meanwhile, the guard's word has yet to be read.
			if now := election.BootClock(); now.Sub(limit) > answerDue {
				asked = now
				continue
			}
			if k.isGone() || k.confirmBy(asked) > limit {
				continue
			}
			return fmt.Errorf("cannot confirm the stop of %s: %s", k.what, k.leftWords())
		}
	}
}

// confirmBy is until when a stop that was asked for at an instant can be confirmed.
func (k *handle) confirmBy(asked election.Instant) election.Instant {
	k.mu.Lock()
	defer k.mu.Unlock()
	limit := max(k.watch.must(), asked).Add(confirmWithin)
	if k.final { // nobody kills any more at a deadline; it is waited out
		limit = max(limit, k.watch.deadline.Add(confirmWithin))
	}
	return limit
}

func (k *handle) isGone() bool {
	select {
	case <-k.gone:
		return true
	default:
		return false
	}
}

// awaitOutput waits for the last lines, but not for a receiver that is stuck.
func (k *handle) awaitOutput() {
	select {
	case <-k.outputDone:
	case <-time.After(wire.FlushWithin):
	}
}

func (k *handle) leftWords() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left == "" {
		return "the guard has not said that the process tree is gone"
	}
	return k.left
}

// abilities tells in words how well the tree is guarded.
func (k *handle) logAbilities() {
	priority := "normal"
	switch {
	case k.able&wire.AbleRealtime != 0:
		priority = "SCHED_RR"
	case k.able&wire.AbleNice != 0:
		priority = "nice -20"
	}
	method := "descendants"
	if k.able&wire.AbleCgroup != 0 {
		method = "cgroup and descendants"
	}
	k.log.Info().Int("pid", k.pid).Int("guard", k.guardPID).Str("kill", method).Str("priority", priority).
		Bool("memory_locked", k.able&wire.AbleLocked != 0).Bool("spared_by_oom", k.able&wire.AbleOOM != 0).
		Bool("watchdog", k.able&wire.AbleWatchdog != 0).Msg("started " + k.what)
}

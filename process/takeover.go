package process

import (
	"context"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// guardEnded handles the end of the guard's stream: either its job is done, or it died.
func (k *handle) guardEnded() {
	select {
	case <-k.guardDead:
	case <-time.After(answerDue):
	}
	select {
	case <-k.guardDead:
		if k.guard == nil {
			break
		}
		switch k.guard.code { // it says so once more by its exit code
		case wire.GuardGone:
			k.settle()
			return
		case wire.GuardUnproven:
			k.giveUp("")
			return
		}
	default:
	}
	k.takeOver("guard: it died")
}

// settle is the confirmed end.
func (k *handle) settle() {
	k.clear()
	close(k.gone)
}

// giveUp is the end of which nothing more can be shown.
func (k *handle) giveUp(why string) {
	if why != "" {
		k.mu.Lock()
		k.why = why
		k.mu.Unlock()
	}
	k.log.Error().Str("reason", k.why).Msg("cannot prove that the process tree is gone, but its deadline has passed")
	k.clear()
	close(k.unproven)
}

func (k *handle) clear() {
	k.mu.Lock()
	k.endedLocked("ended", -1)
	k.mu.Unlock()
	_ = k.conn.Close()
	if k.cgroupPath != "" {
		_ = kernel.RemoveCgroup(k.cgroupPath) // most likely the guard has
	}
	if k.stateDir != "" {
		wire.Forget(k.stateDir)
	}
}

// takeOver does what the guard should have done. The guard is killed first: its main child dies
// with it, and the kernel makes the rest of the tree ours, for we are a subreaper too.
func (k *handle) takeOver(why string) {
	k.log.Warn().Str("reason", why).Int("guard", k.guardPID).Msg("the guard failed; killing the process tree")
	var group *kernel.Cgroup
	if k.cgroupPath != "" {
		if group, _ = kernel.OpenCgroup(k.cgroupPath); group != nil {
			defer group.Close()
			_ = group.Kill()
		}
	}
	k.killGuard()
	k.mu.Lock()
	k.endedLocked(why, -1)
	k.final = true // no renewal moves what nobody holds
	until := k.watch.deadline
	if until == election.Never {
		until = election.BootClock()
	}
	k.mu.Unlock()
	h := kernel.NewHunter()
	empty, asked, answer := 0, election.Instant(0), Unknown
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if group != nil {
			_ = group.Kill()
		}
		found := k.strikeLeft(h)
		e := evidence{record: recordPresent, living: found, locked: !k.guardIsDead(), asked: k.outside != nil}
		if group != nil && group.Populated() {
			e.living++
		}
		if e.living > 0 || e.locked {
			empty = 0
		} else {
			empty++
		}
		// One empty reading proves nothing: an orphan is missed while its parent dies and it comes
		// to us.
		e.orphans = k.guard != nil && empty >= emptyScans
		e.group = group != nil && k.unit == "" && empty > 0
		if now := election.BootClock(); e.asked && empty >= emptyScans && now.Sub(asked) >= askEvery {
			answer, asked = k.askOutside(), now
		}
		e.outside = answer
		v, words := e.verdict()
		switch {
		case v == Gone:
			k.settle()
			return
		case v == Unknown && !e.locked && empty >= emptyScans && election.BootClock() >= until:
			k.giveUp(words)
			return
		case found > 0:
			k.setLeft(kernel.Describe(found, int(h.PIDs[0])))
		case e.locked:
			k.setLeft(kernel.Describe(1, k.guardPID))
		default:
			k.setLeft(words)
		}
		if e.living > 0 && pause < 20*time.Millisecond || e.living == 0 && empty < emptyScans {
			pause = time.Millisecond / 2
		}
		time.Sleep(pause)
	}
}

// askEvery is how much time there is between two questions to a program's own status command.
const askEvery = 500 * time.Millisecond

// emptyScans is how many times nothing is to be found before it is believed.
const emptyScans = 20

func (k *handle) guardIsDead() bool {
	select {
	case <-k.guardDead:
		return true
	default:
		return false
	}
}

// strikeLeft kills what is found of the tree, and returns how much that was.
func (k *handle) strikeLeft(h *kernel.Hunter) int {
	if k.guard != nil {
		return k.strikeOrphans(h)
	}
	ours := func(mark string) bool { return mark == k.mark }
	marked := kernel.Marked(wire.TreeMark, ours)
	for i, pid := range marked {
		kernel.Kill(pid, func(pid int) bool { return kernel.HasMark(pid, wire.TreeMark, ours) })
		h.PIDs[i] = int32(pid)
	}
	return len(marked)
}

// askOutside has the program's own commands, or systemd, end what they know of, and asks them. Each
// has its own time: a status command that hangs does not keep the kill command from running.
func (k *handle) askOutside() Verdict {
	killing, done := context.WithTimeout(context.Background(), confirmWithin)
	of := k.origin()
	k.outside.force(killing, of)
	done()
	asking, done := context.WithTimeout(context.Background(), 2*confirmWithin)
	defer done()
	return k.outside.ask(asking, of)
}

func (k *handle) setLeft(s string) {
	k.mu.Lock()
	k.left = s
	k.mu.Unlock()
}

func (k *handle) killGuard() {
	if k.guard != nil {
		_ = k.guard.Kill()
		return
	}
	_ = unix.PidfdSendSignal(k.guardFD, unix.SIGKILL, nil, 0)
}

// strikeOrphans kills what the guard's end made our children, reaps it, and returns how many there
// were.
func (k *handle) strikeOrphans(h *kernel.Hunter) int {
	session, err := unix.Getsid(0)
	if err != nil {
		return 1
	}
	h.Self = int32(os.Getpid())
	found := h.Strike(unix.SIGKILL, func(pid int) bool {
		if pid == k.guardPID {
			return false
		}
		// What this process started itself is in its session. The tree is not, and can't come back
		// into it.
		if sid, err := unix.Getsid(pid); err != nil || sid == session {
			return false
		}
		return !k.isGuard(pid)
	})
	for i := range found {
		if h.Parents[i] == h.Self {
			_, _ = unix.Wait4(int(h.PIDs[i]), nil, unix.WNOHANG|unix.WALL, nil)
		}
	}
	return found
}

// isGuard tells whether a child of ours in a foreign session is a guard, which is no orphan. What a
// program calls itself, and what it puts in its environment, makes it none: a guard executes this
// very binary.
func (d *driver) isGuard(pid int) bool {
	self := d.cfg.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	ours, err := os.Stat(self)
	if err != nil {
		return false
	}
	theirs, err := os.Stat(kernel.ProcPath(pid, "exe"))
	if err != nil { // it has ended; who started it waits for it, and learns from its exit code
		name, err := os.ReadFile(kernel.ProcPath(pid, "comm"))
		return err == nil && strings.TrimSpace(string(name)) == wire.GuardName && kernel.IsZombie(pid)
	}
	// A companion executes it too, in a tree. A guard that has just been forked has no mark of its
	// own yet.
	return os.SameFile(ours, theirs) && !kernel.HasMark(pid, wire.TreeMark, func(string) bool { return true })
}

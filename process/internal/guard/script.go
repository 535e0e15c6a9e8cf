package guard

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

const (
	helperWithin = 5 * time.Second        // for the kill and status commands
	statusEvery  = time.Second            // where nothing but the status command can tell
	stopEvery    = 50 * time.Millisecond  // the same once the program is to end
	killEvery    = 500 * time.Millisecond // between two kill commands
	pidFileGrace = time.Second            // for the PID file, when nothing is left below the guard
)

// script is the part of the guard that deals with the commands that start, stop and ask about a
// program.
type script struct {
	starting bool
	starter  int // PID of the start command
	startFD  int
	// the start command has ended well; the main process is being looked for
	started  bool
	running  bool // the program runs, as far as known
	resident bool // the program was seen below the guard
	// since when nothing is below the guard, while the main process is looked for
	empty election.Instant

	stopper int // PID of the stop command while it runs
	// Two, so that a status command that hangs does not keep the kill command from running.
	asker, killer helper
	answers       wire.Answers
	asked         election.Instant
	struck        election.Instant
}

// helper is a command that runs beside the tree.
type helper struct {
	pid, fd int
	till    election.Instant
}

func (c *script) begin(pid, fd int) { c.starting, c.starter, c.startFD = true, pid, fd }

// reaped takes note of the end of a command.
func (c *script) reaped(g *guard, pid int, status unix.WaitStatus) {
	switch pid {
	case c.starter:
		c.starter = 0
		if c.startFD >= 0 {
			unix.Close(c.startFD)
		}
		c.starting = false
		if status != 0 {
			if !g.killing {
				c.refuse(g, election.BootClock(), "its start command failed: "+wire.ExitWords(status, wire.CauseNone))
			}
			return
		}
		c.started = true
	case c.stopper:
		c.stopper = 0
	case c.killer.pid:
		c.killer.ended()
	case c.asker.pid:
		c.asker.ended()
		c.heard(g, wire.AnswerOf(status))
	}
}

// heard takes note of an answer of the status command.
func (c *script) heard(g *guard, answer wire.Answer) {
	c.answers.Add(answer)
	switch {
	case c.answers.Absent(c.resident):
		return
	case g.killing && answer == wire.AnswerRuns:
		g.say(wire.Record{Kind: wire.KindLeft, Text: "its status command says that it runs"})
	case answer == wire.AnswerDead && c.answers.Row >= 2 && c.running && !g.exited:
		g.ended(wire.StatusUnknown) // enough to see a failure in it, not to call it gone
	}
}

func (h *helper) ended() {
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
	h.pid, h.fd = 0, -1
}

// expire kills what has run too long.
func (h *helper) expire(now election.Instant) {
	if h.pid != 0 && now >= h.till {
		_ = unix.Kill(h.pid, unix.SIGKILL)
	}
}

// settle finds the main process once the start command has ended.
func (c *script) settle(g *guard, now election.Instant) {
	c.asker.expire(now)
	c.killer.expire(now)
	if c.running || g.killing || g.spec.Mode != wire.ModeScript {
		return
	}
	late := now >= election.Instant(g.spec.StartBy)
	if !c.started {
		if late {
			c.refuse(g, now, "its start command did not end in time")
		}
		return
	}
	g.hunter.Find(g.ofProgram)
	below := g.hunter.N > 0
	c.resident = c.resident || below
	if g.spec.PIDFile != "" {
		pid, fd := g.openMain(g.spec.PIDFile)
		if fd < 0 {
			c.missing(g, now, late, below)
			return
		}
		unix.CloseOnExec(fd)
		g.mainPID, g.mainFD = pid, fd
		c.resident = c.resident || kernel.Descends(pid, os.Getpid())
	}
	c.running = true
	g.say(wire.Record{Kind: wire.KindStarted, A: int64(g.mainPID), B: int64(g.able)})
}

// missing is a start whose PID file names no process (yet). Where nothing is left below the guard
// either, and no status command knows better, the program has ended.
func (c *script) missing(g *guard, now election.Instant, late, below bool) {
	switch {
	case late:
		c.refuse(g, now, "its PID file "+g.spec.PIDFile+" names no process that was started with it")
		return
	case below:
		c.empty = 0
		return
	case c.empty == 0:
		c.empty = now
	}
	if len(g.spec.Status) > 0 {
		c.ask(g, now, killEvery)
		if !c.answers.Absent(true) {
			return
		}
	}
	if now.Sub(c.empty) >= pidFileGrace {
		c.refuse(g, now, "it has ended: its PID file "+g.spec.PIDFile+" names no process that was started with it, and nothing that its start command left runs")
	}
}

func (c *script) refuse(g *guard, now election.Instant, why string) {
	g.say(wire.Record{Kind: wire.KindRefused, Text: why})
	g.startKilling(wire.CauseStop, now)
}

// openMain returns the process that a PID file names, and a handle of it, or -1. A process that is
// older than the guard is not the one that was started, but has only the same number as one of old.
// One that neither descends from the guard nor belongs to the program's user was put there by
// somebody who may write the file.
func (g *guard) openMain(path string) (pid, fd int) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, -1
	}
	pid, err = strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 1 {
		return 0, -1
	}
	fd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, -1
	}
	began, err := kernel.BeganAt(pid)
	ours, err2 := kernel.BeganAt(os.Getpid())
	if err != nil || err2 != nil || began < ours || kernel.IsZombie(pid) || !g.believes(pid) {
		unix.Close(fd)
		return 0, -1
	}
	return pid, fd
}

func (g *guard) believes(pid int) bool {
	if kernel.Descends(pid, os.Getpid()) {
		return true
	}
	user := int(g.spec.UID)
	if user < 0 {
		user = os.Geteuid()
	}
	_, uid, err := kernel.ParentAndOwner(pid)
	return err == nil && uid == user
}

// mainEnded is called when the handle of the main process tells its end. Its status is known only
// if it is our child.
func (c *script) mainEnded(g *guard) {
	if g.exited || g.mainPID == 0 {
		return
	}
	var status unix.WaitStatus
	pid, err := unix.Wait4(g.mainPID, &status, unix.WNOHANG|unix.WALL, nil)
	if err != nil || pid != g.mainPID {
		status = wire.StatusUnknown
	}
	g.ended(status)
}

// stop runs the stop command and tells whether there is one.
func (c *script) stop(g *guard) bool {
	if len(g.spec.Stop) == 0 {
		return false
	}
	pid, fd, err := g.spawn(g.spec.Stop, nullFiles())
	if err != nil {
		return false
	}
	c.stopper = pid
	if fd >= 0 {
		unix.Close(fd) // its end wakes the guard as any child's does
	}
	return true
}

// strike runs the kill command, if there is one, every now and then, and kills a main process that
// is not below us.
func (c *script) strike(g *guard) {
	now := election.BootClock()
	if g.mainFD >= 0 && !g.exited {
		_ = unix.PidfdSendSignal(g.mainFD, unix.SIGKILL, nil, 0)
	}
	if g.spec.Mode == wire.ModeUnit && g.mainPID > 0 {
		return // its cgroup is all there is of it
	}
	if len(g.spec.Kill) > 0 && c.killer.pid == 0 && (c.struck == 0 || now.Sub(c.struck) >= killEvery && !c.answers.Absent(c.resident)) {
		c.struck = now
		c.help(g, g.spec.Kill, &c.killer)
	}
}

// over tells whether the program has ended, once nothing below us is left.
func (c *script) over(g *guard, now election.Instant) bool {
	switch {
	case c.starting || c.started && !c.running && !g.killing:
		return false
	case g.mainFD >= 0 && !g.exited:
		return false // it lives elsewhere
	}
	return c.absent(g, now)
}

// absent asks the status command, if there is one, and tells whether it has shown that the program
// does not run.
func (c *script) absent(g *guard, now election.Instant) bool {
	if len(g.spec.Status) == 0 || c.answers.Absent(c.resident) {
		return true
	}
	every := statusEvery
	if g.killing || g.stopping || c.answers.Row > 0 && c.answers.Last != wire.AnswerRuns {
		every = stopEvery
	}
	if c.answers.Last == wire.AnswerUnknown && c.answers.Row > 0 {
		every = killEvery
	}
	c.ask(g, now, every)
	return false
}

// ask runs the status command unless it ran a moment ago.
func (c *script) ask(g *guard, now election.Instant, every time.Duration) {
	if c.asker.pid == 0 && (c.asked == 0 || now.Sub(c.asked) >= every) {
		c.asked = now
		if !c.help(g, g.spec.Status, &c.asker) {
			c.heard(g, wire.AnswerUnknown)
		}
	}
}

// help runs a command beside the tree, as the program's user.
func (c *script) help(g *guard, argv []string, h *helper) bool {
	attr, err := g.asProgram(nullFiles())
	if err != nil {
		return false
	}
	if g.spec.Mode == wire.ModeUnit { // our own
		attr.Env = append([]string{"GOMAXPROCS=1"}, g.spec.Env...)
		attr.Sys.Credential = nil
	}
	fd := -1
	attr.Sys.PidFD = &fd
	pid, err := g.fork(argv[0], argv, attr)
	if err != nil {
		return false
	}
	if fd >= 0 {
		unix.CloseOnExec(fd)
	}
	h.pid, h.fd, h.till = pid, fd, election.BootClock().Add(helperWithin)
	return true
}

func (c *script) patience() time.Duration {
	switch {
	case c.started && !c.running:
		return 5 * time.Millisecond // for the PID file
	case c.running:
		return statusEvery
	}
	return 20 * time.Millisecond // the start command is to end in time
}

// nullFiles are stdin, stdout and stderr of a command whose words nobody needs: the guard's own,
// which are /dev/null and stderr.
func nullFiles() []uintptr { return slices.Clone([]uintptr{0, 2, 2}) }

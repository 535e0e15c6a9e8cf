package process

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// ScriptConfig describes a program that is started and stopped by commands of its own, as daemons are.
type ScriptConfig struct {
	// Config describes the environment of all commands; its Command starts the program, and ends, with exit status 0, when the
	// program runs. StopSignal is used only without a StopCommand.
	Config
	// StopCommand asks the program to end. It may return before the program has. Empty: the stop signal does.
	StopCommand []string
	// StatusCommand ends with exit status 0 as long as the program runs. It is needed for a program that does not stay below the
	// guard (one that hands itself over to another supervisor) and has no PID file; else it only adds certainty.
	StatusCommand []string
	// KillCommand ends the program by force. It is needed as StatusCommand is.
	KillCommand []string
	// PIDFile is where the program writes its process id; its end is then seen at once, whoever its parent is.
	PIDFile string
	// StartWithin is how long the start command, and the PID file, may take; 0 means 30 s.
	StartWithin time.Duration
}

// Script keeps a program that is started and stopped by commands. Its tree is guarded as that of [Exec] is: daemons
// that fork twice are still descendants of the guard. On top, its commands are used, by the guard itself, so that they also
// run when the sidecar can't. Its methods are safe for concurrent use.
type Script struct{ driver }

// NewScript makes a driver for the program that cfg describes. It starts nothing.
func NewScript(cfg ScriptConfig) *Script {
	return &Script{driver{cfg: cfg.Config, startWithin: cfg.StartWithin, plan: func(s *spec) error {
		s.mode = modeScript
		s.pidFile = cfg.PIDFile
		within := cfg.StartWithin
		if within <= 0 {
			within = startWithin
		}
		s.startBy = int64(election.BootClock().Add(within))
		for _, c := range []struct {
			to   *[]string
			from []string
			name string
		}{{&s.stop, cfg.StopCommand, "stop"}, {&s.status, cfg.StatusCommand, "status"}, {&s.kill, cfg.KillCommand, "kill"}} {
			if len(c.from) == 0 {
				continue
			}
			argv, err := resolve(c.from, s.env, s.dir)
			if err != nil {
				return fmt.Errorf("its %s command can't be run: %w", c.name, err)
			}
			*c.to = argv
		}
		return nil
	}}}
}

const (
	helperWithin = 5 * time.Second        // for the kill and status commands
	statusEvery  = time.Second            // where nothing but the status command can tell
	killEvery    = 500 * time.Millisecond // between two kill commands
)

// script is the part of the guard that deals with the commands of the script driver.
type script struct {
	starting   bool
	starter    int // PID of the start command
	startFD    int
	started    bool // the start command has ended well; the main process is being looked for
	running    bool // the program runs, as far as known
	helper     int  // PID of the kill or status command that is running, 0 if none
	helperFD   int
	helperTill election.Instant
	asking     bool // the helper is the status command
	absent     bool // the status command said that the program does not run, after the tree was seen empty
	asked      election.Instant
	struck     election.Instant
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
				c.refuse(g, election.BootClock(), "its start command failed: "+exitWords(status, causeNone))
			}
			return
		}
		c.started = true
	case c.helper:
		if c.asking {
			c.absent = status != 0
		}
		c.helper, c.asking = 0, false
		if c.helperFD >= 0 {
			unix.Close(c.helperFD)
			c.helperFD = -1
		}
	}
}

// settle finds the main process once the start command has ended.
func (c *script) settle(g *guard, now election.Instant) {
	if c.running || g.killing {
		return
	}
	late := now >= election.Instant(g.spec.startBy)
	if !c.started {
		if late {
			c.refuse(g, now, "its start command did not end in time")
		}
		return
	}
	if g.spec.pidFile != "" {
		pid, fd := openMain(g.spec.pidFile)
		if fd < 0 {
			if late {
				c.refuse(g, now, "its PID file "+g.spec.pidFile+" names no process that was started with it")
			}
			return
		}
		unix.CloseOnExec(fd)
		g.mainPID, g.mainFD = pid, fd
	}
	c.running = true
	g.say(record{kind: kindStarted, a: int64(g.mainPID), b: int64(g.able)})
}

func (c *script) refuse(g *guard, now election.Instant, why string) {
	g.say(record{kind: kindRefused, text: why})
	g.startKilling(causeStop, now)
}

// openMain returns the process that a PID file names, and a handle of it, or -1. A process that is older than the guard
// is not the one that was started, but has only the same number as one of old.
func openMain(path string) (pid, fd int) {
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
	began, err := beganAt(pid)
	ours, err2 := beganAt(os.Getpid())
	if err != nil || err2 != nil || began < ours || isZombie(pid) {
		unix.Close(fd)
		return 0, -1
	}
	return pid, fd
}

// mainEnded is called when the handle of the main process tells its end. Its status is known only if it is our child.
func (c *script) mainEnded(g *guard) {
	if g.exited || g.mainPID == 0 {
		return
	}
	var status unix.WaitStatus
	pid, err := unix.Wait4(g.mainPID, &status, unix.WNOHANG|unix.WALL, nil)
	if err != nil || pid != g.mainPID {
		status = statusUnknown
	}
	g.ended(status)
}

// stop runs the stop command and tells whether there is one.
func (c *script) stop(g *guard) bool {
	if len(g.spec.stop) == 0 {
		return false
	}
	_, _, err := g.spawn(g.spec.stop, nullFiles())
	return err == nil
}

// strike runs the kill command, if there is one, every now and then, and kills a main process that is not below us.
func (c *script) strike(g *guard) {
	now := election.BootClock()
	if c.helper != 0 && now >= c.helperTill {
		_ = unix.Kill(c.helper, unix.SIGKILL)
	}
	if g.mainFD >= 0 && !g.exited {
		_ = unix.PidfdSendSignal(g.mainFD, unix.SIGKILL, nil, 0)
	}
	if len(g.spec.kill) > 0 && c.helper == 0 && (c.struck == 0 || now.Sub(c.struck) >= killEvery && !c.absent) {
		c.struck = now
		c.help(g, g.spec.kill)
	}
}

// over tells whether the program has ended, once nothing below us is left.
func (c *script) over(g *guard, now election.Instant) bool {
	switch {
	case c.starting || c.started && !c.running && !g.killing:
		return false
	case g.mainFD >= 0 && !g.exited:
		return false // it lives elsewhere
	case len(g.spec.status) == 0:
		return true
	case c.absent:
		return true
	}
	every := statusEvery
	if g.killing || g.stopping {
		every = killEvery / 10
	}
	if c.helper == 0 && (c.asked == 0 || now.Sub(c.asked) >= every) {
		c.asked = now
		c.asking = c.help(g, g.spec.status)
	}
	return false
}

// help runs a command beside the tree.
func (c *script) help(g *guard, argv []string) bool {
	fd := -1
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: g.spec.dir, Env: g.spec.env, Files: nullFiles(),
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, PidFD: &fd},
	})
	if err != nil {
		return false
	}
	if fd >= 0 {
		unix.CloseOnExec(fd)
	}
	c.helper, c.helperFD, c.helperTill = pid, fd, election.BootClock().Add(helperWithin)
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

// nullFiles are stdin, stdout and stderr of a command whose words nobody needs: the guard's own, which are /dev/null and stderr.
func nullFiles() []uintptr { return slices.Clone([]uintptr{0, 2, 2}) }

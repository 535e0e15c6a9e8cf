package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
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

// ScriptConfig describes a program that is started and stopped by commands of its own, as daemons
// are.
type ScriptConfig struct {
	// Config describes the environment of all commands; its Command starts the program, and ends,
	// with exit status 0, when the program runs. StopSignal is used only without a StopCommand.
	Config
	// StopCommand asks the program to end. It may return before the program has. Empty: the stop
	// signal does.
	StopCommand []string
	// StatusCommand ends with exit status 0 as long as the program runs. It is needed for a program
	// that does not stay below the guard (one that hands itself over to another supervisor) and has
	// no PID file; else it only adds certainty.
	StatusCommand []string
	// KillCommand ends the program by force. It is needed as StatusCommand is.
	KillCommand []string
	// PIDFile is where the program writes its process id; its end is then seen at once, whoever its
	// parent is.
	PIDFile string
	// StartWithin is how long the start command, and the PID file, may take; 0 means 30 s.
	StartWithin time.Duration
}

// Script keeps a program that is started and stopped by commands. Its tree is guarded as that of
// [Exec] is: daemons that fork twice are still descendants of the guard. On top, its commands are
// used, by the guard itself, so that they also run when the sidecar can't. Its methods are safe for
// concurrent use.
type Script struct{ driver }

// NewScript makes a driver for the program that cfg describes. It starts nothing.
func NewScript(cfg ScriptConfig) *Script {
	s := &Script{}
	s.driver = driver{cfg: cfg.Config, alone: election.BootClock(), startWithin: cfg.StartWithin, outside: scriptOutside(cfg), plan: func(s *wire.Spec) error {
		s.Mode = wire.ModeScript
		s.PIDFile = cfg.PIDFile
		within := cfg.StartWithin
		if within <= 0 {
			within = startWithin
		}
		s.StartBy = int64(election.BootClock().Add(within))
		for _, c := range []struct {
			to   *[]string
			from []string
			name string
		}{{&s.Stop, cfg.StopCommand, "stop"}, {&s.Status, cfg.StatusCommand, "status"}, {&s.Kill, cfg.KillCommand, "kill"}} {
			if len(c.from) == 0 {
				continue
			}
			argv, err := resolve(c.from, s.Env, s.Dir)
			if err != nil {
				return fmt.Errorf("its %s command can't be run: %w", c.name, err)
			}
			*c.to = argv
		}
		return nil
	}}
	return s
}

// byCommand is what the commands of a program say of it, asked by the sidecar when no guard is left
// to ask.
type byCommand struct{ cfg ScriptConfig }

// scriptOutside returns nil for a program that has nothing to be found by but its place below the
// guard.
func scriptOutside(cfg ScriptConfig) outside {
	if len(cfg.StatusCommand) == 0 && cfg.PIDFile == "" {
		return nil
	}
	return byCommand{cfg}
}

func (c byCommand) ask(ctx context.Context, of origin) Verdict {
	if c.main(of) > 0 {
		return Running
	}
	switch {
	case len(c.cfg.StatusCommand) > 0:
	case of.knowsMain():
		return Gone // the PID file's process was the program, and it has ended
	default:
		return Unknown // a PID file that is missing, or names nobody, shows nothing
	}
	var answers wire.Answers
	for range 2 {
		answers.Add(c.run(ctx, c.cfg.StatusCommand))
		if answers.Last != wire.AnswerGone {
			break
		}
	}
	switch {
	case answers.Last == wire.AnswerRuns:
		return Running
	case answers.Absent(false):
		return Gone
	}
	return Unknown
}

func (c byCommand) force(ctx context.Context, of origin) {
	if pid := c.main(of); pid > 0 {
		kernel.Kill(pid, func(pid int) bool { return c.main(of) == pid })
	}
	if len(c.cfg.KillCommand) > 0 {
		c.run(ctx, c.cfg.KillCommand)
	}
}

// main is the main process, or 0: the one that the guard found, whatever has become of the PID
// file, else the one that the file names, if it belongs to the program's user and is younger than
// the guard.
func (c byCommand) main(of origin) int {
	if c.cfg.PIDFile == "" {
		return 0
	}
	if of.mainLives() {
		return of.main
	}
	if of.began == 0 {
		return 0
	}
	b, err := os.ReadFile(c.cfg.PIDFile)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 1 || pid == os.Getpid() || kernel.IsZombie(pid) {
		return 0
	}
	d := driver{cfg: c.cfg.Config}
	if began, err := kernel.BeganAt(pid); err != nil || began < of.began || !ownedBy(pid, d.uid()) {
		return 0
	}
	return pid
}

// run runs a command as the guard does: as the program's user, with its environment, without a way
// to gain privileges.
func (c byCommand) run(ctx context.Context, command []string) wire.Answer {
	ctx, cancel := context.WithTimeout(ctx, commandWithin)
	defer cancel()
	d := driver{cfg: c.cfg.Config, plan: func(*wire.Spec) error { return nil }}
	s, err := d.spec(d.newHandle(""), nil, election.Never)
	if err != nil {
		return wire.AnswerUnknown
	}
	argv, err := resolve(command, s.Env, s.Dir)
	if err != nil {
		return wire.AnswerUnknown
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.WaitDelay = s.Dir, time.Second
	cmd.Env = slices.DeleteFunc(s.Env, func(kv string) bool { return strings.HasPrefix(kv, wire.TreeMark+"=") })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if s.UID >= 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)}
		for _, id := range s.Groups {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				cmd.SysProcAttr.Credential.Groups = append(cmd.SysProcAttr.Credential.Groups, uint32(n))
			}
		}
	}
	if err := kernel.StartConfined(cmd, !c.cfg.NewPrivs); err != nil {
		return wire.AnswerUnknown
	}
	_ = cmd.Wait()                                   // its end is the answer
	if ctx.Err() != nil || cmd.ProcessState == nil { // nil: whoever reaps orphans here was faster
		return wire.AnswerUnknown
	}
	return wire.AnswerOf(unix.WaitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)))
}

// commandWithin bounds a status or kill command.
const commandWithin = 5 * time.Second

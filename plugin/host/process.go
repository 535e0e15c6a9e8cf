package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/plugin/internal/handshake"
)

// The child's descriptors.
const (
	lifelineFD = 3
	programFD  = 4
)

// drain is how long the output of a process is read after its end.
const drain = 200 * time.Millisecond

// program is one process of a plugin. It implements [runner.Runner].
type program struct {
	cmd            *exec.Cmd
	path           string
	file           *executable // what is executed
	lifeline       *os.File    // the plugin ends when it is closed
	stdout, stderr io.ReadCloser
	dir            string // of the socket; empty: not made

	begun   bool // it was started
	started chan error
	ended   chan struct{} // closed once the process has been waited for; only if begun
	err     error         // of the wait; valid once ended is closed

	killing sync.Mutex
	pid     int  // zero: not started
	killed  bool // before it was started, too
	gone    bool // its number may be another's
}

var _ runner.Runner = (*program)(nil)

// newProgram prepares the execution of a file. It takes the file over.
func newProgram(f *executable, env []string) (*program, error) {
	p := &program{path: f.path, file: f, started: make(chan error, 1), ended: make(chan struct{})}
	// The very file that was checked is executed, whatever its name means by now.
	p.cmd = &exec.Cmd{Path: "/proc/self/fd/" + strconv.Itoa(programFD), Args: []string{f.path}, Dir: "/"}
	p.cmd.Env = append(append([]string{}, env...), handshake.LifelineVariable+"="+strconv.Itoa(lifelineFD))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // a terminal's signals are for the host
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	p.lifeline = ours
	p.cmd.ExtraFiles = []*os.File{theirs, f.File}
	if p.stdout, err = p.cmd.StdoutPipe(); err == nil {
		p.stderr, err = p.cmd.StderrPipe()
	}
	if err != nil {
		return nil, errors.Join(err, theirs.Close(), ours.Close(), f.Close())
	}
	return p, nil
}

// Start implements [runner.Runner]. The kernel kills the process when the thread that started it
// ends. That thread does nothing else, so that it ends with this process and not before.
func (p *program) Start(context.Context) error {
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		err := p.execute()
		p.started <- err
		if err != nil {
			return
		}
		p.err = p.wait()
		// They are read to their end, which something that the plugin started may keep open.
		time.AfterFunc(drain, func() { _, _ = p.stdout.Close(), p.stderr.Close() })
		close(p.ended)
	}()
	err := <-p.started
	if err != nil {
		return fmt.Errorf("cannot execute %s: %w", p.path, err)
	}
	p.begun = true
	p.closeTheirs()
	return nil
}

// execute starts the process, unless it was killed before.
func (p *program) execute() error {
	p.killing.Lock()
	defer p.killing.Unlock()
	if p.killed {
		return os.ErrProcessDone
	}
	err := p.cmd.Start()
	if err == nil {
		p.pid = p.cmd.Process.Pid
	}
	return err
}

// closeTheirs closes what the child has of its own.
func (p *program) closeTheirs() {
	for _, f := range p.cmd.ExtraFiles {
		_ = f.Close() // it was not written
	}
}

// wait waits for the process, ends the rest of its group, and only then lets the kernel give its
// number to another.
func (p *program) wait() error {
	pid := p.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR { //nolint:errorlint // a bare errno
	}
	p.killing.Lock()
	defer p.killing.Unlock()
	p.gone = true
	_ = syscall.Kill(-pid, syscall.SIGKILL) // there may be none
	state, err := p.cmd.Process.Wait()
	if err == nil && !state.Success() {
		err = errors.New(state.String())
	}
	return err
}

// Wait implements [runner.Runner].
func (p *program) Wait(context.Context) error {
	<-p.ended
	return p.err
}

// Kill implements [runner.Runner]. It also kills what the plugin has started, unless that left the
// plugin's process group.
func (p *program) Kill(context.Context) error {
	p.killing.Lock()
	defer p.killing.Unlock()
	p.killed = true
	if p.pid != 0 && !p.gone {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
	return nil
}

// dismiss asks the process to end. If it was never started, nothing is left of it.
func (p *program) dismiss() {
	_ = p.lifeline.Close() // it carries nothing
	if !p.begun {
		p.closeTheirs()
		_, _ = p.stdout.Close(), p.stderr.Close() // nobody writes to them
	}
}

// Stdout implements [runner.Runner].
func (p *program) Stdout() io.ReadCloser { return p.stdout }

// Stderr implements [runner.Runner].
func (p *program) Stderr() io.ReadCloser { return p.stderr }

// Name implements [runner.Runner].
func (p *program) Name() string { return p.path }

// ID implements [runner.Runner].
func (p *program) ID() string {
	p.killing.Lock()
	defer p.killing.Unlock()
	if p.pid == 0 {
		return ""
	}
	return strconv.Itoa(p.pid)
}

// Diagnose implements [runner.Runner].
func (p *program) Diagnose(context.Context) string {
	return "is it a plugin, for this machine, and made with the SDK or by docs/plugins.md?"
}

// PluginToHost implements [runner.Runner].
func (p *program) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

// HostToPlugin implements [runner.Runner].
func (p *program) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

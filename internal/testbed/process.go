package testbed

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a process of a test. It is killed when the test is over; if the test failed, its
// output is printed.
type Process struct {
	*exec.Cmd
	tb    testing.TB
	out   Output
	ended chan struct{}
	err   error // of Wait; read it after ended
}

// Start starts a command. It collects stdout and stderr unless the command redirects them.
func Start(tb testing.TB, cmd *exec.Cmd) *Process {
	tb.Helper()
	p := &Process{Cmd: cmd, tb: tb, ended: make(chan struct{})}
	// A pipe of our own: leftovers of the process may hold it open, and Wait must not wait for
	// them.
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	if cmd.Stdout == nil {
		cmd.Stdout = w
	}
	if cmd.Stderr == nil {
		cmd.Stderr = w
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	go func() { _, _ = io.Copy(&p.out, r) }() // ends with the pipe
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
		if tb.Failed() {
			tb.Logf("the end of the output of %s:\n%s", strings.Join(cmd.Args, " "), tail(p.out.String(), 100))
		}
	})
	return p
}

// Text returns the output up to now.
func (p *Process) Text() string { return p.out.String() }

// Await waits until the output matches a regular expression, and returns the match with its groups.
func (p *Process) Await(pattern string, within time.Duration) []string {
	p.tb.Helper()
	re := regexp.MustCompile(pattern)
	late, ended := time.After(within), p.ended
	for {
		said := p.out.more()
		if m := re.FindStringSubmatch(p.out.String()); m != nil {
			return m
		}
		select {
		case <-said:
		case <-ended: // its last output may still be in the pipe
			late, ended = time.After(min(within, 10*time.Second)), nil
		case <-late:
			p.tb.Fatalf("%s has not said %s within %v (it has ended: %v)", p.Path, pattern, within, ended == nil)
		}
	}
}

// Signal sends a signal. After SIGSTOP it returns once the process has stopped.
func (p *Process) Signal(s syscall.Signal) {
	p.tb.Helper()
	err := p.Process.Signal(s)
	if err == nil && s == syscall.SIGSTOP {
		err = Freeze(p.Process.Pid)
	}
	if err != nil {
		p.tb.Fatalf("cannot send %v to %s: %v", s, p.Path, err)
	}
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// End waits until the process has ended and returns how, as [exec.Cmd.Wait] does.
func (p *Process) End(within time.Duration) error {
	p.tb.Helper()
	select {
	case <-p.ended:
		return p.err
	case <-time.After(within):
		return fmt.Errorf("%s has not ended within %v", p.Path, within)
	}
}

// Output collects the output of processes. Its methods are safe for concurrent use.
type Output struct {
	mu   sync.Mutex
	b    bytes.Buffer
	said chan struct{}
}

// Write implements [io.Writer].
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said != nil {
		close(o.said)
		o.said = nil
	}
	return o.b.Write(b)
}

// more returns a channel that is closed at the next write.
func (o *Output) more() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said == nil {
		o.said = make(chan struct{})
	}
	return o.said
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

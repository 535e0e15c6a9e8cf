package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ExecOptions configures an exec check beyond its command.
type ExecOptions struct {
	Dir string   // working directory; empty: that of this process
	Env []string // added to the environment of this process, "NAME=value"
	// Start starts a command with the environment and privileges that the caller chooses; cmd.Env
	// holds what to add to the environment. If nil, the command inherits those of this process.
	Start func(cmd *exec.Cmd) error
}

func (o ExecOptions) start(cmd *exec.Cmd) error {
	if o.Start != nil {
		cmd.Env = o.Env
		return o.Start(cmd)
	}
	cmd.Env = append(os.Environ(), o.Env...)
	return cmd.Start()
}

// Exec returns a check that succeeds if command exits with status 0. command is an argument vector;
// no shell is involved. It runs in a process group of its own. The whole group is killed when the
// context ends and when the command has ended. The start of its output, up to a line of 200 bytes,
// is part of the error when it fails.
func Exec(command []string, o ExecOptions) (func(ctx context.Context) error, error) {
	if len(command) == 0 || command[0] == "" {
		return nil, errors.New("the command is empty")
	}
	return func(ctx context.Context) error { return runGroup(ctx, command, o) }, nil
}

func runGroup(ctx context.Context, command []string, o ExecOptions) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	out := &head{max: 200}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // ctx is honoured below, for the whole group
	cmd.Dir = o.Dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 100 * time.Millisecond // a process that left the group with the output open must not block us
	if err := o.start(cmd); err != nil {
		return fmt.Errorf("cannot run %s: %v", command[0], startCause(err))
	}
	pid := cmd.Process.Pid

	// Signal the group only until its leader is reaped: until then the number still belongs to it.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	var late error
	select {
	case <-ended:
	case <-ctx.Done():
		late = ctx.Err()
	}
	_ = unix.Kill(-pid, unix.SIGKILL) // ESRCH: the group had no other member
	<-ended
	err := cmd.Wait()
	if late != nil {
		return fmt.Errorf("%s was killed: %w", command[0], late)
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	said := out.line()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("cannot wait for %s: %v", command[0], err)
	}
	if said == "" {
		return errors.New(exit.String())
	}
	return fmt.Errorf("%s: %s", exit, said)
}

func startCause(err error) error {
	var pe *os.PathError
	var ee *exec.Error
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &ee):
		return ee.Err
	}
	return err
}

// head keeps the first bytes written to it and drops the rest.
type head struct {
	mu  sync.Mutex
	max int
	buf []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf = append(h.buf, p[:min(len(p), h.max-len(h.buf))]...)
	return len(p), nil
}

func (h *head) line() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, _, _ := strings.Cut(strings.TrimSpace(string(h.buf)), "\n")
	return strings.ToValidUTF8(strings.TrimSpace(first), "?")
}

package haproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// child starts HAProxy and owns it. An HAProxy whose Tanist was killed lives on; the next Tanist
// with the same sockets and files adopts it.
type child struct {
	cfg     Config
	log     zerolog.Logger
	started func(adopted bool)
	again   chan struct{} // buffer of one: restart HAProxy

	lock   *os.File // held while this process owns the HAProxy of these sockets
	master int      // to be adopted; zero: none
}

// deafFor is how long the admin socket of a spawned HAProxy may have no listener before HAProxy is
// restarted: a master whose reload failed halfway stays alive without workers.
const deafFor = 3 * time.Second

// prepare makes the directories of the sockets, finds the binary, and looks for an HAProxy to
// adopt.
func (c *child) prepare() (err error) {
	if _, err := exec.LookPath(c.cfg.Binary); err != nil {
		return fmt.Errorf("cannot start HAProxy: %v; install it (Debian: haproxy) or set haproxy.binary", err)
	}
	for _, s := range []string{c.cfg.AdminSocket, c.cfg.MasterSocket} {
		if err := os.MkdirAll(filepath.Dir(s), 0o750); err != nil {
			return fmt.Errorf("cannot make the directory of a socket: %v", err)
		}
	}
	if c.lock, err = lockFile(c.cfg.MasterSocket + ".lock"); err != nil {
		return fmt.Errorf("cannot start HAProxy: %v", err)
	}
	c.master = c.clearOrphans()
	return nil
}

// close releases what prepare took. A nil child holds nothing.
func (c *child) close() error {
	if c == nil || c.lock == nil {
		return nil
	}
	return c.lock.Close()
}

// lockFile takes a lock that one process at a time can hold. The kernel releases it when the
// process ends, in any way.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock: %v", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		other, _ := io.ReadAll(io.LimitReader(f, 20))
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another tanist haproxy (PID %s) owns the one at %s: end it, or give this one other sockets",
				oneLine(string(other), 20), strings.TrimSuffix(path, ".lock"))
		}
		return nil, fmt.Errorf("cannot lock %s: %v", path, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0) // for the message above
	}
	return f, nil
}

// stat reads the state and the group of a process from its stat file. ok is false if the process is
// gone, or has ended and is not reaped.
func stat(path string) (group int, ok bool) {
	b, err := os.ReadFile(path)
	i := strings.LastIndexByte(string(b), ')')
	if err != nil || i < 0 {
		return 0, false
	}
	var state string
	var parent int
	if _, err := fmt.Sscan(string(b[i+1:]), &state, &parent, &group); err != nil {
		return 0, false
	}
	return group, state != "Z" && state != "X"
}

// lives reports whether a process exists and is no zombie.
func lives(pid int) bool {
	_, ok := stat(fmt.Sprintf("/proc/%d/stat", pid))
	return ok
}

// clearOrphans kills workers of ours whose master is gone. A worker that was just forked when its
// master was killed can miss that, and then keeps the port without ever accepting: a share of all
// connections would end there. It returns a living master of ours, or zero.
func (c *child) clearOrphans() (master int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		args := commandLine(d)
		if !c.ours(args) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(d))
		group, err := syscall.Getpgid(pid)
		if err != nil {
			continue
		}
		// The master leads the group. Its command line is empty while it re-executes itself.
		if lives(group) {
			master = group
			continue
		}
		c.log.Warn().Int("pid", pid).Msg("killing an HAProxy worker that lost its master")
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return master
}

// commandLine returns the arguments of a process, or none if it is gone or a zombie.
func commandLine(proc string) []string {
	text, err := os.ReadFile(proc + "/cmdline")
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// ours reports whether these are the arguments of an HAProxy with our sockets.
func (c *child) ours(args []string) bool {
	i := slices.Index(args, "-S")
	return i >= 0 && i+1 < len(args) && args[i+1] == c.masterArg() && filepath.Base(args[0]) == filepath.Base(c.cfg.Binary)
}

func (c *child) masterArg() string {
	return c.cfg.MasterSocket + ",mode," + c.cfg.SocketMode + ",level,admin"
}

// args returns the arguments of HAProxy.
func (c *child) args() []string {
	args := []string{"-W", "-S", c.masterArg()}
	for _, f := range c.cfg.load() {
		args = append(args, "-f", f)
	}
	return args
}

// run keeps HAProxy running until ctx ends, and returns once all of it has ended.
func (c *child) run(ctx context.Context) {
	defer c.lock.Close()
	gap := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		why := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			gap = 0
		}
		c.log.Error().Str("reason", why).Dur("again_in_ms", gap).Msg("HAProxy exited; restarting it")
		select {
		case <-ctx.Done():
			return
		case <-time.After(gap):
		}
		gap = min(max(2*gap, 100*time.Millisecond), 5*time.Second)
	}
}

// once runs one HAProxy, adopted or started, until it or ctx ends, and returns how it ended.
func (c *child) once(ctx context.Context) string {
	select {
	case <-c.again: // meant for an earlier one
	default:
	}
	if master := c.master; master != 0 {
		c.master = 0
		if m, err := c.adopt(master); err != nil {
			c.log.Warn().Err(err).Int("pid", master).Msg("cannot adopt the running HAProxy")
		} else {
			return c.attend(ctx, m, func() string { return "" })
		}
	}
	m, said, err := c.start()
	if err != nil {
		return err.Error()
	}
	return c.attend(ctx, m, said)
}

// master is a running HAProxy.
type master struct {
	pid    int // also its process group
	exited chan string
	signal func(syscall.Signal) error
}

// start starts HAProxy. said returns its last alert once it has ended. HAProxy survives our death;
// the next Tanist adopts it.
func (c *child) start() (m master, said func() string, err error) {
	cmd := exec.Command(c.cfg.Binary, c.args()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	out, in, err := os.Pipe()
	if err != nil {
		return m, nil, fmt.Errorf("cannot make a pipe: %v", err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	_ = in.Close()
	if err != nil {
		_ = out.Close()
		return m, nil, fmt.Errorf("cannot start HAProxy: %v", err)
	}
	c.log.Info().Int("pid", cmd.Process.Pid).Msg("started HAProxy")
	c.started(false)
	last := make(chan string, 1)
	go func() { last <- c.logLines(out) }() // ends when all of HAProxy has ended, or out is closed
	exited := make(chan string, 1)
	go func() {
		how := "exit 0"
		if err := cmd.Wait(); err != nil {
			how = err.Error()
		}
		exited <- how
	}()
	said = func() string {
		_ = out.SetReadDeadline(time.Now().Add(time.Second))
		defer out.Close()
		return <-last
	}
	return master{cmd.Process.Pid, exited, func(s syscall.Signal) error { return cmd.Process.Signal(s) }}, said, nil
}

// adopt takes over an HAProxy that an earlier Tanist started. Its messages are lost: they went to a
// pipe of that process.
func (c *child) adopt(pid int) (m master, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return m, err
	}
	// Check the process only now: the descriptor keeps its number from being reused.
	if args := commandLine(fmt.Sprintf("/proc/%d", pid)); !c.ours(args) {
		_ = unix.Close(fd)
		return m, errors.New("it has ended")
	} else if !slices.Equal(args[1:], c.args()) {
		_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
		waitPidfd(fd, 3*time.Second)
		_ = unix.Close(fd)
		c.sweep(pid)
		return m, errors.New("it runs with other arguments, and was ended")
	}
	c.log.Info().Int("pid", pid).Msg("adopted HAProxy")
	c.started(true)
	exited := make(chan string, 1)
	go func() {
		waitPidfd(fd, -1)
		_ = unix.Close(fd)
		exited <- "it ended"
	}()
	return master{pid, exited, func(s syscall.Signal) error { return syscall.Kill(pid, s) }}, nil
}

// waitPidfd waits for the end of a process, for at most limit unless that is negative.
func waitPidfd(fd int, limit time.Duration) {
	ms := -1
	if limit >= 0 {
		ms = int(limit / time.Millisecond)
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms) //nolint:gosec // descriptors are small
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// attend waits until HAProxy ends, or ends it when ctx ends or it is deaf, and cleans up.
func (c *child) attend(ctx context.Context, m master, said func() string) (why string) {
	last := ""
	select {
	case why = <-m.exited:
	case <-ctx.Done():
		why = m.stop()
	case <-c.again:
		why, last = m.stop(), "nobody listened on its admin socket"
	}
	c.sweep(m.pid)
	if alert := said(); last == "" {
		last = alert
	}
	if last != "" {
		why += ": " + last
	}
	return why
}

// stop ends HAProxy: the master forwards TERM to all its workers, even old ones.
func (m master) stop() string {
	_ = m.signal(syscall.SIGTERM)
	select {
	case how := <-m.exited:
		return how
	case <-time.After(3 * time.Second):
		_ = syscall.Kill(-m.pid, syscall.SIGKILL)
		return <-m.exited
	}
}

// sweep kills the remaining process group (workers whose master died), and returns once it is
// empty.
func (c *child) sweep(group int) {
	for began := time.Now(); ; {
		// If Tanist is the first process of a container, orphans become its children.
		for {
			if pid, err := syscall.Wait4(-group, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
		if err := syscall.Kill(-group, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) || onlyZombies(group) {
			return
		}
		if time.Since(began) > 5*time.Second {
			c.log.Error().Int("group", group).Msg("cannot end HAProxy's workers")
			return
		}
		time.Sleep(5 * time.Millisecond) // between two looks at the kernel's process table
	}
}

// onlyZombies reports whether every process of the group has ended, though its parent may not have
// reaped it.
func onlyZombies(group int) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		if of, ok := stat(p); ok && of == group {
			return false
		}
	}
	return true
}

// logLines logs HAProxy's output, and returns the last alert.
func (c *child) logLines(out io.Reader) (last string) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if text := oneLine(line, 500); text != "" {
			level := zerolog.DebugLevel
			switch {
			case strings.HasPrefix(text, "[ALERT]"):
				level, last = zerolog.ErrorLevel, text
			case strings.HasPrefix(text, "[WARNING]"):
				level = zerolog.InfoLevel
			}
			c.log.WithLevel(level).Str("haproxy", text).Msg("HAProxy logged")
		}
		if err != nil {
			return last
		}
	}
}

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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// child starts HAProxy and owns it.
type child struct {
	cfg     Config
	log     zerolog.Logger
	started func()
	again   chan struct{} // buffer of one: end HAProxy, so that it is started again
}

// deafFor is how long nobody may listen on the admin socket of a spawned HAProxy before it is started anew: a master
// whose reload failed halfway stays alive without workers.
const deafFor = 3 * time.Second

// prepare makes the directories of the sockets and finds the binary.
func (c *child) prepare() error {
	if _, err := exec.LookPath(c.cfg.Binary); err != nil {
		return fmt.Errorf("cannot start HAProxy: %v; install it (Debian: haproxy) or set haproxy.binary", err)
	}
	for _, s := range []string{c.cfg.AdminSocket, c.cfg.MasterSocket} {
		if err := os.MkdirAll(filepath.Dir(s), 0o750); err != nil {
			return fmt.Errorf("cannot make the directory of a socket: %v", err)
		}
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // between two looks at the process table
		master := c.clearOrphans()
		if master == 0 {
			return nil
		}
		if time.Since(began) > 3*time.Second { // one whose Tanist was just killed is gone sooner
			return fmt.Errorf("cannot start HAProxy: process %d is already one for %s; is another tanist haproxy running with this file?",
				master, c.cfg.MasterSocket)
		}
	}
}

// clearOrphans kills workers of ours whose master is gone. A worker that was just forked when its master was killed can miss
// that, and then keeps the port without ever accepting: a share of all connections would end there. It returns a
// master of ours that lives, or zero.
func (c *child) clearOrphans() (master int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		text, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		i := slices.Index(args, "-S")
		if filepath.Base(args[0]) != filepath.Base(c.cfg.Binary) || i < 0 || i+1 >= len(args) || args[i+1] != c.masterArg() {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(d))
		group, err := syscall.Getpgid(pid)
		if err != nil {
			continue
		}
		// The master leads the group.
		if leader, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", group)); err == nil && len(leader) > 0 {
			master = group
			continue
		}
		c.log.Warn().Int("pid", pid).Msg("a worker of HAProxy that lost its master is killed")
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return master
}

func (c *child) masterArg() string {
	return c.cfg.MasterSocket + ",mode," + c.cfg.SocketMode + ",level,admin"
}

// run keeps HAProxy running until ctx ends, and returns when nothing of it is left.
func (c *child) run(ctx context.Context) {
	// The kernel sends the parent-death signal when the thread that started the child ends, so the thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
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
		c.log.Error().Str("why", why).Dur("again_in_ms", gap).Msg("HAProxy ended; it is started again")
		select {
		case <-ctx.Done():
			return
		case <-time.After(gap):
		}
		gap = min(max(2*gap, 100*time.Millisecond), 5*time.Second)
	}
}

// once runs HAProxy until it ends or ctx does, and tells how it ended.
func (c *child) once(ctx context.Context) string {
	cmd := exec.Command(c.cfg.Binary, "-W", "-S", c.masterArg(), "-f", c.cfg.ConfigFile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	out, in, err := os.Pipe()
	if err != nil {
		return fmt.Sprintf("cannot make a pipe: %v", err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	_ = in.Close()
	if err != nil {
		_ = out.Close()
		return fmt.Sprintf("cannot start HAProxy: %v", err)
	}
	c.log.Info().Int("pid", cmd.Process.Pid).Msg("HAProxy started")
	c.started()
	said, last := "", ""
	read := make(chan struct{})
	go func() { // ends when nothing of HAProxy is left, or out is closed
		defer close(read)
		said = c.relay(out)
	}()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	var ended error
	select {
	case <-c.again: // meant for an earlier one
	default:
	}
	stop := func() {
		// The master passes TERM on to all its workers, old ones too.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case ended = <-exited:
		case <-time.After(3 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			ended = <-exited
		}
	}
	select {
	case ended = <-exited:
	case <-ctx.Done():
		stop()
	case <-c.again:
		stop()
		last = "nobody listened on its admin socket"
	}
	c.sweep(cmd.Process.Pid)
	_ = out.SetReadDeadline(time.Now().Add(time.Second))
	<-read
	_ = out.Close()
	why := "exit 0"
	if ended != nil {
		why = ended.Error()
	}
	if last == "" {
		last = said
	}
	if last != "" {
		why += ": " + last
	}
	return why
}

// sweep kills what is left of the process group (workers whose master died), and returns when nothing is.
func (c *child) sweep(group int) {
	for began := time.Now(); ; {
		// Orphans become ours if Tanist is the first process of a container.
		for {
			if pid, err := syscall.Wait4(-group, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
		if err := syscall.Kill(-group, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) || onlyZombies(group) {
			return
		}
		if time.Since(began) > 5*time.Second {
			c.log.Error().Int("group", group).Msg("cannot get rid of HAProxy's workers")
			return
		}
		time.Sleep(5 * time.Millisecond) // between two looks at the kernel's process table
	}
}

// onlyZombies reports whether every process of the group has ended, if not yet been collected by whoever is its parent.
func onlyZombies(group int) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		s := string(b)
		var state string
		var ppid, pgrp int
		if i := strings.LastIndexByte(s, ')'); i < 0 {
			continue
		} else if _, err := fmt.Sscan(s[i+1:], &state, &ppid, &pgrp); err != nil {
			continue
		}
		if pgrp == group && state != "Z" && state != "X" {
			return false
		}
	}
	return true
}

// relay logs what HAProxy says, and returns the last alert.
func (c *child) relay(out io.Reader) (last string) {
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
			c.log.WithLevel(level).Str("haproxy", text).Msg("HAProxy says")
		}
		if err != nil {
			return last
		}
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// What a sidecar needs of its own host: which process is alive, what an earlier process left, hooks, and whether the
// controller could be started here.

// hostID names this host as it is since it booted: a PID of another host, or of before a reboot, means nothing here.
func hostID() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("cannot tell the host's name: %v", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell the host's boot: %v", err)
	}
	// A PID is a name within its PID namespace only.
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "", fmt.Errorf("cannot tell the PID namespace: %v", err)
	}
	return fmt.Sprintf("%s/%s/%s", name, strings.TrimSpace(string(boot)), space), nil
}

// processAlive tells whether the process that wrote c still runs; known is false if c is of another host.
func processAlive(host string) func(c election.Controller) (alive, known bool) {
	return func(c election.Controller) (bool, bool) {
		if c.Host != host || c.PID <= 0 {
			return false, false
		}
		if c.PID == os.Getpid() {
			return false, true // this very PID, and another incarnation: it was used again
		}
		err := syscall.Kill(c.PID, 0)
		return !errors.Is(err, syscall.ESRCH), true
	}
}

// memory keeps a reign in a file for the next process of this sidecar. Instants mean nothing after a reboot, and neither
// does the reign: the host is part of the record.
type memory struct {
	path string
	host string
}

type memoryRecord struct {
	Host string        `json:"host"`
	Held election.Held `json:"held"`
}

func (m memory) Save(h election.Held) error {
	b, err := json.Marshal(memoryRecord{Host: m.host, Held: h})
	if err != nil {
		return fmt.Errorf("cannot save the reign: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return fmt.Errorf("cannot save the reign: %v", err)
	}
	// Replaced in one step, but not flushed to the disk, which would take time of a takeover: after a crash of the host it
	// says nothing.
	if err := os.WriteFile(m.path+".new", b, 0o600); err != nil {
		return fmt.Errorf("cannot save the reign: %v", err)
	}
	if err := os.Rename(m.path+".new", m.path); err != nil {
		return fmt.Errorf("cannot save the reign: %v", err)
	}
	return nil
}

func (m memory) Clear() error {
	if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot forget the reign: %v", err)
	}
	return nil
}

// load returns what an earlier process on this host left, or nil.
func (m memory) load() (*election.Held, error) {
	b, err := os.ReadFile(m.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what an earlier process left: %v", err)
	}
	var r memoryRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("cannot read what an earlier process left in %s: %v", m.path, err)
	}
	if r.Host != m.host || r.Held.Term == 0 || r.Held.Lease == "" || r.Held.Incarnation == "" {
		return nil, nil
	}
	return &r.Held, nil
}

// hooks runs the operator's commands for an event, in their order. Each is a path with arguments, split at blanks; no shell
// is involved. It gets the event, the role and the cluster as arguments, and the facts in its environment.
func hooks(cluster string, commands map[string][]string) func(ctx context.Context, event string, env []string) error {
	role := map[string]string{"on_active": "active", "on_passive": "passive", "pre_start": "active", "on_stop_failure": "active"}
	return func(ctx context.Context, event string, env []string) error {
		for _, command := range commands[event] {
			argv := strings.Fields(command)
			if len(argv) == 0 {
				continue
			}
			cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], event, role[event], cluster)...)
			cmd.Env = append(os.Environ(), append(env, "TANIST_EVENT="+event, "TANIST_ROLE="+role[event])...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
			cmd.WaitDelay = time.Second // a daemon that it left may hold its output open
			var output bytes.Buffer
			cmd.Stdout, cmd.Stderr = &limited{&output, 4 << 10}, &limited{&output, 4 << 10}
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %v: %s", argv[0], err, strings.TrimSpace(output.String()))
			}
		}
		return nil
	}
}

// limited takes everything and keeps the first bytes.
type limited struct {
	buffer *bytes.Buffer
	limit  int
}

func (l *limited) Write(b []byte) (int, error) {
	if room := l.limit - l.buffer.Len(); room > 0 {
		l.buffer.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// preFlight tells why the controller could not be started here: no command (looked for in the PATH search, empty: our own), startup
// port in use, no room on the disk.
func preFlight(command []string, dir, search, port string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var errs []error
		if len(command) > 0 {
			program := inDir(command[0], dir)
			if strings.Contains(program, "/") {
				search = ""
			}
			if err := config.LookPath(program, search); err != nil {
				errs = append(errs, fmt.Errorf("the controller's command can't be run: %v", err))
			}
		}
		if port != "" {
			dialer := net.Dialer{Timeout: 500 * time.Millisecond}
			if conn, err := dialer.DialContext(ctx, "tcp", port); err == nil {
				conn.Close()
				errs = append(errs, fmt.Errorf("the startup port %s is in use by another program", port))
			}
		}
		var disk syscall.Statfs_t
		where := dir
		if where == "" {
			where = "."
		}
		if err := syscall.Statfs(where, &disk); err == nil {
			if free := disk.Bavail * uint64(disk.Bsize); free < minDiskFree {
				errs = append(errs, fmt.Errorf("only %d KiB are free on the disk of %s", free>>10, where))
			}
		}
		return errors.Join(errs...)
	}
}

// minDiskFree is what a controller needs at least to write a log and a PID file.
const minDiskFree = 1 << 20

func inDir(command, dir string) string {
	if dir == "" || filepath.IsAbs(command) || !strings.Contains(command, "/") {
		return command
	}
	return filepath.Join(dir, command)
}

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// What a sidecar needs of its own host: which processes are alive, hooks, and whether the
// controller could start here.

// processAlive reports whether the process that wrote c still runs; known is false if c is from
// another host.
func processAlive(host string) func(c election.Controller) (alive, known bool) {
	return func(c election.Controller) (bool, bool) {
		if c.Host != host || c.PID <= 0 {
			return false, false
		}
		if c.PID == os.Getpid() {
			return false, true // our own PID with another incarnation: the PID was reused
		}
		err := syscall.Kill(c.PID, 0)
		return !errors.Is(err, syscall.ESRCH), true
	}
}

// hooks runs the operator's commands for an event, in order, without a shell and without further
// arguments. Each gets the facts in its environment, and as one JSON object on its standard input.
func hooks(commands map[string][]config.Command, with starter) func(ctx context.Context, event string, env []string) error {
	role := map[string]string{"on_active": "active", "on_passive": "passive", "pre_start": "active", "on_stop_failure": "active"}
	return func(ctx context.Context, event string, env []string) error {
		env = append(slices.Clone(env), "TANIST_EVENT="+event, "TANIST_ROLE="+role[event])
		for _, command := range commands[event] {
			if len(command) == 0 {
				continue
			}
			if err := runHook(ctx, command, env, with); err != nil {
				return err
			}
		}
		return nil
	}
}

func runHook(ctx context.Context, command config.Command, env []string, with starter) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = slices.Clone(env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a daemon that it started may hold its output open
	var output bytes.Buffer
	cmd.Stdin = bytes.NewReader(facts(env))
	cmd.Stdout, cmd.Stderr = &limited{&output, 4 << 10}, &limited{&output, 4 << 10}
	err := with.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s: %v: %s", command[0], err, strings.TrimSpace(output.String()))
	}
	return nil
}

// facts returns the variables TANIST_* of a hook as a JSON object, with keys such as "event".
func facts(env []string) []byte {
	object := map[string]any{}
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		key := strings.ToLower(strings.TrimPrefix(name, "TANIST_"))
		object[key] = value
		if term, err := strconv.ParseUint(value, 10, 64); err == nil && key == "term" {
			object[key] = term
		}
	}
	text, err := json.Marshal(object)
	if err != nil {
		return []byte("{}") // strings and numbers can always be encoded
	}
	return append(text, '\n')
}

// limited accepts everything and keeps the first bytes.
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

// preFlight returns why the controller could not start here: what its start needs is missing, its
// startup port is in use, or a disk is full.
func preFlight(r config.Run, state, port string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		errs := []error{runnable(r), outputWritable(r.Output)}
		if state != "" {
			errs = append(errs, writable("state_dir", state))
		}
		if port != "" {
			dialer := net.Dialer{Timeout: 500 * time.Millisecond}
			if conn, err := dialer.DialContext(ctx, "tcp", port); err == nil {
				conn.Close()
				errs = append(errs, fmt.Errorf("the startup port %s is in use by another program", port))
			}
		}
		where := r.Dir
		if where == "" {
			where = "."
		}
		var disk syscall.Statfs_t
		if err := syscall.Statfs(where, &disk); err == nil {
			if free := disk.Bavail * uint64(disk.Bsize); free < minDiskFree {
				errs = append(errs, fmt.Errorf("only %d KiB are free on the disk of %s", free>>10, where))
			}
		}
		return errors.Join(errs...)
	}
}

// runnable returns why the controller's command, or its migration, can't be executed.
func runnable(r config.Run) error {
	if r.Dir != "" {
		if info, err := os.Stat(r.Dir); err != nil {
			return fmt.Errorf("run.dir is unusable: %v", err)
		} else if !info.IsDir() {
			return fmt.Errorf("run.dir is unusable: %s is not a directory", r.Dir)
		}
	}
	return errors.Join(executable(r, "the controller's command", r.Command), executable(r, "the migration's command", r.Migrate.Command))
}

// executable returns why a command can't be executed as the controller is. what describes it.
func executable(r config.Run, what string, command []string) error {
	if len(command) == 0 {
		return nil
	}
	search := r.Env["PATH"]
	program := inDir(command[0], r.Dir)
	if strings.Contains(program, "/") {
		search = ""
	}
	if err := config.LookPath(program, search); err != nil {
		return fmt.Errorf("%s can't be run: %v", what, err)
	}
	if strings.Contains(program, "/") {
		if err := interpreter(program, r.Env["PATH"]); err != nil {
			return fmt.Errorf("%s can't be run: %s needs %v", what, program, err)
		}
	}
	return nil
}

// interpreter returns why the interpreter that the first line of a script names can't be run.
func interpreter(script, search string) error {
	f, err := os.Open(script)
	if err != nil {
		return nil // it may be executable and not readable
	}
	defer f.Close()
	first := make([]byte, 256)
	n, _ := io.ReadFull(f, first) // a shorter file is fine
	line, ok := strings.CutPrefix(string(first[:n]), "#!")
	if !ok {
		return nil
	}
	line, _, _ = strings.Cut(line, "\n")
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil
	}
	if err := config.LookPath(words[0], ""); err != nil {
		return err
	}
	if filepath.Base(words[0]) != "env" || len(words) != 2 || strings.HasPrefix(words[1], "-") {
		return nil // env with options: the program is not to be told apart from them
	}
	return config.LookPath(words[1], search)
}

// outputWritable returns why the controller's output file can't be written.
func outputWritable(output string) error {
	file, is := strings.CutPrefix(output, "file:")
	if !is {
		return nil
	}
	if _, err := os.Stat(file); err == nil {
		return writable("run.output", file)
	}
	return writable("run.output", filepath.Dir(file))
}

func writable(key, path string) error {
	if err := unix.Access(path, unix.W_OK); err != nil {
		return fmt.Errorf("%s: cannot write %s: %v", key, path, err)
	}
	return nil
}

// minDiskFree is the minimum that a controller needs to write a log and a PID file.
const minDiskFree = 1 << 20

func inDir(command, dir string) string {
	if dir == "" || filepath.IsAbs(command) || !strings.Contains(command, "/") {
		return command
	}
	return filepath.Join(dir, command)
}

// hostName strips the boot id from a host's id.
func hostName(id string) string {
	name, _, _ := strings.Cut(id, "/")
	return name
}

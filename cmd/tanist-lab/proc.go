package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// proc is a process that the lab started. Its output goes to a file.
type proc struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed once it was reaped
}

// spawn starts a process in a process group of its own, so that a terminal's Ctrl-C reaches the lab
// only.
func spawn(logDir, name, bin string, args, env []string) (*proc, error) {
	p := &proc{name: name, log: filepath.Join(logDir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %v", name, err)
	}
	defer out.Close()
	p.cmd = exec.Command(bin, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(append(os.Environ(), "NO_COLOR=1"), env...) // the output goes to a file
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState records how it ended
		close(p.done)
	}()
	return p, nil
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

// alive reports whether p has not ended.
func (p *proc) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop asks p to end and kills it, with its descendants, after grace.
func (p *proc) stop(sig syscall.Signal, grace time.Duration) {
	if p == nil || !p.alive() {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-p.done:
	case <-time.After(grace):
		killTree(p.pid())
		<-p.done
	}
}

// tail returns the last lines of p's output.
func (p *proc) tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// process is a line of the process table.
type process struct {
	pid, parent int
	state       byte // R S D T Z …
}

// processes reads the process table.
func processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // it has ended meanwhile
		}
		// pid (name) state parent …; the name may contain anything, so find the last parenthesis.
		_, rest, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(") "))
		fields := bytes.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(string(fields[1]))
		if err != nil {
			continue
		}
		all = append(all, process{pid: pid, parent: parent, state: fields[0][0]})
	}
	return all
}

// descendants returns every process under pid, parents before children, without pid itself.
func descendants(pid int) []int {
	children := map[int][]int{}
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p.pid)
	}
	found := []int{pid}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found[1:]
}

// killTree ends pid and its descendants, like the crash of a host. It freezes all of them before it
// kills any, so that none can react to the death of another.
func killTree(pid int) []int {
	var all []int
	for {
		now := append([]int{pid}, descendants(pid)...)
		fresh := false
		for _, p := range now {
			if !slices.Contains(all, p) {
				fresh = true
				all = append(all, p)
				_ = unix.Kill(p, unix.SIGSTOP)
			}
		}
		if !fresh {
			break
		}
	}
	for _, p := range all {
		_ = unix.Kill(p, unix.SIGKILL)
	}
	return all
}

// sweep ends every process below this one and waits until none is left: first by a request, so that
// PostgreSQL releases its shared memory, then by force. As a subreaper this process is the parent
// of every orphan below it.
func sweep(keep func(pid int) bool) {
	begun := time.Now()
	for polite := true; ; {
		left := 0
		for _, pid := range descendants(os.Getpid()) {
			if keep != nil && keep(pid) {
				continue
			}
			left++
			switch {
			case !polite:
				_ = unix.Kill(pid, unix.SIGKILL)
			case time.Since(begun) < 20*time.Millisecond:
				_ = unix.Kill(pid, unix.SIGQUIT)
				_ = unix.Kill(pid, unix.SIGCONT)
			}
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
		if left == 0 || time.Since(begun) > 20*time.Second {
			return
		}
		if time.Since(begun) > 1500*time.Millisecond {
			polite = false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// reapOrphans reaps processes that became children of this one because their parent was killed. The
// processes that this program started itself are reaped at once by their starter, so a zombie that
// remains longer is an orphan.
func reapOrphans(ctx context.Context) {
	seen := map[int]int{}
	for ctx.Err() == nil {
		now := map[int]int{}
		for _, p := range processes() {
			if p.parent != os.Getpid() || p.state != 'Z' {
				continue
			}
			if now[p.pid] = seen[p.pid] + 1; now[p.pid] >= 3 {
				_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
			}
		}
		seen = now
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// findTanist returns the binary under test: as configured, next to this one, or built from the
// source tree.
func findTanist(ctx context.Context, told, dir string) (string, error) {
	if told != "" {
		path, err := filepath.Abs(told)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return "", fmt.Errorf("cannot use --tanist: %v", err)
		}
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "tanist")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	list := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "github.com/tanist/tanist/cmd/tanist")
	if _, err := list.Output(); err == nil {
		bin := filepath.Join(dir, "tanist")
		build := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/tanist/tanist/cmd/tanist")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("cannot build tanist: %v\n%s", err, out)
		}
		return bin, nil
	}
	if path, err := exec.LookPath("tanist"); err == nil {
		return path, nil
	}
	return "", errors.New("cannot find tanist: it is neither next to tanist-lab nor in $PATH, and this is not the source tree; name it with --tanist")
}

// syncFile is a file to which several goroutines append lines. Every line is written at once, so
// that written lines survive the death of the process.
type syncFile struct {
	mu sync.Mutex
	f  *os.File
}

func appendTo(path string) (*syncFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot record: %v", err)
	}
	return &syncFile{f: f}, nil
}

func (s *syncFile) line(format string, args ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := fmt.Fprintf(s.f, format+"\n", args...)
	return err
}

package process

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/torture"
)

// TestMain is also the guard of all tests, and a sidecar that a test can kill or freeze.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "guard":
			os.Exit(GuardMain(os.Args[2:]))
		case "companion":
			os.Exit(testCompanion())
		case "mute":
			return // a companion that never says that it is ready
		case "sidecar":
			os.Exit(testSidecar(os.Args[2:]))
		case "knock":
			os.Exit(testKnock(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

// testSidecar keeps a torture tree with a lease that it renews 20 times a second.
func testSidecar(args []string) int {
	validity, _ := time.ParseDuration(args[0])
	n, _ := strconv.Atoi(args[1])
	e := New(Config{
		Command:  torture.Command(n, args[2]),
		NoCgroup: args[3] == "true",
		StateDir: args[4],
		Output:   Output{Line: func([]byte) {}}, // else the program would hold the pipe to the test open
		Log:      zerolog.New(os.Stderr),
	})
	deadline := election.BootClock().Add(time.Minute)
	if validity == 0 {
		deadline = election.Never
	}
	adopted := false
	if args[4] != "" {
		if a, err := Adopt(context.Background(), e.cfg); err == nil {
			e, adopted = a, true
		}
	}
	if !adopted {
		if err := e.Start(context.Background(), []string{torture.Env(args[5])}, deadline); err != nil {
			fmt.Println("error", err)
			return 1
		}
	}
	fmt.Println("started", e.tree.guardPID, e.PID(), adopted)
	if validity == 0 {
		<-e.Exited()
	}
	// The first deadline is generous, so that the tree can come up on a busy host. What follows can't be shorter, so the
	// test sidecar speaks the record itself.
	for {
		deadline := election.BootClock().Add(validity)
		e.tree.mu.Lock()
		e.tree.watch.deadline = deadline
		e.tree.sendLocked(record{kind: kindExtend, a: int64(deadline)})
		e.tree.mu.Unlock()
		fmt.Println("renewed", int64(deadline))
		select {
		case <-e.Exited():
			fmt.Println("exited", int64(election.BootClock()), e.Exit())
			err := e.Stop(context.Background(), 0)
			fmt.Println("gone", int64(election.BootClock()), err)
			return 0
		case <-time.After(50 * time.Millisecond):
		}
		e.tree.mu.Lock()
		if e.tree.watch.acked == deadline {
			fmt.Println("acked", int64(deadline))
		}
		e.tree.mu.Unlock()
	}
}

// testKnock tells how a guard refuses.
func testKnock(socket string) int {
	c, err := net.Dial("unixpacket", socket)
	if err != nil {
		fmt.Print(err)
		return 1
	}
	b := make([]byte, recordMax)
	n, err := c.Read(b)
	r, _ := parseRecord(b[:n])
	fmt.Print(r.text)
	if err != nil || r.kind != kindRefused {
		fmt.Print(err)
		return 1
	}
	return 0
}

// sidecar is a running testSidecar.
type sidecar struct {
	t        *testing.T
	cmd      *exec.Cmd
	guard    int
	main     int
	adopted  bool
	mark     string
	lines    chan string
	validity time.Duration
	deadline election.Instant // the last that is known
}

func startSidecar(t *testing.T, validity time.Duration, n int, noCgroup bool, stateDir, mark string) *sidecar {
	t.Helper()
	if mark == "" {
		mark = newMark(t)
	}
	ready := filepath.Join(t.TempDir(), "ready")
	s := &sidecar{t: t, mark: mark, validity: validity, lines: make(chan string, 10000)}
	s.cmd = exec.Command("/proc/self/exe", "sidecar", validity.String(), strconv.Itoa(n), ready, strconv.FormatBool(noCgroup), stateDir, mark)
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	go func() {
		defer close(s.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			s.lines <- in.Text()
		}
	}()
	line := s.await("started")
	if _, err := fmt.Sscanf(line, "started %d %d %t", &s.guard, &s.main, &s.adopted); err != nil {
		t.Fatal(line, err)
	}
	if !s.adopted {
		awaitFile(t, ready)
	}
	if validity > 0 {
		s.await("acked")
	}
	return s
}

// await returns the next line with that first word, and remembers deadlines on the way.
func (s *sidecar) await(word string) string {
	s.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the sidecar ended before it said %q", word)
			}
			s.note(line)
			if strings.HasPrefix(line, word+" ") {
				return line
			}
		case <-limit:
			s.t.Fatalf("the sidecar never said %q", word)
		}
	}
}

func (s *sidecar) note(line string) {
	if at, ok := strings.CutPrefix(line, "renewed "); ok {
		n, _ := strconv.ParseInt(at, 10, 64)
		s.deadline = election.Instant(n)
	}
}

// kill kills the sidecar and reads what it had said.
func (s *sidecar) kill() {
	_ = s.cmd.Process.Kill()
	for line := range s.lines {
		s.note(line)
	}
	_ = s.cmd.Wait()
	s.deadline = max(s.deadline, election.BootClock())
	if unix.Kill(s.guard, 0) == nil && stateOf(s.guard) == 'S' && s.validity > 0 {
		s.deadline = heldDeadline(s.t, s.guard)
	}
}

// freeze stops the sidecar and waits until it is stopped.
func (s *sidecar) freeze() {
	_ = s.cmd.Process.Signal(unix.SIGSTOP)
	eventually(s.t, "the sidecar is stopped", func() bool { return stateOf(s.cmd.Process.Pid) == 'T' })
	s.deadline = heldDeadline(s.t, s.guard)
}

// heldDeadline reads the deadline that a guard holds from its timer, since a sidecar may have sent one without having had the
// time to tell.
func heldDeadline(t *testing.T, guard int) election.Instant {
	t.Helper()
	infos, _ := filepath.Glob(procPath(guard, "fdinfo/*"))
	for _, path := range infos {
		b, err := os.ReadFile(path)
		now := election.BootClock()
		if err != nil || !strings.Contains(string(b), "clockid: 7\n") {
			continue
		}
		_, rest, _ := strings.Cut(string(b), "it_value: ")
		var seconds, nanoseconds int64
		if _, err := fmt.Sscanf(rest, "(%d, %d)", &seconds, &nanoseconds); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		return now + election.Instant(seconds*1e9+nanoseconds)
	}
	t.Fatal("the guard has no timer")
	return 0
}

func stateOf(pid int) byte {
	h := newHunter()
	state, _, _ := h.stat(int32(pid))
	return state
}

func newMark(t *testing.T) string {
	mark := fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())
	t.Cleanup(func() {
		for quiet := 0; quiet < 10; quiet++ { // for tests that failed; one process of the tree is hard to catch
			pids := torture.Living(mark)
			if len(pids) > 0 {
				quiet = 0
			}
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	})
	return mark
}

// eventually waits for a condition of the outside world that tells no events.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("never: %s", what)
		}
	}
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	eventually(t, path+" exists", func() bool { _, err := os.Stat(path); return err == nil })
}

func awaitClosed(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("never: %s", what)
	}
}

// newExec makes an Exec whose tree is gone when the test is over.
func newExec(t *testing.T, cfg Config) *Exec {
	t.Helper()
	if cfg.Log.GetLevel() == zerolog.TraceLevel {
		cfg.Log = zerolog.New(zerolog.NewTestWriter(t))
	}
	if cfg.Output.File == "" && cfg.Output.Journal == "" && cfg.Output.Line == nil {
		cfg.Output.Line = func([]byte) {}
	}
	e := New(cfg)
	t.Cleanup(func() {
		if err := e.Stop(context.Background(), 0); err != nil {
			t.Errorf("cannot clean up: %v", err)
		}
	})
	return e
}

func soon(d time.Duration) election.Instant { return election.BootClock().Add(d) }

func trials(t *testing.T, short int) int {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("TANIST_SOAK")); err == nil && n > 0 {
		return n
	}
	return short
}

package process

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
	"github.com/tanist/tanist/process/torture"
)

// longEnough bounds every wait for something that must happen. It is not a claim about time: a
// loaded machine may take seconds to start a process.
const longEnough = time.Minute

// shortLease is the validity in tests whose deadline must pass. A renewal every 50 ms keeps it even
// where a sidecar does not run for a while.
const shortLease = 2 * time.Second

// TestMain is also the guard of all tests, and a sidecar that a test can kill or freeze.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "guard":
			os.Exit(GuardMain())
		case "companion":
			os.Exit(testCompanion())
		case "mute":
			return // a companion that never says that it is ready
		case "host":
			os.Exit(testHost(os.Args[2:]))
		case "sidecar":
			os.Exit(testSidecar(os.Args[2:]))
		case "gifted":
			os.Exit(testGifted(os.Args[2]))
		case "knock":
			os.Exit(testKnock(os.Args[2]))
		}
	}
	// What a test leaves behind becomes our child, and is found at the end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen { // most of the time these tests wait
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	code := m.Run()
	if left := endDescendants(longEnough); left != "" {
		fmt.Fprintf(os.Stderr, "a test left a process behind: %s\n", left)
		code = max(code, 1)
	}
	os.Exit(code)
}

// endDescendants waits for all descendants of this process, kills those that do not end in time,
// and describes one of them.
func endDescendants(within time.Duration) (left string) {
	h := kernel.NewHunter()
	for until := time.Now().Add(within); ; time.Sleep(2 * time.Millisecond) {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
			if err == unix.ECHILD { //nolint:errorlint // a bare errno
				return left
			}
			if pid <= 0 {
				break
			}
		}
		if time.Now().Before(until) {
			continue
		}
		if h.Find(nil); h.N > 0 && left == "" {
			command, _ := os.ReadFile(kernel.ProcPath(int(h.PIDs[0]), "cmdline"))
			left = fmt.Sprintf("%s: %q", kernel.Describe(h.N, int(h.PIDs[0])), command)
		}
		h.Strike(unix.SIGKILL, nil)
	}
}

// testHost is what the init of a host is to a sidecar: it starts one, and inherits and reaps what
// that leaves behind. When the test has ended, so does all that.
func testHost(args []string) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println("error", err)
		return 1
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	cmd := exec.Command("/proc/self/exe", append([]string{"sidecar"}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("sidecar", cmd.Process.Pid)
	_ = os.Stdout.Close() // the stream ends with the sidecar
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	for {
		select {
		case <-ended:
			for {
				if pid, _ := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); pid <= 0 {
					break
				}
			}
		case <-over:
			endDescendants(0)
			return 0
		}
	}
}

// testSidecar keeps a torture tree with a lease that it renews 20 times a second.
func testSidecar(args []string) int {
	validity, _ := time.ParseDuration(args[0])
	n, _ := strconv.Atoi(args[1])
	tree := torture.Command
	if args[6] == "true" {
		tree = torture.Still
	}
	e := New(Config{
		Command:  tree(n, args[2]),
		NoCgroup: args[3] == "true",
		StateDir: args[4],
		// else the program would hold the pipe to the test open
		Output: Output{Line: func([]byte) {}},
		Log:    zerolog.New(os.Stderr),
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
	// The first deadline is generous, so that the tree can come up on a busy host. What follows
	// can't be shorter, so the test sidecar speaks the record itself.
	for {
		deadline := election.BootClock().Add(validity)
		setDeadline(e.tree, deadline)
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

// setDeadline moves a deadline even to an earlier instant, so that a tree has time to come up on a
// busy host.
func setDeadline(k *handle, deadline election.Instant) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watch.deadline = deadline
	k.sendLocked(wire.Record{Kind: wire.KindExtend, A: int64(deadline)})
}

// testKnock tells how a guard refuses.
func testKnock(socket string) int {
	c, err := net.Dial("unixpacket", socket)
	if err != nil {
		fmt.Print(err)
		return 1
	}
	b := make([]byte, wire.RecordMax)
	n, err := c.Read(b)
	r, _ := wire.ParseRecord(b[:n])
	fmt.Print(r.Text)
	if err != nil || r.Kind != wire.KindRefused {
		fmt.Print(err)
		return 1
	}
	return 0
}

// sidecar is a running testSidecar, on a testHost.
type sidecar struct {
	t        *testing.T
	pid      int
	guard    int
	main     int
	adopted  bool
	mark     string
	lines    chan string
	validity time.Duration
	deadline election.Instant // the last that is known
}

// reign is what a sidecar keeps.
type reign struct {
	validity time.Duration
	children int
	noCgroup bool
	dir      string // the state directory, "" for none
	mark     string // of the tree; "" for a new one
	still    bool   // a tree that holds still
}

func startSidecar(t *testing.T, r reign) *sidecar {
	t.Helper()
	if r.mark == "" {
		r.mark = newMark(t)
	}
	ready := filepath.Join(t.TempDir(), "ready")
	s := &sidecar{t: t, mark: r.mark, validity: r.validity, lines: make(chan string, 10000)}
	host := exec.Command("/proc/self/exe", "host", r.validity.String(), strconv.Itoa(r.children), ready, strconv.FormatBool(r.noCgroup), r.dir, r.mark, strconv.FormatBool(r.still))
	host.Stderr = os.Stderr
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	test, err := host.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	t.Cleanup(func() {
		_ = test.Close()
		<-read
		if err := host.Wait(); err != nil {
			t.Error(err)
		}
	})
	go func() {
		defer close(read)
		defer close(s.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			s.lines <- in.Text()
		}
	}()
	if _, err := fmt.Sscanf(s.await("sidecar"), "sidecar %d", &s.pid); err != nil {
		t.Fatal(err)
	}
	line := s.await("started")
	if _, err := fmt.Sscanf(line, "started %d %d %t", &s.guard, &s.main, &s.adopted); err != nil {
		t.Fatal(line, err)
	}
	if !s.adopted {
		awaitFile(t, ready)
	}
	if r.validity > 0 {
		s.await("acked")
	}
	return s
}

func (s *sidecar) signal(sig unix.Signal) { _ = unix.Kill(s.pid, sig) }

// await returns the next line with that first word, and remembers deadlines on the way.
func (s *sidecar) await(word string) string {
	s.t.Helper()
	limit := time.After(longEnough)
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
	s.signal(unix.SIGKILL)
	for line := range s.lines {
		s.note(line)
	}
	eventually(s.t, "the sidecar is gone", func() bool { return unix.Kill(s.pid, 0) == unix.ESRCH })
	s.deadline = max(s.deadline, election.BootClock())
	if unix.Kill(s.guard, 0) == nil && stateOf(s.guard) == 'S' && s.validity > 0 {
		s.deadline = heldDeadline(s.t, s.guard)
	}
}

// freeze stops the sidecar and waits until it is stopped.
func (s *sidecar) freeze() {
	s.signal(unix.SIGSTOP)
	eventually(s.t, "the sidecar is stopped", func() bool { return stateOf(s.pid) == 'T' })
	s.deadline = heldDeadline(s.t, s.guard)
}

// freezeGuard stops a guard and waits until it is stopped: until then it may act on what it is sent.
func freezeGuard(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guard is stopped", func() bool { return stateOf(pid) == 'T' })
}

// heldDeadline reads the deadline that a guard holds from its timer, since a sidecar may have sent
// one without having had the time to tell.
func heldDeadline(t *testing.T, guard int) election.Instant {
	t.Helper()
	deadline := election.Instant(0)
	for range 100 {
		began := election.BootClock()
		deadline = timerOf(t, guard)
		if election.BootClock().Sub(began) < 5*time.Millisecond { // else the reading is too inexact
			break
		}
	}
	return deadline
}

func timerOf(t *testing.T, guard int) election.Instant {
	t.Helper()
	infos, _ := filepath.Glob(kernel.ProcPath(guard, "fdinfo/*"))
	for _, path := range infos {
		now := election.BootClock()
		b, err := os.ReadFile(path)
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
	h := kernel.NewHunter()
	state, _, _ := h.Stat(int32(pid))
	return state
}

// newMark returns a mark for a tree, and ends at the end of the test what bears it and is below no
// guard and no host.
func newMark(t *testing.T) string {
	mark := fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())
	t.Cleanup(func() {
		for until := time.Now().Add(longEnough); time.Now().Before(until); {
			pids := torture.Living(mark)
			if len(pids) == 0 {
				return
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
	for limit := time.Now().Add(longEnough); !is(); time.Sleep(time.Millisecond) {
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
	case <-time.After(longEnough):
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

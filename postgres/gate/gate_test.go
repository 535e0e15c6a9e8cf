package gate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/private"
)

// gateClock is a deadline that a test moves.
type gateClock struct{ at atomic.Int64 }

func (c *gateClock) extend(deadline election.Instant) { c.at.Store(int64(deadline)) }
func (c *gateClock) deadline() election.Instant       { return election.Instant(c.at.Load()) }

// startGate runs a gate until the end of the test and returns its address and its deadline, which
// has not passed.
func startGate(t *testing.T, cfg Config) (string, *gateClock) {
	t.Helper()
	clock := &gateClock{}
	clock.extend(election.Never)
	cfg.Log, cfg.Deadline = zerolog.Nop(), clock.deadline
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	address, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() { done <- g.Run(ctx, func(a net.Addr) { address <- a }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-address:
		return a.String(), clock
	case err := <-done:
		done <- err
		t.Fatal("the gate did not open")
		return "", nil
	}
}

func gateDSN(address, password, database string) string {
	return fmt.Sprintf("postgres://anybody:%s@%s/%s?sslmode=disable", password, address, database)
}

func TestGate(t *testing.T) { both(t, testGate, "a", "b") }

func testGate(t *testing.T, r *repository) {
	cfg := r.config("a")
	var role, secret string
	cfg.Secret = postgres.Secret{Gate: func(of, is string) { role, secret = of, is }}
	a, err := postgres.NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Shutdown()
	b := r.fence("b")
	if env, err := a.Raise(t.Context(), 1); err != nil || len(env) != 0 || role != r.role("a") || secret == "" {
		t.Fatal(env, err, role)
	}
	address, _ := startGate(t, Config{
		Listen: "127.0.0.1:0", DSN: r.upstream(), Role: role, Secret: secret, Password: "never-changes",
	})
	dial := func(password string) (*pgx.Conn, error) {
		// prefer: the client first requests TLS, and is refused.
		return pgx.Connect(t.Context(), strings.Replace(gateDSN(address, password, r.database), "disable", "prefer", 1)+"&application_name=program")
	}
	refused := func(when, code, password string) {
		t.Helper()
		conn, err := dial(password)
		var pe *pgconn.PgError
		if err == nil {
			_ = conn.Close(t.Context())
		}
		if !errors.As(err, &pe) || pe.Code != code {
			t.Errorf("%s: %v, not %s", when, err, code)
		}
	}
	refused("with a wrong password", "28P01", "guess")

	conn, err := dial("never-changes")
	if err != nil {
		t.Fatal(err)
	}
	var who, application string
	if err := conn.QueryRow(t.Context(), "SELECT session_user, current_setting('application_name')").Scan(&who, &application); err != nil {
		t.Fatal(err)
	}
	if who != r.role("a") || application != "program" {
		t.Errorf("logged in as %s, application %s", who, application)
	}
	// Much data in both directions.
	big := strings.Repeat("x", 3<<20)
	var back string
	if err := conn.QueryRow(t.Context(), "SELECT $1::text", big).Scan(&back); err != nil || back != big {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	// Cancellation is forwarded.
	ctx, cancel := context.WithCancel(t.Context())
	sleeping := make(chan error, 1)
	go func() { _, err := conn.Exec(ctx, "SELECT pg_sleep(60)"); sleeping <- err }()
	for n := 0; n == 0; {
		if err := r.super.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)' AND state = 'active'").Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
		t.Error(err)
	}
	var pe *pgconn.PgError
	if err := <-sleeping; !errors.As(err, &pe) || pe.Code != "57014" {
		t.Errorf("cancelled: %v", err)
	}
	cancel()

	// Another term: the connection is closed, and the program must reconnect through the gate,
	// which is not admitted.
	r.raise(b, 2)
	if err := insert(t.Context(), conn, 1, "a"); err == nil {
		t.Error("an old term writes through the gate")
	}
	refused("after the term", "28P01", "never-changes") // the repository's answer: the old secret is void
}

// Idle sessions are cut at the deadline too, nobody is let in after it, and a later deadline
// changes nothing.
func TestGateIsShutAtItsDeadline(t *testing.T) { both(t, testGateIsShutAtItsDeadline, "a") }

func testGateIsShutAtItsDeadline(t *testing.T, r *repository) {
	address, clock := startGate(t, Config{
		Listen: "127.0.0.1:0", DSN: r.upstream(), Role: r.role("a"), Secret: r.raise(r.fence("a"), 1), Password: "p",
	})
	conn := connect(t, gateDSN(address, "p", r.database))
	if err := insert(t.Context(), conn, 1, "a"); err != nil {
		t.Fatal(err)
	}
	idle := make(chan error, 1)
	go func() { _, err := conn.PgConn().Conn().Read(make([]byte, 1)); idle <- err }()
	clock.extend(election.BootClock())
	if err := <-idle; err == nil {
		t.Error("an idle connection got data at the deadline")
	}
	for _, deadline := range []election.Instant{0, election.Never} {
		clock.extend(deadline)
		var pe *pgconn.PgError
		if _, err := pgx.Connect(t.Context(), gateDSN(address, "p", r.database)); !errors.As(err, &pe) || pe.Code != "57P03" {
			t.Errorf("past the deadline: %v", err)
		}
	}
}

func TestGateOnSocketIsForItsUserOnly(t *testing.T) {
	r := newRepository(t, "a")
	path := filepath.Join(t.TempDir(), ".s.PGSQL.5432")
	owner := &postgres.Owner{UID: os.Getuid(), GID: os.Getgid()}
	if owner.UID == 0 {
		owner = &postgres.Owner{UID: 65534, GID: 65534}
	}
	startGate(t, Config{Listen: "unix:" + path, Owner: owner, DSN: r.upstream(), Role: r.role("a"), Secret: r.raise(r.fence("a"), 1)})
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; int(uid) != owner.UID {
		t.Errorf("it belongs to user %d, not %d", uid, owner.UID)
	}
	conn := connect(t, fmt.Sprintf("host=%s user=anybody dbname=%s", filepath.Dir(path), r.database))
	if err := insert(t.Context(), conn, 1, "a"); err != nil {
		t.Error(err)
	}
}

func TestGateRefusesToBeADoor(t *testing.T) {
	for listen, want := range map[string]string{"0.0.0.0:0": "loopback", "127.0.0.1:0": "password", "nonsense": "listen", "192.0.2.1:1": "loopback"} {
		if _, err := New(Config{Listen: listen}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %q", listen, err, want)
		}
	}
}

// gateProcess is a gate in a separate process, so that it can be stopped. It reads the deadlines
// from its input.
func gateProcess() int {
	clock := &gateClock{}
	g, err := New(Config{
		Listen: os.Getenv("GATE_LISTEN"), DSN: os.Getenv("GATE_DSN"), Role: os.Getenv("GATE_ROLE"), Secret: os.Getenv("GATE_SECRET"), Password: "p",
		Deadline: clock.deadline,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	var follower sync.WaitGroup
	read := func() bool {
		var deadline int64
		_, err := fmt.Scanln(&deadline)
		clock.extend(election.Instant(deadline))
		return err == nil
	}
	read()
	follower.Go(func() {
		defer cancel()
		for read() {
			fmt.Println("extended")
		}
	})
	err = g.Run(ctx, func(a net.Addr) { fmt.Println(a) })
	follower.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startGateProcess returns the gate's address, its process, and a function that moves its deadline.
func startGateProcess(t testing.TB, r *repository, listen, role, secret string) (string, *os.Process, func(election.Instant)) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GATE_LISTEN="+listen, "GATE_DSN="+r.upstream(), "GATE_ROLE="+role, "GATE_SECRET="+secret)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		private.Thaw(cmd.Process.Pid)
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if _, err := fmt.Fprintln(in, int64(election.Never)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), cmd.Process, func(deadline election.Instant) {
		t.Helper()
		if _, err := fmt.Fprintln(in, int64(deadline)); err != nil {
			t.Fatal(err)
		}
		if answer, err := lines.ReadString('\n'); err != nil || answer != "extended\n" {
			t.Fatal(answer, err)
		}
	}
}

// A gate that is stopped while it holds statements of the program, and continues after its
// deadline, must forward nothing. There is no fence here: the repository would accept the
// statements.
func TestGatePausedPastItsDeadlinePassesNothing(t *testing.T) {
	both(t, testGatePausedPastItsDeadlinePassesNothing, "a")
}

func testGatePausedPastItsDeadlinePassesNothing(t *testing.T, r *repository) {
	secret := r.raise(r.fence("a"), 1)
	address, process, extend := startGateProcess(t, r, "127.0.0.1:0", r.role("a"), secret)
	conns := make([]*pgx.Conn, 20)
	for i := range conns {
		conns[i] = connect(t, gateDSN(address, "p", r.database))
		if err := insert(t.Context(), conns[i], 1, "before"); err != nil {
			t.Fatal(err)
		}
	}
	deadline := election.BootClock().Add(2 * time.Second) // the gate is stopped before that
	extend(deadline)
	if err := private.Freeze(t.Context(), process.Pid); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for _, conn := range conns {
		writers.Go(func() {
			if err := insert(t.Context(), conn, 1, "late"); err == nil {
				t.Error("a statement was answered after the deadline")
			}
		})
	}
	for election.BootClock() < deadline.Add(100*time.Millisecond) {
		time.Sleep(10 * time.Millisecond)
	}
	private.Thaw(process.Pid)
	writers.Wait()
	var late int
	if err := r.super.QueryRow(t.Context(), "SELECT count(*) FROM work WHERE writer = 'late'").Scan(&late); err != nil || late != 0 {
		t.Errorf("%d of %d statements passed after the deadline (%v)", late, len(conns), err)
	}
}

// BenchmarkGate compares pgbench through the gate with pgbench directly.
func BenchmarkGate(b *testing.B) {
	pgbench, err := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if err != nil || len(pgbench) == 0 {
		b.Skip("pgbench is not installed (package postgresql)")
	}
	server, err := private.Start(b.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := server.Stop(); err != nil {
			b.Error(err)
		}
	})
	r := newRepositoryOn(b, server, "a")
	secret := r.raise(r.fence("a"), 1)
	socket := filepath.Join(b.TempDir(), ".s.PGSQL.5432")
	address, _, _ := startGateProcess(b, r, "127.0.0.1:0", r.role("a"), secret)
	startGateProcess(b, r, "unix:"+socket, r.role("a"), secret)
	run := func(dsn string, args ...string) float64 {
		b.Helper()
		out, err := exec.Command(pgbench[0], append(args, dsn)...).CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		_, after, _ := strings.Cut(string(out), "tps = ")
		var tps float64
		_, _ = fmt.Sscan(after, &tps)
		return tps
	}
	direct, gated := r.server.DSN(r.role("a"), secret, r.database), map[string]string{
		"tcp": gateDSN(address, "p", r.database), "socket": fmt.Sprintf("host=%s user=anybody password=p dbname=%s", filepath.Dir(socket), r.database),
	}
	run(direct, "-i", "-q", "-s", "10")
	for _, c := range []struct {
		name string
		args []string
	}{
		{"tpcb-8", []string{"-n", "-c", "8", "-j", "2", "-T", "2"}},
		{"tpcb-1", []string{"-n", "-c", "1", "-T", "2"}},
		{"select-8", []string{"-n", "-S", "-c", "8", "-j", "2", "-T", "2"}},
		{"select-1", []string{"-n", "-S", "-c", "1", "-T", "2"}},
	} {
		for _, way := range []string{"tcp", "socket"} {
			b.Run(c.name+"-"+way, func(b *testing.B) {
				var d, ratio []float64
				for b.Loop() { // alternating, so that other load affects both
					direct := run(direct, c.args...)
					d = append(d, direct)
					ratio = append(ratio, 100*run(gated[way], c.args...)/direct)
				}
				slices.Sort(d)
				slices.Sort(ratio)
				b.ReportMetric(d[len(d)/2], "direct-tps")
				b.ReportMetric(ratio[0], "%-least")
				b.ReportMetric(ratio[len(ratio)/2], "%-median")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func TestGateErrorsDoNotQuoteTheConnectionString(t *testing.T) {
	for _, dsn := range []string{"host=h password = geheim sslmode=bogus", "geheim"} {
		if _, err := New(Config{Listen: "127.0.0.1:0", Password: "p", DSN: dsn}); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%v", err)
		}
	}
}

// A write that has to wait for the peer, over TLS, does not continue once the deadline has passed.
func TestBlockedWriteEndsAtTheDeadline(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // of a test
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // of a test
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close() //nolint:errcheck // of a test
	var past atomic.Bool
	gated := &checked{Conn: client, past: past.Load}
	type outcome struct {
		n   int
		err error
	}
	const size = 64 << 20 // more than all buffers hold
	done := make(chan outcome, 1)
	go func() {
		n, err := gated.Write(make([]byte, size))
		done <- outcome{n, err}
	}()
	before := queued(t, client)
	for now := before; now == 0 || now != before; now = queued(t, client) { // until it blocks
		before = now
		time.Sleep(20 * time.Millisecond)
	}
	past.Store(true)
	go func() { _, _ = io.Copy(io.Discard, server) }()
	o := <-done
	if !errors.Is(o.err, errNotActive) || o.n >= size {
		t.Errorf("%d of %d bytes were sent, %v", o.n, size, o.err)
	}
}

// queued returns the bytes in a socket's send buffer.
func queued(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return n
}

// The peer's silence is detected: by keepalives on an idle connection, and by a timeout on
// unacknowledged data.
func TestGateNoticesASilentServer(t *testing.T) {
	r := newRepository(t, "a")
	g, err := New(Config{Listen: "127.0.0.1:0", Password: "p", DSN: r.upstream()})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := g.upstream()
	if err != nil {
		t.Fatal(err)
	}
	g.cfg.Deadline = func() election.Instant { return election.Never }
	conn, err := cfg.DialFunc(t.Context(), "tcp", net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // of a test
	raw, err := socket(conn).(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var user, idle int
	if err := raw.Control(func(fd uintptr) {
		user, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		idle, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	}); err != nil || user == 0 || user > 10000 || idle > 5 {
		t.Errorf("unacknowledged data for %d ms, keepalives after %d s (%v)", user, idle, err)
	}
}

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// TestActAsController is the controller of the tests in this file: it listens, and records every
// few milliseconds that it runs.
func TestActAsController(t *testing.T) {
	file, address := os.Getenv("E2E_STAMPS"), os.Getenv("E2E_LISTEN")
	if file == "" {
		t.Skip("other tests run this one as their controller")
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	stamp := func() { fmt.Fprintf(f, "%d %s %d\n", os.Getpid(), os.Getenv("TANIST_TERM"), election.BootClock()) }
	stamp()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	for { // until it is killed
		stamp()
		time.Sleep(2 * time.Millisecond)
	}
}

// answer responds to a request over HTTP with the PID and the term. Whoever only connects gets
// nothing.
func answer(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 4<<10)); n == 0 || err != nil {
		return
	}
	text := fmt.Sprintf("%d %s", os.Getpid(), os.Getenv("TANIST_TERM"))
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
}

// seat is one controller's host: its files, and the sidecar that currently runs.
type seat struct {
	name, dir, listen string
	etcd              string
	lease             string
	more              string // of the configuration
	http              string
	sidecar           *testbed.Process
}

// court is a cluster of real processes on a real etcd.
type court struct {
	*testing.T
	client *clientv3.Client
	store  *ownEtcd
	seats  []*seat
}

func newCourt(t *testing.T, names ...string) *court {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	store := newEtcd(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{store.client}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	c := &court{T: t, client: client, store: store}
	for _, name := range names {
		c.seats = append(c.seats, &seat{name: name, dir: testbed.Dir(t), listen: address(t), etcd: store.client, lease: "{profile: default}"})
	}
	t.Cleanup(func() {
		for _, s := range c.seats { // the guard ends the controller of a killed sidecar
			if s.sidecar != nil {
				_ = s.sidecar.Process.Signal(syscall.SIGCONT)
				_ = s.sidecar.Process.Signal(syscall.SIGTERM)
				_ = s.sidecar.End(patience)
			}
		}
	})
	return c
}

// start runs the sidecar of a seat, with the binary under test or another.
func (c *court) start(s *seat, binary string) {
	c.Helper()
	self, err := os.Executable()
	if err != nil {
		c.Fatal(err)
	}
	file := filepath.Join(s.dir, "ctl.yml")
	text := fmt.Sprintf(`kind: controller
cluster: e2e
name: %s
etcd: {endpoints: ["%s"]}
lease: %s
run:
  command: [%q, -test.run, "^TestActAsController$", -test.timeout, 10m]
  env: {E2E_STAMPS: %q, E2E_LISTEN: %q}
  url: http://%s
  stop_timeout: 1s
yield_wait: 5s
listen: {http: %q}
state_dir: %s
%s`, s.name, s.etcd, s.lease, self, filepath.Join(s.dir, "stamps"), s.listen, s.listen, s.http, s.dir, s.more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	s.sidecar = testbed.Start(c.T, exec.Command(binary, "sidecar", "-c", file))
}

// until waits until the role key and the statuses satisfy ok.
func (c *court) until(what string, ok func(active *election.Active, state map[string]election.State) bool) {
	c.Helper()
	var last string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(c.Context(), 5*time.Second)
		resp, err := c.client.Get(ctx, "/tanist/e2e/", clientv3.WithPrefix())
		cancel()
		if err != nil {
			continue
		}
		var active *election.Active
		state := map[string]election.State{}
		last = ""
		for _, kv := range resp.Kvs {
			key := strings.TrimPrefix(string(kv.Key), "/tanist/e2e/")
			last += fmt.Sprintf("%s = %s\n", key, kv.Value)
			if a, err := election.DecodeActive(kv.Value); key == election.ActiveKey && err == nil {
				active = &a
			}
			if s, err := election.DecodeController(kv.Value); strings.HasPrefix(key, election.ControllerPrefix) && err == nil {
				state[s.Name] = s.State
			}
		}
		if ok(active, state) {
			return
		}
	}
	c.Fatalf("timed out after %v: %s; the store holds\n%s", patience, what, last)
}

func (c *court) serves(seats ...*seat) (by *seat) {
	c.Helper()
	c.until("one serves", func(active *election.Active, _ map[string]election.State) bool {
		for _, s := range seats {
			if active.Serving() && active.Controller == s.name {
				by = s
			}
		}
		return by != nil
	})
	return by
}

func (c *court) is(s *seat, state election.State) {
	c.Helper()
	c.until(s.name+" is "+string(state), func(_ *election.Active, all map[string]election.State) bool { return all[s.name] == state })
}

// begin starts two seats and waits until the first serves.
func (c *court) begin(first, second string) (a, b *seat) {
	c.Helper()
	a, b = c.seats[0], c.seats[1]
	c.start(a, first)
	c.serves(a)
	c.start(b, second)
	c.is(b, election.StateReady)
	return a, b
}

// forget removes the role key, as a stranger or a store that drops a lease does.
func (c *court) forget() {
	c.Helper()
	if _, err := c.client.Delete(c.Context(), "/tanist/e2e/"+election.ActiveKey); err != nil {
		c.Fatal(err)
	}
}

// last returns the PID of the seat's latest controller, and when it was last seen running.
func (c *court) last(s *seat) (pid int, ago time.Duration) {
	c.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "stamps"))
	if err != nil {
		c.Fatal(err)
	}
	lines := strings.Split(string(b[:bytes.LastIndexByte(b, '\n')]), "\n")
	var term uint64
	var at election.Instant
	if _, err := fmt.Sscan(lines[len(lines)-1], &pid, &term, &at); err != nil {
		c.Fatal(err)
	}
	return pid, election.BootClock().Sub(at)
}

// judge fails the test if, by their own records, two controllers ran at once or a term occurred
// twice.
func (c *court) judge() {
	c.Helper()
	type run struct {
		seat        string
		term        uint64
		first, last int64
	}
	var runs []run
	for _, s := range c.seats {
		b, err := os.ReadFile(filepath.Join(s.dir, "stamps"))
		if err != nil {
			continue // it never ran
		}
		at := map[string]int{}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 3 || !strings.HasSuffix(line, "\n") {
				continue
			}
			term, _ := strconv.ParseUint(f[1], 10, 64)
			when, _ := strconv.ParseInt(f[2], 10, 64)
			i, known := at[f[0]]
			if !known {
				i = len(runs)
				at[f[0]] = i
				runs = append(runs, run{s.name, term, when, when})
			}
			runs[i].last = when
		}
	}
	for i, x := range runs {
		for _, y := range runs[:i] {
			if both := min(x.last, y.last) - max(x.first, y.first); both > 0 {
				c.Errorf("%s (term %d) and %s (term %d) ran at once for %v", y.seat, y.term, x.seat, x.term, time.Duration(both))
			}
			again := x.seat == y.seat && x.term == y.term // started in place
			if !again && (x.first > y.first) != (x.term > y.term) {
				c.Errorf("terms are out of order: %s had term %d, %s had term %d", y.seat, y.term, x.seat, x.term)
			}
		}
	}
}

// servesOn waits until ctl-a is seen to serve in the term that it began with.
func (c *court) servesOn() {
	c.Helper()
	c.until("ctl-a serves on, term 1", func(active *election.Active, _ map[string]election.State) bool {
		return active.Serving() && active.Controller == "ctl-a" && active.Term == 1
	})
}

// owed freezes the holder's sidecar, whose controller runs until the lease ends, and removes the
// role key. ctl-b claims and waits. Then end ends b's process, and another is started.
func owed(t *testing.T, first, second, third string, end func(*testbed.Process)) {
	c := newCourt(t, "ctl-a", "ctl-b")
	a, b := c.begin(first, second)
	a.sidecar.Signal(syscall.SIGSTOP)
	c.forget()
	c.until("ctl-b waits", func(active *election.Active, _ map[string]election.State) bool {
		return active != nil && active.Controller == "ctl-b"
	})
	end(b.sidecar)
	if err := b.sidecar.End(patience); err != nil {
		t.Logf("ctl-b: %v", err)
	}
	c.start(b, third)
	c.serves(b)
	a.sidecar.Signal(syscall.SIGCONT)
	time.Sleep(2 * time.Second)
	c.judge()
}

func terminate(p *testbed.Process) { p.Signal(syscall.SIGTERM) }
func murder(p *testbed.Process)    { p.Signal(syscall.SIGKILL) }

// TestDebtOutlivesTheProcessThatWaitedForIt: if a claimant ends while it waits out the validity of
// a frozen holder, the next one waits instead.
func TestDebtOutlivesTheProcessThatWaitedForIt(t *testing.T) {
	t.Parallel() // like all tests here, it mostly waits
	tanist := program(t, "tanist")
	for name, end := range map[string]func(*testbed.Process){"SIGTERM": terminate, "SIGKILL": murder} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			owed(t, tanist, tanist, tanist, end)
		})
	}
}

// TestAdoptedReignKeepsItsTiming: a process with a longer validity adopts a reign with a shorter
// one, and freezes. The guard ends the controller by the reign's validity, before the other starts.
func TestAdoptedReignKeepsItsTiming(t *testing.T) {
	t.Parallel()
	tanist := program(t, "tanist")
	c := newCourt(t, "ctl-a", "ctl-b")
	for _, s := range c.seats { // long enough for a busy machine to start the next process within it
		s.lease = "{ttl: 8s, validity: 6s, renew_every: 1s, stop_budget: 1s}"
	}
	a, b := c.begin(tanist, tanist)
	a.sidecar.Signal(syscall.SIGUSR2)
	if err := a.sidecar.End(patience); err != nil {
		t.Fatal(err)
	}
	a.lease = "{ttl: 15s, validity: 12s, renew_every: 1s, stop_budget: 1s}"
	c.start(a, tanist)
	a.sidecar.Await("resumed the reign", patience)
	time.Sleep(3 * time.Second) // a few renewals
	a.sidecar.Signal(syscall.SIGSTOP)
	c.serves(b)
	time.Sleep(5 * time.Second)
	a.sidecar.Signal(syscall.SIGCONT)
	c.judge()
}

// TestTermRecordChangedByHand: the holder writes its term record again within a moment; while it is frozen, the passive does not believe that
// the reign has ended clean.
func TestTermRecordChangedByHand(t *testing.T) {
	t.Parallel()
	tanist := program(t, "tanist")
	c := newCourt(t, "ctl-a", "ctl-b")
	a, b := c.begin(tanist, tanist)
	const key = "/tanist/e2e/" + election.TermKey
	read := func() string {
		resp, err := c.client.Get(t.Context(), key)
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("the term key: %v", err)
		}
		return string(resp.Kvs[0].Value)
	}
	spoil := func(r string) string {
		return strings.Replace(strings.Replace(r, " held ", " clean ", 1), "validity=4s", "validity=1ms", 1)
	}
	write := func(r string) {
		if _, err := c.client.Put(t.Context(), key, r); err != nil {
			t.Fatal(err)
		}
	}
	before := read()
	if n := strings.Count(spoil(before), "1ms"); n != 1 {
		t.Fatalf("nothing is spoilt in %q", before)
	}
	write(spoil(before))
	late, begun := testbed.Lateness(t), time.Now()
	c.until("the record is repaired", func(*election.Active, map[string]election.State) bool { return read() == before })
	if took, most := time.Since(begun), 2*time.Second+late(); took > most {
		t.Errorf("the record was repaired after %v, want at most %v", took, most)
	}
	time.Sleep(1500 * time.Millisecond) // a renewal, and repairs are paced
	a.sidecar.Signal(syscall.SIGSTOP)
	write(spoil(before))
	time.Sleep(100 * time.Millisecond)
	c.forget()
	c.serves(b)
	a.sidecar.Signal(syscall.SIGCONT)
	time.Sleep(2 * time.Second)
	c.judge()
}

// TestSidecarRestartedWhileTheStoreIsAway: etcd is stopped, and the sidecar is killed and restarted
// twice. It resumes its reign without the store, because the passive promises not to take over. The
// controller keeps running, and is started in place after it was killed. A sidecar without a reign
// to resume exits with 69.
func TestSidecarRestartedWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	tanist := program(t, "tanist")
	c := newCourt(t, "ctl-a", "ctl-b", "ctl-c")
	secret := filepath.Join(testbed.Dir(t), "secret")
	if err := os.WriteFile(secret, []byte("of all sidecars here"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.seats {
		s.http, s.more = address(t), fmt.Sprintf("on_store_loss: failsafe\nfailsafe: {secret_file: %q}\n", secret)
	}
	a, _ := c.begin(tanist, tanist)
	c.until("ctl-b is listed", func(*election.Active, map[string]election.State) bool {
		resp, err := c.client.Get(t.Context(), "/tanist/e2e/"+election.TermKey)
		return err == nil && len(resp.Kvs) == 1 && strings.Contains(string(resp.Kvs[0].Value), "heirs=ctl-a,ctl-b")
	})
	pid, _ := c.last(a)
	c.store.stop()
	for range 2 {
		time.Sleep(6 * time.Second) // longer than the lease
		murder(a.sidecar)
		_ = a.sidecar.End(patience)
		c.start(a, tanist)
		a.sidecar.Await("resumed the reign", patience)
	}
	time.Sleep(6 * time.Second)
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		now, ago := c.last(a)
		if now == pid && ago <= time.Second {
			break
		}
		if now != pid || time.Now().After(end) {
			t.Fatalf("PID %d ran %v ago; it was %d", now, ago, pid)
		}
	}
	c.start(c.seats[2], tanist)
	if err := c.seats[2].sidecar.End(patience); err == nil || !strings.Contains(err.Error(), "exit status 69") {
		t.Errorf("a sidecar without a reign to resume ends with %v, want exit status 69", err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if now, ago := c.last(a); now != pid && ago < time.Second {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the controller was not started in place")
		}
	}
	c.store.start()
	c.servesOn()
	c.judge()
}

// TestSecondSidecarOnTheSameStateDirectory: it is refused with the PID of the first, and changes
// nothing of the first.
func TestSecondSidecarOnTheSameStateDirectory(t *testing.T) {
	t.Parallel()
	bin := program(t, "tanist")
	c := newCourt(t, "ctl-a", "ctl-b")
	a, _ := c.begin(bin, bin)
	code, _, msg := tanist(t, "sidecar", "-c", filepath.Join(a.dir, "ctl.yml"))
	if code != 78 || !strings.Contains(msg, fmt.Sprintf("PID %d", a.sidecar.Process.Pid)) {
		t.Errorf("exit code %d: %s", code, msg)
	}
	c.servesOn()
	c.judge()
}

// TestTermOutlivesARestoreOfTheStore: with both sidecars stopped, the term key is set to its value
// in a backup. The term does not go back.
func TestTermOutlivesARestoreOfTheStore(t *testing.T) {
	t.Parallel()
	tanist := program(t, "tanist")
	c := newCourt(t, "ctl-a", "ctl-b")
	a, b := c.begin(tanist, tanist)
	for _, s := range []*seat{a, b, a} { // three takeovers
		other := c.seats[0]
		if s == other {
			other = c.seats[1]
		}
		s.sidecar.Signal(syscall.SIGTERM)
		_ = s.sidecar.End(patience)
		c.serves(other)
		c.start(s, tanist)
		c.is(s, election.StateReady)
	}
	for _, s := range c.seats {
		s.sidecar.Signal(syscall.SIGTERM)
	}
	for _, s := range c.seats {
		_ = s.sidecar.End(patience)
	}
	if _, err := c.client.Put(t.Context(), "/tanist/e2e/"+election.TermKey, "2 clean controller=ctl-b incarnation=x validity=4s reason=a backup"); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.seats {
		c.start(s, tanist)
	}
	c.serves(a, b)
	c.judge()
}

// versionBefore is the last commit whose records have neither debts nor nonces.
const versionBefore = "5af0f06"

var buildBefore = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tanist-before-")
	if err != nil {
		return "", err
	}
	script := fmt.Sprintf("set -e; git archive %s | tar -x -C %q; cd %q; go build -trimpath -o tanist-before ./cmd/tanist", versionBefore, dir, dir)
	cmd := exec.CommandContext(context.Background(), "bash", "-o", "pipefail", "-c", script)
	cmd.Dir = ".." // git archive takes the whole tree only from its root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %s", err, out)
	}
	return filepath.Join(dir, "tanist-before"), nil
})

// before returns the binary of the previous version.
func before(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	if err := exec.CommandContext(t.Context(), "git", "cat-file", "-e", versionBefore).Run(); err != nil {
		t.Skipf("this checkout has no commit %s, from which the previous version is built", versionBefore)
	}
	path, err := buildBefore()
	if err != nil {
		t.Fatalf("cannot build the previous version: %v", err)
	}
	return path
}

// TestRollingUpgrade: sidecars of this version and of the previous one in one cluster never run two
// controllers, whichever holds the lease, whichever waits, and whichever comes after.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	now, old := program(t, "tanist"), before(t)
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(old)) })
	for name, v := range map[string][3]string{
		"a debt of the old version, claimed by the new one":    {old, now, now},
		"a debt of the new version, taken over by the old one": {now, now, old},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			owed(t, v[0], v[1], v[2], terminate)
		})
	}
	for name, v := range map[string][2]string{"upgrade": {old, now}, "downgrade": {now, old}} {
		t.Run(name+" of the active without an outage, then a crash", func(t *testing.T) {
			t.Parallel()
			c := newCourt(t, "ctl-a", "ctl-b")
			a, b := c.begin(v[0], old)
			a.sidecar.Signal(syscall.SIGUSR2)
			if err := a.sidecar.End(patience); err != nil {
				t.Fatal(err)
			}
			c.start(a, v[1])
			a.sidecar.Await(map[string]string{now: "resumed the reign", old: "took the lease up again"}[v[1]], patience)
			time.Sleep(6 * time.Second)
			c.serves(a)
			a.sidecar.Signal(syscall.SIGSTOP)
			c.serves(b)
			a.sidecar.Signal(syscall.SIGCONT)
			time.Sleep(time.Second)
			c.judge()
		})
	}
}

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// stamp is a controller that accepts connections, and records every few milliseconds that it lives.
func stamp(name, listen, file string) int {
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return 1
	}
	line := func() { fmt.Fprintf(out, "%s %d %d\n", name, os.Getpid(), int64(election.BootClock())) }
	line()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return 1
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	for range time.Tick(5 * time.Millisecond) {
		line()
	}
	return 0
}

// pair is two sidecars and a store, each a process of its own.
type pair struct {
	t      *testing.T
	dir    string
	store  string
	stamps string
	self   string // this binary, which also acts as the controllers
	wrap   []string
	binary string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, dir: testbed.Dir(t), store: etcdServer(t), self: self, binary: testbed.Binary(t, "tanist")}
	if other := os.Getenv("TANIST_E2E_BINARY"); other != "" { // to compare another version
		p.binary = other
	}
	p.stamps = filepath.Join(p.dir, "stamps")
	t.Cleanup(func() { // removes what is left, so that no other test meets it
		for _, lives := range p.lives() {
			_ = unix.Kill(lives.pid, unix.SIGKILL)
		}
	})
	return p
}

// sidecar writes a configuration and returns the file. run returns its lines about the program,
// given the controller's command line as a quoted list.
func (p *pair) sidecar(name, profile string, priority int, run func(program string) string) string {
	p.t.Helper()
	listen := address(p.t)
	program := fmt.Sprintf("%q, stamp, %s, %q, %q", p.self, name, listen, p.stamps)
	file := filepath.Join(p.dir, name+".yml")
	text := fmt.Sprintf(`kind: controller
cluster: never
name: %s
priority: %d
etcd: {endpoints: [%q]}
lease: {profile: %s}
run:
  url: http://%s
%s
listen: {http: "", agent_check: "", admin: ""}
state_dir: %s
yield_wait: 1s
`, name, priority, p.store, profile, listen, run(program), filepath.Join(p.dir, "state"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}

func (p *pair) start(file string) *testbed.Process {
	p.t.Helper()
	args := append(append([]string{}, p.wrap...), p.binary, "sidecar", "-c", file)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	return testbed.Start(p.t, cmd)
}

// life is how long one process of a controller was seen alive.
type life struct {
	name        string
	pid         int
	first, last election.Instant
}

func (p *pair) lives() (all []life) {
	b, _ := os.ReadFile(p.stamps)
	at := map[int]int{}
	for line := range strings.Lines(string(b)) {
		var name string
		var pid int
		var when int64
		if n, _ := fmt.Sscanf(line, "%s %d %d", &name, &pid, &when); n != 3 {
			continue
		}
		i, known := at[pid]
		if !known {
			i = len(all)
			at[pid] = i
			all = append(all, life{name: name, pid: pid, first: election.Instant(when)})
		}
		all[i].last = election.Instant(when)
	}
	return all
}

// await waits until a controller has lived for a while after an instant.
func (p *pair) await(after election.Instant, name string) life {
	p.t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		for _, l := range p.lives() {
			if (name == "" || l.name == name) && l.last.Sub(max(l.first, after)) > 200*time.Millisecond {
				return l
			}
		}
		if time.Now().After(late) {
			p.t.Fatalf("timed out after %v: no controller %s; lives: %+v", patience, name, p.lives())
		}
	}
}

// neverTwo fails the test if two controllers lived at the same time.
func (p *pair) neverTwo() {
	p.t.Helper()
	all := p.lives()
	for i, a := range all {
		for _, b := range all[i+1:] {
			if overlap := min(a.last, b.last).Sub(max(a.first, b.first)); overlap > 0 {
				p.t.Errorf("%s (PID %d) and %s (PID %d) both lived for %v", a.name, a.pid, b.name, b.pid, overlap)
			}
		}
	}
}

func execDriver(program string) string { return "  command: [" + program + "]" }

var acquired = regexp.QuoteMeta("acquired the lease")

// TestSidecarKilledWhileItStartsTheController: at whatever point between claim and start a sidecar
// is killed, its next process either adopts the controller or knows that there is none.
func TestSidecarKilledWhileItStartsTheController(t *testing.T) {
	t.Run("exec", func(t *testing.T) {
		trials := 6
		if os.Getenv("TANIST_LONG") != "" {
			trials = 60
		}
		for i := range trials {
			p := newPair(t)
			a, b := p.sidecar("ctl-a", "fast", 200, execDriver), p.sidecar("ctl-b", "fast", 100, execDriver)
			first := p.start(a)
			first.Await(acquired, patience)
			second := p.start(b)
			time.Sleep(time.Duration(i%6) * 4 * time.Millisecond) // spread over the window: the moment of the kill matters, not the wait
			first.Signal(syscall.SIGKILL)
			<-first.Ended()
			killed := election.BootClock()
			p.start(a)
			p.await(killed.Add(time.Second), "")
			_ = second
			p.neverTwo()
			if t.Failed() {
				return
			}
		}
	})
	t.Run("script", func(t *testing.T) {
		p := newPair(t)
		slow := func(program string) string {
			words := strings.ReplaceAll(program, ",", "")
			return fmt.Sprintf("  driver: script\n  command: [/bin/sh, -c, %q]", "sleep 1; setsid "+words+" >/dev/null 2>&1 &\nsleep 1.2")
		}
		a, b := p.sidecar("ctl-a", "default", 200, slow), p.sidecar("ctl-b", "default", 100, execDriver)
		first := p.start(a)
		first.Await(acquired, patience)
		p.start(b).Await("ready", patience)
		first.Signal(syscall.SIGKILL) // during the start command
		<-first.Ended()
		killed := election.BootClock()
		p.start(a)
		p.await(killed.Add(3*time.Second), "")
		p.neverTwo()
	})
}

// elsewhere runs programs that have no guard above them, one for each line that is written to the
// returned path.
func (p *pair) elsewhere() string {
	orders := filepath.Join(p.dir, "orders")
	if err := unix.Mkfifo(orders, 0o600); err != nil {
		p.t.Fatal(err)
	}
	testbed.Start(p.t, exec.Command("/bin/sh", "-c", `while :; do while read -r order; do eval "$order"; done; done <>"$0"`, orders))
	return orders
}

// TestHungStatusCommandConfirmsNothing: the program lives where no guard can see it, and its status
// command hangs. The kill command still runs, and the sidecar waits for what it cannot confirm.
func TestHungStatusCommandConfirmsNothing(t *testing.T) {
	p := newPair(t)
	orders, hang, pidFile := p.elsewhere(), filepath.Join(p.dir, "hang"), filepath.Join(p.dir, "pid")
	driver := func(program string) string {
		words := strings.ReplaceAll(strings.ReplaceAll(program, ",", ""), `"`, "")
		return fmt.Sprintf(`  driver: script
  stop_timeout: 500ms
  command: [/bin/sh, -c, %q]
  stop: ["/bin/true"]
  kill: [/bin/sh, -c, %q]
  status: [/bin/sh, -c, %q]`,
			fmt.Sprintf(`rm -f %[1]s; echo 'setsid %[2]s & echo $! >%[1]s' >%[3]s; while ! [ -s %[1]s ]; do sleep 0.01; done`, pidFile, words, orders),
			fmt.Sprintf(`kill -KILL $(cat %s)`, pidFile),
			fmt.Sprintf(`[ -e %s ] && exec sleep 1000; kill -0 $(cat %s) 2>/dev/null || exit 3`, hang, pidFile))
	}
	a, b := p.sidecar("ctl-a", "default", 200, driver), p.sidecar("ctl-b", "default", 100, execDriver)
	first := p.start(a)
	p.await(0, "ctl-a")
	p.start(b).Await("ready", patience)
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first.Signal(syscall.SIGTERM)
	p.await(0, "ctl-b")
	p.neverTwo()
	if err := first.End(patience); err != nil {
		t.Error(err)
	}
}

// withoutCgroups returns the words that run a command where no cgroup is available.
func withoutCgroups(t *testing.T) []string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var where []string
	for line := range bytes.Lines(mounts) {
		front, back, _ := strings.Cut(string(line), " - ")
		if fields := strings.Fields(front); strings.HasPrefix(back, "cgroup2 ") && len(fields) > 4 {
			where = append(where, fields[4])
		}
	}
	if len(where) == 0 || os.Geteuid() != 0 {
		return nil
	}
	return []string{"unshare", "-m", "/bin/sh", "-c", "umount -l " + strings.Join(where, " ") + ` && exec "$0" "$@"`}
}

// TestGuardKilledAfterARestartWithoutCgroups: that nothing is left cannot be proven, and this does
// not stop the service for ever.
func TestGuardKilledAfterARestartWithoutCgroups(t *testing.T) {
	p := newPair(t)
	p.wrap = withoutCgroups(t)
	// The next sidecar must start within the validity.
	a, b := p.sidecar("ctl-a", "default", 200, execDriver), p.sidecar("ctl-b", "default", 100, execDriver)
	first := p.start(a)
	lives := p.await(0, "ctl-a")
	first.Signal(syscall.SIGKILL)
	<-first.Ended()
	again := p.start(a)
	again.Await("(?i)adopted", patience)
	p.start(b).Await("ready", patience)
	guard := parent(t, lives.pid)
	if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", guard)); string(comm) != "tanist-guard\n" {
		t.Fatalf("the parent of the controller is %q", comm)
	}
	killed := election.BootClock()
	if err := unix.Kill(guard, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next := p.await(killed.Add(200*time.Millisecond), "")
	t.Logf("%s serves %v after the guard was killed", next.name, next.first.Sub(killed))
	p.neverTwo()
}

func parent(t *testing.T, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("PPid:")); ok {
			n, err := strconv.Atoi(string(bytes.TrimSpace(rest)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal(errors.New("the controller has no parent"))
	return 0
}

package haproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// The test binary is also a Tanist in a separate process, so that it can be killed like one.
func TestMain(m *testing.M) {
	if path := os.Getenv("TANIST_TEST_PROXY"); path != "" {
		os.Exit(proxyProcess(path))
	}
	if addr := os.Getenv("TANIST_TEST_ORPHAN"); addr != "" {
		listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		}}
		if _, err := listen.Listen(context.Background(), "tcp", addr); err == nil {
			select {} // never accepts; the signal that kills it is the test's
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// fileStore is a Source over a file, for another process.
type fileStore struct{ path string }

type fileRecord struct {
	Active *election.Active
	Err    string
}

func (f fileStore) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting)
	go func() {
		defer close(out)
		for last := ""; ; {
			text, err := os.ReadFile(f.path)
			var r fileRecord
			if err == nil && string(text) != last && json.Unmarshal(text, &r) == nil {
				last = string(text)
				s := election.Sighting{Active: r.Active, At: time.Now()}
				if r.Err != "" {
					s.Err = errors.New(r.Err)
				}
				select {
				case out <- s:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return out
}

func (f fileStore) say(t *testing.T, r fileRecord) {
	t.Helper()
	text, err := json.Marshal(r)
	if err == nil {
		err = renameio.WriteFile(f.path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func proxyProcess(path string) int {
	var cfg Config
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		var p *Proxy
		p, err = New(cfg, map[string]Source{cfg.Clusters[0].Name: fileStore{filepath.Join(filepath.Dir(path), "store")}}, zerolog.New(os.Stderr))
		if err == nil {
			err = p.Run(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startProcess starts a Tanist in a separate process; the test kills it.
func (b *bed) startProcess() *exec.Cmd {
	b.t.Helper()
	text, err := json.Marshal(b.cfg)
	path := filepath.Join(b.dir, "proxy.json")
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "TANIST_TEST_PROXY="+path)
	cmd.Stderr = b.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 100 * time.Millisecond
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// leftovers returns the running processes with the bed's directory in their command line.
func (b *bed) leftovers() (pids []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, err := os.ReadFile(d + "/cmdline")
		if err == nil && strings.Contains(string(cmdline), b.dir) {
			pids = append(pids, filepath.Base(d))
		}
	}
	return pids
}

// zombies returns the children of this process that have ended and are not reaped.
func zombies() (n int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		text, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if i := strings.LastIndexByte(string(text), ')'); i > 0 {
			var state string
			var ppid int
			if _, err := fmt.Sscan(string(text[i+1:]), &state, &ppid); err == nil && state == "Z" && ppid == os.Getpid() {
				n++
			}
		}
	}
	return n
}

func TestSpawnLeavesNothingBehind(t *testing.T) {
	a := newController(t, "ctl-a")
	b := newBed(t, func(c *Config) { c.Spawn = true; c.Clusters[0].Mode = ModeTCP })
	b.up()
	b.store.publish(a.record(1, election.StateServing))
	b.routedTo(a)
	// An old worker with a session that does not end.
	resp, err := newStream(b.front)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	b.until("the master can be asked", func() bool {
		_, err := socket{b.cfg.MasterSocket, time.Second}.processes(t.Context())
		return err == nil
	})
	_, _ = socket{b.cfg.MasterSocket, time.Second}.ask(t.Context(), "reload") // hangs up instead of answering
	b.until("there is an old worker", func() bool {
		p, err := socket{b.cfg.MasterSocket, time.Second}.processes(t.Context())
		return err == nil && len(p.old) == 1 && p.worker != 0
	})
	b.routedTo(a)
	b.stopTanist()
	if l := b.leftovers(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
	if n := zombies(); n > 0 {
		t.Errorf("%d zombies", n)
	}
}

// TestSpawnedHAProxyLivesOnAndIsAdopted: kill -9 of `tanist haproxy` costs no request. The next one
// adopts the same HAProxy, moves it, notices its end, and ends it.
func TestSpawnedHAProxyLivesOnAndIsAdopted(t *testing.T) {
	a, c := newController(t, "ctl-a"), newController(t, "ctl-b")
	a.active.Store(true)
	b := newBed(t, func(c *Config) { c.Spawn = true })
	t.Cleanup(func() {
		for _, pid := range b.leftovers() {
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	})
	fs := fileStore{filepath.Join(b.dir, "store")}
	say := func(c *controller, term election.Term) {
		r := c.record(term, election.StateServing)
		fs.say(t, fileRecord{Active: &r})
	}
	say(a, 1)
	tanist := b.startProcess()
	waitFor(t, "routed", func() bool { code, _ := b.get(); return code == 200 })
	waitFor(t, "the file knows", func() bool { return strings.Contains(b.file(), "ctl-a") })
	worker := func() int {
		p, _ := socket{b.cfg.MasterSocket, time.Second}.processes(t.Context())
		return p.worker
	}
	var pid int
	waitFor(t, "the master names its worker", func() bool { pid = worker(); return pid != 0 })
	l := startLoad("http://"+b.front+"/", 50, true)
	kill(tanist)
	tanist = b.startProcess()
	waitFor(t, "it is adopted", func() bool { return b.logs.count("adopted HAProxy") == 1 })
	l.end()
	if len(l.failed) > 0 || len(l.took) == 0 {
		t.Errorf("%d requests answered, failed: %v", len(l.took), l.failed)
	}
	say(c, 2)
	waitFor(t, "moved", func() bool { _, body := b.get(); return body == "ctl-b" })
	if now := worker(); now != pid {
		t.Errorf("worker %d, then %d", pid, now)
	}
	// A second Tanist with the same sockets is refused, by name.
	second := b.startProcess()
	second.WaitDelay = longEnough // it starts no HAProxy that would hold its output open
	if err := second.Wait(); err == nil || b.logs.count(fmt.Sprintf("another tanist haproxy (PID %d) owns", tanist.Process.Pid)) != 1 {
		t.Errorf("the second ended with %v", err)
	}
	// Its end is noticed.
	_ = syscall.Kill(pid, syscall.SIGKILL)
	waitFor(t, "it was started again", func() bool { now := worker(); return now != pid && now != 0 })
	waitFor(t, "routed again", func() bool { _, body := b.get(); return body == "ctl-b" })
	kill(tanist)
	tanist = b.startProcess()
	waitFor(t, "it is adopted again", func() bool { return b.logs.count("adopted HAProxy") == 2 })
	tanist.WaitDelay = longEnough // it ends its HAProxy
	if err := tanist.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := tanist.Wait(); err != nil {
		t.Error(err)
	}
	if l := b.leftovers(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// TestHAProxyWithOtherArgumentsIsReplaced: the HAProxy of a killed Tanist runs another
// configuration than this one has.
func TestHAProxyWithOtherArgumentsIsReplaced(t *testing.T) {
	a := newController(t, "ctl-a")
	b := newBed(t, func(c *Config) { c.Spawn = true })
	fs := fileStore{filepath.Join(b.dir, "store")}
	one := a.record(1, election.StateServing)
	fs.say(t, fileRecord{Active: &one})
	tanist := b.startProcess()
	waitFor(t, "routed", func() bool { code, _ := b.get(); return code == 200 })
	kill(tanist)
	b.cfg.ConfigFile = filepath.Join(b.dir, "other.cfg")
	b.up()
	b.store.publish(one)
	b.routedTo(a)
	if b.logs.count("runs with other arguments") != 1 || b.proxy.Status().Starts != 1 {
		t.Errorf("%+v", b.proxy.Status())
	}
	b.stopTanist()
	if l := b.leftovers(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestSpawnedHAProxyIsRestarted(t *testing.T) {
	a := newController(t, "ctl-a")
	b := newBed(t, func(c *Config) { c.Spawn = true })
	b.up()
	b.store.publish(a.record(1, election.StateServing))
	b.routedTo(a)
	for i := range 3 {
		var p processes
		b.until("the master knows its worker", func() bool {
			var err error
			p, err = socket{b.cfg.MasterSocket, time.Second}.processes(t.Context())
			return err == nil && p.worker != 0
		})
		_ = syscall.Kill(p.worker, syscall.SIGKILL) // the master ends with its worker
		b.until("it was started again", func() bool { return b.proxy.Status().Starts >= uint64(i+2) })
		b.routedTo(a)
	}
	if n := zombies(); n > 0 {
		t.Errorf("%d zombies", n)
	}
}

// TestDeafSpawnedHAProxyIsRestarted: a master whose reload failed halfway is alive, and nobody
// listens on the admin socket. The same happens if somebody cleans up the directory.
func TestDeafSpawnedHAProxyIsRestarted(t *testing.T) {
	a, c := newController(t, "ctl-a"), newController(t, "ctl-b")
	b := newBed(t, func(c *Config) { c.Spawn = true })
	b.up()
	b.store.publish(a.record(1, election.StateServing))
	b.routedTo(a)
	if err := os.Remove(b.cfg.AdminSocket); err != nil {
		t.Fatal(err)
	}
	b.until("the loss is known", func() bool { return b.proxy.Status().HAProxyPID == 0 })
	b.store.publish(c.record(2, election.StateServing))
	b.routedTo(c)
	if s := b.proxy.Status(); s.Starts != 2 {
		t.Errorf("%d starts, want 2", s.Starts)
	}
}

// TestOrphanedWorkerIsKilled: a worker that missed the death of its master holds the port and never
// accepts.
func TestOrphanedWorkerIsKilled(t *testing.T) {
	a := newController(t, "ctl-a")
	b := newBed(t, func(c *Config) { c.Spawn = true })
	one := a.record(1, election.StateServing)
	// The process group of a master that is gone contains a process that looks like its worker and
	// listens like it.
	leader := exec.Command("sleep", "600")
	leader.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	orphan := &exec.Cmd{
		Path: os.Args[0],
		Args: []string{"haproxy", "-W", "-S", b.cfg.MasterSocket + ",mode,600,level,admin", "-f", b.cfg.ConfigFile},
		Env:  append(os.Environ(), "TANIST_TEST_ORPHAN="+b.front),
		SysProcAttr: &syscall.SysProcAttr{
			Setpgid: true, Pgid: leader.Process.Pid, Pdeathsig: syscall.SIGKILL,
		},
	}
	err := orphan.Start()
	kill(leader)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = orphan.Wait(); close(ended) }()
	t.Cleanup(func() { _ = orphan.Process.Kill(); <-ended })
	waitFor(t, "the orphan holds the port", func() bool {
		c, err := net.DialTimeout("tcp", b.front, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	b.up()
	b.store.publish(one)
	b.routedTo(a)
	if n := b.logs.count("lost its master"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	for range 40 {
		if code, _ := b.get(); code != 200 {
			t.Fatalf("a request ended at the orphan: %d", code)
		}
	}
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(longEnough); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("does not come true: %s", what)
		}
	}
}

// TestMovesWithEverythingKilledAtRandom moves the active while the store is away, HAProxy is
// killed, or Tanist is killed, and searches for requests that reached a controller while it was not
// active.
func TestMovesWithEverythingKilledAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 7))
	cs := []*controller{newController(t, "ctl-a"), newController(t, "ctl-b")}
	b := newBed(t, known(cs...))
	b.cfg.Clusters[0].HoldRequests = time.Second
	fs := fileStore{filepath.Join(b.dir, "store")}
	say := func(c *controller, term int, s election.State) {
		r := c.record(election.Term(term), s)
		fs.say(t, fileRecord{Active: &r})
	}
	cs[1].kill()
	cs[0].active.Store(true)
	say(cs[0], 1, election.StateServing)
	tanist := b.startProcess()
	b.startHAProxy()
	routed := func(c *controller) {
		t.Helper()
		waitFor(t, "routed to "+c.name, func() bool { code, body := b.get(); return code == 200 && body == c.name })
	}
	routed(cs[0])
	l := startLoad("http://"+b.front+"/", times(50, 200), true)
	faults := map[string]int{}
	n := times(15, 200)
	for i := range n {
		from, to := cs[i%2], cs[(i+1)%2]
		fault := []string{"none", "store", "haproxy", "tanist", "haproxy and tanist"}[rnd.IntN(5)]
		faults[fault]++
		late := rnd.IntN(2) == 0 // the fault comes in the middle of the move
		strike := func() {
			if fault == "store" {
				r := from.record(election.Term(i+1), election.StateServing)
				fs.say(t, fileRecord{Active: &r, Err: "no store answers"})
			}
			if strings.Contains(fault, "tanist") {
				kill(tanist)
			}
			if strings.Contains(fault, "haproxy") {
				b.killHAProxy()
			}
		}
		if !late {
			strike()
		}
		if planned := rnd.IntN(2) == 0; planned {
			if fault != "store" {
				say(from, i+1, election.StateStopping)
			}
			from.stop()
		} else {
			from.kill()
		}
		from.active.Store(false)
		if fault != "store" {
			fs.say(t, fileRecord{})
		}
		if late {
			strike()
		}
		to.active.Store(true)
		to.start()
		if strings.Contains(fault, "haproxy") {
			b.startHAProxy()
		}
		if strings.Contains(fault, "tanist") {
			tanist = b.startProcess()
		}
		say(to, i+2, election.StateServing)
		routed(to)
	}
	l.end()
	t.Logf("%d moves, faults %v; load: %d answered, %d failed", n, faults, len(l.took), len(l.failed))
	for _, c := range cs {
		if w := c.wrong.Load(); w > 0 {
			t.Errorf("%s answered %d requests while it was not active", c.name, w)
		}
	}
}

// A master that re-executes itself has no command line for a moment, and is alive. A zombie is gone.
func TestZombieIsNoLivingMaster(t *testing.T) {
	if !lives(os.Getpid()) {
		t.Error("this process does not live")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the zombie is no living process", func() bool { return !lives(cmd.Process.Pid) })
	if err := cmd.Wait(); err != nil || lives(cmd.Process.Pid) {
		t.Errorf("%v, or it still lives", err)
	}
}

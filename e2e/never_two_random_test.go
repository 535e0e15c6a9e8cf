package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// chaos makes random faults in a court.
type chaos struct {
	*court
	*rand.Rand
	tanist string
	frozen bool // the store
	n      int
}

// TestNeverTwoUnderRandomFaults: whatever combination of faults real processes meet, there are never
// two controllers, and once the faults have ended, one serves. E2E_SEED repeats the faults of a run,
// though not their timing, nor who is active then; TANIST_LONG makes the run longer.
func TestNeverTwoUnderRandomFaults(t *testing.T) {
	t.Parallel()
	lasts := 30 * time.Second
	if os.Getenv("TANIST_LONG") != "" {
		lasts = 10 * time.Minute
	}
	seed, err := strconv.ParseUint(os.Getenv("E2E_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	for _, policy := range []string{"stop", "failsafe"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			c := &chaos{court: newCourt(t, "ctl-a", "ctl-b", "ctl-c"), Rand: rand.New(rand.NewPCG(seed, 0)), tanist: program(t, "tanist")}
			secret := filepath.Join(testbed.Dir(t), "secret")
			if err := os.WriteFile(secret, []byte("of all sidecars here"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, s := range c.seats {
				// With default, few faults would last longer than the validity.
				s.lease = "{profile: fast}"
				s.http, s.more = address(t), fmt.Sprintf("on_store_loss: %s\nfailsafe: {secret_file: %q}\n", policy, secret)
				c.start(s, c.tanist)
			}
			c.serves(c.seats...)
			for end := time.Now().Add(lasts); time.Now().Before(end) && !t.Failed(); {
				for range 1 + c.IntN(4) {
					c.fault()
					time.Sleep(time.Duration(c.IntN(3000)) * time.Millisecond) // the faults' spacing is random too
				}
				c.mend()
				c.serves(c.seats...)
				c.judge()
			}
		})
	}
}

// fault makes one fault.
func (c *chaos) fault() {
	c.Helper()
	s := c.victim()
	faults := []struct {
		name string
		do   func()
	}{
		{"killed, restarted", func() { c.again(s, syscall.SIGKILL) }},
		{"told to end, restarted", func() { c.again(s, syscall.SIGTERM) }},
		{"reloaded", func() { c.again(s, syscall.SIGUSR2) }},
		{"killed with another configuration", func() {
			s.lease = []string{"{profile: default}", "{profile: fast}", "{ttl: 15s, validity: 12s, renew_every: 1s, stop_budget: 1s}"}[c.IntN(3)]
			c.again(s, syscall.SIGKILL)
		}},
		{"frozen", func() { c.send(s, syscall.SIGSTOP) }},
		{"thawed", func() { c.send(s, syscall.SIGCONT) }},
		{"controller killed", func() { c.strike(s, false) }},
		{"guard killed", func() { c.strike(s, true) }},
		{"sidecar and guard killed", func() { c.send(s, syscall.SIGKILL); c.strike(s, true); c.again(s, syscall.SIGKILL) }},
		{"role key removed", func() { c.try(clientv3.OpDelete(c.key(election.ActiveKey))) }},
		{"planned move to it", func() { c.move(s.name) }},
		{"planned move to it, and killed", func() { c.move(s.name); c.again(s, syscall.SIGKILL) }},
		{"paused", func() { c.try(clientv3.OpPut(c.key(election.PauseKey), `{"by":"ana"}`)) }},
		{"paused by garbage", func() { c.try(clientv3.OpPut(c.key(election.PauseKey), "garbage")) }},
		{"resumed", func() { c.try(clientv3.OpDelete(c.key(election.PauseKey))) }},
		{"garbage for an heir", func() { c.try(clientv3.OpPut(c.key(election.HeirKey), "garbage")) }},
		{"garbage for a request", func() { c.try(clientv3.OpPut(c.key(election.RequestKey), "garbage")) }},
		{"store frozen", func() { c.freezeStore(true) }},
		{"store thawed", func() { c.freezeStore(false) }},
		{"store restarted", func() { c.freezeStore(false); c.store.stop(); c.store.start() }},
	}
	f := faults[c.IntN(len(faults))]
	if c.IntN(4) == 0 { // what most of the rules are for
		f.name, f.do = "frozen", func() { c.send(s, syscall.SIGSTOP) }
	}
	c.n++
	c.Logf("%s fault %d: %s: %s", time.Now().Format("05.000"), c.n, s.name, f.name)
	f.do()
}

// victim is any seat, or half of the time the active one, whose faults are the more dangerous.
func (c *chaos) victim() *seat {
	s, active := c.seats[c.IntN(len(c.seats))], c.IntN(2) == 0
	if !active {
		return s
	}
	if got := c.try(clientv3.OpGet(c.key(election.ActiveKey))).Get(); got != nil && len(got.Kvs) > 0 {
		if a, err := election.DecodeActive(got.Kvs[0].Value); err == nil {
			if i := slices.IndexFunc(c.seats, func(s *seat) bool { return s.name == a.Controller }); i >= 0 {
				return c.seats[i]
			}
		}
	}
	return s
}

func (c *chaos) key(name string) string { return "/tanist/e2e/" + name }

// try asks the store, which may be away.
func (c *chaos) try(op clientv3.Op) clientv3.OpResponse {
	answered := make(chan clientv3.OpResponse, 1)
	go func() {
		resp, _ := c.client.Do(c.Context(), op) // a store that is away carries it out later, or never
		answered <- resp
	}()
	select {
	case resp := <-answered:
		return resp
	case <-time.After(time.Second):
		return clientv3.OpResponse{}
	}
}

// move asks for a planned move.
func (c *chaos) move(to string) {
	got := c.try(clientv3.OpGet(c.key(election.ActiveKey))).Get()
	if got == nil || len(got.Kvs) == 0 {
		return
	}
	if a, err := election.DecodeActive(got.Kvs[0].Value); err == nil {
		r := election.Request{ID: strconv.Itoa(c.n), Op: election.OpSwitchover, To: to, By: "ana", Term: a.Term, For: time.Minute}
		c.try(clientv3.OpPut(c.key(election.RequestKey), string(r.Encode())))
		time.Sleep(time.Duration(c.IntN(300)) * time.Millisecond) // what follows hits any step of it
	}
}

// send sends a signal to a seat's sidecar, which may have ended because the store was away when it
// started.
func (c *chaos) send(s *seat, sig syscall.Signal) { _ = s.sidecar.Process.Signal(sig) }

// again ends a seat's sidecar by a signal, and starts the next.
func (c *chaos) again(s *seat, by syscall.Signal) {
	c.send(s, by)
	if by != syscall.SIGKILL {
		c.send(s, syscall.SIGCONT)
		select {
		case <-s.sidecar.Ended():
		case <-time.After(15 * time.Second):
			c.send(s, syscall.SIGKILL)
		}
	}
	<-s.sidecar.Ended()
	c.start(s, c.tanist)
}

// strike kills a seat's controller, or its guard.
func (c *chaos) strike(s *seat, guard bool) {
	if _, err := os.Stat(filepath.Join(s.dir, "stamps")); err != nil {
		return
	}
	pid, ago := c.last(s)
	if ago > 100*time.Millisecond {
		return
	}
	if guard {
		if pid = parent(c.T, pid); pid == 1 {
			return
		}
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(comm)) != "tanist-guard" {
			return
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func (c *chaos) freezeStore(freeze bool) {
	signal := syscall.SIGCONT
	if freeze {
		signal = syscall.SIGSTOP
	}
	_ = c.store.cmd.Process.Signal(signal)
	c.frozen = freeze
}

// mend ends all faults.
func (c *chaos) mend() {
	c.freezeStore(false)
	for _, s := range c.seats {
		select {
		case <-s.sidecar.Ended(): // it may exit if the store was away when it started
			c.start(s, c.tanist)
		default:
			c.send(s, syscall.SIGCONT)
		}
	}
	c.try(clientv3.OpDelete(c.key(election.PauseKey)))
	c.try(clientv3.OpDelete(c.key(election.RequestKey)))
}

// TestReadOnlyStateDirectoryIsRefused: a sidecar that cannot write its state directory is refused
// before it touches anything, whether another one runs or is gone: what it would leave to the next
// process could not be recorded. The other side takes over.
func TestReadOnlyStateDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can mount")
	}
	tanist := program(t, "tanist")
	c := newCourt(t, "ctl-a", "ctl-b")
	a, b := c.begin(tanist, tanist)
	refused := func(when string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "unshare", "-m", "/bin/sh", "-c", `mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$0" sidecar -c "$1/ctl.yml"`,
			tanist, a.dir)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 78 || !strings.Contains(string(out), "state_dir") || !strings.Contains(string(out), "read-only file system") {
			t.Errorf("%s: exit code %d: %s", when, code, out)
		}
	}
	refused("while another runs")
	c.servesOn()
	murder(a.sidecar)
	_ = a.sidecar.End(patience)
	refused("after the other was killed")
	c.serves(b)
	c.start(a, tanist)
	c.is(a, election.StateReady)
	c.judge()
}

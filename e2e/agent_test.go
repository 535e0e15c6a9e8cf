package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/consul"
	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/process/torture"
)

// crown makes a controller the holder in a store, and returns a function that publishes it as
// serving under the next term. The reigns do not end: of a takeover, agents see only the record.
func crown(t *testing.T, s election.Backend) func(url string) election.Term {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	snap, err := s.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := s.Grant(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	term := snap.Breadcrumb.Term + 1
	if err := s.Claim(ctx, election.Claim{
		Lease: lease, TermVersion: snap.TermVersion,
		Active:     election.Active{Controller: "ctl-a", Term: term, State: election.StateStarting},
		Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Validity: time.Second},
	}); err != nil {
		t.Fatal(err)
	}
	return func(url string) election.Term {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		term++
		if err := s.Publish(ctx, lease, election.Active{Controller: "ctl-a", Term: term, State: election.StateServing, URL: url}); err != nil {
			t.Fatal(err)
		}
		return term
	}
}

// daemon runs a command of the shipped binary, such as agentwatch, with a configuration file. It is told to end with the test.
func daemon(t *testing.T, command, config string) *testbed.Process {
	t.Helper()
	file := filepath.Join(testbed.Dir(t), command+".yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t, "tanist"), command, "-c", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // it has processes of its own to end
	p := testbed.Start(t, cmd)
	t.Cleanup(func() {
		_ = p.Process.Signal(syscall.SIGTERM)
		_ = p.End(patience)
	})
	return p
}

// onEachStore runs a test on etcd and on Consul, each with the part of a configuration file that leads to it.
func onEachStore(t *testing.T, test func(t *testing.T, s election.Backend, store, config string)) {
	t.Helper()
	t.Run("etcd", func(t *testing.T) {
		servers := etcdtest.Start(t, 1)
		s, err := etcd.Open(etcd.Config{Cluster: "orders", Endpoints: servers.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		test(t, s, "etcd", fmt.Sprintf("store: etcd\netcd: {endpoints: [%q]}", servers.Endpoints()[0]))
	})
	t.Run("consul", func(t *testing.T) {
		servers := consultest.Start(t, consultest.Options{})
		s, err := consul.Open(consul.Config{Cluster: "orders", Address: servers.Servers[0].URL()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		test(t, s, "consul", fmt.Sprintf("store: consul\nconsul: {address: %q}", servers.Servers[0].URL()))
	})
}

// TestAgentFollowsFast measures the shipped agentwatch: from before the request that makes the role
// key serving is sent until the agent's new process has run its first line. The stop of the old
// process is included. With TANIST_LONG: n=100, median 30 ms on etcd, 60 ms on Consul. The short
// form has a bound for busy machines.
func TestAgentFollowsFast(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	n, slack := 5, 5*time.Second
	if os.Getenv("TANIST_LONG") != "" {
		n, slack = 100, 0
	}
	onEachStore(t, func(t *testing.T, s election.Backend, store, config string) {
		median := map[string]time.Duration{"etcd": 30 * time.Millisecond, "consul": 60 * time.Millisecond}[store]
		stamps := filepath.Join(testbed.Dir(t), "stamps")
		publish := crown(t, s)
		p := daemon(t, "agentwatch", fmt.Sprintf(`kind: agent
cluster: orders
name: agt-1
%s
run:
  command: [bash, -c, 'echo "$EPOCHREALTIME $TANIST_TERM" >> "$1"; exec sleep 600', agent, %q]
retries: {count: 0}
listen: {http: ""}
`, config, stamps))
		// started returns when the agent was started for a term.
		started := func(term election.Term) time.Time {
			for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				b, _ := os.ReadFile(stamps)
				for line := range strings.Lines(string(b)) {
					f := strings.Fields(line)
					if len(f) == 2 && strings.HasSuffix(line, "\n") && f[1] == strconv.FormatUint(uint64(term), 10) {
						us, err := strconv.ParseInt(strings.NewReplacer(".", "", ",", "").Replace(f[0]), 10, 64)
						if err != nil {
							t.Fatalf("cannot read the stamp %q: %v", line, err)
						}
						return time.UnixMicro(us)
					}
				}
				if time.Now().After(deadline) {
					t.Fatalf("no agent for term %d; stamps:\n%s\nlog:\n%s", term, b, p.Text())
				}
			}
		}
		started(publish("http://127.0.0.1:1/"))
		var took []time.Duration
		for i := range n {
			time.Sleep(time.Duration(50+i%20*10) * time.Millisecond) // in step with no ticker
			sent := time.Now()
			term := publish(fmt.Sprintf("http://127.0.0.1:%d/", 2+i%2))
			took = append(took, started(term).Sub(sent))
		}
		slices.Sort(took)
		ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
		load, _ := os.ReadFile("/proc/loadavg")
		t.Logf("role key serving → new process of the agent started: min %s, p50 %s, p90 %s, max %s (n=%d, load %s)",
			ms(took[0]), ms(took[n/2]), ms(took[n*9/10]), ms(took[n-1]), n, strings.Fields(string(load))[0])
		if took[n/2] > median+slack {
			t.Errorf("median %v, want at most %v", took[n/2], median+slack)
		}
	})
}

// TestTortureAgentLeavesNothing: no process remains of an agent that ignores signals, forks daemons
// and leaves its session, whether the active changes or agentwatch is stopped or killed.
func TestTortureAgentLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	const children = 3
	for name, sig := range map[string]syscall.Signal{"told": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			cluster := "orders-" + name
			s, err := etcd.Open(etcd.Config{Cluster: cluster, Endpoints: servers.Endpoints()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			publish := crown(t, s)
			dir := testbed.Dir(t)
			command, err := json.Marshal(torture.Command(children, filepath.Join(dir, "ready")))
			if err != nil {
				t.Fatal(err)
			}
			base := fmt.Sprintf("agent-%d-%s", os.Getpid(), name)
			key, value, _ := strings.Cut(torture.Env(base+"-{{ .Active.Term }}"), "=")
			p := daemon(t, "agentwatch", fmt.Sprintf(`kind: agent
cluster: %s
name: agt-1
etcd: {endpoints: [%q]}
run:
  command: %s
  env: {%s: %q}
  stop_timeout: 100ms
retries: {count: 0}
listen: {http: ""}
`, cluster, servers.Endpoints()[0], command, key, value))
			until := func(what string, yes func() bool) {
				t.Helper()
				for deadline := time.Now().Add(patience); !yes(); time.Sleep(20 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("timed out after %v: %s; log:\n%s", patience, what, p.Text())
					}
				}
			}
			living := func(term election.Term) int { return len(torture.Living(fmt.Sprintf("%s-%d", base, term))) }
			first := publish("http://127.0.0.1:1/")
			until("the first tree runs", func() bool { return living(first) >= 4*children })
			second := publish("http://127.0.0.1:2/")
			until("the second tree runs", func() bool { return living(second) >= 4*children })
			if n := living(first); n != 0 {
				t.Errorf("%d processes of the first tree are left while the second runs", n)
			}
			p.Signal(sig)
			<-p.Ended()
			if n := living(second); sig == syscall.SIGTERM && n != 0 {
				t.Errorf("%d processes are left", n)
			}
			until("the second tree is gone", func() bool { return living(second) == 0 })
		})
	}
}

// TestAgentwatchDoesNotGrow: after many takeovers, the shipped agentwatch uses no more memory,
// descriptors and threads than after the first fifth of them. It runs real agents on a real store.
// TANIST_LONG: 2,000 takeovers; the short form has 150.
func TestAgentwatchDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	n := 150
	if os.Getenv("TANIST_LONG") != "" {
		n = 2000
	}
	servers := etcdtest.Start(t, 1)
	s, err := etcd.Open(etcd.Config{Cluster: "orders", Endpoints: servers.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	dir := testbed.Dir(t)
	stamps := filepath.Join(dir, "term")
	publish := crown(t, s)
	p := daemon(t, "agentwatch", fmt.Sprintf(`kind: agent
cluster: orders
name: agt-1
etcd: {endpoints: [%q]}
run:
  command: [sh, -c, 'echo "$TANIST_TERM" > "$1.new"; mv "$1.new" "$1"; exec sleep 600', agent, %q]
retries: {count: 0}
state_file: %s/state
listen: {http: ""}
`, servers.Endpoints()[0], stamps, dir))
	pid := p.Process.Pid
	count := func(what string) int {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, what))
		return len(entries)
	}
	var early, late, fds, threads int64 // maxima of the second fifth, and of the last
	for i := range n {
		// The ports of a few hundred controllers. None of them listens.
		term := publish(fmt.Sprintf("http://127.0.0.1:%d/", 1+i%300))
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if b, _ := os.ReadFile(stamps); strings.TrimSpace(string(b)) == strconv.FormatUint(uint64(term), 10) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no agent for term %d; log:\n%s", term, p.Text())
			}
		}
		anon := resident(t, pid, "RssAnon")
		switch i * 5 / n {
		case 1:
			early, fds, threads = max(early, anon), max(fds, int64(count("fd"))), max(threads, int64(count("task")))
		case 4:
			late = max(late, anon)
		}
		if i%(n/10) == n/10-1 {
			t.Logf("after %d takeovers: %.1f MiB allocated, %.1f MiB of its program, %d descriptors, %d threads",
				i+1, float64(anon)/(1<<20), float64(resident(t, pid, "RssFile"))/(1<<20), count("fd"), count("task"))
		}
	}
	if late > early+early/4+1<<20 {
		t.Errorf("allocated memory grew from %d to %d bytes", early, late)
	}
	for end := time.Now().Add(patience); int64(count("fd")) > fds+3 && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond) // a start that is under way ends, a leak does not
	}
	if n := int64(count("fd")); n > fds+3 {
		t.Errorf("descriptors grew from %d to %d", fds, n)
	}
	if n := int64(count("task")); n > threads+6 {
		t.Errorf("threads grew from %d to %d", threads, n)
	}
}

// resident returns the resident memory of a process of one kind, in bytes: RssAnon is what it
// allocated, RssFile is its program.
func resident(t *testing.T, pid int, kind string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), kind+":")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("process %d has no %s: %v", pid, kind, err)
	}
	return kib << 10
}

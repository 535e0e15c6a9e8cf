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
	"github.com/tanist/tanist/process/torture"
)

// crown makes a controller the holder in a store, and returns what publishes it as serving under the next term. The reigns do not end: what
// agents see of a takeover is the record.
func crown(t *testing.T, s election.Backend) func(url string) election.Term {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		term++
		if err := s.Publish(ctx, lease, election.Active{Controller: "ctl-a", Term: term, State: election.StateServing, URL: url}); err != nil {
			t.Fatal(err)
		}
		return term
	}
}

// TestAgentFollowsFast measures a whole agentwatch, the shipped binary: from before the request that makes the role key serving leaves the
// holder until the agent's new process has run its first line, the stop of the old process in between. With TANIST_LONG: n=100,
// median 30 ms on etcd, 60 ms on Consul. The short form has a bound for machines that are busy.
func TestAgentFollowsFast(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	n, slack := 5, 5*time.Second
	if os.Getenv("TANIST_LONG") != "" {
		n, slack = 100, 0
	}
	follow := func(t *testing.T, s election.Backend, config string, median time.Duration) {
		dir := t.TempDir()
		stamps := filepath.Join(dir, "stamps")
		file := filepath.Join(dir, "agt.yml")
		if err := os.WriteFile(file, fmt.Appendf(nil, `kind: agent
cluster: orders
name: agt-1
%s
run:
  command: [bash, -c, 'echo "$EPOCHREALTIME $TANIST_TERM" >> "$1"; exec sleep 600', agent, %q]
retries: {count: 0}
listen: {http: ""}
`, config, stamps), 0o600); err != nil {
			t.Fatal(err)
		}
		publish := crown(t, s)
		cmd := exec.Command(filepath.Join(bin, "tanist"), "agentwatch", "-c", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if log, err := os.Create(filepath.Join(dir, "log")); err == nil {
			cmd.Stdout, cmd.Stderr = log, log
			defer log.Close()
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}()
		// started returns when the agent was started for a term.
		started := func(term election.Term) time.Time {
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
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
					log, _ := os.ReadFile(filepath.Join(dir, "log"))
					t.Fatalf("no agent for term %d; stamps:\n%s\nlog:\n%s", term, b, log)
				}
			}
		}
		started(publish("http://127.0.0.1:1/"))
		var took []time.Duration
		for i := range n {
			time.Sleep(time.Duration(50+i%20*10) * time.Millisecond) // not in step with anything that ticks
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
			t.Errorf("median %v is beyond %v", took[n/2], median+slack)
		}
	}
	t.Run("etcd", func(t *testing.T) {
		servers := etcdtest.Start(t, 1)
		s, err := etcd.Open(etcd.Config{Cluster: "orders", Endpoints: servers.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		follow(t, s, fmt.Sprintf("store: etcd\netcd: {endpoints: [%q]}", servers.Endpoints()[0]), 30*time.Millisecond)
	})
	t.Run("consul", func(t *testing.T) {
		servers := consultest.Start(t, consultest.Options{})
		s, err := consul.Open(consul.Config{Cluster: "orders", Address: servers.Servers[0].URL()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		follow(t, s, fmt.Sprintf("store: consul\nconsul: {address: %q}", servers.Servers[0].URL()), 60*time.Millisecond)
	})
}

// TestTortureAgentLeavesNothing: an agent that ignores signals, forks daemons and leaves its session is gone to the last process when the
// active changes, and when its agentwatch is told to end or killed.
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
			dir := t.TempDir()
			command, err := json.Marshal(torture.Command(children, filepath.Join(dir, "ready")))
			if err != nil {
				t.Fatal(err)
			}
			base := fmt.Sprintf("agent-%d-%s", os.Getpid(), name)
			key, value, _ := strings.Cut(torture.Env(base+"-{{ .Active.Term }}"), "=")
			file := filepath.Join(dir, "agt.yml")
			if err := os.WriteFile(file, fmt.Appendf(nil, `kind: agent
cluster: %s
name: agt-1
etcd: {endpoints: [%q]}
run:
  command: %s
  env: {%s: %q}
  stop_timeout: 100ms
retries: {count: 0}
listen: {http: ""}
`, cluster, servers.Endpoints()[0], command, key, value), 0o600); err != nil {
				t.Fatal(err)
			}
			log, err := os.Create(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			cmd := exec.Command(filepath.Join(bin, "tanist"), "agentwatch", "-c", file)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			until := func(what string, yes func() bool) {
				t.Helper()
				for deadline := time.Now().Add(time.Minute); !yes(); time.Sleep(20 * time.Millisecond) {
					if time.Now().After(deadline) {
						text, _ := os.ReadFile(log.Name())
						t.Fatalf("not after a minute: %s; log:\n%s", what, text)
					}
				}
			}
			living := func(term election.Term) int { return len(torture.Living(fmt.Sprintf("%s-%d", base, term))) }
			first := publish("http://127.0.0.1:1/")
			until("the first tree is there", func() bool { return living(first) >= 4*children })
			second := publish("http://127.0.0.1:2/")
			until("the second tree is there", func() bool { return living(second) >= 4*children })
			if n := living(first); n != 0 {
				t.Errorf("%d processes of the first tree are left while the second runs", n)
			}
			_ = cmd.Process.Signal(sig)
			_ = cmd.Wait()
			if n := living(second); sig == syscall.SIGTERM && n != 0 {
				t.Errorf("%d processes are left", n)
			}
			until("the second tree is gone", func() bool { return living(second) == 0 })
		})
	}
}

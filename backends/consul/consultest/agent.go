package consultest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tanist/tanist/internal/testbed"
)

// Agent is one Consul process: a server, or the client agent of a host. Its methods may be called
// from any goroutine, one at a time.
type Agent struct {
	Name   string
	IP     string // its own loopback address
	Server bool

	cluster *Cluster
	dir     string
	log     *tail

	mu   sync.Mutex
	pid  int
	done chan struct{} // closed when the process is gone; nil before the first start
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const tailKept = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.b.Len() > 4*tailKept {
		rest := bytes.Clone(t.b.Bytes()[t.b.Len()-tailKept:])
		t.b.Reset()
		t.b.Write(rest)
	}
	return t.b.Write(p)
}

// Log returns the end of the agent's log.
func (a *Agent) Log() string {
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	b := a.log.b.Bytes()
	return string(b[max(0, len(b)-tailKept):])
}

// URL returns the base URL of the agent's API.
func (a *Agent) URL() string {
	if a.cluster.options.TLS {
		return "https://" + a.HTTP()
	}
	return "http://" + a.HTTP()
}

// HTTP returns host:port of the agent's API.
func (a *Agent) HTTP() string {
	if a.cluster.options.TLS {
		return net.JoinHostPort(a.IP, "8501")
	}
	return net.JoinHostPort(a.IP, "8500")
}

// DNS returns host:port of the agent's DNS.
func (a *Agent) DNS() string { return net.JoinHostPort(a.IP, "8600") }

// GRPC returns host:port of the agent's xDS interface, which Envoy uses.
func (a *Agent) GRPC() string {
	if a.cluster.options.TLS {
		return net.JoinHostPort(a.IP, "8503")
	}
	return net.JoinHostPort(a.IP, "8502")
}

// PID returns the process id, or the last one if the process has ended.
func (a *Agent) PID() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pid
}

// Start starts the process with its existing data. It returns before the agent responds; see
// [Cluster.Wait].
func (a *Agent) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done != nil {
		select {
		case <-a.done:
		default:
			return fmt.Errorf("cannot start %s: it runs", a.Name)
		}
	}
	cmd := exec.Command(a.cluster.binary, "agent", "-config-dir="+filepath.Join(a.dir, "config"))
	cmd.Stdout, cmd.Stderr = a.log, a.log
	cmd.Env = append(withoutConsul(os.Environ()), "GOMAXPROCS=2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, done := make(chan error), make(chan struct{})
	go func() {
		// The death signal is bound to the thread that starts the process, so that thread must
		// stay.
		runtime.LockOSThread()
		defer close(done)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cannot start %s: %v", a.Name, err)
	}
	a.pid, a.done = cmd.Process.Pid, done
	return nil
}

func withoutConsul(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, "CONSUL_") {
			kept = append(kept, e)
		}
	}
	return kept
}

// stopLimit bounds a graceful stop, which informs the whole cluster first.
const stopLimit = time.Minute

// Stop stops the process gracefully: a client agent leaves the cluster, and its catalog entry
// vanishes. It returns once the process has ended.
func (a *Agent) Stop() error { return a.end(syscall.SIGTERM) }

// Kill kills the process, like a crash, and returns once it has ended.
func (a *Agent) Kill() error { return a.end(syscall.SIGKILL) }

// Freeze stops the process from running, until [Agent.Thaw].
func (a *Agent) Freeze() error {
	if err := a.signal(0); err != nil {
		return err
	}
	return testbed.Freeze(a.PID())
}

// Thaw ends a freeze.
func (a *Agent) Thaw() error { return a.signal(syscall.SIGCONT) }

func (a *Agent) signal(sig syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		return errors.New("cannot signal " + a.Name + ": it was never started")
	}
	select {
	case <-a.done:
		return errors.New("cannot signal " + a.Name + ": it does not run")
	default:
		return syscall.Kill(a.pid, sig)
	}
}

func (a *Agent) end(sig syscall.Signal) error {
	a.mu.Lock()
	pid, done := a.pid, a.done
	a.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	default:
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot stop %s: %v", a.Name, err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(stopLimit):
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	<-done
	if sig == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("cannot stop %s gracefully within %v: killed it\n%s", a.Name, stopLimit, a.Log())
}

// configure writes the agent's configuration.
func (a *Agent) configure(join []string, servers int) error {
	o := a.cluster.options
	var b strings.Builder
	set := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	set("node_name = %q", a.Name)
	set("data_dir = %q", filepath.Join(a.dir, "data"))
	set("bind_addr = %q", a.IP)
	set("client_addr = %q", a.IP)
	set("retry_join = [%s]", quoted(join))
	set("retry_interval = %q", "500ms")
	set("log_level = %q", "INFO")
	set("disable_update_check = true")
	set("performance { raft_multiplier = 1 }")
	set("connect { enabled = true }")
	if a.Server {
		set("server = true")
		set("bootstrap_expect = %d", servers)
	}
	set("ports {")
	set("  serf_wan = -1")
	if o.TLS {
		set("  http = -1\n  https = 8501\n  grpc = -1\n  grpc_tls = 8503")
	} else {
		set("  grpc = 8502")
	}
	set("}")
	if o.TLS {
		cert, key, err := a.cluster.ca.issue(a.dir, a.Name, a.IP)
		if err != nil {
			return err
		}
		set("tls { defaults { ca_file = %q\n cert_file = %q\n key_file = %q\n verify_incoming = false\n verify_outgoing = true }", a.cluster.CAFile, cert, key)
		set(" internal_rpc { verify_incoming = true\n verify_server_hostname = true } }")
	}
	if o.ACL {
		set("acl { enabled = true\n default_policy = \"deny\"\n enable_token_persistence = true\n tokens { agent = %q", a.cluster.Token)
		if a.Server {
			set("initial_management = %q", a.cluster.Token)
		}
		set("} }")
	}
	dir := filepath.Join(a.dir, "config")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "10-agent.hcl"), []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "20-extra.hcl"), []byte(o.Config), 0o600)
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, ", ")
}

// freeAddress returns a loopback address on which no Consul runs.
func freeAddress(ctx context.Context, pick func() string) (string, error) {
	for range 100 {
		ip := pick()
		free := true
		for _, port := range []string{"8300", "8301", "8500", "8501", "8502", "8503", "8600"} {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(ip, port))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return ip, nil
		}
	}
	return "", errors.New("cannot find a loopback address for Consul")
}

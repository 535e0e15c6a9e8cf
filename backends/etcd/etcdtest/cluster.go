package etcdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/internal/testbed"
)

// startLimit bounds every wait for servers; it is generous because test machines are busy.
const startLimit = 2 * time.Minute

// Cluster is a running etcd cluster. Its methods fail the test if they can't do their work, and
// must be called from the test's goroutine.
type Cluster struct {
	binary  string
	flags   []string
	token   string
	tls     []string
	members []*member
}

type member struct {
	name         string
	dir          string
	client, peer string // host:port
	health       string // host:port of a listener without TLS
	log          *logBuffer
	cmd          *exec.Cmd
	done         chan struct{}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b.Bytes()
	if len(b) > 8000 {
		return string(b[:4000]) + "\n…\n" + string(b[len(b)-4000:])
	}
	return string(b)
}

// Option changes how a cluster is started.
type Option func(*Cluster)

// WithBinary starts this server instead of the pinned one.
func WithBinary(path string) Option { return func(c *Cluster) { c.binary = path } }

// WithFlags adds flags of the server.
func WithFlags(flags ...string) Option {
	return func(c *Cluster) { c.flags = append(c.flags, flags...) }
}

// WithTLS makes the members accept clients with TLS and certificates only. The arguments are files.
func WithTLS(ca, cert, key string) Option {
	return func(c *Cluster) {
		c.tls = []string{"--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key}
	}
}

// Start starts a cluster of n members and returns once it is healthy. It ends with the test.
func Start(tb testing.TB, n int, options ...Option) *Cluster {
	tb.Helper()
	c := &Cluster{token: fmt.Sprintf("t%d", time.Now().UnixNano())}
	for _, o := range options {
		o(c)
	}
	if c.binary == "" {
		c.binary = Binary(tb)
	}
	dir := tb.TempDir()
	ports := testbed.Addresses(tb, 3*n)
	for i := range n {
		name := fmt.Sprintf("m%d", i)
		c.members = append(c.members, &member{
			name: name, dir: filepath.Join(dir, name), client: ports[3*i], peer: ports[3*i+1], health: ports[3*i+2], log: &logBuffer{},
		})
	}
	tb.Cleanup(func() {
		for _, m := range c.members {
			m.kill()
		}
		if tb.Failed() {
			for _, m := range c.members {
				tb.Logf("the end of the log of %s:\n%s", m.name, m.log.tail())
			}
		}
	})
	for i := range c.members {
		c.start(tb, i)
	}
	c.WaitHealthy(tb)
	return c
}

func (c *Cluster) start(tb testing.TB, i int) {
	tb.Helper()
	m := c.members[i]
	var initial []string
	for _, m := range c.members {
		initial = append(initial, m.name+"=http://"+m.peer)
	}
	args := []string{
		"--name", m.name, "--data-dir", m.dir,
		"--listen-client-urls", c.url(m), "--advertise-client-urls", c.url(m), "--listen-metrics-urls", "http://" + m.health,
		"--listen-peer-urls", "http://" + m.peer, "--initial-advertise-peer-urls", "http://" + m.peer,
		"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new", "--initial-cluster-token", c.token,
		"--logger", "zap", "--log-level", "warn",
	}
	cmd := exec.CommandContext(context.WithoutCancel(tb.Context()), c.binary, slices.Concat(args, c.tls, c.flags)...)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(m.dir)} // none of the caller's ETCD_ variables
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("cannot start %s: %v", m.name, err)
	}
	m.cmd, m.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		if err := cmd.Wait(); err != nil { // killed, as a rule
			fmt.Fprintf(m.log, "it ended: %v\n", err)
		}
		close(done)
	}(m.done)
}

func (m *member) kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill() // or it has ended by itself
	<-m.done
	m.cmd = nil
}

// get fetches a path from the listener without TLS.
func (m *member) get(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.health+path, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

func (m *member) healthy(ctx context.Context) bool {
	_, err := m.get(ctx, "/health")
	return err == nil
}

// Metrics returns a member's metrics, in Prometheus' text format.
func (c *Cluster) Metrics(tb testing.TB, i int) string {
	tb.Helper()
	text, err := c.members[i].get(tb.Context(), "/metrics")
	if err != nil {
		tb.Fatalf("cannot get the metrics of %s: %v", c.members[i].name, err)
	}
	return text
}

// WaitHealthy waits until all running members are healthy. A frozen member never is.
func (c *Cluster) WaitHealthy(tb testing.TB) {
	tb.Helper()
	ctx := context.WithoutCancel(tb.Context()) // cleanups call it too
	end := time.Now().Add(startLimit)
	for _, m := range c.members {
		for m.cmd != nil && !m.healthy(ctx) {
			select {
			case <-m.done:
				tb.Fatalf("%s has ended:\n%s", m.name, m.log.tail())
			case <-time.After(20 * time.Millisecond):
			}
			if time.Now().After(end) {
				tb.Fatalf("%s is not healthy after %v:\n%s", m.name, startLimit, m.log.tail())
			}
		}
	}
}

// Len returns the number of members.
func (c *Cluster) Len() int { return len(c.members) }

// Proxy starts etcd's gRPC proxy for all members, and returns its URL and process once it responds.
// It ends with the test.
func (c *Cluster) Proxy(tb testing.TB) (url string, pid int) {
	tb.Helper()
	addr := testbed.Addresses(tb, 1)[0]
	log, done := &logBuffer{}, make(chan struct{})
	cmd := exec.CommandContext(context.WithoutCancel(tb.Context()), c.binary, "grpc-proxy", "start",
		"--endpoints="+strings.Join(c.Endpoints(), ","), "--listen-addr="+addr, "--data-dir="+tb.TempDir())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("cannot start the proxy: %v", err)
	}
	go func() {
		_ = cmd.Wait() // killed below
		close(done)
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if tb.Failed() {
			tb.Logf("the end of the log of the proxy:\n%s", log.tail())
		}
	})
	url = "http://" + addr
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	for {
		if _, err = client.Get(ctx, "x"); err == nil {
			return url, cmd.Process.Pid
		}
		select {
		case <-done:
			tb.Fatalf("the proxy has ended: %v", err)
		case <-ctx.Done():
			tb.Fatalf("the proxy does not answer: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// PID returns the process id of a running member.
func (c *Cluster) PID(i int) int { return c.members[i].cmd.Process.Pid }

// Addr returns host:port of a member, for clients.
func (c *Cluster) Addr(i int) string { return c.members[i].client }

func (c *Cluster) url(m *member) string {
	if c.tls != nil {
		return "https://" + m.client
	}
	return "http://" + m.client
}

// Endpoints returns the URLs of all members, for clients.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, m := range c.members {
		all = append(all, c.url(m))
	}
	return all
}

// Leader returns the leader of the etcd cluster.
func (c *Cluster) Leader(tb testing.TB) int {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	defer client.Close()
	for end := time.Now().Add(startLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for i, m := range c.members {
			if m.cmd == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Second)
			status, err := client.Status(ctx, c.url(m))
			cancel()
			if err == nil && status.Leader == status.Header.MemberId {
				return i
			}
		}
	}
	tb.Fatalf("there is no leader after %v", startLimit)
	return -1
}

// Kill kills a member.
func (c *Cluster) Kill(tb testing.TB, i int) {
	tb.Helper()
	c.members[i].kill()
}

// Freeze stops a member with SIGSTOP: its connections stay open, and it does not respond.
func (c *Cluster) Freeze(tb testing.TB, i int) {
	tb.Helper()
	if c.members[i].cmd == nil {
		tb.Fatalf("cannot freeze %s: it does not run", c.members[i].name)
	}
	if err := testbed.Freeze(c.PID(i)); err != nil {
		tb.Fatalf("cannot freeze %s: %v", c.members[i].name, err)
	}
}

// Thaw continues a frozen member.
func (c *Cluster) Thaw(tb testing.TB, i int) { c.signal(tb, i, syscall.SIGCONT) }

func (c *Cluster) signal(tb testing.TB, i int, sig syscall.Signal) {
	tb.Helper()
	if c.members[i].cmd == nil {
		tb.Fatalf("cannot send %v to %s: it does not run", sig, c.members[i].name)
	}
	if err := c.members[i].cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("cannot send %v to %s: %v", sig, c.members[i].name, err)
	}
}

// Restart starts a killed member again, with its data. It does not wait.
func (c *Cluster) Restart(tb testing.TB, i int) {
	tb.Helper()
	c.members[i].kill()
	c.start(tb, i)
}

// Ctl runs the pinned etcdctl against the cluster and returns what it printed.
func (c *Cluster) Ctl(tb testing.TB, args ...string) string {
	tb.Helper()
	bin := Ctl(tb)
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"--endpoints", strings.Join(c.Endpoints(), ",")}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

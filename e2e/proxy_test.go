package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/consul"
	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
)

// TestVirtualURLMovesFast measures the shipped `tanist haproxy` with a real HAProxy and a real store: from before the request that
// publishes the new active until a new connection to the virtual URL is answered by it. No reload. With TANIST_LONG: n=200, 10 ms in
// the median and at most 50 ms on etcd; the short form has a bound for machines that are busy.
func TestVirtualURLMovesFast(t *testing.T) {
	needs(t)
	n, slack := 10, 5*time.Second
	if os.Getenv("TANIST_LONG") != "" {
		n, slack = 200, 0
	}
	move := func(t *testing.T, s election.Backend, config string, median, worst time.Duration) {
		names := []string{"ctl-a", "ctl-b"}
		var urls []string
		for _, name := range names {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
			defer server.Close()
			urls = append(urls, server.URL)
		}
		front, rest := address(t), address(t)
		dir := t.TempDir()
		file := filepath.Join(dir, "proxy.yml")
		if err := os.WriteFile(file, fmt.Appendf(nil, `kind: haproxy
cluster: orders
%s
controllers: [%q, %q]
haproxy:
  config: %[4]s/haproxy.cfg
  bind: %[5]q
  admin_socket: %[4]s/admin.sock
  master_socket: %[4]s/master.sock
  spawn: true
listen: {http: %[6]q}
`, config, urls[0], urls[1], dir, front, rest), 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd := exec.Command(filepath.Join(bin, "tanist"), "haproxy", "-c", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			if t.Failed() {
				text, _ := os.ReadFile(log.Name())
				t.Logf("log:\n%s", text)
			}
		}()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
		defer client.CloseIdleConnections()
		get := func(url string) string {
			resp, err := client.Get(url)
			if err != nil {
				return ""
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body) // less than all is not the answer either
			return string(b)
		}
		routed := func(to int) {
			t.Helper()
			for deadline := time.Now().Add(time.Minute); get("http://"+front) != names[to]; time.Sleep(200 * time.Microsecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the virtual URL does not lead to %s", names[to])
				}
			}
		}
		publish := crown(t, s)
		publish(urls[0])
		routed(0)
		var took []time.Duration
		for i := range n {
			to := (i + 1) % 2
			began := time.Now()
			publish(urls[to])
			routed(to)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("publish → routed: min %v, p50 %v, p99 %v, max %v (n=%d)", took[0], took[n/2], took[n*99/100], took[n-1], n)
		if took[n/2] > median+slack || took[n-1] > worst+slack {
			t.Errorf("median %v, max %v; want at most %v and %v", took[n/2], took[n-1], median+slack, worst+slack)
		}
		if text := get("http://" + rest + "/metrics"); !strings.Contains(text, "\ntanist_proxy_reloads_total{cluster=\"orders\"} 0\n") {
			t.Errorf("HAProxy was reloaded, or it can't be told:\n%s", text)
		}
	}
	t.Run("etcd", func(t *testing.T) {
		servers := etcdtest.Start(t, 1)
		s, err := etcd.Open(etcd.Config{Cluster: "orders", Endpoints: servers.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		move(t, s, fmt.Sprintf("store: etcd\netcd: {endpoints: [%q]}", servers.Endpoints()[0]), 10*time.Millisecond, 50*time.Millisecond)
	})
	t.Run("consul", func(t *testing.T) {
		servers := consultest.Start(t, consultest.Options{})
		s, err := consul.Open(consul.Config{Cluster: "orders", Address: servers.Servers[0].URL()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		move(t, s, fmt.Sprintf("store: consul\nconsul: {address: %q}", servers.Servers[0].URL()), 50*time.Millisecond, time.Second)
	})
}

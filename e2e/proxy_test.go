package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// TestVirtualURLMovesFast measures the shipped `tanist haproxy` with a real HAProxy and a real
// store: from before the request that publishes the new active is sent until that controller
// answers a new connection to the virtual URL, without a reload. With TANIST_LONG: n=200, 10 ms in
// the median and at most 50 ms on etcd. The short form has a bound for busy machines.
func TestVirtualURLMovesFast(t *testing.T) {
	needs(t)
	n, slack := 10, 5*time.Second
	if os.Getenv("TANIST_LONG") != "" {
		n, slack = 200, 0
	}
	bounds := map[string][2]time.Duration{"etcd": {10 * time.Millisecond, 50 * time.Millisecond}, "consul": {50 * time.Millisecond, time.Second}}
	onEachStore(t, func(t *testing.T, s election.Backend, store, config string) {
		median, worst := bounds[store][0], bounds[store][1]
		names := []string{"ctl-a", "ctl-b"}
		var urls []string
		for _, name := range names {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
			defer server.Close()
			urls = append(urls, server.URL)
		}
		front, rest := address(t), address(t)
		dir := testbed.Dir(t)
		daemon(t, "haproxy", fmt.Sprintf(`kind: haproxy
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
`, config, urls[0], urls[1], dir, front, rest))
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
		defer client.CloseIdleConnections()
		get := func(url string) string {
			resp, err := client.Get(url)
			if err != nil {
				return ""
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body) // an incomplete response fails the comparison below
			return string(b)
		}
		routed := func(to int) {
			t.Helper()
			for deadline := time.Now().Add(patience); get("http://"+front) != names[to]; time.Sleep(200 * time.Microsecond) {
				if time.Now().After(deadline) {
					t.Fatalf("timed out: the virtual URL does not lead to %s", names[to])
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
			t.Errorf("the metrics do not show zero reloads of HAProxy:\n%s", text)
		}
	})
}

package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestServer(t *testing.T) {
	var active atomic.Bool
	s := New(Config{
		Answers: map[string]Answer{
			"/":       func() (bool, any) { return active.Load(), map[string]int{"term": 7} },
			"/active": func() (bool, any) { return active.Load(), map[string]int{"term": 7} },
		},
		Documents: map[string]Document{
			"/v1/cluster": func(context.Context) (any, error) { return map[string]string{"cluster": "orders"}, nil },
			"/v1/history": func(context.Context) (any, error) { return nil, errors.New("the store is away") },
		},
		Metrics: []prometheus.Collector{Gauges{
			Constant: map[string]string{"cluster": "orders"},
			Samples: func() []Sample {
				return []Sample{
					{Name: "tanist_term", Help: "The term.", Value: 7},
					{Name: "tanist_role", Help: "The role.", Labels: map[string]string{"role": "active"}, Value: 1},
					{Name: "tanist_lease_renewals_total", Help: "Renewals.", Counter: true, Labels: map[string]string{"result": "ok"}, Value: 3},
				}
			},
		}},
		AgentCheck: func() string { return "maint" },
	})
	web, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	check, err := s.ListenAgentCheck("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()

	do := func(method, path string) (int, string, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+web.String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(body)
	}
	for _, is := range []bool{false, true} {
		active.Store(is)
		want := map[bool]int{false: 503, true: 200}[is]
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			for _, path := range []string{"/", "/active"} {
				if status, _, _ := do(method, path); status != want {
					t.Errorf("active %v: %s %s answered %d", is, method, path, status)
				}
			}
		}
	}
	if _, _, body := do("GET", "/active"); body != "{\"term\":7}\n" {
		t.Errorf("got %q", body)
	}
	if status, kind, body := do("POST", "/active"); status != 405 || kind != "application/problem+json" {
		t.Errorf("POST: %d %s %s", status, kind, body)
	}
	if status, _, body := do("GET", "/v1/cluster"); status != 200 || body != "{\"cluster\":\"orders\"}\n" {
		t.Errorf("%d %s", status, body)
	}
	if status, kind, body := do("GET", "/v1/history"); status != 503 || kind != "application/problem+json" || !strings.Contains(body, "the store is away") {
		t.Errorf("%d %s %s", status, kind, body)
	}
	_, _, metrics := do("GET", "/metrics")
	for _, line := range []string{
		`tanist_term{cluster="orders"} 7`, `tanist_role{cluster="orders",role="active"} 1`, "# TYPE tanist_lease_renewals_total counter",
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("the metrics lack %q:\n%s", line, metrics)
		}
	}

	conn, err := net.Dial("tcp", check.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "maint\n" {
		t.Errorf("the agent-check said %q, %v", line, err)
	}

	if _, err := New(Config{}).Listen(web.String()); err == nil {
		t.Error("an address that is in use was taken")
	}
	cancel()
	<-ended
}

// serve runs a server on loopback until the test ends, and returns a function that queries it.
func serve(t *testing.T, cfg Config) func(method, path string) (status int, kind, body string) {
	t.Helper()
	s := New(cfg)
	at, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func(method, path string) (int, string, string) {
		t.Helper()
		return ask(t, http.DefaultClient, method, "http://"+at.String()+path)
	}
}

func ask(t *testing.T, client *http.Client, method, url string) (status int, kind, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
}

// TestEveryErrorIsAProblemDocument: even those that a router would word itself.
func TestEveryErrorIsAProblemDocument(t *testing.T) {
	do := serve(t, Config{
		Answers:   map[string]Answer{"/": func() (bool, any) { return true, nil }, "/active": func() (bool, any) { return true, nil }},
		Documents: map[string]Document{"/v1/cluster": func(context.Context) (any, error) { return 1, nil }, "/v1/bad": func(context.Context) (any, error) { return func() {}, nil }},
		Handlers:  map[string]http.Handler{"POST /v1/ask": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })},
		Metrics:   []prometheus.Collector{Gauges{Samples: func() []Sample { return nil }}},
	})
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/nosuch", 404},
		{"GET", "/active/nosuch", 404},
		{"GET", "/v1/ask", 404},
		{"POST", "/nosuch", 404},
		{"DELETE", "/active", 405},
		{"POST", "/v1/cluster", 405},
		{"POST", "/metrics", 405},
	} {
		status, kind, body := do(tc.method, tc.path)
		var problem struct {
			Title  string
			Status int
			Detail string
		}
		err := json.Unmarshal([]byte(body), &problem)
		if status != tc.status || kind != "application/problem+json" || err != nil || problem.Status != tc.status || problem.Title == "" || problem.Detail == "" {
			t.Errorf("%s %s: %d %s %s", tc.method, tc.path, status, kind, body)
		}
	}
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{"HEAD", "/v1/cluster", 200},
		{"GET", "/metrics", 200},
		{"POST", "/v1/ask", 204},
		{"GET", "/v1/bad", 500},
	} {
		if status, _, body := do(tc.method, tc.path); status != tc.status {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, status, body)
		}
	}
}

// TestFrozenProcessSaysNo: an answer is computed when it is requested, not when the state last
// changed.
func TestFrozenProcessSaysNo(t *testing.T) {
	var deadline atomic.Int64
	deadline.Store(time.Now().Add(time.Hour).UnixNano())
	do := serve(t, Config{Answers: map[string]Answer{"/active": func() (bool, any) { return time.Now().UnixNano() < deadline.Load(), nil }}})
	if status, _, _ := do("GET", "/active"); status != 200 {
		t.Errorf("a valid lease: %d", status)
	}
	deadline.Store(0) // it passed while nobody looked
	if status, _, _ := do("GET", "/active"); status != 503 {
		t.Errorf("a lease that is over: %d", status)
	}
}

// TestUnixSocket: the socket of a dead process is replaced, a socket in use is not, and a file is
// never removed.
func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "tanist.sock")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	s := New(Config{Answers: map[string]Answer{"/active": func() (bool, any) { return true, nil }}})
	if err := s.ListenUnix(path); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	if status, _, _ := ask(t, client, "GET", "http://tanist/active"); status != 200 {
		t.Errorf("through the socket: %d", status)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode: %v, %v", info.Mode(), err)
	}
	other := New(Config{})
	if err := other.ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket that is in use: %v", err)
	}
	cancel()
	running.Wait()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.ListenUnix(file); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
}

// TestAddressInUse: the words are for people, and say the address once.
func TestAddressInUse(t *testing.T) {
	s := New(Config{})
	at, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, listen := range []func(string) (net.Addr, error){New(Config{}).Listen, New(Config{}).ListenAgentCheck} {
		if _, err := listen(at.String()); err == nil || err.Error() != "cannot listen on "+at.String()+": address already in use" {
			t.Errorf("got %v", err)
		}
	}
	s.Close()
	again := New(Config{})
	if _, err := again.Listen(at.String()); err != nil {
		t.Errorf("Close did not let go: %v", err)
	}
	again.Close()
}

// TestSlowAgentCheck: a proxy that connects and stays silent blocks nobody.
func TestSlowAgentCheck(t *testing.T) {
	s := New(Config{AgentCheck: func() string { return "ready up" }})
	at, err := s.ListenAgentCheck("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	for range 50 {
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "ready up\n" {
		t.Errorf("the agent-check said %q, %v", line, err)
	}
	cancel()
	running.Wait()
}

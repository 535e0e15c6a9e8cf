package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tanist/tanist/election"
)

// TestManyAskAtOnce: with many clients, only a few documents are made at the same time; roles are
// answered meanwhile, and a document that hangs becomes a 503.
func TestManyAskAtOnce(t *testing.T) {
	var now, most atomic.Int64
	hang := make(chan struct{})
	s := New(Config{
		Answers: map[string]Answer{"/active": func() (bool, any) { return true, nil }},
		Documents: map[string]Document{"/v1/cluster": func(ctx context.Context) (any, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
				continue
			}
			select {
			case <-hang:
				return "ok", nil
			case <-ctx.Done():
				return nil, errors.New("the store is away")
			}
		}},
	})
	at, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	defer running.Wait()
	defer cancel()

	answers := make(chan int, 40)
	var asking sync.WaitGroup
	for range cap(answers) {
		asking.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.String()+"/v1/cluster", nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			answers <- resp.StatusCode
		})
	}
	first := <-answers // by now the places are taken, and some have waited for one in vain
	if first != http.StatusServiceUnavailable {
		t.Errorf("a document that hangs answered %d", first)
	}
	if status, _, _ := ask(t, http.DefaultClient, "GET", "http://"+at.String()+"/active"); status != http.StatusOK {
		t.Errorf("a role answered %d while documents hang", status)
	}
	close(hang)
	asking.Wait()
	if n := most.Load(); n != documentsAtOnce {
		t.Errorf("%d documents were made at once, want %d", n, documentsAtOnce)
	}
}

// running returns the address of a server that runs until the test is over.
func running(t *testing.T, cfg Config) string {
	t.Helper()
	s := New(cfg)
	at, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	return at.String()
}

// TestTooMuchIsRefused: an oversized body, announced or not, and endless headers.
func TestTooMuchIsRefused(t *testing.T) {
	var read atomic.Int64
	at := running(t, Config{Handlers: map[string]http.Handler{
		"POST /v1/failsafe": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			read.Store(n)
			if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
				Problem(w, http.StatusRequestEntityTooLarge, "too long")
			}
		}),
	}})
	long := strings.Repeat("x", 1<<20)
	for name, body := range map[string]io.Reader{"told": strings.NewReader(long), "streamed": io.MultiReader(strings.NewReader(long))} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+at+"/v1/failsafe", body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			continue // it was cut off while it sent, which is as good
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	if n := read.Load(); n > maxBody {
		t.Errorf("%d bytes were read of a body, want %d at most", n, maxBody)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", long)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("headers without end: %d", resp.StatusCode)
		}
	}
}

// TestConnectionsAreLimited: connections beyond the limit wait until another one ends.
func TestConnectionsAreLimited(t *testing.T) {
	at := running(t, Config{Answers: map[string]Answer{"/active": func() (bool, any) { return true, nil }}})
	var idle []net.Conn
	begun := time.Now()
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for range webAtOnce {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	// All of them are accepted once the last one is answered.
	if _, err := io.WriteString(idle[webAtOnce-1], "GET /active HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(idle[webAtOnce-1]).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		c, err := net.Dial("tcp", at)
		if err != nil {
			answered <- err
			return
		}
		defer c.Close()
		_, err = io.WriteString(c, "GET /active HTTP/1.1\r\nHost: x\r\n\r\n")
		if err == nil {
			_, err = bufio.NewReader(c).ReadString('\n')
		}
		answered <- err
	}()
	select {
	case err := <-answered:
		if time.Since(begun) >= New(Config{}).http.ReadHeaderTimeout {
			t.Skip("NOT TESTED: on this loaded machine the server has given up the first connections before the last one was made")
		}
		t.Fatalf("one more than %d was answered: %v", webAtOnce, err)
	case <-time.After(100 * time.Millisecond):
	}
	idle[0].Close()
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it was not answered when there was room again")
	}
}

// TestNobodyIsWaitedForWithoutEnd: every step of a request and of a response has a timeout.
func TestNobodyIsWaitedForWithoutEnd(t *testing.T) {
	s := New(Config{})
	for what, limit := range map[string]time.Duration{
		"headers": s.http.ReadHeaderTimeout, "request": s.http.ReadTimeout, "answer": s.http.WriteTimeout, "next request": s.http.IdleTimeout,
	} {
		if limit <= 0 || limit > time.Minute {
			t.Errorf("%s: %v", what, limit)
		}
	}
}

// FuzzRequest: any input gets an HTTP response whose body matches its type, and only the handler
// for writes sees a method other than GET, HEAD and OPTIONS.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"HEAD /active HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS /active HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/failsafe HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"DELETE /v1/cluster HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /metrics HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n",
		"GET //active/../v1/cluster?x=%00 HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n",
		"PUT /v1/failsafe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	s := New(Config{
		Answers:   map[string]Answer{"/": func() (bool, any) { return true, "yes" }, "/active": func() (bool, any) { return false, nil }},
		Documents: map[string]Document{"/v1/cluster": func(context.Context) (any, error) { return map[string]int{"term": 7}, nil }},
		Handlers: map[string]http.Handler{"POST /v1/failsafe": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				panic(r.Method)
			}
			var v any
			if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
				Problem(w, http.StatusBadRequest, err.Error())
			}
		})},
		Metrics: []prometheus.Collector{Gauges{Samples: func() []Sample { return []Sample{{Name: "up", Help: "Up.", Value: 1}} }}},
	})
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, req)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("status %d", w.Code)
		}
		switch w.Header().Get("Content-Type") {
		case "application/json", "application/problem+json":
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("%d has no JSON: %q", w.Code, w.Body)
			}
		}
	})
}

// TestBusySocketIsNotStale: a process that is too busy to accept keeps its socket.
func TestBusySocketIsNotStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for { // fill its backlog
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := New(Config{}).ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another process may") {
		t.Errorf("got %v", err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the socket was replaced: %v", err)
	}
}

// TestSocketGoes: a server that ends leaves neither its socket nor anything else.
func TestSocketGoes(t *testing.T) {
	dir := t.TempDir()
	s := New(Config{})
	if err := s.ListenUnix(filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ctx)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// TestDocumentIsSignedForItsAsker: with the cluster's secret, for a nonce, and for its path only.
func TestDocumentIsSignedForItsAsker(t *testing.T) {
	secret := election.Secret("0123456789abcdef")
	doc := func(context.Context) (any, error) { return map[string]string{"cluster": "orders"}, nil }
	ask := func(secret election.Secret, nonce string) (body []byte, signature string) {
		t.Helper()
		s := New(Config{Documents: map[string]Document{"/v1/cluster": doc}, Secret: secret})
		r := httptest.NewRequest(http.MethodGet, "/v1/cluster", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.UnixAddr{Name: "s", Net: "unix"}))
		if nonce != "" {
			r.Header.Set(election.NonceHeader, nonce)
		}
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, r)
		return w.Body.Bytes(), w.Result().Header.Get(election.SignatureHeader)
	}
	body, signature := ask(secret, "n1")
	if !secret.Answered("/v1/cluster", "n1", body, signature) || secret.Answered("/v1/cluster", "n2", body, signature) || secret.Answered("/v1/status", "n1", body, signature) {
		t.Errorf("%q is signed with %q", body, signature)
	}
	for name, got := range map[string]func() ([]byte, string){
		"no nonce":     func() ([]byte, string) { return ask(secret, "") },
		"a long nonce": func() ([]byte, string) { return ask(secret, strings.Repeat("n", 1000)) },
		"no secret":    func() ([]byte, string) { return ask(nil, "n1") },
	} {
		if _, signature := got(); signature != "" {
			t.Errorf("%s: signed with %q", name, signature)
		}
	}
}

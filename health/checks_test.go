package health

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // net/http takes no other
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	ghealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// closedAddr returns an address on which nobody listens.
func closedAddr(t testing.TB) string {
	ln := listen(t)
	ln.Close()
	return ln.Addr().String()
}

func wantErr(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("error %v", err)
	case part != "" && (err == nil || !strings.Contains(err.Error(), part)):
		t.Errorf("error %v, want one with %q", err, part)
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

type ask = func(context.Context) error

func TestTCP(t *testing.T) {
	open := must[ask](t)(TCP(listen(t).Addr().String(), nil))
	wantErr(t, open(t.Context()), "")
	refused := must[ask](t)(TCP(closedAddr(t), nil))
	wantErr(t, refused(t.Context()), "connection refused")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	wantErr(t, open(ctx), "no answer in time")
	for _, bad := range []string{"", "8080", ":8080", "a:", "a:http", "a:0"} {
		if _, err := TCP(bad, nil); err == nil {
			t.Errorf("TCP(%q) is accepted", bad)
		}
	}
}

func TestWaitPortSeesThePortOpen(t *testing.T) {
	addr := closedAddr(t)
	done := make(chan error, 1)
	go func() { done <- WaitPort(t.Context(), addr) }()
	select {
	case err := <-done:
		t.Fatalf("the port is closed and the wait ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("another program took the port: %v", err)
	}
	defer ln.Close()
	wantErr(t, <-done, "")
}

func TestHTTP(t *testing.T) {
	var conns atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "fine") })
	mux.HandleFunc("/503", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/503", http.StatusFound) })
	mux.HandleFunc("/host", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "orders.example" || r.Header.Get("X-Probe") != "1" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/head", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.UserAgent() != "mine" {
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/half", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, "begun")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	for _, tc := range []struct {
		path string
		o    HTTPOptions
		err  string
	}{
		{"/ok", HTTPOptions{}, ""},
		{"/503", HTTPOptions{}, "status 503"},
		{"/503", HTTPOptions{Expect: []int{503}}, ""},
		{"/ok", HTTPOptions{Expect: []int{204}}, "status 200"},
		{"/moved", HTTPOptions{}, ""},
		{"/none", HTTPOptions{}, "status 404"},
		{"/host", HTTPOptions{Header: http.Header{"Host": {"orders.example"}, "x-probe": {"1"}}}, ""},
		{"/ok", HTTPOptions{Body: "fine"}, ""},
		{"/ok", HTTPOptions{Body: "ready"}, `status 200 OK, and "ready" is not in the response`},
		{"/head", HTTPOptions{Method: "HEAD", Header: http.Header{"User-Agent": {"mine"}}}, ""},
		{"/head", HTTPOptions{}, "status 405"},
		{"/hang", HTTPOptions{}, "no answer in time"},
		{"/half", HTTPOptions{}, "no answer in time"},
		{"/endless", HTTPOptions{}, ""},
	} {
		t.Run(tc.path+tc.err, func(t *testing.T) {
			d := time.Minute
			if strings.Contains(tc.err, "in time") {
				d = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			wantErr(t, must[ask](t)(HTTP(srv.URL+tc.path, tc.o))(ctx), tc.err)
		})
	}

	before := conns.Load()
	check := must[ask](t)(HTTP(srv.URL+"/ok", HTTPOptions{}))
	for range 3 {
		wantErr(t, check(t.Context()), "")
	}
	if n := conns.Load() - before; n != 3 {
		t.Errorf("%d connections for 3 runs, want a new one each", n)
	}
	wantErr(t, must[ask](t)(HTTP("http://u:secret@"+closedAddr(t), HTTPOptions{}))(t.Context()), "connection refused")
	if err := must[ask](t)(HTTP("http://u:secret@"+closedAddr(t), HTTPOptions{}))(t.Context()); strings.Contains(err.Error(), "secret") {
		t.Errorf("the password is in %v", err)
	}
	for _, bad := range []string{"", "localhost:80", "ftp://a/", "http://", "http://a b/"} {
		if _, err := HTTP(bad, HTTPOptions{}); err == nil {
			t.Errorf("HTTP(%q) is accepted", bad)
		}
	}
}

// certified starts a server with a certificate for example.com, and returns a file that holds it.
func certified(t *testing.T, handler http.Handler) (srv *httptest.Server, file string) {
	t.Helper()
	srv = httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of net/http
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	file = filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, file, srv.Certificate().Raw)
	return srv, file
}

func writePEM(t *testing.T, file string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHTTPS(t *testing.T) {
	srv, ca := certified(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	none := filepath.Join(t.TempDir(), "none.pem")
	if err := os.WriteFile(none, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		o    TLSOptions
		err  string
	}{
		{"an unknown authority", TLSOptions{}, "x509"},
		{"its authority", TLSOptions{CAFile: ca}, ""},
		{"the name in it", TLSOptions{CAFile: ca, ServerName: "example.com"}, ""},
		{"another name", TLSOptions{CAFile: ca, ServerName: "orders.example.org"}, "not orders.example.org"},
		{"any", TLSOptions{Insecure: true}, ""},
		{"a file that is away", TLSOptions{CAFile: "/no/such/file"}, "no such file"},
		{"a file without a certificate", TLSOptions{CAFile: none}, "holds no certificate"},
		{"a certificate that is away", TLSOptions{Insecure: true, CertFile: "/no/such", KeyFile: "/no/such"}, "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantErr(t, must[ask](t)(HTTP(srv.URL, HTTPOptions{TLS: tc.o}))(t.Context()), tc.err)
			wantErr(t, must[ask](t)(TCP(srv.Listener.Addr().String(), &tc.o))(t.Context()), tc.err)
		})
	}
	if _, err := HTTP(srv.URL, HTTPOptions{TLS: TLSOptions{CertFile: ca}}); err == nil {
		t.Error("a certificate without its key is accepted")
	}
	if _, err := TCP(srv.Listener.Addr().String(), &TLSOptions{Insecure: true, CAFile: ca}); err == nil {
		t.Error("an authority that has no effect is accepted")
	}
}

// A check reads its files each time: a rotated authority counts at once.
func TestRotatedAuthorityIsReadAgain(t *testing.T) {
	srv, ca := certified(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	check := must[ask](t)(HTTP(srv.URL, HTTPOptions{TLS: TLSOptions{CAFile: ca}}))
	wantErr(t, check(t.Context()), "")
	if err := os.WriteFile(ca, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantErr(t, check(t.Context()), "holds no certificate")
	writePEM(t, ca, srv.Certificate().Raw)
	wantErr(t, check(t.Context()), "")
}

func TestGRPCOverTLS(t *testing.T) {
	front, ca := certified(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ln := listen(t)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: front.TLS.Certificates})))
	healthpb.RegisterHealthServer(srv, ghealth.NewServer())
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()
	addr := ln.Addr().String()
	wantErr(t, must[ask](t)(GRPC(addr, "", &TLSOptions{CAFile: ca}))(t.Context()), "")
	wantErr(t, must[ask](t)(GRPC(addr, "", &TLSOptions{Insecure: true}))(t.Context()), "")
	wantErr(t, must[ask](t)(GRPC(addr, "", &TLSOptions{}))(t.Context()), "x509")
	wantErr(t, must[ask](t)(GRPC(addr, "", &TLSOptions{CAFile: "/no/such/file"}))(t.Context()), "no such file")
}

func TestExec(t *testing.T) {
	for _, tc := range []struct {
		name    string
		command []string
		o       ExecOptions
		err     string
	}{
		{"well", []string{"true"}, ExecOptions{}, ""},
		{"not well", []string{"false"}, ExecOptions{}, "exit status 1"},
		{"reports why", []string{"sh", "-c", "echo the disk is full; echo more; exit 3"}, ExecOptions{}, "exit status 3: the disk is full"},
		{"no shell", []string{"echo", "$(false)", ";", "false"}, ExecOptions{}, ""},
		{"killed", []string{"sh", "-c", "kill -9 $$"}, ExecOptions{}, "signal: killed"},
		{"no such command", []string{"/no/such/command"}, ExecOptions{}, "cannot run /no/such/command: no such file"},
		{"env", []string{"sh", "-c", `test "$A" = b`}, ExecOptions{Env: []string{"A=b"}}, ""},
		{"much output", []string{"sh", "-c", "head -c 10000000 /dev/zero; exit 1"}, ExecOptions{}, "exit status 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantErr(t, must[ask](t)(Exec(tc.command, tc.o))(t.Context()), tc.err)
		})
	}
	if _, err := Exec(nil, ExecOptions{}); err == nil {
		t.Error("an empty command is accepted")
	}
}

// pidIn waits until path holds a process id.
func pidIn(t *testing.T, path string) int {
	t.Helper()
	for {
		b, _ := os.ReadFile(path)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && strings.HasSuffix(string(b), "\n") {
			return pid
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("nothing in %s", path)
		case <-time.After(time.Millisecond):
		}
	}
}

// gone waits until no process has pid (a zombie that init has not reaped counts as gone).
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return
		}
		if _, rest, ok := strings.Cut(string(b), ") "); ok && strings.HasPrefix(rest, "Z") {
			return
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d is still there: %.60s", pid, b)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestExecTimeoutKillsTheWholeGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	check := must[ask](t)(Exec([]string{"sh", "-c", `trap "" TERM; sleep 1000 & echo $! >` + file + `; wait`}, ExecOptions{}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- check(ctx) }()
	pid := pidIn(t, file)
	cancel()
	wantErr(t, <-done, "sh was killed")
	gone(t, pid)
}

func TestExecLeavesNothingOfTheGroupBehind(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	check := must[ask](t)(Exec([]string{"sh", "-c", `sleep 1000 & echo $! >` + file}, ExecOptions{}))
	wantErr(t, check(t.Context()), "")
	gone(t, pidIn(t, file))
}

func TestExecIsNotHeldUpByAnOpenOutput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	check := must[ask](t)(Exec([]string{"sh", "-c", `setsid sleep 1000 & echo $! >` + file + `; while ! grep -q sleep /proc/$!/cmdline; do :; done`}, ExecOptions{}))
	began := time.Now()
	wantErr(t, check(t.Context()), "")
	if d := time.Since(began); d > 60*time.Second {
		t.Errorf("took %v", d)
	}
	_ = syscall.Kill(pidIn(t, file), syscall.SIGKILL)
}

func TestGRPC(t *testing.T) {
	ln := listen(t)
	srv := grpc.NewServer()
	hs := ghealth.NewServer()
	healthpb.RegisterHealthServer(srv, hs)
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()
	addr := ln.Addr().String()
	hs.SetServingStatus("orders", healthpb.HealthCheckResponse_NOT_SERVING)
	whole := must[ask](t)(GRPC(addr, "", nil))
	wantErr(t, whole(t.Context()), "")
	wantErr(t, must[ask](t)(GRPC(addr, "orders", nil))(t.Context()), "status NOT_SERVING")
	wantErr(t, must[ask](t)(GRPC(addr, "none", nil))(t.Context()), `does not know the service "none"`)
	wantErr(t, must[ask](t)(GRPC(closedAddr(t), "", nil))(t.Context()), "connection refused")

	other := listen(t)
	plain := grpc.NewServer()
	go func() { _ = plain.Serve(other) }()
	defer plain.Stop()
	wantErr(t, must[ask](t)(GRPC(other.Addr().String(), "", nil))(t.Context()), "does not speak the gRPC health protocol")

	silent := listen(t) // accepts (the backlog does) and never answers
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	wantErr(t, must[ask](t)(GRPC(silent.Addr().String(), "", nil))(ctx), "deadline exceeded")
}

func TestPostgresSaysWhatIsWrongWithoutTheSecret(t *testing.T) {
	dir := t.TempDir()
	dsn := func(text string) string {
		p := filepath.Join(dir, "dsn")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	run := func(text string) error {
		c := must[Check](t)(Postgres("repository", dsn(text), nil))
		defer c.Close()
		return c.Run(t.Context())
	}
	for _, tc := range []struct{ text, err string }{
		{"postgres://u:s3cret@host:notaport/db", "does not hold a PostgreSQL DSN"},
		{"user=u password='s3cret", "does not hold a PostgreSQL DSN"},
		{"postgres://u:s3cret@" + closedAddr(t) + "/db?sslmode=disable\n", "connection refused"},
	} {
		err := run(tc.text)
		wantErr(t, err, tc.err)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the secret is in %v", err)
		}
	}
	c := must[Check](t)(Postgres("repository", filepath.Join(dir, "none"), nil))
	wantErr(t, c.Run(t.Context()), "no such file")
}

// BenchmarkGRPC and the other benchmarks show what one run of a check costs the sidecar.
func BenchmarkGRPC(b *testing.B) {
	ln := listen(b)
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, ghealth.NewServer())
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()
	benchCheck(b, must[ask](b)(GRPC(ln.Addr().String(), "", nil)))
}

func BenchmarkHTTP(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	benchCheck(b, must[ask](b)(HTTP(srv.URL, HTTPOptions{})))
}

func BenchmarkTCP(b *testing.B) {
	ln := listen(b)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	benchCheck(b, must[ask](b)(TCP(ln.Addr().String(), nil)))
}

func BenchmarkExec(b *testing.B) { benchCheck(b, must[ask](b)(Exec([]string{"true"}, ExecOptions{}))) }

func benchCheck(b *testing.B, check ask) {
	b.ReportAllocs()
	for b.Loop() {
		if err := check(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

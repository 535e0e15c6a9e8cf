package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// Answer is the answer to a question about a role or a state: yes or no, and a document that says more.
type Answer func() (yes bool, more any)

// Document returns what is shown at a path. An error becomes a 503.
type Document func(ctx context.Context) (any, error)

// Config is what a server shows.
type Config struct {
	// Answers, by path ("/active"). They must not block.
	Answers map[string]Answer
	// Documents, by path ("/v1/cluster"). They get a context of a few seconds.
	Documents map[string]Document
	// Handlers, by pattern of [http.ServeMux] ("POST /v1/failsafe").
	Handlers map[string]http.Handler
	// Metrics are collected for /metrics.
	Metrics []prometheus.Collector
	// AgentCheck returns HAProxy's agent-check words ("ready up"). It must not block.
	AgentCheck func() string
	Log        zerolog.Logger
}

// Server answers. Make it with New, give it listeners with Listen and ListenAgentCheck, and Run it.
type Server struct {
	cfg    Config
	http   http.Server
	web    []net.Listener
	checks []net.Listener
}

const (
	documentTimeout = 3 * time.Second
	// documentsAtOnce bounds what many who ask can make a process ask of the store.
	documentsAtOnce = 4
	checkTimeout    = 2 * time.Second
	shutdownTimeout = 2 * time.Second
)

// New makes a server that does not listen yet.
func New(cfg Config) *Server {
	mux := http.NewServeMux()
	for path, answer := range cfg.Answers {
		mux.Handle(exact(path), answerHandler(answer))
	}
	places := make(chan struct{}, documentsAtOnce)
	for path, document := range cfg.Documents {
		mux.Handle(path, documentHandler(document, places))
	}
	for pattern, handler := range cfg.Handlers {
		mux.Handle(pattern, handler)
	}
	if len(cfg.Metrics) > 0 {
		registry := prometheus.NewRegistry()
		registry.MustRegister(cfg.Metrics...)
		mux.Handle("/metrics", reading(promhttp.HandlerFor(registry, promhttp.HandlerOpts{})))
	}
	// What is not here is told like every other error.
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		Problem(w, http.StatusNotFound, fmt.Sprintf("there is nothing at %.200q for %s", r.URL.Path, r.Method))
	})
	s := &Server{cfg: cfg}
	s.http = http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	return s
}

// exact makes a pattern match its own path only.
func exact(path string) string {
	if path == "/" {
		return "/{$}"
	}
	return path
}

// Listen makes the server listen on a TCP address. The address is in use from here on, so that a mistake is found before
// anything is started.
func (s *Server) Listen(address string) (net.Addr, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %v", address, plain(err))
	}
	s.web = append(s.web, l)
	return l.Addr(), nil
}

// plain returns what is wrong, without the operation and the address that are told anyway.
func plain(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// ListenAgentCheck makes the server answer HAProxy's agent-check on a TCP address.
func (s *Server) ListenAgentCheck(address string) (net.Addr, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %v", address, plain(err))
	}
	s.checks = append(s.checks, l)
	return l.Addr(), nil
}

// Run serves until ctx ends, and returns when nobody is served any more. Call it once.
func (s *Server) Run(ctx context.Context) {
	var serving sync.WaitGroup
	for _, l := range s.web {
		serving.Go(func() {
			if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.cfg.Log.Error().Err(err).Str("address", l.Addr().String()).Msg("the server ended")
			}
		})
	}
	for _, l := range s.checks {
		serving.Go(func() { s.agentChecks(l) })
	}
	<-ctx.Done()
	for _, l := range s.checks {
		_ = l.Close() // only read side effects: agentChecks ends
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(ending); err != nil {
		_ = s.http.Close()
	}
	serving.Wait()
}

// Close lets go of the listeners of a server that was never run.
func (s *Server) Close() {
	for _, l := range append(s.web, s.checks...) {
		_ = l.Close()
	}
}

// agentChecks answers each connection with one line.
func (s *Server) agentChecks(l net.Listener) {
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		answering.Go(func() {
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(checkTimeout)); err == nil {
				_, _ = io.WriteString(conn, s.cfg.AgentCheck()+"\n") // a proxy that has gone asks again
			}
		})
	}
}

func answerHandler(answer Answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
		default:
			w.Header().Set("Allow", "GET, HEAD, OPTIONS")
			Problem(w, http.StatusMethodNotAllowed, "only GET, HEAD and OPTIONS are answered here")
			return
		}
		yes, more := answer()
		status := http.StatusOK
		if !yes {
			status = http.StatusServiceUnavailable
		}
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet {
			w.WriteHeader(status)
			return
		}
		write(w, status, "application/json", more)
	})
}

// reading lets only requests pass that change nothing.
func reading(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			Problem(w, http.StatusMethodNotAllowed, "only GET and HEAD are answered here")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// documentHandler takes one of the places while it works.
func documentHandler(document Document, places chan struct{}) http.Handler {
	return reading(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), documentTimeout)
		defer cancel()
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-ctx.Done():
			w.Header().Set("Retry-After", "1")
			Problem(w, http.StatusServiceUnavailable, "too many ask at once: ask again")
			return
		}
		doc, err := document(ctx)
		if err != nil {
			Problem(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		write(w, http.StatusOK, "application/json", doc)
	}))
}

// Problem answers with an RFC 9457 problem document.
func Problem(w http.ResponseWriter, status int, detail string) {
	write(w, status, "application/problem+json", map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail,
	})
}

func write(w http.ResponseWriter, status int, kind string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "cannot say this in JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // whoever asked has gone
}

// ListenUnix makes the server listen on a Unix socket that only its own user and group may use. A socket that nobody
// listens on is replaced; one that is in use, or that we may not use, is an error.
func (s *Server) ListenUnix(path string) error {
	fail := func(err error) error { return fmt.Errorf("cannot listen on %s: %v", path, plain(err)) }
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fail(err)
	case info.Mode()&os.ModeSocket == 0:
		return fail(errors.New("there is a file that is not a socket"))
	default:
		dialer := net.Dialer{Timeout: time.Second}
		conn, err := dialer.DialContext(context.Background(), "unix", path)
		if err == nil {
			_ = conn.Close()
			return fail(errors.New("another process does"))
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
			// A process that is frozen or busy does not answer, and one of another user is not ours to ask: neither is stale.
			return fail(fmt.Errorf("another process may, and can't be asked (%v)", plain(err)))
		}
	}
	// The socket gets its name when it has its permissions, so that there is no moment in which others can connect. The name is
	// taken over in one step.
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(private) //nolint:errcheck // it is gone if all went well
	hidden := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(hidden, 0o660); err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return errors.Join(fail(err), l.Close(), os.Remove(hidden))
	}
	s.web = append(s.web, &named{Listener: l, path: path})
	return nil
}

// named removes its socket when it is closed.
type named struct {
	net.Listener
	path   string
	remove sync.Once
}

// Close implements [net.Listener]. The name goes first, and once: as long as we listen it is ours, and later it may be another's.
func (n *named) Close() error {
	n.remove.Do(func() { _ = os.Remove(n.path) }) // it may have been removed by hand
	return n.Listener.Close()
}

package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"

	"github.com/tanist/tanist/election"
)

// Answer is the response to a question about a role or a state: yes or no, and a document with
// details.
type Answer func() (yes bool, more any)

// Document returns the document for a path. An error becomes a 503.
type Document func(ctx context.Context) (any, error)

// Item returns the document of an id. An error that is not a [*Refusal] becomes a 503.
type Item func(ctx context.Context, id string) (any, error)

// Config is what a server serves.
type Config struct {
	// Answers, by path ("/active"). They must not block.
	Answers map[string]Answer
	// Documents, by path ("/v1/cluster"). They get a context of a few seconds.
	Documents map[string]Document
	// Streams, by path ("/v1/events"), are sent as server-sent events to those who may read documents.
	Streams map[string]Stream
	// Private are documents that [Config.Open] does not open: what a program writes may be secret.
	Private map[string]Document
	// Items, by path with {id} ("/v1/operations/{id}"), are one of several documents each. Open does
	// not open them.
	Items map[string]Item
	// Writes, by pattern ("POST /v1/switchover"), change something. Without grants, only root and our
	// own user may use them, at the Unix socket.
	Writes map[string]Write
	// Grants give roles to clients.
	Grants []Grant
	// Described has what the OpenAPI description says of the other routes, by path.
	Described map[string]Description
	// Secret, if set, signs a document when the request carries a nonce. Other hosts may read
	// documents if they prove that they have it.
	Secret election.Secret
	// Token, if set, returns the bearer token with which other hosts may read documents and
	// metrics.
	Token func() (string, error)
	// Open lets other hosts read documents and metrics without any secret.
	Open bool
	// Handlers, by pattern of [http.ServeMux] ("POST /v1/failsafe"). Anybody who reaches the server
	// reaches them: each must require proof of a secret before it changes anything.
	Handlers map[string]http.Handler
	// Metrics are collected for /metrics.
	Metrics []prometheus.Collector
	// AgentCheck returns HAProxy's agent-check line ("ready up"). It must not block.
	AgentCheck func() string
	Log        zerolog.Logger
}

// Server serves HTTP and the agent-check. Create it with New, add listeners with Listen and
// ListenAgentCheck, and call Run.
type Server struct {
	cfg    Config
	mux    *http.ServeMux
	routes []route
	http   http.Server
	web    []net.Listener
	checks []net.Listener
	ending chan struct{} // closed by end: streams have no end of their own
	end    func()
}

const (
	documentTimeout = 3 * time.Second
	// documentsAtOnce bounds how many store requests the clients can cause at the same time.
	documentsAtOnce = 4
	checkTimeout    = 2 * time.Second
	// A silent connection must not keep others out for longer than a request may take, and no
	// client's connections may use up the file descriptors of the process.
	webAtOnce       = 256
	checksAtOnce    = 64
	maxBody         = 64 << 10
	shutdownTimeout = 2 * time.Second
)

// New returns a server that does not listen yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, ending: make(chan struct{}), mux: http.NewServeMux()}
	s.end = sync.OnceFunc(func() { close(s.ending) })
	s.readRoutes()
	var denied denials
	for pattern, w := range cfg.Writes {
		method, path, _ := strings.Cut(pattern, " ")
		r := route{method: method, path: path, Description: Description{Summary: w.Summary, Returns: w.Returns}, role: w.Role, answers: "write"}
		if w.Body != nil {
			r.body = w.Body()
		}
		s.route(pattern, r, cfg.writeHandler(pattern, w, &denied))
	}
	for pattern, handler := range cfg.Handlers {
		method, path, _ := strings.Cut(pattern, " ")
		s.route(pattern, route{method: method, path: path, Description: cfg.Described[path], answers: "json"}, handler)
	}
	slices.SortFunc(s.routes, func(a, b route) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.method, b.method)) })
	// Unknown paths get a problem document like every other error.
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		Problem(w, http.StatusNotFound, fmt.Sprintf("there is nothing at %.200q for %s", r.URL.Path, r.Method))
	})
	s.http = http.Server{
		Handler: limited(s.mux), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ConnContext: withPeer,
	}
	return s
}

// readRoutes adds the routes that change nothing.
func (s *Server) readRoutes() {
	cfg := s.cfg
	get := func(path, answers string, role Role) route {
		return route{method: http.MethodGet, path: path, Description: cfg.Described[path], role: role, answers: answers}
	}
	for path, answer := range cfg.Answers {
		s.route(exact(path), get(path, "yes", RoleNone), answerHandler(answer, cfg.trusts))
	}
	places := make(chan struct{}, documentsAtOnce)
	for path, document := range cfg.Documents {
		s.route(path, get(path, "json", RoleViewer), cfg.guarded(documentHandler(document, places, signer(cfg.Secret, path))))
	}
	seats := make(chan struct{}, streamsAtOnce)
	for path, stream := range cfg.Streams {
		s.route(path, get(path, "events", RoleViewer), cfg.guarded(s.streamHandler(stream, seats)))
	}
	closed := cfg
	closed.Open = false
	for path, document := range cfg.Private {
		s.route(path, get(path, "json", RoleViewer), closed.guarded(documentHandler(document, places, signer(cfg.Secret, path))))
	}
	for path, item := range cfg.Items {
		s.route(path, get(path, "json", RoleViewer), closed.guarded(itemHandler(item)))
	}
	if len(cfg.Metrics) > 0 {
		registry := prometheus.NewRegistry()
		registry.MustRegister(cfg.Metrics...)
		r := get("/metrics", "text", RoleViewer)
		r.Summary = "Metrics for Prometheus"
		s.route("/metrics", r, cfg.guarded(reading(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))))
	}
	r := get(OpenAPIPath, "json", RoleNone)
	r.Summary = "This description"
	s.route(OpenAPIPath, r, reading(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, "application/json", description(s.routes))
	})))
}

// route adds a route, and its description. Nothing else does, so every route is described.
func (s *Server) route(pattern string, r route, handler http.Handler) {
	s.mux.Handle(pattern, handler)
	s.routes = append(s.routes, r)
}

// itemHandler shows one of several documents.
func itemHandler(item Item) http.Handler {
	return reading(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), documentTimeout)
		defer cancel()
		doc, err := item(ctx, r.PathValue("id"))
		if refusal, ok := errors.AsType[*Refusal](err); ok {
			Problem(w, refusal.Status, refusal.Detail)
			return
		}
		if err != nil {
			Problem(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		write(w, http.StatusOK, "application/json", doc)
	}))
}

// ServeHTTP implements [http.Handler]: it serves a request that some other listener accepted.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.Handler.ServeHTTP(w, r) }

// limited bounds the size of a request. No legitimate request is long.
func limited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > maxBody {
			Problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request has a body of more than %d bytes", maxBody))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// exact makes a pattern match only its own path.
func exact(path string) string {
	if path == "/" {
		return "/{$}"
	}
	return path
}

// Listen makes the server listen on a TCP address. It binds the address at once, so that a mistake
// is found before anything is started.
func (s *Server) Listen(address string) (net.Addr, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %v", address, plain(err))
	}
	s.web = append(s.web, netutil.LimitListener(l, webAtOnce))
	return l.Addr(), nil
}

// ListenTLS is [Server.Listen] over TLS. CAFile of files is the authority of client certificates.
func (s *Server) ListenTLS(address string, files election.TrustFiles) (net.Addr, error) {
	over, err := serverTLS(files)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %v", address, plain(err))
	}
	s.web = append(s.web, tls.NewListener(netutil.LimitListener(l, webAtOnce), over))
	return l.Addr(), nil
}

// plain strips the operation and the address from an error, because the message contains them
// anyway.
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
	s.checks = append(s.checks, netutil.LimitListener(l, checksAtOnce))
	return l.Addr(), nil
}

// Run serves until ctx ends, and returns once every request has been served. Call it once.
func (s *Server) Run(ctx context.Context) {
	var serving sync.WaitGroup
	for _, l := range s.web {
		serving.Go(func() {
			if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.cfg.Log.Error().Err(err).Str("address", l.Addr().String()).Msg("the HTTP server stopped")
			}
		})
	}
	for _, l := range s.checks {
		serving.Go(func() { s.agentChecks(l) })
	}
	<-ctx.Done()
	s.end()
	for _, l := range s.checks {
		_ = l.Close() // agentChecks then ends; nothing was buffered
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(ending); err != nil {
		_ = s.http.Close()
	}
	serving.Wait()
}

// Close closes the listeners of a server that was never run.
func (s *Server) Close() {
	s.end()
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
				_, _ = io.WriteString(conn, s.cfg.AgentCheck()+"\n") // the proxy retries if it has gone
			}
		})
	}
}

// answerHandler responds with yes or no to everybody, and with the details to those that it trusts.
func answerHandler(answer Answer, trusts func(*http.Request) bool) http.Handler {
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
		if !trusts(r) {
			more = map[string]bool{"yes": yes}
		}
		write(w, status, "application/json", more)
	})
}

// reading admits only requests that change nothing.
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

// documentHandler occupies one of the slots while it works.
func documentHandler(document Document, places chan struct{}, sign func(*http.Request, http.Header, []byte)) http.Handler {
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
		body, err := json.Marshal(doc)
		if err != nil {
			Problem(w, http.StatusInternalServerError, "cannot say this in JSON")
			return
		}
		body = append(body, '\n')
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "application/json")
		sign(r, w.Header(), body)
		_, _ = w.Write(body) // the client may have gone
	}))
}

// signer signs the document at path if the request carries a nonce.
func signer(secret election.Secret, path string) func(*http.Request, http.Header, []byte) {
	return func(r *http.Request, answer http.Header, body []byte) {
		if len(secret) == 0 {
			return
		}
		if signature := secret.SignAnswer(path, r.Header.Get(election.NonceHeader), body); signature != "" {
			answer.Set(election.SignatureHeader, signature)
		}
	}
}

// Problem responds with an RFC 9457 problem document.
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
	_, _ = w.Write(append(body, '\n')) // the client may have gone
}

// ListenUnix makes the server listen on a Unix socket: for its own user and group only, or for
// everybody if there are grants to users or groups. It replaces a socket on which nobody listens. A socket in use, or one that this process may not use, is an
// error.
func (s *Server) ListenUnix(path string) error {
	fail := func(err error) error { return fmt.Errorf("cannot listen on %s: %v", path, plain(err)) }
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // its contents have their own permissions
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
			// A process that is frozen or busy does not respond, and one of another user can't be
			// asked: neither socket is stale.
			return fail(fmt.Errorf("another process may, and can't be asked (%v)", plain(err)))
		}
	}
	// The socket gets its final name only after its permissions, so that others can't connect at
	// any moment. The rename is atomic.
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(private) //nolint:errcheck // already renamed on success
	hidden := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false)
	mode := os.FileMode(0o660)
	if slices.ContainsFunc(s.cfg.Grants, func(g Grant) bool { return g.User != "" || g.Group != "" }) {
		mode = 0o666 // the kernel tells who each client is, and strangers learn only yes or no
	}
	if err = os.Chmod(hidden, mode); err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return errors.Join(fail(err), l.Close(), os.Remove(hidden))
	}
	s.web = append(s.web, &named{Listener: netutil.LimitListener(peers{l}, webAtOnce), path: path})
	return nil
}

// named removes its socket when it is closed.
type named struct {
	net.Listener
	path   string
	remove sync.Once
}

// Close implements [net.Listener]. It removes the name first, and once: while we listen the name is
// ours, and later it may belong to another process.
func (n *named) Close() error {
	n.remove.Do(func() { _ = os.Remove(n.path) }) // an operator may have removed it
	return n.Listener.Close()
}

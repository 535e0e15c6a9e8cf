package gate

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
)

// Config describes a [Gate].
type Config struct {
	// Listen is the address that the program connects to: a loopback address with a port
	// ("127.0.0.1:6432") or "unix:" and a path that ends in .s.PGSQL.PORT. Only Owner can use the
	// socket.
	Listen string
	// Owner may connect to the socket; the default is this process's own user.
	Owner *postgres.Owner
	// DSN locates the repository and sets TLS. Its login is unused and should be absent: see
	// [postgres.WithoutLogin].
	DSN string
	// Role and Secret log the program in to the repository. They are those of one term.
	Role, Secret string
	// Password is what the program sends. It never changes and is of no use at the repository. It
	// is required for an address, because anybody on the host can connect there; with a socket it
	// may be empty, and is then not requested.
	Password string
	// Deadline returns the instant after which nothing may pass. It may be extended until it has
	// passed. It is called before every chunk, from any goroutine, and must not block.
	Deadline func() election.Instant
	// Clock is the clock of the deadline. Nil: [election.BootClock].
	Clock election.Clock
	// Connect bounds the login to the repository; the default is 10 s.
	Connect time.Duration
	Log     zerolog.Logger
}

// Gate is a listener for programs with a fixed repository password. The program logs in here with
// that password. The gate logs in to the repository with the secret of the term, and forwards both
// directions until its deadline. A gate serves one term.
//
// The gate makes the cut prompt: after the deadline no chunk passes from this host, even if the
// gate itself was stopped in between and continues later. It is not the fence: there is a gap
// between a clock check and the write that follows, and there are buffers behind the write. That no
// statement of an older term commits is the guarantee of [postgres.Fence.Raise] alone.
type Gate struct {
	cfg     Config
	dial    pgconn.DialFunc // dials the repository's host
	network string
	address string
	over    atomic.Bool // the deadline has passed; it never becomes false again

	relay    *relay
	mu       sync.Mutex
	sessions map[*session]struct{}
}

// session is one connection of the program. The gate's mutex guards its fields; serve, which sets
// them, reads them without it.
type session struct {
	client net.Conn
	server net.Conn // nil before the login
	pid    uint32
	key    []byte
	config *pgconn.Config
	remote string // address of the server that was reached
	ended  bool
}

// end closes both sides. If it is hard, data still in the sockets' buffers is dropped. The caller
// holds the mutex. It has no effect on sockets that the relay owns.
func (s *session) end(hard bool) {
	s.ended = true
	for _, c := range []net.Conn{s.client, s.server} {
		if c == nil {
			continue
		}
		if hard {
			under := socket(c)
			if tcp, ok := under.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // closed already
			}
			_ = under.Close() // without TLS's close_notify, which could block
			continue
		}
		_ = c.Close() // the client has gone
	}
}

func (g *Gate) end(s *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.end(false)
}

// New checks the configuration. It does not listen.
func New(cfg Config) (*Gate, error) {
	if cfg.Clock == nil {
		cfg.Clock = election.BootClock
	}
	if cfg.Connect == 0 {
		cfg.Connect = 10 * time.Second
	}
	g := &Gate{
		cfg: cfg, dial: postgres.Dialer(cfg.Connect).DialContext, network: "tcp", address: cfg.Listen, sessions: map[*session]struct{}{},
	}
	if path, ok := strings.CutPrefix(cfg.Listen, "unix:"); ok {
		g.network, g.address = "unix", path
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := g.upstream(); err != nil {
		return nil, fmt.Errorf("repository.dsn_file: %w", err)
	}
	return g, nil
}

// Validate reports what is wrong with the address and the password of c, after the key of the
// configuration file.
func (c *Config) Validate() error {
	const listen, password = "repository.secret.gate.listen: ", "repository.secret.gate.password_file: "
	if c.Listen == "" {
		return errors.New(listen + "it is missing: where the program connects to, such as 127.0.0.1:6432")
	}
	if path, unix := strings.CutPrefix(c.Listen, "unix:"); unix {
		if !filepath.IsAbs(path) {
			return fmt.Errorf(listen+"%q needs an absolute path after unix: like unix:/run/x.sock", c.Listen)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf(listen+"%q is not an address: write host:port, such as 127.0.0.1:6432", c.Listen)
	}
	if ip := net.ParseIP(host); host != "localhost" && !ip.IsLoopback() {
		return fmt.Errorf(listen+"%s is not a loopback address; the gate gives away the right to log in", c.Listen)
	}
	if c.Password == "" {
		return errors.New(password + "without a password everybody on this host could log in through the gate: set one, or listen on unix:PATH")
	}
	return nil
}

// upstream parses how to reach the repository. It runs for each connection, so that certificates
// may change.
func (g *Gate) upstream() (*pgconn.Config, error) {
	if err := postgres.CheckDSN(g.cfg.DSN); err != nil {
		return nil, err
	}
	cfg, err := pgconn.ParseConfig(g.cfg.DSN)
	if err != nil {
		return nil, fmt.Errorf("cannot read the connection string: %s", postgres.Unquoted(err))
	}
	cfg.BuildFrontend = postgres.Frontend // until the program takes over
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := g.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &checked{Conn: conn, past: g.past}, nil
	}
	return cfg, nil
}

func (g *Gate) closeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.sessions {
		s.end(true)
	}
}

// left returns the time until the deadline; 0 once it has passed.
func (g *Gate) left() time.Duration {
	left := g.cfg.Deadline().Sub(g.cfg.Clock())
	if left <= 0 {
		g.over.Store(true)
	}
	if g.over.Load() {
		return 0
	}
	return left
}

// past reports whether the deadline has passed.
func (g *Gate) past() bool { return g.left() == 0 }

// Run listens until ctx ends, and calls ready, if not nil, with the address. All connections are
// closed when it returns.
func (g *Gate) Run(ctx context.Context, ready func(net.Addr)) error {
	if g.network == "unix" {
		if err := os.Remove(g.address); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot open the gate: %v", err)
		}
	}
	config := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) (err error) {
		if network == "unix" {
			// The mode of the socket file is that of the socket: nobody else may connect at any
			// moment.
			ctl := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
			return errors.Join(ctl, err)
		}
		return nil
	}}
	listener, err := config.Listen(ctx, g.network, g.address)
	if err != nil {
		return fmt.Errorf("cannot open the gate: %v", err)
	}
	if o := g.cfg.Owner; o != nil && g.network == "unix" {
		if err := os.Chown(g.address, o.UID, o.GID); err != nil {
			return errors.Join(fmt.Errorf("cannot open the gate: %v", err), listener.Close())
		}
	}
	if g.relay, err = newRelay(g.past, g.left); err != nil {
		return errors.Join(fmt.Errorf("cannot open the gate: %v", err), listener.Close())
	}
	if ready != nil {
		ready(listener.Addr())
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { g.watch(ctx) })
	defer g.relay.close()
	defer g.closeAll()
	defer context.AfterFunc(ctx, func() { _ = listener.Close(); g.closeAll() })()
	for {
		conn, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close() // too late
			}
			return nil
		case err != nil:
			// Most likely out of file descriptors, which will pass.
			g.cfg.Log.Warn().Err(err).Msg("the gate cannot accept a connection")
			if sleep(ctx, 50*time.Millisecond) != nil {
				return nil
			}
			continue
		}
		running.Go(func() { g.serve(ctx, conn) })
	}
}

// watch closes all connections, even idle ones, when the deadline has passed.
func (g *Gate) watch(ctx context.Context) {
	for left := g.left(); left > 0; left = g.left() {
		if sleep(ctx, min(left, time.Second)) != nil {
			return
		}
	}
	g.closeAll()
}

// The first message of a connection is one of these, by the number after its length.
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
	// No client has a longer first message.
	maxStartup = 10000
)

func (g *Gate) serve(ctx context.Context, client net.Conn) {
	s := &session{client: client}
	defer g.end(s)
	g.mu.Lock()
	g.sessions[s] = struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.sessions, s)
		g.mu.Unlock()
	}()
	if ctx.Err() != nil {
		return
	}
	_ = client.SetDeadline(time.Now().Add(g.cfg.Connect)) // a silent client is dropped
	startup, err := g.greet(s)
	if err != nil || startup == nil {
		return // a cancellation, a port scan
	}
	if err := g.connect(ctx, s, startup); err != nil {
		reply := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P03", Message: err.Error()}
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
			reply.Code, reply.Message, reply.Detail, reply.Hint = pe.Code, pe.Message, pe.Detail, pe.Hint
		}
		if b, err := reply.Encode(nil); err == nil {
			_, _ = client.Write(b) // the client may have gone
		}
		return
	}
	_ = client.SetDeadline(time.Time{})
	g.mu.Lock()
	ended := s.ended
	from, to := -1, -1
	if !ended {
		from, to = sockets(s.client, s.server)
	}
	g.mu.Unlock()
	switch {
	case ended:
	case from >= 0:
		g.relay.pass(from, to)
	default: // TLS, most likely
		var up sync.WaitGroup
		up.Go(func() { defer g.end(s); g.pass(s.server, s.client) })
		g.pass(&checked{Conn: s.client, past: g.past}, s.server)
		g.end(s)
		up.Wait()
	}
}

// socket is the connection under TLS and under the clock check.
func socket(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*checked); ok {
		c = t.Conn
	}
	return c
}

// checked is a connection on which nothing is sent after the deadline, not even the rest of a write
// that had to wait for the peer: the clock is checked before each write to the socket. What TLS
// adds passes through it too.
type checked struct {
	net.Conn
	past func() bool
}

func (c *checked) Write(b []byte) (sent int, err error) {
	under, ok := c.Conn.(syscall.Conn)
	if !ok { // not a socket, so it can't block
		if c.past() {
			return 0, errNotActive
		}
		return c.Conn.Write(b)
	}
	raw, err := under.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		for sent < len(b) {
			if c.past() {
				failed = errNotActive
				return true
			}
			n, errno := write(int(fd), b[sent:])
			switch errno {
			case 0:
				sent += n
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				failed = os.NewSyscallError("send", errno)
				return true
			}
		}
		return true
	})
	return sent, errors.Join(err, failed)
}

// sockets extracts the sockets of two connections, or returns -1 if one of them is more than a
// socket.
func sockets(client, server net.Conn) (from, to int) {
	if _, ok := server.(*tls.Conn); ok {
		return -1, -1
	}
	var err error
	if to, err = raw(socket(server)); err != nil {
		return -1, -1
	}
	if from, err = raw(client); err != nil {
		_ = syscall.Close(to)
		return -1, -1
	}
	return from, to
}

// greet reads the first messages of a client, answers those that the gate can answer, and returns
// the one that starts a session.
func (g *Gate) greet(s *session) (*pgproto3.StartupMessage, error) {
	for {
		body, err := readSized(s.client, maxStartup)
		if err != nil {
			return nil, err
		}
		if len(body) < 4 {
			return nil, errors.New("cannot understand the client")
		}
		switch code := binary.BigEndian.Uint32(body); {
		case code == codeTLS, code == codeGSS:
			if _, err := s.client.Write([]byte{'N'}); err != nil { // no TLS within a host
				return nil, err
			}
		case code == codeCancel:
			g.cancel(body[4:])
			return nil, nil
		case code>>16 == 3:
			startup := &pgproto3.StartupMessage{}
			// The library supports two minor versions; the differences in others are negotiated
			// below.
			minor := code & 0xffff
			binary.BigEndian.PutUint32(body, pgproto3.ProtocolVersion30)
			if err := startup.Decode(body); err != nil {
				return nil, err
			}
			var unknown []string
			for name := range startup.Parameters {
				if strings.HasPrefix(name, "_pq_.") {
					unknown = append(unknown, name)
					delete(startup.Parameters, name)
				}
			}
			if minor > 0 || len(unknown) > 0 {
				b, err := (&pgproto3.NegotiateProtocolVersion{UnrecognizedOptions: unknown}).Encode(nil)
				if err != nil {
					return nil, err
				}
				if _, err := s.client.Write(b); err != nil {
					return nil, err
				}
			}
			return startup, nil
		default:
			return nil, errors.New("cannot understand the client")
		}
	}
}

// readSized reads a length and exactly that many bytes.
func readSized(r io.Reader, limit uint32) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > limit {
		return nil, errors.New("cannot understand the client")
	}
	body := make([]byte, n-4)
	_, err := io.ReadFull(r, body)
	return body, err
}

var (
	errNotActive = errors.New("this controller is not active; the gate to the repository is shut")
	errPassword  = &pgconn.PgError{Code: "28P01", Message: "password authentication failed at the gate"}
)

// connect checks the program's password, logs in to the repository, and completes the program's
// login.
func (g *Gate) connect(ctx context.Context, s *session, startup *pgproto3.StartupMessage) error {
	if g.cfg.Password != "" {
		if err := g.checkPassword(s.client); err != nil {
			return err
		}
	}
	if g.past() {
		return errNotActive
	}
	if startup.Parameters["replication"] != "" {
		return errors.New("replication does not go through the gate")
	}
	cfg, err := g.upstream()
	if err != nil {
		g.cfg.Log.Warn().Err(err).Msg("the gate cannot reach the repository")
		return errors.New("the gate could not reach the repository")
	}
	cfg.User, cfg.Password = g.cfg.Role, g.cfg.Secret
	if cfg.Database = startup.Parameters["database"]; cfg.Database == "" {
		cfg.Database = startup.Parameters["user"]
	}
	maps.Copy(cfg.RuntimeParams, startup.Parameters)
	delete(cfg.RuntimeParams, "user")
	delete(cfg.RuntimeParams, "database")

	ctx, cancel := context.WithTimeout(ctx, g.cfg.Connect)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
			return pe
		}
		g.cfg.Log.Warn().Err(err).Msg("the gate cannot reach the repository")
		return errors.New("the gate could not reach the repository")
	}
	if err := conn.SyncConn(ctx); err != nil {
		_ = conn.Close(ctx) // broken anyway
		return errors.New("the gate lost the repository")
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		_ = conn.Close(ctx) // not in a usable state
		return errors.New("the gate lost the repository")
	}
	g.mu.Lock()
	s.server, s.pid, s.key, s.config, s.remote = hijacked.Conn, hijacked.PID, hijacked.SecretKey, hijacked.Config, hijacked.Conn.RemoteAddr().String()
	over := s.ended
	g.mu.Unlock()
	if over || g.past() {
		_ = hijacked.Conn.Close() // the session ended before it had this connection
		return errNotActive
	}
	var b []byte
	encode := func(m pgproto3.BackendMessage) {
		if err == nil {
			b, err = m.Encode(b)
		}
	}
	encode(&pgproto3.AuthenticationOk{})
	for name, value := range hijacked.ParameterStatuses {
		encode(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	encode(&pgproto3.BackendKeyData{ProcessID: hijacked.PID, SecretKey: hijacked.SecretKey})
	encode(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err != nil {
		return errors.New("the gate could not answer")
	}
	_, err = s.client.Write(b)
	return err
}

func (g *Gate) checkPassword(client net.Conn) error {
	b, err := (&pgproto3.AuthenticationCleartextPassword{}).Encode(nil)
	if err != nil {
		return err
	}
	if _, err := client.Write(b); err != nil {
		return err
	}
	var kind [1]byte
	if _, err := io.ReadFull(client, kind[:]); err != nil {
		return err
	}
	body, err := readSized(client, maxStartup)
	if err != nil {
		return err
	}
	said := strings.TrimSuffix(string(body), "\x00")
	if kind[0] != 'p' || subtle.ConstantTimeCompare([]byte(said), []byte(g.cfg.Password)) != 1 {
		return errPassword
	}
	return nil
}

// cancel forwards the cancellation of a statement of a session of this gate.
func (g *Gate) cancel(key []byte) {
	if len(key) < 8 || g.past() {
		return
	}
	g.mu.Lock()
	var server string
	var config *pgconn.Config
	for s := range g.sessions {
		if s.server != nil && s.pid == binary.BigEndian.Uint32(key) && subtle.ConstantTimeCompare(s.key, key[4:]) == 1 {
			server, config = s.remote, s.config
		}
	}
	g.mu.Unlock()
	if config == nil {
		return
	}
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	if network == "tcp" {
		address = server // the server that was reached, if the name has several
	}
	dialer := net.Dialer{Timeout: g.cfg.Connect}
	conn, err := dialer.DialContext(context.Background(), network, address)
	if err != nil {
		return // a cancellation never gets a reply
	}
	defer conn.Close() //nolint:errcheck // the server closes it
	_ = conn.SetDeadline(time.Now().Add(g.cfg.Connect))
	message := binary.BigEndian.AppendUint32(nil, uint32(len(key)+8))
	message = binary.BigEndian.AppendUint32(message, codeCancel)
	if _, err := conn.Write(append(message, key...)); err == nil {
		_, _ = conn.Read(make([]byte, 1)) // the server closes it once done
	}
}

// pass copies from src to dst until one of them ends or the deadline has passed. It uses neither
// splice nor io.Copy: a gate that was stopped and continues after its deadline must not forward
// what it holds.
func (g *Gate) pass(dst, src net.Conn) {
	buf := make([]byte, chunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if g.past() {
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// sleep waits for d, or returns the cause of ctx's end.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// application is the application_name that pg_stat_activity shows for a sidecar.
const application = "tanist-sidecar"

// connectTimeout bounds an attempt to connect to one host unless the connection string sets a
// bound: the next host of the string may be the live one.
const connectTimeout = 3 * time.Second

// Dialer returns a dialer whose connections detect a silent peer: an idle one by keepalives within
// about 11 s, and one with unacknowledged data after silence.
func Dialer(silence time.Duration) *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control: func(network, _ string, c syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			var err error
			ctl := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
			})
			return errors.Join(ctl, os.NewSyscallError("setsockopt", err))
		},
	}
}

// longestMessage is longer than any reply that the fence asks for, and any message of a login.
const longestMessage = 1 << 20

// Frontend reads a server's messages and refuses those longer than 1 MiB. Without it an impostor of
// the server could make this process allocate a gigabyte with five bytes.
func Frontend(r io.Reader, w io.Writer) *pgproto3.Frontend {
	f := pgproto3.NewFrontend(r, w)
	f.SetMaxBodyLen(longestMessage)
	return f
}

// parse parses a connection string, with the libpq variables as defaults, and adds what a sidecar's
// connections need. statement bounds each statement on the server.
func parse(dsn string, statement time.Duration) (*pgx.ConnConfig, error) {
	if err := CheckDSN(dsn); err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, unreadable(err)
	}
	// One statement is one message. With the extended protocol a client that stops between two
	// messages leaves a transaction open, and with it the lock of the fence.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	cfg.StatementCacheCapacity, cfg.DescriptionCacheCapacity = 0, 0
	millis := func(d time.Duration) string { return strconv.FormatInt(max(1, d.Milliseconds()), 10) }
	maps.Copy(cfg.RuntimeParams, map[string]string{
		"application_name":                    application,
		"statement_timeout":                   millis(statement),
		"lock_timeout":                        millis(statement),
		"idle_in_transaction_session_timeout": millis(statement),
		"client_min_messages":                 "warning",
		"standard_conforming_strings":         "on",
		"DateStyle":                           "ISO",
	})
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	cfg.ConnectTimeout = min(cfg.ConnectTimeout, statement)
	cfg.BuildFrontend = Frontend
	cfg.DialFunc = Dialer(statement).DialContext
	return cfg, nil
}

// dial opens one connection. Its errors quote only host names from the connection string.
func dial(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, unconnected(err, &cfg.Config)
	}
	return conn, nil
}

// source supplies connections from a connection string that may change while the program runs.
type source struct {
	read      func() (string, error) // nil: it does not change
	statement time.Duration
	refuse    func(*pgx.ConnConfig) error // returns why a configuration can't be used; may be nil
	log       zerolog.Logger

	mu     sync.Mutex
	dsn    string
	now    *pgx.ConnConfig
	before *pgx.ConnConfig // the one before the last change, until a connection with now succeeds
	failed string          // the last reason why a changed string was refused
}

// newSource reads the connection string for the first time.
func newSource(dsn string, read func() (string, error), statement time.Duration, refuse func(*pgx.ConnConfig) error, log zerolog.Logger) (*source, error) {
	s := &source{read: read, statement: statement, refuse: refuse, log: log, dsn: dsn}
	var err error
	s.now, err = s.parse(dsn)
	return s, err
}

func (s *source) parse(dsn string) (*pgx.ConnConfig, error) {
	cfg, err := parse(dsn, s.statement)
	if err == nil && s.refuse != nil {
		err = s.refuse(cfg)
	}
	return cfg, err
}

// refresh reads the string again and reports whether it has changed. A string that can't be used
// changes nothing and is reported once.
func (s *source) refresh() bool {
	if s.read == nil {
		return false
	}
	dsn, err := s.read()
	s.mu.Lock()
	defer s.mu.Unlock()
	var cfg *pgx.ConnConfig
	if err == nil {
		if dsn == s.dsn {
			s.failed = ""
			return false
		}
		cfg, err = s.parse(dsn)
	}
	if err != nil {
		if text := err.Error(); text != s.failed {
			s.failed = text
			s.log.Warn().Err(err).Msg("cannot use the new connection string of the repository; keeping the old one")
		}
		return false
	}
	s.before, s.now, s.dsn, s.failed = s.now, cfg, dsn, ""
	s.log.Info().Msg("the connection string of the repository has changed")
	return true
}

// config returns the current configuration. It reads certificates and keys from their files again.
func (s *source) config() *pgx.ConnConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cfg, err := s.parse(s.dsn); err == nil {
		s.now = cfg
	}
	return s.now.Copy()
}

// connect opens a connection with the newest string. If its login is refused it uses the previous
// string, so that nothing is lost while a password is being changed on both sides.
func (s *source) connect(ctx context.Context) (*pgx.Conn, error) {
	s.refresh()
	conn, err := dial(ctx, s.config())
	s.mu.Lock()
	before := s.before
	if err == nil {
		s.before = nil
	}
	s.mu.Unlock()
	if err != nil && before != nil && loginRefused(err) {
		if older, e := dial(ctx, before.Copy()); e == nil {
			return older, nil
		}
	}
	return conn, err
}

func loginRefused(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (pe.Code == "28P01" || pe.Code == "28000")
}

// link keeps one connection warm. It opens a new one if there is none, or if the warm one is in use
// and does not come back soon: it may hang in a dead network.
type link struct {
	source   *source
	patience time.Duration
	hedge    time.Duration
	warm     chan *pgx.Conn // holds the connection while it is idle
	closed   chan struct{}
	once     sync.Once
	attempts sync.WaitGroup

	mu    sync.Mutex
	count int // connections that are open or being opened
}

func newLink(s *source) *link {
	return &link{source: s, patience: 250 * time.Millisecond, hedge: hedgeAfter, warm: make(chan *pgx.Conn, 1), closed: make(chan struct{})}
}

// hedgeAfter is how long a statement may take before it is also sent on a fresh connection.
// Otherwise a connection that swallows data would cost the statement's whole timeout.
const hedgeAfter = 500 * time.Millisecond

var errShutdown = errors.New("cannot use the repository: the fence is shut down")

// take returns a connection, and whether it is an old one that may have died unnoticed. With fresh
// it opens a new one.
func (l *link) take(ctx context.Context, fresh bool) (conn *pgx.Conn, old bool, err error) {
	select {
	case <-l.closed:
		return nil, false, errShutdown
	default:
	}
	if !fresh {
		if conn, err = l.idle(ctx); conn != nil || err != nil {
			return conn, true, err
		}
	}
	l.add(1)
	conn, err = l.source.connect(ctx)
	if err != nil {
		l.add(-1)
		return nil, false, err
	}
	return conn, false, nil
}

// idle returns the warm connection, or nil if there is none and none comes back soon.
func (l *link) idle(ctx context.Context) (*pgx.Conn, error) {
	select {
	case conn := <-l.warm:
		return conn, nil
	default:
	}
	l.mu.Lock()
	busy := l.count > 0
	l.mu.Unlock()
	if !busy {
		return nil, nil
	}
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case conn := <-l.warm:
		return conn, nil
	case <-timer.C:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.closed:
		return nil, errShutdown
	}
}

func (l *link) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count += n
}

// give returns a connection to the link.
func (l *link) give(conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() != 'I' {
		l.discard(conn)
		return
	}
	select {
	case <-l.closed:
		l.discard(conn)
		return
	default:
	}
	select {
	case l.warm <- conn:
	default:
		l.discard(conn)
	}
	select {
	case <-l.closed: // closed while we put it back
		l.drain()
	default:
	}
}

func (l *link) discard(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nobody waits for a reply to Terminate
	l.add(-1)
}

func (l *link) drain() {
	select {
	case conn := <-l.warm:
		l.discard(conn)
	default:
	}
}

// shutdown closes the warm connection and ends running statements.
func (l *link) shutdown() {
	l.once.Do(func() { close(l.closed) })
	l.drain()
	l.attempts.Wait()
}

// renew replaces the warm connection if the connection string has changed and a connection with it
// succeeds.
func (l *link) renew(ctx context.Context) {
	if !l.source.refresh() {
		return
	}
	conn, _, err := l.take(ctx, true)
	if err != nil {
		l.source.log.Warn().Err(err).Msg("cannot connect with the new connection string of the repository yet; retrying")
		return
	}
	l.drain()
	l.give(conn)
}

// result is the outcome of one attempt at a statement.
type result[T any] struct {
	value  T
	err    error
	broken bool // the connection is lost or was not made: the outcome of the statement is unknown
	old    bool // on a connection that existed before
}

// ask runs one statement on the link's connection and bounds it. The statement must be idempotent,
// even if it arrives twice or late: it is repeated on a fresh connection if the first connection
// turns out dead, and also if the reply does not come soon. The first reply counts.
func ask[T any](ctx context.Context, l *link, statement func(context.Context, *pgx.Conn) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.source.statement, fmt.Errorf("the repository has not answered within %v", l.source.statement))
	defer cancel()
	results := make(chan result[T], 2)
	start := func(fresh bool) { l.attempts.Go(func() { results <- attempt(ctx, l, fresh, statement) }) }
	start(false)
	running, hedged := 1, false
	timer := time.NewTimer(l.hedge)
	defer timer.Stop()
	var last result[T]
	for {
		select {
		case r := <-results:
			running--
			if !r.broken {
				return r.value, r.err
			}
			if code, _ := refusal(last.err); code == "" {
				last = r
			}
			switch {
			case ctx.Err() != nil && running == 0:
				return last.value, last.err
			case r.old && !hedged:
				hedged = true
				running++
				start(true)
			case running == 0:
				return last.value, last.err
			}
		case <-timer.C:
			if !hedged {
				hedged = true
				running++
				start(true)
			}
		case <-ctx.Done():
			var none T
			return none, context.Cause(ctx)
		case <-l.closed:
			var none T
			return none, errShutdown
		}
	}
}

// attempt runs a statement on one connection.
func attempt[T any](ctx context.Context, l *link, fresh bool, statement func(context.Context, *pgx.Conn) (T, error)) (r result[T]) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, old, err := l.take(ctx, fresh)
	if err != nil {
		var pe *pgconn.PgError
		return result[T]{err: err, broken: !errors.As(err, &pe) || fresh}
	}
	r.value, r.err = statement(ctx, conn)
	r.broken, r.old = r.err != nil && conn.IsClosed(), old
	l.give(conn)
	return r
}

// do runs a statement that returns no rows.
func (l *link) do(ctx context.Context, statement func(context.Context, *pgx.Conn) error) error {
	_, err := ask(ctx, l, func(ctx context.Context, conn *pgx.Conn) (struct{}, error) { return struct{}{}, statement(ctx, conn) })
	return err
}

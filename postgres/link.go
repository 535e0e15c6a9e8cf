package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

// application is what pg_stat_activity shows of a sidecar.
const application = "tanist-sidecar"

// Unquoted is the text of an error of the library pgx without what stands between backticks in it. There it quotes the connection
// string, and it does not find the password in every one that it can't read.
func Unquoted(err error) string {
	text := err.Error()
	if first, last := strings.Index(text, "`"), strings.LastIndex(text, "`"); first < last {
		text = text[:first] + "it" + text[last+1:]
	}
	return text
}

// parse reads a connection string, with the libpq variables as defaults, and sets what a sidecar's connections need.
// statement bounds each statement, on the server's side.
func parse(dsn string, statement time.Duration) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("cannot read the repository's connection string: %s", Unquoted(err))
	}
	// One statement is one message. With the extended protocol a client that stops between two messages leaves a
	// transaction open, and with it the lock of the fence.
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
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > statement {
		cfg.ConnectTimeout = statement
	}
	dialer := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control: func(network, _ string, c syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			var err error
			ctl := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(statement.Milliseconds()))
			})
			return errors.Join(ctl, os.NewSyscallError("setsockopt", err))
		},
	}
	cfg.DialFunc = dialer.DialContext
	return cfg, nil
}

// link keeps one connection warm. A new connection is made when there is none, or when the warm one is taken
// and does not come back soon: it may hang in a dead network.
type link struct {
	cfg      *pgx.ConnConfig
	patience time.Duration
	warm     chan *pgx.Conn // has the connection while it is idle
	closed   chan struct{}
	once     sync.Once

	mu    sync.Mutex
	count int // connections that are open or being opened
}

func newLink(cfg *pgx.ConnConfig) *link {
	return &link{cfg: cfg, patience: 250 * time.Millisecond, warm: make(chan *pgx.Conn, 1), closed: make(chan struct{})}
}

var errShutdown = errors.New("cannot use the repository: the fence is shut down")

// take returns a connection, and whether it is an old one, which may have died unnoticed.
func (l *link) take(ctx context.Context) (conn *pgx.Conn, old bool, err error) {
	select {
	case <-l.closed:
		return nil, false, errShutdown
	case conn := <-l.warm:
		return conn, true, nil
	default:
	}
	l.mu.Lock()
	busy := l.count > 0
	l.mu.Unlock()
	if busy {
		timer := time.NewTimer(l.patience)
		defer timer.Stop()
		select {
		case conn := <-l.warm:
			return conn, true, nil
		case <-timer.C:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		case <-l.closed:
			return nil, false, errShutdown
		}
	}
	l.add(1)
	conn, err = pgx.ConnectConfig(ctx, l.cfg)
	if err != nil {
		l.add(-1)
		return nil, false, err
	}
	return conn, false, nil
}

func (l *link) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count += n
}

// give takes a connection back.
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
	case <-l.closed: // while it was put back
		l.drain()
	default:
	}
}

func (l *link) discard(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nobody waits for an answer to the good-bye
	l.add(-1)
}

func (l *link) drain() {
	select {
	case conn := <-l.warm:
		l.discard(conn)
	default:
	}
}

// shutdown closes the warm connection; those in use are closed when they are given back.
func (l *link) shutdown() {
	l.once.Do(func() { close(l.closed) })
	l.drain()
}

// do runs one idempotent statement. If a connection turns out to be dead it is tried once more on a fresh one.
func (l *link) do(ctx context.Context, statement func(context.Context, *pgx.Conn) error) error {
	for {
		conn, old, err := l.take(ctx)
		if err != nil {
			return err
		}
		err = statement(ctx, conn)
		broken := conn.IsClosed()
		l.give(conn)
		if err == nil || !broken || !old || ctx.Err() != nil {
			return err
		}
	}
}

package postgres

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// application is the application_name of a call's connection; that of the watch has a suffix.
const (
	application = "tanist-store"
	listening   = application + "-watch"
)

// longestMessage is longer than any row, and any message of a login. An impostor of the server can't
// make this process allocate more.
const longestMessage = 4 << 20

// link is one connection, and what the server told of itself.
type link struct {
	*pgx.Conn
	origin      election.Origin
	channel     string
	unconfirmed atomic.Bool // the server has not waited for its synchronous standby
}

// close ends the connection without waiting for the server.
func (l *link) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = l.Close(ctx) // nobody waits for a reply to Terminate
}

// parse returns the configuration of a connection. Certificates are read from their files again.
func (s *Store) parse(dsn, password string) (*pgx.ConnConfig, error) {
	if s.cfg.Accept != nil {
		if err := s.cfg.Accept(dsn); err != nil {
			return nil, err
		}
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, unparsed(err)
	}
	if password != "" {
		cfg.Password = password
	}
	// One statement is one message: a client that stops between two leaves no transaction open.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	cfg.StatementCacheCapacity, cfg.DescriptionCacheCapacity = 0, 0
	limit := strconv.FormatInt(callLimit.Milliseconds(), 10)
	maps.Copy(cfg.RuntimeParams, map[string]string{
		"application_name":                    application,
		"statement_timeout":                   limit,
		"lock_timeout":                        limit,
		"idle_in_transaction_session_timeout": limit,
		"default_transaction_isolation":       "read committed",
		"synchronous_commit":                  "on", // whatever the database's default is
		"client_encoding":                     "UTF8",
		"client_min_messages":                 "warning",
		"standard_conforming_strings":         "on",
		"tcp_keepalives_idle":                 "5", // the server gives up a silent client, and its slot
		"tcp_keepalives_interval":             "2",
		"tcp_keepalives_count":                "3",
		"tcp_user_timeout":                    "10000",
	})
	cfg.ConnectTimeout = dialTimeout
	cfg.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	cfg.DialFunc = dialer().DialContext
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(longestMessage)
		return f
	}
	return cfg, nil
}

// dialer returns a dialer whose connections detect a silent peer within about 10 s.
func dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control: func(network, _ string, c syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			var err error
			ctl := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(callLimit.Milliseconds()))
			})
			return errors.Join(ctl, os.NewSyscallError("setsockopt", err))
		},
	}
}

// greeting makes a connection to one host usable.
type greeting func(context.Context, *pgx.ConnConfig) (*link, error)

// connect opens a connection for the cluster of the store.
func (s *Store) connect(ctx context.Context, name string) (*link, error) {
	return s.reach(ctx, name, s.greet)
}

// reach opens a connection with the newest connection string and password. If the server refuses
// them, those that it accepted last follow.
func (s *Store) reach(ctx context.Context, name string, greet greeting) (*link, error) {
	var last error
	for _, dsn := range s.dsn.Words(true) {
		for _, password := range s.password.Words(true) {
			cfg, err := s.parse(dsn, password)
			if err == nil {
				cfg.RuntimeParams["application_name"] = name
				var l *link
				if l, err = race(ctx, cfg, greet); err == nil {
					s.dsn.Accepted(dsn)
					s.password.Accepted(password)
					return l, nil
				}
			}
			if last = err; !loginRefused(err) {
				return nil, err
			}
		}
	}
	return nil, meaning(last)
}

// race connects to all hosts of a configuration at once, and returns the first that takes writes. One
// after the other, a host that swallows everything would cost a lease although the next one answers.
func race(ctx context.Context, cfg *pgx.ConnConfig, greet greeting) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	hosts := each(cfg)
	type result struct {
		link *link
		err  error
	}
	results := make(chan result, len(hosts))
	for _, host := range hosts {
		go func() {
			l, err := greet(ctx, host)
			results <- result{l, err}
		}()
	}
	var won *link
	var failed error
	for range hosts {
		switch r := <-results; {
		case r.err == nil && won == nil:
			won = r.link
			cancel()
		case r.err == nil:
			r.link.close()
		case failed == nil || errors.As(r.err, new(*pgconn.PgError)): // an answer explains more than a silence
			failed = r.err
		}
	}
	if won != nil {
		return won, nil
	}
	if loginRefused(failed) {
		return nil, failed
	}
	return nil, unconnected(failed, cfg)
}

// each splits a configuration into one per host. The attempts at one host, with TLS and without, stay
// together.
func each(cfg *pgx.ConnConfig) []*pgx.ConnConfig {
	all := append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
	var hosts []*pgx.ConnConfig
	for _, f := range all {
		if n := len(hosts); n > 0 && hosts[n-1].Host == f.Host && hosts[n-1].Port == f.Port {
			hosts[n-1].Fallbacks = append(hosts[n-1].Fallbacks, f)
			continue
		}
		one := cfg.Copy()
		one.Host, one.Port, one.TLSConfig, one.Fallbacks = f.Host, f.Port, f.TLSConfig, nil
		hosts = append(hosts, one)
	}
	return hosts
}

// meet connects to one host.
func meet(ctx context.Context, cfg *pgx.ConnConfig) (*link, error) {
	l := &link{}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Code == "01000" { // "canceling wait for synchronous replication"; nothing else here warns
			l.unconfirmed.Store(true)
		}
	}
	var err error
	if l.Conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, err
	}
	return l, nil
}

// greet connects to one host, and asks what it is and whether the login may use the cluster.
func (s *Store) greet(ctx context.Context, cfg *pgx.ConnConfig) (*link, error) {
	l, err := meet(ctx, cfg)
	if err != nil {
		return nil, err
	}
	var pid uint32
	var is int
	var system, timeline string
	err = l.QueryRow(ctx, "SELECT pid, layout, system, timeline, channel FROM tanist_store.hello($1)", s.cfg.Cluster).
		Scan(&pid, &is, &system, &timeline, &l.channel)
	switch {
	case err != nil:
	case pid != l.PgConn().PID():
		err = errPooler
	case is < layout: // a later one serves this version too
		err = errLayout(is)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	// A server that was promoted, or restored to a point in time, has another timeline. It may have
	// lost what this one confirmed, so it counts as another store.
	l.origin = election.Origin{Store: system + "/" + timeline}
	return l, nil
}

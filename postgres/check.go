package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Severity says how bad a finding is.
type Severity string

// The severities of findings.
const (
	Refuse Severity = "error"   // the fence does not hold with this
	Warn   Severity = "warning" // the fence holds with a limit that one should know
	Advise Severity = "advice"  // the fence holds and could be quicker or sturdier
)

// Finding is one result of [Check].
type Finding struct {
	Severity Severity
	Code     string // a stable word: "superuser", "trust", "async-standby"
	Text     string // what was found
	Do       string // what to do about it
}

func (f Finding) String() string {
	return fmt.Sprintf("%s [%s]: %s; %s", f.Severity, f.Code, f.Text, f.Do)
}

// CheckOptions says what [Check] is to look at.
type CheckOptions struct {
	DSN     string // of a sidecar's login, or of a superuser
	Cluster string
	// Role, if not empty, is the login of this host's controller. It is tried with a wrong password, to see whether
	// passwords are asked for.
	Role string
	// AllowPrepared and AllowAsync turn findings that refuse into warnings.
	AllowPrepared bool // max_prepared_transactions > 0
	AllowAsync    bool // asynchronous standbys
}

// Check looks for what would make the fence hollow or slow. It changes nothing. An error means that the
// repository could not be asked; findings are no error.
func Check(ctx context.Context, o CheckOptions) ([]Finding, error) {
	cfg, err := parse(o.DSN, 20*time.Second)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot check the repository: %w%s", err, advice(err))
	}
	c := &checker{CheckOptions: o}
	err = errors.Join(c.server(ctx, conn), c.logins(ctx, conn), c.replication(ctx, conn))
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelClosing()
	_ = conn.Close(closing) // nothing was written
	if err != nil {
		return nil, fmt.Errorf("cannot check the repository: %w%s", err, advice(err))
	}
	if o.Role != "" {
		c.trust(ctx, cfg)
	}
	c.transport(cfg)
	return c.findings, nil
}

type checker struct {
	CheckOptions
	findings []Finding
}

func (c *checker) find(s Severity, code, do, format string, args ...any) {
	c.findings = append(c.findings, Finding{Severity: s, Code: code, Text: fmt.Sprintf(format, args...), Do: do})
}

func allowed(yes bool) Severity {
	if yes {
		return Warn
	}
	return Refuse
}

func (c *checker) server(ctx context.Context, conn *pgx.Conn) error {
	var version, prepared, waiting int
	var authentication time.Duration
	var seconds int64
	var recovery bool
	var fsync string
	var pid uint32
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('max_prepared_transactions')::int,
		(SELECT count(*) FROM pg_prepared_xacts), (SELECT setting::bigint FROM pg_settings WHERE name = 'authentication_timeout'),
		pg_is_in_recovery(), current_setting('fsync'), pg_backend_pid()`).
		Scan(&version, &prepared, &waiting, &seconds, &recovery, &fsync, &pid)
	if err != nil {
		return err
	}
	authentication = time.Duration(seconds) * time.Second
	if version < 140000 {
		c.find(Refuse, "version", "use PostgreSQL 15, 16 or 17", "this is PostgreSQL %d; the fence is tested on 15", version/10000)
	}
	if pid != conn.PgConn().PID() {
		c.find(Refuse, "pooler", "let repository.dsn_file point to the server itself; the program may use a pooler that logs in with the program's own role and secret",
			"the sidecar's connection goes through a connection pooler, which shares and replaces connections behind the fence's back")
	}
	if recovery {
		c.find(Refuse, "standby", "point repository.dsn_file to the primary (several hosts and target_session_attrs=read-write)", "this server is a standby")
	}
	if prepared > 0 {
		c.find(allowed(c.AllowPrepared), "prepared-transactions", "set max_prepared_transactions = 0, or allow it and leave their fate to the program's transaction manager",
			"max_prepared_transactions is %d (%d are waiting now): a prepared transaction of an older term survives the fence, and whoever may, can commit it later", prepared, waiting)
	}
	if authentication > 10*time.Second {
		c.find(Advise, "authentication-timeout", "set authentication_timeout = 10s",
			"authentication_timeout is %v: a client that stops half-way through its log-in can delay a takeover by that long", authentication)
	}
	if fsync == "off" {
		c.find(Warn, "fsync", "set fsync = on", "fsync is off: a crash of the server's host may undo a fence")
	}
	return nil
}

func (c *checker) logins(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "SELECT controller, program, role, present, coalesce(connections, 0), above FROM tanist.inspect($1)", c.Cluster)
	if err != nil {
		return err
	}
	type login struct {
		Controller  string
		Program     bool
		Role        string
		Present     bool
		Connections int
		Above       []string
	}
	logins, err := pgx.CollectRows(rows, pgx.RowToStructByPos[login])
	if err != nil {
		return err
	}
	if len(logins) == 0 {
		c.find(Refuse, "no-controllers", `run "tanist repository init"`, "the repository knows no controllers of cluster %s", c.Cluster)
	}
	for _, l := range logins {
		what := "the sidecar's login " + l.Role
		if l.Program {
			what = "the program's login " + l.Role
		}
		switch {
		case !l.Present:
			c.find(Refuse, "no-role", `run "tanist repository init"`, "%s of controller %s does not exist", what, l.Controller)
		case len(l.Above) > 0:
			c.find(Refuse, "above-the-fence", "take that away from it", "%s of controller %s has %s", what, l.Controller, strings.Join(l.Above, ", "))
		case l.Program && l.Connections < 0:
			c.find(Advise, "connection-limit", "ALTER ROLE "+ident(l.Role)+" CONNECTION LIMIT n, a few less than max_connections",
				"%s of controller %s may take all the connections of the server", what, l.Controller)
		}
	}
	return nil
}

func (c *checker) replication(ctx context.Context, conn *pgx.Conn) error {
	var receiving, asynchronous int
	if err := conn.QueryRow(ctx, "SELECT receiving, asynchronous FROM tanist.standbys($1)", c.Cluster).Scan(&receiving, &asynchronous); err != nil {
		return err
	}
	if asynchronous > 0 {
		c.find(allowed(c.AllowAsync), "async-standby", "name it in synchronous_standby_names, or never promote it while a controller of an older term may live",
			"%d of %d standbys are asynchronous: the promotion of one may lose the fence itself; the active sidecar sees that and fences again, but until then an older term may write", asynchronous, receiving)
	}
	return nil
}

// trust logs in as the program with a password that can't be right. A server that says that the role may not log in, or lets it
// in, has not looked at the password.
func (c *checker) trust(ctx context.Context, sidecar *pgx.ConnConfig) {
	cfg := sidecar.Copy()
	cfg.User, cfg.Password = c.Role, newSecret()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err == nil {
		_ = conn.Close(ctx)
	}
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe) && pe.Code == "28P01":
	case err == nil, errors.As(err, &pe) && pe.Code == "28000" && strings.Contains(pe.Message, "not permitted to log in"):
		c.find(Refuse, "trust", "let pg_hba.conf ask "+ident(c.Role)+" for scram-sha-256 on every way in",
			"pg_hba.conf lets %s in without its password: an old process of the same controller could come back in a later term", c.Role)
	default:
		c.find(Warn, "login-untried", "check pg_hba.conf for "+ident(c.Role)+" from this host", "the log-in of %s could not be tried: %v", c.Role, err)
	}
}

func (c *checker) transport(cfg *pgx.ConnConfig) {
	if cfg.TLSConfig != nil && !cfg.TLSConfig.InsecureSkipVerify || strings.HasPrefix(cfg.Host, "/") {
		return
	}
	if ip := net.ParseIP(cfg.Host); cfg.Host == "localhost" || ip.IsLoopback() {
		return
	}
	c.find(Warn, "tls", "use sslmode=verify-full and sslrootcert", "the connection to %s is not protected against others on the network", cfg.Host)
}

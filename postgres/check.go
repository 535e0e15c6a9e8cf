package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Severity is how serious a finding is.
type Severity string

// The severities of findings.
const (
	Refuse Severity = "error"   // the fence does not hold with this
	Warn   Severity = "warning" // the fence holds, with a limit that the operator should know
	Advise Severity = "advice"  // the fence holds and could be faster or more robust
)

// Finding is one result of [Check].
type Finding struct {
	Severity Severity
	Code     string // a stable word: "above-the-fence", "trust", "async-standby"
	Text     string // what was found
	Do       string // what to do about it
}

func (f Finding) String() string {
	return fmt.Sprintf("%s [%s]: %s; %s", f.Severity, f.Code, f.Text, f.Do)
}

// CheckOptions selects what [Check] examines.
type CheckOptions struct {
	DSN     string // of a sidecar's login or of a superuser
	Cluster string
	// Role is the login of this host's controller. Check tries to log in as it with a wrong
	// password over every way from this host, to find servers that do not ask for one. If empty, it
	// is the role of the sidecar that the login belongs to, or every role of the cluster for a
	// superuser.
	Role string
	// GiveUp is the sidecar's repository.give_up. Zero means unknown.
	GiveUp time.Duration
	// AllowPrepared and AllowAsync turn these errors into warnings.
	AllowPrepared bool // max_prepared_transactions > 0
	AllowAsync    bool // asynchronous standbys
}

// Check reports what would make the fence hollow or slow. It evaluates the list of conditions that
// init enforces and [Fence.Ready] watches, and it examines the connection itself. It changes
// nothing. The error is non-nil only if Check could not query the repository; findings are not
// errors.
func Check(ctx context.Context, o CheckOptions) ([]Finding, error) {
	cfg, err := parse(o.DSN, 20*time.Second)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot check the repository: %w%s", err, advice(err))
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // nothing was written
	}()
	findings, err := conditions(ctx, conn, o.Cluster, o.GiveUp)
	if err != nil {
		return nil, fmt.Errorf("cannot check the repository: %w%s", err, advice(err))
	}
	for i, f := range findings {
		if f.Code == "prepared-transactions" && o.AllowPrepared || f.Code == "async-standby" && o.AllowAsync {
			findings[i].Severity = Warn
		}
	}
	roles := []string{o.Role}
	if o.Role == "" {
		if roles, err = programs(ctx, conn, o.Cluster); err != nil {
			return nil, fmt.Errorf("cannot check the repository: %w%s", err, advice(err))
		}
	}
	for _, role := range roles {
		findings = append(findings, knock(ctx, ways(ctx, conn, cfg), role)...)
	}
	return append(findings, transport(ctx, conn, cfg)...), nil
}

// conditions reads the list of conditions from the repository.
func conditions(ctx context.Context, conn *pgx.Conn, cluster string, giveUp time.Duration) ([]Finding, error) {
	var seconds *int64
	if giveUp > 0 {
		n := int64(giveUp / time.Second)
		seconds = &n
	}
	rows, err := conn.Query(ctx, "SELECT severity, code, found, remedy FROM tanist.conditions($1, $2)", cluster, seconds)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Finding])
}

// programs returns the roles of the programs that the login may see: its own, or all of the cluster
// for a superuser.
func programs(ctx context.Context, conn *pgx.Conn, cluster string) ([]string, error) {
	var role string
	err := conn.QueryRow(ctx, "SELECT role FROM tanist.assert($1)", cluster).Scan(&role)
	if code, _ := refusal(err); code != stateStranger {
		return []string{role}, err
	}
	rows, err := conn.Query(ctx, "SELECT role FROM tanist.controller WHERE cluster = $1 ORDER BY role", cluster)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// transport examines the sidecar's own connection.
func transport(ctx context.Context, conn *pgx.Conn, cfg *pgx.ConnConfig) []Finding {
	var findings []Finding
	var pid uint32
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err == nil && pid != conn.PgConn().PID() {
		findings = append(findings, Finding{
			Refuse, "pooler",
			"the sidecar's connection goes through a connection pooler, which shares and replaces connections behind the fence's back",
			"let repository.dsn_file point to the server itself; the program may use a pooler that logs in with the program's own role and secret",
		})
	}
	if cfg.TLSConfig != nil && !cfg.TLSConfig.InsecureSkipVerify || strings.HasPrefix(cfg.Host, "/") {
		return findings
	}
	if ip := net.ParseIP(cfg.Host); cfg.Host == "localhost" || ip.IsLoopback() {
		return findings
	}
	return append(findings, Finding{
		Warn, "tls", fmt.Sprintf("the connection to %s is not protected against others on the network", cfg.Host),
		"use sslmode=verify-full and sslrootcert",
	})
}

// way is one way to reach the server from this host.
type way struct {
	name string
	cfg  *pgx.ConnConfig
	own  bool // the way that the sidecar uses
}

// ways returns those of the connection string and, on the server's own host, the loopback addresses
// and the sockets.
func ways(ctx context.Context, conn *pgx.Conn, sidecar *pgx.ConnConfig) []way {
	var all []way
	add := func(host string, port uint16, own bool, of *pgconn.FallbackConfig) {
		cfg := sidecar.Copy()
		cfg.Host, cfg.Port, cfg.Fallbacks, cfg.ConnectTimeout = host, port, nil, 2*time.Second
		cfg.ValidateConnect = nil
		tls := "without TLS"
		if cfg.TLSConfig = nil; of != nil {
			cfg.TLSConfig = of.TLSConfig
		}
		if cfg.TLSConfig != nil {
			tls = "with TLS"
		}
		name := net.JoinHostPort(host, strconv.Itoa(int(port))) + " " + tls
		if strings.HasPrefix(host, "/") {
			name = host
		}
		if !slices.ContainsFunc(all, func(w way) bool { return w.name == name }) {
			all = append(all, way{name: name, cfg: cfg, own: own})
		}
	}
	add(sidecar.Host, sidecar.Port, true, &pgconn.FallbackConfig{TLSConfig: sidecar.TLSConfig})
	for _, f := range sidecar.Fallbacks {
		add(f.Host, f.Port, true, f)
	}
	// If the query fails, these ways are not tried. Another check refuses a login that may not call
	// it.
	var near bool
	var port int
	var directories []string
	if err := conn.QueryRow(ctx, "SELECT near, port, directories FROM tanist.paths()").Scan(&near, &port, &directories); err != nil || !near {
		return all
	}
	for _, host := range append([]string{"127.0.0.1", "::1"}, directories...) {
		add(host, uint16(port), false, nil)
	}
	return all
}

// knock logs in as the program with a wrong password over every way from this host. A server that
// lets it in, or answers that the role may not log in, did not check the password.
func knock(ctx context.Context, ways []way, role string) []Finding {
	var findings []Finding
	var untried error // the last error of the sidecar's own ways that is not about the password
	asked := false
	for _, w := range ways {
		w.cfg.User, w.cfg.Password = role, newSecret()
		c, err := dial(ctx, w.cfg)
		if err == nil {
			_ = c.Close(ctx)
		}
		var pe *pgconn.PgError
		switch {
		case errors.As(err, &pe) && pe.Code == "28P01":
			asked = asked || w.own
		case err == nil, errors.As(err, &pe) && pe.Code == "28000" && strings.Contains(pe.Message, "not permitted to log in"):
			asked = asked || w.own
			findings = append(findings, Finding{
				Refuse, "trust",
				fmt.Sprintf("%s is let in without its password at %s: an old process of the same controller could come back in a later term", ident(role), w.name),
				"let pg_hba.conf ask " + ident(role) + " for scram-sha-256 on every way in",
			})
		case w.own:
			untried = err
		}
	}
	if !asked && untried != nil {
		findings = append(findings, Finding{
			Warn, "login-untried", fmt.Sprintf("the login of %s could not be tried: %v", ident(role), untried),
			"check pg_hba.conf for " + ident(role) + " from this host",
		})
	}
	return findings
}

// doors caches the last result of knock. Each round leaves lines in the server's log, so rounds are
// rare.
type doors struct {
	mu       sync.Mutex
	when     time.Time     // start of the last round
	running  chan struct{} // closed when the current round ends; nil if there is none
	findings []Finding
}

const knockEvery = 5 * time.Minute

// knocked begins a round of knock if one is due. Only the first is waited for, up to a second: a
// round may try dead hosts.
func (f *Fence) knocked(ctx context.Context) {
	d := &f.doors
	d.mu.Lock()
	every := knockEvery
	if len(d.findings) > 0 {
		every = 10 * time.Second // an operator is probably fixing it
	}
	if d.running == nil && (d.when.IsZero() || time.Since(d.when) > every) {
		d.running = make(chan struct{})
		f.background.Go(f.knock)
	}
	running, first := d.running, d.when.IsZero()
	d.mu.Unlock()
	if running == nil || !first {
		return
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-running:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// knock runs one round.
func (f *Fence) knock() {
	ctx, cancel := context.WithTimeout(f.lifetime, 30*time.Second)
	defer cancel()
	all, err := ask(ctx, f.link, func(ctx context.Context, conn *pgx.Conn) ([]way, error) {
		return ways(ctx, conn, f.link.source.config()), nil
	})
	var findings []Finding
	if err == nil {
		findings = knock(ctx, all, f.cfg.Role)
	}
	d := &f.doors
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.when, d.findings = time.Now(), findings
	}
	close(d.running)
	d.running = nil
}

func (d *doors) found() []Finding {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.findings)
}

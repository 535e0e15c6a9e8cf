package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
)

//go:embed fence.sql
var fenceSQL string

// SetupOptions describes the repository of one cluster to [SetupSQL].
type SetupOptions struct {
	Cluster     string
	Controllers []SetupController
	// AppRole is a role without login that owns the program's objects; every controller's role becomes a member of it,
	// and works as it from the start of a session, so that it does not matter which of them created a table. It is
	// created if absent. Empty: none, the operator takes care of the grants.
	AppRole string
	// AppSchema is a schema in which AppRole may create objects. Empty: none.
	AppSchema string
}

// SetupController is one controller of a cluster.
type SetupController struct {
	Name    string // as in its configuration file
	Role    string // the login of its program
	Sidecar string // the login of its sidecar
	// SidecarPassword, if not empty, is set for Sidecar; only its verifier appears in the SQL.
	SidecarPassword string
}

func (o SetupOptions) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Cluster == "" {
		bad("the cluster has no name")
	}
	if len(o.Controllers) == 0 {
		bad("there is no controller")
	}
	name, logins := map[string]bool{}, map[string]string{}
	login := func(role, what string) {
		switch {
		case role == "":
			bad("%s is empty", what)
		case len(role) > 63:
			bad("%s %q is longer than 63 bytes, which PostgreSQL would cut", what, role)
		case strings.HasPrefix(role, "pg_") || role == "public" || role == "none" || role == ownerRole:
			bad("%s %q is a reserved name", what, role)
		case strings.ContainsRune(role, 0):
			bad("%s contains a zero byte", what)
		case logins[role] != "":
			bad("%s %q is also %s; every login must be another role", what, role, logins[role])
		}
		logins[role] = what
	}
	for _, c := range o.Controllers {
		if c.Name == "" {
			bad("a controller has no name")
		}
		if name[c.Name] {
			bad("controller %q is there twice", c.Name)
		}
		name[c.Name] = true
		login(c.Role, "the role of "+c.Name)
		login(c.Sidecar, "the sidecar login of "+c.Name)
	}
	if o.AppRole != "" {
		login(o.AppRole, "the owner of the program's objects")
	}
	if o.AppSchema != "" && o.AppRole == "" {
		bad("a schema for the program needs a role that owns it")
	}
	return errors.Join(errs...)
}

// ownerRole owns the fence. Nobody logs in as it.
const ownerRole = "tanist_owner"

func literal(s string) string {
	if strings.Contains(s, `\`) {
		return "E'" + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(s) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

func ident(s string) string { return pgx.Identifier{s}.Sanitize() }

// SetupSQL returns the SQL that prepares a database as the repository of a cluster. It is one transaction, has to be
// run by a superuser in the program's database, and may be run again: to add a controller, or after an upgrade of Tanist. What runs is not disturbed
// by that, except that a controller that is new to the fence can't log in any more until it is active.
func SetupSQL(o SetupOptions) (string, error) {
	if err := o.validate(); err != nil {
		return "", fmt.Errorf("cannot set the repository up: %w", err)
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	role := func(name, attributes string) {
		line("DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s) THEN CREATE ROLE %s %s; END IF; END $do$;",
			literal(name), ident(name), attributes)
	}
	cluster := literal(o.Cluster)

	line("BEGIN;")
	line("SET LOCAL search_path = pg_catalog, pg_temp;")
	line("SET LOCAL client_min_messages = warning;")
	line("SET LOCAL lock_timeout = '10s';")
	line("")
	line("-- The owner of the fence: may shut roles out and end sessions, and nobody can log in as it.")
	role(ownerRole, "NOLOGIN")
	line("ALTER ROLE %s NOLOGIN NOSUPERUSER CREATEROLE NOREPLICATION NOCREATEDB PASSWORD NULL;", ownerRole)
	line("GRANT pg_signal_backend, pg_read_all_stats TO %s;", ownerRole)
	line("CREATE SCHEMA IF NOT EXISTS tanist AUTHORIZATION %s;", ownerRole)
	line("SET LOCAL ROLE %s;", ownerRole)
	line("")
	b.WriteString(fenceSQL)
	line("")
	line("RESET ROLE;")
	line("")
	line("INSERT INTO tanist.fence (cluster) VALUES (%s) ON CONFLICT DO NOTHING;", cluster)
	if o.AppRole != "" {
		line("")
		line("-- The owner of the program's objects.")
		role(o.AppRole, "NOLOGIN")
		if o.AppSchema != "" {
			line("CREATE SCHEMA IF NOT EXISTS %s AUTHORIZATION %s;", ident(o.AppSchema), ident(o.AppRole))
			line("GRANT USAGE, CREATE ON SCHEMA %s TO %s;", ident(o.AppSchema), ident(o.AppRole))
		}
	}
	for _, c := range o.Controllers {
		line("")
		line("-- Controller %s", strings.Join(strings.Fields(c.Name), " "))
		role(c.Role, "NOLOGIN NOINHERIT")
		if o.AppRole != "" {
			line("GRANT %s TO %s;", ident(o.AppRole), ident(c.Role))
			line("ALTER ROLE %s INHERIT;", ident(c.Role))
			line("ALTER ROLE %s SET role = %s;", ident(c.Role), literal(o.AppRole))
		}
		// From 16 on CREATEROLE alone does not allow to alter a role that somebody else created.
		line("DO $do$ BEGIN IF current_setting('server_version_num')::int >= 160000 THEN EXECUTE format('GRANT %%I TO %s WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', %s); END IF; END $do$;",
			ownerRole, literal(c.Role))
		line("DO $do$ BEGIN IF NOT EXISTS (SELECT FROM tanist.controller WHERE cluster = %s AND role = %s) THEN ALTER ROLE %s NOLOGIN PASSWORD NULL; END IF; END $do$;",
			cluster, literal(c.Role), ident(c.Role))
		role(c.Sidecar, "LOGIN NOINHERIT CONNECTION LIMIT 10")
		if c.SidecarPassword != "" {
			v, err := verifier(c.SidecarPassword)
			if err != nil {
				return "", err
			}
			line("ALTER ROLE %s PASSWORD %s;", ident(c.Sidecar), literal(v))
		}
		line("ALTER ROLE %s SET statement_timeout = '30s';", ident(c.Sidecar))
		line("ALTER ROLE %s SET lock_timeout = '10s';", ident(c.Sidecar))
		line("ALTER ROLE %s SET idle_in_transaction_session_timeout = '10s';", ident(c.Sidecar))
		line("GRANT USAGE ON SCHEMA tanist TO %s;", ident(c.Sidecar))
		line("GRANT EXECUTE ON FUNCTION tanist.begin, tanist.drain, tanist.seal, tanist.open, tanist.close, tanist.assert, tanist.inspect, tanist.standbys TO %s;", ident(c.Sidecar))
		line("INSERT INTO tanist.controller (cluster, name, role, sidecar) VALUES (%s, %s, %s, %s)", cluster, literal(c.Name), literal(c.Role), literal(c.Sidecar))
		line("    ON CONFLICT (cluster, name) DO UPDATE SET role = excluded.role, sidecar = excluded.sidecar;")
	}
	line("")
	line("COMMIT;")
	return b.String(), nil
}

// Init applies [SetupSQL] to the database of dsn, which must be a superuser's. All of it is applied or nothing.
func Init(ctx context.Context, dsn string, o SetupOptions) error {
	sql, err := SetupSQL(o)
	if err != nil {
		return err
	}
	return asOperator(ctx, dsn, "set the repository up", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
		return err
	})
}

// Reset shuts every controller of a cluster out of the repository, ends their sessions, and sets the term, which may
// be lower than it was. It is for an operator who has made sure that no sidecar of the cluster runs: a sidecar of a
// higher term that still runs could come back. It returns how many sessions were told to end. dsn must be a superuser's.
func Reset(ctx context.Context, dsn, cluster string, term election.Term) (int, error) {
	var n int
	err := asOperator(ctx, dsn, "reset the fence", func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT tanist.reset($1, $2)", cluster, int64(term)).Scan(&n)
	})
	return n, err
}

// asOperator runs do on a connection that lives for it alone.
func asOperator(ctx context.Context, dsn, what string, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cfg, err := parse(dsn, time.Minute)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	err = do(ctx, conn)
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelClosing()
	_ = conn.Close(closing) // what was done is committed or not; the good-bye does not matter
	if err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
)

// The SQL of the fence: its tables and steps, the list of conditions, and the search for foreign
// objects in its schema.
var (
	//go:embed fence.sql
	fenceSQL string
	//go:embed conditions.sql
	conditionsSQL string
	//go:embed strange.sql
	strangeSQL string
)

// SetupOptions describes the repository of one cluster to [SetupSQL].
type SetupOptions struct {
	Cluster     string
	Controllers []SetupController
	// AppRole is a role without login that owns the program's objects. Every controller's role is a
	// member of it and switches to it at the start of each session, so that it does not matter
	// which controller created a table. It is created if absent. If empty, the operator manages the
	// grants.
	AppRole string
	// AppSchema is a schema in which AppRole may create objects. Empty means none.
	AppSchema string
	// ShutOut are roles that could log in and act as AppRole until now, such as the login of a
	// program that is put under the fence. They lose their login; [RemoveSQL] gives it back.
	ShutOut []string

	// The operator guarantees these conditions.
	AllowPrepared    bool // max_prepared_transactions > 0
	AllowAsync       bool // asynchronous standbys
	AllowLocalLogins bool // no controller runs on the server's host, so local logins do not matter
}

// SetupController is one controller of a cluster.
type SetupController struct {
	Name    string // as in its configuration file
	Role    string // the login of its program
	Sidecar string // the login of its sidecar
	// SidecarPassword, if not empty, is set for Sidecar. The SQL contains only its verifier.
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
			bad("controller %q is listed twice", c.Name)
		}
		name[c.Name] = true
		login(c.Role, "the role of "+c.Name)
		login(c.Sidecar, "the sidecar login of "+c.Name)
	}
	if o.AppRole != "" {
		login(o.AppRole, "the owner of the program's objects")
	}
	for _, role := range o.ShutOut {
		if what := logins[role]; what != "" && role != o.AppRole {
			bad("%q cannot be shut out: it is %s", role, what)
		}
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

// script collects the statements for an operator.
type script struct{ strings.Builder }

func (s *script) line(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

// do runs statements in a block of PL/pgSQL.
func (s *script) do(format string, args ...any) {
	s.line("DO $do$ "+format+" $do$;", args...)
}

// role creates a role if it does not exist.
func (s *script) role(name, attributes string) {
	s.do("BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %s) THEN CREATE ROLE %s %s; END IF; END", literal(name), ident(name), attributes)
}

// administer lets the owner of the fence alter a role. From 16 on CREATEROLE alone does not cover
// roles that another role created.
func (s *script) administer(role string) {
	s.do("BEGIN IF current_setting('server_version_num')::int >= 160000 THEN EXECUTE format('GRANT %%I TO %s WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', %s); END IF; END",
		ownerRole, literal(role))
}

// begin opens the operator's transaction. An unqualified name never resolves to an object that
// others may have made.
func (s *script) begin() {
	s.line("BEGIN;")
	s.line("SET LOCAL search_path = pg_catalog, pg_temp;")
	s.line("SET LOCAL client_min_messages = warning;")
	s.line("SET LOCAL lock_timeout = '10s';")
}

// SetupSQL returns the SQL that prepares a database as the repository of a cluster. It is one
// transaction and must be run by a superuser in the program's database. It may be run again, to add
// a controller or after an upgrade of Tanist. It does not disturb what runs, except that a
// controller that is new to the fence can't log in until it is active.
//
// It trusts nothing that exists already: what it finds in the schema tanist must be the fence's
// own. It ends with the list of conditions of [Check] and rolls back if one of them is an error.
func SetupSQL(o SetupOptions) (string, error) {
	if err := o.validate(); err != nil {
		return "", fmt.Errorf("cannot set the repository up: %w", err)
	}
	var s script
	s.begin()
	s.line("")
	s.line("-- The owner of the fence: may shut roles out and end sessions, and nobody can log in as it.")
	s.role(ownerRole, "NOLOGIN")
	s.line("ALTER ROLE %s NOLOGIN NOSUPERUSER CREATEROLE NOREPLICATION NOCREATEDB PASSWORD NULL;", ownerRole)
	s.line("GRANT pg_signal_backend, pg_read_all_stats, pg_read_all_settings TO %s;", ownerRole)
	s.line("GRANT SELECT ON pg_catalog.pg_hba_file_rules TO %s;", ownerRole)
	s.line("GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO %s;", ownerRole)
	s.line("-- What somebody else has put there is refused, object by object, before anything of it is used.")
	s.do(`DECLARE bad text; BEGIN
    SELECT string_agg(format('%%I is a member of %s', pg_get_userbyid(member)), E'\n') INTO bad
      FROM pg_auth_members JOIN pg_roles r ON r.oid = member WHERE roleid = (SELECT oid FROM pg_roles WHERE rolname = '%s') AND NOT r.rolsuper;
    IF bad IS NULL AND EXISTS (SELECT FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE r.rolname = '%s') THEN
        bad := 'somebody is logged in as %s';
    END IF;
    IF bad IS NULL AND to_regnamespace('tanist') IS NULL THEN
        CREATE SCHEMA tanist AUTHORIZATION %s;
    ELSIF bad IS NULL THEN
        SELECT string_agg(s.what, E'\n') INTO bad FROM (%s) s (what);
    END IF;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION E'somebody else has prepared the schema tanist, nothing was changed:\n%%', bad
            USING ERRCODE = 'TN006', HINT = 'Find out who and why; DROP SCHEMA tanist CASCADE if it is of no use.';
    END IF;
END`, ownerRole, ownerRole, ownerRole, ownerRole, ownerRole, strangeSQL)
	s.line("")
	s.WriteString(superuserSQL)
	s.line("SET LOCAL ROLE %s;", ownerRole)
	s.line("")
	s.WriteString(fenceSQL)
	s.WriteString(strings.Replace(conditionsSQL, "@STRANGE@", strangeSQL, 1))
	s.line("REVOKE ALL ON ALL TABLES IN SCHEMA tanist FROM PUBLIC;")
	s.line("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tanist FROM PUBLIC;")
	s.line("")
	o.register(&s)
	s.line("RESET ROLE;")
	if err := o.grant(&s); err != nil {
		return "", err
	}
	s.line("")
	s.line("SELECT tanist.settle(%s);", literal(o.Cluster))
	s.line("SELECT tanist.verify(%s);", literal(o.Cluster))
	s.line("COMMIT;")
	return s.String(), nil
}

// superuserSQL returns the two functions that need more privileges than the owner of the fence has.
// The superuser who runs init creates them. Each does one narrow thing, and only the owner of the
// fence may call it.
const superuserSQL = `-- end_starting ends those of the given backends that are still being authenticated.
CREATE OR REPLACE FUNCTION tanist.end_starting(_pids int[]) RETURNS int
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT count(pg_terminate_backend(p))::int FROM unnest(_pids) p
     WHERE p <> pg_backend_pid()
       AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = p AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock')
       AND NOT EXISTS (SELECT FROM pg_stat_activity a
                        WHERE a.pid = p AND (a.usesysid IS NOT NULL OR a.backend_type NOT IN ('client backend', 'walsender')));
$fn$;
-- verifier_is reports whether a role has exactly this verifier, and nothing else about it.
CREATE OR REPLACE FUNCTION tanist.verifier_is(_role name, _verifier text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT EXISTS (SELECT FROM pg_authid WHERE rolname = _role AND rolpassword = _verifier);
$fn$;
REVOKE ALL ON FUNCTION tanist.end_starting, tanist.verifier_is FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tanist.end_starting, tanist.verifier_is TO ` + ownerRole + `;
`

// register records the members of the cluster, as the owner of the fence. A controller's former
// role stays bound.
func (o SetupOptions) register(s *script) {
	cluster := literal(o.Cluster)
	allowed := []string{}
	for name, yes := range map[string]bool{"prepared": o.AllowPrepared, "async": o.AllowAsync, "local-logins": o.AllowLocalLogins} {
		if yes {
			allowed = append(allowed, name)
		}
	}
	slices.Sort(allowed)
	app := "NULL"
	if o.AppRole != "" {
		app = literal(o.AppRole)
	}
	s.line("INSERT INTO tanist.fence (cluster, app_role, allowed) VALUES (%s, %s, '{%s}')", cluster, app, strings.Join(allowed, ","))
	s.line("    ON CONFLICT (cluster) DO UPDATE SET app_role = excluded.app_role, allowed = excluded.allowed;")
	s.line("SELECT tanist.bind(%s);", cluster)
	for _, c := range o.Controllers {
		s.line("SELECT tanist.enrol(%s, %s, %s, %s);", cluster, literal(c.Name), literal(c.Role), literal(c.Sidecar))
	}
}

// grant creates the roles and grants what they need, as the superuser.
func (o SetupOptions) grant(s *script) error {
	cluster := literal(o.Cluster)
	if o.AppRole != "" {
		s.line("")
		s.line("-- The owner of the program's objects.")
		s.role(o.AppRole, "NOLOGIN")
		if o.AppSchema != "" {
			s.line("CREATE SCHEMA IF NOT EXISTS %s AUTHORIZATION %s;", ident(o.AppSchema), ident(o.AppRole))
			s.line("GRANT USAGE, CREATE ON SCHEMA %s TO %s;", ident(o.AppSchema), ident(o.AppRole))
		}
	}
	for _, role := range o.ShutOut {
		s.line("")
		s.line("-- Until now it could log in without the fence.")
		s.administer(role)
		s.line("SELECT tanist.cast_out(%s, %s);", cluster, literal(role))
	}
	for _, c := range o.Controllers {
		s.line("")
		s.line("-- Controller %s", strings.Join(strings.Fields(c.Name), " "))
		s.role(c.Role, "NOLOGIN NOINHERIT")
		if o.AppRole != "" {
			s.line("GRANT %s TO %s;", ident(o.AppRole), ident(c.Role))
			s.line("ALTER ROLE %s INHERIT;", ident(c.Role))
			s.line("ALTER ROLE %s SET role = %s;", ident(c.Role), literal(o.AppRole))
		}
		s.administer(c.Role)
		s.role(c.Sidecar, "LOGIN NOINHERIT CONNECTION LIMIT 20")
		s.do("BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = %s AND rolconnlimit = 10) THEN ALTER ROLE %s CONNECTION LIMIT 20; END IF; END",
			literal(c.Sidecar), ident(c.Sidecar)) // an earlier version set this
		if c.SidecarPassword != "" {
			v, err := verifier(c.SidecarPassword)
			if err != nil {
				return err
			}
			s.line("ALTER ROLE %s PASSWORD %s;", ident(c.Sidecar), literal(v))
		}
		// The server detects a silently dropped connection within seconds, not two hours: its slot
		// is needed.
		for _, setting := range []string{
			"statement_timeout = '30s'", "lock_timeout = '10s'", "idle_in_transaction_session_timeout = '10s'",
			"tcp_keepalives_idle = 5", "tcp_keepalives_interval = 2", "tcp_keepalives_count = 3", "tcp_user_timeout = '10s'",
		} {
			s.line("ALTER ROLE %s SET %s;", ident(c.Sidecar), setting)
		}
		s.do("BEGIN IF current_setting('server_version_num')::int >= 160000 THEN EXECUTE format('GRANT pg_use_reserved_connections TO %%I WITH INHERIT TRUE', %s); END IF; END",
			literal(c.Sidecar))
		s.line("GRANT USAGE ON SCHEMA tanist TO %s;", ident(c.Sidecar))
		s.line("GRANT EXECUTE ON FUNCTION tanist.begin, tanist.drain, tanist.open, tanist.close, tanist.assert, tanist.conditions, tanist.paths TO %s;", ident(c.Sidecar))
	}
	return nil
}

// RemoveSQL returns the SQL that takes a cluster off the fence: it shuts out the controllers, gives
// the roles that init shut out their login back, and makes the fence forget the cluster. The
// program's objects keep their owner. It reverts [SetupSQL] and must be run by a superuser while no
// sidecar of the cluster runs.
func RemoveSQL(cluster string) (string, error) {
	if cluster == "" {
		return "", errors.New("cannot remove the cluster from the fence: it has no name")
	}
	var s script
	s.begin()
	s.line("SELECT tanist.remove(%s);", literal(cluster))
	s.line("COMMIT;")
	return s.String(), nil
}

// Remove applies [RemoveSQL] to the database of dsn, which must be a superuser's.
func Remove(ctx context.Context, dsn, cluster string) error {
	sql, err := RemoveSQL(cluster)
	if err != nil {
		return err
	}
	return asOperator(ctx, dsn, "remove the cluster from the fence", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
		return err
	})
}

// Init applies [SetupSQL] to the database of dsn, which must be a superuser's. It applies all of it
// or nothing.
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

// Reset shuts every controller of a cluster out of the repository, ends their sessions and sets the
// term, which may be lower than before. It is for an operator who has made sure that no sidecar of
// the cluster runs: a running sidecar with a higher term could come back. It returns the number of
// terminated sessions. dsn must be a superuser's.
func Reset(ctx context.Context, dsn, cluster string, term election.Term) (int, error) {
	var n int
	err := asOperator(ctx, dsn, "reset the fence", func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT tanist.reset($1, $2)", cluster, int64(term)).Scan(&n)
	})
	return n, err
}

// asOperator runs do on a connection of its own.
func asOperator(ctx context.Context, dsn, what string, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cfg, err := parse(dsn, time.Minute)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	err = do(ctx, conn)
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelClosing()
	_ = conn.Close(closing) // committed or not by now; the reply to Terminate does not matter
	if err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

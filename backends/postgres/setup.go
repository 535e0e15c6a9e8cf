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
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tanist/tanist/election"
)

//go:embed store.sql
var storeSQL string

// layout is the version of the tables and functions. A process works with its own and later ones, so
// that a database is prepared again before the first sidecar is upgraded.
const layout = 1

// longestValue is the longest value of a key, in bytes: as in Consul.
const longestValue = 512 << 10

// initLock lets only one operator at a time prepare a database.
const initLock = 0x74616e6973740001

// ownerRole owns the store, if a superuser prepares it. Nobody logs in as it.
const ownerRole = "tanist_store_owner"

// Kind is what a login may do in its cluster. Every login may read all of its keys.
type Kind string

// The kinds of a login.
const (
	KindController Kind = "controller" // sidecars, and operators: everything
	KindAgent      Kind = "agent"      // agentwatches: the status of agents
	KindVIP        Kind = "vip"        // tanist vip: its own status
	KindReader     Kind = "reader"     // proxies and dashboards: nothing
)

// writes returns the prefixes of the keys that a login of this kind may write, as SQL.
func (k Kind) writes() (string, error) {
	switch k {
	case KindController:
		return "NULL", nil
	case KindAgent:
		return array(election.AgentPrefix), nil
	case KindVIP:
		return array(election.VIPPrefix), nil
	case KindReader:
		return array(), nil
	}
	return "", fmt.Errorf("%q is no kind of login: it is one of controller, agent, vip, reader", k)
}

// Login is a role that uses a cluster.
type Login struct {
	Name string
	Kind Kind
	// Verifier, if not empty, is set as the password: a SCRAM verifier, so that no password is in the
	// SQL.
	Verifier string
}

// SetupOptions describe a cluster to [SetupSQL].
type SetupOptions struct {
	Cluster string
	Logins  []Login
}

func (o SetupOptions) validate() error {
	errs := []error{election.CheckName(o.Cluster)}
	seen := map[string]bool{}
	for _, l := range o.Logins {
		switch {
		case l.Name == "":
			errs = append(errs, errors.New("a login has no name"))
		case len(l.Name) > 63:
			errs = append(errs, fmt.Errorf("the login %q is longer than 63 bytes, which PostgreSQL would cut", l.Name))
		case strings.HasPrefix(l.Name, "pg_") || slices.Contains([]string{"public", "none", ownerRole}, l.Name):
			errs = append(errs, fmt.Errorf("the login %q is a reserved name", l.Name))
		case strings.ContainsRune(l.Name, 0):
			errs = append(errs, errors.New("a login contains a zero byte"))
		case seen[l.Name]:
			errs = append(errs, fmt.Errorf("the login %q is listed twice: every kind needs its own", l.Name))
		}
		seen[l.Name] = true
		if _, err := l.Kind.writes(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func literal(s string) string {
	if strings.Contains(s, `\`) {
		return "E'" + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(s) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

func ident(s string) string { return pgx.Identifier{s}.Sanitize() }

func array(texts ...string) string {
	quoted := make([]string, 0, len(texts))
	for _, text := range texts {
		quoted = append(quoted, literal(text))
	}
	return "ARRAY[" + strings.Join(quoted, ", ") + "]::text[]"
}

// prepareSQL makes the schema. What a superuser makes belongs to a role that nobody can log in as.
// Another login may do it too, on a server where nobody is a superuser: then the schema belongs to
// that login, and leases are counted by the wall clock.
const prepareSQL = `DO $do$
DECLARE
    super boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
    owner name := CASE WHEN super THEN '@OWNER@' ELSE current_user END;
    stranger text;
BEGIN
    IF current_setting('server_version_num')::int < 140000 THEN
        RAISE 'this is PostgreSQL %, and the store needs 14 or later', current_setting('server_version');
    END IF;
    IF pg_is_in_recovery() THEN
        RAISE 'this server is a standby: prepare the primary';
    END IF;
    IF super AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = owner) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', owner);
    END IF;
    IF to_regnamespace('tanist_store') IS NULL THEN
        EXECUTE format('CREATE SCHEMA tanist_store AUTHORIZATION %I', owner);
    END IF;
    IF NOT super AND EXISTS (SELECT FROM pg_namespace WHERE nspname = 'tanist_store' AND pg_get_userbyid(nspowner) = '@OWNER@') THEN
        RAISE 'a superuser has prepared the schema tanist_store, and % is none, nothing was changed', current_user
            USING HINT = 'Run this as a superuser.';
    END IF;
    SELECT string_agg(what, ', ') INTO stranger FROM (
        SELECT format('the schema belongs to %s', pg_get_userbyid(nspowner)) AS what FROM pg_namespace
         WHERE nspname = 'tanist_store' AND nspowner <> owner::regrole
        UNION ALL
        SELECT format('%s belongs to %s', c.oid::regclass, pg_get_userbyid(relowner)) FROM pg_class c
         WHERE relnamespace = 'tanist_store'::regnamespace AND relowner <> owner::regrole
        UNION ALL
        SELECT format('%s belongs to %s', p.oid::regprocedure, pg_get_userbyid(proowner)) FROM pg_proc p
         WHERE pronamespace = 'tanist_store'::regnamespace AND proowner <> owner::regrole AND NOT (proname = 'clock' AND (SELECT rolsuper FROM pg_roles r WHERE r.oid = proowner))
        LIMIT 3
    ) s;
    IF stranger IS NOT NULL THEN
        RAISE 'somebody else has prepared the schema tanist_store, nothing was changed: %', stranger
            USING HINT = 'Find out who and why; DROP SCHEMA tanist_store CASCADE if it is of no use, or run this as that login.';
    END IF;
END $do$;
-- clock counts milliseconds. It reads the time since the server's host was booted, which no step of
-- the wall clock changes, and which goes on while the host is suspended. Where it can't be read (only
-- a superuser's function may, and only on Linux) it is the wall clock.
CREATE OR REPLACE FUNCTION tanist_store.clock(OUT epoch text, OUT now bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    BEGIN
        now := (split_part(pg_read_file('/proc/uptime', 0, 64), ' ', 1)::numeric * 1000)::bigint;
        epoch := 'uptime';
    EXCEPTION WHEN OTHERS THEN
        now := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
        epoch := 'wall';
    END;
    -- A server that was restarted, or another one that was promoted, is another life.
    epoch := epoch || ' ' || extract(epoch FROM pg_postmaster_start_time());
END $fn$;
REVOKE ALL ON FUNCTION tanist_store.clock() FROM PUBLIC;
DO $do$ BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        GRANT EXECUTE ON FUNCTION tanist_store.clock() TO @OWNER@;
        SET LOCAL ROLE @OWNER@;
    END IF;
END $do$;
`

// outward are the functions that logins call.
const outward = "tanist_store.hello, tanist_store.server, tanist_store.sweep, tanist_store.read, tanist_store.clusters, tanist_store.grant_lease, " +
	"tanist_store.renew, tanist_store.revoke_lease, tanist_store.hold, tanist_store.swap, tanist_store.remove"

// SetupSQL returns the SQL that prepares a database as the store of a cluster. It is one transaction.
// It should be run by a superuser, and may be run again: to add a cluster or a login, or after an
// upgrade of Tanist. It disturbs nothing that runs.
func SetupSQL(o SetupOptions) (string, error) {
	if err := o.validate(); err != nil {
		return "", fmt.Errorf("cannot prepare the store: %w", err)
	}
	hinted := array(election.SnapshotKeys()...)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("BEGIN;")
	line("SET LOCAL search_path = pg_catalog, pg_temp;")
	line("SET LOCAL client_min_messages = warning;")
	line("SET LOCAL lock_timeout = '10s';")
	line("DO $do$ BEGIN PERFORM pg_advisory_xact_lock(%d); END $do$;", initLock)
	b.WriteString(strings.ReplaceAll(prepareSQL, "@OWNER@", ownerRole))
	b.WriteString(strings.NewReplacer("@HINTED@", hinted, "@CONTROLLERS@", literal(election.ControllerPrefix),
		"@ACTIVE@", literal(election.ActiveKey), "@LAYOUT@", fmt.Sprint(layout), "@LONGEST@", fmt.Sprint(longestValue)).Replace(storeSQL))
	line("REVOKE ALL ON ALL TABLES IN SCHEMA tanist_store FROM PUBLIC;")
	line("SET LOCAL client_min_messages = error;") // clock is the superuser's, who has revoked it above
	line("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tanist_store FROM PUBLIC;")
	line("SET LOCAL client_min_messages = warning;")
	line("INSERT INTO tanist_store.cluster VALUES (%s) ON CONFLICT DO NOTHING;", literal(o.Cluster))
	for _, l := range o.Logins {
		writes, _ := l.Kind.writes() // checked
		line("INSERT INTO tanist_store.access VALUES (%s, %s, %s) ON CONFLICT (cluster, login) DO UPDATE SET writes = excluded.writes;",
			literal(o.Cluster), literal(l.Name), writes)
	}
	line("RESET ROLE;")
	for _, l := range o.Logins {
		o.grant(line, l)
	}
	line("COMMIT;")
	return b.String(), nil
}

// grant creates a login and lets it call the store's functions. It can do nothing else.
func (o SetupOptions) grant(line func(string, ...any), l Login) {
	line("DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %s) THEN CREATE ROLE %s LOGIN; END IF; END $do$;", literal(l.Name), ident(l.Name))
	if l.Verifier != "" {
		line("ALTER ROLE %s PASSWORD %s;", ident(l.Name), literal(l.Verifier))
	}
	line("DO $do$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %%I TO %%I', current_database(), %s); END $do$;", literal(l.Name))
	line("GRANT USAGE ON SCHEMA tanist_store TO %s;", ident(l.Name))
	line("GRANT EXECUTE ON FUNCTION %s TO %s;", outward, ident(l.Name))
}

// RemoveSQL returns the SQL that removes a cluster from the store, with all of its keys. Its logins
// stay. It fails if the store has no such cluster.
func RemoveSQL(cluster string) string {
	return `DO $do$
BEGIN
    IF to_regclass('tanist_store.cluster') IS NULL THEN
        RAISE 'the database % is not the store of a cluster', current_database();
    END IF;
    PERFORM set_config('lock_timeout', '10s', true);
    DELETE FROM tanist_store.cluster WHERE name = ` + literal(cluster) + `;
    IF NOT FOUND THEN
        RAISE 'the store in the database % has no cluster %; found: %', current_database(), ` + literal(cluster) + `,
            (SELECT coalesce(string_agg(name, ', ' ORDER BY name), 'none') FROM tanist_store.cluster);
    END IF;
END $do$;
`
}

// Init applies [SetupSQL] to a database. It applies all of it or nothing. dsn should be a
// superuser's.
func Init(ctx context.Context, dsn string, o SetupOptions) error {
	sql, err := SetupSQL(o)
	if err != nil {
		return err
	}
	return apply(ctx, dsn, "prepare the store", sql)
}

// Remove applies [RemoveSQL] to a database. dsn should be a superuser's.
func Remove(ctx context.Context, dsn, cluster string) error {
	return apply(ctx, dsn, "remove the cluster from the store", RemoveSQL(cluster))
}

func apply(ctx context.Context, dsn, verb, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return unparsed(err)
	}
	cfg.DialFunc, cfg.ConnectTimeout = dialer().DialContext, dialTimeout
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", verb, unconnected(err, cfg))
	}
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	(&link{Conn: conn}).close() // committed or not by now
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe) && pe.Hint != "":
		return fmt.Errorf("cannot %s: %w: %s", verb, err, pe.Hint)
	case err != nil:
		return fmt.Errorf("cannot %s: %w", verb, err)
	}
	return nil
}

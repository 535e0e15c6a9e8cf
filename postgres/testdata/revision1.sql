BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '10s';

-- The owner of the fence: may shut roles out and end sessions, and nobody can log in as it.
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'tanist_owner') THEN CREATE ROLE "tanist_owner" NOLOGIN; END IF; END $do$;
ALTER ROLE tanist_owner NOLOGIN NOSUPERUSER CREATEROLE NOREPLICATION NOCREATEDB PASSWORD NULL;
GRANT pg_signal_backend, pg_read_all_stats TO tanist_owner;
CREATE SCHEMA IF NOT EXISTS tanist AUTHORIZATION tanist_owner;
SET LOCAL ROLE tanist_owner;

-- The fence of the metadata repository. Everything is owned by tanist_owner, which nobody can log in as. Sidecars may
-- execute begin, drain, seal, open, close, assert, inspect and standbys, and nothing else. Every function finds out by
-- itself for whom it works: session_user is the login, and tanist.controller says whose login that is.
--
-- SQLSTATEs: TN001 the repository is at this or a higher term of another; TN002 an attempt that was overtaken by a
-- later one of the same holder; TN003 not in the state that this step needs; TN004 this login has no controller here.

CREATE TABLE IF NOT EXISTS tanist.fence (
    cluster text PRIMARY KEY,
    term    bigint NOT NULL DEFAULT 0 CHECK (term >= 0),
    holder  text,
    attempt bigint NOT NULL DEFAULT 0,
    phase   text NOT NULL DEFAULT 'closed' CHECK (phase IN ('closed', 'fencing', 'open'))
);

CREATE TABLE IF NOT EXISTS tanist.controller (
    cluster text NOT NULL REFERENCES tanist.fence,
    name    text NOT NULL,
    role    name NOT NULL UNIQUE,       -- the login of the program; not shared, not even between clusters
    sidecar name NOT NULL,              -- the login of its sidecar
    PRIMARY KEY (cluster, name),
    UNIQUE (cluster, sidecar)
);

-- One row for each term that was begun. The transaction ids allow an audit against the write-ahead log: a row that was
-- written by an older term than N has a commit record before that of opened_xid of N.
CREATE TABLE IF NOT EXISTS tanist.history (
    cluster    text NOT NULL REFERENCES tanist.fence,
    term       bigint NOT NULL,
    controller text NOT NULL,
    begun_at   timestamptz NOT NULL,
    begun_xid  xid8 NOT NULL,
    opened_at  timestamptz,
    opened_xid xid8,
    closed_at  timestamptz,
    sessions   int NOT NULL DEFAULT 0,  -- sessions that were ended for it
    PRIMARY KEY (cluster, term)
);

-- me returns the controller that the session's login stands for.
CREATE OR REPLACE FUNCTION tanist.me(_cluster text) RETURNS tanist.controller
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    c tanist.controller;
BEGIN
    SELECT * INTO c FROM tanist.controller WHERE cluster = _cluster AND sidecar = session_user;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'login % stands for no controller of cluster %', session_user, _cluster
            USING ERRCODE = 'TN004', HINT = 'Run "tanist repository init" with this controller and this login.';
    END IF;
    RETURN c;
END $fn$;

-- terminate ends the sessions of all controllers of the cluster, except those of nobody. It does not wait.
CREATE OR REPLACE FUNCTION tanist.terminate(_cluster text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    n int;
BEGIN
    PERFORM pg_stat_clear_snapshot();
    SELECT count(pg_terminate_backend(a.pid)) INTO n
      FROM pg_stat_activity a
      JOIN pg_roles r ON r.oid = a.usesysid
      JOIN tanist.controller c ON c.role = r.rolname
     WHERE c.cluster = _cluster;
    RETURN n;
END $fn$;

-- durable makes this session's commits wait for the disk (and a synchronous standby), whatever the server's default: a
-- fence that a crash could undo is none.
CREATE OR REPLACE FUNCTION tanist.durable() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', false);
    END IF;
END $fn$;

-- locked returns the row of the fence, locked, if the caller holds _term by its attempt _attempt.
CREATE OR REPLACE FUNCTION tanist.locked(_cluster text, _term bigint, _attempt bigint, _name text) RETURNS tanist.fence
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    f tanist.fence;
BEGIN
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    PERFORM tanist.compare(f, _term, _name);
    IF f.term < _term THEN
        RAISE EXCEPTION 'the repository is at term % of %, before term %', f.term, coalesce(f.holder, 'nobody'), _term
            USING ERRCODE = 'TN003', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    IF f.attempt <> _attempt THEN
        RAISE EXCEPTION 'attempt % of term % is not the present one, %', _attempt, _term, f.attempt
            USING ERRCODE = 'TN002', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    RETURN f;
END $fn$;

-- compare refuses a caller whose term is over.
CREATE OR REPLACE FUNCTION tanist.compare(f tanist.fence, _term bigint, _name text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF f.term > _term OR (f.term = _term AND f.holder IS DISTINCT FROM _name) THEN
        RAISE EXCEPTION 'the repository is at term % of %; term % of % is refused', f.term, coalesce(f.holder, 'nobody'), _term, _name
            USING ERRCODE = 'TN001', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
END $fn$;

-- begin raises the term by compare and shuts everybody out, in one commit: no controller may log in, the secrets of
-- all the others are void, and the secret of the new term (its verifier) is in place before the barrier of drain, so
-- that nobody can be half-way through a log-in with an older one when the role is opened. It returns how many
-- sessions were told to end.
CREATE OR REPLACE FUNCTION tanist.begin(_cluster text, _term bigint, _attempt bigint, _verifier text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
    f  tanist.fence;
    c  tanist.controller;
    n  int;
BEGIN
    IF _verifier !~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' THEN
        RAISE EXCEPTION 'not a SCRAM-SHA-256 verifier' USING ERRCODE = '22023';
    END IF;
    PERFORM tanist.durable();
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    PERFORM tanist.compare(f, _term, me.name);
    IF f.term = _term AND f.attempt >= _attempt THEN
        RAISE EXCEPTION 'attempt % of term % was overtaken by attempt %', _attempt, _term, f.attempt
            USING ERRCODE = 'TN002', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    -- A session that has changed its own role and not committed would make the next statements wait.
    n := tanist.terminate(_cluster);
    FOR c IN SELECT * FROM tanist.controller WHERE cluster = _cluster ORDER BY role LOOP
        IF c.name = me.name THEN
            EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD %L', c.role, _verifier);
        ELSE
            EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', c.role);
        END IF;
    END LOOP;
    UPDATE tanist.fence SET term = _term, holder = me.name, attempt = _attempt, phase = 'fencing' WHERE cluster = _cluster;
    INSERT INTO tanist.history AS h (cluster, term, controller, begun_at, begun_xid, sessions)
    VALUES (_cluster, _term, me.name, clock_timestamp(), pg_current_xact_id(), n)
    ON CONFLICT (cluster, term) DO UPDATE SET controller = excluded.controller, begun_at = excluded.begun_at,
        begun_xid = excluded.begun_xid, opened_at = NULL, opened_xid = NULL, closed_at = NULL, sessions = h.sessions + excluded.sessions;
    RETURN n;
END $fn$;

-- drain is called again and again after begin has committed, until it returns no sessions and no pending. A backend
-- that is still starting has perhaps passed the check of LOGIN long ago and is not in pg_stat_activity yet; but
-- it has held a virtual transaction since before that check. So: the virtual transactions FIRST, the sessions
-- SECOND. _pending is NULL in the first call, and what the call before returned in the next ones.
CREATE OR REPLACE FUNCTION tanist.drain(_cluster text, _term bigint, _attempt bigint, _pending text[],
    OUT sessions int, OUT pending text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
    f  tanist.fence;
BEGIN
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster;
    PERFORM tanist.compare(f, _term, me.name);
    IF f.term <> _term OR f.phase <> 'fencing' OR f.attempt <> _attempt THEN
        RAISE EXCEPTION 'the repository is at term % (%), attempt %, not fencing for term %, attempt %', f.term, f.phase, f.attempt, _term, _attempt
            USING ERRCODE = CASE WHEN f.term = _term AND f.attempt > _attempt THEN 'TN002' ELSE 'TN003' END,
                  DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;

    SELECT coalesce(array_agg(l.pid || ':' || l.virtualxid), '{}') INTO pending
      FROM pg_locks l
     WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid();
    IF _pending IS NOT NULL THEN
        SELECT coalesce(array_agg(p), '{}') INTO pending FROM unnest(pending) p WHERE p = ANY (_pending);
    END IF;

    -- The view is read once per transaction and then kept; what was read before the locks would be worth nothing.
    PERFORM pg_stat_clear_snapshot();
    SELECT coalesce(array_agg(p), '{}') INTO pending
      FROM unnest(pending) p
     WHERE NOT EXISTS (
        SELECT FROM pg_stat_activity a
         WHERE a.pid = split_part(p, ':', 1)::int
           -- From PostgreSQL 18 on a starting backend shows up early, without its role.
           AND (a.usesysid IS NOT NULL OR a.backend_type NOT IN ('client backend', 'walsender')));
    SELECT count(pg_terminate_backend(a.pid)) INTO sessions
      FROM pg_stat_activity a
      JOIN pg_roles r ON r.oid = a.usesysid
      JOIN tanist.controller c ON c.role = r.rolname
     WHERE c.cluster = _cluster;
END $fn$;

-- seal sets the secret of the term once more, after drain has found sessions and ended them: a role may change its own
-- password, and a dying session could have done that after begin. drain has to be passed again, from the start.
CREATE OR REPLACE FUNCTION tanist.seal(_cluster text, _term bigint, _attempt bigint, _verifier text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
    f  tanist.fence;
BEGIN
    IF _verifier !~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' THEN
        RAISE EXCEPTION 'not a SCRAM-SHA-256 verifier' USING ERRCODE = '22023';
    END IF;
    PERFORM tanist.durable();
    f := tanist.locked(_cluster, _term, _attempt, me.name);
    IF f.phase <> 'fencing' THEN
        RAISE EXCEPTION 'term % is %, not fencing', _term, f.phase
            USING ERRCODE = 'TN003', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD %L', me.role, _verifier);
END $fn$;

-- open lets the holder's program log in. It is only to be called when drain has found nothing left; what can be seen of that
-- is checked once more.
CREATE OR REPLACE FUNCTION tanist.open(_cluster text, _term bigint, _attempt bigint, _sessions int) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
    f  tanist.fence;
BEGIN
    PERFORM tanist.durable();
    f := tanist.locked(_cluster, _term, _attempt, me.name);
    IF f.phase = 'open' THEN
        RETURN; -- the reply to the first call was lost
    END IF;
    PERFORM pg_stat_clear_snapshot();
    IF f.phase <> 'fencing' OR EXISTS (
        SELECT FROM pg_stat_activity a
          JOIN pg_roles r ON r.oid = a.usesysid
          JOIN tanist.controller c ON c.role = r.rolname
         WHERE c.cluster = _cluster)
    THEN
        RAISE EXCEPTION 'term % is %, and not drained', _term, f.phase
            USING ERRCODE = 'TN003', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    EXECUTE format('ALTER ROLE %I LOGIN', me.role);
    UPDATE tanist.fence SET phase = 'open' WHERE cluster = _cluster;
    UPDATE tanist.history h SET opened_at = clock_timestamp(), opened_xid = pg_current_xact_id(), sessions = h.sessions + _sessions
     WHERE h.cluster = _cluster AND h.term = _term;
END $fn$;

-- close shuts the holder's program out at the end of its reign. If another term has begun since, that has been done
-- already. It returns whether there was anything to close.
CREATE OR REPLACE FUNCTION tanist.close(_cluster text, _term bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
    f  tanist.fence;
BEGIN
    PERFORM tanist.durable();
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    IF f.term <> _term OR f.holder IS DISTINCT FROM me.name OR f.phase = 'closed' THEN
        RETURN false;
    END IF;
    PERFORM tanist.terminate(_cluster);
    EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', me.role);
    UPDATE tanist.fence SET phase = 'closed' WHERE cluster = _cluster;
    UPDATE tanist.history SET closed_at = clock_timestamp() WHERE cluster = _cluster AND term = _term;
    RETURN true;
END $fn$;

-- assert tells what the repository knows; the caller compares. It locks nothing and writes nothing. writable says
-- whether a fence could be raised here.
CREATE OR REPLACE FUNCTION tanist.assert(_cluster text, OUT revision int, OUT controller text, OUT role text, OUT term bigint, OUT holder text,
    OUT phase text, OUT attempt bigint, OUT login boolean, OUT writable boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
BEGIN
    revision := 1;
    controller := me.name;
    role := me.role;
    SELECT f.term, f.holder, f.phase, f.attempt INTO term, holder, phase, attempt FROM tanist.fence f WHERE f.cluster = _cluster;
    SELECT r.rolcanlogin INTO login FROM pg_roles r WHERE r.rolname = me.role;
    writable := NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off';
END $fn$;

-- inspect tells what stands above the fence: for each login of the cluster, the rights by which it could get round it, of its own
-- or of a role that it can become.
CREATE OR REPLACE FUNCTION tanist.inspect(_cluster text) RETURNS TABLE (controller text, program boolean, role name, present boolean,
    connections int, above text[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = session_user AND rolsuper) THEN
        PERFORM tanist.me(_cluster);
    END IF;
    RETURN QUERY
    WITH RECURSIVE login AS (
        SELECT c.name, true AS program, c.role FROM tanist.controller c WHERE c.cluster = _cluster
        UNION ALL SELECT c.name, false, c.sidecar FROM tanist.controller c WHERE c.cluster = _cluster
    ), reach AS (
        SELECT l.role AS login, r.oid FROM login l JOIN pg_roles r ON r.rolname = l.role
        UNION SELECT reach.login, m.roleid FROM reach JOIN pg_auth_members m ON m.member = reach.oid
    )
    SELECT l.name, l.program, l.role, r.oid IS NOT NULL, r.rolconnlimit, ARRAY(
        SELECT v.what || CASE WHEN t.rolname = l.role THEN '' ELSE format(' (through %I)', t.rolname) END
          FROM reach JOIN pg_roles t ON t.oid = reach.oid
         CROSS JOIN LATERAL (VALUES
            ('SUPERUSER', t.rolsuper),
            ('CREATEROLE', t.rolcreaterole),
            ('REPLICATION', t.rolreplication AND t.rolname = l.role),
            ('BYPASSRLS and all data', t.rolname IN ('pg_write_all_data') AND NOT l.program),
            ('programs and files of the server', t.rolname IN ('pg_execute_server_program', 'pg_write_server_files')),
            ('the fence itself', t.rolname = 'tanist_owner' OR EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = 'tanist' AND n.nspowner = t.oid)),
            ('the login of another', EXISTS (SELECT FROM login o WHERE o.role = t.rolname AND o.role <> l.role))
          ) v (what, there)
         WHERE reach.login = l.role AND v.there ORDER BY 1)
      FROM login l LEFT JOIN pg_roles r ON r.rolname = l.role
     ORDER BY l.name, l.program DESC;
END $fn$;

-- standbys counts those that are receiving, and those of them for which commits do not wait.
CREATE OR REPLACE FUNCTION tanist.standbys(_cluster text, OUT receiving int, OUT asynchronous int)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    SELECT count(*), count(*) FILTER (WHERE s.sync_state = 'async') INTO receiving, asynchronous
      FROM pg_stat_replication s LEFT JOIN pg_replication_slots l ON l.active_pid = s.pid
     WHERE s.state IN ('catchup', 'streaming') AND l.slot_type IS DISTINCT FROM 'logical';
END $fn$;

-- reset is for an operator who knows that no sidecar of the cluster runs: it shuts every controller out and sets the
-- term, downwards too. Nobody is granted it.
CREATE OR REPLACE FUNCTION tanist.reset(_cluster text, _term bigint) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    c tanist.controller;
    n int;
BEGIN
    PERFORM tanist.durable();
    PERFORM FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no cluster %', _cluster USING ERRCODE = 'TN004';
    END IF;
    n := tanist.terminate(_cluster);
    FOR c IN SELECT * FROM tanist.controller WHERE cluster = _cluster ORDER BY role LOOP
        EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', c.role);
    END LOOP;
    UPDATE tanist.fence SET term = _term, holder = NULL, attempt = 0, phase = 'closed' WHERE cluster = _cluster;
    DELETE FROM tanist.history WHERE cluster = _cluster AND term > _term;
    RETURN n;
END $fn$;

REVOKE ALL ON ALL TABLES IN SCHEMA tanist FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tanist FROM PUBLIC;

RESET ROLE;

INSERT INTO tanist.fence (cluster) VALUES ('@CLUSTER@') ON CONFLICT DO NOTHING;

-- The owner of the program's objects.
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '@APP@') THEN CREATE ROLE "@APP@" NOLOGIN; END IF; END $do$;
CREATE SCHEMA IF NOT EXISTS "public" AUTHORIZATION "@APP@";
GRANT USAGE, CREATE ON SCHEMA "public" TO "@APP@";

-- Controller a
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '@ROLE_A@') THEN CREATE ROLE "@ROLE_A@" NOLOGIN NOINHERIT; END IF; END $do$;
GRANT "@APP@" TO "@ROLE_A@";
ALTER ROLE "@ROLE_A@" INHERIT;
ALTER ROLE "@ROLE_A@" SET role = '@APP@';
DO $do$ BEGIN IF current_setting('server_version_num')::int >= 160000 THEN EXECUTE format('GRANT %I TO tanist_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', '@ROLE_A@'); END IF; END $do$;
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM tanist.controller WHERE cluster = '@CLUSTER@' AND role = '@ROLE_A@') THEN ALTER ROLE "@ROLE_A@" NOLOGIN PASSWORD NULL; END IF; END $do$;
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '@SC_A@') THEN CREATE ROLE "@SC_A@" LOGIN NOINHERIT CONNECTION LIMIT 10; END IF; END $do$;
ALTER ROLE "@SC_A@" PASSWORD 'SCRAM-SHA-256$4096:ZY683YYIoeCUIwRsJVDOAQ==$WtYep50s62NDK07/gVlvYiIcKJ9o5RHSSG3S095XM2E=:hHZq5V5M59en1h0blw8mOaQIzZJ9YubtMcEN9cakV0k=';
ALTER ROLE "@SC_A@" SET statement_timeout = '30s';
ALTER ROLE "@SC_A@" SET lock_timeout = '10s';
ALTER ROLE "@SC_A@" SET idle_in_transaction_session_timeout = '10s';
GRANT USAGE ON SCHEMA tanist TO "@SC_A@";
GRANT EXECUTE ON FUNCTION tanist.begin, tanist.drain, tanist.seal, tanist.open, tanist.close, tanist.assert, tanist.inspect, tanist.standbys TO "@SC_A@";
INSERT INTO tanist.controller (cluster, name, role, sidecar) VALUES ('@CLUSTER@', 'a', '@ROLE_A@', '@SC_A@')
    ON CONFLICT (cluster, name) DO UPDATE SET role = excluded.role, sidecar = excluded.sidecar;

-- Controller b
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '@ROLE_B@') THEN CREATE ROLE "@ROLE_B@" NOLOGIN NOINHERIT; END IF; END $do$;
GRANT "@APP@" TO "@ROLE_B@";
ALTER ROLE "@ROLE_B@" INHERIT;
ALTER ROLE "@ROLE_B@" SET role = '@APP@';
DO $do$ BEGIN IF current_setting('server_version_num')::int >= 160000 THEN EXECUTE format('GRANT %I TO tanist_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', '@ROLE_B@'); END IF; END $do$;
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM tanist.controller WHERE cluster = '@CLUSTER@' AND role = '@ROLE_B@') THEN ALTER ROLE "@ROLE_B@" NOLOGIN PASSWORD NULL; END IF; END $do$;
DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '@SC_B@') THEN CREATE ROLE "@SC_B@" LOGIN NOINHERIT CONNECTION LIMIT 10; END IF; END $do$;
ALTER ROLE "@SC_B@" PASSWORD 'SCRAM-SHA-256$4096:Wc3z6FYAhC09xj4zpxMDug==$USt+XyVbj6urqPHJbaLpsVIZP0BCMXK5e9CSb77WDcc=:htQ/eFLLYJC0z2Ndgso+1wPeQyjjGKRp/BxBq7GEIaA=';
ALTER ROLE "@SC_B@" SET statement_timeout = '30s';
ALTER ROLE "@SC_B@" SET lock_timeout = '10s';
ALTER ROLE "@SC_B@" SET idle_in_transaction_session_timeout = '10s';
GRANT USAGE ON SCHEMA tanist TO "@SC_B@";
GRANT EXECUTE ON FUNCTION tanist.begin, tanist.drain, tanist.seal, tanist.open, tanist.close, tanist.assert, tanist.inspect, tanist.standbys TO "@SC_B@";
INSERT INTO tanist.controller (cluster, name, role, sidecar) VALUES ('@CLUSTER@', 'b', '@ROLE_B@', '@SC_B@')
    ON CONFLICT (cluster, name) DO UPDATE SET role = excluded.role, sidecar = excluded.sidecar;

COMMIT;

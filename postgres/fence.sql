-- The fence of the metadata repository. tanist_owner owns everything here, and nobody can log in as
-- it. Sidecars may execute begin, drain, open, close, assert, conditions and paths, and nothing else.
-- Every function determines its caller itself: session_user is the login, and tanist.controller maps
-- it to a controller.
--
-- SQLSTATEs: TN001 another holds this or a higher term; TN002 a later attempt of the same holder
-- replaced this one; TN003 not in the state that this step needs; TN004 this login has no
-- controller here; TN005 something has changed or come back since begin, so begin again; TN006 the
-- fence would not hold here.

CREATE TABLE IF NOT EXISTS tanist.fence (
    cluster text PRIMARY KEY,
    term    bigint NOT NULL DEFAULT 0 CHECK (term >= 0),
    holder  text,
    attempt bigint NOT NULL DEFAULT 0,
    phase   text NOT NULL DEFAULT 'closed' CHECK (phase IN ('closed', 'fencing', 'open'))
);
ALTER TABLE tanist.fence
    ADD COLUMN IF NOT EXISTS seal     text,                        -- digest of the current attempt's verifier
    ADD COLUMN IF NOT EXISTS app_role name,                        -- owner of the program's objects, if there is one
    ADD COLUMN IF NOT EXISTS allowed  text[] NOT NULL DEFAULT '{}'; -- conditions that the operator waived at init

CREATE TABLE IF NOT EXISTS tanist.controller (
    cluster text NOT NULL REFERENCES tanist.fence,
    name    text NOT NULL,
    role    name NOT NULL UNIQUE,       -- the login of the program; not shared, not even between clusters
    sidecar name NOT NULL,              -- the login of its sidecar
    PRIMARY KEY (cluster, name),
    UNIQUE (cluster, sidecar)
);

-- Every role that the fence shuts out, by oid because names change: the programs' logins, their
-- former logins, and the logins that an operator shut out for good (program = false). A row
-- outlives a change of the controller's role and of the role's name.
CREATE TABLE IF NOT EXISTS tanist.bound (
    cluster   text NOT NULL REFERENCES tanist.fence,
    id        oid NOT NULL,
    role      name NOT NULL,               -- its name when it was bound
    program   boolean NOT NULL,
    could_log_in boolean NOT NULL DEFAULT false, -- before it was bound
    PRIMARY KEY (cluster, id)
);

-- One row per term that was begun. The transaction ids allow an audit against the write-ahead log:
-- every row that a term older than N wrote has a commit record before that of opened_xid of N.
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

-- me returns the controller of the session's login.
CREATE OR REPLACE FUNCTION tanist.me(_cluster text) RETURNS tanist.controller
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    c tanist.controller;
BEGIN
    SELECT * INTO c FROM tanist.controller WHERE cluster = _cluster AND sidecar = session_user;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'login % belongs to no controller of cluster %', session_user, _cluster
            USING ERRCODE = 'TN004', HINT = 'Run "tanist repository init" with this controller and this login.';
    END IF;
    RETURN c;
END $fn$;

-- sessions returns the sessions that must be gone before a term is opened: those of every role that
-- is or was bound, and those whose role no longer exists, because their owner is unknown.
CREATE OR REPLACE FUNCTION tanist.sessions(_cluster text) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    -- The view is cached for the transaction, and an earlier snapshot would be useless.
    PERFORM pg_stat_clear_snapshot();
    RETURN QUERY
    SELECT a.pid
      FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
     WHERE a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
       AND (r.oid IS NULL
            OR EXISTS (SELECT FROM tanist.bound b WHERE b.cluster = _cluster AND b.id = a.usesysid)
            OR EXISTS (SELECT FROM tanist.controller c WHERE c.cluster = _cluster AND c.role = r.rolname));
END $fn$;

-- terminate ends those sessions and does not wait.
CREATE OR REPLACE FUNCTION tanist.terminate(_cluster text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    n int;
BEGIN
    SELECT count(pg_terminate_backend(pid)) INTO n FROM tanist.sessions(_cluster) pid;
    RETURN n;
END $fn$;

-- alter changes a role that the role's own sessions may be changing at the same moment. Such a
-- session makes the statement wait and then fail with "tuple concurrently updated". So the sessions
-- are ended and the statement is repeated here, where that takes microseconds. The client would
-- lose the race repeatedly.
CREATE OR REPLACE FUNCTION tanist.alter(_cluster text, _role name, _change text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $fn$
DECLARE
    give_up timestamptz := clock_timestamp() + interval '3s';
BEGIN
    LOOP
        BEGIN
            EXECUTE format('ALTER ROLE %I ', _role) || _change;
            RETURN;
        EXCEPTION WHEN internal_error OR lock_not_available THEN
            IF clock_timestamp() > give_up THEN
                RAISE;
            END IF;
        END;
        PERFORM tanist.terminate(_cluster);
    END LOOP;
END $fn$;

-- bind adds the controllers' current roles to tanist.bound.
CREATE OR REPLACE FUNCTION tanist.bind(_cluster text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    INSERT INTO tanist.bound (cluster, id, role, program)
    SELECT c.cluster, r.oid, c.role, true FROM tanist.controller c JOIN pg_roles r ON r.rolname = c.role WHERE c.cluster = _cluster
    ON CONFLICT (cluster, id) DO UPDATE SET program = true;
$fn$;

-- shut sets NOLOGIN on every bound role, and removes the secret of every program's role except
-- _own, which gets _verifier. A role that the operator shut out keeps its password, so that it can
-- be given back.
DROP FUNCTION IF EXISTS tanist.shut(text, name, text, boolean);
CREATE OR REPLACE FUNCTION tanist.shut(_cluster text, _own name, _verifier text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    r record;
BEGIN
    PERFORM tanist.bind(_cluster);
    FOR r IN SELECT o.rolname, o.rolcanlogin, b.program FROM tanist.bound b JOIN pg_roles o ON o.oid = b.id
              WHERE b.cluster = _cluster ORDER BY o.rolname
    LOOP
        IF r.rolname = _own THEN
            PERFORM tanist.alter(_cluster, r.rolname, format('NOLOGIN PASSWORD %L', _verifier));
        ELSIF r.program THEN
            PERFORM tanist.alter(_cluster, r.rolname, 'NOLOGIN PASSWORD NULL');
        ELSIF r.rolcanlogin THEN
            PERFORM tanist.alter(_cluster, r.rolname, 'NOLOGIN');
        END IF;
    END LOOP;
END $fn$;

-- digest checks that its argument is a verifier, and returns what the fence stores of it.
CREATE OR REPLACE FUNCTION tanist.digest(_verifier text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF _verifier IS NULL OR _verifier !~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' THEN
        RAISE EXCEPTION 'not a SCRAM-SHA-256 verifier' USING ERRCODE = '22023';
    END IF;
    RETURN encode(sha256(convert_to(_verifier, 'UTF8')), 'hex');
END $fn$;

-- durable makes this session's commits wait for the disk (and a synchronous standby), whatever the
-- server's default: a crash must not undo a fence.
CREATE OR REPLACE FUNCTION tanist.durable() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', false);
    END IF;
END $fn$;

-- locked locks and returns the row of the fence, if the caller holds _term by its attempt _attempt.
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
        RAISE EXCEPTION 'attempt % of term % is not the current one, %', _attempt, _term, f.attempt
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

-- begin raises the term by compare and shuts all bound roles out, in one commit: none may log in,
-- and the secrets of all others are void. The new term's secret (its verifier) is set before
-- drain's barrier, so that no login that began with an older secret can complete when the role is
-- opened. It returns how many sessions were told to end. Repeating begin with the same attempt and
-- verifier changes nothing, so it may be sent on two connections and arrive at any time.
CREATE OR REPLACE FUNCTION tanist.begin(_cluster text, _term bigint, _attempt bigint, _verifier text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    me    tanist.controller := tanist.me(_cluster);
    proof text := tanist.digest(_verifier);
    f     tanist.fence;
    n     int;
BEGIN
    PERFORM tanist.durable();
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    PERFORM tanist.compare(f, _term, me.name);
    IF f.term = _term AND f.attempt = _attempt AND f.seal = proof THEN
        RETURN 0;
    END IF;
    IF f.term = _term AND f.attempt >= _attempt THEN
        RAISE EXCEPTION 'attempt % of term % was replaced by attempt %', _attempt, _term, f.attempt
            USING ERRCODE = 'TN002', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = me.role) THEN
        RAISE EXCEPTION 'the role % does not exist', me.role USING ERRCODE = '42704';
    END IF;
    -- An uncommitted change that a session made to its own role would block the next statements.
    n := tanist.terminate(_cluster);
    PERFORM tanist.shut(_cluster, me.role, _verifier);
    UPDATE tanist.fence SET term = _term, holder = me.name, attempt = _attempt, seal = proof, phase = 'fencing' WHERE cluster = _cluster;
    INSERT INTO tanist.history AS h (cluster, term, controller, begun_at, begun_xid, sessions)
    VALUES (_cluster, _term, me.name, clock_timestamp(), pg_current_xact_id(), n)
    ON CONFLICT (cluster, term) DO UPDATE SET controller = excluded.controller, begun_at = excluded.begun_at,
        begun_xid = excluded.begun_xid, opened_at = NULL, opened_xid = NULL, closed_at = NULL, sessions = h.sessions + excluded.sessions;
    RETURN n;
END $fn$;

-- drain is called repeatedly after begin has committed, until it returns no sessions and no
-- pending. A starting backend may have passed the check of LOGIN before begin without being in
-- pg_stat_activity yet, but it has held a virtual transaction since before that check. So it reads
-- the virtual transactions FIRST, the sessions SECOND. Once nothing of that is left, nobody can
-- change the password of a role any more, and it starts over: a login may have begun with a password
-- that a dying session had set in the meantime. _pending and _last are the results of the previous
-- call, at first NULL and false; last is true in the second pass. With _end, starting backends are
-- ended, because a client may pause in the middle of its login for authentication_timeout, or longer
-- with post_auth_delay. stuck reports that the server does not allow this.
DROP FUNCTION IF EXISTS tanist.drain(text, bigint, bigint, text[]);
DROP FUNCTION IF EXISTS tanist.drain(text, bigint, bigint, text[], boolean);
CREATE OR REPLACE FUNCTION tanist.drain(_cluster text, _term bigint, _attempt bigint, _pending text[], _last boolean, _end boolean,
    OUT sessions int, OUT pending text[], OUT last boolean, OUT ended int, OUT stuck boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
    f  tanist.fence;
BEGIN
    ended := 0;
    stuck := false;
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster;
    PERFORM tanist.compare(f, _term, me.name);
    IF f.term <> _term OR f.phase <> 'fencing' OR f.attempt <> _attempt THEN
        RAISE EXCEPTION 'the repository is at term % (%), attempt %, not fencing for term %, attempt %', f.term, f.phase, f.attempt, _term, _attempt
            USING ERRCODE = CASE WHEN f.term = _term AND f.attempt > _attempt THEN 'TN002' ELSE 'TN003' END,
                  DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;

    last := _last;
    pending := _pending;
    LOOP
        SELECT coalesce(array_agg(l.v), '{}') INTO pending
          FROM (SELECT pid || ':' || virtualxid AS v FROM pg_locks
                 WHERE locktype = 'virtualxid' AND mode = 'ExclusiveLock' AND granted AND pid <> pg_backend_pid()) l
         WHERE pending IS NULL OR l.v = ANY (pending);
        -- The view is cached for the transaction, and a snapshot from before the locks would be useless.
        PERFORM pg_stat_clear_snapshot();
        SELECT coalesce(array_agg(p), '{}') INTO pending
          FROM unnest(pending) p
         WHERE NOT EXISTS (
            SELECT FROM pg_stat_activity a
             WHERE a.pid = split_part(p, ':', 1)::int
               -- Since PostgreSQL 18, a starting backend appears early, without its role.
               AND (a.usesysid IS NOT NULL OR a.backend_type NOT IN ('client backend', 'walsender')));
        sessions := tanist.terminate(_cluster);
        EXIT WHEN last OR sessions > 0 OR pending <> '{}';
        last := true;
        pending := NULL;
    END LOOP;
    IF _end AND pending <> '{}' THEN
        BEGIN
            ended := tanist.end_starting(ARRAY(SELECT split_part(p, ':', 1)::int FROM unnest(pending) p));
        EXCEPTION WHEN insufficient_privilege OR undefined_function THEN
            stuck := true;
        END;
    END IF;
END $fn$;

DROP FUNCTION IF EXISTS tanist.seal(text, bigint, bigint, text);

-- open lets the holder's program log in. It may be called only after drain has found nothing left,
-- and it checks again what can be checked: there is no session, and the role is as begin left it,
-- shut and with the term's secret. A role may change its own password, so a dying session may have
-- done it after begin. Then a login that began with the changed password may be under way, and
-- setting the term's secret here would let it in. So the caller must begin again, as the next
-- attempt, and this one's open is refused even if it arrives late.
DROP FUNCTION IF EXISTS tanist.open(text, bigint, bigint, int);
CREATE OR REPLACE FUNCTION tanist.open(_cluster text, _term bigint, _attempt bigint, _sessions int, _verifier text) RETURNS void
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
    IF f.phase <> 'fencing' OR f.seal IS DISTINCT FROM tanist.digest(_verifier) THEN
        RAISE EXCEPTION 'term % is %, not fencing with this secret', _term, f.phase
            USING ERRCODE = 'TN003', DETAIL = json_build_object('term', f.term, 'holder', f.holder, 'phase', f.phase, 'attempt', f.attempt);
    END IF;
    IF EXISTS (SELECT FROM tanist.sessions(_cluster)) THEN
        RAISE EXCEPTION 'a session that must be gone exists again' USING ERRCODE = 'TN005';
    END IF;
    IF EXISTS (SELECT FROM tanist.bound b JOIN pg_roles r ON r.oid = b.id WHERE b.cluster = _cluster AND r.rolcanlogin) THEN
        RAISE EXCEPTION 'a role that was shut out may log in again' USING ERRCODE = 'TN005';
    END IF;
    -- The comparison comes second: from the change on, nobody else can alter the role.
    PERFORM tanist.alter(_cluster, me.role, 'LOGIN');
    IF NOT tanist.verifier_is(me.role, _verifier) THEN
        RAISE EXCEPTION 'the password of % was changed after it was set for term %', me.role, _term USING ERRCODE = 'TN005';
    END IF;
    UPDATE tanist.fence SET phase = 'open' WHERE cluster = _cluster;
    UPDATE tanist.history h SET opened_at = clock_timestamp(), opened_xid = pg_current_xact_id(), sessions = h.sessions + _sessions
     WHERE h.cluster = _cluster AND h.term = _term;
END $fn$;

-- close shuts the holder's program out at the end of its reign. If a later term has begun, that is
-- already done. It returns whether there was anything to close.
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
    PERFORM tanist.shut(_cluster, NULL, NULL);
    UPDATE tanist.fence SET phase = 'closed' WHERE cluster = _cluster;
    UPDATE tanist.history SET closed_at = clock_timestamp() WHERE cluster = _cluster AND term = _term;
    RETURN true;
END $fn$;

-- assert reports the state of the repository, and the caller compares. It locks nothing and writes
-- nothing. writable reports whether a fence could be raised here.
CREATE OR REPLACE FUNCTION tanist.assert(_cluster text, OUT revision int, OUT controller text, OUT role text, OUT term bigint, OUT holder text,
    OUT phase text, OUT attempt bigint, OUT login boolean, OUT writable boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    me tanist.controller := tanist.me(_cluster);
BEGIN
    revision := 2;
    controller := me.name;
    role := me.role;
    SELECT f.term, f.holder, f.phase, f.attempt INTO term, holder, phase, attempt FROM tanist.fence f WHERE f.cluster = _cluster;
    SELECT r.rolcanlogin INTO login FROM pg_roles r WHERE r.rolname = me.role;
    writable := NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off';
END $fn$;

-- reset is for an operator who knows that no sidecar of the cluster runs: it shuts every controller
-- out and sets the term, even to a lower one. No role is granted it.
CREATE OR REPLACE FUNCTION tanist.reset(_cluster text, _term bigint) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    n int;
BEGIN
    PERFORM tanist.durable();
    PERFORM FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no cluster %', _cluster USING ERRCODE = 'TN004';
    END IF;
    n := tanist.terminate(_cluster);
    PERFORM tanist.shut(_cluster, NULL, NULL);
    UPDATE tanist.fence SET term = _term, holder = NULL, attempt = 0, seal = NULL, phase = 'closed' WHERE cluster = _cluster;
    DELETE FROM tanist.history WHERE cluster = _cluster AND term > _term;
    RETURN n;
END $fn$;

-- enrol adds a controller or changes its logins. A former role stays bound, and settle shuts it
-- out. This is refused while the controller's term is open, because it would end the program in the
-- middle of its reign.
CREATE OR REPLACE FUNCTION tanist.enrol(_cluster text, _name text, _role name, _sidecar name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    f   tanist.fence;
    old name := (SELECT role FROM tanist.controller WHERE cluster = _cluster AND name = _name);
BEGIN
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    IF old <> _role AND f.phase = 'open' AND f.holder = _name THEN
        RAISE EXCEPTION 'controller % is active with the role %, term %: switch over before its role becomes %', _name, old, f.term, _role
            USING ERRCODE = 'TN006';
    END IF;
    INSERT INTO tanist.controller (cluster, name, role, sidecar) VALUES (_cluster, _name, _role, _sidecar)
    ON CONFLICT (cluster, name) DO UPDATE SET role = excluded.role, sidecar = excluded.sidecar;
END $fn$;

-- cast_out binds a role that is not a controller's: it may no longer log in, and its sessions end.
CREATE OR REPLACE FUNCTION tanist.cast_out(_cluster text, _role name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = _role AND rolsuper) THEN
        RAISE EXCEPTION '% is a superuser, and cannot be shut out: ALTER ROLE % NOSUPERUSER first', _role, quote_ident(_role) USING ERRCODE = 'TN006';
    END IF;
    INSERT INTO tanist.bound (cluster, id, role, program, could_log_in)
    SELECT _cluster, oid, rolname, false, rolcanlogin FROM pg_roles WHERE rolname = _role
    ON CONFLICT (cluster, id) DO NOTHING;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = _role) THEN
        RAISE EXCEPTION 'the role % does not exist, so it cannot be shut out', _role USING ERRCODE = 'TN006';
    END IF;
END $fn$;

-- settle is called when the roles exist. From here on, the login of a new controller, a former
-- login and a role that was cast out cannot log in, and their sessions end. The role of the open
-- term is not touched.
CREATE OR REPLACE FUNCTION tanist.settle(_cluster text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    own name := (SELECT c.role FROM tanist.fence f JOIN tanist.controller c ON c.cluster = f.cluster AND c.name = f.holder
                  WHERE f.cluster = _cluster AND f.phase <> 'closed');
    r   record;
BEGIN
    PERFORM tanist.bind(_cluster);
    FOR r IN SELECT o.oid, o.rolname, o.rolcanlogin, b.program FROM tanist.bound b JOIN pg_roles o ON o.oid = b.id
              WHERE b.cluster = _cluster AND o.rolname IS DISTINCT FROM own AND NOT o.rolsuper AND NOT o.rolreplication -- verify refuses those
    LOOP
        IF r.program THEN
            PERFORM tanist.alter(_cluster, r.rolname, 'NOLOGIN PASSWORD NULL');
        ELSIF r.rolcanlogin THEN
            PERFORM tanist.alter(_cluster, r.rolname, 'NOLOGIN');
        END IF;
        PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.usesysid = r.oid AND a.pid <> pg_backend_pid();
    END LOOP;
END $fn$;

-- remove removes a cluster from the fence: its controllers are shut out, and roles that were cast
-- out may log in again.
CREATE OR REPLACE FUNCTION tanist.remove(_cluster text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $fn$
DECLARE
    r record;
BEGIN
    PERFORM FROM tanist.fence WHERE cluster = _cluster FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no cluster %', _cluster USING ERRCODE = 'TN004';
    END IF;
    PERFORM tanist.terminate(_cluster);
    PERFORM tanist.shut(_cluster, NULL, NULL);
    FOR r IN SELECT o.rolname FROM tanist.bound b JOIN pg_roles o ON o.oid = b.id
              WHERE b.cluster = _cluster AND NOT b.program AND b.could_log_in
    LOOP
        PERFORM tanist.alter(_cluster, r.rolname, 'LOGIN');
    END LOOP;
    DELETE FROM tanist.history WHERE cluster = _cluster;
    DELETE FROM tanist.bound WHERE cluster = _cluster;
    DELETE FROM tanist.controller WHERE cluster = _cluster;
    DELETE FROM tanist.fence WHERE cluster = _cluster;
END $fn$;


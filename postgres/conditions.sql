-- The conditions under which the fence holds, in one list, tanist.conditions: init refuses its
-- errors, a sidecar that sees one does not take over, and check and doctor show all of it.

DROP FUNCTION IF EXISTS tanist.inspect(text);
DROP FUNCTION IF EXISTS tanist.standbys(text);

-- reach returns what each role can become, directly or through others, itself included. From
-- PostgreSQL 16 on, a membership without INHERIT, SET and ADMIN is worth nothing.
CREATE OR REPLACE FUNCTION tanist.reach(_roles oid[]) RETURNS TABLE (login oid, role oid)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    useful text := '';
BEGIN
    IF current_setting('server_version_num')::int >= 160000 THEN
        useful := ' AND (m.inherit_option OR m.set_option OR m.admin_option)';
    END IF;
    RETURN QUERY EXECUTE
       'WITH RECURSIVE r AS (
            SELECT o AS login, o AS role FROM unnest($1) o
            UNION SELECT r.login, m.roleid FROM r JOIN pg_auth_members m ON m.member = r.role' || useful || ')
        SELECT r.login, r.role FROM r' USING _roles;
END $fn$;

-- doors returns the lines of pg_hba.conf that let a role in without the secret of its term. A line
-- counts unless an earlier one, which asks for the secret, matches everything that it matches. _far
-- omits lines that can be used only on the server's host.
CREATE OR REPLACE FUNCTION tanist.doors(_role name, _far boolean) RETURNS TABLE (line int, kind text, address text, method text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    RETURN QUERY
    WITH rules AS (
        SELECT row_number() OVER () AS n, h.line_number, h.type, h.database, h.user_name, h.address, h.netmask, h.auth_method
          FROM pg_hba_file_rules h WHERE h.error IS NULL
    ), mine AS MATERIALIZED (
        SELECT r.*, CASE WHEN r.netmask IS NOT NULL THEN r.address::inet END AS net, r.netmask::inet AS mask
          FROM rules r
         WHERE EXISTS (
                SELECT FROM unnest(r.database) d
                 WHERE d IN ('all', current_database()) OR (d = 'sameuser' AND _role = current_database())
                    OR d IN ('samerole', 'samegroup') OR (d LIKE '/%' AND current_database() ~ substr(d, 2)))
           AND EXISTS (
                SELECT FROM unnest(r.user_name) u
                 WHERE u IN ('all', _role) OR (u LIKE '/%' AND _role ~ substr(u, 2))
                    OR (u LIKE '+%' AND EXISTS (
                        SELECT FROM pg_roles l CROSS JOIN LATERAL tanist.reach(ARRAY[l.oid]) m JOIN pg_roles g ON g.oid = m.role
                         WHERE l.rolname = _role AND g.rolname = substr(u, 2))))
    )
    SELECT m.line_number, m.type, m.address || coalesce('/' || m.netmask, ''), m.auth_method
      FROM mine m
     WHERE m.auth_method NOT IN ('scram-sha-256', 'md5', 'password', 'reject')
       AND NOT (_far AND (m.type = 'local' OR m.address IN ('samehost', 'localhost') OR (m.net IS NOT NULL AND (
                host(m.net) = '::1' OR family(m.net) = 4 AND host(m.net & '255.0.0.0'::inet) = '127.0.0.0'))))
       AND NOT EXISTS (
            SELECT FROM mine f
             WHERE f.n < m.n AND f.auth_method IN ('scram-sha-256', 'md5', 'password', 'reject')
               AND 'samerole' <> ALL (f.database) AND 'samegroup' <> ALL (f.database)
               AND (f.type = m.type OR (f.type = 'host' AND m.type <> 'local'))
               AND (m.type = 'local' OR f.address = 'all'
                    OR (f.address = m.address AND f.netmask IS NOT DISTINCT FROM m.netmask)
                    OR (family(f.net) = family(m.net)
                        AND CASE WHEN family(f.net) = family(m.net) THEN
                            host(f.mask & m.mask) = host(f.mask) AND host(m.net & f.mask) = host(f.net & f.mask) END)));
END $fn$;

-- far reports whether the caller's host is not the server's, as far as this connection shows.
CREATE OR REPLACE FUNCTION tanist.far() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT coalesce(host(inet_client_addr()) <> host(inet_server_addr()) AND host(inet_client_addr()) !~ '^(127\.|::1$)', false);
$fn$;

-- paths returns the ways to the server that only its own host has. near reports whether the caller
-- is on it.
CREATE OR REPLACE FUNCTION tanist.paths(OUT near boolean, OUT port int, OUT directories text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT NOT tanist.far(), current_setting('port')::int,
           ARRAY(SELECT btrim(d, ' "') FROM unnest(string_to_array(current_setting('unix_socket_directories'), ',')) d WHERE btrim(d) LIKE '/%');
$fn$;

-- ends_starting reports whether drain may end connections that are still authenticating.
CREATE OR REPLACE FUNCTION tanist.ends_starting() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_roles o ON o.oid = p.proowner
                    WHERE p.pronamespace = to_regnamespace('tanist') AND p.proname = 'end_starting' AND p.prosecdef AND o.rolsuper
                      AND has_function_privilege('tanist_owner', p.oid, 'EXECUTE'));
$fn$;

-- conditions is the list. severity is error (the fence does not hold), warning (it holds with a
-- limit) or advice. _give_up is how many seconds the caller tries to raise the fence, or NULL.
CREATE OR REPLACE FUNCTION tanist.conditions(_cluster text, _give_up int) RETURNS TABLE (severity text, code text, found text, remedy text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    operator boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = session_user AND rolsuper);
    me       tanist.controller;
    f        tanist.fence;
    version  int := current_setting('server_version_num')::int;
    n        int;
    waiting  int;
    init     text := 'run "tanist repository init" again';
    seconds  int := (SELECT setting::int FROM pg_settings WHERE name = 'authentication_timeout');
BEGIN
    IF NOT operator THEN
        me := tanist.me(_cluster);
    END IF;
    SELECT * INTO f FROM tanist.fence WHERE cluster = _cluster;
    IF NOT FOUND OR NOT EXISTS (SELECT FROM tanist.controller c WHERE c.cluster = _cluster) THEN
        RETURN QUERY SELECT 'error', 'no-controllers', format('the repository has no controllers of cluster %s', _cluster), init;
        RETURN;
    END IF;

    -- The server.
    IF version < 140000 THEN
        RETURN QUERY SELECT 'error', 'version', format('this is PostgreSQL %s; the fence is tested on 15', version / 10000), 'use PostgreSQL 15, 16 or 17'::text;
    END IF;
    IF pg_is_in_recovery() THEN
        RETURN QUERY SELECT 'error', 'standby', 'this server is a standby',
            'point repository.dsn_file to the primary (several hosts and target_session_attrs=read-write)';
    END IF;
    IF current_setting('max_prepared_transactions')::int > 0 THEN
        SELECT count(*) INTO waiting FROM pg_prepared_xacts;
        RETURN QUERY SELECT CASE WHEN 'prepared' = ANY (f.allowed) THEN 'warning' ELSE 'error' END, 'prepared-transactions',
            format('max_prepared_transactions is %s (%s are waiting now): a prepared transaction of an older term survives the fence, and can be committed later',
                   current_setting('max_prepared_transactions'), waiting),
            'set max_prepared_transactions = 0, or run init with --allow-prepared and leave them to the program''s transaction manager'::text;
    END IF;
    IF NOT tanist.ends_starting() THEN
        RETURN QUERY SELECT CASE WHEN _give_up <= seconds THEN 'error' WHEN seconds > 10 THEN 'warning' ELSE 'advice' END, 'authentication-timeout',
            format('a client that stops in the middle of its login can delay a takeover by authentication_timeout, %s s%s', seconds,
                   CASE WHEN _give_up <= seconds THEN format(', and repository.give_up is %s s', _give_up) ELSE '' END),
            'run "tanist repository init" as a superuser, so that the fence may end such connections; or set authentication_timeout = 10s and repository.give_up above it'::text;
    END IF;
    IF current_setting('fsync') = 'off' THEN
        RETURN QUERY SELECT 'warning', 'fsync', 'fsync is off: a crash of the server''s host may undo a fence', 'set fsync = on';
    END IF;
    SELECT count(*), count(*) FILTER (WHERE s.sync_state = 'async') INTO n, waiting
      FROM pg_stat_replication s LEFT JOIN pg_replication_slots l ON l.active_pid = s.pid
     WHERE s.state IN ('catchup', 'streaming') AND l.slot_type IS DISTINCT FROM 'logical';
    IF waiting > 0 THEN
        RETURN QUERY SELECT CASE WHEN 'async' = ANY (f.allowed) THEN 'warning' ELSE 'error' END, 'async-standby',
            format('%s of %s standbys are asynchronous: the promotion of one may lose the fence itself; the active sidecar detects that and fences again, but until then an older term may write', waiting, n),
            'name it in synchronous_standby_names, or never promote it while a controller of an older term may live (init --allow-async)'::text;
    END IF;

    -- The cluster's logins: they exist and are below the fence.
    RETURN QUERY
    SELECT 'error', 'no-role', format('the %s login %I of controller %s does not exist', l.what, l.role, l.name), init
      FROM (SELECT c.name, c.role, 'program''s' AS what FROM tanist.controller c WHERE c.cluster = _cluster
            UNION ALL SELECT c.name, c.sidecar, 'sidecar''s' FROM tanist.controller c WHERE c.cluster = _cluster) l
     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = l.role);
    RETURN QUERY
    WITH login AS (
        SELECT c.name, true AS program, r.oid, r.rolname FROM tanist.controller c JOIN pg_roles r ON r.rolname = c.role WHERE c.cluster = _cluster
        UNION ALL SELECT c.name, false, r.oid, r.rolname FROM tanist.controller c JOIN pg_roles r ON r.rolname = c.sidecar WHERE c.cluster = _cluster
    ), above AS (
        SELECT l.name, l.program, l.rolname, v.what || CASE WHEN t.oid = l.oid THEN '' ELSE format(' (through %I)', t.rolname) END AS what
          FROM login l JOIN tanist.reach(ARRAY(SELECT oid FROM login)) m ON m.login = l.oid JOIN pg_roles t ON t.oid = m.role
         CROSS JOIN LATERAL (VALUES
            ('SUPERUSER', t.rolsuper),
            ('CREATEROLE', t.rolcreaterole AND t.rolname <> 'tanist_owner'),
            ('REPLICATION', t.rolreplication AND t.oid = l.oid),
            ('all data, and with it the fence''s own tables', t.rolname = 'pg_write_all_data'),
            ('locks on the fence''s own tables', t.rolname = 'pg_maintain'), -- from PostgreSQL 17 on
            ('the sessions of others', t.rolname = 'pg_signal_backend'),
            ('the program''s objects', t.rolname = f.app_role AND NOT l.program),
            ('programs and files of the server', t.rolname IN ('pg_execute_server_program', 'pg_write_server_files')),
            ('the fence itself', t.rolname = 'tanist_owner' OR EXISTS (SELECT FROM pg_namespace s WHERE s.nspname = 'tanist' AND s.nspowner = t.oid)),
            ('the login of another', EXISTS (SELECT FROM login o WHERE o.oid = t.oid AND o.oid <> l.oid))
          ) v (what, there)
         WHERE v.there
    )
    SELECT 'error', 'above-the-fence', format('the %s login %I of controller %s has %s', CASE WHEN a.program THEN 'program''s' ELSE 'sidecar''s' END,
           a.rolname, a.name, string_agg(a.what, ', ' ORDER BY a.what)), 'remove it from the login'::text
      FROM above a GROUP BY a.name, a.program, a.rolname ORDER BY a.name, a.program DESC;

    -- Other ways to the program's objects: logins that can act as their owner.
    RETURN QUERY
    SELECT 'error', 'acts-as-application',
           format('%I can log in and act as %I, the owner of the program''s objects%s: the fence does not bind it', r.rolname, f.app_role,
                  CASE WHEN r.rolname = f.app_role THEN '' ELSE ', as a member' END),
           format('run init with --shut-out %I, or ALTER ROLE %I NOLOGIN, or REVOKE %I FROM it', r.rolname, r.rolname, f.app_role)
      FROM pg_roles app
      JOIN tanist.reach(ARRAY(SELECT oid FROM pg_roles WHERE rolcanlogin AND NOT rolsuper)) m ON m.role = app.oid
      JOIN pg_roles r ON r.oid = m.login
     WHERE app.rolname = f.app_role AND r.rolcanlogin AND NOT r.rolsuper
       AND NOT EXISTS (SELECT FROM tanist.controller c WHERE c.cluster = _cluster AND r.rolname IN (c.role, c.sidecar))
     ORDER BY r.rolname;
    RETURN QUERY
    SELECT 'error', 'shut-out', format('%I was shut out, and may log in again', r.rolname),
           format('ALTER ROLE %I NOLOGIN, or remove the cluster from the fence with "tanist repository remove"', r.rolname)
      FROM tanist.bound b JOIN pg_roles r ON r.oid = b.id
     WHERE b.cluster = _cluster AND r.rolcanlogin AND (NOT b.program OR NOT EXISTS (
            SELECT FROM tanist.controller c WHERE c.cluster = _cluster AND c.role = r.rolname))
       AND NOT (r.rolname = f.app_role OR EXISTS (
            SELECT FROM tanist.reach(ARRAY[r.oid]) m JOIN pg_roles app ON app.oid = m.role WHERE app.rolname = f.app_role));

    -- Ways in without the secret. A sidecar checks only its own program, which runs on its host.
    BEGIN
        RETURN QUERY
        SELECT 'error', 'no-secret',
               format('line %s of pg_hba.conf (%s) lets %I in without the secret of its term: an old process of controller %s could come back in a later one',
                      d.line, concat_ws(' ', d.kind, d.address, d.method), c.role, c.name),
               format('put a line before it that asks %I for scram-sha-256%s', c.role,
                      CASE WHEN d.kind = 'local' THEN ', or run init with --allow-local-logins if no controller runs on the server''s host' ELSE '' END)
          FROM tanist.controller c
         CROSS JOIN LATERAL tanist.doors(c.role, 'local-logins' = ANY (f.allowed) OR tanist.far()) d
         WHERE c.cluster = _cluster AND (operator OR c.name = me.name)
         ORDER BY c.name, d.line;
    EXCEPTION WHEN insufficient_privilege THEN
        RETURN QUERY SELECT 'warning', 'hba-unreadable', 'pg_hba.conf cannot be read, so only the ways in that this host can try are known',
            'run "tanist repository init" as a superuser, or check that every line asks the programs'' roles for scram-sha-256';
    END;

    -- The fence itself.
    RETURN QUERY
    SELECT 'error', 'fence-owner', format('tanist_owner has %s', v.what), init
      FROM pg_roles o CROSS JOIN LATERAL (VALUES ('LOGIN', o.rolcanlogin), ('SUPERUSER', o.rolsuper),
           ('the member ' || (SELECT string_agg(quote_ident(m.rolname), ', ') FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member WHERE a.roleid = o.oid AND NOT m.rolsuper),
            EXISTS (SELECT FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member WHERE a.roleid = o.oid AND NOT m.rolsuper))) v (what, there)
     WHERE o.rolname = 'tanist_owner' AND v.there;
    RETURN QUERY SELECT 'error', 'fence-objects', s.what, 'find out who made it and why, and drop it; then ' || init FROM tanist.strange() s (what);

    RETURN QUERY
    SELECT 'advice', 'connection-limit', format('the program''s login %I of controller %s may use all connections of the server', r.rolname, c.name),
           format('ALTER ROLE %I CONNECTION LIMIT n, a few less than max_connections', r.rolname)
      FROM tanist.controller c JOIN pg_roles r ON r.rolname = c.role WHERE c.cluster = _cluster AND r.rolconnlimit < 0 ORDER BY c.name;
    IF version >= 160000 THEN
        IF current_setting('reserved_connections')::int = 0 THEN
            RETURN QUERY SELECT 'advice', 'reserved-connections', 'no connections are reserved for the sidecars',
                'set reserved_connections = 5; init has granted them pg_use_reserved_connections';
        END IF;
    END IF;
END $fn$;

-- strange lists what is in the schema but not part of the fence.
CREATE OR REPLACE FUNCTION tanist.strange() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
@STRANGE@
$fn$;

-- verify raises the errors of conditions. It is the last step of init.
CREATE OR REPLACE FUNCTION tanist.verify(_cluster text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    n   int;
    all_found text;
BEGIN
    SELECT count(*), string_agg(format('[%s] %s; %s', c.code, c.found, c.remedy), E'\n') INTO n, all_found
      FROM tanist.conditions(_cluster, NULL) c WHERE c.severity = 'error';
    IF n > 0 THEN
        RAISE EXCEPTION E'the fence would not hold here, nothing was changed:\n%', all_found USING ERRCODE = 'TN006';
    END IF;
END $fn$;

-- The tables and functions of the store. Names between @ are filled in by setup.go. Every function
-- is one transaction of one statement, so a client that stops at any moment leaves no lock.

CREATE TABLE IF NOT EXISTS tanist_store.cluster (name text COLLATE "C" PRIMARY KEY);

-- Who may use a cluster. writes: the prefixes of the keys that the login may write; NULL: all of
-- them, and the leases of others.
CREATE TABLE IF NOT EXISTS tanist_store.access (
    cluster text COLLATE "C" NOT NULL REFERENCES tanist_store.cluster ON DELETE CASCADE,
    login   name NOT NULL,
    writes  text[],
    PRIMARY KEY (cluster, login)
);

-- ttl and renewed are milliseconds of tanist_store.clock() within one epoch.
CREATE TABLE IF NOT EXISTS tanist_store.lease (
    id      text COLLATE "C" PRIMARY KEY,
    cluster text COLLATE "C" NOT NULL REFERENCES tanist_store.cluster ON DELETE CASCADE,
    login   name NOT NULL,
    ttl     bigint NOT NULL,
    renewed bigint NOT NULL,
    epoch   text COLLATE "C" NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS lease_cluster ON tanist_store.lease (cluster);

CREATE SEQUENCE IF NOT EXISTS tanist_store.version;

-- A key that is bound to a lease ends with it.
CREATE TABLE IF NOT EXISTS tanist_store.entry (
    cluster text COLLATE "C" NOT NULL REFERENCES tanist_store.cluster ON DELETE CASCADE,
    key     text COLLATE "C" NOT NULL,
    value   bytea NOT NULL,
    version bigint NOT NULL,
    lease   text COLLATE "C" REFERENCES tanist_store.lease ON DELETE CASCADE,
    PRIMARY KEY (cluster, key)
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS entry_lease ON tanist_store.entry (lease) WHERE lease IS NOT NULL;

-- For people: SELECT key, value FROM tanist_store.show WHERE cluster = 'orders'
CREATE OR REPLACE VIEW tanist_store.show AS
    SELECT cluster, key, convert_from(value, 'UTF8') AS value, version, lease FROM tanist_store.entry;

-- Every write of a key, whoever writes it, gives it a version that it never had. A value that is too
-- long to be read by everybody, or is no text, would be in everybody's way.
CREATE OR REPLACE FUNCTION tanist_store.stamp() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF octet_length(NEW.value) > @LONGEST@ THEN
        RAISE 'a value of % bytes is too long: % may have %', octet_length(NEW.value), NEW.key, @LONGEST@ USING ERRCODE = '22001';
    END IF;
    IF getdatabaseencoding() = 'UTF8' THEN -- another encoding lacks characters
        PERFORM convert_from(NEW.value, 'UTF8');
    END IF;
    NEW.version := nextval('tanist_store.version');
    RETURN NEW;
END $fn$;

-- channel is where the hints of a cluster are sent.
CREATE OR REPLACE FUNCTION tanist_store.channel(_cluster text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT 'tanist_' || left(encode(sha256(convert_to(_cluster, 'UTF8')), 'hex'), 32);
$fn$;

-- A hint has no content that anybody relies on: every login of the database could send it.
CREATE OR REPLACE FUNCTION tanist_store.hint() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    _cluster text := CASE TG_OP WHEN 'DELETE' THEN OLD.cluster ELSE NEW.cluster END;
    _key text := CASE TG_OP WHEN 'DELETE' THEN OLD.key ELSE NEW.key END;
BEGIN
    IF _key = ANY (@HINTED@) OR TG_OP <> 'UPDATE' AND starts_with(_key, @CONTROLLERS@) THEN
        PERFORM pg_notify(tanist_store.channel(_cluster), '');
    END IF;
    IF _key = @ACTIVE@ THEN
        PERFORM pg_notify(tanist_store.channel(_cluster) || '_active', '');
    END IF;
    RETURN NULL;
END $fn$;

CREATE OR REPLACE TRIGGER stamp BEFORE INSERT OR UPDATE ON tanist_store.entry FOR EACH ROW EXECUTE FUNCTION tanist_store.stamp();
CREATE OR REPLACE TRIGGER hint AFTER INSERT OR UPDATE OR DELETE ON tanist_store.entry FOR EACH ROW EXECUTE FUNCTION tanist_store.hint();

-- admit refuses a login that may not use the cluster, or may not write one of the keys. It returns
-- whether the login may use the leases of others.
CREATE OR REPLACE FUNCTION tanist_store.admit(_cluster text, _keys text[]) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    _writes text[];
    _key text;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE 'this server is a standby, which may be behind' USING ERRCODE = '25006';
    END IF;
    SELECT a.writes INTO _writes FROM tanist_store.access a WHERE a.cluster = _cluster AND a.login = session_user;
    IF NOT FOUND THEN
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
           OR NOT EXISTS (SELECT FROM tanist_store.cluster WHERE name = _cluster) THEN
            RAISE 'the login % has no access to the cluster %', session_user, _cluster USING ERRCODE = '42501';
        END IF;
    ELSIF _writes IS NOT NULL THEN
        FOREACH _key IN ARRAY coalesce(_keys, '{}') LOOP
            IF NOT EXISTS (SELECT FROM unnest(_writes) w WHERE starts_with(_key, w)) THEN
                RAISE 'the login % may not write % of the cluster %', session_user, _key, _cluster USING ERRCODE = '42501';
            END IF;
        END LOOP;
        RETURN false;
    END IF;
    RETURN true;
END $fn$;

-- serial makes the transactions that change a cluster come one after the other. What follows in the
-- same function sees all earlier ones. A login that may write only some keys can keep a transaction
-- open for as long as it likes, so it waits only for itself, and nobody waits for it.
CREATE OR REPLACE FUNCTION tanist_store.serial(_cluster text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE 'the store needs the isolation level read committed' USING ERRCODE = '25001';
    END IF;
    IF tanist_store.admit(_cluster, NULL) THEN
        PERFORM FROM tanist_store.cluster WHERE name = _cluster FOR NO KEY UPDATE;
    ELSE
        PERFORM FROM tanist_store.access WHERE cluster = _cluster AND login = session_user FOR NO KEY UPDATE;
    END IF;
END $fn$;

-- ended reports whether a lease has ended. The clock has steps of 10 ms.
CREATE OR REPLACE FUNCTION tanist_store.ended(_epoch text, _now bigint, _lease tanist_store.lease) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $fn$
    SELECT _lease.epoch = _epoch AND _now - _lease.renewed >= _lease.ttl + 20;
$fn$;

-- sweep ends the leases that are over, with their keys. Those of an earlier life of the server start
-- over. It returns the milliseconds until the next lease may end, or NULL; not above zero: one has
-- ended and is still there. What somebody's open
-- transaction has locked waits for the next sweep, and a login that may write only some keys sweeps
-- nothing: the locks would be held until its transaction ends.
CREATE OR REPLACE FUNCTION tanist_store.sweep(_cluster text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    _any boolean := tanist_store.admit(_cluster, NULL);
    c record;
BEGIN
    SELECT * INTO c FROM tanist_store.clock();
    IF _any AND EXISTS (SELECT FROM tanist_store.lease l WHERE l.cluster = _cluster AND (l.epoch <> c.epoch OR tanist_store.ended(c.epoch, c.now, l))) THEN
        PERFORM tanist_store.serial(_cluster);
        SELECT * INTO c FROM tanist_store.clock();
        UPDATE tanist_store.lease SET epoch = c.epoch, renewed = c.now WHERE id IN (
            SELECT l.id FROM tanist_store.lease l WHERE l.cluster = _cluster AND l.epoch <> c.epoch FOR NO KEY UPDATE SKIP LOCKED);
        DELETE FROM tanist_store.lease WHERE id IN (
            SELECT l.id FROM tanist_store.lease l WHERE l.cluster = _cluster AND tanist_store.ended(c.epoch, c.now, l) FOR UPDATE SKIP LOCKED);
    END IF;
    RETURN (SELECT min(l.renewed + l.ttl + 20 - c.now) FROM tanist_store.lease l WHERE l.cluster = _cluster);
END $fn$;

-- hello tells a new connection what it is connected to.
CREATE OR REPLACE FUNCTION tanist_store.hello(_cluster text, OUT pid int, OUT layout int, OUT system text, OUT timeline text, OUT channel text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM tanist_store.admit(_cluster, NULL);
    pid := pg_backend_pid();
    layout := @LAYOUT@;
    system := (SELECT system_identifier::text FROM pg_control_system());
    timeline := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
    channel := tanist_store.channel(_cluster);
END $fn$;

-- server tells what a login can't see of the server, and what weakens its promises.
CREATE OR REPLACE FUNCTION tanist_store.server(_cluster text, OUT version text, OUT clock text, OUT unsafe text, OUT replicas int, OUT synchronous boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM tanist_store.admit(_cluster, NULL);
    version := current_setting('server_version');
    clock := (SELECT split_part(c.epoch, ' ', 1) FROM tanist_store.clock() c);
    unsafe := (SELECT coalesce(string_agg(s.name, ' and '), '') FROM pg_settings s WHERE s.name IN ('fsync', 'full_page_writes') AND s.setting = 'off');
    replicas := (SELECT count(*) FROM pg_stat_replication);
    synchronous := current_setting('synchronous_standby_names') <> '';
END $fn$;

-- live reports whether a lease that a key is bound to has not ended, although nobody has swept it.
CREATE OR REPLACE FUNCTION tanist_store.live(_epoch text, _now bigint, _id text) RETURNS boolean
LANGUAGE sql STABLE AS $fn$
    SELECT _id IS NULL OR EXISTS (SELECT FROM tanist_store.lease l WHERE l.id = _id AND NOT tanist_store.ended(_epoch, _now, l));
$fn$;

-- read returns some keys and all with a prefix, as of one moment.
CREATE OR REPLACE FUNCTION tanist_store.read(_cluster text, _keys text[], _prefix text)
RETURNS TABLE (key text, value bytea, version bigint, lease text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
DECLARE
    c record;
BEGIN
    PERFORM tanist_store.sweep(_cluster);
    SELECT * INTO c FROM tanist_store.clock();
    RETURN QUERY
        SELECT e.key, e.value, e.version, e.lease FROM tanist_store.entry e
         WHERE e.cluster = _cluster AND e.key = ANY (_keys) AND tanist_store.live(c.epoch, c.now, e.lease)
        UNION
        SELECT e.key, e.value, e.version, e.lease FROM tanist_store.entry e
         WHERE e.cluster = _cluster AND e.key >= _prefix AND starts_with(e.key, _prefix) AND tanist_store.live(c.epoch, c.now, e.lease)
        ORDER BY key;
END $fn$;

CREATE OR REPLACE FUNCTION tanist_store.clusters() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT c.name FROM tanist_store.cluster c
     WHERE EXISTS (SELECT FROM tanist_store.access a WHERE a.cluster = c.name AND a.login = session_user)
        OR (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
     ORDER BY c.name;
$fn$;

CREATE OR REPLACE FUNCTION tanist_store.grant_lease(_cluster text, _ttl bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    _id text := gen_random_uuid();
BEGIN
    PERFORM tanist_store.admit(_cluster, NULL);
    INSERT INTO tanist_store.lease (id, cluster, login, ttl, renewed, epoch)
        SELECT _id, _cluster, session_user, _ttl, c.now, c.epoch FROM tanist_store.clock() c;
    RETURN _id;
END $fn$;

-- renew prolongs a lease that has not ended, and reports whether it did.
CREATE OR REPLACE FUNCTION tanist_store.renew(_cluster text, _id text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    _any boolean := tanist_store.admit(_cluster, NULL);
    _renewed boolean;
    c record;
BEGIN
    -- What waits comes before the clock is read. The lease of another must not be locked.
    PERFORM FROM tanist_store.lease l WHERE l.id = _id AND l.cluster = _cluster AND (_any OR l.login = session_user) FOR NO KEY UPDATE;
    SELECT * INTO c FROM tanist_store.clock();
    UPDATE tanist_store.lease l SET renewed = c.now, epoch = c.epoch
     WHERE l.id = _id AND l.cluster = _cluster AND (_any OR l.login = session_user) AND NOT tanist_store.ended(c.epoch, c.now, l);
    RETURN FOUND;
END $fn$;

-- revoke ends a lease with its keys.
CREATE OR REPLACE FUNCTION tanist_store.revoke_lease(_cluster text, _id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    _any boolean := tanist_store.admit(_cluster, NULL);
BEGIN
    PERFORM tanist_store.serial(_cluster);
    DELETE FROM tanist_store.lease l WHERE l.id = _id AND l.cluster = _cluster AND (_any OR l.login = session_user);
END $fn$;

-- write sets a key.
CREATE OR REPLACE FUNCTION tanist_store.write(_cluster text, _key text, _value bytea, _lease text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    INSERT INTO tanist_store.entry (cluster, key, value, version, lease) VALUES (_cluster, _key, _value, 0, _lease)
        ON CONFLICT (cluster, key) DO UPDATE SET value = excluded.value, lease = excluded.lease;
$fn$;

-- hold prolongs a lease and proves that the role key is bound to it. No row: it is not.
CREATE OR REPLACE FUNCTION tanist_store.hold(_cluster text, _id text, _active text, _beat text)
RETURNS TABLE (value bytea, version bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    PERFORM tanist_store.admit(_cluster, ARRAY[_active]);
    PERFORM tanist_store.serial(_cluster);
    PERFORM tanist_store.sweep(_cluster);
    IF NOT tanist_store.renew(_cluster, _id)
       OR NOT EXISTS (SELECT FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _active AND e.lease = _id) THEN
        RETURN;
    END IF;
    IF _beat IS NOT NULL THEN
        PERFORM tanist_store.write(_cluster, _beat, '', _id);
    END IF;
    RETURN QUERY SELECT e.value, e.version FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _active;
END $fn$;

-- pin keeps a sweep from the leases of keys that this transaction changes. It would wait for them.
CREATE OR REPLACE FUNCTION tanist_store.pin(_cluster text, _keys text[], _leases text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT FROM tanist_store.lease l
     WHERE l.id = ANY (_leases) OR l.id IN (SELECT e.lease FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = ANY (_keys))
       FOR KEY SHARE;
$fn$;

-- swap is one transaction. Conditions: the key _bound is bound to the lease _to (else "lost"), the
-- keys _if have the versions _at, zero meaning absent (else "conflict"), and the leases that keys
-- are bound to exist (else "lost"). If they hold, it sets the keys to the values, a NULL value
-- removes the key, and ends the lease _end. It returns "done" and the version of the first key.
CREATE OR REPLACE FUNCTION tanist_store.swap(_cluster text, _bound text, _to text, _if text[], _at bigint[],
    _keys text[], _values bytea[], _leases text[], _end text, OUT result text, OUT version bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
DECLARE
    _any boolean := tanist_store.admit(_cluster, _keys);
BEGIN
    PERFORM tanist_store.serial(_cluster);
    PERFORM tanist_store.sweep(_cluster);
    IF _bound IS NOT NULL AND NOT EXISTS (
        SELECT FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _bound AND e.lease = _to) THEN
        result := 'lost';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM unnest(_if, _at) AS w (key, at) LEFT JOIN tanist_store.entry e ON e.cluster = _cluster AND e.key = w.key
                WHERE coalesce(e.version, 0) <> w.at) THEN
        result := 'conflict';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM unnest(_leases) AS w (id) WHERE w.id IS NOT NULL AND NOT EXISTS (
        SELECT FROM tanist_store.lease l WHERE l.id = w.id AND l.cluster = _cluster AND (_any OR l.login = session_user))) THEN
        result := 'lost';
        RETURN;
    END IF;
    PERFORM tanist_store.pin(_cluster, _keys, _leases);
    FOR i IN 1 .. cardinality(_keys) LOOP
        IF _values[i] IS NULL THEN
            DELETE FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _keys[i];
        ELSE
            PERFORM tanist_store.write(_cluster, _keys[i], _values[i], _leases[i]);
        END IF;
    END LOOP;
    DELETE FROM tanist_store.lease l WHERE l.id = _end AND l.cluster = _cluster AND (_any OR l.login = session_user);
    result := 'done';
    version := (SELECT e.version FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _keys[1]);
END $fn$;

-- remove removes a key if it has the version; zero: any.
CREATE OR REPLACE FUNCTION tanist_store.remove(_cluster text, _key text, _at bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM tanist_store.admit(_cluster, ARRAY[_key]);
    PERFORM tanist_store.serial(_cluster);
    PERFORM tanist_store.sweep(_cluster);
    IF EXISTS (SELECT FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _key AND _at <> 0 AND e.version <> _at) THEN
        RETURN 'conflict';
    END IF;
    PERFORM tanist_store.pin(_cluster, ARRAY[_key], '{}');
    DELETE FROM tanist_store.entry e WHERE e.cluster = _cluster AND e.key = _key;
    RETURN 'done';
END $fn$;

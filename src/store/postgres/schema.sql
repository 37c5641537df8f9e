-- Version 1 of what tollgate keeps in PostgreSQL. What decides there is apply.sql.
--
-- {words in braces} are names, put in quoted: see migrate.rs. All moments are Unix microseconds, and all numbers are
-- whole. What is decided is limiter::advance; the words here are the words there.
--
-- A counter is one row. What its columns hold depends on the kind; `moment` is never ahead of the clock that wrote it:
--
--   kind             a          b          moment          d
--   0 empty          -          -          -               -
--   1 bucket         level      unit       last charge     -
--   2 grants         dropped    granted    newest grant    swept
--   3 pair           current    previous   start           -
--   4 fixed          count      end        start           -
--   5 leases         leases     -          newest lease    -
--
-- A charge writes one row whatever the limit: an exact log is rows beside its counter, one for all that was granted at
-- one moment. Grants are numbered from one, and a row says up to which number:
--
--   grants:        (dropped) | 3 @ t1 | 4 @ t2 |   7 @ t3   |          granted = 7, dropped = 2
--                   1    2   |   3    |   4    |  5  6  7   |          five count, if t1 + window is ahead
--
-- Whoever holds the row of a counter may write its grants and leases, and nobody else does.

CREATE TABLE IF NOT EXISTS {meta} (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- Of this page, and the oldest that a tollgate may know to use it.
    version integer NOT NULL,
    oldest integer NOT NULL,
    -- Where old counters are to be removed next, and when that was done last.
    sweep_page bigint NOT NULL DEFAULT 0,
    swept bigint NOT NULL DEFAULT 0
);

CREATE {unlogged} TABLE IF NOT EXISTS {counters} (
    counter uuid PRIMARY KEY,
    a bigint NOT NULL,
    b bigint NOT NULL,
    moment bigint NOT NULL,
    d bigint NOT NULL,
    expires bigint NOT NULL,
    kind smallint NOT NULL
-- An update stays on its page, and touches no index: none is on a column that changes.
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.2);

CREATE {unlogged} TABLE IF NOT EXISTS {grants} (
    counter uuid NOT NULL,
    upto bigint NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (counter, upto)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE {unlogged} TABLE IF NOT EXISTS {leases} (
    counter uuid NOT NULL,
    lease uuid NOT NULL,
    acquired bigint NOT NULL,
    expires bigint NOT NULL,
    PRIMARY KEY (counter, lease)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS {leases_by_expiry} ON {leases} (counter, expires);

-- Forgets a counter. Says whether it held anything.
CREATE OR REPLACE FUNCTION {forget}(name uuid) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    found_kind smallint;
BEGIN
    SELECT kind INTO found_kind FROM {counters} WHERE counter = name FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM {grants} WHERE counter = name;
    DELETE FROM {leases} WHERE counter = name;
    DELETE FROM {counters} WHERE counter = name;
    RETURN found_kind <> 0;
END
$body$;

-- Removes some of the counters that have been forgotten for `slack`, going round the table: housekeeping, which no
-- answer depends on. It waits for nobody, and does nothing if it was called less than `pause` ago, by whichever
-- instance. Says whether it stopped because it had removed enough, so that there may be more to do at once.
CREATE OR REPLACE FUNCTION {sweep}(slack bigint, pause bigint) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    now bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    page bigint;
    pages bigint := pg_relation_size('{counters}'::regclass) / current_setting('block_size')::bigint;
    beyond bigint;
    old record;
    removed integer := 0;
    rows integer;
BEGIN
    SELECT sweep_page INTO page FROM {meta} WHERE swept <= now - pause OR swept > now FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    page := CASE WHEN page < pages THEN page ELSE 0 END;
    -- Once round in ten minutes, when it is called once a second.
    beyond := page + greatest(64, pages / 600 + 1);
    FOR old IN
        SELECT counter, kind FROM {counters}
        WHERE ctid >= format('(%s,0)', page)::tid AND ctid < format('(%s,0)', beyond)::tid AND expires < now - slack
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    LOOP
        rows := 0;
        IF old.kind = 2 THEN
            DELETE FROM {grants} WHERE counter = old.counter;
            GET DIAGNOSTICS rows = ROW_COUNT;
        ELSIF old.kind = 5 THEN
            DELETE FROM {leases} WHERE counter = old.counter;
            GET DIAGNOSTICS rows = ROW_COUNT;
        END IF;
        DELETE FROM {counters} WHERE counter = old.counter;
        removed := removed + 1 + rows;
        EXIT WHEN removed >= 1000;
    END LOOP;
    UPDATE {meta} SET swept = now, sweep_page = CASE WHEN removed >= 1000 THEN page ELSE beyond END;
    RETURN removed >= 1000;
END
$body$;

-- Version 6 of the schema: tables, indexes, and functions for maintenance. apply.sql decides plans.
--
-- {Names in braces} are replaced by quoted names: see names.rs. Times are Unix microseconds, and all numbers are
-- integers. The states are those of plan::advance.
--
-- A counter is one row. The meaning of its columns depends on the kind; `moment` is never ahead of the clock that wrote
-- it:
--
--   kind             a          b          moment          d
--   0 empty          -          -          -               -
--   1 bucket         level      unit       last charge     -
--   2 log            dropped    granted    newest grant    deleted
--   3 pair           current    previous   start           -
--   4 fixed          count      end        start           -
--   5 leases         leases     -          newest lease    -
--   6 values         -          -          newest charge   -
--
-- An exact log also has a row in grants for each time at which units were granted, so that a charge writes a constant
-- number of rows. Grants are numbered from one, and a row has the number of its last grant, `upto`:
--
--   grants:        (dropped) | 3 @ t1 | 4 @ t2 |   7 @ t3   |          granted = 7, dropped = 2
--                   1    2   |   3    |   4    |  5  6  7   |          five count while t1 + window is ahead
--
-- The lock of a counter's row also protects its grants, leases, values and holds.

CREATE TABLE IF NOT EXISTS {meta} (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- The version of this schema, and the oldest version whose releases can use it.
    version integer NOT NULL,
    oldest integer NOT NULL,
    -- The page at which the next sweep starts, and the time of the last sweep.
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
-- Free space on each page, and no index on a column that changes: updates stay on their page and touch no index (HOT).
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

-- The values that counters remember (limiter/distinct.rs): keyed hashes with their highest bit flipped, so that they are
-- in the order of unsigned numbers; the moment of the last charge, and of the one before, or zero.
CREATE {unlogged} TABLE IF NOT EXISTS {values} (
    counter uuid NOT NULL,
    value bigint NOT NULL,
    at bigint NOT NULL,
    earlier bigint NOT NULL,
    PRIMARY KEY (counter, value)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS {values_by_moment} ON {values} (counter, at, value);

-- The holds of counters (limiter/hold.rs). `due` is the end of a hold, and when it is forgotten once it has ended.
CREATE {unlogged} TABLE IF NOT EXISTS {holds} (
    counter uuid NOT NULL,
    lease uuid NOT NULL,
    charged bigint NOT NULL,
    at bigint NOT NULL,
    reset bigint NOT NULL,
    -- Of the bucket that charged, else zero.
    unit bigint NOT NULL,
    drain bigint NOT NULL,
    since bigint NOT NULL,
    length bigint NOT NULL,
    -- Whether it is given back at its end, and whether its end has taken effect.
    release boolean NOT NULL,
    ended boolean NOT NULL,
    due bigint NOT NULL,
    PRIMARY KEY (counter, lease)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS {holds_by_due} ON {holds} (counter, ended, release, due);

-- The counters that have holds: their number, when the newest was made, and when something is due at the earliest.
CREATE {unlogged} TABLE IF NOT EXISTS {held} (
    counter uuid PRIMARY KEY,
    holds bigint NOT NULL,
    newest bigint NOT NULL,
    due bigint NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Deletes a counter, and returns whether it had a state.
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
    DELETE FROM {values} WHERE counter = name;
    DELETE FROM {holds} WHERE counter = name;
    DELETE FROM {held} WHERE counter = name;
    DELETE FROM {counters} WHERE counter = name;
    RETURN found_kind <> 0;
END
$body$;

-- Deletes some of the counters that expired more than `slack` ago, and returns whether there may be more to delete at
-- once. Each call continues where the last one stopped in the table. No answer depends on this. It skips locked rows,
-- and does nothing if any instance called it less than `pause` ago.
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
    -- Called once a second, it sweeps the whole table in ten minutes.
    beyond := page + greatest(64, pages / 600 + 1);
    FOR old IN
        SELECT counter, kind FROM {counters}
        WHERE ctid >= format('(%s,0)', page)::tid AND ctid < format('(%s,0)', beyond)::tid AND expires < now - slack
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    LOOP
        rows := 0;
        PERFORM FROM {held} WHERE counter = old.counter;
        IF FOUND THEN
            -- It is kept until its last hold is forgotten.
            PERFORM FROM {holds}
            WHERE counter = old.counter AND due + CASE WHEN ended THEN 0 ELSE length END >= now - slack;
            CONTINUE WHEN FOUND;
            DELETE FROM {holds} WHERE counter = old.counter;
            GET DIAGNOSTICS rows = ROW_COUNT;
            removed := removed + rows;
            DELETE FROM {held} WHERE counter = old.counter;
            rows := 0;
        END IF;
        IF old.kind = 2 THEN
            DELETE FROM {grants} WHERE counter = old.counter;
            GET DIAGNOSTICS rows = ROW_COUNT;
        ELSIF old.kind = 5 THEN
            DELETE FROM {leases} WHERE counter = old.counter;
            GET DIAGNOSTICS rows = ROW_COUNT;
        ELSIF old.kind = 6 THEN
            DELETE FROM {values} WHERE counter = old.counter;
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

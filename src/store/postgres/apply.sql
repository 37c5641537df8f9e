-- Converts a level from `old` to `unit` levels per token, rounded up, at most `capacity` tokens.
CREATE OR REPLACE FUNCTION {rescale}(level bigint, old bigint, unit bigint, capacity bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    tokens bigint;
    part bigint;
    step bigint;
    grid bigint;
    steps bigint;
BEGIN
    IF level = 0 OR old = unit THEN
        RETURN least(level, capacity * unit);
    END IF;
    tokens := level / old;
    part := level % old;
    IF tokens >= capacity THEN
        RETURN capacity * unit;
    END IF;
    step := (old + 1048575) / 1048576;
    grid := old / step;
    steps := least((part + step - 1) / step, grid);
    part := steps * (unit / grid) + (steps * (unit % grid) + grid - 1) / grid;
    RETURN least(tokens * unit + part, capacity * unit);
END
$body$;

-- The used levels of a bucket's state, `elapsed` microseconds after its moment, in levels of the bucket that asks: what
-- counts for it, what was used beyond its capacity, and the levels until the state is empty for every bucket. See
-- token_bucket.rs.
CREATE OR REPLACE FUNCTION {bucket}(
    INOUT level bigint,
    old bigint,
    elapsed bigint,
    unit bigint,
    drain bigint,
    capacity bigint,
    OUT beyond bigint,
    OUT lasts bigint
)
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    beyond := 0;
    lasts := CASE WHEN elapsed > level / drain THEN 0 ELSE level - elapsed * drain END;
    IF lasts = 0 THEN
        level := 0;
        RETURN;
    END IF;
    level := {rescale}(level, old, unit, 4503599627370496 / unit);
    beyond := greatest(level - capacity * unit, 0);
    level := level - beyond;
    level := CASE WHEN elapsed > level / drain THEN 0 ELSE level - elapsed * drain END;
END
$body$;

-- Moves the moment of a state ahead of now to now (semantics 3). Leases are corrected when they are loaded, and logs by
-- the next function.
CREATE OR REPLACE FUNCTION {correct}(
    now bigint,
    shape bigint[],
    INOUT b bigint,
    INOUT moment bigint,
    OUT changed boolean
)
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    opens bigint;
BEGIN
    changed := false;
    IF shape[1] = 1 THEN
        changed := moment > now;
        moment := least(moment, now);
    ELSIF shape[1] = 3 THEN
        opens := now - now % shape[3];
        changed := moment > opens;
        moment := least(moment, opens);
    ELSIF shape[1] = 4 AND moment > now THEN
        changed := true;
        moment := CASE shape[3]
            WHEN 0 THEN now - now % shape[4]
            WHEN 1 THEN now
            ELSE CASE WHEN now < shape[5] THEN shape[4] WHEN now < shape[6] THEN shape[5] ELSE shape[6] END
        END;
        b := CASE shape[3]
            WHEN 0 THEN moment + shape[4]
            WHEN 1 THEN now + shape[4]
            ELSE CASE WHEN now < shape[5] THEN shape[5] WHEN now < shape[6] THEN shape[6]
                      ELSE greatest(shape[7], now + 1) END
        END;
    END IF;
END
$body$;

-- Moves the grants of a log from now on to now: their rows are deleted, because what is granted now is written last.
-- Returns the last grant that is a row.
CREATE OR REPLACE FUNCTION {correct_log}(name uuid, now bigint, gone bigint) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    edge bigint;
BEGIN
    SELECT upto INTO edge FROM {grants} WHERE counter = name AND upto > gone AND at < now ORDER BY upto DESC LIMIT 1;
    edge := coalesce(edge, gone);
    DELETE FROM {grants} WHERE counter = name AND upto > edge;
    RETURN edge;
END
$body$;

-- The time until there is room for this number of new values beside those of a counter that are not `asked`, or -1 if
-- there never is. `others` is the number of those.
CREATE OR REPLACE FUNCTION {value_room}(
    name uuid,
    now bigint,
    win bigint,
    most bigint,
    asked bigint[],
    others bigint,
    room bigint
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    beyond bigint := others + room - most;
    wait bigint;
BEGIN
    IF beyond <= 0 THEN
        RETURN 0;
    ELSIF beyond > others THEN
        RETURN -1;
    END IF;
    SELECT at + win - now INTO wait FROM {values}
    WHERE counter = name AND at > now - win AND value <> ALL (asked) ORDER BY at, value OFFSET beyond - 1 LIMIT 1;
    RETURN coalesce(wait, -1);
END
$body$;

-- The time until a check of values passes, or -1 if it never does: limiter/distinct.rs. `fits` if the asked ones have to
-- fit, and `one` if there has to be room for one more.
CREATE OR REPLACE FUNCTION {value_wait}(
    name uuid,
    now bigint,
    win bigint,
    most bigint,
    asked bigint[],
    fits boolean,
    one boolean
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    count bigint := coalesce(array_length(asked, 1), 0);
    counted bigint;
    known bigint;
    known_for bigint;
    for_all bigint := 0;
    for_one bigint := 0;
BEGIN
    IF NOT fits AND NOT one THEN
        RETURN 0;
    END IF;
    SELECT count(*) INTO counted FROM {values} WHERE counter = name AND at > now - win;
    IF count = 0 THEN
        RETURN {value_room}(name, now, win, most, asked, counted, 1);
    END IF;
    SELECT count(*), min(at) + win - now INTO known, known_for
    FROM {values} WHERE counter = name AND value = ANY (asked) AND at > now - win;
    IF known < count THEN
        known_for := 0;
    END IF;
    IF one THEN
        for_one := {value_room}(name, now, win, most, ARRAY[]::bigint[], counted, 1);
    END IF;
    -- The values can be forgotten before there is room for another one.
    IF fits AND known < count OR for_one > 0 AND for_one >= known_for THEN
        for_all := {value_room}(name, now, win, most, asked, counted - known, count);
    END IF;
    RETURN CASE WHEN for_one < 0 OR for_all < 0 THEN -1 ELSE greatest(for_one, for_all) END;
END
$body$;

-- Takes back that these values were charged, and returns whether that changed anything. One that was charged again since, or
-- twice at that moment, stays as it is.
CREATE OR REPLACE FUNCTION {undo_values}(name uuid, now bigint, win bigint, stamp bigint, asked bigint[]) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    gone integer;
    back integer;
BEGIN
    DELETE FROM {values}
    WHERE counter = name AND value = ANY (asked) AND at = stamp AND earlier <> stamp AND earlier <= now - win;
    GET DIAGNOSTICS gone = ROW_COUNT;
    UPDATE {values} SET at = earlier, earlier = 0
    WHERE counter = name AND value = ANY (asked) AND at = stamp AND earlier <> stamp AND earlier > now - win;
    GET DIAGNOSTICS back = ROW_COUNT;
    RETURN gone + back > 0;
END
$body$;

-- Whether a lease has a hold: the status of a change, or 3 more than the microseconds until it ends.
CREATE OR REPLACE FUNCTION {hold_status}(name uuid, id uuid, now bigint) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    hold record;
    ends bigint;
BEGIN
    SELECT since, length, ended INTO hold FROM {holds} WHERE counter = name AND lease = id;
    IF NOT FOUND THEN
        RETURN 2;
    END IF;
    -- As it is once its moments are corrected.
    ends := least(hold.since, now) + hold.length;
    IF NOT hold.ended AND ends > now THEN
        RETURN 3 + ends - now;
    END IF;
    RETURN CASE WHEN ends + hold.length > now THEN 1 ELSE 2 END;
END
$body$;

-- Takes a charge out of the state of a counter at a moment, which may have passed: plan::undo. `shape` is that of the limit which charged.
CREATE OR REPLACE FUNCTION {take_back}(
    name uuid,
    now bigint,
    as_of bigint,
    shape bigint[],
    units bigint,
    stamp bigint,
    reset bigint,
    holder uuid,
    INOUT a bigint,
    INOUT b bigint,
    INOUT moment bigint,
    INOUT edge bigint,
    INOUT seen bigint,
    INOUT win bigint,
    OUT changed boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    kind bigint := shape[1];
    corrected record;
    unit bigint; drain bigint; owed bigint; before bigint; elapsed bigint;
    mark bigint; low bigint; length bigint; start bigint; current bigint; previous bigint;
BEGIN
    SELECT * INTO corrected FROM {correct}(now, shape, b, moment);
    b := corrected.b;
    moment := corrected.moment;
    changed := corrected.changed;
    IF kind = 1 THEN
        unit := shape[4];
        drain := shape[5];
        IF reset < 0 THEN
            IF moment <> stamp OR b <> unit OR (a + drain - 1) / drain <> -1 - reset THEN
                RETURN;
            END IF;
            owed := units;
        ELSIF moment = stamp AND b = unit THEN
            owed := units;
        ELSE
            before := greatest(greatest(reset - 1, 0) * drain - units, 0);
            elapsed := as_of - stamp;
            IF elapsed > (before + units) / drain THEN
                owed := 0;
            ELSE
                owed := greatest(units - greatest(elapsed * drain - before, 0), 0);
            END IF;
        END IF;
        a := CASE WHEN as_of - moment >= (a + drain - 1) / drain THEN 0
            ELSE greatest({rescale}(a, b, unit, 4503599627370496 / unit) - owed, 0) END;
        b := unit;
        changed := true;

    ELSIF kind = 2 THEN
        IF stamp = now THEN
            units := least(units, b - edge);
        ELSE
            -- The row of that time, and the last grant before it.
            SELECT upto INTO mark FROM {grants}
            WHERE counter = name AND upto > a AND at = stamp ORDER BY upto DESC LIMIT 1;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            SELECT upto INTO low FROM {grants}
            WHERE counter = name AND upto > a AND upto < mark ORDER BY upto DESC LIMIT 1;
            low := coalesce(low, a);
            units := least(units, mark - low);
            WITH moved AS (
                DELETE FROM {grants} WHERE counter = name AND upto >= mark RETURNING upto, at
            )
            INSERT INTO {grants} (counter, upto, at)
            SELECT name, upto - units, at FROM moved WHERE upto - units > low ORDER BY upto;
            edge := edge - units;
            win := -1;
        END IF;
        IF units > 0 THEN
            b := b - units;
            changed := true;
            IF b = edge THEN
                -- No grant at `now` is left: the newest is a row again.
                SELECT at INTO mark FROM {grants}
                WHERE counter = name AND upto > a AND upto <= b ORDER BY upto DESC LIMIT 1;
                moment := coalesce(mark, moment);
            END IF;
        END IF;

    ELSIF kind = 3 THEN
        length := shape[3];
        start := now - now % length;
        mark := (start - moment) / length;
        current := CASE WHEN mark = 0 THEN a ELSE 0 END;
        previous := CASE mark WHEN 0 THEN b WHEN 1 THEN a ELSE 0 END;
        mark := (start - (stamp - stamp % length)) / length;
        IF mark <= 1 THEN
            a := CASE WHEN mark = 0 THEN greatest(current - units, 0) ELSE current END;
            b := CASE WHEN mark = 1 THEN greatest(previous - units, 0) ELSE previous END;
            moment := start;
            changed := true;
        END IF;

    ELSIF kind = 4 THEN
        IF stamp >= moment AND now < b AND a > 0 THEN
            a := greatest(a - units, 0);
            changed := true;
        END IF;

    ELSE
        DELETE FROM {leases} WHERE counter = name AND lease = holder RETURNING expires INTO mark;
        IF FOUND THEN
            a := a - 1;
            IF mark <= now THEN
                edge := edge - 1;
            END IF;
            seen := -1;
            changed := true;
        END IF;
    END IF;
END
$body$;

-- Removes the hold of a lease, and returns whether it had ended and was given back then.
CREATE OR REPLACE FUNCTION {drop_hold}(name uuid, id uuid) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    given_back boolean;
BEGIN
    DELETE FROM {holds} WHERE counter = name AND lease = id RETURNING ended AND release INTO given_back;
    IF FOUND THEN
        UPDATE {held} SET holds = holds - 1 WHERE counter = name;
        DELETE FROM {held} WHERE counter = name AND holds <= 0;
    END IF;
    RETURN given_back;
END
$body$;

-- Adds a hold, for which the oldest lost one is forgotten if there are too many. Returns whether there is room.
CREATE OR REPLACE FUNCTION {hold}(
    name uuid,
    id uuid,
    now bigint,
    amount bigint,
    until bigint,
    own_unit bigint,
    own_drain bigint,
    long bigint,
    gives_back boolean
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    known bigint;
    oldest uuid;
BEGIN
    PERFORM {drop_hold}(name, id);
    SELECT holds INTO known FROM {held} WHERE counter = name;
    IF known >= 10000 THEN
        SELECT lease INTO oldest FROM {holds} WHERE counter = name AND ended ORDER BY due, lease LIMIT 1;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        PERFORM {drop_hold}(name, oldest);
    END IF;
    INSERT INTO {holds} (counter, lease, charged, at, reset, unit, drain, since, length, release, ended, due)
    VALUES (name, id, amount, now, until, own_unit, own_drain, now, long, gives_back, false, now + long);
    INSERT INTO {held} AS held (counter, holds, newest, due) VALUES (name, 1, now, now + long)
    ON CONFLICT (counter) DO UPDATE
    SET holds = held.holds + 1, newest = greatest(held.newest, now), due = least(held.due, now + long);
    RETURN true;
END
$body$;

-- Corrects the moments of state and holds, and ends the holds whose end has passed: limiter/hold.rs. `ended` says whether
-- holds changed.
CREATE OR REPLACE FUNCTION {end_holds}(
    name uuid,
    now bigint,
    shape bigint[],
    kind bigint,
    INOUT a bigint,
    INOUT b bigint,
    INOUT moment bigint,
    INOUT edge bigint,
    INOUT seen bigint,
    INOUT win bigint,
    OUT changed boolean,
    OUT ended boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    summary record;
    hold record;
    taken record;
    first bigint;
    gone integer;
BEGIN
    changed := false;
    ended := false;
    SELECT holds, newest, due INTO summary FROM {held} WHERE counter = name;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF kind = shape[1] THEN
        SELECT * INTO taken FROM {correct}(now, shape, b, moment);
        b := taken.b;
        moment := taken.moment;
        changed := taken.changed;
    END IF;
    IF summary.newest > now THEN
        UPDATE {holds} SET at = least(at, now), due = due - greatest(since - now, 0), since = least(since, now)
        WHERE counter = name AND (since > now OR at > now);
        SELECT min(due) INTO first FROM {holds} WHERE counter = name;
        summary.due := first;
        UPDATE {held} SET newest = now, due = first WHERE counter = name;
        ended := true;
    END IF;
    IF summary.due > now THEN
        RETURN;
    END IF;
    FOR hold IN
        SELECT * FROM {holds} AS holds
        WHERE holds.counter = name AND NOT holds.ended AND holds.release AND holds.due <= now
        ORDER BY holds.due, holds.lease
    LOOP
        CONTINUE WHEN kind <> shape[1];
        IF hold.unit > 0 THEN
            shape[4] := hold.unit;
            shape[5] := hold.drain;
        END IF;
        SELECT * INTO taken FROM {take_back}(name, now, greatest(hold.due, moment), shape, hold.charged, hold.at, hold.reset, hold.lease,
            a, b, moment, edge, seen, win);
        a := taken.a;
        b := taken.b;
        moment := taken.moment;
        edge := taken.edge;
        seen := taken.seen;
        win := taken.win;
        changed := changed OR taken.changed;
    END LOOP;
    UPDATE {holds} AS holds SET ended = true, due = holds.due + holds.length
    WHERE holds.counter = name AND NOT holds.ended AND holds.due <= now;
    DELETE FROM {holds} AS holds WHERE holds.counter = name AND holds.ended AND holds.due <= now;
    GET DIAGNOSTICS gone = ROW_COUNT;
    SELECT min(due) INTO first FROM {holds} WHERE counter = name;
    IF first IS NULL THEN
        DELETE FROM {held} WHERE counter = name;
    ELSE
        UPDATE {held} SET holds = holds - gone, due = first WHERE counter = name;
    END IF;
    ended := true;
END
$body$;

-- Settles or renews a hold: plan::change_hold. `more` are the units that are to be charged now.
CREATE OR REPLACE FUNCTION {change_hold}(
    name uuid,
    now bigint,
    shape bigint[],
    id uuid,
    action bigint,
    number bigint,
    kind bigint,
    INOUT a bigint,
    INOUT b bigint,
    INOUT moment bigint,
    INOUT edge bigint,
    INOUT seen bigint,
    INOUT win bigint,
    OUT changed boolean,
    OUT more bigint,
    OUT fate bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    hold {holds};
    taken record;
    units bigint;
    used bigint;
    back bigint := 0;
BEGIN
    changed := false;
    more := 0;
    fate := 2;
    PERFORM FROM {holds} WHERE counter = name AND lease = id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO taken FROM {end_holds}(name, now, shape, kind, a, b, moment, edge, seen, win);
    a := taken.a;
    b := taken.b;
    moment := taken.moment;
    edge := taken.edge;
    seen := taken.seen;
    win := taken.win;
    changed := taken.changed;
    SELECT * INTO hold FROM {holds} WHERE counter = name AND lease = id;
    IF NOT FOUND THEN
        -- It was forgotten just now, which is to be written.
        fate := 3;
        RETURN;
    END IF;
    fate := CASE WHEN hold.ended THEN 1 ELSE 0 END;
    IF action >= 2 THEN
        IF fate = 0 THEN
            number := CASE action WHEN 3 THEN number ELSE hold.length END;
            UPDATE {holds} SET since = now, length = number, due = now + number WHERE counter = name AND lease = id;
            UPDATE {held} AS held SET newest = greatest(held.newest, now), due = least(held.due, now + number)
            WHERE counter = name;
        END IF;
        RETURN;
    END IF;
    PERFORM {drop_hold}(name, id);
    units := least(CASE WHEN hold.unit > 0 THEN (hold.charged + hold.unit - 1) / hold.unit ELSE hold.charged END,
        4294967295);
    used := CASE action WHEN 1 THEN number ELSE units END;
    IF hold.ended AND hold.release THEN
        more := used;
    ELSIF action = 1 THEN
        -- Fewer units than are held never overflow.
        back := CASE WHEN used >= units THEN 0 ELSE hold.charged - least(used * greatest(hold.unit, 1), hold.charged) END;
        more := greatest(used - units, 0);
    END IF;
    IF back > 0 AND kind = shape[1] THEN
        IF hold.unit > 0 THEN
            shape[4] := hold.unit;
            shape[5] := hold.drain;
        END IF;
        SELECT * INTO taken FROM {take_back}(name, now, now, shape, back, hold.at, hold.reset, id, a, b, moment, edge, seen,
            win);
        a := taken.a;
        b := taken.b;
        moment := taken.moment;
        edge := taken.edge;
        seen := taken.seen;
        win := taken.win;
        changed := changed OR taken.changed;
    END IF;
END
$body$;

-- Executes plans in order, all at the same time, and returns their answers. It is plan::advance in PL/pgSQL.
--
--   injected   the time in Unix microseconds, in tests; NULL to read the clock
--   names      the counters, each once; the program refers to them by index
--   holders    the ids of leases, likewise
--   shapes     checks without their counters, 15 numbers each; the program refers to one by the offset of its first
--   program    the plans:
--                plan    refused (and 2 with holds, and 4 of instances since version 5 of the schema, with changes, and 8
--                        with values), index of its lease, numbers of changes, undos and groups; with holds the number
--                        of their changes; with values their number and those; then changes, changes of holds, undos
--                        and groups
--                change  counter, index of the lease, microseconds to renew it for, -1 to release it, -2 to renew it for
--                        its own length, or -9 to look at it
--                change of a hold   counter, shape, index of the lease; 0 to settle as charged, 1 to settle, 2 to renew
--                        for its own length, 3 to renew, 4 to look; units or microseconds
--                With 4, a lease of which something has ended renews nothing, and if a look finds something held, the
--                groups charge, refund and hold nothing.
--                undo    counter, shape, what was charged, time of the charge, reset reported with it, or -1 - reset if
--                        it is taken back only where nothing was charged since; with holds whether it may be held; with values the place
--                        of its first one, from zero, and their number
--                group   number of checks, then those
--                check   counter, shape; with holds 0, or 1 to look at them, 2 to report them, 3 to hold; the length of
--                        the hold, and whether it is given back at its end; with values as an undo
--   answers    the length of the result
--   charged    for each name, whether a plan may charge it; NULL if that is so for all
--
-- A shape:
--
--    1 kind      2 maximum units    3 to 7 parameters, of a bucket capacity, unit, drain, and the levels that may be
--    granted ahead, of values the window, whether they have to fit, and whether one more does     8 room needed, -1 for none    9 whether it can never fit
--   10 charge if the group is admitted   11 charge if it is refused but this passes   12 charge if this refuses too
--   13 refund   14 shadow   15 always denied
--
-- The result: the time; nothing else if the windows of a calendar do not contain it; then for each plan 1 if it is
-- admitted, else 0; the status of each change and of each change of a hold (0 done, 1 expired, 2 unknown, and with 4 of
-- what is held 3 more than the microseconds until it ends); and for each check the remaining units, the reset, the wait (-2 if it passes, -1 if it never will), what was charged (levels of a
-- bucket, else units), and with holds 1 if its charge is held, or all held units if it reports them.
CREATE OR REPLACE FUNCTION {apply}(
    injected bigint,
    names uuid[],
    holders uuid[],
    shapes bigint[],
    program bigint[],
    answers integer,
    charged boolean[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE plpgsql
-- Rows are found by the primary key, whatever the statistics say.
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $body$
#variable_conflict use_column
DECLARE
    now bigint;
    answer bigint[] := array_fill(0::bigint, ARRAY[answers]);
    last integer := 1;                  -- index of the last number in answer
    verdict integer;                    -- index in answer of a plan's verdict
    length integer := coalesce(array_length(program, 1), 0);
    next integer := 1;                  -- index in program
    -- The state of each counter, as the table's columns, and whether it must be written.
    kinds bigint[];
    as_ bigint[];
    bs bigint[];
    moments bigint[];
    ds bigint[];
    expiries bigint[];
    wrote bigint[];
    wrote_any boolean := false;
    -- Log: the last grant that is a row, and later ones are at `now`; -1 if grants may be ahead. Leases: the number of
    -- expired ones.
    edges bigint[];
    -- Log: the last grant outside the window, which is in `windows`. Leases: the last expiry, or -1 if not known.
    seens bigint[];
    windows bigint[];
    waits bigint[];                     -- of the checks of a group
    refused boolean;
    admitted boolean;
    passes boolean;
    held boolean;                       -- the counter has a state of this kind
    locked uuid[];                      -- the rows that are locked, if not all are
    old record;
    holder uuid;
    id uuid;
    changes integer; undos integer; groups integer; checks integer;
    holding boolean;                    -- the plan has something to do with holds
    joint boolean;                      -- its renewals are all or nothing, and its looks count
    looking boolean;                    -- a look found something held: the groups charge nothing
    renewals integer;
    gone_leases uuid[];                 -- leases of which something has ended, which renew nothing
    blocked boolean;
    hold_changes integer;
    stride integer;                     -- numbers of a check in the program
    valued boolean;                     -- the plan asks for values
    asked_at integer;                   -- index in program before the first of them
    asked bigint[] := ARRAY[]::bigint[];
    mode bigint;                        -- of a check: 1 looks at holds, 2 reports them, 3 holds
    changed record;
    i integer;                          -- index of a counter
    s integer;                          -- offset of a shape
    kind bigint;
    units bigint;
    refund bigint;
    most bigint;
    room bigint;
    wait bigint;
    remaining bigint;
    reset bigint;
    fate bigint;
    -- Variables of the algorithms.
    level bigint; unit bigint; drain bigint; capacity bigint; elapsed bigint; owed bigint; before bigint;
    beyond bigint; lasts bigint; taken bigint;
    win bigint; low bigint; high bigint; probe bigint; bounded boolean; mark bigint; stamp bigint; cutoff bigint;
    gone bigint; granted bigint; edge bigint; seen bigint;
    step bigint; start bigint; current bigint; previous bigint; estimate bigint; steps bigint;
    opens bigint; closes bigint; finish bigint; hits bigint;
BEGIN
    -- Inserts or locks each row, in the order of names. All callers wait in this order, so they cannot deadlock.
    -- WHERE false leaves an existing row unchanged, after it is locked. A counter that nothing charges needs no row: if
    -- it has one that is locked.
    IF charged IS NOT NULL THEN
        locked := ARRAY[]::uuid[];
        FOR old IN SELECT name, fills FROM unnest(names, charged) AS asked (name, fills) ORDER BY name LOOP
            IF old.fills THEN
                INSERT INTO {counters} AS counters (counter, a, b, moment, d, expires, kind)
                VALUES (old.name, 0, 0, 0, 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0)
                ON CONFLICT (counter) DO UPDATE SET kind = counters.kind WHERE false;
                locked := locked || old.name;
            ELSE
                PERFORM FROM {counters} WHERE counter = old.name FOR UPDATE;
                IF FOUND THEN
                    locked := locked || old.name;
                END IF;
            END IF;
        END LOOP;
    ELSE
        INSERT INTO {counters} AS counters (counter, a, b, moment, d, expires, kind)
        SELECT name, 0, 0, 0, 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0
        FROM unnest(names) AS name ORDER BY name
        ON CONFLICT (counter) DO UPDATE SET kind = counters.kind WHERE false;
    END IF;

    -- The rows are locked now. now() is the time at which the transaction began, before it waited for them.
    now := coalesce(injected, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);

    -- The windows of a calendar are computed by the caller, for the time at which it expects the call. If one does not
    -- contain the time, nothing is executed, and the caller calls again with others.
    s := 0;
    WHILE s < coalesce(array_length(shapes, 1), 0) LOOP
        IF shapes[s + 1] = 4 AND shapes[s + 3] = 2 AND (now < shapes[s + 4] OR now >= shapes[s + 7]) THEN
            RETURN ARRAY[now];
        END IF;
        s := s + 15;
    END LOOP;

    -- A row that appears after the others are locked is not this call's.
    SELECT array_agg(coalesce(kind, 0)::bigint), array_agg(coalesce(a, 0)), array_agg(coalesce(b, 0)),
           array_agg(coalesce(moment, 0)), array_agg(coalesce(d, 0)), array_agg(coalesce(expires, now)),
           array_agg(0::bigint), array_agg(0::bigint), array_agg(-1::bigint), array_agg(-1::bigint)
    INTO kinds, as_, bs, moments, ds, expiries, wrote, edges, seens, windows
    FROM (
        -- LIMIT fixes the join order: the planner would reverse it while its statistics say that the table is empty.
        SELECT counters.* FROM unnest(names) WITH ORDINALITY AS asked (name, place)
        LEFT JOIN LATERAL (
            SELECT * FROM {counters}
            WHERE counter = asked.name AND (locked IS NULL OR counter = ANY (locked)) LIMIT 1
        ) AS counters ON true
        ORDER BY asked.place
    ) AS counters;
    waits := ARRAY[0, 0, 0, 0];

    -- Leases of a clock that was ahead are corrected here (semantics 3), because their times are rows. So are those of
    -- logs, but a change of an unknown hold does not correct one: that waits for the first use.
    FOR i IN 1..coalesce(array_length(names, 1), 0) LOOP
        IF kinds[i] = 2 THEN
            edges[i] := CASE WHEN moments[i] < now THEN bs[i] ELSE -1 END;
        ELSIF kinds[i] = 6 AND moments[i] > now THEN
            UPDATE {values} SET at = now, earlier = least(earlier, now) WHERE counter = names[i] AND at > now;
            moments[i] := now;
            wrote[i] := 1;
        ELSIF kinds[i] = 5 THEN
            IF moments[i] > now THEN
                UPDATE {leases} SET expires = now + (expires - acquired), acquired = now
                WHERE counter = names[i] AND acquired > now;
                moments[i] := now;
                wrote[i] := 1;
            END IF;
            SELECT count(*) INTO mark FROM {leases} WHERE counter = names[i] AND expires <= now;
            edges[i] := mark;
        END IF;
    END LOOP;

    WHILE next <= length LOOP
        refused := program[next] % 2 = 1;
        holding := program[next] % 4 >= 2;
        joint := program[next] % 8 >= 4;
        valued := program[next] >= 8;
        looking := false;
        holder := holders[program[next + 1]];
        changes := program[next + 2];
        undos := program[next + 3];
        groups := program[next + 4];
        next := next + 5;
        hold_changes := 0;
        stride := 2;
        IF holding THEN
            hold_changes := program[next];
            next := next + 1;
            stride := 5;
        END IF;
        IF valued THEN
            asked_at := next;
            next := next + 1 + program[next];
            stride := stride + 2;
        END IF;
        last := last + 1;
        verdict := last;
        answer[verdict] := CASE WHEN refused THEN 0 ELSE 1 END;

        -- Only an expired slot is forgotten; the hold of a counter that was evicted is unknown, and ends nothing else.
        gone_leases := ARRAY[]::uuid[];
        IF joint AND changes + hold_changes > 1 THEN
            renewals := 0;
            FOR n IN 0..changes + hold_changes - 1 LOOP
                IF n < changes THEN
                    CONTINUE WHEN program[next + 3 * n + 2] IN (-1, -9);
                    i := program[next + 3 * n];
                    id := holders[program[next + 3 * n + 1]];
                    renewals := renewals + 1;
                    CONTINUE WHEN kinds[i] = 5 AND EXISTS (
                        SELECT FROM {leases} WHERE counter = names[i] AND lease = id AND expires > now
                    );
                ELSE
                    mark := next + 3 * changes + 5 * (n - changes);
                    CONTINUE WHEN program[mark + 3] NOT IN (2, 3);
                    id := holders[program[mark + 2]];
                    renewals := renewals + 1;
                    CONTINUE WHEN {hold_status}(names[program[mark]], id, now) <> 1;
                END IF;
                gone_leases := gone_leases || id;
            END LOOP;
            IF renewals < 2 THEN
                gone_leases := ARRAY[]::uuid[];
            END IF;
        END IF;

        FOR n IN 1..changes LOOP
            i := program[next];
            id := holders[program[next + 1]];
            wait := program[next + 2];
            next := next + 3;
            fate := 2;
            IF kinds[i] = 5 THEN
                blocked := wait NOT IN (-1, -9) AND id = ANY (gone_leases);
                IF wait = -9 OR blocked THEN
                    SELECT expires INTO stamp FROM {leases} WHERE counter = names[i] AND lease = id;
                    IF FOUND THEN
                        fate := CASE WHEN stamp <= now OR blocked THEN 1 WHEN joint THEN 3 + stamp - now ELSE 0 END;
                        looking := looking OR fate > 2;
                    END IF;
                ELSIF wait = -1 THEN
                    DELETE FROM {leases} WHERE counter = names[i] AND lease = id RETURNING expires INTO stamp;
                    IF FOUND THEN
                        fate := CASE WHEN stamp > now THEN 0 ELSE 1 END;
                        as_[i] := as_[i] - 1;
                        edges[i] := edges[i] - fate;
                        seens[i] := -1;
                        wrote[i] := 1;
                    END IF;
                ELSE
                    SELECT expires, expires - acquired INTO stamp, mark FROM {leases}
                    WHERE counter = names[i] AND lease = id;
                    IF FOUND AND stamp > now THEN
                        IF wait = -2 THEN
                            wait := mark;
                        END IF;
                        fate := CASE WHEN joint THEN 3 + wait ELSE 0 END;
                        UPDATE {leases} SET acquired = now, expires = now + wait
                        WHERE counter = names[i] AND lease = id;
                        IF wait = 0 THEN
                            edges[i] := edges[i] + 1;
                        END IF;
                        moments[i] := now;
                        expiries[i] := greatest(expiries[i], now + wait);
                        seens[i] := -1;
                        wrote[i] := 1;
                    ELSIF FOUND THEN
                        fate := 1;
                    END IF;
                END IF;
            END IF;
            last := last + 1;
            answer[last] := fate;
        END LOOP;

        -- First the changes of holds, below zero: what they charge goes through the second stage of a check. Zero are the
        -- undos, and then come the groups.
        FOR g IN -hold_changes..groups LOOP
            IF g = 0 THEN
                FOR n IN 1..undos LOOP
                    i := program[next];
                    s := program[next + 1];
                    units := program[next + 2];
                    stamp := least(program[next + 3], now);
                    reset := program[next + 4];
                    IF holding THEN
                        mode := program[next + 5];
                        next := next + 1;
                    ELSE
                        mode := 0;
                    END IF;
                    next := next + 5;
                    IF valued THEN
                        asked := program[asked_at + 1 + program[next]:asked_at + program[next] + program[next + 1]];
                        next := next + 2;
                    END IF;
                    IF mode > 0 THEN
                        -- What was given back at the end of its hold is not taken back again.
                        CONTINUE WHEN {drop_hold}(names[i], holder);
                    END IF;
                    CONTINUE WHEN kinds[i] <> shapes[s + 1];
                    IF kinds[i] = 6 THEN
                        IF {undo_values}(names[i], now, shapes[s + 3], stamp, asked) THEN
                            wrote[i] := 1;
                        END IF;
                        CONTINUE;
                    END IF;
                    IF edges[i] < 0 THEN
                        edges[i] := {correct_log}(names[i], now, as_[i]);
                        moments[i] := now;
                        wrote[i] := 1;
                    END IF;
                    SELECT * INTO old FROM {take_back}(names[i], now, now, shapes[s + 1:s + 15], units, stamp, reset, holder,
                        as_[i], bs[i], moments[i], edges[i], seens[i], windows[i]);
                    as_[i] := old.a;
                    bs[i] := old.b;
                    moments[i] := old.moment;
                    edges[i] := old.edge;
                    seens[i] := old.seen;
                    windows[i] := old.win;
                    IF old.changed THEN
                        wrote[i] := 1;
                    END IF;
                END LOOP;
                CONTINUE;
            ELSIF g < 0 THEN
                i := program[next];
                s := program[next + 1];
                id := holders[program[next + 2]];
                blocked := program[next + 3] IN (2, 3) AND id = ANY (gone_leases);
                IF program[next + 3] = 4 OR blocked THEN
                    fate := {hold_status}(names[i], id, now);
                    IF blocked AND fate > 2 THEN
                        fate := 1;
                    END IF;
                    looking := looking OR fate > 2;
                    next := next + 5;
                    last := last + 1;
                    answer[last] := fate;
                    CONTINUE;
                END IF;
                IF edges[i] < 0 AND EXISTS (SELECT FROM {holds} WHERE counter = names[i] AND lease = id) THEN
                    edges[i] := {correct_log}(names[i], now, as_[i]);
                    moments[i] := now;
                    wrote[i] := 1;
                END IF;
                SELECT * INTO changed FROM {change_hold}(names[i], now, shapes[s + 1:s + 15], id, program[next + 3],
                    program[next + 4], kinds[i], as_[i], bs[i], moments[i], edges[i], seens[i], windows[i]);
                last := last + 1;
                answer[last] := CASE WHEN joint AND changed.fate = 0 AND program[next + 3] >= 2
                    THEN {hold_status}(names[i], id, now) ELSE least(changed.fate, 2) END;
                next := next + 5;
                CONTINUE WHEN changed.fate = 2;
                as_[i] := changed.a;
                bs[i] := changed.b;
                moments[i] := changed.moment;
                edges[i] := changed.edge;
                seens[i] := changed.seen;
                windows[i] := changed.win;
                IF changed.changed THEN
                    wrote[i] := 1;
                END IF;
                wrote_any := true;
                CONTINUE WHEN changed.more = 0;
                checks := 1;
                admitted := true;
                waits[1] := 0;
            ELSE
                checks := program[next];
                next := next + 1;
                admitted := NOT refused;
            END IF;
            -- Each check has two stages. The first corrects and refunds, and finds the wait. The second, when the
            -- verdict of the group is known, charges and reports.
            FOR stage IN CASE WHEN g < 0 THEN 2 ELSE 1 END..2 LOOP
                FOR n IN 1..checks LOOP
                    mode := 0;
                    IF g > 0 THEN
                        i := program[next + stride * (n - 1)];
                        s := program[next + stride * (n - 1) + 1];
                        IF holding THEN
                            mode := program[next + stride * (n - 1) + 2];
                        END IF;
                    END IF;
                    kind := shapes[s + 1];
                    held := kinds[i] = kind;
                    IF stage = 1 AND edges[i] < 0 THEN
                        edges[i] := {correct_log}(names[i], now, as_[i]);
                        moments[i] := now;
                        wrote[i] := 1;
                    END IF;
                    IF mode > 0 AND stage = 1 THEN
                        SELECT * INTO changed FROM {end_holds}(names[i], now, shapes[s + 1:s + 15], kinds[i], as_[i], bs[i],
                            moments[i], edges[i], seens[i], windows[i]);
                        as_[i] := changed.a;
                        bs[i] := changed.b;
                        moments[i] := changed.moment;
                        edges[i] := changed.edge;
                        seens[i] := changed.seen;
                        windows[i] := changed.win;
                        IF changed.changed THEN
                            wrote[i] := 1;
                        END IF;
                        wrote_any := wrote_any OR changed.ended;
                    END IF;
                    most := shapes[s + 2];
                    room := shapes[s + 8];
                    units := 0;
                    refund := 0;
                    taken := 0;
                    IF stage = 1 THEN
                        IF held AND NOT looking THEN
                            refund := shapes[s + 13];
                        END IF;
                    ELSE
                        passes := waits[n] = 0 AND shapes[s + 15] = 0;
                        IF g < 0 THEN
                            units := CASE kind WHEN 1 THEN least(changed.more, shapes[s + 3])
                                WHEN 2 THEN least(changed.more, most) ELSE changed.more END;
                        ELSIF looking THEN
                            units := 0;
                        ELSIF admitted AND (passes OR shapes[s + 14] = 0) THEN
                            units := shapes[s + 10];
                        ELSIF shapes[s + 14] = 0 THEN
                            units := CASE WHEN passes THEN shapes[s + 11] ELSE shapes[s + 12] END;
                        END IF;
                        IF units > 0 THEN
                            IF NOT held THEN
                                IF kinds[i] = 2 THEN
                                    DELETE FROM {grants} WHERE counter = names[i];
                                ELSIF kinds[i] = 5 THEN
                                    DELETE FROM {leases} WHERE counter = names[i];
                                ELSIF kinds[i] = 6 THEN
                                    DELETE FROM {values} WHERE counter = names[i];
                                END IF;
                                kinds[i] := kind;
                                as_[i] := 0;
                                bs[i] := 0;
                                moments[i] := 0;
                                ds[i] := 0;
                                edges[i] := 0;
                                seens[i] := -1;
                                windows[i] := -1;
                                held := true;
                            END IF;
                            wrote[i] := 1;
                        END IF;
                    END IF;

                    IF kind = 1 THEN
                        unit := shapes[s + 4];
                        drain := shapes[s + 5];
                        capacity := shapes[s + 3] * unit;
                        level := 0;
                        beyond := 0;
                        lasts := 0;
                        IF held THEN
                            IF moments[i] > now THEN
                                moments[i] := now;
                                wrote[i] := 1;
                            END IF;
                            level := as_[i];
                            elapsed := now - moments[i];
                            IF bs[i] = unit AND level <= capacity THEN
                                level := CASE WHEN elapsed > level / drain THEN 0 ELSE level - elapsed * drain END;
                                lasts := level;
                            ELSE
                                SELECT * INTO level, beyond, lasts
                                FROM {bucket}(level, bs[i], elapsed, unit, drain, shapes[s + 3]);
                            END IF;
                        END IF;
                        IF units > 0 THEN
                            taken := least(units * unit, capacity - level);
                            level := level + taken;
                            as_[i] := least(beyond + level, 4503599627370496);
                            bs[i] := unit;
                            moments[i] := now;
                            -- All of it is in this bucket's levels now, and what counts is at most its capacity.
                            lasts := as_[i];
                            level := least(lasts, capacity);
                        ELSIF refund > 0 THEN
                            -- The moment stays, from which all buckets drain it.
                            as_[i] := CASE WHEN lasts = 0 THEN 0
                                ELSE greatest({rescale}(as_[i], bs[i], unit, 4503599627370496 / unit)
                                              - refund * unit, 0) END;
                            SELECT * INTO level, beyond, lasts
                            FROM {bucket}(as_[i], unit, elapsed, unit, drain, shapes[s + 3]);
                            bs[i] := unit;
                            wrote[i] := 1;
                        END IF;
                        wait := 0;
                        IF room >= 0 THEN
                            -- What is granted ahead may be beyond the limit.
                            owed := level + room * unit - most * unit - shapes[s + 6];
                            IF owed > 0 THEN
                                wait := (least(owed, lasts) + drain - 1) / drain;
                            END IF;
                        END IF;
                        remaining := greatest(most * unit - level, 0) / unit;
                        reset := (least(level, lasts) + drain - 1) / drain;

                    ELSIF kind = 2 THEN
                        win := shapes[s + 3];
                        gone := 0;
                        granted := 0;
                        edge := 0;
                        seen := 0;
                        IF held THEN
                            gone := as_[i];
                            granted := bs[i];
                            edge := edges[i];
                            cutoff := now - win;
                            IF windows[i] = win THEN
                                seen := greatest(seens[i], gone);
                            ELSIF gone >= edge THEN
                                seen := gone;
                            ELSIF moments[i] <= cutoff THEN
                                seen := granted;
                            ELSE
                                -- Galloping search from the oldest grant for the last one outside the window.
                                low := gone;
                                high := edge;
                                step := 1;
                                bounded := false;
                                LOOP
                                    probe := least(low + step, high);
                                    IF bounded THEN
                                        probe := (low + high + 1) / 2;
                                    END IF;
                                    SELECT at, upto INTO stamp, mark FROM {grants}
                                    WHERE counter = names[i] AND upto >= probe ORDER BY upto LIMIT 1;
                                    IF stamp <= cutoff THEN
                                        low := mark;
                                        step := step * 2;
                                    ELSE
                                        high := probe - 1;
                                        bounded := true;
                                    END IF;
                                    EXIT WHEN low >= high;
                                END LOOP;
                                seen := low;
                            END IF;
                            seens[i] := seen;
                            windows[i] := win;
                        END IF;
                        IF units > 0 THEN
                            -- Beyond the limit the newest grants replace the oldest. A log longer than a limit that
                            -- was lowered keeps the grants that still count.
                            taken := units;
                            mark := least(granted - seen + units, greatest(granted - seen, most));
                            granted := granted + units;
                            gone := granted - mark;
                            seen := gone;
                            as_[i] := gone;
                            bs[i] := granted;
                            moments[i] := now;
                            edges[i] := greatest(edge, gone);
                            edge := edges[i];
                            seens[i] := seen;
                            windows[i] := win;
                        ELSIF refund > 0 AND granted > seen THEN
                            seen := least(seen + refund, granted);
                            gone := seen;
                            as_[i] := gone;
                            edges[i] := greatest(edge, gone);
                            edge := edges[i];
                            seens[i] := seen;
                            wrote[i] := 1;
                        END IF;
                        wait := 0;
                        IF room >= 0 AND shapes[s + 9] = 0 THEN
                            mark := granted - seen + room - most;
                            IF mark > 0 THEN
                                wait := win;
                                IF seen + mark <= edge THEN
                                    SELECT at INTO stamp FROM {grants}
                                    WHERE counter = names[i] AND upto >= seen + mark ORDER BY upto LIMIT 1;
                                    wait := stamp + win - now;
                                END IF;
                            END IF;
                        END IF;
                        remaining := greatest(most - (granted - seen), 0);
                        reset := CASE WHEN granted > seen THEN moments[i] + win - now ELSE 0 END;

                    ELSIF kind = 3 THEN
                        win := shapes[s + 3];
                        step := shapes[s + 4];
                        steps := shapes[s + 5];
                        start := now - now % win;
                        current := 0;
                        previous := 0;
                        IF held THEN
                            IF moments[i] > start THEN
                                moments[i] := start;
                                wrote[i] := 1;
                            END IF;
                            mark := (start - moments[i]) / win;
                            IF mark = 0 THEN
                                current := as_[i];
                                previous := bs[i];
                            ELSIF mark = 1 THEN
                                previous := as_[i];
                            END IF;
                        END IF;
                        IF units > 0 OR refund > 0 THEN
                            taken := least(units, 4294967295 - current);
                            current := greatest(current + taken - refund, 0);
                            as_[i] := current;
                            bs[i] := previous;
                            moments[i] := start;
                            wrote[i] := 1;
                        END IF;
                        mark := (win - (now - start) + step - 1) / step;
                        estimate := (previous * mark + steps - 1) / steps + current;
                        wait := 0;
                        IF room >= 0 AND shapes[s + 9] = 0 AND estimate > most - room THEN
                            mark := 0;
                            IF most - room >= current THEN
                                mark := least(most - room - current, previous) * steps / previous;
                                wait := start + greatest(win - mark * step, 0) - now;
                            END IF;
                            IF mark = 0 THEN
                                IF current > 0 THEN
                                    mark := least(most - room, current) * steps / current;
                                    wait := start + 2 * win - now;
                                    IF mark > 0 THEN
                                        wait := wait - least(mark * step, win);
                                    END IF;
                                ELSE
                                    wait := start + win - now;
                                END IF;
                            END IF;
                        END IF;
                        remaining := greatest(most - estimate, 0);
                        reset := CASE WHEN current > 0 THEN start + 2 * win - now
                                      WHEN previous > 0 THEN start + win - now ELSE 0 END;

                    ELSIF kind = 4 THEN
                        opens := CASE shapes[s + 3]
                            WHEN 0 THEN now - now % shapes[s + 4]
                            WHEN 1 THEN now
                            ELSE CASE WHEN now < shapes[s + 5] THEN shapes[s + 4]
                                      WHEN now < shapes[s + 6] THEN shapes[s + 5] ELSE shapes[s + 6] END
                        END;
                        closes := CASE shapes[s + 3]
                            WHEN 0 THEN opens + shapes[s + 4]
                            WHEN 1 THEN now + shapes[s + 4]
                            ELSE CASE WHEN now < shapes[s + 5] THEN shapes[s + 5]
                                      WHEN now < shapes[s + 6] THEN shapes[s + 6]
                                      ELSE greatest(shapes[s + 7], now + 1) END
                        END;
                        hits := 0;
                        finish := closes;
                        IF held THEN
                            IF moments[i] > now THEN
                                moments[i] := opens;
                                bs[i] := closes;
                                wrote[i] := 1;
                            END IF;
                            IF now < bs[i] THEN
                                hits := as_[i];
                                finish := bs[i];
                            END IF;
                        END IF;
                        IF units > 0 THEN
                            IF hits > 0 THEN
                                opens := moments[i];
                            ELSE
                                finish := closes;
                            END IF;
                            taken := least(units, 4294967295 - hits);
                            hits := hits + taken;
                            as_[i] := hits;
                            bs[i] := finish;
                            moments[i] := opens;
                        ELSIF refund > 0 AND hits > 0 THEN
                            hits := greatest(hits - refund, 0);
                            as_[i] := hits;
                            wrote[i] := 1;
                        END IF;
                        wait := 0;
                        IF room >= 0 AND hits + room > most THEN
                            wait := finish - now;
                        END IF;
                        remaining := greatest(most - hits, 0);
                        reset := CASE WHEN hits > 0 THEN finish - now ELSE 0 END;

                    ELSIF kind = 6 THEN
                        win := shapes[s + 3];
                        mark := next + stride * n - 2;
                        asked := program[asked_at + 1 + program[mark]:asked_at + program[mark] + program[mark + 1]];
                        IF units > 0 THEN
                            taken := coalesce(array_length(asked, 1), 0);
                            DELETE FROM {values} WHERE counter = names[i] AND at <= now - win;
                            SELECT count(*) INTO before FROM {values} WHERE counter = names[i];
                            INSERT INTO {values} AS known (counter, value, at, earlier)
                            SELECT names[i], one, now, 0 FROM unnest(asked) AS one ORDER BY one
                            ON CONFLICT (counter, value) DO UPDATE SET at = excluded.at, earlier = known.at;
                            -- Beyond the limit the newest replace the oldest. A set larger than a limit that was lowered
                            -- keeps its size.
                            SELECT count(*) - greatest(before, most) INTO beyond FROM {values} WHERE counter = names[i];
                            IF beyond > 0 THEN
                                DELETE FROM {values} WHERE counter = names[i] AND value IN (
                                    SELECT oldest.value FROM {values} AS oldest WHERE oldest.counter = names[i]
                                    ORDER BY oldest.at, oldest.value LIMIT beyond
                                );
                            END IF;
                            moments[i] := now;
                        END IF;
                        SELECT count(*), coalesce(max(at) + win - now, 0) INTO mark, reset
                        FROM {values} WHERE counter = names[i] AND at > now - win;
                        remaining := greatest(most - mark, 0);
                        wait := {value_wait}(names[i], now, win, most, asked, shapes[s + 4] > 0, shapes[s + 5] > 0);

                    ELSE
                        mark := 0;
                        IF units > 0 THEN
                            taken := 1;
                            IF edges[i] > 0 THEN
                                DELETE FROM {leases} WHERE counter = names[i] AND expires <= now;
                                as_[i] := as_[i] - edges[i];
                                edges[i] := 0;
                            END IF;
                            INSERT INTO {leases} (counter, lease, acquired, expires)
                            VALUES (names[i], holder, now, now + shapes[s + 3]) ON CONFLICT (counter, lease) DO NOTHING;
                            IF FOUND THEN
                                as_[i] := as_[i] + 1;
                                seens[i] := -1;
                            END IF;
                            moments[i] := now;
                        END IF;
                        IF held THEN
                            mark := as_[i] - edges[i];
                        END IF;
                        wait := 0;
                        IF room >= 0 AND mark + room > most THEN
                            SELECT expires - now INTO wait FROM {leases} WHERE counter = names[i] AND expires > now
                            ORDER BY expires OFFSET mark + room - most - 1 LIMIT 1;
                            wait := coalesce(wait, -1);
                        END IF;
                        remaining := greatest(most - mark, 0);
                        reset := 0;
                        IF mark > 0 THEN
                            IF seens[i] < 0 THEN
                                SELECT expires INTO stamp FROM {leases} WHERE counter = names[i]
                                ORDER BY expires DESC LIMIT 1;
                                seens[i] := stamp;
                            END IF;
                            reset := seens[i] - now;
                        END IF;
                    END IF;

                    IF room >= 0 AND shapes[s + 9] <> 0 THEN
                        wait := -1;
                    END IF;
                    IF stage = 1 THEN
                        waits[n] := wait;
                        IF (wait <> 0 OR shapes[s + 15] <> 0) AND shapes[s + 14] = 0 THEN
                            admitted := false;
                        END IF;
                    ELSE
                        IF wrote[i] <> 0 THEN
                            expiries[i] := now + reset;
                            IF kind = 1 THEN
                                expiries[i] := now + (lasts + drain - 1) / drain;
                            END IF;
                        END IF;
                        IF shapes[s + 15] <> 0 THEN
                            remaining := 0;
                            wait := -1;
                        ELSIF passes THEN
                            wait := -2;
                        END IF;
                        CONTINUE WHEN g < 0;
                        answer[last + 1] := remaining;
                        answer[last + 2] := reset;
                        answer[last + 3] := wait;
                        answer[last + 4] := taken;
                        last := last + 4;
                        CONTINUE WHEN NOT holding;
                        last := last + 1;
                        IF mode = 3 AND admitted AND units > 0 THEN
                            wrote_any := true;
                            IF {hold}(names[i], holder, now, taken, reset, CASE kind WHEN 1 THEN unit ELSE 0 END,
                                CASE kind WHEN 1 THEN drain ELSE 0 END, program[next + stride * (n - 1) + 3],
                                program[next + stride * (n - 1) + 4] <> 0) THEN
                                answer[last] := 1;
                            END IF;
                        ELSIF mode = 2 THEN
                            SELECT sum(least(CASE WHEN unit > 0 THEN (charged + unit - 1) / unit ELSE charged END,
                                4294967295)) INTO mark
                            FROM {holds} AS holds WHERE holds.counter = names[i] AND NOT holds.ended;
                            answer[last] := least(coalesce(mark, 0), 4294967295);
                        END IF;
                        IF mode > 0 AND wait > 0 THEN
                            SELECT due - now INTO mark FROM {holds}
                            WHERE counter = names[i] AND NOT ended AND release ORDER BY due LIMIT 1;
                            answer[last - 2] := least(wait, coalesce(mark, wait));
                        END IF;
                    END IF;
                END LOOP;
            END LOOP;
            CONTINUE WHEN g < 0;
            next := next + stride * checks;
            IF NOT admitted THEN
                answer[verdict] := 0;
            END IF;
        END LOOP;
    END LOOP;

    FOR i IN 1..coalesce(array_length(names, 1), 0) LOOP
        CONTINUE WHEN wrote[i] = 0;
        wrote_any := true;
        IF kinds[i] = 2 THEN
            units := 0;
            IF bs[i] > edges[i] THEN
                units := bs[i] - edges[i];
                INSERT INTO {grants} (counter, upto, at) VALUES (names[i], bs[i], now);
            END IF;
            -- Dropped grants are deleted in small steps, twice as fast as they can accumulate.
            IF ds[i] < as_[i] THEN
                mark := least(as_[i], ds[i] + 2 * units + 64);
                DELETE FROM {grants} WHERE counter = names[i] AND upto > ds[i] AND upto <= mark;
                ds[i] := mark;
            END IF;
        END IF;
    END LOOP;
    IF NOT wrote_any THEN
        -- Nothing was changed, so the commit need not wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
        answer[1] := now;
        RETURN answer;
    END IF;
    -- All rows exist. INSERT finds each by its primary key; for UPDATE the planner could choose another way.
    INSERT INTO {counters} AS counters (counter, a, b, moment, d, expires, kind)
    SELECT name, a, b, moment, d, expires, kind
    FROM unnest(names, kinds, as_, bs, moments, ds, expiries, wrote)
        AS new (name, kind, a, b, moment, d, expires, wrote)
    WHERE wrote <> 0
    ON CONFLICT (counter) DO UPDATE
    SET a = excluded.a, b = excluded.b, moment = excluded.moment, d = excluded.d, expires = excluded.expires,
        kind = excluded.kind;

    answer[1] := now;
    RETURN answer;
END
$body$;

-- The function that instances of version 5 of the schema call: it knows of no values.
CREATE OR REPLACE FUNCTION {apply_of_5}(
    injected bigint,
    names uuid[],
    holders uuid[],
    shapes bigint[],
    program bigint[],
    answers integer,
    charged boolean[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $body$
    SELECT {apply}(injected, names, holders, shapes, program, answers, charged)
$body$;

-- The function that instances of version 4 of the schema call: each change stands alone, and no answer says when what is
-- held ends.
CREATE OR REPLACE FUNCTION {apply_of_4}(
    injected bigint,
    names uuid[],
    holders uuid[],
    shapes bigint[],
    program bigint[],
    answers integer,
    charged boolean[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $body$
    SELECT {apply}(injected, names, holders, shapes, program, answers, charged)
$body$;

-- The function that instances of version 3 of the schema call: it knows of no holds.
CREATE OR REPLACE FUNCTION {apply_of_3}(
    injected bigint,
    names uuid[],
    holders uuid[],
    shapes bigint[],
    program bigint[],
    answers integer,
    charged boolean[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $body$
    SELECT {apply}(injected, names, holders, shapes, program, answers, charged)
$body$;

-- The function that instances of version 2 of the schema call: it does not say which counters may be charged.
CREATE OR REPLACE FUNCTION {apply_of_2}(
    injected bigint,
    names uuid[],
    holders uuid[],
    shapes bigint[],
    program bigint[],
    answers integer
) RETURNS bigint[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $body$
    SELECT {apply}(injected, names, holders, shapes, program, answers)
$body$;

-- The function that instances of version 1 of the schema call: undos say units, and answers do not say what was charged.
CREATE OR REPLACE FUNCTION {apply_of_1}(
    injected bigint,
    names uuid[],
    holders uuid[],
    shapes bigint[],
    program bigint[],
    answers integer
) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    length integer := coalesce(array_length(program, 1), 0);
    next integer := 1;
    -- For each plan: the answers before those of its checks, and the number of its checks.
    heads integer[] := ARRAY[]::integer[];
    checks integer[] := ARRAY[]::integer[];
    counted integer;
    s integer;
    answer bigint[];
    place integer := 2;
    short bigint[];
BEGIN
    WHILE next <= length LOOP
        heads := heads || (1 + program[next + 2])::integer;
        counted := 0;
        s := next;
        next := (next + 5 + 3 * program[s + 2])::integer;
        FOR n IN 1..program[s + 3] LOOP
            IF shapes[program[next + 1] + 1] = 1 THEN
                program[next + 2] := least(program[next + 2], shapes[program[next + 1] + 3])
                    * shapes[program[next + 1] + 4];
            END IF;
            next := next + 5;
        END LOOP;
        FOR n IN 1..program[s + 4] LOOP
            counted := (counted + program[next])::integer;
            next := (next + 1 + 2 * program[next])::integer;
        END LOOP;
        checks := checks || counted;
        answers := answers + counted;
    END LOOP;
    answer := {apply}(injected, names, holders, shapes, program, answers);
    short := answer[1:1];
    FOR n IN 1..coalesce(array_length(heads, 1), 0) LOOP
        short := short || answer[place:place + heads[n] - 1];
        place := place + heads[n];
        FOR m IN 1..checks[n] LOOP
            short := short || answer[place:place + 2];
            place := place + 4;
        END LOOP;
    END LOOP;
    RETURN short;
END
$body$;

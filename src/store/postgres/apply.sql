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

-- Executes plans in order, all at the same time, and returns their answers. It is plan::advance in PL/pgSQL.
--
--   injected   the time in Unix microseconds, in tests; NULL to read the clock
--   names      the counters, each once; the program refers to them by index
--   holders    the ids of leases, likewise
--   shapes     checks without their counters, 15 numbers each; the program refers to one by the offset of its first
--   program    the plans:
--                plan    refused, index of its lease, numbers of changes, undos and groups, then those
--                change  counter, index of the lease, microseconds to renew it for, -1 to release it, -2
--                        to renew it for its own length, or -9 to look at it
--                undo    counter, shape, what was charged, time of the charge, reset reported with it; -1 - reset if
--                        it is taken back only where nothing was charged since
--                group   number of checks, then those
--                check   counter, shape
--   answers    the length of the result
--   charged    for each name, whether a plan may charge it; NULL if that is so for all
--
-- A shape:
--
--    1 kind      2 maximum units    3 to 7 parameters, of a bucket capacity, unit, drain, and the levels that may be
--    granted ahead     8 room needed, -1 for none    9 whether it can never fit
--   10 charge if the group is admitted   11 charge if it is refused but this passes   12 charge if this refuses too
--   13 refund   14 shadow   15 always denied
--
-- The result: the time; nothing else if the windows of a calendar do not contain it; then for each plan 1 if it is
-- admitted, else 0; the status of each change (0 done, 1 expired, 2 unknown); and for each check the remaining units, the
-- reset, the wait (-2 if it passes, -1 if it never will), and what was charged: levels of a bucket, else units.
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
    -- Log: the last grant that is a row; later ones are at `now`. Leases: the number of expired ones.
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

    -- Logs and leases of a clock that was ahead are corrected here (semantics 3), because their times are rows.
    FOR i IN 1..coalesce(array_length(names, 1), 0) LOOP
        IF kinds[i] = 2 THEN
            IF moments[i] < now THEN
                edges[i] := bs[i];
            ELSE
                SELECT upto INTO mark FROM {grants}
                WHERE counter = names[i] AND upto > as_[i] AND at < now ORDER BY upto DESC LIMIT 1;
                edges[i] := coalesce(mark, as_[i]);
                DELETE FROM {grants} WHERE counter = names[i] AND upto > edges[i];
                moments[i] := now;
                wrote[i] := 1;
            END IF;
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
        refused := program[next] <> 0;
        holder := holders[program[next + 1]];
        changes := program[next + 2];
        undos := program[next + 3];
        groups := program[next + 4];
        next := next + 5;
        last := last + 1;
        verdict := last;
        answer[verdict] := CASE WHEN refused THEN 0 ELSE 1 END;

        FOR n IN 1..changes LOOP
            i := program[next];
            id := holders[program[next + 1]];
            wait := program[next + 2];
            next := next + 3;
            fate := 2;
            IF kinds[i] = 5 THEN
                IF wait = -9 THEN
                    SELECT expires INTO stamp FROM {leases} WHERE counter = names[i] AND lease = id;
                    IF FOUND THEN
                        fate := CASE WHEN stamp > now THEN 0 ELSE 1 END;
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
                        fate := 0;
                        IF wait = -2 THEN
                            wait := mark;
                        END IF;
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

        FOR n IN 1..undos LOOP
            i := program[next];
            s := program[next + 1];
            units := program[next + 2];
            stamp := least(program[next + 3], now);
            reset := program[next + 4];
            next := next + 5;
            kind := shapes[s + 1];
            CONTINUE WHEN kinds[i] <> kind;

            IF kind = 1 THEN
                unit := shapes[s + 4];
                drain := shapes[s + 5];
                capacity := shapes[s + 3] * unit;
                IF moments[i] > now THEN
                    moments[i] := now;
                    wrote[i] := 1;
                END IF;
                IF reset < 0 THEN
                    CONTINUE WHEN moments[i] <> stamp OR bs[i] <> unit OR (as_[i] + drain - 1) / drain <> -1 - reset;
                    owed := units;
                ELSIF moments[i] = stamp AND bs[i] = unit THEN
                    owed := units;
                ELSE
                    before := greatest(greatest(reset - 1, 0) * drain - units, 0);
                    elapsed := now - stamp;
                    IF elapsed > (before + units) / drain THEN
                        owed := 0;
                    ELSE
                        owed := greatest(units - greatest(elapsed * drain - before, 0), 0);
                    END IF;
                END IF;
                as_[i] := CASE WHEN now - moments[i] >= (as_[i] + drain - 1) / drain THEN 0
                    ELSE greatest({rescale}(as_[i], bs[i], unit, 4503599627370496 / unit) - owed, 0) END;
                bs[i] := unit;
                wrote[i] := 1;

            ELSIF kind = 2 THEN
                IF stamp = now THEN
                    units := least(units, bs[i] - edges[i]);
                ELSE
                    -- The row of that time, and the last grant before it.
                    SELECT upto INTO mark FROM {grants}
                    WHERE counter = names[i] AND upto > as_[i] AND at = stamp ORDER BY upto DESC LIMIT 1;
                    CONTINUE WHEN NOT FOUND;
                    SELECT upto INTO low FROM {grants}
                    WHERE counter = names[i] AND upto > as_[i] AND upto < mark ORDER BY upto DESC LIMIT 1;
                    low := coalesce(low, as_[i]);
                    units := least(units, mark - low);
                    WITH moved AS (
                        DELETE FROM {grants} WHERE counter = names[i] AND upto >= mark RETURNING upto, at
                    )
                    INSERT INTO {grants} (counter, upto, at)
                    SELECT names[i], upto - units, at FROM moved WHERE upto - units > low ORDER BY upto;
                    edges[i] := edges[i] - units;
                    windows[i] := -1;
                END IF;
                IF units > 0 THEN
                    bs[i] := bs[i] - units;
                    wrote[i] := 1;
                    IF bs[i] = edges[i] THEN
                        -- No grant at `now` is left: the newest is a row again.
                        SELECT at INTO mark FROM {grants}
                        WHERE counter = names[i] AND upto > as_[i] AND upto <= bs[i] ORDER BY upto DESC LIMIT 1;
                        moments[i] := coalesce(mark, moments[i]);
                    END IF;
                END IF;

            ELSIF kind = 3 THEN
                win := shapes[s + 3];
                start := now - now % win;
                IF moments[i] > start THEN
                    moments[i] := start;
                    wrote[i] := 1;
                END IF;
                mark := (start - moments[i]) / win;
                current := CASE WHEN mark = 0 THEN as_[i] ELSE 0 END;
                previous := CASE mark WHEN 0 THEN bs[i] WHEN 1 THEN as_[i] ELSE 0 END;
                mark := (start - (stamp - stamp % win)) / win;
                IF mark <= 1 THEN
                    as_[i] := CASE WHEN mark = 0 THEN greatest(current - units, 0) ELSE current END;
                    bs[i] := CASE WHEN mark = 1 THEN greatest(previous - units, 0) ELSE previous END;
                    moments[i] := start;
                    wrote[i] := 1;
                END IF;

            ELSIF kind = 4 THEN
                IF moments[i] > now THEN
                    opens := CASE shapes[s + 3]
                        WHEN 0 THEN now - now % shapes[s + 4]
                        WHEN 1 THEN now
                        ELSE CASE WHEN now < shapes[s + 5] THEN shapes[s + 4]
                                  WHEN now < shapes[s + 6] THEN shapes[s + 5] ELSE shapes[s + 6] END
                    END;
                    bs[i] := CASE shapes[s + 3]
                        WHEN 0 THEN opens + shapes[s + 4]
                        WHEN 1 THEN now + shapes[s + 4]
                        ELSE CASE WHEN now < shapes[s + 5] THEN shapes[s + 5]
                                  WHEN now < shapes[s + 6] THEN shapes[s + 6]
                                  ELSE greatest(shapes[s + 7], now + 1) END
                    END;
                    moments[i] := opens;
                    wrote[i] := 1;
                END IF;
                IF stamp >= moments[i] AND now < bs[i] AND as_[i] > 0 THEN
                    as_[i] := greatest(as_[i] - units, 0);
                    wrote[i] := 1;
                END IF;

            ELSE
                DELETE FROM {leases} WHERE counter = names[i] AND lease = holder RETURNING expires INTO mark;
                IF FOUND THEN
                    as_[i] := as_[i] - 1;
                    IF mark <= now THEN
                        edges[i] := edges[i] - 1;
                    END IF;
                    seens[i] := -1;
                    wrote[i] := 1;
                END IF;
            END IF;
        END LOOP;

        FOR g IN 1..groups LOOP
            checks := program[next];
            next := next + 1;
            admitted := NOT refused;
            -- Each check has two stages. The first corrects and refunds, and finds the wait. The second, when the
            -- verdict of the group is known, charges and reports.
            FOR stage IN 1..2 LOOP
                FOR n IN 1..checks LOOP
                    i := program[next + 2 * n - 2];
                    s := program[next + 2 * n - 1];
                    kind := shapes[s + 1];
                    held := kinds[i] = kind;
                    most := shapes[s + 2];
                    room := shapes[s + 8];
                    units := 0;
                    refund := 0;
                    taken := 0;
                    IF stage = 1 THEN
                        IF held THEN
                            refund := shapes[s + 13];
                        END IF;
                    ELSE
                        passes := waits[n] = 0 AND shapes[s + 15] = 0;
                        IF admitted AND (passes OR shapes[s + 14] = 0) THEN
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
                        answer[last + 1] := remaining;
                        answer[last + 2] := reset;
                        answer[last + 3] := wait;
                        answer[last + 4] := taken;
                        last := last + 4;
                    END IF;
                END LOOP;
            END LOOP;
            next := next + 2 * checks;
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

-- Executes a batch of plans on the counters: `plan::advance`, `plan::change_lease`, `plan::change_hold` and `plan::undo`
-- in Lua.
--
--   KEYS      the counters: first those whose state is a short string, then the holds of counters, then logs, then leases
--             (two keys each), then the orders of those holds
--   ARGV[1]   the program: '<dH' the time (negative: read the clock) and the number of short strings and holds, then the
--             plans
--   ARGV[2..] shapes: checks without their counters, as doubles; each is sent once
--
--   plan      '<BHH'  0, shape, key            a single check of a bucket, the most common plan
--             '<BHH'  2, checks, 0             a group of checks, each '<HH' shape, key, of short strings
--             '<BHHHHc16' 3, shape, key, key of its holds, shape of holds, lease: a single check of a bucket that looks at
--             holds
--             '<BHHHBdc16' 4, then a change of a hold of a bucket: a single settlement
--             '<BI4'  1, length of the rest    any other:
--             '<BHHHc16' refused (and 2 if it has an id, and 4 with holds), changes, undos, groups, lease
--             '<H' the key of its id, if it has one: refunds, and checks that charge a refusal, take effect only in the
--             first call with it
--             '<H' the number of changes of holds, with holds
--             '<BHdc16' a change: 0 to release, 1 to renew, 2 to renew by its own length, 4 to look; key, duration, lease
--             '<HHHBdc16' a change of a hold: shape, key, key of its holds; 0 to settle as charged, 1 to settle, 2 to
--             renew by its own length, 3 to renew, 4 to look; units or duration, lease
--             (a lease of which something has ended renews nothing; if a look finds something held, the groups charge,
--             refund and hold nothing)
--             '<HHdd' an undo: shape, key, time of the charge, reset reported with it, or -1 - reset if it is taken back
--             only where nothing was charged since; with holds '<H' the key of its holds, or 0
--             '<H' a group: checks, each '<HH' shape, key; with holds '<HHHH', then the key of its holds and a shape of
--             holds, or 0 and 0
--
--   shape     kind, shadow, room, charges if admitted, passed, refused, refund, then the parameters of its kind:
--             1 bucket: full, capacity, unit, drain, code      levels; see `bucket` and token_bucket.rs
--             2 fixed:  limit, alignment, window or boundaries
--             3 pair:   limit, window, step, steps
--             4 log:    limit, window
--             5 leases: max, length
--             7 values: limit, window, needs (1 that its values fit, 2 that one more does), then two halves of each value
--             A shape of holds: 6; 1 to look, 2 to report, 3 to hold; length, 1 to give back what is lost
--             A check passes if the counted units and `room` are within the limit. For "never" and "always", the room
--             is too large or small enough for any counter.
--
--   reply     the time, negative and nothing else if the windows of a calendar do not contain it; then for each plan
--             either one text, an error, or the statuses of its changes (0 done, 1 expired, 2 unknown, or held for 3 less
--             microseconds), and for each check the counted units, or -1 - units if it refuses, and what the caller cannot compute from them. In
--             place of the counted units is a list of them, the microseconds until the counter is empty for everybody
--             (or -1 if the caller's rate says that), and what was charged, where those microseconds are fewer or less
--             was charged than asked for. The list of a check that looks at holds has two more: the microseconds until
--             the first one is given back, or -1; and 1 if its charge is held, or the held units that it reports. Without a
--             list, what such a check charged is held, if it passes.
--
-- Numbers are integers below 2^53, whatever subtype a Lua of 5.1 to 5.4 gives them: numbers that go to commands are
-- written by `text`, and those of the reply become integers at the end. A plan that fails has written nothing: whatever
-- can fail is read before the first write, and only the first write can be refused for lack of memory.
--
-- Expiry only frees memory. Time is divided into cells of 2^25 us. A state that was written in one cell and counts for
-- up to 2^class cells expires a minute after the cell's end and that many cells, so most charges need not change the
-- expiry. The compact layout of a bucket holds levels below 2^40 that drain within 2^15 cells.

local unpack_, pack, call, try = struct.unpack, struct.pack, redis.call, redis.pcall
local CELL, SLACK, CODED, HOLDS = 33554432, 60000, 1099511627776, 4503599627370496
local NEVER = 9007199254740991
-- The packed form of holds: its summary, with its bytes; a record without its lease, with its bytes; the most records.
local PACK, PACKED, RECORD, RECORDED, FEW = '<I7BI7I7', 22, '<I7I7I7I7I7I7I7B', 50, 16
-- How long an id is remembered.
local ONCE = '60000'

-- What the script replies, where Lua has floats (5.3 and newer), which a server may send as texts.
local reply
if math.type then
  function reply(out)
    for place, value in ipairs(out) do
      out[place] = type(value) == 'table' and reply(value) or math.tointeger(value) or value
    end
    return out
  end
end

local program = ARGV[1]
local now, strings, place = unpack_('<dH', program)
local clock = call('TIME')
local real = clock[1] * 1000000 + clock[2]
if now < 0 then now = real end

-- The windows of a calendar are computed by the caller, for the time at which it expects the call. If one does not
-- contain the time, nothing is executed, and the caller calls again with others. Only fixed shapes with four boundaries
-- take 104 bytes.
for number = 2, #ARGV do
  local shape = ARGV[number]
  if #shape == 104 then
    local first, last = unpack_('<d', shape, 73), unpack_('<d', shape, 97)
    if now < first or now >= last then return reply and reply({ -now }) or { -now } end
  end
end

local held, list = {}, table.unpack or unpack
if strings > 0 and strings <= 1000 then
  held = call('MGET', list(KEYS, 1, strings))
else
  for first = 1, strings, 1000 do
    local last = math.min(first + 999, strings)
    for number, value in ipairs(call('MGET', list(KEYS, first, last))) do held[first + number - 1] = value end
  end
end

local cell = now - now % CELL
local dues = {}
local function due(class)
  local moment = math.floor((real + cell + CELL - now + CELL * 2 ^ class) / 1000 + SLACK)
  dues[class] = string.format('%d', moment)
  return dues[class]
end

local shapes = {}
local function shape_of(number)
  local bytes = ARGV[number]
  local shape = { unpack_(#bytes == 96 and '<dddddddddddd' or '<' .. string.rep('d', #bytes / 8), bytes) }
  shapes[number] = shape
  return shape
end

local out = { now }
local slow

-- The text of an error, which in some servers is a table.
local function words_of(problem) return type(problem) == 'table' and problem.err or tostring(problem) end

-- Everything except buckets in the compact layout. Created on first use, because most calls do not need it.
local function others()
  local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min

  -- A number as an argument of a command. A fraction is dropped.
  local function text(number) return string.format('%d', floor(number)) end

  -- Sets the expiry of a key that counts until `moment`. One that counts no longer stays while this plan uses it.
  local function expire(key, moment) call('PEXPIREAT', key, text((real + max(moment - now, 0)) / 1000 + SLACK)) end

  -- Replaces a short string, and returns whether that was in place, which keeps its expiry and allocation.
  local function replace(number, value)
    local before = held[number]
    if before and #before ~= #value then
      call('SET', KEYS[number], value)
    else
      call('SETRANGE', KEYS[number], '0', value)
    end
    held[number] = value
    return before and #before == #value
  end

  -- Fails if a key is not a string: MGET returns nil for another type.
  local function check_string(number)
    if not held[number] then call('STRLEN', KEYS[number]) end
  end

  -- A token bucket:
  --   '<I6BI5H'  compact: low 48 bits of the moment, its high 4 bits with the class of the expiry, level, unit code
  --   '<I7I7I7'  moment, level, unit: for values that do not fit
  -- The code of a unit of m * 10^e is m * 16 + e. The compact layout just fits an allocation of 16 bytes.
  local bucket = { check = check_string }

  function bucket.read(number)
    local value = held[number]
    local state = { number = number, level = 0, at = 0, unit = 0, class = -1 }
    if value and #value == 14 then
      local low, high, level, code = unpack_('<I6BI5H', value)
      state.counted, state.level, state.class = true, level, floor(high / 16)
      state.at = low + high % 16 * 2 ^ 48
      state.unit = floor(code / 16) * 10 ^ (code % 16)
    elseif value and #value == 21 then
      state.counted = true
      state.at, state.level, state.unit = unpack_('<I7I7I7', value)
    end
    state.written = state.at
    return state
  end

  function bucket.correct(_, state)
    local ahead = state.at > now
    if ahead then state.at = now end
    return ahead
  end

  -- The level of a state in those of the bucket that asks.
  local function rescaled(shape, state)
    local level, from, to = state.level, state.unit, shape[10]
    local most = floor(HOLDS / to)
    if from == to or level == 0 then return min(level, most * to) end
    local part = level % from
    local tokens = (level - part) / from
    if tokens >= most then return most * to end
    -- The fraction of a token is converted on a grid of 2^20, so that no product exceeds 2^53.
    local step = ceil(from / 1048576)
    local grid = floor(from / step)
    local steps = min(ceil(part / step), grid)
    return min(tokens * to + steps * floor(to / grid) + ceil(steps * (to % grid) / grid), most * to)
  end

  -- The used levels of a state, in those of the bucket that asks: what counts for it, what was used beyond its
  -- capacity, and the levels until the state is empty for every bucket.
  local function used(shape, state)
    local level, capacity = state.level, shape[9]
    local drained = (now - state.at) * shape[11]
    local lasts = max(0, level - drained)
    if state.unit == shape[10] and level <= capacity then return lasts, 0, lasts end
    if lasts == 0 then return 0, 0, 0 end
    level = rescaled(shape, state)
    local within = min(level, capacity)
    return max(0, within - drained), level - within, lasts
  end

  local function set_level(shape, state, level)
    state.level, state.at, state.unit = level, now, shape[10]
  end

  -- Takes levels out of a state. Its moment stays, from which all buckets drain it.
  local function give_back(shape, state, levels, when)
    local lasts = state.level > max(0, (when or now) - state.at) * shape[11]
    state.level = lasts and max(0, rescaled(shape, state) - levels) or 0
    state.unit = shape[10]
  end

  function bucket.refund(shape, state)
    give_back(shape, state, shape[7])
    return true
  end

  -- `when` is the moment of the undo.
  function bucket.undo(shape, state, at, reset, _, when)
    local charged, drain = shape[4], shape[11]
    if reset < 0 then
      local last = state.at == at and state.unit == shape[10] and ceil(state.level / drain) == -1 - reset
      if last then give_back(shape, state, charged) end
      return last
    end
    if state.at == at and state.unit == shape[10] then
      give_back(shape, state, charged, when)
      return true
    end
    local before = max(0, max(0, reset - 1) * drain - charged)
    give_back(shape, state, max(0, charged - max(0, max(0, when - at) * drain - before)), when)
    return true
  end

  function bucket.levels(shape, units) return min(units * shape[10], shape[9]) end

  function bucket.passes(shape, state)
    local counted = used(shape, state)
    return counted + shape[3] <= shape[8]
  end

  function bucket.charge(shape, state, units)
    local counted, beyond = used(shape, state)
    local charged = min(units, shape[9] - counted)
    set_level(shape, state, min(beyond + counted + charged, HOLDS))
    return charged
  end

  function bucket.write(shape, state)
    local level, at, unit = state.level, state.at, state.unit
    local code = unit == shape[10] and shape[12] or 0
    if code == 0 then
      local m, e = unit, 0
      while m > 0 and m % 10 == 0 do m, e = m / 10, e + 1 end
      if m < 4096 and e < 16 then code = m * 16 + e end
    end
    -- `at` is never after now, so the level is drained no later than `lasts` from now.
    local lasts = level / shape[11]
    local number, class = state.number, state.class
    if code > 0 and level < CODED and lasts <= CELL * 32768 then
      local stays = class >= 0 and cell == state.written - state.written % CELL and lasts <= CELL * 2 ^ class
      if not stays then
        class = 0
        while lasts > CELL * 2 ^ class do class = class + 1 end
      end
      local low = at % 2 ^ 48
      stays = replace(number, pack('<I6BI5H', low, (at - low) / 2 ^ 48 + class * 16, level, code)) and stays
      if not stays then call('PEXPIREAT', KEYS[number], dues[class] or due(class)) end
      state.class = class
    else
      replace(number, pack('<I7I7I7', at, level, unit))
      expire(KEYS[number], now + lasts)
    end
  end

  function bucket.tell(shape, state)
    local counted, _, lasts = used(shape, state)
    return counted, nil, nil, lasts < counted and ceil(lasts / shape[11]) or nil
  end

  function bucket.reset(shape, state)
    local counted, _, lasts = used(shape, state)
    return ceil(min(counted, lasts) / shape[11])
  end

  -- A fixed window: '<I7I7I4' start, end, count.
  local fixed = { check = check_string }

  function fixed.read(number)
    local value = held[number]
    local state = { number = number, starts = 0, ends = 0, count = 0 }
    if value and #value == 18 then
      state.counted = true
      state.starts, state.ends, state.count = unpack_('<I7I7I4', value)
    end
    state.expires = state.ends
    return state
  end

  local function window(shape)
    local alignment, first = shape[9], shape[10]
    if alignment == 0 then
      local start = now - now % first
      return start, start + first
    elseif alignment == 1 then
      return now, now + first
    elseif now < shape[11] then
      return first, shape[11]
    elseif now < shape[12] then
      return shape[11], shape[12]
    end
    return shape[12], shape[13]
  end

  -- The start, end and count of the current window.
  local function fixed_now(shape, state)
    if now < state.ends then return state.starts, state.ends, state.count end
    local starts, ends = window(shape)
    return starts, ends, 0
  end

  function fixed.correct(shape, state)
    local ahead = state.starts > now
    if ahead then
      state.starts, state.ends = window(shape)
      state.expires = 0
    end
    return ahead
  end

  local function give_back(state, units)
    local live = now < state.ends and state.count > 0
    if live then state.count = max(0, state.count - units) end
    return live
  end

  function fixed.refund(shape, state) return give_back(state, shape[7]) end

  function fixed.undo(shape, state, at) return at >= state.starts and give_back(state, shape[4]) end

  function fixed.passes(shape, state)
    local _, _, count = fixed_now(shape, state)
    return count + shape[3] <= shape[8]
  end

  function fixed.charge(shape, state, units)
    local starts, ends, count = fixed_now(shape, state)
    if count == 0 then starts, ends = window(shape) end
    local charged = min(units, 4294967295 - count)
    state.starts, state.ends, state.count = starts, ends, count + charged
    return charged
  end

  function fixed.write(_, state)
    local stays = replace(state.number, pack('<I7I7I4', state.starts, state.ends, state.count))
    if not stays or state.expires ~= state.ends then expire(KEYS[state.number], state.ends) end
    state.expires = state.ends
  end

  function fixed.tell(shape, state)
    local _, ends, count = fixed_now(shape, state)
    return count, ends
  end

  function fixed.reset(shape, state)
    local _, ends, count = fixed_now(shape, state)
    return count > 0 and ends - now or 0
  end

  -- A sliding counter: '<I7I4I4' start, current, previous.
  local pair = { check = check_string }

  function pair.read(number)
    local value = held[number]
    local state = { number = number, start = 0, current = 0, previous = 0 }
    if value and #value == 15 then
      state.counted = true
      state.start, state.current, state.previous = unpack_('<I7I4I4', value)
    end
    state.written = state.start
    return state
  end

  -- The start of the current window, its count and that of the window before it.
  local function pair_now(shape, state)
    local length = shape[9]
    local start = now - now % length
    local windows = floor((start - state.start) / length)
    if windows <= 0 then return start, state.current, state.previous end
    return start, 0, windows == 1 and state.current or 0
  end

  function pair.correct(shape, state)
    local start = now - now % shape[9]
    local ahead = state.start > start
    if ahead then state.start = start end
    return ahead
  end

  function pair.refund(shape, state)
    local start, current, previous = pair_now(shape, state)
    state.start, state.current, state.previous = start, max(0, current - shape[7]), previous
    return true
  end

  function pair.undo(shape, state, at)
    local start, current, previous = pair_now(shape, state)
    local windows = (start - (at - at % shape[9])) / shape[9]
    if windows == 0 then
      current = max(0, current - shape[4])
    elseif windows == 1 then
      previous = max(0, previous - shape[4])
    else
      return false
    end
    state.start, state.current, state.previous = start, current, previous
    return true
  end

  function pair.passes(shape, state)
    local start, current, previous = pair_now(shape, state)
    local steps = ceil((shape[9] - (now - start)) / shape[10])
    return ceil(previous * steps / shape[11]) + current + shape[3] <= shape[8]
  end

  function pair.charge(shape, state, units)
    local start, current, previous = pair_now(shape, state)
    local charged = min(units, 4294967295 - current)
    state.start, state.current, state.previous = start, current + charged, previous
    return charged
  end

  function pair.write(shape, state)
    local stays = replace(state.number, pack('<I7I4I4', state.start, state.current, state.previous))
    if not stays or state.written ~= state.start then expire(KEYS[state.number], state.start + 2 * shape[9]) end
    state.written = state.start
  end

  function pair.tell(shape, state)
    local _, current, previous = pair_now(shape, state)
    return current, previous
  end

  function pair.reset(shape, state)
    local start, current, previous = pair_now(shape, state)
    if current > 0 then return start + 2 * shape[9] - now end
    return previous > 0 and start + shape[9] - now or 0
  end

  -- An exact log: '<I7I7HHH' newest, oldest, head, count, places; then a ring buffer of moments of 7 bytes, in time
  -- order from the head. `held` has the header only.
  local log = {}
  local HEAD, GRANT = 20, 7
  local HEAD_TEXT, HEAD_ENDS = text(HEAD), text(HEAD - 1)

  function log.check(number)
    if held[number] == nil then held[number] = call('GETRANGE', KEYS[number], '0', HEAD_ENDS) end
  end

  function log.read(number)
    local value = held[number]
    local state = { number = number, newest = 0, oldest = 0, head = 0, count = 0, places = 0 }
    if #value == HEAD then
      state.counted = true
      state.newest, state.oldest, state.head, state.count, state.places = unpack_('<I7I7HHH', value)
    end
    state.written = state.newest
    return state
  end

  -- Reads `count` packed moments from index `first`.
  local function moments(state, first, count)
    if count <= 0 then return '' end
    local key, from = KEYS[state.number], (state.head + first) % state.places
    local straight = min(count, state.places - from)
    local start = HEAD + from * GRANT
    local bytes = call('GETRANGE', key, text(start), text(start + straight * GRANT - 1))
    if straight == count then return bytes end
    return bytes .. call('GETRANGE', key, HEAD_TEXT, text(HEAD + (count - straight) * GRANT - 1))
  end

  local function moment(state, number) return (unpack_('<I7', moments(state, number, 1))) end

  -- Writes packed moments from index `first`.
  local function put(state, first, bytes)
    local key, from = KEYS[state.number], (state.head + first) % state.places
    local straight = (state.places - from) * GRANT
    call('SETRANGE', key, text(HEAD + from * GRANT), string.sub(bytes, 1, straight))
    if straight < #bytes then call('SETRANGE', key, HEAD_TEXT, string.sub(bytes, straight + 1)) end
  end

  -- The number of grants outside the window, by a galloping search from the head. Sets `first`, the oldest inside.
  local function forgotten(shape, state)
    if state.forgotten then return state.forgotten end
    local until_ = now - shape[9]
    local count, oldest = 0, state.oldest
    if state.count == 0 or state.newest <= until_ then
      count = state.count
    elseif oldest <= until_ then
      local low, high, seen = 0, 1, moment(state, 1)
      while seen <= until_ do
        low, high = high, min(high * 2, state.count - 1)
        seen = moment(state, high)
      end
      oldest = seen
      while low + 1 < high do
        local middle = floor((low + high) / 2)
        seen = moment(state, middle)
        if seen <= until_ then low = middle else high, oldest = middle, seen end
      end
      count = high
    end
    state.forgotten, state.first = count, oldest
    return count
  end

  local function drop_oldest(state, count)
    if count == 0 then return end
    if count == state.forgotten then
      state.oldest = state.first
    elseif count < state.count then
      state.oldest = moment(state, count)
    end
    state.head, state.count = (state.head + count) % max(state.places, 1), state.count - count
    state.forgotten = nil
  end

  -- The newest moments, at least back to one that is earlier than `before`, and their number.
  local function tail(state, before)
    local count = min(16, state.count)
    local bytes = moments(state, state.count - count, count)
    while count < state.count and unpack_('<I7', bytes) >= before do
      count = min(count * 4, state.count)
      bytes = moments(state, state.count - count, count)
    end
    return bytes, count
  end

  function log.correct(_, state)
    if state.count == 0 or state.newest <= now then return false end
    local bytes, count = tail(state, now + 1)
    local kept = count
    while kept > 0 and unpack_('<I7', bytes, (kept - 1) * GRANT + 1) > now do kept = kept - 1 end
    put(state, state.count - count + kept, string.rep(pack('<I7', now), count - kept))
    if kept == 0 then state.oldest = now end
    state.newest = now
    return true
  end

  function log.refund(shape, state)
    local gone = forgotten(shape, state)
    local given = min(shape[7], state.count - gone)
    if given > 0 then drop_oldest(state, gone + given) end
    return given > 0
  end

  function log.undo(shape, state, at)
    if state.count == 0 then return false end
    local bytes, count = tail(state, at)
    local after = count
    while after > 0 and unpack_('<I7', bytes, (after - 1) * GRANT + 1) > at do after = after - 1 end
    local kept = after
    while kept > 0 and after - kept < shape[4] and unpack_('<I7', bytes, (kept - 1) * GRANT + 1) == at do
      kept = kept - 1
    end
    if kept == after then return false end
    local start, newer = state.count - count, string.sub(bytes, after * GRANT + 1)
    if newer ~= '' then put(state, start + kept, newer) end
    state.count, state.forgotten = state.count - (after - kept), nil
    if newer == '' and kept > 0 then state.newest = unpack_('<I7', bytes, (kept - 1) * GRANT + 1) end
    if start + kept == 0 and newer ~= '' then state.oldest = unpack_('<I7', newer) end
    return true
  end

  function log.passes(shape, state)
    return state.count - forgotten(shape, state) + shape[3] <= shape[8]
  end

  -- Beyond the limit the newest grants replace the oldest. A log longer than a limit that was lowered keeps the grants
  -- that still count.
  function log.charge(shape, state, all)
    local units = min(all, shape[8])
    local counted = state.count - forgotten(shape, state)
    local full = max(counted, shape[8])
    drop_oldest(state, state.forgotten + max(0, counted + units - full))
    local added = string.rep(pack('<I7', now), units)
    local wanted = state.count + units
    if wanted > state.places then
      -- Rewritten with about twice the places, at most those of a full window: growing in place would take twice the
      -- memory. With 1, 3, 7, 14, 28, ... places a value just fits the sizes that memory is allocated in.
      local places = min(max(wanted, state.places * 2 + (state.places < 7 and 1 or 0)), full)
      local bytes = moments(state, 0, state.count) .. added
      state.head, state.places = 0, places
      state.anew = bytes .. string.rep('\0', places * GRANT - #bytes)
    else
      put(state, state.count, added)
    end
    if state.count == 0 then state.oldest = now end
    state.count, state.newest, state.forgotten = wanted, now, nil
    return units
  end

  function log.write(shape, state)
    local number, key = state.number, KEYS[state.number]
    local value = pack('<I7I7HHH', state.newest, state.oldest, state.head, state.count, state.places)
    local newest, written = state.newest, state.written
    local ends = newest - newest % CELL + CELL + shape[9]
    if state.anew then
      call('SET', key, value .. state.anew, 'PX', text((ends - now) / 1000 + SLACK))
    else
      call('SETRANGE', key, '0', value)
      if newest - newest % CELL ~= written - written % CELL then expire(key, ends) end
    end
    held[number] = value
    state.anew, state.written = nil, newest
  end

  function log.tell(shape, state, passes)
    local gone = forgotten(shape, state)
    local counted, length = state.count - gone, shape[9]
    local wait, over = -1, counted + shape[3] - shape[8]
    if not passes and over > 0 and over <= counted then
      wait = (over == 1 and state.first or moment(state, gone + over - 1)) + length - now
    elseif not passes and over <= 0 then
      wait = 0
    end
    return counted, counted > 0 and state.newest + length - now or 0, wait
  end

  function log.reset(shape, state)
    return state.count > forgotten(shape, state) and state.newest + shape[9] - now or 0
  end

  -- Leases: two sorted sets of ids, by expiry and, in the next key, by acquisition.
  local leases = {}
  local instant

  local function ends_last(key)
    local found = call('ZRANGE', key, '-1', '-1', 'WITHSCORES')[2]
    return found and tonumber(found)
  end

  function leases.check(number)
    call('ZCARD', KEYS[number])
    call('ZCARD', KEYS[number + 1])
    instant = instant or text(now)
  end

  function leases.read(number)
    local acquired = ends_last(KEYS[number + 1])
    return { by_end = KEYS[number], by_start = KEYS[number + 1], newest = acquired, counted = acquired ~= nil }
  end

  function leases.correct(_, state)
    if not state.newest or state.newest <= now then return false end
    local ahead = call('ZRANGEBYSCORE', state.by_start, '(' .. instant, '+inf', 'WITHSCORES')
    for place = 1, #ahead, 2 do
      local id = ahead[place]
      local ends = call('ZSCORE', state.by_end, id)
      if ends then call('ZADD', state.by_end, text(now + ends - ahead[place + 1]), id) end
      call('ZADD', state.by_start, instant, id)
    end
    state.newest = now
    return true
  end

  local function remove(state, id)
    call('ZREM', state.by_end, id)
    call('ZREM', state.by_start, id)
  end

  local function status(state, id)
    local ends = call('ZSCORE', state.by_end, id)
    if not ends then return 2 end
    return tonumber(ends) > now and 3 + ends - now or 1
  end

  local function release(state, id)
    local fate = status(state, id)
    if fate ~= 2 then remove(state, id) end
    return fate > 2 and 0 or fate
  end

  local function renew(state, id, length)
    local ends = call('ZSCORE', state.by_end, id)
    if not ends then return 2 end
    if tonumber(ends) <= now then return 1 end
    length = length or ends - call('ZSCORE', state.by_start, id)
    call('ZADD', state.by_end, text(now + length), id)
    call('ZADD', state.by_start, instant, id)
    return 3 + length
  end

  function leases.refund() return false end

  function leases.undo(_, state, _, _, lease) return release(state, lease) < 2 end

  local function slots_held(state) return call('ZCOUNT', state.by_end, '(' .. instant, '+inf') end

  function leases.passes(shape, state) return slots_held(state) + shape[3] <= shape[8] end

  function leases.charge(shape, state, units, lease)
    for _, id in ipairs(call('ZRANGEBYSCORE', state.by_end, '-inf', instant)) do remove(state, id) end
    if not call('ZSCORE', state.by_end, lease) then
      call('ZADD', state.by_end, text(now + shape[9]), lease)
      call('ZADD', state.by_start, instant, lease)
    end
    return units
  end

  function leases.write(_, state)
    local ends = ends_last(state.by_end)
    if ends then
      expire(state.by_end, ends)
      expire(state.by_start, ends)
    end
  end

  function leases.tell(shape, state, passes)
    local counted = slots_held(state)
    local wait, over = -1, counted + shape[3] - shape[8]
    if not passes and over > 0 and over <= counted then
      local freed = call('ZRANGEBYSCORE', state.by_end, '(' .. instant, '+inf', 'WITHSCORES', 'LIMIT', text(over - 1), '1')
      wait = freed[2] - now
    elseif not passes and over <= 0 then
      wait = 0
    end
    return counted, counted > 0 and ends_last(state.by_end) - now or 0, wait
  end

  -- Remembered values (limiter/distinct.rs): a sorted set of values by their moments, and of values with an 'e' by the
  -- moments before those, negative. So the values that are forgotten are in the middle.
  local values = {}

  -- What `struct.unpack` returns ends with a position, and so does a shape.
  local function value_of(shape, place) return pack('>I4I4', shape[place], shape[place + 1]) end

  local function cutoff(shape) return max(now - shape[9], 0) end

  local function moment_of(state, value)
    local score = call('ZSCORE', state.key, value)
    return score and tonumber(score)
  end

  local function remembered(shape, state) return call('ZCOUNT', state.key, '(' .. text(cutoff(shape)), '+inf') end

  -- The time until there is room for so many more beside the values that are not `left_out`.
  local function wait_beside(shape, state, left_out, counted, room)
    local over = counted + room - shape[8]
    if over <= 0 then return 0 end
    if over > counted then return -1 end
    local most, found = text(over + #shape), nil
    found = call('ZRANGEBYSCORE', state.key, '(' .. text(cutoff(shape)), '+inf', 'WITHSCORES', 'LIMIT', '0', most)
    for place = 1, #found, 2 do
      if not left_out[found[place]] then over = over - 1 end
      if over == 0 then return found[place + 1] + shape[9] - now end
    end
    return -1
  end

  -- The time until a check passes, or -1 if it never does.
  local function wait_for_values(shape, state)
    if shape[3] >= NEVER then return -1 end
    local counted, asked, known, known_for = remembered(shape, state), {}, 0, NEVER
    for place = 11, #shape - 2, 2 do
      local value = value_of(shape, place)
      local at, rest = moment_of(state, value), 0
      if at and at > cutoff(shape) then
        known, rest = known + 1, at + shape[9] - now
      end
      known_for, asked[value] = min(known_for, rest), true
    end
    local count = (#shape - 11) / 2
    local fits, one = shape[10] % 2 == 1, shape[10] >= 2
    local function for_all() return wait_beside(shape, state, asked, counted - known, count) end
    local wait = 0
    if count == 0 then
      if fits or one then wait = wait_beside(shape, state, asked, counted, 1) end
      return wait
    end
    if fits and known < count then wait = for_all() end
    if one and wait >= 0 then
      local room = wait_beside(shape, state, {}, counted, 1)
      -- The values can be forgotten before there is room for another one.
      local all = room > 0 and room >= known_for and for_all() or 0
      if room < 0 or all < 0 then return -1 end
      wait = max(wait, room, all)
    end
    return wait
  end

  function values.check(number)
    call('ZCARD', KEYS[number])
    instant = instant or text(now)
  end

  function values.read(number)
    local newest = ends_last(KEYS[number])
    return { key = KEYS[number], newest = newest, counted = newest ~= nil }
  end

  function values.correct(_, state)
    if not state.newest or state.newest <= now then return false end
    for _, value in ipairs(call('ZRANGEBYSCORE', state.key, '(' .. instant, '+inf')) do
      call('ZADD', state.key, instant, value)
    end
    for _, value in ipairs(call('ZRANGEBYSCORE', state.key, '-inf', '(-' .. instant)) do
      call('ZADD', state.key, '-' .. instant, value)
    end
    state.newest = now
    return true
  end

  function values.refund() return false end

  function values.undo(shape, state, at)
    local undone = false
    for place = 11, #shape - 2, 2 do
      local value = value_of(shape, place)
      local earlier = -(moment_of(state, value .. 'e') or 0)
      if moment_of(state, value) == at and earlier ~= at then
        call('ZREM', state.key, value .. 'e')
        if earlier > cutoff(shape) then
          call('ZADD', state.key, text(earlier), value)
        else
          call('ZREM', state.key, value)
        end
        undone = true
      end
    end
    return undone
  end

  function values.passes(shape, state) return wait_for_values(shape, state) == 0 end

  function values.charge(shape, state, units)
    local gone = text(cutoff(shape))
    call('ZREMRANGEBYSCORE', state.key, '-' .. gone, gone)
    local full = max(call('ZCOUNT', state.key, '(0', '+inf'), shape[8])
    for place = 11, #shape - 2, 2 do
      local value = value_of(shape, place)
      local at = moment_of(state, value)
      if at then call('ZADD', state.key, '-' .. text(at), value .. 'e') end
      call('ZADD', state.key, instant, value)
    end
    local beyond = call('ZCOUNT', state.key, '(0', '+inf') - full
    if beyond > 0 then
      for _, value in ipairs(call('ZRANGEBYSCORE', state.key, '(0', '+inf', 'LIMIT', '0', text(beyond))) do
        call('ZREM', state.key, value)
        call('ZREM', state.key, value .. 'e')
      end
    end
    return units
  end

  function values.write(shape, state)
    local newest = ends_last(state.key)
    if newest then expire(state.key, newest + shape[9]) end
  end

  function values.tell(shape, state, passes)
    local counted = remembered(shape, state)
    local newest = counted > 0 and ends_last(state.key)
    return counted, newest and newest + shape[9] - now or 0, passes and -1 or wait_for_values(shape, state)
  end

  local kinds = { bucket, fixed, pair, log, leases, nil, values }

  -- Holds (limiter/hold.rs): a hash of records by lease, and a sorted set of the leases. The record without a name says
  -- when the newest hold was made, when something is due at the earliest, and when the keys expire. A string in place of
  -- the hash is the packed form of a few, see below.
  --
  --   record     '<I7I7I7I7I7I7I7B' charged, reset reported with it, unit, drain, time of the charge, since, length, flags
  --              (1 given back if lost, 2 ended)
  --   score      -2^53 + when it is forgotten, if it has ended; its end, if it is given back then; else its end + 2^52
  --
  -- So the lost holds are first, those that are forgotten first before the others.
  local SUMMARY, ENDED, MOST = '<I7I7I7', -9007199254740992, 10000
  local holds = {}

  local function hold_of(id, record)
    local hold = { id = id }
    hold.charged, hold.reset, hold.unit, hold.drain, hold.at, hold.since, hold.length, hold.flags = unpack_(RECORD, record)
    hold.ended, hold.released = hold.flags >= 2, hold.flags % 2 == 1
    return hold
  end

  local function hold_at(set, id)
    local record = set.count > 0 and call('HGET', set.hash, id)
    return record and hold_of(id, record) or nil
  end

  -- Writes a hold, and its place in the order.
  local function hold_put(set, hold)
    hold.ended = hold.ended or false
    local ends = hold.since + hold.length
    local forgotten = ends + hold.length
    local score = hold.ended and ENDED + forgotten or hold.released and ends or ends + HOLDS
    local flags = (hold.ended and 2 or 0) + (hold.released and 1 or 0)
    set.due = min(set.due, hold.ended and forgotten or ends)
    set.newest = max(set.newest, hold.since)
    local expires = set.expires
    if forgotten > expires then set.expires = forgotten + hold.length end
    call('HSET', set.hash, hold.id,
      pack(RECORD, hold.charged, hold.reset, hold.unit, hold.drain, hold.at, hold.since, hold.length, flags), '',
      pack(SUMMARY, set.newest, set.due, set.expires))
    set.count = set.count + call('ZADD', set.order, text(score), hold.id)
    if set.expires ~= expires then
      expire(set.hash, set.expires)
      expire(set.order, set.expires)
    end
  end

  local function hold_remove(set, id)
    call('HDEL', set.hash, id)
    set.count = set.count - call('ZREM', set.order, id)
    if set.count == 0 then
      call('DEL', set.hash)
      set.newest, set.due, set.expires = 0, NEVER, 0
    end
  end

  -- The holds of a counter, with their summary. Fails if a key has the wrong type. The packed form becomes the sorted one:
  -- for a plan that may charge, its first write is one that is refused for lack of memory.
  function holds.read(number, charging)
    local set = { hash = KEYS[number], order = KEYS[number + #KEYS - strings] }
    set.count = call('ZCARD', set.order)
    set.newest, set.due, set.expires = 0, NEVER, 0
    local packed = held[number]
    if packed then
      if charging then call('SETRANGE', set.hash, '0', packed) end
      call('DEL', set.hash, set.order)
      held[number], set.count = false, 0
      for place = PACKED + 1, PACKED + string.byte(packed, 8) * (16 + RECORDED), 16 + RECORDED do
        hold_put(set, hold_of(string.sub(packed, place, place + 15), string.sub(packed, place + 16)))
      end
      return set
    end
    local summary = call('HGET', set.hash, '')
    if summary then
      set.newest, set.due, set.expires = unpack_(SUMMARY, summary)
    elseif set.count > 0 then
      -- A server without memory has evicted the records.
      call('DEL', set.order)
      set.count = 0
    end
    return set
  end

  -- Takes a part of the charge of a hold out of the state, as of `when`.
  local function hold_give_back(set_kind, shape, state, hold, charged, when)
    if charged <= 0 or not state.counted then return false end
    local own = {}
    for place, number in ipairs(shape) do own[place] = number end
    own[4] = charged
    if hold.unit > 0 then own[10], own[11] = hold.unit, hold.drain end
    return set_kind.undo(own, state, hold.at, hold.reset, hold.id, hold.unit > 0 and when or now)
  end

  -- Corrects the moments of holds and state, and ends the holds whose end has passed. Returns whether the state changed.
  function holds.finish(kind, shape, state, set)
    if set.count == 0 then return false end
    local wrote = state.counted and kind.correct(shape, state)
    if set.newest > now then
      set.newest, set.due = now, NEVER
      for _, id in ipairs(call('ZRANGE', set.order, '0', '-1')) do
        local hold = hold_at(set, id)
        hold.at, hold.since = min(hold.at, now), min(hold.since, now)
        hold_put(set, hold)
      end
    end
    if set.due > now then return wrote end
    -- Those that are given back come in order of their ends; for the others the order makes no difference.
    for _, from in ipairs({ 0, HOLDS }) do
      for _, id in ipairs(call('ZRANGEBYSCORE', set.order, text(from), text(from + now))) do
        local hold = hold_at(set, id)
        if hold.released and hold_give_back(kind, shape, state, hold, hold.charged, max(hold.since + hold.length, state.at or 0)) then
          wrote = true
        end
        hold.ended = true
        hold_put(set, hold)
      end
    end
    for _, id in ipairs(call('ZRANGEBYSCORE', set.order, '-inf', text(ENDED + now))) do hold_remove(set, id) end
    if set.count == 0 then return wrote end
    local first = { call('ZRANGE', set.order, '0', '0', 'WITHSCORES')[2] - ENDED }
    for _, from in ipairs({ 0, HOLDS }) do
      local found =
        call('ZRANGEBYSCORE', set.order, text(from), text(from + HOLDS - 1), 'WITHSCORES', 'LIMIT', '0', '1')
      if found[2] then first[#first + 1] = found[2] - from end
    end
    -- The first of all is lost, or it is one of the others.
    set.due = NEVER
    for number, moment in ipairs(first) do
      if number > 1 or moment < -ENDED then set.due = min(set.due, moment) end
    end
    call('HSET', set.hash, '', pack(SUMMARY, set.newest, set.due, set.expires))
    return wrote
  end

  -- Adds a hold, for which the oldest lost one is forgotten if there are too many. Returns whether there is room.
  function holds.add(set, hold)
    if set.count >= MOST and not call('ZSCORE', set.order, hold.id) then
      local oldest = call('ZRANGE', set.order, '0', '0', 'WITHSCORES')
      if tonumber(oldest[2]) >= 0 then return false end
      hold_remove(set, oldest[1])
    end
    hold_put(set, hold)
    return true
  end

  local function hold_units(hold) return min(hold.unit > 0 and ceil(hold.charged / hold.unit) or hold.charged, 4294967295) end

  -- The microseconds until the first hold is given back, or -1.
  function holds.first(set)
    if set.count == 0 then return -1 end
    local found = call('ZRANGEBYSCORE', set.order, '0', text(HOLDS - 1), 'WITHSCORES', 'LIMIT', '0', '1')
    return found[2] and found[2] - now or -1
  end

  -- All held units.
  function holds.sum(set)
    local units = 0
    if set.count == 0 then return 0 end
    for _, id in ipairs(call('ZRANGEBYSCORE', set.order, '0', '+inf')) do units = units + hold_units(hold_at(set, id)) end
    return min(units, 4294967295)
  end

  -- Whether a lease has a hold, and for how long.
  function holds.status(set, id)
    local hold = hold_at(set, id)
    if not hold then return 2 end
    -- As it is once its moments are corrected.
    local ends = min(hold.since, now) + hold.length
    if not hold.ended and ends > now then return 3 + ends - now end
    return ends + hold.length > now and 1 or 2
  end

  -- Settles or renews a hold. Returns its fate.
  function holds.change(change, kind, shape, set)
    if not hold_at(set, change.lease) then return 2 end
    local state = kind.read(change.number)
    local wrote = holds.finish(kind, shape, state, set)
    local hold = hold_at(set, change.lease)
    local fate = not hold and 2 or hold.ended and 1 or 0
    if hold and change.action >= 2 then
      if fate == 0 then
        hold.since = now
        if change.action == 3 then hold.length = change.number_ end
        hold_put(set, hold)
        fate = 3 + hold.length
      end
    elseif hold then
      hold_remove(set, change.lease)
      local held_units = hold_units(hold)
      local used = change.action == 1 and change.number_ or held_units
      local back, more = 0, 0
      if hold.ended and hold.released then
        more = used
      elseif change.action == 1 then
        back = hold.charged - min(used * max(hold.unit, 1), hold.charged)
        more = max(0, used - held_units)
      end
      if hold_give_back(kind, shape, state, hold, back, now) then wrote = true end
      if more > 0 then
        kind.charge(shape, state, kind.levels and kind.levels(shape, more) or more, change.lease)
        wrote = true
      end
    end
    if wrote then kind.write(shape, state) end
    return fate
  end

  -- `again` says that an earlier call has executed what is executed once, and `looking` that nothing is charged, refunded
  -- or held.
  local function decide(group, admitted, lease, again, looking)
    local count = #group
    for place = 1, count do
      local check = group[place]
      local kind, shape = check.kind, check.shape
      local state = kind.read(check.number)
      check.state = state
      if check.holds then check.wrote = holds.finish(kind, shape, state, check.holds) end
      if state.counted then
        if kind.correct(shape, state) then check.wrote = true end
        if shape[7] > 0 and not again and not looking and kind.refund(shape, state) then check.wrote = true end
      end
      local passes = kind.passes(shape, state)
      check.passes = passes
      admitted = admitted and (passes or shape[2] == 1)
    end
    local told = #out
    for place = 1, count do
      local check = group[place]
      local kind, shape, state, passes = check.kind, check.shape, check.state, check.passes
      local units = passes and (admitted and shape[4] or shape[5]) or shape[6]
      if looking or again and shape[6] > 0 then units = 0 end
      local charged = units > 0 and kind.charge(shape, state, units, lease) or 0
      if check.wrote or units > 0 then kind.write(shape, state) end
      local counted, second, third, lasts = kind.tell(shape, state, passes)
      told = told + 1
      out[told] = passes and counted or -1 - counted
      if check.holds then
        local set, terms, says = check.holds, check.terms, 0
        if terms[2] == 2 then
          says = holds.sum(set)
        elseif terms[2] == 3 and admitted and units > 0 then
          local bucket_ = shape[1] == 1
          local hold = { id = lease, charged = charged, at = now, reset = kind.reset(shape, state), since = now }
          hold.unit, hold.drain = bucket_ and shape[10] or 0, bucket_ and shape[11] or 0
          hold.length, hold.released = terms[3], terms[4] == 1
          says = holds.add(set, hold) and 1 or 0
        end
        out[told] = { out[told], lasts or -1, charged, passes and -1 or holds.first(set), says }
      elseif lasts or charged < units then
        out[told] = { out[told], lasts or -1, charged }
      end
      if second then
        told = told + 1
        out[told] = second
      end
      if third then
        told = told + 1
        out[told] = third
      end
    end
  end

  -- Reads the checks of a group, and fails if a key has the wrong type.
  local function group_at(place, count, holding)
    local group = {}
    for number = 1, count do
      local shape, key, set, terms
      shape, key, place = unpack_('<HH', program, place)
      if holding then set, terms, place = unpack_('<HH', program, place) end
      shape = shapes[shape] or shape_of(shape)
      local kind = kinds[shape[1]]
      kind.check(key)
      group[number] = { number = key, shape = shape, kind = kind, state = false, passes = false, wrote = false }
      if terms and terms > 0 then
        group[number].holds, group[number].terms = holds.read(set, true), shapes[terms] or shape_of(terms)
        group[number].set = set
      end
    end
    return group, place
  end

  -- Reads a change of a hold, and fails if the counter has the wrong type.
  local function hold_change_at(place)
    local change, shape = {}, nil
    shape, change.number, change.set, change.action, change.number_, change.lease, place =
      unpack_('<HHHBdc16', program, place)
    change.shape = shapes[shape] or shape_of(shape)
    change.kind = kinds[change.shape[1]]
    change.kind.check(change.number)
    return change, place
  end

  return function(op, place, first)
    if op == 3 then
      local group, after = group_at(place - 4, 1, true)
      return decide(group, true, (unpack_('<c16', program, after)))
    elseif op == 4 then
      local change = hold_change_at(place - 4)
      out[#out + 1] = holds.change(change, change.kind, change.shape, holds.read(change.set))
      return nil
    elseif op ~= 1 then
      local group = group_at(op == 0 and place - 4 or place, op == 0 and 1 or first)
      return decide(group, true)
    end
    local refused, change_count, undo_count, group_count, lease
    refused, change_count, undo_count, group_count, lease, place = unpack_('<BHHHc16', program, place)
    local id
    local holding, hold_count = refused >= 4, 0
    if holding then refused = refused - 4 end
    if refused >= 2 then
      refused = refused - 2
      id, place = unpack_('<H', program, place)
    end
    if holding then hold_count, place = unpack_('<H', program, place) end
    local changes, hold_changes, undos, groups = {}, {}, {}, {}
    for number = 1, change_count do
      local change = {}
      change.renew, change.number, change.length, change.lease, place = unpack_('<BHdc16', program, place)
      leases.check(change.number)
      changes[number] = change
    end
    for number = 1, hold_count do
      hold_changes[number], place = hold_change_at(place)
      holds.read(hold_changes[number].set)
    end
    for number = 1, undo_count do
      local undo, shape, set = {}, nil, 0
      shape, undo.number, undo.at, undo.reset, place = unpack_('<HHdd', program, place)
      if holding then set, place = unpack_('<H', program, place) end
      undo.set = set > 0 and set
      if undo.set then holds.read(undo.set) end
      undo.shape = shapes[shape] or shape_of(shape)
      undo.kind = kinds[undo.shape[1]]
      undo.kind.check(undo.number)
      undos[number] = undo
    end
    for number = 1, group_count do
      local count
      count, place = unpack_('<H', program, place)
      groups[number], place = group_at(place, count, holding)
    end

    local again = id and held[id]
    if id and not again then
      call('SET', KEYS[id], '', 'PX', ONCE)
      held[id] = ''
    end
    -- The leases of which something has ended. Only an expired slot is forgotten; the hold of a counter that was evicted is
    -- unknown, and ends nothing else.
    local ended, looking, renewals = {}, false, 0
    for _, change in ipairs(changes) do
      change.renews = change.renew == 1 or change.renew == 2
      if change.renews then renewals = renewals + 1 end
    end
    for _, change in ipairs(hold_changes) do
      change.renews = change.action == 2 or change.action == 3
      if change.renews then renewals = renewals + 1 end
    end
    if renewals > 1 then
      for _, change in ipairs(changes) do
        if change.renews then
          local state = leases.read(change.number)
          if leases.correct(nil, state) then leases.write(nil, state) end
          if status(state, change.lease) < 3 then ended[change.lease] = true end
        end
      end
      for _, change in ipairs(hold_changes) do
        if change.renews and holds.status(holds.read(change.set), change.lease) == 1 then ended[change.lease] = true end
      end
    end
    for _, change in ipairs(changes) do
      local state = leases.read(change.number)
      local wrote = leases.correct(nil, state)
      local fate
      if change.renew == 4 or change.renews and ended[change.lease] then
        fate = status(state, change.lease)
        if fate > 2 and change.renews then fate = 1 end
        looking = looking or fate > 2
      elseif change.renew > 0 then
        fate = renew(state, change.lease, change.renew == 1 and change.length)
        wrote = wrote or fate > 2
      else
        fate = release(state, change.lease)
        wrote = wrote or fate == 0
      end
      if wrote then leases.write(nil, state) end
      out[#out + 1] = fate
    end
    for _, change in ipairs(hold_changes) do
      local set, fate = holds.read(change.set), nil
      if change.action == 4 or change.renews and ended[change.lease] then
        fate = holds.status(set, change.lease)
        if fate > 2 and change.renews then fate = 1 end
        looking = looking or fate > 2
      else
        fate = holds.change(change, change.kind, change.shape, set)
      end
      out[#out + 1] = fate
    end
    for _, undo in ipairs(undos) do
      local state = undo.kind.read(undo.number)
      local set = undo.set and holds.read(undo.set)
      local hold = set and hold_at(set, lease)
      if hold then hold_remove(set, lease) end
      -- What was given back at the end of its hold is not taken back again.
      if state.counted and not (hold and hold.ended and hold.released) then
        local wrote = undo.kind.correct(undo.shape, state)
        if undo.kind.undo(undo.shape, state, min(undo.at, now), undo.reset, lease, now) or wrote then
          undo.kind.write(undo.shape, state)
        end
      end
    end
    for number = 1, group_count do
      -- What this plan has changed before.
      for _, check in ipairs(groups[number]) do
        if check.holds and (number > 1 or hold_count + undo_count > 0) then check.holds = holds.read(check.set) end
      end
      decide(groups[number], refused == 0, lease, again, looking)
    end
  end
end

-- The fast path. Most plans are a group of buckets in the compact layout, whose unit has not changed. What follows does
-- the same as `bucket` above, inlined: a decision costs Redis less than half as much.

-- The current level of such a bucket, when it was written, and 16 times the class of its expiry. Nil for any other.
local function look(number, shape)
  local value = held[number]
  if not value then return shape[12] > 0 and 0 or nil, 0, 0 end
  if #value ~= 14 then return nil end
  local low, high, level, code = unpack_('<I6BI5H', value)
  local class = high - high % 16
  local at = low + (high - class) * 281474976710656
  if code ~= shape[12] or at > now or level > shape[9] then return nil end
  level = level - (now - at) * shape[11]
  return level > 0 and level or 0, at, class
end

local low = now % 281474976710656
local high = (now - low) / 281474976710656

-- Writes the level after a charge, and returns whether it could.
local function keep(number, shape, level, at, class)
  if level >= CODED then return false end
  local lasts, stays = level / shape[11], at >= cell
  if not stays or lasts > CELL and lasts > CELL * 2 ^ (class / 16) then
    stays, class = false, 0
    while lasts > CELL * 2 ^ (class / 16) do class = class + 16 end
  end
  local key, value = KEYS[number], pack('<I6BI5H', low, high + class, level, shape[12])
  if try('SETRANGE', key, '0', value) ~= 14 then return false end
  held[number] = value
  if not stays then try('PEXPIREAT', key, dues[class / 16] or due(class / 16)) end
  return true
end

-- Decides a group of such buckets. Nil if it cannot; then nothing was written.
local function buckets(place, count, told)
  local found, levels, ats, classes, all = {}, {}, {}, {}, true
  for number = 1, count do
    local shape, key
    shape, key, place = unpack_('<HH', program, place)
    shape = shapes[shape] or shape_of(shape)
    if shape[1] ~= 1 or shape[7] > 0 then return nil end
    local level, at, class = look(key, shape)
    if not level or not held[key] and try('STRLEN', KEYS[key]) ~= 0 then return nil end
    if level + shape[4] + shape[5] + shape[6] >= CODED then return nil end
    found[number], levels[number], ats[number], classes[number] = shape, level, at, class
    all = all and (level + shape[3] <= shape[8] or shape[2] == 1)
  end
  local written = false
  place = place - 4 * count
  for number = 1, count do
    local shape, level = found[number], levels[number]
    local key = unpack_('<H', program, place + 2)
    place = place + 4
    local passes = level + shape[3] <= shape[8]
    local units = passes and (all and shape[4] or shape[5]) or shape[6]
    local charged = units
    if units > 0 then
      if level + units > shape[9] then charged = shape[9] - level end
      level = level + charged
      if not keep(key, shape, level, ats[number], classes[number]) then
        if not written then return nil end
        for place = told + number, told + 2, -1 do out[place] = nil end
        out[told + 1] = 'ERR a counter could not be written after another'
        return told + 1
      end
      written = true
    end
    out[told + number] = passes and level or -1 - level
    if charged < units then out[told + number] = { out[told + number], -1, charged } end
  end
  return told + count
end

-- Holds of such buckets, where a counter has few of them, all made before now and none of them due: the packed form, a
-- string in place of the hash.
--
--   '<I7BI7I7'  when the key expires, how many, when the newest was made, when something is due at the earliest
--   'c16' and a record, as above, of each
--
-- What follows the records counts for nothing, without any all but the first two numbers: a string that is written in
-- place keeps its allocation and its expiry. Both functions return nil if they cannot decide; then nothing was written, and
-- the packed form becomes the sorted one.
local hold, settle
local function held_buckets()
  local ceil, max, min, byte, find, sub, type = math.ceil, math.max, math.min, string.byte, string.find, string.sub, type
  local SIZE, FIRST = 16 + RECORDED, PACKED + 1

  -- A check that looks at holds. Returns its answer.
  function hold(shape, key, place)
    local set, terms, lease = unpack_('<HHc16', program, place)
    terms = shapes[terms] or shape_of(terms)
    local level, at, class = look(key, shape)
    if not level or shape[7] > 0 then return nil end
    local packed = held[set]
    local count, expires, newest, due_ = packed and byte(packed, 8) or 0, 0, 0, NEVER
    if count > 0 then
      expires, count, newest, due_ = unpack_(PACK, packed)
      if newest > now or due_ <= now then return nil end
    elseif packed then
      expires = unpack_('<I7', packed)
    end
    local passes = level + shape[3] <= shape[8]
    if not passes or terms[2] ~= 3 or shape[4] == 0 then
      -- Nothing is held. Whether something is, the string says, or that there is none of either form.
      if count > 0 or shape[2] == 1 and not passes then return nil end
      if not packed and try('STRLEN', KEYS[set]) ~= 0 then return nil end
      local units = passes and shape[4] or shape[6]
      local charged = min(units, shape[9] - level)
      if units > 0 and not keep(key, shape, level + charged, at, class) then return nil end
      if passes and charged == units then return level + charged end
      return { passes and level + charged or -1 - level - charged, -1, charged, -1, 0 }
    end
    local units = shape[4]
    if count >= FEW or level + units >= CODED then return nil end
    if not held[key] and try('STRLEN', KEYS[key]) ~= 0 then return nil end
    local charged = min(units, shape[9] - level)
    level = level + charged
    local length = terms[3]
    local ends = now + length
    local late = ends + length > expires
    if late then expires = ends + length + CELL end
    -- What is the same in all holds of a call with these terms, and with this rate.
    local made, rate = terms.made, shape.rate
    if not made then
      made = pack('<I7I7I7B', now, now, length, terms[4])
      terms.made, terms.single = made, pack('<BI7I7', 1, now, ends)
    end
    if not rate then
      rate = pack('<I7I7', shape[10], shape[11])
      shape.rate = rate
    end
    local lapse, record = late and pack('<I7', expires) or sub(packed, 1, 7), pack('<I7I7', charged, ceil(level / shape[11]))
    if count == 0 then
      packed = lapse .. terms.single .. lease .. record .. rate .. made
    else
      local before = sub(packed, FIRST, PACKED + count * SIZE)
      if find(before, lease, 1, true) then return nil end
      packed = lapse .. pack('<BI7I7', count + 1, now, min(due_, ends)) .. before .. lease .. record .. rate .. made
    end
    -- It is refused where the sorted form is. A string can only be refused for lack of memory.
    if type(try('SETRANGE', KEYS[set], '0', packed)) ~= 'number' then
      if not held[set] then return nil end
      local _, problem = pcall(call, 'SETRANGE', KEYS[set], '0', packed)
      return words_of(problem)
    end
    held[set] = packed
    if late then
      call('PEXPIREAT', KEYS[set], string.format('%d', math.floor((real + expires - now) / 1000 + SLACK)))
    end
    if not keep(key, shape, level, at, class) then return 'ERR a counter could not be written after its holds' end
    return charged < units and { level, -1, charged, -1, 1 } or level
  end

  -- A settlement. Returns its fate.
  function settle(shape, key, place)
    local set, action, used, lease = unpack_('<HBdc16', program, place)
    local packed = held[set]
    if not packed or byte(packed, 8) == 0 then return nil end
    local expires, count, newest, due_ = unpack_(PACK, packed)
    if newest > now or due_ <= now then return nil end
    local from = find(packed, lease, FIRST, true)
    if not from or (from - FIRST) % SIZE ~= 0 or from > PACKED + count * SIZE then return nil end
    local charged, reset, unit, drain, charged_at = unpack_('<I7I7I7I7I7', packed, from + 16)
    local level, at, class = look(key, shape)
    if not level or not held[key] or unit ~= shape[10] or drain ~= shape[11] then return nil end
    local units = min(ceil(charged / unit), 4294967295)
    local more = action == 1 and used > units and min((used - units) * unit, shape[9] - level) or nil
    if level + (more or 0) >= CODED then return nil end

    local key_, offset, written = KEYS[set], '7', '\0'
    if count > 1 then
      packed = pack(PACK, expires, count - 1, newest, due_)
        .. sub(packed, FIRST, from - 1)
        .. sub(packed, from + SIZE, PACKED + count * SIZE)
      offset, written = '0', packed
    else
      packed = sub(packed, 1, 7) .. written
    end
    if count == 1 and expires - now > CELL * 16 then
      call('DEL', key_)
      packed = false
    elseif type(try('SETRANGE', key_, offset, written)) ~= 'number' then
      return nil
    end
    held[set] = packed

    local back = action == 1 and charged - min(used * unit, charged) or 0
    if more then
      if not keep(key, shape, level + more, at, class) then return 'ERR a counter could not be written after its holds' end
    elseif back > 0 then
      -- As `bucket.undo`: the moment stays, and so does the expiry.
      local levels = back
      if at ~= charged_at then
        local before = max(0, max(0, reset - 1) * drain - back)
        levels = max(0, back - max(0, (now - charged_at) * drain - before))
      end
      local left = level > 0 and max(0, level + (now - at) * drain - levels) or 0
      local low = at % 281474976710656
      local value = pack('<I6BI5H', low, (at - low) / 281474976710656 + class, left, shape[12])
      call('SETRANGE', KEYS[key], '0', value)
      held[key] = value
    end
    return 0
  end
end

local told, last = 1, #program
while place <= last do
  local op, first, second, after = unpack_('<BHH', program, place)
  local decided
  if op == 0 then
    local shape = shapes[first] or shape_of(first)
    local level, at, class = look(second, shape)
    if level then
      local passes = level + shape[3] <= shape[8]
      local units = passes and shape[4] or shape[6]
      local charged = units
      if level + units > shape[9] then charged = shape[9] - level end
      level = level + charged
      if units == 0 or keep(second, shape, level, at, class) then
        decided = told + 1
        out[decided] = passes and level or -1 - level
        if charged < units then out[decided] = { out[decided], -1, charged } end
      end
    end
  elseif op == 2 then
    decided = buckets(after, first, told)
    after = after + 4 * first
  elseif op >= 3 then
    if not hold then held_buckets() end
    local shape = shapes[first] or shape_of(first)
    local answer = (op == 3 and hold or settle)(shape, second, after)
    if answer then
      decided = told + 1
      out[decided] = answer
    end
    after = after + (op == 3 and 20 or 27)
  end
  if decided then
    told = decided
  else
    slow = slow or others()
    -- A plan that fails does not affect the others.
    local good, problem = pcall(slow, op, place + 5, first)
    if op == 1 then after = after + first + second * 65536 end
    if good then
      told = #out
    else
      for number = #out, told + 1, -1 do out[number] = nil end
      told = told + 1
      out[told] = words_of(problem)
    end
  end
  place = after
end
return reply and reply(out) or out

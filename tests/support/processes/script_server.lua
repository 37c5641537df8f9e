-- A server of one client on standard input and output, with the commands that the script of the Redis store uses. It runs
-- the script in this Lua, whichever that is, and refuses what differs between versions of Lua: an unknown global, a
-- fraction as a whole number, and a float where another Lua would have written `20.0`.

local floor, integer = math.floor, math.type
local find, sub, byte, char = string.find, string.sub, string.byte, string.char
local compile, listed = loadstring or load, table.unpack or unpack

-- The library that Redis brings. What it unpacks are floats, where Lua knows the difference.
struct = {}

local function size_of(form, place)
  local kind = sub(form, place, place)
  local _, last, digits = find(form, '^(%d+)', place + 1)
  local size = tonumber(digits) or ({ B = 1, H = 2, I = 4, d = 8, c = 1 })[kind]
  return kind, size, (last or place) + 1
end

function struct.pack(form, ...)
  local big = sub(form, 1, 1) == '>'
  assert(big or sub(form, 1, 1) == '<')
  local place, values, out = 2, { ... }, {}
  for _, value in ipairs(values) do
    local kind, size
    kind, size, place = size_of(form, place)
    assert(kind ~= 'd' and kind ~= 'c' and value == floor(value) and value >= 0 and value < 2 ^ (8 * size), form)
    local bytes = ''
    for _ = 1, size do
      local first = char(floor(value % 256))
      bytes = big and first .. bytes or bytes .. first
      value = (value - value % 256) / 256
    end
    out[#out + 1] = bytes
  end
  assert(place == #form + 1, form)
  return table.concat(out)
end

local function double(b1, b2, b3, b4, b5, b6, b7, b8)
  local low = ((((b7 % 16 * 256.0 + b6) * 256 + b5) * 256 + b4) * 256 + b3) * 65536 + b2 * 256 + b1
  local sign, power = b8 >= 128 and -1 or 1, b8 % 128 * 16 + floor(b7 / 16)
  if power == 2047 then return sign * math.huge end
  if power == 0 then return sign * low * 2.0 ^ -1074 end
  return sign * (1 + low / 2.0 ^ 52) * 2.0 ^ (power - 1023)
end

function struct.unpack(form, bytes, from)
  assert(sub(form, 1, 1) == '<')
  local place, values = 2, {}
  from = from or 1
  while place <= #form do
    local kind, size
    kind, size, place = size_of(form, place)
    assert(from + size - 1 <= #bytes, 'data string too short')
    if kind == 'c' then
      values[#values + 1] = sub(bytes, from, from + size - 1)
    elseif kind == 'd' then
      values[#values + 1] = double(byte(bytes, from, from + 7))
    else
      local value = 0.0
      for at = from + size - 1, from, -1 do value = value * 256 + byte(bytes, at) end
      values[#values + 1] = value
    end
    from = from + size
  end
  values[#values + 1] = from
  return listed(values)
end

local texts, sets, hashes, expiries = {}, {}, {}, {}

local function fail(text) error({ err = text }, 0) end

local function whole(word)
  if not find(word, '^-?%d+$') then fail('ERR value is not an integer or out of range: ' .. word) end
  return tonumber(word)
end

local function of_kind(kind, key)
  for _, other in ipairs({ texts, sets, hashes }) do
    if other ~= kind and other[key] then
      fail('WRONGTYPE Operation against a key holding the wrong kind of value')
    end
  end
  return kind[key]
end

local function text_at(key) return of_kind(texts, key) end
local function set_at(key) return of_kind(sets, key) or {} end
local function hash_at(key) return of_kind(hashes, key) or {} end

local function score(number) return string.format('%.17g', number) end

-- The members of a set in order, each with its score.
local function ordered(key)
  local all = {}
  for member, at in pairs(set_at(key)) do all[#all + 1] = { member = member, at = at } end
  table.sort(all, function(one, other)
    if one.at ~= other.at then return one.at < other.at end
    return one.member < other.member
  end)
  return all
end

local function border(word, at, is_least)
  local open = sub(word, 1, 1) == '('
  local limit = open and sub(word, 2) or word
  if limit == '-inf' then return is_least end
  if limit == '+inf' then return not is_least end
  limit = tonumber(limit)
  if is_least then return at > limit or at == limit and not open end
  return at < limit or at == limit and not open
end

local function between(key, least, most)
  local all = {}
  for _, entry in ipairs(ordered(key)) do
    if border(least, entry.at, true) and border(most, entry.at, false) then all[#all + 1] = entry end
  end
  return all
end

local function listing(entries, with_scores)
  local out = {}
  for _, entry in ipairs(entries) do
    out[#out + 1] = entry.member
    if with_scores then out[#out + 1] = score(entry.at) end
  end
  return out
end

local commands = {}

function commands.TIME() return { tostring(os.time()), '0' } end
function commands.STRLEN(key) return #(text_at(key) or '') end
function commands.PING() return 'PONG' end
function commands.HELLO() return { 'server', 'redis', 'version', '7.0.0', 'mode', 'standalone' } end

function commands.MGET(...)
  local out = {}
  for number, key in ipairs({ ... }) do out[number] = texts[key] or false end
  return out
end

function commands.SET(key, value, unit, duration)
  assert(unit == nil or unit == 'PX' and whole(duration) > 0)
  texts[key], sets[key], hashes[key], expiries[key] = value, nil, nil, duration and os.time() * 1000 + whole(duration)
  return 'OK'
end

function commands.GETRANGE(key, first, last)
  local value = text_at(key) or ''
  first, last = whole(first), whole(last)
  return last < first and '' or sub(value, first + 1, last + 1)
end

function commands.SETRANGE(key, offset, value)
  local before = text_at(key) or ''
  offset = whole(offset)
  before = before .. string.rep('\0', offset - #before)
  texts[key] = sub(before, 1, offset) .. value .. sub(before, offset + #value + 1)
  return #texts[key]
end

function commands.PEXPIREAT(key, moment)
  if not texts[key] and not sets[key] and not hashes[key] then return 0 end
  assert(whole(moment) > os.time() * 1000)
  expiries[key] = whole(moment)
  return 1
end

function commands.ZADD(key, at, member)
  local set = set_at(key)
  local added = set[member] and 0 or 1
  set[member], sets[key] = whole(at), set
  return added
end

function commands.ZREM(key, member)
  local set = set_at(key)
  local there = set[member] and 1 or 0
  set[member] = nil
  if next(set) == nil then sets[key], expiries[key] = nil, nil end
  return there
end

function commands.ZSCORE(key, member)
  local at = set_at(key)[member]
  return at and score(at) or false
end

function commands.ZCARD(key) return #ordered(key) end
function commands.ZCOUNT(key, least, most) return #between(key, least, most) end

function commands.ZRANGE(key, first, last, scores)
  local all, some = ordered(key), {}
  local function place(number) return number < 0 and #all + 1 + number or number + 1 end
  for number = place(whole(first)), place(whole(last)) do some[#some + 1] = all[number] end
  return listing(some, scores == 'WITHSCORES')
end

function commands.ZRANGEBYSCORE(key, least, most, ...)
  local all, words = between(key, least, most), { ... }
  local scores = words[1] == 'WITHSCORES'
  if scores then table.remove(words, 1) end
  if words[1] then
    assert(words[1] == 'LIMIT')
    local some, offset = {}, whole(words[2])
    for number = 1, whole(words[3]) do some[number] = all[offset + number] end
    all = some
  end
  return listing(all, scores)
end

function commands.ZREMRANGEBYSCORE(key, least, most)
  local gone = between(key, least, most)
  for _, entry in ipairs(gone) do commands.ZREM(key, entry.member) end
  return #gone
end

function commands.HGET(key, field) return hash_at(key)[field] or false end

function commands.HMGET(key, ...)
  local out = {}
  for number, field in ipairs({ ... }) do out[number] = hash_at(key)[field] or false end
  return out
end

function commands.HSET(key, ...)
  local hash, words, added = hash_at(key), { ... }, 0
  for place = 1, #words, 2 do
    if not hash[words[place]] then added = added + 1 end
    hash[words[place]] = words[place + 1]
  end
  hashes[key] = hash
  return added
end

function commands.HDEL(key, field)
  local hash = hash_at(key)
  local there = hash[field] and 1 or 0
  hash[field] = nil
  if next(hash) == nil then hashes[key], expiries[key] = nil, nil end
  return there
end

function commands.DEL(...)
  local there = 0
  for _, key in ipairs({ ... }) do
    if texts[key] or sets[key] or hashes[key] then there = there + 1 end
    texts[key], sets[key], hashes[key], expiries[key] = nil, nil, nil, nil
  end
  return there
end

local function run(name, ...)
  local words = { ... }
  for place, word in ipairs(words) do
    if type(word) == 'number' then
      if integer and integer(word) == 'float' then fail('ERR a float is an argument of ' .. name .. ': ' .. word) end
      words[place] = string.format('%.17g', word)
    end
  end
  local command = commands[name] or fail('ERR unknown command ' .. name)
  return command(listed(words))
end

redis = { call = run }

function redis.pcall(...)
  local good, answer = pcall(run, ...)
  if good then return answer end
  return type(answer) == 'table' and answer or { err = tostring(answer) }
end

KEYS, ARGV = {}, {}
setmetatable(_G, {
  __index = function(_, name) error('Script attempted to access nonexistent global variable ' .. tostring(name), 2) end,
  __newindex = function(_, name) error('Attempt to modify a readonly table: ' .. tostring(name), 2) end,
})

local function encoded(answer)
  if type(answer) == 'number' then
    if integer and integer(answer) == 'float' then return '-ERR a float in the reply: ' .. answer .. '\r\n' end
    return ':' .. string.format('%d', answer) .. '\r\n'
  elseif type(answer) == 'string' then
    return '$' .. #answer .. '\r\n' .. answer .. '\r\n'
  elseif type(answer) ~= 'table' then
    return '$-1\r\n'
  elseif answer.err then
    return '-' .. answer.err .. '\r\n'
  end
  local parts = { '*' .. #answer .. '\r\n' }
  for _, value in ipairs(answer) do
    local part = encoded(value)
    if sub(part, 1, 1) == '-' then return part end
    parts[#parts + 1] = part
  end
  return table.concat(parts)
end

local script

local function evaluate(words)
  local count = whole(words[3])
  for place = #KEYS, 1, -1 do KEYS[place] = nil end
  for place = #ARGV, 1, -1 do ARGV[place] = nil end
  for place = 4, #words do
    if place < 4 + count then KEYS[place - 3] = words[place] else ARGV[place - 3 - count] = words[place] end
  end
  local good, answer = pcall(script)
  if good then return answer end
  return { err = type(answer) == 'table' and answer.err or 'ERR ' .. tostring(answer) }
end

local function answer_to(words)
  local name = string.upper(words[1])
  if name == 'EVAL' then
    local problem
    script, problem = compile(words[2])
    if not script then return { err = 'ERR ' .. problem } end
    return evaluate(words)
  elseif name == 'EVALSHA' then
    if not script then return { err = 'NOSCRIPT No matching script. Please use EVAL.' } end
    return evaluate(words)
  end
  return redis.pcall(name, listed(words, 2))
end

io.stdout:setvbuf('full')
while true do
  local line = io.read()
  if not line then break end
  local words = {}
  for number = 1, tonumber(find(line, '^%*%d+\r$') and sub(line, 2, -2)) do
    local head = io.read()
    local size = tonumber(sub(head, 2, -2))
    words[number] = size > 0 and io.read(size) or ''
    io.read(2)
  end
  io.write(encoded(answer_to(words)))
  io.flush()
end

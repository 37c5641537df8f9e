-- GCRA as it is commonly written: ARGV are the microseconds of a token and of a full bucket.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local token, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local left = {}
for number = 1, #KEYS do
  local arrival = tonumber(redis.call('GET', KEYS[number]) or now)
  if arrival < now then arrival = now end
  local next_arrival = arrival + token
  if next_arrival - now > full then
    left[number] = full - (next_arrival - now)
  else
    redis.call('SET', KEYS[number], string.format('%.0f', next_arrival), 'PX', math.ceil((next_arrival - now) / 1000))
    left[number] = math.floor((full - (next_arrival - now)) / token)
  end
end
return left

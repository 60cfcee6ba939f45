"""What Redis does in one step, in Lua: publishing with history, reading it, presence. Keys and payloads are here, too.

Of a topic `t`, all with `t` in braces, so that a Cluster would keep them together (Redis Cluster specification, "Hash
tags"):

    m:{t}       hash: e epoch, o offset of the newest, b bytes of data kept, r run of the server, t seconds of EXPIRE
    h:{t}       list of payloads, the oldest first: offsets have no gaps, so an index is an offset
    kN:{t}key   where what was published with `key` stands (N, the length of t, keeps other topics' keys out)
    pz:{t}      sorted set: `length of member:member owner` by when it expires, in milliseconds
    pm:{t}      hash: "i" + member → its info, "n" + member → how many owners it has
    t           the channel

and one for all: ``due``, a sorted set of topics with members, by when one may have expired.

A list, not a stream: it is addressed by offset too, can be bounded by bytes (a stream cannot), and its entry is what
is published, byte for byte. Payloads:

    publication   length of data ":" offset ":" epoch ":" microseconds ":" length of tag ":" length of origin ":"
                  tag origin data
    presence      "+" (came) or "-" (left), length of member ":" member info

An epoch is the time it began. A new one begins where the meta hash is missing (flushed, evicted, expired, never
there); where the server was started again without its append-only file, for a snapshot may be older than what was
delivered (offsets would be used twice); and where a publisher or a subscriber has seen a later offset than the server
knows: an append-only file may have lost its end.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["SCRIPTS", "Script"]


class Script:
    """One Lua script and the name Redis knows it by (`SCRIPT LOAD`)."""

    def __init__(self, *parts: str) -> None:
        self.text = "".join(parts)
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()


# --------------------------------------------------------------------- history

_STAND: Final = """
local function begin(meta, list, run, life, now)
  local epoch = string.format('%x%05x', now[1], now[2])
  redis.call('DEL', list)
  redis.call('HSET', meta, 'e', epoch, 'o', 0, 'b', 0, 'r', run, 't', now[1])
  redis.call('EXPIRE', meta, life)
  return epoch, 0, 0
end
-- Where the topic stands: epoch, offset, bytes kept, time.
local function stand(meta, list, run, durable, life)
  local now = redis.call('TIME')
  local m = redis.call('HMGET', meta, 'e', 'o', 'b', 'r', 't')
  local restarted = run ~= '' and m[4] ~= run
  if not m[1] or (restarted and durable ~= '1') then
    local epoch = begin(meta, list, run, life, now)
    return epoch, 0, 0, now
  end
  if restarted or now[1] - m[5] > life / 8 then
    redis.call('HSET', meta, 'r', run, 't', now[1])
    redis.call('EXPIRE', meta, life)
  end
  return m[1], tonumber(m[2]), tonumber(m[3]), now
end
"""

_EXPIRE: Final = """
-- Drop what is older than `age` milliseconds. Returns how many, and how many bytes of data, are left.
local function expire(list, count, bytes, age, now)
  local oldest = now[1] * 1000000 + now[2] - age * 1000
  while count > 0 do
    local size, at = string.match(redis.call('LINDEX', list, 0), '^(%d+):%d+:%x*:(%d+)')
    if tonumber(at) >= oldest then break end
    redis.call('LPOP', list)
    count, bytes = count - 1, bytes - size
  end
  return count, bytes
end
"""

# KEYS: meta, list, [key]. ARGV: channel, data, tag, origin, count, size, age ms, run, durable, life s, key's age ms,
# epoch and offset of what the publisher got last.
_PUBLISH: Final = """
if KEYS[3] then
  local known = redis.call('GET', KEYS[3])
  if known then
    local epoch, offset = string.match(known, '^(%x*):(%d+)$')
    return {epoch, tonumber(offset)}
  end
end
local meta, list, data, tag, origin = KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4]
local epoch, offset, bytes, now = stand(meta, list, ARGV[8], ARGV[9], ARGV[10])
if ARGV[12] == epoch and tonumber(ARGV[13]) > offset then
  epoch, offset, bytes = begin(meta, list, ARGV[8], ARGV[10], now)
end
offset = offset + 1
local number = string.format('%.0f', offset)
local entry = #data .. ':' .. number .. ':' .. epoch .. ':' .. now[1] .. string.format('%06d', now[2]) .. ':'
  .. #tag .. ':' .. #origin .. ':' .. tag .. origin .. data
local count = redis.call('RPUSH', list, entry)
if count == 1 then bytes = 0 end  -- the list had expired
bytes = bytes + #data
local most, size = tonumber(ARGV[5]), tonumber(ARGV[6])
while count > 0 and (count > most or bytes > size) do
  bytes = bytes - string.match(redis.call('LPOP', list), '^%d+')
  count = count - 1
end
if offset % 16 == 0 then  -- readers do it as well: here it only bounds what is kept for nobody
  count, bytes = expire(list, count, bytes, ARGV[7], now)
end
redis.call('PEXPIRE', list, ARGV[7])
redis.call('HSET', meta, 'o', number, 'b', bytes)
if KEYS[3] then redis.call('SET', KEYS[3], epoch .. ':' .. number, 'PX', ARGV[11]) end
redis.call('PUBLISH', ARGV[1], entry)
return {epoch, offset}
"""

# A topic that keeps nothing. KEYS: key. ARGV: channel, payload, key's age ms.
_ONCE: Final = """
if redis.call('SET', KEYS[1], '', 'NX', 'PX', ARGV[3]) then redis.call('PUBLISH', ARGV[1], ARGV[2]) end
return 0
"""

# KEYS: meta, list. ARGV: run, durable, life s, [epoch and offset that were seen].
_POSITION: Final = """
local epoch, offset, _, now = stand(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
if ARGV[4] == epoch and tonumber(ARGV[5]) > offset then
  epoch, offset = begin(KEYS[1], KEYS[2], ARGV[1], ARGV[3], now)
end
return {epoch, offset}
"""

# KEYS: meta, list. ARGV: run, durable, life s, age ms, limit, bytes, epoch ('': the newest), offset, [1: and what is
# kept behind a gap]. Bytes are kept to on an average: entries are not measured before they are read.
_HISTORY: Final = """
local epoch, offset, bytes, now = stand(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
local limit, all = tonumber(ARGV[5]), redis.call('LLEN', KEYS[2])
local count, left = expire(KEYS[2], all, bytes, ARGV[4], now)
if count < all then redis.call('HSET', KEYS[1], 'b', left) end
if left > tonumber(ARGV[6]) then limit = math.min(limit, math.ceil(count * ARGV[6] / left)) end
local from, complete = math.max(0, count - limit), 1
if ARGV[7] ~= '' then
  from = tonumber(ARGV[8]) - (offset - count)
  if ARGV[7] ~= epoch or from < 0 or from > count then
    if not ARGV[9] then return {epoch, offset, 0, {}} end
    from, complete = 0, 0
  end
end
if limit < 1 then return {epoch, offset, complete, {}} end
return {epoch, offset, complete, redis.call('LRANGE', KEYS[2], from, from + limit - 1)}
"""

# -------------------------------------------------------------------- presence

_CLOCK: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

_GONE: Final = """
local function gone(members, channel, member)
  if redis.call('HINCRBY', members, 'n' .. member, -1) > 0 then return 0 end
  local info = redis.call('HGET', members, 'i' .. member) or ''
  redis.call('HDEL', members, 'n' .. member, 'i' .. member)
  redis.call('PUBLISH', channel, '-' .. #member .. ':' .. member .. info)
  return 1
end
local function sweep(owners, members, channel, limit)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', owners, '-inf', now, 'LIMIT', 0, limit)) do
    redis.call('ZREM', owners, entry)
    local length, first = string.match(entry, '^(%d+):()')
    gone(members, channel, string.sub(entry, first, first + length - 1))
  end
end
"""

# KEYS: owners, members. ARGV: channel, member, owner, info, ttl ms, life s.
_ENTER: Final = """
local member = ARGV[2]
local fresh = redis.call('ZADD', KEYS[1], now + ARGV[5], #member .. ':' .. member .. ARGV[3])
local first = fresh == 1 and redis.call('HINCRBY', KEYS[2], 'n' .. member, 1) == 1
if first then
  redis.call('HSET', KEYS[2], 'i' .. member, ARGV[4])
  redis.call('PUBLISH', ARGV[1], '+' .. #member .. ':' .. member .. ARGV[4])
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return first and 1 or 0
"""

# KEYS: owners, members. ARGV: channel, member, owner.
_LEAVE: Final = """
if redis.call('ZREM', KEYS[1], #ARGV[2] .. ':' .. ARGV[2] .. ARGV[3]) == 0 then return 0 end
return gone(KEYS[2], ARGV[1], ARGV[2])
"""

# KEYS: owners, members. ARGV: ttl ms, life s, then member and owner by turns. Returns the indexes of the unknown.
_REFRESH: Final = """
-- First what a full Redis does not refuse: what follows a write in a script is not refused either.
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
local unknown = {}
for i = 3, #ARGV, 2 do
  local entry = #ARGV[i] .. ':' .. ARGV[i] .. ARGV[i + 1]
  if redis.call('ZSCORE', KEYS[1], entry) then
    redis.call('ZADD', KEYS[1], now + ARGV[1], entry)
  else
    unknown[#unknown + 1] = (i - 3) / 2
  end
end
return unknown
"""

# KEYS: owners, members. ARGV: channel. Returns the hash of those who are left.
_MEMBERS: Final = """
sweep(KEYS[1], KEYS[2], ARGV[1], 1000)
return redis.call('HGETALL', KEYS[2])
"""

# KEYS: owners, members. ARGV: channel, limit. Returns when the next owner expires, '' if there is none.
_SWEEP: Final = """
sweep(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or ''
"""

# The index of topics with members is apart from them. Who sweeps a topic takes it for some seconds, by a score that
# nobody else gives it; if that has changed when the sweep is done, somebody has entered meanwhile, and it stays.

# KEYS: due. ARGV: topic, ttl ms. After each enter, and each refresh for less.
_DUE_NOTE: Final = """
local score, expires = redis.call('ZSCORE', KEYS[1], ARGV[1]), now + ARGV[2]
if score and tonumber(score) <= expires then expires = score - 1 end
redis.call('ZADD', KEYS[1], expires, ARGV[1])
return 0
"""

# KEYS: due. ARGV: limit, lease ms. Returns the score of the lease, then topics.
_DUE_TAKE: Final = """
local topics = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, topic in ipairs(topics) do redis.call('ZADD', KEYS[1], now + ARGV[2], topic) end
table.insert(topics, 1, string.format('%.0f', now + ARGV[2]))
return topics
"""

# KEYS: due. ARGV: topic, score of the lease, when the next expires or ''.
_DUE_DONE: Final = """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then redis.call('ZREM', KEYS[1], ARGV[1]) else redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) end
return 1
"""

PUBLISH: Final = Script(_STAND, _EXPIRE, _PUBLISH)
ONCE: Final = Script(_ONCE)
POSITION: Final = Script(_STAND, _POSITION)
HISTORY: Final = Script(_STAND, _EXPIRE, _HISTORY)
ENTER: Final = Script(_CLOCK, _ENTER)
LEAVE: Final = Script(_CLOCK, _GONE, _LEAVE)
REFRESH: Final = Script(_CLOCK, _REFRESH)
MEMBERS: Final = Script(_CLOCK, _GONE, _MEMBERS)
SWEEP: Final = Script(_CLOCK, _GONE, _SWEEP)
DUE_NOTE: Final = Script(_CLOCK, _DUE_NOTE)
DUE_TAKE: Final = Script(_CLOCK, _DUE_TAKE)
DUE_DONE: Final = Script(_CLOCK, _DUE_DONE)

SCRIPTS: Final = (
    PUBLISH, ONCE, POSITION, HISTORY, ENTER, LEAVE, REFRESH, MEMBERS, SWEEP, DUE_NOTE, DUE_TAKE, DUE_DONE
)  # fmt: skip

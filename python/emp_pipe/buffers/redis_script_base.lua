-- Everything that changes a shard of the log, and the two reads that must see one moment: one script, so that a server knows all of it or
-- nothing (three files, one after another). What is stored and why: docs/decisions/010-redis-log.md. Called by redis_calls.py.
--
-- KEYS: the ten below, then whatever streams, groups, states and chunks the call touches: all of one hash tag, all named, so that it runs
-- on a cluster. ARGV[1]: msgpack of the call's arguments A; ARGV[2..]: headers and payloads, which are long and not copied twice.
--
-- A script is not rolled back. Before the first write everything is checked; the first write is the one that can be refused:
-- * what adds (append) begins with XADD, which Redis refuses at maxmemory, and then nothing has happened;
-- * what ends (commit) begins with a deletion, which it never refuses, and after a first write it refuses nothing more.

local META, BOOKS, INDEX, GROUPS, NAMED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local DEAD, DEAD_INDEX, CHECKPOINTS, BELL, OPERATIONS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local call = redis.call
local A = cmsgpack.unpack(ARGV[1])
local BASE = string.sub(META, 1, -5)
local KEPT_RESULTS = 1024

local function text(number) return string.format('%.0f', number) end
local function stream(topic) return BASE .. 'stream:' .. topic end
local function held(group) return BASE .. 'held:' .. group end
local function state(group) return BASE .. 'state:' .. group end
local function expiry(group) return BASE .. 'expiry:' .. group end

-- books: gathered here, written once

local counts, totals = {}, {}

local function count(kind, first, second, what, number)
  local field = kind .. '\31' .. first .. '\31' .. second .. '\31' .. what
  counts[field] = (counts[field] or 0) + number
end

local function total(what, number) totals[what] = (totals[what] or 0) + number end

local function hold(group, topic, size, records, sign)
  count('h', topic, group, 'blocks', sign)
  count('h', topic, group, 'bytes', sign * size)
  count('h', topic, group, 'records', sign * records)
end

local function write_books()
  for field, number in pairs(counts) do
    if number ~= 0 and call('HINCRBY', BOOKS, field, text(number)) == 0 then call('HDEL', BOOKS, field) end
  end
  for field, number in pairs(totals) do
    if number ~= 0 then call('HINCRBY', META, field, text(number)) end
  end
end

-- operations: what was done once is answered, not done again

local function answered()
  if not A.seq then return nil end
  local last, result = unpack(call('HMGET', OPERATIONS, 'last', text(A.seq)))
  if result then
    call('EXPIRE', OPERATIONS, 3600)  -- a write, so that a WAIT behind it waits for what was written before
    return cmsgpack.unpack(result)
  end
  if last and tonumber(last) >= A.seq then return {'old'} end
end

local function done(reply)
  write_books()
  reply[2] = call('HINCRBY', META, 'n', 1)
  call('HSET', OPERATIONS, 'last', text(A.seq), text(A.seq), cmsgpack.pack(reply))
  call('HDEL', OPERATIONS, text(A.seq - KEPT_RESULTS))
  call('EXPIRE', OPERATIONS, 3600)
  return reply
end

local function refused()
  local id, epoch, version, owner, n = unpack(call('HMGET', META, 'id', 'epoch', 'groups', 'owner', 'n'))
  if id ~= A.id then return {'gone'} end
  if A.known and tonumber(n) < A.known then return {'older'} end
  -- the owner too: a server with data of an earlier moment gives epochs again
  if A.epoch and (epoch ~= A.epoch or owner ~= A.owner) then return {'stale', owner or ''} end
  if A.version and version ~= A.version then return {'groups'} end
end

local function ring()
  if call('HGET', META, 'owner') ~= A.owner then
    call('XADD', BELL, 'MAXLEN', '1', '*', 'n', '')
  end
end

-- blocks

local function entry(offset)
  local member = call('ZRANGEBYSCORE', INDEX, offset, offset)[1]
  if not member then return nil end
  local topic, size, records, time = string.match(member, '^%d+ (%S+) (%d+) (%d+) (%d+)$')
  return {topic = topic, size = tonumber(size), records = tonumber(records), time = time, member = member}
end

local function file(blocks, argument)
  local offsets, filed = {}, {}
  local first = tonumber(call('HGET', META, 'next'))
  for i, block in ipairs(blocks) do
    if block.once and call('EXISTS', KEYS[block.once]) == 1 then
      offsets[i] = '-1'
    else
      offsets[i] = text(first + #filed)
      local added = redis.pcall('XADD', stream(block.topic), offsets[i] .. '-0', 'h', ARGV[argument], 'p', ARGV[argument + 1])
      if type(added) == 'table' and added.err then
        for j, one in ipairs(filed) do call('XDEL', stream(one.topic), text(first + j - 1) .. '-0') end
        return nil, added
      end
      filed[#filed + 1] = block
    end
    argument = argument + 2
  end
  for i, block in ipairs(filed) do
    local offset = text(first + i - 1)
    local member = offset .. ' ' .. block.topic .. ' ' .. text(block.size) .. ' ' .. text(block.records) .. ' ' .. A.now
    call('ZADD', INDEX, offset, member)
    for _, group in ipairs(block.groups) do
      call('ZADD', held(group), offset, offset)
      count('g', block.topic, group, 'appended', block.records)
      hold(group, block.topic, block.size, block.records, 1)
    end
    total('held_bytes', block.size)
  end
  -- last: what is remembered is durable
  for _, block in ipairs(filed) do
    if block.once then call('SET', KEYS[block.once], A.now, 'EX', 3600) end
  end
  total('next', #filed)
  return offsets, #filed
end

local freed = 0

local function release(group, offset, one)
  if call('ZREM', held(group), offset) == 0 then return false end
  hold(group, one.topic, one.size, one.records, -1)
  for _, other in ipairs(A.readers[one.topic] or {}) do
    if other ~= group and call('ZSCORE', held(other), offset) then return true end
  end
  call('XDEL', stream(one.topic), offset .. '-0')
  call('ZREMRANGEBYSCORE', INDEX, offset, offset)
  total('held_bytes', -one.size)
  freed = freed + one.size
  return true
end

local function lose(group, offset, one, reason)
  if not release(group, offset, one) then return false end
  count('g', one.topic, group, reason, one.records)
  return true
end

-- Calls `visit(offset)` for each offset of a sorted set, in pages; `visit` may delete what it was given.
local function each(key, visit, after)
  after = after or '-inf'
  while true do
    local page = call('ZRANGEBYSCORE', key, after, '+inf', 'LIMIT', 0, 500)
    for _, member in ipairs(page) do
      local offset = string.match(member, '^%d+')
      if visit(offset, member) == false then return end
      after = '(' .. offset
    end
    if #page < 500 then return end
  end
end

-- dead letters

local function dead_fields(member)
  local size, records, stored, reason, component = string.match(member, '^%d+\31(%d+)\31(%d+)\31(%d+)\31%d+\31([^\31]*)\31(.*)$')
  return {size = tonumber(size), records = tonumber(records), stored = stored, reason = reason, component = component}
end

local function count_dead(one, sign)
  count('d', one.component, one.reason, 'letters', sign)
  count('d', one.component, one.reason, 'records', sign * one.records)
  count('d', one.component, one.reason, 'bytes', sign * one.size)
  total('dead_bytes', sign * one.size)
end

local function delete_dead(id, member, what)
  local one = dead_fields(member)
  call('XDEL', DEAD, id .. '-0')
  call('ZREMRANGEBYSCORE', DEAD_INDEX, id, id)
  count_dead(one, -1)
  count('g', 'dead', 'dlq', what, one.records)
  return {one.component, one.reason, one.records, one.size}
end

local function expire_dead(removed)
  local size = tonumber(call('HGET', META, 'dead_bytes')) + (totals.dead_bytes or 0)
  while true do
    local member = call('ZRANGE', DEAD_INDEX, 0, 0)[1]
    if not member then return end
    local one = dead_fields(member)
    if size <= A.dead_max_bytes and tonumber(one.stored) >= tonumber(A.dead_oldest) then return end
    size = size - one.size
    removed[#removed + 1] = delete_dead(string.match(member, '^%d+'), member, 'dead_limit')
  end
end

-- `without`: endings, by their place, that did not take place; their letters are nobody's.
local function bury(letters, argument, removed, without)
  for i, letter in ipairs(letters) do
    if not (without and without[letter.ending]) then
      local id = text(call('HINCRBY', META, 'next_dead', 1) - 1)
      local position = argument + 2 * (i - 1)
      call('XADD', DEAD, id .. '-0', 'm', letter.about, 'h', ARGV[position], 'p', ARGV[position + 1])
      call('ZADD', DEAD_INDEX, id, id .. '\31' .. letter.fields)
      local one = dead_fields(id .. '\31' .. letter.fields)
      count_dead(one, 1)
      count('g', 'dead', 'dlq', 'appended', one.records)
    end
  end
  if #letters > 0 then expire_dead(removed) end
end

-- The calls that change a shard; continues redis_script_base.lua.

local F = {}

function F.append()
  for i = A.first_chunk, A.first_chunk + A.chunks - 1 do
    if call('EXISTS', KEYS[i]) == 1 then return {'seen'} end
  end
  local offsets, filed = file(A.blocks, 2)
  if not offsets then return filed end
  if filed == 0 then call('HINCRBY', META, 'appends', 1) end
  local removed = {}
  bury(A.letters, 2 + 2 * #A.blocks, removed)
  for _, books in ipairs(A.books) do count('r', books[1], '', books[2], books[3]) end
  for name, value in pairs(A.checkpoints) do
    local known = call('HGET', CHECKPOINTS, name)
    if not known or tonumber(string.match(known, '^%d+')) <= A.checkpoint_epoch then
      call('HSET', CHECKPOINTS, name, text(A.checkpoint_epoch) .. ':' .. value)
    end
  end
  for i = A.first_chunk, A.first_chunk + A.chunks - 1 do call('SET', KEYS[i], A.now, 'EX', 3600) end
  ring()
  return done({'ok', 0, offsets, removed})
end

function F.commit()
  if A.derives then
    for _, one in ipairs(A.endings) do
      if not call('ZSCORE', held(A.group), one.offset) then return {'ended', one.offset} end
    end
  end
  if #A.endings > 0 or #A.blocks == 0 then call('HDEL', OPERATIONS, '') end
  local offsets, failure = file(A.blocks, 2)
  if not offsets then return failure end
  local stale, without, removed = {}, {}, {}
  for i, one in ipairs(A.endings) do
    if release(A.group, one.offset, one) then
      count('g', one.topic, A.group, 'acked', one.records - one.skipped - one.dead)
      count('g', one.topic, A.group, 'skipped', one.skipped)
      count('g', one.topic, A.group, 'dead', one.dead)
    else
      stale[#stale + 1], without[i] = one.offset, true
    end
  end
  bury(A.letters, 2 + 2 * #A.blocks, removed, without)
  for _, key in ipairs(A.deletes) do
    call('HDEL', state(A.group), key)
    call('ZREM', expiry(A.group), key)
  end
  for i = 1, #A.puts, 2 do
    call('HSET', state(A.group), A.puts[i], A.expires .. ':' .. A.puts[i + 1])
    if A.expires == '0' then
      call('ZREM', expiry(A.group), A.puts[i])
    else
      call('ZADD', expiry(A.group), A.expires, A.puts[i])
    end
  end
  return done({'ok', 0, offsets, removed, stale, freed})
end

function F.trim()
  call('HDEL', OPERATIONS, '')
  local sending, lost, seen = {}, {}, 0
  for _, offset in ipairs(A.in_flight) do sending[offset] = true end
  local size = 0
  for topic in pairs(A.readers) do
    size = size + tonumber(call('HGET', BOOKS, 'h\31' .. topic .. '\31' .. A.group .. '\31bytes') or '0')
  end
  local more = 0
  each(held(A.group), function(offset)
    if sending[offset] then return end
    local one = entry(offset)
    if size <= A.quota_bytes and tonumber(one.time) >= tonumber(A.oldest) then return false end
    if #lost >= A.limit then more = 1 return false end
    lose(A.group, offset, one, 'quota')
    size = size - one.size
    lost[#lost + 1] = one.member
  end)
  return done({'ok', 0, lost, more, freed})
end

function F.relieve()
  call('HDEL', OPERATIONS, '')
  local sending, lost, looked, last = {}, {}, 0, ''
  for _, offset in ipairs(A.in_flight) do sending[offset] = true end
  each(INDEX, function(offset, member)
    if freed >= A.wanted or looked >= A.limit then return false end
    looked, last = looked + 1, offset
    if sending[offset] then return end
    for _, group in ipairs(A.required) do
      if call('ZSCORE', held(group), offset) then return end
    end
    local one = entry(offset)
    for _, group in ipairs(A.optional) do
      if lose(group, offset, one, 'quota') then lost[#lost + 1] = group .. '\31' .. member end
    end
  end, '(' .. A.after)
  return done({'ok', 0, lost, freed, looked >= A.limit and last or ''})
end

-- groups

local function refill(group, topics)
  each(INDEX, function(offset)
    local one = entry(offset)
    if topics[one.topic] and call('ZADD', held(group), 'NX', offset, offset) == 1 then
      count('g', one.topic, group, 'appended', one.records)
      hold(group, one.topic, one.size, one.records, 1)
    end
  end)
end

-- How many blocks one script empties a group of, so that others are served meanwhile; what is left is still held, and counted so.
local SLICE = 250

-- Returns whether more is left: only with a `most`.
local function empty(group, topics, reason, heirs, reports, most, up_to)
  local alone, left, more = {}, most, false
  each(held(group), function(offset)
    if up_to and tonumber(offset) > tonumber(up_to) then return false end
    if left == 0 then more = true return false end
    local one = entry(offset)
    if not topics[one.topic] then return end
    if left then left = left - 1 end
    local inherited = false
    for _, heir in ipairs(heirs[one.topic] or {}) do
      if call('ZSCORE', held(heir), offset) then inherited = true break end
    end
    if not inherited then
      local report = alone[one.topic] or {0, 0}
      report[1], report[2] = report[1] + 1, report[2] + one.records
      alone[one.topic] = report
    end
    lose(group, offset, one, reason)
  end)
  for topic, report in pairs(alone) do reports[#reports + 1] = {group, topic, report[1], report[2]} end
  return more
end

local function forget(group)
  call('HDEL', GROUPS, group)
  call('HDEL', NAMED, group)
  call('DEL', held(group), state(group), expiry(group))
end

local function set(list)
  local found = {}
  for _, one in ipairs(list) do found[one] = true end
  return found
end

function F.groups()
  call('HDEL', OPERATIONS, '')
  local reports, retired, changed, more = {}, {}, false, 0
  for _, group in ipairs(A.wanted) do
    call('HSET', NAMED, group.name, A.now)
    if call('HGET', GROUPS, group.name) ~= group.spec then
      call('HSET', GROUPS, group.name, group.spec)
      changed = true
    end
  end
  for _, group in ipairs(A.wanted) do
    if group.oldest and #group.added > 0 then refill(group.name, set(group.added)) end
  end
  for _, group in ipairs(A.wanted) do
    if #group.removed > 0 then empty(group.name, set(group.removed), 'group_dropped', group.heirs, reports) end
  end
  for _, group in ipairs(A.absent) do
    local named = call('HGET', NAMED, group.name) or '0'
    if A.retire_after and tonumber(A.now) - tonumber(named) >= A.retire_after then
      if more == 1 or empty(group.name, set(group.removed), 'group_dropped', group.heirs, reports, SLICE) then
        more = 1
      else
        forget(group.name)
        retired[#retired + 1] = group.name
        changed = true
      end
    end
  end
  if changed then total('groups', 1) end
  return done({'ok', 0, reports, retired, more})
end

function F.reset()
  call('HDEL', OPERATIONS, '')
  local up_to, more = A.up_to ~= '' and A.up_to or text(tonumber(call('HGET', META, 'next')) - 1), 0
  if A.oldest then
    refill(A.group, set(A.topics))
  elseif empty(A.group, set(A.topics), 'group_reset', {}, {}, SLICE, up_to) then
    more = 1
  end
  return done({'ok', 0, more, up_to})
end

function F.drop()
  call('HDEL', OPERATIONS, '')
  if empty(A.group, set(A.topics), 'group_dropped', {}, {}, SLICE) then return done({'ok', 0, 1}) end
  forget(A.group)
  total('groups', 1)
  return done({'ok', 0, 0})
end

-- dead letters, by whoever is asked

function F.delete_dead()
  call('HDEL', OPERATIONS, '')
  local removed = {}
  for _, id in ipairs(A.ids) do
    local member = call('ZRANGEBYSCORE', DEAD_INDEX, id, id)[1]
    if member then removed[#removed + 1] = delete_dead(id, member, 'acked') end
  end
  ring()
  return done({'ok', 0, removed})
end

function F.revive()
  call('HDEL', OPERATIONS, '')
  local removed, filed, ids = {}, {}, {}
  for i, block in ipairs(A.blocks) do
    local member = call('ZRANGEBYSCORE', DEAD_INDEX, block.id, block.id)[1]
    if member then
      local offset = text(tonumber(call('HGET', META, 'next')) + (totals.next or 0))
      call('XADD', stream(block.topic), offset .. '-0', 'h', ARGV[2 * i], 'p', ARGV[2 * i + 1])
      removed[#removed + 1] = delete_dead(block.id, member, 'acked')
      local named = offset .. ' ' .. block.topic .. ' ' .. text(block.size) .. ' ' .. text(block.records) .. ' ' .. A.now
      call('ZADD', INDEX, offset, named)
      call('ZADD', held(block.group), offset, offset)
      count('g', block.topic, block.group, 'appended', block.records)
      hold(block.group, block.topic, block.size, block.records, 1)
      total('held_bytes', block.size)
      total('next', 1)
      ids[#ids + 1] = block.id
      filed[#filed + 1] = block.group .. '\31' .. named
    end
  end
  ring()
  return done({'ok', 0, ids, removed, filed})
end

-- upkeep: what has outlived its time goes

function F.expire()
  call('HDEL', OPERATIONS, '')
  local removed = {}
  expire_dead(removed)
  for _, group in ipairs(A.groups) do
    local due = call('ZRANGEBYSCORE', expiry(group), '-inf', A.now, 'LIMIT', 0, 1000)
    for _, key in ipairs(due) do
      call('HDEL', state(group), key)
      call('ZREM', expiry(group), key)
    end
  end
  return done({'ok', 0, removed})
end

-- who shares the log: each process says once a second that it lives, and forgets those that were silent for too long

function F.replicas()
  local replicas, about = KEYS[11], KEYS[12]
  local time = call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  call('HDEL', OPERATIONS, '')
  for _, silent in ipairs(call('ZRANGEBYSCORE', replicas, '-inf', text(now - A.silent_ms))) do
    call('ZREM', replicas, silent)
    call('HDEL', about, silent)
  end
  if A.leaves then
    call('ZREM', replicas, A.owner)
    call('HDEL', about, A.owner)
  else
    local since = string.match(call('HGET', about, A.owner) or '', '^%d+') or text(now)
    call('ZADD', replicas, text(now), A.owner)
    call('HSET', about, A.owner, since .. '\31' .. A.about)
  end
  return {'ok', 0, call('HGETALL', about)}
end

-- the shard itself

function F.create()
  local id, format = unpack(call('HMGET', META, 'id', 'format'))
  if not id then
    call('HSET', META, 'id', A.new_id, 'format', A.format, 'shards', A.shards, 'next', A.at_least, 'next_dead', 1, 'n', 0, 'appends', 0,
      'groups', 0, 'epoch', 0, 'owner', '', 'until', 0, 'held_bytes', 0, 'dead_bytes', 0)
    return {'made', A.new_id, A.format, A.shards}
  end
  return {'ok', id, format, call('HGET', META, 'shards')}
end

function F.at_least()
  call('HDEL', OPERATIONS, '')
  if tonumber(call('HGET', META, 'next')) < A.offset then call('HSET', META, 'next', text(A.offset)) end
  return {'ok'}
end

-- Takes or renews the lease where `A.wants`, and says how the shard is: one call a second by every process.
function F.claim()
  local time = call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local id, owner, epoch, ends, n, version = unpack(call('HMGET', META, 'id', 'owner', 'epoch', 'until', 'n', 'groups'))
  if id ~= A.id or tonumber(n) < A.known then return {'gone'} end
  local memory = call('INFO', 'memory')
  local used, most = string.match(memory, 'used_memory:(%d+)'), string.match(memory, 'maxmemory:(%d+)')
  if owner ~= A.owner and (not A.wants or (owner ~= '' and owner ~= A.dead and tonumber(ends) > now)) then
    return {'held', owner, n, version, used, most, tonumber(ends) - now}
  end
  call('HDEL', OPERATIONS, '')
  if owner ~= A.owner then epoch = text(call('HINCRBY', META, 'epoch', 1)) end
  call('HSET', META, 'owner', A.owner, 'until', text(now + A.lease_ms))
  return {'ok', epoch, n, version, used, most}
end

function F.release()
  if call('HGET', META, 'owner') ~= A.owner then return {'ok'} end
  call('HDEL', OPERATIONS, '')
  call('HSET', META, 'owner', '', 'until', '0')
  return {'ok'}
end

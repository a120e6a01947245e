-- The reads that must see one moment, and which call it is; continues redis_script_calls.lua.

function F.look()
  local version = call('HGET', META, 'groups')
  if version ~= A.known_version then return {'groups', call('HGETALL', GROUPS), version} end
  local ends, fresh = {}, {}
  for _, group in ipairs(A.names) do
    local first = call('ZRANGE', held(group), 0, 0)[1]
    if first then ends[#ends + 1] = {group, first, entry(first).time, call('ZRANGE', held(group), -1, -1)[1]} end
  end
  if A.after then
    for _, member in ipairs(call('ZRANGEBYSCORE', INDEX, '(' .. A.after, '+inf', 'LIMIT', 0, A.limit)) do
      local offset, topic = string.match(member, '^(%d+) (%S+)')
      local holders = {member}
      for _, group in ipairs(A.readers[topic] or {}) do
        if call('ZSCORE', held(group), offset) then holders[#holders + 1] = group end
      end
      fresh[#fresh + 1] = holders
    end
  end
  return {'ok', 0, call('HGETALL', META), call('HGETALL', BOOKS), ends, fresh}
end

function F.fetch()
  local rows, size, complete = {}, 0, 1
  local function take(offset)
    local one = entry(offset)
    local found = one and call('XRANGE', stream(one.topic), offset .. '-0', offset .. '-0')[1]
    if not found then return true end
    local header, payload = found[2][2], found[2][4]
    if #rows > 0 and size + #payload > A.max_bytes then return false end
    size = size + #payload
    rows[#rows + 1] = {one.member, header, payload}
    return true
  end
  for i, offset in ipairs(A.offsets) do
    if call('ZSCORE', held(A.group), offset) and not take(offset) then return {'ok', 0, rows, 0, i - 1} end
  end
  if A.up_to ~= '0' then
    local after = '(' .. A.after
    while complete == 1 do
      local page = call('ZRANGEBYSCORE', held(A.group), after, A.up_to, 'LIMIT', 0, 200)
      for _, offset in ipairs(page) do
        if not take(offset) then complete = 0 break end
        after = '(' .. offset
      end
      if #page < 200 then break end
    end
  end
  return {'ok', 0, rows, complete, #A.offsets}
end

local known = answered()
if known then return known end
if A.name ~= 'create' and A.name ~= 'claim' and A.name ~= 'release' then
  local refusal = refused()
  if refusal then return refusal end
end
return F[A.name]()

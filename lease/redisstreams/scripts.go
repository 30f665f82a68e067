package redisstreams

import (
	"strconv"

	"github.com/redis/go-redis/v9"
)

// Each script does what several commands would, with nothing in between. Three rules hold for all of them. Whatever can be
// refused is asked before anything changes. Errors are caught by pcall and returned, since Redis before 7 hides the code of
// an error that leaves a script by itself. The delivery count is always given explicitly, so that no server's idea of when
// XCLAIM counts matters.

// ownership is the beginning of the scripts that act on leases. It defines held(from, step): for the leases in ARGV, each
// an id and a delivery count, it tells which of them are ours. The pending entries are asked for as a range, since
// leases that are settled together usually lie together, and one by one only where there are too many others in between.
const ownership = `
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local function held(from, step)
  local n = math.floor((#ARGV - from + 1) / step)
  local most = 2 * n + 16
  local range = redis.pcall('XPENDING', key, group, ARGV[3], ARGV[4], tostring(most), consumer)
  if range.err then return nil, range end
  local count = {}
  for _, p in ipairs(range) do count[p[1]] = p[4] end
  local cut = #range >= most
  local ours = {}
  for i = 1, n do
    local at = from + (i - 1) * step
    local id = ARGV[at]
    if not count[id] and cut then
      local one = redis.pcall('XPENDING', key, group, id, id, '1', consumer)
      if one.err then return nil, one end
      if one[1] then count[id] = one[1][4] end
    end
    ours[i] = count[id] == tonumber(ARGV[at + 1])
  end
  return ours
end
`

// completeScript acknowledges entries, and deletes them if no other group could still want them.
// ARGV: group, consumer, lowest id, highest id, then id and delivery count of each lease. It returns the lost ones by index.
var completeScript = redis.NewScript(ownership + `
local ours, err = held(5, 2)
if err then return err end
local groups = redis.pcall('XINFO', 'GROUPS', key)
if groups.err then return groups end
local ids, lost = {}, {}
for i, mine in ipairs(ours) do
  if mine then ids[#ids + 1] = ARGV[3 + 2 * i] else lost[#lost + 1] = i end
end
if #ids > 0 then
  local acked = redis.pcall('XACK', key, group, unpack(ids))
  if type(acked) == 'table' and acked.err then return acked end
  if #groups == 1 then
    local deleted = redis.pcall('XDEL', key, unpack(ids))
    if type(deleted) == 'table' and deleted.err then return deleted end
  end
end
return lost
`)

// claimScript hands entries that we hold to a consumer (ourselves to extend them, nobody to give them back) with a new idle
// time, and leaves their delivery counts as they are.
// ARGV: group, consumer, lowest id, highest id, the consumer to claim for, then id, delivery count and idle time of each lease.
// It returns the lost ones by index.
var claimScript = redis.NewScript(ownership + `
local ours, err = held(6, 3)
if err then return err end
local batches, lost = {}, {}
for i, mine in ipairs(ours) do
  if mine then
    local at = 3 + 3 * i
    local kind = ARGV[at + 1] .. ' ' .. ARGV[at + 2]
    local batch = batches[kind]
    if not batch then
      batch = {at = {}, idle = ARGV[at + 2], count = ARGV[at + 1]}
      batches[kind] = batch
    end
    batch.at[#batch.at + 1] = i
  else
    lost[#lost + 1] = i
  end
end
for _, batch in pairs(batches) do
  local args = {'XCLAIM', key, group, ARGV[5], '0'}
  for _, i in ipairs(batch.at) do args[#args + 1] = ARGV[3 + 3 * i] end
  for _, word in ipairs({'IDLE', batch.idle, 'RETRYCOUNT', batch.count, 'JUSTID'}) do args[#args + 1] = word end
  local claimed = redis.pcall(unpack(args))
  if claimed.err then return claimed end
  if #claimed < #batch.at then
    -- Redis 7 drops entries that were deleted from the stream.
    local got = {}
    for _, id in ipairs(claimed) do got[id] = true end
    for _, i in ipairs(batch.at) do
      if not got[ARGV[3 + 3 * i]] then lost[#lost + 1] = i end
    end
  end
end
return lost
`)

// maxWords is the most names and values of an entry that poisonScript copies. Lua passes no more than some 8,000 arguments
// to a command, and would fail the whole script.
const maxWords = 4000

// poisonScript moves entries to the poison stream: copy, then acknowledge, then delete as completeScript does.
// KEYS: stream, poison stream. ARGV: group, consumer, lowest id, highest id, then id, delivery count, reason, attempts and job of each.
// It returns index and error of those that were not moved, an empty error meaning lost, and the indices of those that have
// too many fields for it.
var poisonScript = redis.NewScript(ownership + `
local ours, err = held(5, 5)
if err then return err end
local groups = redis.pcall('XINFO', 'GROUPS', key)
if groups.err then return groups end
local failed, large = {}, {}
for i, mine in ipairs(ours) do
  local at = 5 * i
  local id = ARGV[at]
  local entry = mine and redis.pcall('XRANGE', key, id, id)
  if not mine or (not entry.err and not entry[1]) then
    failed[#failed + 1] = {i, ''}
  elseif entry.err then
    failed[#failed + 1] = {i, entry.err}
  elseif #entry[1][2] > ` + strconv.Itoa(maxWords) + ` then
    large[#large + 1] = i
  else
    local args = {'XADD', KEYS[2], '*'}
    for _, word in ipairs(entry[1][2]) do args[#args + 1] = word end
    for _, word in ipairs({'lighterman-id', id, 'lighterman-reason', ARGV[at + 2],
      'lighterman-attempts', ARGV[at + 3], 'lighterman-job', ARGV[at + 4]}) do args[#args + 1] = word end
    local copied = redis.pcall(unpack(args))
    if type(copied) == 'table' and copied.err then
      failed[#failed + 1] = {i, copied.err}
    else
      redis.call('XACK', key, group, id)
      if #groups == 1 then redis.call('XDEL', key, id) end
    end
  end
end
return {failed, large}
`)

// copiedScript follows, in one transaction, the XADD of a copy to the poison stream, whose last entry is therefore the copy
// if there is one. It removes the original as poisonScript does, or the copy where the lease is not ours.
// KEYS: stream, poison stream. ARGV: group, consumer, id, id, id, delivery count. It returns 1 when the entry was moved,
// 0 when the lease is lost.
var copiedScript = redis.NewScript(ownership + `
local id = ARGV[5]
local last = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', '1')
if last.err then return last end
local words = last[1] and last[1][2] or {}
if words[#words - 7] ~= 'lighterman-id' or words[#words - 6] ~= id then return redis.error_reply('ERR there is no copy') end
local ours, err = held(5, 2)
local groups = err or redis.pcall('XINFO', 'GROUPS', key)
err = err or (groups.err and groups)
local entry = err or redis.pcall('XRANGE', key, id, id)
err = err or (entry.err and entry)
if err or not ours[1] or not entry[1] then
  redis.call('XDEL', KEYS[2], last[1][1])
  return err or 0
end
redis.call('XACK', key, group, id)
if #groups == 1 then redis.call('XDEL', key, id) end
return 1
`)

// expiredScript takes over entries whose lease has expired. ARGV: group, consumer, lease in milliseconds, cursor, count.
// It returns the next cursor, and id, fields and delivery count of each entry.
var expiredScript = redis.NewScript(`
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local found = redis.pcall('XAUTOCLAIM', key, group, consumer, ARGV[3], ARGV[4], 'COUNT', ARGV[5])
if found.err then return found end
local entries, deleted = {}, false
for _, entry in ipairs(found[2]) do
  if entry then
    local pending = redis.call('XPENDING', key, group, entry[1], entry[1], '1')
    if pending[1] then entries[#entries + 1] = {entry[1], entry[2], pending[1][4]} end
  else
    deleted = true
  end
end
if deleted then
  -- Redis 6.2 hands over entries that were deleted from the stream as well, without their id. Nobody can complete them.
  for _, p in ipairs(redis.call('XPENDING', key, group, '-', '+', '1000', consumer)) do
    if #redis.call('XRANGE', key, p[1], p[1]) == 0 then redis.call('XACK', key, group, p[1]) end
  end
end
return {found[1], entries}
`)

// returnedScript takes over entries that were given back and are due. ARGV: group, consumer, lease in milliseconds, the
// consumer that holds what was given back, count. It returns id, fields and delivery count of each entry.
var returnedScript = redis.NewScript(`
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local due = redis.pcall('XPENDING', key, group, 'IDLE', ARGV[3], '-', '+', ARGV[5], ARGV[4])
if due.err then return due end
local entries = {}
if #due == 0 then return entries end
local args, count = {'XCLAIM', key, group, consumer, ARGV[3]}, {}
for _, p in ipairs(due) do
  args[#args + 1] = p[1]
  count[p[1]] = p[4] + 1
end
local claimed = redis.pcall(unpack(args))
if claimed.err then return claimed end
for _, entry in ipairs(claimed) do
  if entry then
    entries[#entries + 1] = {entry[1], entry[2], count[entry[1]]}
    count[entry[1]] = nil
  end
end
for id in pairs(count) do redis.call('XACK', key, group, id) end -- deleted from the stream
return entries
`)

// pruneScript removes a consumer from the group unless it holds entries: with the consumer they would be lost.
// ARGV: group, consumer.
var pruneScript = redis.NewScript(`
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', '1', ARGV[2])
if held.err then return held end
if #held == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
return #held
`)

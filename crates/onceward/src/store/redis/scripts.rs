//! What runs in the server: compare and write in one step. Everything else is a plain command.

use redis::Script;

/// Writes or removes a record if what is there begins as `ARGV[1]` says, which is its version; else returns what is there.
///
/// `KEYS`: record, answer. `ARGV`: version (`''`: nothing may be there), record (`''`: remove), its ms, answer (`''`: none),
/// its ms. Whoever sends it twice finds the second time what the first one wrote.
const PUT: &str = "
local there = redis.call('GETRANGE', KEYS[1], 0, 16)
local over = ARGV[1]
local stage = string.byte(there, 17)
if there ~= over then
  local expired = stage == 2 and string.byte(over, 17) == 5 and string.sub(there, 1, 16) == string.sub(over, 1, 16)
    and redis.call('EXISTS', KEYS[2]) == 0
  if not expired then
    local record = redis.call('GET', KEYS[1])
    if not record then return 0 end
    return {record, redis.call('PTTL', KEYS[1]), stage == 2 and redis.call('GET', KEYS[2])}
  end
end
if ARGV[2] == '' then
  redis.call('UNLINK', KEYS[1], KEYS[2])
  return 1
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
elseif stage == 2 then
  redis.call('UNLINK', KEYS[2])
end
return 1
";

/// A record, what is left of its time, and its answer, as they are at one moment.
const LOOK: &str = "
local record = redis.call('GET', KEYS[1])
if not record then return 0 end
return {record, redis.call('PTTL', KEYS[1]), string.byte(record, 17) == 2 and redis.call('GET', KEYS[2])}
";

/// Lists claims by the moment at which they are looked at, by the server's clock, and strikes out those that ended.
/// `ARGV`: how many are listed, then id and ms of each, then the ids of those that ended.
const LIST: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local listed = 1 + 2 * ARGV[1]
for at = 2, listed, 2 do redis.call('ZADD', KEYS[1], now + ARGV[at + 1], ARGV[at]) end
for at = listed + 1, #ARGV do redis.call('ZREM', KEYS[1], ARGV[at]) end
return 1
";

/// The ids whose moment has come: `ARGV[2]` of them, after the first `ARGV[1]`.
const DUE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])
";

/// How many keys of this node are in which stage, and their bytes; if it has more than `ARGV[1]` keys, how many.
const COUNT: &str = "
local size = redis.call('DBSIZE')
if size > tonumber(ARGV[1]) then return {size} end
local counts = {0, 0, 0, 0, 0, 0}
local at = '0'
local seen = {}
repeat
  local found = redis.call('SCAN', at, 'MATCH', 'onceward:{*', 'COUNT', 1000)
  at = found[1]
  for _, key in ipairs(found[2]) do
    if not seen[key] then
      seen[key] = true
      counts[6] = counts[6] + #key + redis.call('STRLEN', key)
      if string.sub(key, -1) == '}' then
        local stage = string.byte(redis.call('GETRANGE', key, 16, 16))
        if stage == 2 and redis.call('EXISTS', key .. ':answer') == 0 then stage = 5 end
        if stage and counts[stage] then counts[stage] = counts[stage] + 1 end
      end
    end
  end
until at == '0'
return counts
";

/// A script and its hash.
pub(super) struct Code {
    pub(super) text: &'static str,
    pub(super) hash: String,
}

impl Code {
    fn new(text: &'static str) -> Self {
        Self { text, hash: Script::new(text).get_hash().to_owned() }
    }
}

/// All of them.
pub(super) struct Scripts {
    pub(super) put: Code,
    pub(super) look: Code,
    pub(super) list: Code,
    pub(super) due: Code,
    pub(super) count: Code,
}

impl Default for Scripts {
    fn default() -> Self {
        let [put, look, list, due, count] = [PUT, LOOK, LIST, DUE, COUNT].map(Code::new);
        Self { put, look, list, due, count }
    }
}

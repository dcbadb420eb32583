//! What runs in the server: compare and write in one step. Everything else is a plain command.
//!
//! A record's answer stands in it or beside it (see `value.rs`); the key beside it is the record's with `:answer`, which is in
//! the same slot. While that slot moves from one node of a cluster to another, a key is on either, each by itself. A script that
//! names both keys is run by a node that has both, or by none; one that names the record alone may find the answer where it is,
//! and does not know where it is not.

use redis::Script;

/// Whether the answer of a completed record is still to be had, as far as this node sees. `head`: at least the first 25 bytes.
macro_rules! kept {
    () => {
        "
local function kept(key, head)
  local stage = string.byte(head, 17)
  if stage == 2 then return redis.pcall('EXISTS', key .. ':answer') == 1 end
  if stage ~= 6 or #head < 25 then return false end
  local time = redis.call('TIME')
  return struct.unpack('>I8', head, 18) > time[1] * 1000 + math.floor(time[2] / 1000)
end
"
    };
}

/// What a reader is told: the record, what is left of its time in ms, whether its answer is still to be had, and the answer
/// if it stands beside it.
macro_rules! tell {
    () => {
        "
local function tell(key)
  local record = redis.call('GET', key)
  if not record then return 0 end
  local kept = kept(key, record)
  return {record, redis.call('PTTL', key), kept and 1 or 0,
    kept and string.byte(record, 17) == 2 and redis.call('GET', key .. ':answer')}
end
"
    };
}

/// Writes or removes records, each if what is there is at its version; returns 1 if it did all, else of each 1, or what is there,
/// or 2 where that is no record at all, which hides no other.
///
/// `KEYS`: records; behind a single one, where its answer may be written, removed or missed: the key of that. `ARGV`, for each:
/// version (`''`: nothing may be there), record (`''`: remove), its ms. Behind that of a single one, where an answer goes beside
/// it: that, its ms. Whoever sends it twice finds the second time what the first one wrote. The answer is written, or removed,
/// before its record, so that whatever fails leaves the record as it was.
const PUT: &str = concat!(
    kept!(),
    tell!(),
    "
local function same(key, there, over)
  local stage = string.byte(there, 17)
  if stage ~= 2 and stage ~= 6 or string.sub(there, 1, 16) ~= string.sub(over, 1, 16) then return false end
  local was = string.byte(over, 17)
  return was == 2 or was == 5 and not kept(key, redis.call('GETRANGE', key, '0', '24'))
end
local call, try = redis.call, redis.pcall
local count = math.floor(#ARGV / 3)
local answer, answer_ms = ARGV[count * 3 + 1], ARGV[count * 3 + 2]
local told
local function tells(at, what)
  if not told then
    told = {}
    for other = 1, count do told[other] = 1 end
  end
  told[at] = what
end
for at = 1, count do
  local key, over, record = KEYS[at], ARGV[at * 3 - 2], ARGV[at * 3 - 1]
  local there = try('GETRANGE', key, '0', '16')
  if type(there) ~= 'string' then
    tells(at, 2)
  elseif there ~= over and not same(key, there, over) then
    tells(at, tell(key))
  else
    if answer then
      call('SET', key .. ':answer', answer, 'PX', answer_ms)
    elseif string.byte(there, 17) == 2 then
      call('UNLINK', key .. ':answer')
    end
    if record == '' then
      call('UNLINK', key)
    else
      call('SET', key, record, 'PX', ARGV[at * 3])
    end
  end
end
return told or 1
"
);

/// A record and its answer, as they are at one moment. `KEYS`: the record; where it must be known that there is no answer beside
/// it, the key of that.
const LOOK: &str = concat!(kept!(), tell!(), "return tell(KEYS[1])");

/// The first bytes of many records: what each is, and when its answer's time ends. What is no record hides no other.
const HEADS: &str = "
local heads = {}
for at, key in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', key, '0', '24')
  heads[at] = type(head) == 'string' and head or ''
end
return heads
";

/// Takes the answers whose time is over out of their records, and returns which of the records still have one: their places
/// in `KEYS`. It makes room, so that it may run where there is none.
const SHRINK: &str = "#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local later = {}
for at, key in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', key, '0', '28')
  if type(head) == 'string' and #head == 29 and string.byte(head, 17) == 6 then
    local ends, length = struct.unpack('>I8>I4', head, 18)
    if ends <= now then
      local left = redis.call('GETRANGE', key, 29, 28 + length)
      -- One that was cut says so to whoever asks for it.
      if #left == length then
        redis.call('SET', key, string.sub(head, 1, 16) .. string.char(2) .. left, 'KEEPTTL')
      end
    else
      later[#later + 1] = at
    end
  end
end
return later
";

/// Takes at most `ARGV[1]` members of a list whose moment has come, and puts each off by `ARGV[2]` ms: nobody else takes it
/// meanwhile, and if whoever took it dies, another does.
const TAKE: &str = "#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(taken) do redis.call('ZADD', KEYS[1], now + ARGV[2], member) end
return taken
";

/// The members whose moment has come: `ARGV[2]` of them, after the first `ARGV[1]`.
const DUE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])
";

/// How many keys of this node are in which stage, and their bytes; if it has more than `ARGV[1]` keys, how many.
const COUNT: &str = concat!(
    kept!(),
    "
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
        local head = redis.call('GETRANGE', key, '0', '24')
        local stage = string.byte(head, 17)
        if stage == 2 or stage == 6 then stage = kept(key, head) and 2 or 5 end
        if stage and stage <= 5 then counts[stage] = counts[stage] + 1 end
      end
    end
  end
until at == '0'
return counts
"
);

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
    pub(super) heads: Code,
    pub(super) shrink: Code,
    pub(super) take: Code,
    pub(super) due: Code,
    pub(super) count: Code,
}

impl Default for Scripts {
    fn default() -> Self {
        let [put, look, heads, shrink, take, due, count] = [PUT, LOOK, HEADS, SHRINK, TAKE, DUE, COUNT].map(Code::new);
        Self { put, look, heads, shrink, take, due, count }
    }
}

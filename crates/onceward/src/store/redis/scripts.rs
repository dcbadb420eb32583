//! What runs in the server: compare and write in one step. Everything else is a plain command.
//!
//! A record's answer stands in it or beside it (see `value.rs`); the key beside it is the record's with `:answer`, which is in
//! the same slot.

use redis::Script;

/// Whether the answer of a completed record is still to be had. `head`: at least the first 25 bytes.
macro_rules! kept {
    () => {
        "
local function kept(key, head)
  local stage = string.byte(head, 17)
  if stage == 2 then return redis.call('EXISTS', key .. ':answer') == 1 end
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
local record = redis.call('GET', KEYS[1])
if not record then return 0 end
return {record, redis.call('PTTL', KEYS[1]), kept(KEYS[1], record) and 1 or 0,
  string.byte(record, 17) == 2 and redis.call('GET', KEYS[1] .. ':answer')}
"
    };
}

/// Writes or removes a record if what is there is at the version `ARGV[1]`; else returns what is there.
///
/// `KEYS`: record. `ARGV`: version (`''`: nothing may be there), record (`''`: remove), its ms, and where an answer goes beside
/// it: that, its ms. Whoever sends it twice finds the second time what the first one wrote.
const PUT: &str = concat!(
    "
local there = redis.call('GETRANGE', KEYS[1], '0', '16')
local stage = string.byte(there, 17)
if there ~= ARGV[1] then",
    kept!(),
    "
  local over = string.byte(ARGV[1], 17)
  local same = (stage == 2 or stage == 6) and string.sub(there, 1, 16) == string.sub(ARGV[1], 1, 16)
    and (over == 2 or over == 5 and not kept(KEYS[1], redis.call('GETRANGE', KEYS[1], '0', '24')))
  if not same then",
    tell!(),
    "
  end
end
if ARGV[2] == '' then
  redis.call('UNLINK', KEYS[1], KEYS[1] .. ':answer')
  return 1
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if ARGV[4] then
  redis.call('SET', KEYS[1] .. ':answer', ARGV[4], 'PX', ARGV[5])
elseif stage == 2 then
  redis.call('UNLINK', KEYS[1] .. ':answer')
end
return 1
"
);

/// A record and its answer, as they are at one moment.
const LOOK: &str = concat!(kept!(), tell!());

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

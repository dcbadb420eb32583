//! Lua scripts that run in the server: compare and write in one step. Everything else is a plain
//! command.
//!
//! A record's response is inline or external (see `value.rs`).
//! The key of an external response is the record's key with `:answer`, which hashes to the same
//! slot.
//! While a slot migrates between two nodes of a cluster, each of the two keys may be on either
//! node.
//! A script that declares both keys then runs only on a node that has both.
//! A script that declares only the record's key cannot tell "no response" from "response not
//! migrated yet".

use redis::Script;

/// Lua function that returns whether the response of a completed record is still available on this
/// node.
///
/// `head` holds at least the first 25 bytes of the record.
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

/// Lua function that returns what a reader needs.
///
/// The result is the record, its remaining TTL in ms, whether its response is available, and the
/// external response.
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

/// Writes or removes records, each only if the stored one is at the expected version
/// (compare-and-swap).
///
/// Returns 1 if all were applied.
/// Otherwise returns one result per record: 1, or the record found, or 2 if the key holds no
/// record.
/// A key that holds no record does not affect the others.
///
/// `KEYS`: the records. A single record may be followed by the key of its external response.
/// That key is declared if the response is written, removed or expected to be missing.
/// `ARGV`, for each record: expected version (`''`: none must exist), record (`''`: remove), its
/// TTL in ms.
/// A single record may be followed by its external response and the TTL of that in ms.
///
/// A script that is sent twice finds the second time what the first one wrote.
/// The response is written or removed before its record, so a failure leaves the record as it was.
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

/// Reads a record and its response in one step.
///
/// `KEYS`: the record, and the key of its external response if its absence must be certain.
const READ: &str = concat!(kept!(), tell!(), "return tell(KEYS[1])");

/// Reads the headers of many records. A key that holds no record yields an empty header.
const HEADS: &str = "
local heads = {}
for at, key in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', key, '0', '24')
  heads[at] = type(head) == 'string' and head or ''
end
return heads
";

/// Removes expired inline responses from their records. Returns the indexes in `KEYS` of those not
/// expired yet.
///
/// It frees memory, so it may run on a full server.
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

/// Takes up to `ARGV[1]` members of a set whose score has passed, and postpones each by `ARGV[2]`
/// ms.
///
/// Nobody else takes them meanwhile. If the taker dies, another takes them later.
const TAKE: &str = "#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(taken) do redis.call('ZADD', KEYS[1], now + ARGV[2], member) end
return taken
";

/// Returns `ARGV[2]` members whose score has passed, after skipping `ARGV[1]`.
const DUE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])
";

/// Counts the keys of this node by phase, and their bytes. Above `ARGV[1]` keys it returns only
/// their number.
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

/// Script and its SHA-1 hash.
pub(super) struct Code {
    pub(super) text: &'static str,
    pub(super) hash: String,
}

impl Code {
    fn new(text: &'static str) -> Self {
        Self { text, hash: Script::new(text).get_hash().to_owned() }
    }
}

/// Set of all scripts.
pub(super) struct Scripts {
    pub(super) put: Code,
    pub(super) read: Code,
    pub(super) heads: Code,
    pub(super) shrink: Code,
    pub(super) take: Code,
    pub(super) due: Code,
    pub(super) count: Code,
}

impl Default for Scripts {
    fn default() -> Self {
        let [put, read, heads, shrink, take, due, count] = [PUT, READ, HEADS, SHRINK, TAKE, DUE, COUNT].map(Code::new);
        Self { put, read, heads, shrink, take, due, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes name the scripts in the servers' caches, and the scripts define the stored format.
    #[test]
    fn script_hashes_do_not_change() {
        let Scripts { put, read, heads, shrink, take, due, count } = Scripts::default();
        let hashes = [put, read, heads, shrink, take, due, count].map(|script| script.hash);
        assert_eq!(
            hashes,
            [
                "9985679638d85955dae7e1ad2b920d7d0e8262ff",
                "928d87d686e651d5ebf43ac5a61f82aa6986f024",
                "e1e05116a1c82d6e2ea017c36c5fbb08faffafb2",
                "0ea8c34d8ba5ab01bcb786c40fd87a21a51a59f9",
                "a4959a6edf63270ca3fe1eaac93054c963be8a3d",
                "8edf96642cca5d0898e937324ff60e88431df2a1",
                "dfd63bac5dfd30873e797526316a07e6a8242255"
            ]
        );
    }
}

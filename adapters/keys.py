"""Every key in Redis: its name, its owner and its TTL. One hash tag each, so that no command spans two slots."""

from __future__ import annotations

from heliograph.auth import ACCESS_TOKEN_S

CONNECTION_S = 2 * 3600 + 5 * 60  # a socket lives two hours at most
ROOM_LIVE_S = CONNECTION_S
LAST_SEEN_S = 30 * 86_400
BOARD_S = 300
HEAD_S = 86_400
PRESENCE_GATE_MS = 1_000
CALL_S, ENDED_CALL_S = 6 * 3600, 120
ENDED_SESSION_S = ACCESS_TOKEN_S + 60  # longer than any access token lives


def connections(tenant_id: str, account_id: str) -> str:
    """Hash: connection_id -> device, generation, status, seen_at_ms. Owner: presence."""
    return f"hg:{{{tenant_id}/{account_id}}}:connections"


def last_seen(tenant_id: str, account_id: str) -> str:
    """Text: milliseconds. Owner: presence."""
    return f"hg:{{{tenant_id}/{account_id}}}:last_seen"


def board(tenant_id: str, account_id: str, device_id: str, call_id: str) -> str:
    """JSON: the decision board's state of one sender in one call. Owner: bitrate."""
    return f"hg:{{{tenant_id}/{account_id}}}:board:{device_id}:{call_id}"


def ticket(tenant_id: str, account_id: str, jti: str) -> str:
    """Mark: a ticket or an assertion was used. Owner: auth."""
    return f"hg:{{{tenant_id}/{account_id}}}:ticket:{jti}"


def last_seq(tenant_id: str, account_id: str, connection_id: str) -> str:
    """Text: the highest client_seq of a socket that was handled. Owner: signaling."""
    return f"hg:{{{tenant_id}/{account_id}}}:seq:{connection_id}"


def limit_of_account(tenant_id: str, account_id: str, name: str, device_id: str = "") -> str:
    """Text: when the bucket is full again, microseconds. Owner: limits. Expires when it is full."""
    return f"hg:{{{tenant_id}/{account_id}}}:limit:{name}:{device_id}"


def limit_of_stranger(owner: str, name: str) -> str:
    """The same for an address or a login; `owner` says which. Owner: limits."""
    return f"hg:{{{owner}}}:limit:{name}"


def ended_sessions(tenant_id: str, account_id: str) -> str:
    """Hash: sid -> 1 for a session whose access tokens must not be taken any more; `*` -> tokens issued before these milliseconds are stale. Owner: auth."""
    return f"hg:{{{tenant_id}/{account_id}}}:ended"


def socket_auth(tenant_id: str, account_id: str, connection_id: str) -> str:
    """JSON: the authentication that a socket was given after its ticket's. Owner: auth."""
    return f"hg:{{{tenant_id}/{account_id}}}:auth:{connection_id}"


def presence_gate(tenant_id: str, account_id: str) -> str:
    """Mark: presence was told less than a second ago. Owner: presence."""
    return f"hg:{{{tenant_id}/{account_id}}}:presence_gate"


def presence_pending(tenant_id: str, account_id: str) -> str:
    """Mark: a later telling of presence is queued. Owner: presence."""
    return f"hg:{{{tenant_id}/{account_id}}}:presence_pending"


def call(tenant_id: str, room_id: str, call_id: str) -> str:
    """JSON: the record of a call. Owner: signaling."""
    return f"hg:{{{tenant_id}/{room_id}}}:call:{call_id}"


def room_roster(tenant_id: str, room_id: str) -> str:
    """Hash: epoch and version of the live roster; a new epoch after Redis lost it. Owner: rooms."""
    return f"hg:{{{tenant_id}/{room_id}}}:roster"


def room_live(tenant_id: str, room_id: str) -> str:
    """Hash: connection_id -> account, device. Owner: rooms."""
    return f"hg:{{{tenant_id}/{room_id}}}:live"


def room_head(tenant_id: str, room_id: str, epoch: str) -> str:
    """Text: the stream's head as a hint; MongoDB has the truth. Owner: streams."""
    return f"hg:{{{tenant_id}/{room_id}}}:head:{epoch}"


# Scripts. Both take the live hash and the roster hash of one room, and answer [changed, epoch, version, live hash].
_ROSTER = """
local function answer(changed, fresh_epoch, ttl)
  if redis.call('HSETNX', KEYS[2], 'epoch', fresh_epoch) == 1 then redis.call('HSET', KEYS[2], 'version', 0) end
  if changed > 0 then redis.call('HINCRBY', KEYS[2], 'version', 1) end
  redis.call('EXPIRE', KEYS[1], ttl)
  redis.call('EXPIRE', KEYS[2], ttl)
  return {changed, redis.call('HGET', KEYS[2], 'epoch'), redis.call('HGET', KEYS[2], 'version'), redis.call('HGETALL', KEYS[1])}
end
"""
ENTER_ROOM = _ROSTER + "return answer(redis.call('HSET', KEYS[1], ARGV[3], ARGV[4]), ARGV[1], ARGV[2])"
LEAVE_ROOM = _ROSTER + "return answer(redis.call('HDEL', KEYS[1], unpack(ARGV, 3)), ARGV[1], ARGV[2])"

# Token buckets, each kept as the time at which it is full again: a full one needs no key. Takes one token of each bucket, or of none: then it answers which
# bucket lacks one and for how many microseconds. KEYS from `first` on are buckets, ARGV from `arg` on their intervals and bursts.
_TAKE = """
local function take(first, arg)
  local time = redis.call('TIME')
  local now, lacking, wait, full = time[1] * 1000000 + time[2], 0, 0, {}
  for i = first, #KEYS do
    local interval, burst = tonumber(ARGV[arg + 2 * (i - first)]), tonumber(ARGV[arg + 2 * (i - first) + 1])
    full[i] = math.max(tonumber(redis.call('GET', KEYS[i]) or '') or 0, now) + interval
    local over = full[i] - now - burst * interval
    if over > wait then lacking, wait = i - first + 1, over end
  end
  if lacking == 0 then
    for i = first, #KEYS do redis.call('SET', KEYS[i], string.format('%.0f', full[i]), 'PX', math.ceil((full[i] - now) / 1000)) end
  end
  return lacking, wait
end
"""
TAKE = _TAKE + "return {take(1, 1)}"

# What stands before every request and frame, in one command: [lacking, wait, session ended, stale before, authentication, last client_seq].
ADMIT = (
    _TAKE
    + """
local lacking, wait = take(4, 2)
local ended = redis.call('HMGET', KEYS[1], ARGV[1], '*')
return {lacking, wait, ended[1] or '', ended[2] or '', redis.call('GET', KEYS[2]) or '', redis.call('GET', KEYS[3]) or ''}
"""
)

# A call's record is written only over the version that was read (0: none).
REPLACE_CALL = """
local stored = redis.call('GET', KEYS[1])
if (stored and cjson.decode(stored).version or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

# The highest handled client_seq only rises; a socket that Redis does not know has none.
ADVANCE = """
local last = redis.call('GET', KEYS[1])
if last and tonumber(last) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
"""


HUB_LEASES = "hg:{hubs}:leases"
"""Sorted set: hub -> end of its lease, milliseconds of the server's clock. Owner: the event hub. Expires with its last lease."""

LIVE_HUBS = """
local now = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], now[1] * 1000 + math.floor(now[2] / 1000), '+inf')
"""

RENEW_LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
return redis.call('PEXPIREAT', KEYS[1], math.floor(last[2]) + 1000)
"""


def hub_jobs(hub: str) -> str:
    """Channel, not a key: the jobs of one hub. Owner: the event hub."""
    return f"hg:{{hub/{hub}}}:jobs"


RELAY_LEASES = "hg:{relays}:leases"
"""Sorted set: node -> end of its lease, milliseconds of the server's clock. Owner: the registry of relays. Expires with its last lease."""

RELAY_NODES = "hg:{relays}:nodes"
"""Hash: node -> JSON of what it says of itself. Owner: the registry of relays. Expires with its last lease."""

BEAT_RELAY = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)) do redis.call('HDEL', KEYS[2], ended) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
local last = math.floor(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]) + 1000
redis.call('PEXPIREAT', KEYS[1], last)
return redis.call('PEXPIREAT', KEYS[2], last)
"""

LIVE_RELAYS = """
local time = redis.call('TIME')
local live = redis.call('ZRANGEBYSCORE', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), '+inf')
if #live == 0 then return {} end
return redis.call('HMGET', KEYS[2], unpack(live))
"""

REMOVE_RELAY = """
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
"""


def relay_tenant(account_id: str) -> str:
    """Text: the tenant of an account that was given relay credentials, whose user name does not say it. Owner: relay credentials. Lives as long as they."""
    return f"hg:{{relay/{account_id}}}:tenant"

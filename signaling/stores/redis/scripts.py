"""
What Redis does in one step, as Lua, and the keys that it does it to.

All keys of a meeting have its id as their hash tag, so that they are on one node of a cluster; a script gets every key
that it uses. Times are in milliseconds, and Redis' own.
"""

from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from signaling.identifiers import RoomId
from signaling.stores.contract import Kept

PREFIX: Final = "moderation"
"""Of every key and channel."""
ABOUT: Final = f"{PREFIX}:about"
"""A hash: `format` of what is kept, and `epoch`, which is made with it and so goes when everything does."""
_ALL: Final = f"{PREFIX}:{{all}}"
NODES: Final = f"{_ALL}:nodes"
"""A sorted set: each node, by when it counts as dead."""
ROOMS: Final = f"{_ALL}:rooms"
"""A set: every meeting that is kept; perhaps some that are not any more."""
LOOKS: Final = f"{_ALL}:looks"
"""A hash: the node that looks after a meeting."""
LOOKED: Final = f"{_ALL}:looked"
"""A sorted set, in the order of its members: `NODE ROOM` of the same."""
ALONE: Final = f"{_ALL}:alone"
"""A set: meetings after which no node looks that was there at the last beat of any."""
DIRECTORY: Final = (NODES, ROOMS, LOOKS, LOOKED, ALONE)
PROBE: Final = f"{PREFIX}:probe"
"""Written to see that writing works."""
NEWS: Final = f"{PREFIX}:news"
"""
The channel of what happened: `commit ROOM REVISION BEFORE ENTRY BYTES` with ids of entries and the size of a snapshot,
then a line feed and what was appended, unless it is long; `commit ROOM` alone of a meeting that was forgotten; `turn
ROOM WAITER` for whose turn it is.
"""


def kept_key(kind: Kept) -> str:
    """A sorted set: each key of a kind, by when it is kept no longer."""
    return f"{PREFIX}:kept:{kind.value}"


@dataclass(frozen=True, slots=True)
class Keys:
    """
    The keys of one meeting.

    Attributes:
        head: A hash: `revision` and `entry` (its id) of the newest entry, `life` (the id of the first), `snapshot`
            (its revision), `weight` (bytes of the entries since), `snapshot_bytes`, `mark` and `marked_at` (up to where
            the log may be cut once that is long ago), `forgotten`.
        log: A stream: an entry of revision 7 is 7-1.
        snapshot: A record as bytes.
        ids: A sorted set: ids of entries, by revision.
        audit: A stream: the audit entry of revision 7 is 7-1.
        commands: A sorted set: ids of commands that have an audit entry, by revision.
        ended: The life of the last meeting of that name that was forgotten.
        turn: A hash: `holder`, `until`, `fence`.
        waiting: A list: who waits for a turn.
    """

    head: str
    log: str
    snapshot: str
    ids: str
    audit: str
    commands: str
    ended: str
    turn: str
    waiting: str

    @classmethod
    def of(cls, room: RoomId) -> "Keys":
        """The keys of a meeting."""
        return cls(*(f"{PREFIX}:{{{room}}}:{name}" for name in cls.__slots__))


class Script:
    """A script, as it is sent and as Redis knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

APPEND: Final = Script(
    _NOW
    + """
local head, log, snapshot, ids, audit, commands, turn =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local revision, after, id, data, fence = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local command, entry, most, record, keeps_ms, news, room, carried =
    ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10]), ARGV[11], ARGV[12], tonumber(ARGV[13])

if redis.call('ZSCORE', ids, id) then return 'repeated' end
if fence ~= '' then
    local taken = redis.call('HMGET', turn, 'fence', 'holder')
    if taken[1] ~= fence or not taken[2] or taken[2] == '' then return 'lost' end
end
local known = redis.call('HMGET', head, 'revision', 'entry', 'forgotten', 'marked_at', 'mark')
local is_first = not known[1] or known[3]
if (is_first and 0 or tonumber(known[1])) ~= revision - 1 or (is_first and '' or known[2]) ~= after then
    return 'stale'
end
if is_first then
    redis.call('DEL', head, log, snapshot, ids, audit, commands)
    redis.call('HSET', head, 'life', id, 'mark', 0, 'marked_at', now)
    known[4], known[5] = now, '0'
end
redis.call('XADD', log, revision .. '-1', 'i', id, 'd', data)
redis.call('HSET', head, 'revision', revision, 'entry', id)
redis.call('ZADD', ids, revision, id)
redis.call('ZREMRANGEBYRANK', ids, 0, -1025)
if record ~= '' then
    redis.call('SET', snapshot, record)
    redis.call('HSET', head, 'snapshot', revision, 'weight', 0, 'snapshot_bytes', #record)
    if now - tonumber(known[4]) >= keeps_ms then
        redis.call('XTRIM', log, 'MINID', (tonumber(known[5]) + 1) .. '-1')
        redis.call('HSET', head, 'mark', revision, 'marked_at', now)
    end
else
    redis.call('HINCRBY', head, 'weight', #data)
end
if command ~= '' then
    redis.call('XADD', audit, 'MAXLEN', '=', most, revision .. '-1', 'd', entry)
    redis.call('ZADD', commands, revision, command)
    local oldest = redis.call('XRANGE', audit, '-', '+', 'COUNT', 1)
    redis.call('ZREMRANGEBYSCORE', commands, '-inf', '(' .. string.match(oldest[1][1], '%d+'))
end
redis.call('PUBLISH', news, table.concat({'commit', room, revision, is_first and '-' or after, id, #record}, ' ')
    .. '\\n' .. (#data <= carried and data or ''))
return 'appended'
"""
)
"""
Append an entry, unless it is no longer the next (`stale`), its turn is over (`lost`), or it is there (`repeated`).

Arguments: revision, id of the entry before, its own, data, fence or nothing, command id and audit entry or nothing, how
many of those are kept, snapshot or nothing, for how long entries are kept, channel, meeting, how many bytes are
published at most.
"""

READ: Final = Script(
    """
local head, log, snapshot, ended = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local known, id = tonumber(ARGV[1]), ARGV[2]
local is = redis.call(
    'HMGET', head, 'revision', 'entry', 'forgotten', 'life', 'weight', 'snapshot_bytes', 'snapshot')
local function text(value) return value or '' end
local about = {text(is[1]), text(is[2]), text(is[3]), text(is[4]), text(is[5]), text(is[6]),
    text(redis.call('GET', ended))}
if not is[1] then return {'none', about} end
if known > 0 then
    local at = redis.call('XRANGE', log, known .. '-1', known .. '-1')
    if at[1] and at[1][2][2] == id then
        return {'after', about, redis.call('XRANGE', log, (known + 1) .. '-1', '+')}
    end
end
if is[3] then return {'none', about} end
if known == 0 and not is[7] then return {'after', about, redis.call('XRANGE', log, '-', '+')} end
local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)
local since = tonumber(is[7] or '0')
return {'whole', about, redis.call('XRANGE', log, (since + 1) .. '-1', '+'),
    text(redis.call('GET', snapshot)), tostring(since), first[1] and string.match(first[1][1], '%d+') or '0'}
"""
)
"""
What follows the entry of this revision and id, if that is in the log; else the whole meeting, if there is one.

Gives `none`, `after` or `whole`; what is in the head, and the life that ended last; entries; a snapshot, its revision,
and that of the oldest entry that is kept.
"""

FORGET: Final = Script(
    """
local head, ended = KEYS[1], KEYS[2]
local is = redis.call('HMGET', head, 'revision', 'forgotten', 'life', 'entry')
if not is[1] or is[2] or is[1] ~= ARGV[1] or is[4] ~= ARGV[2] then return 0 end
redis.call('HSET', head, 'forgotten', 1)
redis.call('SET', ended, is[3], 'PX', ARGV[4])
for number = 3, 5 do redis.call('PEXPIRE', KEYS[number], ARGV[3]) end
for number = 6, #KEYS do redis.call('DEL', KEYS[number]) end
redis.call('PEXPIRE', head, ARGV[3])
redis.call('PUBLISH', ARGV[5], 'commit ' .. ARGV[6])
return 1
"""
)
"""Forget a meeting, if this is its newest entry; its log stays for a while, for whoever follows."""

PUT_ASIDE: Final = Script(
    """
if redis.call('HGET', KEYS[1], 'entry') ~= ARGV[1] then return 0 end
for number = 1, #KEYS do
    if redis.call('EXISTS', KEYS[number]) == 1 then redis.call('RENAME', KEYS[number], KEYS[number] .. ARGV[2]) end
end
return 1
"""
)
"""Keep what cannot be read under other keys, unless it has changed since."""

AUDIT: Final = Script(
    """
local before = '+'
if ARGV[2] ~= '' then
    local revision = redis.call('ZSCORE', KEYS[2], ARGV[2])
    if not revision then return {} end
    before = '(' .. string.format('%.0f', revision) .. '-1'
end
return redis.call('XREVRANGE', KEYS[1], before, '-', 'COUNT', ARGV[1])
"""
)
"""The newest audit entries, or those before the one of a command."""

AUDITED: Final = Script(
    """
local revision = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not revision then return {} end
local id = string.format('%.0f', revision) .. '-1'
return redis.call('XRANGE', KEYS[1], id, id)
"""
)
"""The audit entry of a command."""

KEEP_ONCE: Final = Script(
    """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not known or tonumber(known) < tonumber(ARGV[2]) then redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]) end
return known and 0 or 1
"""
)
"""Keep a key until then, as of now; whether it was not kept before."""

_DIRECTORY: Final = """
local nodes, rooms, looks, looked, alone = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
"""

BEAT: Final = Script(
    _DIRECTORY
    + """
redis.call('ZADD', nodes, ARGV[2], ARGV[1])
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', ARGV[3])) do
    for _, held in ipairs(redis.call('ZRANGEBYLEX', looked, '[' .. dead .. ' ', '(' .. dead .. '!')) do
        local room = string.sub(held, #dead + 2)
        redis.call('ZREM', looked, held)
        redis.call('HDEL', looks, room)
        redis.call('SADD', alone, room)
    end
    redis.call('ZREM', nodes, dead)
end
return redis.call('ZRANGE', nodes, 0, -1)
"""
)
"""A node lives until then, as of now; all that live. Nobody looks any more after what the others looked after."""

LOOK_AFTER: Final = Script(
    _DIRECTORY
    + """
local room, node = ARGV[1], ARGV[2]
local holder = redis.call('HGET', looks, room)
if holder and holder ~= node then
    local ends = redis.call('ZSCORE', nodes, holder)
    if ends and tonumber(ends) > tonumber(ARGV[3]) then return 0 end
    redis.call('ZREM', looked, holder .. ' ' .. room)
end
redis.call('HSET', looks, room, node)
redis.call('ZADD', looked, 0, node .. ' ' .. room)
if redis.call('ZSCORE', nodes, node) then redis.call('SREM', alone, room) end
return 1
"""
)
"""Have a node look after a meeting, unless another one does that lives as of now."""

LIST: Final = Script(
    _DIRECTORY
    + """
local room, node = ARGV[1], ARGV[2]
redis.call('SADD', rooms, room)
if redis.call('HEXISTS', looks, room) == 1 then return end
if node ~= '' and redis.call('ZSCORE', nodes, node) then
    redis.call('HSET', looks, room, node)
    redis.call('ZADD', looked, 0, node .. ' ' .. room)
    redis.call('SREM', alone, room)
else
    redis.call('SADD', alone, room)
end
"""
)
"""A meeting is kept; if nobody looks after it, this node does if it lives."""

DELIST: Final = Script(
    _DIRECTORY
    + """
local room = ARGV[1]
local holder = redis.call('HGET', looks, room)
if holder then redis.call('ZREM', looked, holder .. ' ' .. room) end
redis.call('HDEL', looks, room)
redis.call('SREM', alone, room)
redis.call('SREM', rooms, room)
"""
)
"""A meeting is kept no longer."""

TAKE: Final = Script(
    _NOW
    + """
local turn, waiting = KEYS[1], KEYS[2]
local me, lease_ms = ARGV[1], tonumber(ARGV[2])
local is = redis.call('HMGET', turn, 'holder', 'until', 'fence', 'taken_over')
local holder, ends = is[1] or '', tonumber(is[2] or '0')
if holder == me then
    redis.call('HSET', turn, 'until', now + lease_ms)
    return {1, is[3], is[4] or '0'}
end
if holder ~= '' and ends > now then
    redis.call('LREM', waiting, 0, me)
    redis.call('RPUSH', waiting, me)
    redis.call('PEXPIRE', waiting, 3600000)
    return {0, tostring(ends - now)}
end
local fence = math.max(tonumber(is[3] or '0') + 1, time[1] * 1000000 + time[2])
local taken_over = holder ~= '' and '1' or '0'
redis.call('LREM', waiting, 0, me)
redis.call('HSET', turn, 'holder', me, 'until', now + lease_ms, 'fence', string.format('%.0f', fence),
    'taken_over', taken_over)
redis.call('PEXPIRE', turn, 3600000)
return {1, string.format('%.0f', fence), taken_over}
"""
)
"""Take a turn, or wait for it: whether it is taken; its fence and whether it was taken over, or when to try again."""

RENEW: Final = Script(
    _NOW
    + """
local is = redis.call('HMGET', KEYS[1], 'holder', 'fence')
if is[1] ~= ARGV[1] or is[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'until', now + tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], 3600000)
return 1
"""
)
"""Keep a turn for longer; whether it was still had."""

RELEASE: Final = Script(
    _NOW
    + """
local turn, waiting = KEYS[1], KEYS[2]
redis.call('LREM', waiting, 0, ARGV[1])
local is = redis.call('HMGET', turn, 'holder', 'fence')
if is[1] ~= ARGV[1] then return 0 end
local following = redis.call('LPOP', waiting)
if not following then
    redis.call('HSET', turn, 'holder', '', 'until', 0)
    return 1
end
local fence = math.max(tonumber(is[2]) + 1, time[1] * 1000000 + time[2])
redis.call('HSET', turn, 'holder', following, 'until', now + tonumber(ARGV[2]),
    'fence', string.format('%.0f', fence), 'taken_over', '0')
redis.call('PUBLISH', ARGV[3], 'turn ' .. ARGV[4] .. ' ' .. following)
return 1
"""
)
"""Give a turn to who waits for it longest, or stop waiting for it."""

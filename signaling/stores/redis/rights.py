"""What a user of Redis must be permitted: tried once, so that what lacks is told at the start and not by a meeting."""

from typing import Final

from redis.asyncio.cluster import RedisCluster

from signaling.stores.redis import scripts
from signaling.stores.redis.link import TIMEOUT_S, Link
from signaling.stores.redis.scripts import Script

_TRIAL: Final = Script(
    """
local failed
local function try(command, ...)
    local answer = failed or redis.pcall(command, ...)
    if not failed and type(answer) == 'table' and answer.err then
        local kind = string.find(string.lower(answer.err), 'user') and 'NOPERM ' or 'ERR '
        failed = redis.error_reply(kind .. command .. ': ' .. answer.err)
    end
end
local key, other = KEYS[1], KEYS[2]
try('TIME')
try('DEL', key, other)
try('HSET', key, 'field', 1)
try('HINCRBY', key, 'field', 1)
try('HGET', key, 'field')
try('HMGET', key, 'field')
try('HEXISTS', key, 'field')
try('HDEL', key, 'field')
try('DEL', key)
try('RPUSH', key, 'element')
try('LREM', key, 0, 'another')
try('LPOP', key)
try('XADD', key, '1-1', 'field', 1)
try('XRANGE', key, '-', '+')
try('XREVRANGE', key, '+', '-')
try('XTRIM', key, 'MINID', '1-1')
try('DEL', key)
try('ZADD', key, 1, 'member')
try('ZSCORE', key, 'member')
try('ZRANGE', key, 0, -1)
try('ZRANGEBYLEX', key, '-', '+')
try('ZREMRANGEBYRANK', key, 1, 1)
try('ZREMRANGEBYSCORE', key, 1, 1)
try('SET', key, 'value')
try('GET', key)
try('EXISTS', key)
try('RENAME', key, other)
try('PEXPIRE', other, 1)
try('DEL', other)
try('PUBLISH', ARGV[1], ARGV[2])
return failed or 1
"""
)
"""Every command of the other scripts, up to the first that fails; what it publishes is for nobody."""
_KEYS: Final = (f"{scripts.PREFIX}:{{trial}}:1", f"{scripts.PREFIX}:{{trial}}:2")
_SET: Final = f"{scripts.PREFIX}:{{trial}}:set"
_NOTHING: Final = f"{scripts.PREFIX}:{{trial}}:nothing"
_FOR_NOBODY: Final = "turn trial nobody"


async def check_rights(link: Link) -> None:
    """Do each thing once that is done by meetings. Raises what redis-py does, `NoPermissionError` among it."""
    client = link.client
    for command in (
        ("PING",),
        ("TIME",),
        ("SET", scripts.PROBE, "here", "EX", 60),
        ("SADD", _SET, "member"),
        ("SMEMBERS", _SET),
        ("SREM", _SET, "member"),
        ("HMGET", _NOTHING, "field"),
        ("XRANGE", _NOTHING, "-", "+"),
        ("ZRANGEBYSCORE", _NOTHING, "-inf", "+inf"),
        ("ZMSCORE", _NOTHING, "member"),
        ("ZREM", _NOTHING, "member"),
    ):
        await client.execute_command(*command)
    for way, script in (("EVAL", _TRIAL.text), ("EVALSHA", _TRIAL.sha)):
        await client.execute_command(way, script, len(_KEYS), *_KEYS, scripts.NEWS, _FOR_NOBODY)
    if not isinstance(client, RedisCluster):
        await client.role()
    async with link.subscription() as subscription:
        await subscription.subscribe(scripts.NEWS)
        if await subscription.get_message(timeout=TIMEOUT_S) is None:
            raise TimeoutError("a subscription is not answered")

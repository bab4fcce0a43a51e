"""Whether a Redis is fit to keep meetings: looked at once, when it is opened."""

from collections.abc import Mapping
from secrets import token_hex
from typing import Any, Final

import structlog
from redis.asyncio.cluster import RedisCluster

from signaling.errors import ConfigurationError
from signaling.stores.contract import Kept
from signaling.stores.redis import scripts
from signaling.stores.redis.address import Address
from signaling.stores.redis.link import TROUBLE, Link
from signaling.stores.redis.rights import check_rights
from signaling.stores.redis.troubles import why

log = structlog.get_logger(__name__)

FORMAT: Final = 1
"""Of the keys; goes up when a version that knows the older one only must not use them."""
_OLDEST: Final = (6, 2)
_TYPES: Final[Mapping[str, str]] = {
    scripts.ABOUT: "hash",
    **dict(zip(scripts.DIRECTORY, ("zset", "set", "hash", "zset", "set"), strict=True)),
    **{scripts.kept_key(kind): "zset" for kind in Kept},
}


async def inspect(link: Link, *, is_new: bool = False) -> str:
    """
    Look whether it can be used.

    Args:
        is_new: It was not looked at before: what is to be warned of was not, and what may be done there is tried too.

    Returns:
        The epoch: another one another time means that everything was lost.

    Raises:
        ConfigurationError: It is of the wrong kind, set up wrongly, or lets nobody in with that password.
        StoreError: It does not answer.
    """
    try:
        for info in await _infos(link):
            _look_at(info, link.address, warns=is_new)
        epoch = await _epoch(link)
        if is_new:
            await check_rights(link)
    except TROUBLE as error:
        raise await why(link, error) from error
    return epoch


async def _infos(link: Link) -> list[dict[str, Any]]:
    client = link.client
    if isinstance(client, RedisCluster):
        await client.initialize()
        found = await client.info(target_nodes=RedisCluster.PRIMARIES)
        return list(found.values()) if all(isinstance(each, dict) for each in found.values()) else [found]
    return [await client.info()]


def _look_at(info: Mapping[str, Any], where: Address, *, warns: bool) -> None:
    _look_at_mode(str(info.get("redis_mode", "standalone")), where)
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdecimal())
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if numbers < _OLDEST:
        raise ConfigurationError(f"MODERATION_STORE_URL: {where} is version {version}; 6.2 or newer is needed")
    if info.get("role") == "slave":
        raise ConfigurationError(
            f"MODERATION_STORE_URL: {where} is a read-only replica; name the primary, or Sentinels"
        )
    if policy != "noeviction":
        raise ConfigurationError(
            f"MODERATION_STORE_URL: {where} drops what is kept when memory runs out: maxmemory-policy is {policy}, "
            "and must be noeviction"
        )
    if warns and not int(info.get("aof_enabled", 0)):
        log.warning("store_without_append_only_file", store=str(where), consequence="a crash of Redis loses commits")


def _look_at_mode(mode: str, where: Address) -> None:
    if mode == "sentinel" and where.form != "sentinel":
        raise ConfigurationError(f"MODERATION_STORE_URL: {where} is a Sentinel; name it by redis+sentinel://")
    if mode == "cluster" and where.form != "cluster":
        raise ConfigurationError(f"MODERATION_STORE_URL: {where} is one of a cluster; name it by redis+cluster://")


async def _epoch(link: Link) -> str:
    client = link.client
    for key, wanted in _TYPES.items():
        found = (await client.execute_command("TYPE", key)).decode()
        if found not in {wanted, "none"}:
            raise ConfigurationError(
                f"MODERATION_STORE_URL: {link.address} has a {found} of somebody else's by the name {key}"
            )
    await client.execute_command("HSETNX", scripts.ABOUT, "format", FORMAT)
    kept = await client.execute_command("HGET", scripts.ABOUT, "format")
    if not kept.isdigit():
        raise ConfigurationError(
            f"MODERATION_STORE_URL: {link.address} has a hash of somebody else's by the name {scripts.ABOUT}"
        )
    if int(kept) > FORMAT:
        raise ConfigurationError(
            f"MODERATION_STORE_URL: {link.address} has meetings of format {int(kept)}, and this version knows {FORMAT} "
            "only"
        )
    await client.execute_command("HSETNX", scripts.ABOUT, "epoch", token_hex(8))
    return str((await client.execute_command("HGET", scripts.ABOUT, "epoch")).decode())

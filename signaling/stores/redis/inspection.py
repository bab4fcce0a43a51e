"""Whether a Redis is fit to keep meetings: looked at once, when it is opened."""

from collections.abc import Mapping
from secrets import token_hex
from typing import Any, Final

import structlog
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from signaling.errors import ConfigurationError, StoreError
from signaling.stores.contract import Kept
from signaling.stores.redis import scripts
from signaling.stores.redis.link import TROUBLE, Link

log = structlog.get_logger(__name__)

FORMAT: Final = 1
"""Of the keys; goes up when a version that knows the older one only must not use them."""
_OLDEST: Final = (6, 2)
_TYPES: Final[Mapping[str, str]] = {
    scripts.ABOUT: "hash",
    **dict(zip(scripts.DIRECTORY, ("zset", "set", "hash", "zset", "set"), strict=True)),
    **{scripts.kept_key(kind): "zset" for kind in Kept},
}


async def inspect(link: Link) -> str:
    """
    Look whether it can be used.

    Returns:
        The epoch: another one another time means that everything was lost.

    Raises:
        ConfigurationError: It is of the wrong kind, set up wrongly, or lets nobody in with that password.
        StoreError: It does not answer.
    """
    try:
        for info in await _infos(link):
            _look_at(info, str(link.address))
        return await _epoch(link)
    except AuthenticationError as error:
        raise ConfigurationError(f"MODERATION_STORE_URL: {link.address} refuses the user name or password") from error
    except NoPermissionError as error:
        raise ConfigurationError(f"MODERATION_STORE_URL: {link.address} does not permit this user enough") from error
    except ResponseError as error:
        if "DB index" in str(error):
            raise ConfigurationError(
                f"MODERATION_STORE_URL: {link.address} has no database {link.address.database}"
            ) from error
        raise ConfigurationError(f"MODERATION_STORE_URL: {link.address} refuses: {error}") from error
    except TROUBLE as error:
        how = "with TLS" if link.address.has_tls else "without TLS"
        raise StoreError(f"MODERATION_STORE_URL: no answer from {link.address} {how}: {error}") from error


async def _infos(link: Link) -> list[dict[str, Any]]:
    client = link.client
    if isinstance(client, RedisCluster):
        await client.initialize()
        found = await client.info(target_nodes=RedisCluster.PRIMARIES)
        return list(found.values()) if all(isinstance(each, dict) for each in found.values()) else [found]
    return [await client.info()]


def _look_at(info: Mapping[str, Any], where: str) -> None:
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
    if not int(info.get("aof_enabled", 0)):
        log.warning("store_without_append_only_file", store=where, consequence="a crash of Redis loses commits")


async def _epoch(link: Link) -> str:
    client = link.client
    for key, wanted in _TYPES.items():
        found = (await client.execute_command("TYPE", key)).decode()
        if found not in {wanted, "none"}:
            raise ConfigurationError(
                f"MODERATION_STORE_URL: {link.address} has a {found} of somebody else's by the name {key}"
            )
    await client.execute_command("HSETNX", scripts.ABOUT, "format", FORMAT)
    kept = int(await client.execute_command("HGET", scripts.ABOUT, "format"))
    if kept > FORMAT:
        raise ConfigurationError(
            f"MODERATION_STORE_URL: {link.address} has meetings of format {kept}, and this version knows {FORMAT} only"
        )
    await client.execute_command("HSETNX", scripts.ABOUT, "epoch", token_hex(8))
    return str((await client.execute_command("HGET", scripts.ABOUT, "epoch")).decode())

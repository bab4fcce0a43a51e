"""Why a Redis that a URL names cannot be used, in a sentence for who runs it, and without the password."""

from redis.asyncio import Redis
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
)

from signaling.errors import ConfigurationError, SignalingError, StoreError
from signaling.stores.redis.link import TROUBLE, Link

_NO_LOGIN = (AuthenticationError, AuthorizationError)


async def why(link: Link, error: Exception) -> SignalingError:
    """What to raise for what redis-py raised: a `ConfigurationError` if trying again is of no use."""
    where = link.address
    if isinstance(error, MasterNotFoundError):
        return await _why_no_primary(link)
    if isinstance(error, RedisClusterException) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the last node that was tried
    said = where.without_passwords(str(error))
    match error:
        case _ if isinstance(error, _NO_LOGIN):
            return _unfit(f"{where} refuses the user name or password")
        case NoPermissionError():
            return _unfit(f"{where} does not permit this user enough: {said}")
        case ResponseError() if "DB index" in said:
            return _unfit(f"{where} has no database {where.database}")
        case ResponseError() if where.form == "sentinel" and "'SENTINEL'" in said:
            return _unfit(f"{where}: is no Sentinel; name it by redis://")
        case ResponseError():
            return _unfit(f"{where} refuses: {said}")
        case RedisClusterException() if "mode is not enabled" in said:
            return _unfit(f"{where} is no cluster; name it by redis://")
        case _:
            how = "with TLS" if where.has_tls else "without TLS"
            return StoreError(f"MODERATION_STORE_URL: no answer from {where} {how}: {said}")


async def _why_no_primary(link: Link) -> SignalingError:
    """What redis-py tells of Sentinels that name no primary says everything but why: so each is asked."""
    where, client = link.address, link.client
    reasons: list[str] = []
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            try:
                found = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", where.service)
            except _NO_LOGIN:
                return _unfit(f"{where}: the Sentinel refuses sentinel_username or sentinel_password")
            except TROUBLE as error:
                reasons.append(where.without_passwords(str(error)))
            else:
                if found is None:
                    return _unfit(f"{where}: the Sentinel knows nothing by that name")
                reasons.append("the primary does not answer the Sentinel")
    said = "; ".join(dict.fromkeys(reasons))
    return StoreError(f"MODERATION_STORE_URL: no answer from {where}: {said}")


def _unfit(reason: str) -> ConfigurationError:
    return ConfigurationError(f"MODERATION_STORE_URL: {reason}")

"""The way to Redis: every call has a deadline, and while nothing comes back, the next ones are not even tried."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from signaling.errors import StoreError
from signaling.stores.redis.address import Address
from signaling.stores.redis.scripts import Script

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 2.0
"""How long one call to Redis may take."""
PROBE_S: Final = 0.1
"""How often Redis is asked whether it is back."""
_IN_FLIGHT: Final = 32
_NOT_DONE: Final = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)
"""An answer: nothing was done. For redis-py the last three are errors of the connection."""
_ELSEWHERE: Final = (BusyLoadingError, ClusterDownError, ReadOnlyError, TryAgainError)
"""Of those, what another server, or the same one soon, may do all the same."""
TROUBLE: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What redis-py raises; that of a cluster none of whose nodes answers is no `RedisError`."""


class AnswerLost(StoreError):
    """Redis was asked, and nothing came back: it may have been done."""


class Link:
    """
    Calls to one Redis.

    Args:
        on_back: Called when Redis answers again.
        on_long_away: Called once each time that it has not answered for `long_s`.
    """

    def __init__(
        self, address: Address, *, on_back: Callable[[], None], on_long_away: Callable[[], None], long_s: float
    ) -> None:
        self.address = address
        self._on_back = on_back
        self._on_long_away = on_long_away
        self._long_s = long_s
        self._client: Redis | RedisCluster | None = None
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._answers = asyncio.Event()
        self._probing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Get ready to be asked."""
        self._client = self.address.client(TIMEOUT_S)
        self._answers.set()

    async def close(self) -> None:
        """Let go of all connections."""
        client, self._client = self._client, None
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
            self._probing = None
        if client is not None:
            await client.aclose()
            if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
                for sentinel in client.connection_pool.sentinel_manager.sentinels:
                    await sentinel.aclose()  # the client takes them for somebody else's

    @property
    def client(self) -> "Redis | RedisCluster":
        """What asks it, without any of the care that is taken here."""
        if self._client is None:
            raise StoreError(f"{self.address}: is not open")
        return self._client

    @property
    def answers(self) -> bool:
        """Whether it did the last time."""
        return self._answers.is_set()

    async def back(self, within_s: float) -> bool:
        """Wait until Redis answers again; whether it does in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._answers.wait()
        except TimeoutError:
            return False
        return True

    async def wait(self) -> None:
        """Wait until Redis answers again."""
        await self._answers.wait()

    async def call(self, *command: str | bytes | float) -> Any:  # noqa: ANN401 - whatever Redis gives
        """
        What Redis answers to a command.

        Raises:
            AnswerLost: Nothing came back.
            StoreError: It refused, or did not answer lately.
        """
        return await self._ask(lambda: self.client.execute_command(*command))

    async def call_all(self, commands: Sequence[Sequence[str | bytes | float]]) -> list[Any]:
        """What Redis answers to each of these, asked at once; raises what `call` does."""

        async def ask() -> list[Any]:
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute())

        return await self._ask(ask)  # type: ignore[no-any-return]

    async def run(self, script: Script, keys: Sequence[str], *arguments: str | bytes | float) -> Any:  # noqa: ANN401
        """What a script gives; raises what `call` does."""

        async def run() -> Any:  # noqa: ANN401 - as above
            try:
                return await self.client.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return await self.client.execute_command("EVAL", script.text, len(keys), *keys, *arguments)

        return await self._ask(run)

    def subscription(self) -> PubSub:
        """A connection of its own, for what is published; a context that closes it."""
        subscription: PubSub = self.client.pubsub()
        return subscription

    async def _ask(self, ask: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as above
        self.client  # noqa: B018 - raises if it is not open
        if not self._answers.is_set():
            raise StoreError(f"{self.address} does not answer")
        try:
            async with self._slots:
                return await ask()
        except _NOT_DONE as error:
            if isinstance(error, _ELSEWHERE):
                self.note_trouble(error)
            raise StoreError(f"{self.address} refused: {self.address.without_passwords(str(error))}") from error
        except TROUBLE as error:
            self.note_trouble(error)
            raise AnswerLost(f"{self.address} does not answer: {type(error).__name__}") from error

    def note_trouble(self, error: Exception) -> None:
        """A connection failed; until Redis answers on a new one, it is not asked."""
        if self._answers.is_set() and self._client is not None:
            self._answers.clear()
            log.info("store_away", error=type(error).__name__)
            self._probing = asyncio.create_task(self._probe(self._client))

    async def _probe(self, client: "Redis | RedisCluster") -> None:
        since = time.monotonic()
        is_long = False
        while True:
            try:
                await _let_go_of_idle(client)
                if await client.ping() and await _is_primary(client):
                    break
            except TROUBLE as error:
                log.debug("store_still_away", error=type(error).__name__)
            if not is_long and time.monotonic() - since >= self._long_s:
                is_long = True
                self._on_long_away()
            await asyncio.sleep(PROBE_S)
        self._probing = None
        self._answers.set()
        log.info("store_back", away_s=round(time.monotonic() - since, 3))
        self._on_back()


async def _let_go_of_idle(client: "Redis | RedisCluster") -> None:
    """Connections of before are as broken as the one that failed."""
    if isinstance(client, Redis):
        await client.connection_pool.disconnect(inuse_connections=False)
    else:
        await client.aclose()
        await client.initialize()


async def _is_primary(client: "Redis | RedisCluster") -> bool:
    """Whether it takes writes; a server that only follows another does not."""
    if isinstance(client, RedisCluster):
        return True
    role = await client.role()
    return bool(role[0] == b"master")

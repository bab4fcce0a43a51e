"""What happens in Redis, as it is published there."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio.client import PubSub

from signaling.errors import StoreError
from signaling.identifiers import RoomId
from signaling.stores.redis import scripts
from signaling.stores.redis.link import PROBE_S, TROUBLE, Link

log = structlog.get_logger(__name__)

STARTS_S: Final = 5.0
"""How long the first subscription may take."""
_LISTENS_S: Final = 5.0
"""How long nothing may be heard before it is tried whether anything would be."""
_PONG_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Notice:
    """
    That something was committed.

    Attributes:
        before: Id of the entry before; nothing for the first of a meeting.
        entry: Its own id.
        snapshot_bytes: Of the snapshot that was written with it, 0 if there was none.
        data: What was appended; nothing if it is too long to be published.
    """

    revision: int
    before: bytes
    entry: bytes
    snapshot_bytes: int
    data: bytes


class News:
    """
    One subscription, renewed whenever it breaks.

    Args:
        on_commit: Called with a meeting in which something was committed, and with what, `None` if that is to be asked.
        on_turn: Called with a waiter whose turn has come.
        on_subscribed: Called when it begins, and whenever it begins anew: something may have been missed.
    """

    def __init__(
        self,
        link: Link,
        *,
        on_commit: Callable[[RoomId, Notice | None], None],
        on_turn: Callable[[str], None],
        on_subscribed: Callable[[], None],
    ) -> None:
        self._link = link
        self._on_commit = on_commit
        self._on_turn = on_turn
        self._on_subscribed = on_subscribed
        self._subscribed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """
        Begin; returns when it has.

        Raises:
            StoreError: It could not in time.
        """
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(STARTS_S):
                await self._subscribed.wait()
        except TimeoutError:
            raise StoreError(
                f"MODERATION_STORE_URL: {self._link.address} has not taken a subscription within {STARTS_S:g} s"
            ) from None

    async def close(self) -> None:
        """Nothing is heard any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def is_subscribed(self) -> bool:
        """Whether whatever is published is heard, as far as is known."""
        return self._subscribed.is_set()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (*TROUBLE, StoreError) as error:
                log.info("subscription_lost", error=type(error).__name__)
                if isinstance(error, TROUBLE):
                    self._link.note_trouble(error)
            except Exception:  # a bug must not leave this node deaf
                log.exception("subscription_lost")
            await asyncio.sleep(PROBE_S)
            await self._link.wait()

    async def _listen(self) -> None:
        async with self._link.subscription() as subscription:
            try:
                await self._hear(subscription)
            finally:
                self._subscribed.clear()

    async def _hear(self, subscription: PubSub) -> None:
        await subscription.subscribe(scripts.NEWS)
        is_pinged = False
        while True:
            message = await subscription.get_message(timeout=_PONG_S if is_pinged else _LISTENS_S)
            if message is None:
                if is_pinged:
                    raise TimeoutError
                await subscription.ping()
                is_pinged = True
                continue
            is_pinged = False
            match message["type"]:
                case "subscribe":
                    self._subscribed.set()
                    self._on_subscribed()
                case "message":
                    self._note(message["data"])
                case _:
                    pass  # the answer to a ping

    def _note(self, news: bytes) -> None:
        line, _, data = news.partition(b"\n")
        match line.decode().split():
            case ["commit", room, revision, before, entry, snapshot_bytes]:
                ids = (b"" if before == "-" else before.encode()), entry.encode()
                self._on_commit(RoomId(room), Notice(int(revision), *ids, int(snapshot_bytes), data))
            case ["commit", room]:
                self._on_commit(RoomId(room), None)
            case ["turn", _, waiter]:
                self._on_turn(waiter)
            case _:
                log.warning("news_unknown", length=len(news))

"""LiveKit with media: two real servers on one Redis, a crowd that speaks, and some who listen."""

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from signaling.errors import MediaServerUnavailable
from signaling.identifiers import RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.server.internal import WEBHOOK_PATH
from signaling.testing.child import ParticipantError
from signaling.testing.participants import JoinRefused, participant_token
from tests.crowd.crowd import Behaviour, Crowd, Member
from tests.fault_proxy import FaultProxy
from tests.soak.sound import Heard, Voice

_AT_ONCE: Final = 8
_JUST_NOW_S: Final = 0.25
"""Who listens says ten times a second whose sound came in."""
_AGAIN_S: Final = 1.0
_BACK_S: Final = 30.0
_POLL_S: Final = 0.05
_LISTENS_FOR_S: Final = 7_200
_REMOVED: Final = "PARTICIPANT_REMOVED"


class LoudVoice:
    """
    Somebody in the crowd, who speaks whenever LiveKit lets them, and comes back by what LiveKit gave them.

    Attributes:
        is_missing: Whether they are in the meeting and not in LiveKit, as of the last look.
    """

    def __init__(self, media: "Media", name: str, behaviour: Behaviour) -> None:
        self.wants_credentials = False
        self.is_missing = True
        self._media = media
        self._name = name
        self._behaviour = behaviour
        self._credentials: dict[str, Any] = {}
        self._member: Member | None = None
        self._room = ""
        """That it is in, or was."""
        self._is_removed = False
        self._tries_at = 0.0
        self._entering: asyncio.Task[None] | None = None
        self._refused = 0

    @property
    def is_in(self) -> bool:
        """Whether LiveKit has not ended it, as far as it was told."""
        return self._member is not None and self._room != "" and self._ending() is None

    @property
    def member(self) -> Member | None:
        """Its participant, if there ever was one."""
        return self._member

    def allow(self, credentials: dict[str, Any]) -> None:
        """They were given these."""
        self._credentials = credentials
        self._is_removed = False
        self._refused = 0
        self._tries_at = 0.0
        if self._room not in {"", credentials["room"]}:
            self.leave()

    def leave(self) -> None:
        """They leave LiveKit too."""
        if self._member is not None and self._room:
            self._room = ""
            self._media.run(self._member.leave())

    def look(self, *, is_wanted: bool) -> None:
        """If they are not in LiveKit, or not heard, they try to be, when that `is_wanted`."""
        self.is_missing = is_wanted and not self.is_in
        if self._entering is not None and self._entering.done():
            self._entering = None
        if not is_wanted or not self._credentials or self._entering or self.is_in or time.monotonic() < self._tries_at:
            return
        ending = self._ending()
        if self._room and ending == _REMOVED and not self._is_removed:
            self._is_removed = True
            self._tries_at = time.monotonic() + _AGAIN_S
            return  # by the meeting: then nobody comes back before they are given something new
        if self._is_removed:
            self.wants_credentials = True
            self._tries_at = time.monotonic() + 5 * _AGAIN_S
            return
        self._tries_at = time.monotonic() + _AGAIN_S
        self._entering = self._media.run(self._enter())

    def _ending(self) -> str | None:
        """As what its newest session ended; `None` if it goes on."""
        for event in reversed(self._member.events if self._member is not None else ()):
            if event.name in {"leave", "closed"}:
                return event.reason
            if event.name == "joined":
                return None
        return "it never began"

    async def _enter(self) -> None:
        room, token = self._credentials["room"], self._credentials["token"]
        if self._member is not None and self._room == room and self._member.refresh_token and not self._refused:
            token = self._member.refresh_token  # as LiveKit's clients do
        url = self._media.url(self._refused)
        async with self._media.at_once:
            try:
                if self._member is None:
                    self._member = await self._media.crowd.join(url, token, **self._behaviour)
                else:
                    self._member._url = url
                    await self._member.rejoin(token, **self._behaviour)
            except JoinRefused as refused:
                self._refused += 1
                self.wants_credentials = str(refused).startswith("401")
            except ParticipantError:
                self._refused += 1  # it went away meanwhile
            else:
                self._refused = 0
                self._room = room


class Media:
    """
    Two `livekit-server` on one Redis, of which each node knows one, and a crowd.

    Args:
        listened: In how many meetings somebody listens.
    """

    def __init__(self, rooms: Sequence[RoomId], *, listened: int, seed: int) -> None:
        self.what = "two livekit-server on the same Redis, everybody with a real microphone that is on"
        self.crowd = Crowd()
        self.at_once = asyncio.Semaphore(_AT_ONCE)
        self._listened = tuple(rooms[:listened])
        self._chance = random.Random(f"{seed} media")  # noqa: S311 - the same again, which no secret may be
        self._webhooks = FaultProxy(0)
        self._redis = 0
        self._servers: list[EmbeddedServer] = []
        self._ears: dict[RoomId, LoudVoice] = {}
        self._voices: list[LoudVoice] = []
        self._running: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    def on(self, redis: int) -> Self:
        """Where Redis is."""
        self._redis = redis
        return self

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._webhooks)
            urls = [f"http://127.0.0.1:{self._webhooks.port}{WEBHOOK_PATH}"]
            redis = {"redis": {"address": f"127.0.0.1:{self._redis}", "db": 1}}
            first = EmbeddedServer(path=require(None), webhook_urls=urls, extra_config=redis)
            keys = {"keys": {first.api_key: first.api_secret}, "webhook": {"api_key": first.api_key}}
            second = EmbeddedServer(path=require(None), webhook_urls=urls, extra_config={**redis, **keys})
            self._servers = [first, second]
            for server in self._servers:
                await stack.enter_async_context(server)
            self.api_key, self.api_secret = first.api_key, first.api_secret
            await stack.enter_async_context(self.crowd)
            for room in self._listened:
                ear = self._ears[room] = LoudVoice(self, "ear", {"auto_subscribe": True, "listens": True})
                token = participant_token(
                    *(self.api_key, self.api_secret, room, "ear"), can_publish=False, hidden=True, ttl_s=_LISTENS_FOR_S
                )
                ear.allow({"room": room, "token": token})
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._stack.__aexit__(kind, error, traceback)

    def port(self, node: int) -> int:
        """Where a node finds it."""
        return urlsplit(self._servers[node % len(self._servers)].http_url).port or 0

    def url(self, number: int) -> str:
        """Where clients come, the next one when one lets them not in."""
        return self._servers[(self._chance.randrange(2) + number) % len(self._servers)].url

    def report_to(self, ports: Sequence[int]) -> None:
        """Where nodes take webhooks."""
        if ports:
            self._webhooks.target = self._chance.choice(ports)

    def voice(self, _room: RoomId, name: str) -> Voice:
        """That of somebody; every third one unmutes whenever they are muted."""
        behaviour: Behaviour = {"publish": ["microphone"], "republish_always": True}
        behaviour["unmute_always"] = len(self._voices) % 3 == 0
        self._voices.append(voice := LoudVoice(self, name, behaviour))
        return voice

    def listens_to(self, room: RoomId) -> bool:
        """Whether it is known who is heard in a meeting."""
        return room in self._listened

    def look(self) -> None:
        """Who listens comes back too."""
        for ear in self._ears.values():
            ear.look(is_wanted=True)

    def missing(self) -> int:
        """How many are in their meetings, and not in LiveKit."""
        return sum(voice.is_missing for voice in self._voices)

    def listening(self) -> int:
        """In how many meetings somebody listens just now."""
        return sum(ear.is_in for ear in self._ears.values())

    def heard(self) -> set[Heard]:
        """Who can be heard just now, of those who are listened to."""
        now = time.monotonic()
        return {
            (room, identity)
            for room, ear in self._ears.items()
            if ear.member is not None
            for identity, at in ear.member.heard.items()
            if now - at < _JUST_NOW_S
        }

    async def kill(self, number: int) -> None:
        """Let one of it die at once; it is started again at once, too."""
        self._servers[number % len(self._servers)].kill()

    async def start(self, number: int) -> None:
        """It is there again, without its rooms."""
        server = self._servers[number % len(self._servers)]
        async with asyncio.timeout(_BACK_S):
            while not _is_running(server):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(_POLL_S)

    def pause(self, number: int) -> None:
        """Have one of it stand still."""
        self._servers[number % len(self._servers)].pause()

    def resume(self, number: int) -> None:
        """Have it go on."""
        self._servers[number % len(self._servers)].resume()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something meanwhile."""
        self._running.add(task := asyncio.create_task(_quietly(work)))
        task.add_done_callback(self._running.discard)
        return task


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    """Who has gone already need not go."""
    try:
        await work
    except ParticipantError:
        return


def _is_running(server: EmbeddedServer) -> bool:
    try:
        return server.pid > 0
    except MediaServerUnavailable:
        return False

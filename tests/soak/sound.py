"""LiveKit as the soak has it: who is in it, who can be heard, and what goes wrong with it; here without media."""

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Protocol, Self

from livekit.protocol.models import TrackSource

from signaling.identifiers import RoomId
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.participants import JoinRefused, PublishRefused

_MICROPHONE: Final = "microphone"
_AGAIN_S: Final = 1.0
Heard = tuple[RoomId, str]


class Voice(Protocol):
    """
    What LiveKit has of somebody.

    Attributes:
        wants_credentials: Whether those that it has are refused, or it has none.
    """

    wants_credentials: bool

    def allow(self, credentials: dict[str, Any]) -> None:
        """They were given these."""

    def leave(self) -> None:
        """They leave LiveKit too."""

    def look(self, *, is_wanted: bool) -> None:
        """If they are not in LiveKit, or not heard, they try to be, when that `is_wanted`."""


class Sound(Protocol):
    """
    All of LiveKit; an asynchronous context manager, which needs a Redis before it is entered.

    Attributes:
        what: What it is, for the report.
    """

    what: str
    api_key: str
    api_secret: str

    def on(self, redis: int) -> Self:
        """Where Redis is."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def port(self, node: int) -> int:
        """Where a node finds it."""

    def report_to(self, ports: Sequence[int]) -> None:
        """Where nodes take webhooks."""

    def voice(self, room: RoomId, name: str) -> Voice:
        """That of somebody."""

    def listens_to(self, room: RoomId) -> bool:
        """Whether it is known who is heard in a meeting."""

    def look(self) -> None:
        """Who listens comes back if they have to."""

    def missing(self) -> int:
        """How many are in their meetings, and not in LiveKit."""

    def listening(self) -> int:
        """In how many meetings somebody listens just now."""

    def heard(self) -> set[Heard]:
        """Who can be heard just now, of those who are listened to."""

    async def kill(self, number: int) -> None:
        """Let (one of) it die at once."""

    async def start(self, number: int) -> None:
        """It is there again, without its rooms."""

    def pause(self, number: int) -> None:
        """Have it stand still."""

    def resume(self, number: int) -> None:
        """Have it go on."""


class SilentVoice:
    """Somebody in a RoomService without media."""

    def __init__(self, fake: FakeRoomService, name: str) -> None:
        self.wants_credentials = False
        self._fake = fake
        self._name = name
        self._credentials: dict[str, Any] = {}
        self._is_used = False
        self._tries_at = 0.0

    def allow(self, credentials: dict[str, Any]) -> None:
        """They were given these."""
        if self._credentials and self._credentials["room"] != credentials["room"]:
            self.leave()
        self._credentials = credentials
        self._is_used = False
        self._tries_at = 0.0

    def leave(self) -> None:
        """They leave LiveKit too."""
        if self._credentials:
            with suppress(LookupError):
                self._fake.leave(self._credentials["room"], self._name)

    def look(self, *, is_wanted: bool) -> None:
        """If they are not in LiveKit, or not heard, they try to be, when that `is_wanted`."""
        if not is_wanted or not self._credentials or time.monotonic() < self._tries_at:
            return
        self._tries_at = time.monotonic() + _AGAIN_S
        room = self._credentials["room"]
        try:
            with suppress(LookupError):
                if any(track.source == TrackSource.MICROPHONE for track in self._there(room)):
                    return
                self._fake.publish(room, self._name, _MICROPHONE)
                return
            if self._is_used:  # it was removed, or LiveKit began anew
                self.wants_credentials = True
                return
            self._fake.join(room, self._name, token=self._credentials["token"])
            self._is_used = True
            self._fake.publish(room, self._name, _MICROPHONE)
        except JoinRefused:
            self.wants_credentials = True
        except PublishRefused:
            pass  # they may not; and try again

    def _there(self, room: str) -> list[Any]:
        return list(self._fake.participant(room, self._name).tracks)


class FakeSound:
    """A RoomService without media: who is not muted counts as heard."""

    def __init__(self) -> None:
        self.what = "a double of its RoomService, without media or webhooks"
        self.fake = FakeRoomService()
        self.api_key, self.api_secret = self.fake.api_key, self.fake.api_secret

    def on(self, _redis: int) -> Self:
        """Where Redis is, which it has no need of."""
        return self

    async def __aenter__(self) -> Self:
        await self.fake.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.fake.__aexit__(kind, error, traceback)

    def port(self, _node: int) -> int:
        """Where a node finds it."""
        return int(self.fake.url.rpartition(":")[2].strip("/"))

    def report_to(self, _ports: Sequence[int]) -> None:
        """It says nothing by itself."""

    def voice(self, _room: RoomId, name: str) -> Voice:
        """That of somebody."""
        return SilentVoice(self.fake, name)

    def listens_to(self, _room: RoomId) -> bool:
        """Whether it is known who is heard in a meeting."""
        return True

    def look(self) -> None:
        """Nobody listens here."""

    def missing(self) -> int:
        """Who is not there yet will soon be."""
        return 0

    def listening(self) -> int:
        """In how many meetings somebody would be heard."""
        return len(self.fake.rooms)

    def heard(self) -> set[Heard]:
        """Who can be heard just now."""
        return {
            (RoomId(room.partition(":")[0]), someone.identity)
            for room in self.fake.rooms
            for someone in self.fake.participants(room)
            if any(track.source == TrackSource.MICROPHONE and not track.muted for track in someone.tracks)
        }

    async def kill(self, _number: int) -> None:
        """Let it die at once."""
        await self.fake.offline()
        self.fake.crash()

    async def start(self, _number: int) -> None:
        """It is there again, without its rooms."""
        await self.fake.online()

    def pause(self, _number: int) -> None:
        """Have it stand still."""
        self.fake.stall()

    def resume(self, _number: int) -> None:
        """Have it go on."""
        self.fake.unstall()

"""A meeting of the module on the fake RoomService, with people who receive what they are told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from signaling import Delivery, Kind, ModerationModule, Participant, Role, Session, Settings
from signaling.identifiers import BreakoutId, ParticipantId, RoomId
from signaling.stores.contract import Store
from signaling.testing.fake_room_service import FakeRoomService

ROOM = RoomId("standup")


class Person:
    """Somebody who joined, and what they were told."""

    def __init__(self, name: str) -> None:
        self.id = ParticipantId(name)
        self.inbox: list[Delivery] = []
        self._arrived = asyncio.Condition()
        self._session: Session | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def session(self) -> Session:
        assert self._session is not None
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        self._session = session

    @property
    def token(self) -> str:
        assert self.session.join_data is not None
        return str(self.session.join_data["token"])

    def deliver(self, delivery: Delivery) -> None:
        self.inbox.append(delivery)
        task = asyncio.ensure_future(self._wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()

    def told(self, message: str, namespace: str = "livekit") -> list[dict[str, Any]]:
        """The payloads of these events, oldest first."""
        return [d.payload for d in self.inbox if d.namespace == namespace and d.payload["message"] == message]

    async def until_told(self, message: str, namespace: str = "livekit", times: int = 1) -> dict[str, Any]:
        """Wait for so many of these events; the last one."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.told(message, namespace)) >= times)
        return self.told(message, namespace)[-1]

    def forget(self) -> None:
        """Begin anew with an empty inbox."""
        self.inbox.clear()

    async def send(self, action: str, *, transaction_id: int | str | None = None, **fields: object) -> None:
        """A command of the namespace `livekit`."""
        await self.session.receive("livekit", {"action": action, **fields}, transaction_id)

    async def result(self, action: str, **fields: object) -> dict[str, Any]:
        """The `result` of a command of the namespace `livekit`."""
        await self.send(action, transaction_id=len(self.inbox) + 1, **fields)
        return self.told("result", "livekit_moderation")[-1]

    async def outcomes(self, action: str, **fields: object) -> dict[str, str]:
        """What a command came to, by participant."""
        return outcomes(await self.result(action, **fields))

    async def moderate(self, action: str, *, transaction_id: int | str | None = None, **fields: object) -> None:
        """A command of the namespace `livekit_moderation`."""
        await self.session.receive("livekit_moderation", {"action": action, **fields}, transaction_id)

    async def moderated(self, action: str, **fields: object) -> dict[str, Any]:
        """The `result` of a command of the namespace `livekit_moderation`."""
        await self.moderate(action, transaction_id=len(self.inbox) + 1, **fields)
        return self.noticed("result")[-1]

    async def comes_to(self, action: str, **fields: object) -> dict[str, str]:
        """What a command of the namespace `livekit_moderation` came to, by participant; it was not refused."""
        result = await self.moderated(action, **fields)
        assert "error" not in result, result
        return outcomes(result)

    def noticed(self, message: str) -> list[dict[str, Any]]:
        """The payloads of these events of the namespace `livekit_moderation`, oldest first."""
        return self.told(message, "livekit_moderation")


class MeetingOnFake:
    """The module, the fake, and whoever joins."""

    def __init__(self, module: ModerationModule, fake: FakeRoomService) -> None:
        self.module = module
        self.fake = fake
        self.room = ROOM

    async def join(
        self,
        name: str,
        role: Role = Role.USER,
        *,
        kind: Kind = Kind.USER,
        breakout: str | None = None,
        keeps_room: bool = False,
        extensions: Sequence[str] = ("livekit_moderation", "control"),
        in_livekit: bool = True,
    ) -> Person:
        """Join the signaling, and with the token LiveKit."""
        person = Person(name)
        participant = Participant(
            person.id,
            role=role,
            kind=kind,
            display_name=name.title(),
            breakout=None if breakout is None else BreakoutId(breakout),
            keeps_room=keeps_room,
        )
        person.session = await self.module.join(
            self.room, participant, deliver=person.deliver, extensions=frozenset(extensions)
        )
        if in_livekit:
            self.enter(person)
        return person

    def enter(self, person: Person, token: str | None = None) -> None:
        """Enter LiveKit with the token of the join data, or another one."""
        assert person.session.join_data is not None
        room = str(person.session.join_data["room"])
        self.fake.join(room, person.id, token=token or person.token)

    def may(self, person: Person, source: str = "microphone", room: str = ROOM) -> bool:
        """Whether LiveKit lets somebody publish."""
        return self.fake.may_publish(room, person.id, source)

    def is_muted(self, person: Person, track_sid: str, room: str = ROOM) -> bool:
        """Whether LiveKit says that a track is muted."""
        tracks = {track.sid: track for track in self.fake.participant(room, person.id).tracks}
        return tracks[track_sid].muted

    def calls(self, method: str | None = None) -> list[str]:
        """The identities that were called about, by method."""
        return [call.identity for call in self.fake.calls if method is None or call.method == method]


@asynccontextmanager
async def meeting_on_fake(
    fake: FakeRoomService,
    *,
    store: Store | None = None,
    clock: object = None,
    **settings: object,
) -> AsyncIterator[MeetingOnFake]:
    """A module on `fake`, perhaps with a clock of its own."""
    chosen: dict[str, Any] = {
        "livekit_url": fake.url,
        "livekit_api_key": fake.api_key,
        "livekit_api_secret": fake.api_secret,
        "moderation_livekit_timeout_s": 1,
        "moderation_sweep_s": 60,
        **settings,
    }
    async with ModerationModule(
        Settings(**chosen), store=store, clock=cast("Callable[[], float] | None", clock)
    ) as module:
        yield MeetingOnFake(module, fake)


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    """The outcomes of a `result`, by participant."""
    return {outcome["participant"]: outcome["outcome"] for outcome in result["outcomes"]}


async def until(fact: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not fact():  # noqa: ASYNC110 - there is no event for what LiveKit holds
            await asyncio.sleep(0.002)

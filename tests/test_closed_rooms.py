"""Rooms of meetings that have ended, beside a LiveKit that makes rooms for whoever comes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from signaling import Role
from signaling.closed_rooms import CLOSED_S, ClosedRooms
from signaling.errors import MediaServerRejected, MediaServerUnavailable
from signaling.identifiers import LiveKitRoom, ParticipantId, RoomId
from signaling.livekit.contract import MediaServer
from signaling.livekit.room_service import RoomService
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until
from tests.test_webhooks_on_fake import Post

GREEN = LiveKitRoom(f"{ROOM}:green")


@pytest.fixture
async def fake() -> AsyncIterator[FakeRoomService]:
    async with FakeRoomService(psrpc_timeout_s=0.05, auto_create=True) as service:
        yield service


async def ended(meeting: MeetingOnFake) -> Person:
    """A meeting is over; this is somebody whom it had banned, with a token of it."""
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await meeting.join("gil", breakout="green")
    await alice.comes_to("kick", participants=["bob"], ban=True)
    await meeting.module.close_room(meeting.room)
    await until(lambda: not meeting.fake.rooms)
    return bob


async def test_a_room_that_is_made_again_is_deleted_at_the_webhook(meeting: MeetingOnFake) -> None:
    post = Post(meeting)
    bob = await ended(meeting)
    meeting.enter(bob)
    meeting.fake.publish(ROOM, "bob", "microphone")
    post.waiting = post.waiting[-1:]  # that they joined was lost
    await post.deliver_all()
    await until(lambda: ROOM not in meeting.fake.rooms)


async def test_or_at_the_next_look(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        bob = await ended(meeting)
        for room in (ROOM, GREEN):
            fake.create_room(room)
        meeting.enter(bob)
        await until(lambda: not fake.rooms)
        meeting.enter(bob)
        await until(lambda: not fake.rooms)


async def test_also_by_another_process(fake: FakeRoomService, tmp_path: Path) -> None:
    path = tmp_path / "meetings.sqlite"
    async with meeting_on_fake(fake, store=SQLiteStore(path)) as meeting:
        bob = await ended(meeting)
    async with meeting_on_fake(fake, store=SQLiteStore(path), moderation_sweep_s=0.05) as meeting:
        meeting.enter(bob)
        await until(lambda: not fake.rooms)


async def test_the_next_meeting_of_that_name_begins_without_those_of_the_last(meeting: MeetingOnFake) -> None:
    bob = await ended(meeting)
    meeting.enter(bob)
    await meeting.join("alice", Role.MODERATOR)
    assert set(meeting.fake.permissions(ROOM)) == {"alice"}


async def test_a_room_in_use_is_let_alone(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        post = Post(meeting)
        await ended(meeting)
        await asyncio.gather(*(meeting.join(name) for name in ("alice", "mia", "zoe")))
        fake.calls.clear()
        post.waiting.clear()
        fake.publish(ROOM, "alice", "microphone")
        await post.deliver_all()
        await until(lambda: len(meeting.calls("ListRooms")) > 2)
        assert set(fake.permissions(ROOM)) == {"alice", "mia", "zoe"}
        assert meeting.calls("DeleteRoom") == []


async def test_a_restart_lets_it_alone_too(fake: FakeRoomService) -> None:
    store = MemoryStore()
    async with meeting_on_fake(fake, store=store) as meeting:
        await ended(meeting)
        await meeting.join("alice")
    async with meeting_on_fake(fake, store=store, moderation_sweep_s=0.05) as meeting:
        fake.calls.clear()
        await until(lambda: len(meeting.calls("ListRooms")) > 2)
        assert set(fake.permissions(ROOM)) == {"alice"}


class Closed:
    """What is closed, by a clock that is advanced."""

    def __init__(self, media: MediaServer) -> None:
        self.now = 1_000.0
        self.in_use = set[LiveKitRoom]()
        self.rooms = ClosedRooms(MemoryStore(), media, self._is_in_use, clock=lambda: self.now, look_s=0.01)

    async def _is_in_use(self, room: LiveKitRoom) -> bool:
        return room in self.in_use


@pytest.fixture
async def media(fake: FakeRoomService) -> AsyncIterator[RoomService]:
    async with RoomService(fake.url, fake.api_key, fake.api_secret) as service:
        yield service


async def test_who_opens_a_room_when_its_meeting_has_ended_meanwhile_leaves_it_closed(
    fake: FakeRoomService, media: RoomService
) -> None:
    closed = Closed(media)
    await closed.rooms.close(GREEN)
    await closed.rooms.make_way(GREEN)  # of a token that was asked for before the end
    await media.ensure_room(GREEN)
    await closed.rooms.look()
    assert fake.rooms == ()
    closed.in_use.add(GREEN)
    with fake.hang(method="DeleteRoom") as hanging:
        opening = asyncio.create_task(closed.rooms.make_way(GREEN))
        await hanging.hit()
        closed.in_use.clear()
    await opening
    assert GREEN in closed.rooms


async def test_after_an_hour_no_token_is_left(fake: FakeRoomService, media: RoomService) -> None:
    closed = Closed(media)
    await closed.rooms.close(GREEN)
    closed.now += CLOSED_S + 1
    fake.create_room(GREEN)
    await closed.rooms.react(GREEN)
    assert fake.rooms == (GREEN,)
    assert GREEN not in closed.rooms


async def test_whoever_keeps_coming_has_a_new_token_each_time_and_stays_out(
    fake: FakeRoomService, media: RoomService
) -> None:
    closed = Closed(media)
    await closed.rooms.close(GREEN)
    for _ in range(3):
        closed.now += CLOSED_S - 1
        fake.create_room(GREEN)
        await closed.rooms.react(GREEN)
        assert fake.rooms == ()
    await closed.rooms.load()  # as another process would
    assert GREEN in closed.rooms


async def test_a_later_end_counts(fake: FakeRoomService, media: RoomService) -> None:
    closed = Closed(media)
    await closed.rooms.close(GREEN)
    closed.now += CLOSED_S / 2
    await closed.rooms.close(GREEN)
    closed.now += CLOSED_S - 1
    assert GREEN in closed.rooms
    assert fake.rooms == ()


async def test_looking_goes_on_whatever_happens(fake: FakeRoomService, media: RoomService) -> None:
    closed = Closed(media)
    await closed.rooms.close(GREEN)
    asked = 0

    async def rooms_there(rooms: list[LiveKitRoom]) -> frozenset[LiveKitRoom]:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise [MediaServerUnavailable("away"), MediaServerRejected("no"), LookupError("a bug")][asked - 1]
        return await media.rooms_there(rooms)

    looking_on = SimpleNamespace(rooms_there=rooms_there, delete_room=media.delete_room, answering=True)
    closed.rooms._media = cast("MediaServer", looking_on)
    fake.create_room(GREEN)
    looking = asyncio.create_task(closed.rooms.run())
    await until(lambda: not fake.rooms)
    looking.cancel()
    await asyncio.wait({looking})


async def test_many_are_asked_about_at_once(fake: FakeRoomService, media: RoomService) -> None:
    closed = Closed(media)
    for number in range(501):
        await closed.rooms.close(LiveKitRoom(f"{ROOM}:{number:03}"))
    fake.create_room(f"{ROOM}:500")
    await closed.rooms.look()
    assert [call.method for call in fake.calls] == ["ListRooms", "ListRooms", "DeleteRoom"]


async def test_what_fails_at_a_webhook_is_left_to_the_next_look(fake: FakeRoomService, media: RoomService) -> None:
    closed = Closed(media)
    await closed.rooms.close(GREEN)
    fake.create_room(GREEN)
    with fake.refuse("internal", method="DeleteRoom"):
        await closed.rooms.react(GREEN)
    assert fake.rooms == (GREEN,)
    await closed.rooms.look()
    assert not fake.rooms


async def test_a_room_that_was_made_after_its_meeting_had_ended_goes_too(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05, moderation_livekit_timeout_s=0.2) as meeting:
        await meeting.join("alice", Role.MODERATOR)
        fake.close_room(ROOM)
        meeting.module._entered.media.forget_rooms()
        with fake.hang(method="CreateRoom", takes_effect=False) as hanging:
            joining = asyncio.ensure_future(meeting.join("bob", in_livekit=False))
            await hanging.hit()
            await meeting.module.close_room(RoomId(ROOM))
        await asyncio.wait({joining})
        fake.create_room(ROOM)  # the call that went unanswered had its effect after all
        await until(
            lambda: not fake.rooms or ParticipantId("bob") in meeting.module._audience._sessions.get(meeting.room, {})
        )

"""A meeting whose log cannot be read: it is refused, and the module goes on with the others."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from signaling import Participant, Role, StoreError
from signaling.identifiers import ParticipantId, RoomId
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import meeting_on_fake

OTHER = RoomId("another")


async def test_a_module_goes_on_with_the_meetings_that_can_be_read(fake: FakeRoomService, tmp_path: Path) -> None:
    path = tmp_path / "meetings.sqlite"
    async with meeting_on_fake(fake, store=SQLiteStore(path)) as meeting:
        await meeting.join("alice", Role.MODERATOR)
        meeting.room = OTHER
        await meeting.join("bob", Role.MODERATOR)
        room = next(known for known in await meeting.module._store.rooms() if known != OTHER)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE entries SET entry = substr(entry, 1, 50) WHERE room = ?", (room,))
        database.commit()
    async with meeting_on_fake(fake, store=SQLiteStore(path)) as meeting:
        with pytest.raises(StoreError, match=f"meeting {room}: entry 1: "):
            await meeting.join("alice", Role.MODERATOR)
        with pytest.raises(StoreError, match=f"meeting {room}: entry 1: "):
            await meeting.module.close_room(room)
        bob = Participant(ParticipantId("bob"), role=Role.MODERATOR)
        session = await meeting.module.join(OTHER, bob, deliver=lambda _: None)
        assert session.join_data is not None
        await session.leave()

"""Hosts that stop waiting, cancel, and enter twice: nobody else is the worse for it."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from signaling import ModerationModule, Role, Settings
from signaling.stores import open_store
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import MeetingOnFake, meeting_on_fake

# --- Who stops waiting -------------------------------------------------------------------------------------------


async def test_whoever_stops_waiting_for_the_end_of_a_session_keeps_nobody_from_their_events(
    meeting: MeetingOnFake,
) -> None:
    alice, bob, carol = [await meeting.join(name, Role.MODERATOR) for name in ("alice", "bob", "carol")]
    waiting = asyncio.create_task(asyncio.wait_for(bob.session.ended, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bob.session.ended.cancel()
    result = await alice.moderated("kick", participants=["bob"])
    assert [outcome["outcome"] for outcome in result["outcomes"]] == ["removed"]
    assert await bob.session.ended == "kicked"
    for person in (alice, carol):
        assert person.told("left", "control") == [{"message": "left", "id": "bob", "reason": "kicked"}]
        assert len(person.noticed("action_taken")) == 1


# --- Entering the module -----------------------------------------------------------------------------------------


async def test_entering_a_module_a_second_time_names_the_mistake(meeting: MeetingOnFake) -> None:
    with pytest.raises(RuntimeError, match="entered already"):
        await meeting.module.__aenter__()
    alice = await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert len(bob.told("microphone_restrictions_enabled")) == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_module_that_was_left_may_be_entered_again_and_tells_everything_once(
    fake: FakeRoomService, tmp_path: Path, kind: str
) -> None:
    store = open_store("memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'm.sqlite'}", audit_entries=10)
    async with meeting_on_fake(fake, store=store) as meeting:
        await meeting.join("alice", Role.MODERATOR)
    for _ in range(2):
        async with meeting.module:
            alice = await meeting.join("alice", Role.MODERATOR, in_livekit=False)
            await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
            assert Counter(delivery.payload["message"] for delivery in alice.inbox) == {
                "action_taken": 1,
                "microphone_restrictions_enabled": 1,
            }


async def test_a_module_whose_entering_failed_may_be_entered_again(fake: FakeRoomService, tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    path.mkdir()
    module = ModerationModule(
        Settings(
            livekit_url=fake.url,
            livekit_api_key=fake.api_key,
            livekit_api_secret=fake.api_secret,
            moderation_store_url=f"sqlite:///{path}",
        )
    )
    with pytest.raises(Exception, match="is a directory"):
        await module.__aenter__()
    path.rmdir()
    async with module:
        assert await module.audit("standup") == ()  # type: ignore[arg-type]

"""LiveKit is away, or comes back without its rooms, while several processes have people in one meeting."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit.protocol import models

from signaling import Role
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, meeting_on_fake, until

EVERYTHING = models.ParticipantPermission(can_subscribe=True, can_publish=True)
Nodes = tuple[MeetingOnFake, MeetingOnFake]


@pytest.fixture
async def nodes(fake: FakeRoomService) -> AsyncIterator[Nodes]:
    """Two processes, as far as the module can tell; the first looks after the meeting of whoever joins there first."""
    store = MemoryStore()
    async with (
        meeting_on_fake(fake, store=store, moderation_livekit_timeout_s=0.3) as one,
        meeting_on_fake(fake, store=store, moderation_livekit_timeout_s=0.3) as other,
    ):
        yield one, other


@pytest.mark.parametrize("fault", ["reset", "hang", "refuse"])
async def test_commands_are_answered_on_each_node_while_livekit_does_not(nodes: Nodes, fault: str) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    bob = await other.join("bob")
    faults = {
        "reset": one.fake.reset,
        "hang": one.fake.hang,
        "refuse": lambda: one.fake.refuse("internal", status=500),
    }
    with faults[fault]():
        async with asyncio.timeout(5):
            results = await asyncio.gather(
                alice.moderated("mute", sources=["microphone"], participants=["bob"]),
                anne.moderated("restrict", source="microphone"),
            )
        assert {result["error"] for result in results} == {"livekit_unavailable"}
    for node in nodes:
        await until(lambda node=node: node.module.livekit_answers)  # type: ignore[misc]
    await anne.comes_to("restrict", source="microphone")  # what was refused by name stands already
    await until(lambda: not other.may(bob))


async def test_the_rooms_that_are_gone_are_made_again_once(nodes: Nodes) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    bob = await other.join("bob")
    token = bob.token
    await alice.comes_to("restrict", source="microphone")
    with one.fake.reset():
        for person in (alice, anne):
            assert (await person.moderated("restrict", source="camera"))["error"] == "livekit_unavailable"
        one.fake.close_room(ROOM)
        one.fake.calls.clear()
    for node in nodes:
        await until(lambda node=node: node.module.livekit_answers)  # type: ignore[misc]
    await until(lambda: ROOM in one.fake.rooms)
    other.enter(bob, token)  # of before the restriction
    await until(lambda: not other.may(bob))
    standing_by = other.module._entered.meetings[ROOM].tasks
    await until(lambda: len(standing_by) == 1)  # it has looked
    assert len(one.calls("CreateRoom")) == 1


async def test_a_node_that_alone_has_noticed_makes_the_rooms_though_it_does_not_look_after_them(nodes: Nodes) -> None:
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    one.fake.close_room(ROOM)
    other.module._entered.meetings.restore_rooms()
    await until(lambda: ROOM in one.fake.rooms)
    assert len(one.calls("CreateRoom")) == 3, "by each who joined, and by one when it was gone"

"""What ends by itself is seen to by the process that looks after the meeting, and by the others when that is gone."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import signaling.meeting.clock
from signaling import Role
from signaling.core.decisions import Decision
from signaling.identifiers import CONTROLLER, NodeId, new_command_id
from signaling.messages import livekit, moderation
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, meeting_on_fake, until

Nodes = tuple[MeetingOnFake, MeetingOnFake]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def nodes(fake: FakeRoomService, store: MemoryStore) -> AsyncIterator[Nodes]:
    """Two processes, as far as the module can tell; the first looks after the meeting."""
    async with (
        meeting_on_fake(fake, store=store, moderation_disconnect_grace_s=0.1) as one,
        meeting_on_fake(fake, store=store, moderation_disconnect_grace_s=0.1) as other,
    ):
        yield one, other


async def members(store: MemoryStore) -> set[str]:
    record = await store.read(ROOM)
    return set() if record is None else set(record.state.members)


def stop_the_clock(node: MeetingOnFake) -> None:
    """A node that does nothing in time any more, though it is not known to be gone."""
    timer = node.module._entered.meetings[ROOM].timer
    timer.stop()
    timer._is_expiring = True


async def gone(store: MemoryStore, who: str) -> None:
    async with asyncio.timeout(10):
        while who in await members(store):  # noqa: ASYNC110 - nobody is there to be told
            await asyncio.sleep(0.002)


async def test_whoever_looks_after_the_meeting_gives_up_places_and_the_other_finds_it_done(
    nodes: Nodes, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.meeting.clock, "STANDBY_S", 600.0)
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    bob, carol = await other.join("bob"), await one.join("carol")
    given_up_by: set[NodeId | None] = set()
    store.listen(lambda commit: given_up_by.add(commit.entry.node) if len(commit.record.state.members) < 3 else None)
    await bob.session.disconnect()
    await gone(store, "bob")
    await carol.session.disconnect()
    await gone(store, "carol")
    assert given_up_by == {one.module._entered.meetings[ROOM].journal.node}
    assert other.module._entered.meetings[ROOM].timer._behind_s == 600.0


async def test_the_others_do_what_is_left_undone_a_moment_later(
    nodes: Nodes, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling.meeting.clock, "STANDBY_S", 0.05)
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    await other.join("anne", Role.MODERATOR)
    bob = await other.join("bob")
    stop_the_clock(one)
    await bob.session.disconnect()
    await gone(store, "bob")
    assert other.module._entered.meetings[ROOM].timer._behind_s == 0.05


async def test_who_is_just_being_let_in_elsewhere_has_their_place_when_they_are(
    nodes: Nodes, store: MemoryStore
) -> None:
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    bob = await one.join("bob")
    await other.join("anne")
    here = one.module._entered.meetings[ROOM]
    there = other.module._entered.meetings[ROOM]
    await bob.session.disconnect()
    async with here.journal._writing:  # the place is to be given up, and waits to be written
        await until(lambda: here.timer._is_expiring)
        await asyncio.wait_for(other.join("bob"), 5)
    await until(lambda: not here.timer._is_expiring)
    assert {"bob"} <= await members(store)
    async with there.journal._writing:  # and the other way round: they come to what is given up by then
        await (await one.join("bob")).session.disconnect()
        coming = asyncio.create_task(other.join("bob"))
        await gone(store, "bob")
    again = await coming
    assert {"bob"} <= await members(store)
    assert not again.session.is_over


@pytest.mark.parametrize("has_people", [True, False])
async def test_what_a_node_has_staged_that_is_gone_is_finished_by_another(
    fake: FakeRoomService, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, *, has_people: bool
) -> None:
    monkeypatch.setattr("signaling.meetings.BEAT_S", 0.02)
    async with meeting_on_fake(fake, store=store, moderation_sweep_s=0.05) as other:
        async with meeting_on_fake(fake, store=store, moderation_sweep_s=60) as one:
            alice = await one.join("alice", Role.MODERATOR)
            bob = await (other if has_people else one).join("bob")
            with fake.hang(method="UpdateParticipant", times=1) as hanging:
                command = livekit.EnableMicrophoneRestrictions(unrestricted_participants=())
                here = one.module._entered.meetings[ROOM]
                here.tasks.spawn(here.turns.take(alice.id, command, new_command_id()))
                await asyncio.wait_for(hanging.hit(), 5)
                await here.tasks.close()
        await until(lambda: not other.may(bob))
        async with asyncio.timeout(10):
            while not (kept := await store.audit(ROOM, limit=2)):  # noqa: ASYNC110 - nobody need be told
                await asyncio.sleep(0.002)
    assert [entry.action for entry in kept] == ["enable_microphone_restrictions"]


async def test_a_mute_that_was_staged_long_ago_counts_as_failed(fake: FakeRoomService, store: MemoryStore) -> None:
    now = [1_000.0]
    async with (
        meeting_on_fake(fake, store=store, clock=lambda: now[0]) as one,
        meeting_on_fake(fake, store=store, clock=lambda: now[0]) as other,
    ):
        await one.join("alice", Role.MODERATOR)
        bob = await other.join("bob")
        fake.publish(ROOM, bob.id, "microphone")
        here, there = (node.module._entered.meetings[ROOM] for node in (one, other))
        state = await here.journal.state()
        mute = moderation.Mute(sources=("microphone",), participants=(bob.id,))
        decision = here.turns._decide_seeing(state, CONTROLLER, mute, new_command_id())
        assert isinstance(decision, Decision)
        assert await here.turns._stage(decision)
        now[0] += 16
        await there.turns.finish_staged()
        (entry,) = await store.audit(ROOM, limit=2)
        assert [(each.participant, each.outcome) for each in entry.outcomes] == [("bob", "failed")]
        assert not any(track.muted for track in fake.participant(ROOM, bob.id).tracks)

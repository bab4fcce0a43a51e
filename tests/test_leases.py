"""Turns that end before their holder does: who goes on, what is sent no more, and what the sender is told."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit.protocol import models

import signaling.meeting.due
from signaling import Role
from signaling.core.commands import ChangeRole
from signaling.core.conclusions import Conclusion
from signaling.core.decisions import Refusal
from signaling.core.participants import Source
from signaling.identifiers import CONTROLLER, new_command_id
from signaling.meeting.meeting import Meeting
from signaling.messages import moderation
from signaling.stores.contract import Entry, Unstaged
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, meeting_on_fake, outcomes, until
from tests.stores.leasing import LeasingStore

EVERYTHING = models.ParticipantPermission(can_subscribe=True, can_publish=True)
LEASE_S = 0.3
Nodes = tuple[MeetingOnFake, MeetingOnFake]


@pytest.fixture
def store() -> LeasingStore:
    return LeasingStore(lease_s=LEASE_S)


@pytest.fixture
async def nodes(fake: FakeRoomService, store: LeasingStore) -> AsyncIterator[Nodes]:
    """Two processes, as far as the module can tell; a call to LiveKit has less time than a turn."""
    settings = {"moderation_livekit_timeout_s": LEASE_S / 2, "moderation_livekit_calls_per_room": 1}
    async with (
        meeting_on_fake(fake, store=store, **settings) as one,
        meeting_on_fake(fake, store=store, **settings) as other,
    ):
        yield one, other


@pytest.fixture
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is looked at again but when a turn was lost."""
    monkeypatch.setattr(signaling.meeting.due, "FIRST_RETRY_S", 60)


def here(node: MeetingOnFake) -> Meeting:
    return node.module._entered.meetings[ROOM]


async def audited(store: LeasingStore) -> list[str]:
    return [entry.action for entry in await store.audit(ROOM, limit=10)]


async def staged(store: LeasingStore) -> str | None:
    record = await store.read(ROOM)
    assert record is not None
    return None if record.staged is None else record.staged.action


# --- Giving up ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_retries")
async def test_no_call_is_begun_that_the_turn_may_not_outlast_and_the_decision_stays_staged(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    bob, carol = await one.join("bob"), await one.join("carol")
    for person in (bob, carol):
        one.fake.publish(ROOM, person.id, "microphone")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        restricting = asyncio.create_task(alice.moderated("restrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
    assert (await restricting)["error"] == "unavailable"
    assert len(one.calls("UpdateParticipant")) == 1
    assert await staged(store) == "restrict"
    await anne.comes_to("restrict", source="camera")
    assert await audited(store) == ["restrict", "restrict"]
    assert not one.may(bob)
    assert not one.may(carol)
    assert await staged(store) is None


async def test_what_was_begun_by_a_stop_is_put_right_though_the_turn_was_lost_in_between(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, _ = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await one.join("bob")
    one.fake.publish(ROOM, bob.id, "camera")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        stopping = asyncio.create_task(alice.moderated("stop", source="camera", participants=["bob"]))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
    assert (await stopping)["error"] == "unavailable"
    await until(lambda: one.may(bob, "camera"))


# --- Making up ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_retries")
@pytest.mark.parametrize("which", [0, 1])
async def test_everybody_is_looked_at_again_by_who_lost_a_turn_and_by_who_took_it_over(
    nodes: Nodes, store: LeasingStore, which: int
) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    bob = await one.join("bob")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        restricting = asyncio.create_task(alice.moderated("restrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
        await anne.comes_to("restrict", source="camera")
        assert here(other).lease.is_making_up
    await restricting
    assert here(one).lease.is_making_up
    making_up = here(nodes[1 - which]).lease._making_up
    assert making_up is not None
    making_up.cancel()  # that of the other
    one.fake.join(ROOM, "bob", permission=EVERYTHING)  # as a late call of a turn that is over would have it
    await until(lambda: not one.may(bob))


@pytest.mark.usefixtures("_no_retries")
async def test_a_meeting_is_not_let_go_of_before_what_was_lost_is_made_up_for(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await one.join("bob")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        restricting = asyncio.create_task(alice.moderated("restrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
        await other.module.command(ROOM, "livekit_moderation", {"action": "restrict", "source": "camera"})
    await restricting
    making_up = here(one).lease._making_up
    assert making_up is not None
    making_up.cancel()
    await other.module._entered.meetings.beat()
    one.fake.join(ROOM, "bob", permission=EVERYTHING)
    await until(lambda: not one.may(bob))
    await other.module._entered.meetings.beat()
    await until(lambda: other.module._entered.meetings.get(ROOM) is None)


# --- First outcomes ----------------------------------------------------------------------------------------------


async def test_who_lost_the_turn_is_told_what_whoever_took_it_over_has_made_of_it(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    await one.join("bob")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        restricting = asyncio.create_task(alice.moderated("restrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
        assert (await anne.comes_to("restrict", source="camera"))["bob"] == "restricted"
    result = await restricting
    assert "error" not in result
    assert outcomes(result) == {"alice": "exempt", "anne": "exempt", "bob": "restricted"}
    assert await audited(store) == ["restrict", "restrict"]
    actions = [told["command_id"] for told in anne.noticed("action_taken")]
    assert actions[0] == result["command_id"]
    assert len(actions) == 2


async def test_what_is_no_moderators_action_is_known_to_be_done_as_well(nodes: Nodes, store: LeasingStore) -> None:
    one, other = nodes
    anne, bob = await other.join("anne", Role.MODERATOR), await one.join("bob")
    await anne.comes_to("restrict", source="microphone")
    command_id = new_command_id()
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        changing = asyncio.create_task(here(one).turns.take(CONTROLLER, ChangeRole(bob.id, Role.MODERATOR), command_id))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
        await anne.comes_to("restrict", source="camera")
    assert isinstance(await changing, Conclusion)
    record = await store.read(ROOM)
    assert record is not None
    assert record.state.is_moderator(bob.id)


async def test_what_another_node_has_taken_back_is_not_told_as_done(nodes: Nodes, store: LeasingStore) -> None:
    one, other = nodes
    alice = await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        granting = asyncio.create_task(alice.moderated("restrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        await store.expire(ROOM)
        async with store.turn(ROOM) as turn:
            record = await store.read(ROOM)
            assert record is not None
            assert record.staged is not None
            here(other).lease._media.turn = turn
            await here(other).turns._stage(None)
            here(other).lease._media.turn = None
    assert (await granting)["error"] == "unavailable"
    assert await audited(store) == []


def is_conclusion(entry: Entry) -> bool:
    return entry.audit is not None


async def test_a_commit_whose_answer_was_lost_is_found_and_told(nodes: Nodes, store: LeasingStore) -> None:
    one, _ = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await one.join("bob")
    entries: list[Entry] = []
    store.listen(lambda commit: entries.append(commit.entry))
    store.loses_answer_to = is_conclusion
    assert (await alice.comes_to("restrict", source="microphone"))["bob"] == "restricted"
    assert [entry.audit is not None for entry in entries].count(True) == 1
    assert not isinstance(entries[-1].staging, Unstaged) or is_conclusion(entries[-1]), "nothing is taken back"
    assert not one.may(bob)


async def test_who_cannot_be_told_what_became_of_it_is_told_that(nodes: Nodes, store: LeasingStore) -> None:
    one, _ = nodes
    alice = await one.join("alice", Role.MODERATOR)
    store.loses_answer_to = is_conclusion
    store.answers = False
    assert (await alice.moderated("restrict", source="microphone"))["error"] == "unavailable"


async def test_a_command_that_was_committed_gets_its_first_outcome_whenever_it_comes_again(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    command, command_id = moderation.Restrict(source="microphone"), new_command_id()
    first = await here(one).turns.take(CONTROLLER, command, command_id)
    again = await here(other).turns.take(CONTROLLER, command, command_id)
    assert isinstance(first, Conclusion)
    assert isinstance(again, Conclusion)
    assert again.outcomes == first.outcomes
    assert await audited(store) == ["restrict"]
    assert isinstance(await here(other).turns.take(CONTROLLER, command, new_command_id()), Conclusion | Refusal)


# --- Tokens ------------------------------------------------------------------------------------------------------


async def test_a_token_made_by_a_record_that_is_outdated_by_then_is_made_up_for(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await alice.comes_to("restrict", source="microphone")
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        lifting = asyncio.create_task(alice.moderated("unrestrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        outdated = await store.read(ROOM)
        assert outdated is not None
        assert outdated.staged is not None
    await lifting
    assert bob.id not in here(other).due
    assert Source.MICROPHONE not in here(other).turns.sources_for_token(outdated, bob.id)
    assert bob.id in here(other).due
    assert not here(other).turns._minted_while_staged


async def test_a_token_made_by_a_record_that_is_not_heard_of_yet_waits_for_what_becomes_of_it(
    nodes: Nodes, store: LeasingStore
) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await alice.comes_to("restrict", source="microphone")
    journal = here(other).journal
    before = journal.newest
    with one.fake.hang(method="UpdateParticipant", times=1) as hanging:
        lifting = asyncio.create_task(alice.moderated("unrestrict", source="microphone"))
        await asyncio.wait_for(hanging.hit(), 5)
        record = await store.read(ROOM)
        assert record is not None
        journal.newest = before
        here(other).turns.sources_for_token(record, bob.id)
        assert bob.id in here(other).turns._minted_while_staged
    await lifting
    assert not here(other).turns._minted_while_staged
    await until(lambda: bob.id not in here(other).due)

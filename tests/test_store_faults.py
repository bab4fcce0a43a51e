"""What follows for meetings when the store says that something went wrong with it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import structlog

from signaling import Role, StoreError
from signaling.identifiers import ParticipantId, RoomId
from signaling.meeting.meeting import Meeting
from signaling.stores.contract import FellBack, FellBehind
from signaling.testing.fake_room_service import FakeRoomService
from tests.links import SharedStore
from tests.meeting_on_fake import ROOM, MeetingOnFake, meeting_on_fake, until

Nodes = tuple[MeetingOnFake, MeetingOnFake]
OVERLOOKED = "what followed is not kept"


@pytest.fixture
def store() -> SharedStore:
    return SharedStore()


@pytest.fixture
async def nodes(fake: FakeRoomService, store: SharedStore) -> AsyncIterator[Nodes]:
    """Two processes, as far as the module can tell, each with a link of its own to one store."""
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(meeting_on_fake(fake, store=store.link())) for _ in range(2)]
        yield one, other


async def connected(store: SharedStore) -> set[str]:
    record = await store.read(ROOM)
    assert record is not None
    return {who for who, member in record.state.members.items() if member.returns_until is None}


async def until_connected(store: SharedStore, *people: str) -> None:
    async with asyncio.timeout(10):
        while await connected(store) != set(people):  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.002)


# --- A node that cannot follow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [ROOM, None])
async def test_whoever_cannot_be_told_everything_is_interrupted_and_keeps_their_place(
    nodes: Nodes, store: SharedStore, room: RoomId | None
) -> None:
    one, other = nodes
    alice = await one.join("alice", Role.MODERATOR)
    bob, carol = await other.join("bob"), await other.join("carol")
    with structlog.testing.capture_logs() as logs:
        store.links[1].fail(FellBehind(room, OVERLOOKED))
    for person in (bob, carol):
        assert await asyncio.wait_for(person.session.ended, 5) == "interrupted"
    assert [(line["event"], line["room"], line["sessions"], line["reason"]) for line in logs] == [
        ("meeting_interrupted", ROOM, 2, OVERLOOKED)
    ]
    await until_connected(store, "alice")
    assert not alice.session.ended.done(), "another process follows it"
    back = await other.join("bob")
    assert await connected(store) == {"alice", "bob"}
    assert not alice.told("left", "control")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await back.until_told("microphone_restrictions_enabled")


async def test_a_meeting_that_could_not_be_followed_begins_anew_here(nodes: Nodes, store: SharedStore) -> None:
    _, other = nodes
    await other.join("bob")
    before = other.module._entered.meetings[ROOM]
    store.links[1].fail(FellBehind(ROOM, OVERLOOKED))
    await other.join("bob")
    assert other.module._entered.meetings[ROOM] is not before
    assert len(before.tasks) == 0
    assert await connected(store) == {"bob"}


async def test_another_meeting_is_not_interrupted(nodes: Nodes, store: SharedStore) -> None:
    _, other = nodes
    bob = await other.join("bob")
    meeting = other.module._entered.meetings[ROOM]
    store.links[1].fail(FellBehind(RoomId("lunch"), OVERLOOKED))
    assert other.module._entered.meetings[ROOM] is meeting
    assert not bob.session.is_over


async def test_whoever_is_being_let_in_when_a_meeting_is_interrupted_may_come_again(
    nodes: Nodes, store: SharedStore
) -> None:
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    async with one.module._entered.meetings[ROOM].journal._writing:
        pass
    with other.fake.hang(method="CreateRoom") as hanging:
        joining = asyncio.create_task(other.join("bob", breakout="red", in_livekit=False))
        await hanging.hit()
        store.links[1].fail(FellBehind(ROOM, OVERLOOKED))
        with pytest.raises(StoreError):
            await joining
    await until_connected(store, "alice")
    await other.join("bob")
    assert await connected(store) == {"alice", "bob"}


async def test_places_are_kept_though_the_store_does_not_answer_at_first(
    nodes: Nodes, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise StoreError("it is away")

    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(store, "append", fails)
        store.links[1].fail(FellBehind(None, OVERLOOKED))
        await until(lambda: any(line["event"] == "places_not_looked_at" for line in logs))
    assert await connected(store) == {"alice", "bob"}
    await other.module._entered.meetings.beat()
    await until_connected(store, "alice")


async def test_a_module_that_was_left_hears_of_no_fault(fake: FakeRoomService, store: SharedStore) -> None:
    async with meeting_on_fake(fake, store=store.link()) as node:
        await node.join("bob")
    store.links[0].fail(FellBehind(None, OVERLOOKED))


# --- A node that was not heard of --------------------------------------------------------------------------------


@pytest.fixture
async def stalled(fake: FakeRoomService, store: SharedStore) -> AsyncIterator[Nodes]:
    """Two processes, the second of which hears nothing once it is paused."""
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                meeting_on_fake(fake, store=store.link(), moderation_disconnect_grace_s=grace_s)
            )
            for grace_s in (0.1, 60)
        ]
        yield one, other


async def lose_bob(one: MeetingOnFake, store: SharedStore) -> None:
    """Have the first process find that the second is gone."""
    store.links[1].is_paused = True
    places = one.module._entered.meetings[ROOM].places
    await places.lose_connections({ParticipantId("bob"): lambda _: True})


async def test_whoever_was_given_up_elsewhere_is_interrupted_and_comes_back(stalled: Nodes, store: SharedStore) -> None:
    one, other = stalled
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await lose_bob(one, store)
    assert (await alice.until_told("left", "control"))["id"] == "bob"
    assert not bob.session.is_over
    store.links[1].resume()
    assert await asyncio.wait_for(bob.session.ended, 5) == "interrupted"
    await other.join("bob")
    assert await connected(store) == {"alice", "bob"}


@pytest.mark.parametrize("hears_first", [True, False])
async def test_whoever_has_come_back_elsewhere_stays_there_whatever_the_older_node_does_late(
    stalled: Nodes, store: SharedStore, *, hears_first: bool
) -> None:
    one, other = stalled
    await one.join("alice", Role.MODERATOR)
    bob = await other.join("bob")
    await lose_bob(one, store)
    back = await one.join("bob")
    if hears_first:
        store.links[1].resume()
        assert await asyncio.wait_for(bob.session.ended, 5) == "taken_over"
    await bob.session.disconnect()
    store.links[1].resume()
    assert not back.session.is_over
    assert await connected(store) == {"alice", "bob"}


# --- A store that has lost commits -------------------------------------------------------------------------------


async def test_moderators_are_told_what_is_lost_and_it_does_not_hold_any_more(nodes: Nodes, store: SharedStore) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await alice.moderated("watch", enabled=True)
    kept = await store.read(ROOM)
    assert kept is not None
    lost = (await alice.result("enable_microphone_restrictions", unrestricted_participants=[]))["command_id"]
    await until(lambda: not one.may(bob))
    await until(lambda: any("restrictions" in told["changed"] for told in alice.noticed("state_changed")))
    alice.forget()
    with structlog.testing.capture_logs() as logs:
        store.fall_back(ROOM, kept.revision)
    assert alice.noticed("state_rolled_back") == [{"message": "state_rolled_back", "command_ids": [lost]}]
    assert not bob.noticed("state_rolled_back")
    rolled_back = other.module.troubles["rolled_back"]
    assert rolled_back == {"meetings": 1, "at": pytest.approx(time.time(), abs=60)}
    lines = [line for line in logs if line["event"] == "state_rolled_back"]
    assert [(line["log_level"], line["room"], line["command_ids"]) for line in lines] == [("warning", ROOM, 1)] * 2
    await until(lambda: one.may(bob))
    await until(lambda: [] in [told["changed"].get("restrictions") for told in alice.noticed("state_changed")])
    assert (await other.module.state(ROOM)).restrictions == ()
    assert not alice.session.is_over
    assert not bob.session.is_over


async def test_whoever_stays_hears_what_is_committed_after_it(nodes: Nodes, store: SharedStore) -> None:
    one, other = nodes
    alice = await one.join("alice", Role.MODERATOR)
    kept = await store.read(ROOM)
    assert kept is not None
    bob = await other.join("bob")
    store.fall_back(ROOM, kept.revision)
    assert await asyncio.wait_for(bob.session.ended, 5) == "interrupted"
    assert not alice.session.is_over
    back = await other.join("bob")
    await alice.until_told("joined", "control", times=2)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await back.until_told("microphone_restrictions_enabled")
    store.fall_back(ROOM, kept.revision + 1)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await back.until_told("microphone_restrictions_enabled", times=2)


async def test_everybody_comes_back_to_a_meeting_that_is_lost(nodes: Nodes, store: SharedStore) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    store.fall_back(ROOM, 0)
    for person in (alice, bob):
        assert await asyncio.wait_for(person.session.ended, 5) == "interrupted"
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    assert await connected(store) == {"alice", "bob"}


async def test_what_a_meeting_lost_that_nobody_here_is_in_is_only_logged(nodes: Nodes, store: SharedStore) -> None:
    one, _ = nodes
    await one.join("alice", Role.MODERATOR)
    with structlog.testing.capture_logs() as logs:
        store.links[1].fail(FellBack(ROOM, None, ()))
    assert [line["event"] for line in logs] == ["state_rolled_back"]


@pytest.fixture
async def paused(fake: FakeRoomService, store: SharedStore) -> AsyncIterator[Nodes]:
    """Two processes, the second of which has Bob, and was taken for gone while it was paused."""
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                meeting_on_fake(fake, store=store.link(), moderation_disconnect_grace_s=60, moderation_sweep_s=60)
            )
            for _ in range(2)
        ]
        yield one, other


async def test_whoever_was_taken_for_gone_goes_on_by_their_session(paused: Nodes, store: SharedStore) -> None:
    one, other = paused
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    before = await store.read(ROOM)
    await lose_bob(one, store)
    assert await connected(store) == {"alice"}
    with structlog.testing.capture_logs() as logs:
        store.links[1].resume()
        await until_connected(store, "alice", "bob")
        await until(lambda: any(line["event"] == "let_in_again" for line in logs))
    assert [(line["room"], line["participants"]) for line in logs if line["event"] == "let_in_again"] == [(ROOM, 1)]
    after = await store.read(ROOM)
    assert before is not None
    assert after is not None
    assert after.state.members == before.state.members
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await bob.until_told("microphone_restrictions_enabled")
    assert not bob.session.is_over
    assert [each.payload["message"] for each in alice.inbox if each.payload.get("id") == "bob"] == ["joined"]


async def test_whoever_was_taken_for_gone_is_let_in_again_by_the_next_beat_at_the_latest(
    paused: Nodes, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Meeting) -> None:
        """As if that had not come to it."""

    one, other = paused
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    await lose_bob(one, store)
    with monkeypatch.context() as patch:
        patch.setattr(other.module._entered.meetings._presence, "let_in_again", nothing)
        store.links[1].resume()
    assert await connected(store) == {"alice"}
    await other.module._entered.meetings.beat()
    assert await connected(store) == {"alice", "bob"}


@pytest.mark.parametrize("how", ["disconnect", "leave"])
async def test_whoever_goes_meanwhile_is_not_let_in_again(paused: Nodes, store: SharedStore, how: str) -> None:
    one, other = paused
    await one.join("alice", Role.MODERATOR)
    bob = await other.join("bob")
    await lose_bob(one, store)
    there = other.module._entered.meetings
    async with there[ROOM].journal._writing:
        going = asyncio.create_task(bob.session.leave() if how == "leave" else bob.session.disconnect())
        await asyncio.wait({going}, timeout=0.02)
        store.links[1].resume()
    await going
    await there.beat()
    assert await connected(store) == {"alice"}


async def test_a_store_that_fails_is_asked_again_to_let_them_in(
    paused: Nodes, store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[object] = []

    async def fails(*args: object, **_: object) -> None:
        failed.append(args)
        raise StoreError("it is away")

    one, other = paused
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    await lose_bob(one, store)
    with monkeypatch.context() as patch:
        patch.setattr(store, "append", fails)
        store.links[1].resume()
        await until(lambda: bool(failed))
    await until_connected(store, "alice", "bob")


async def test_a_node_that_was_not_heard_of_for_long_says_so(paused: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    other = paused[1].module._entered.meetings
    with structlog.testing.capture_logs() as logs:
        await other.beat()
        monkeypatch.setattr(other._presence, "_said_at", asyncio.get_running_loop().time() - 17)
        await other.beat()
        await other.beat()
    assert [line["silent_s"] for line in logs if line["event"] == "node_was_silent"] == [pytest.approx(17, abs=0.5)]

"""Several processes on one store: each takes any connection, command or report, and nothing is done or told twice."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import jwt
import pytest
from livekit.protocol import models

import signaling.meetings
import signaling.presence
from signaling import Role, WebhookRefused
from signaling.core.participants import Source
from signaling.identifiers import BreakoutId, SessionId
from signaling.meeting.meeting import Meeting
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import Change, FakeRoomService
from signaling.testing.webhooks import sign_webhook, webhook_of
from tests.meeting_on_fake import ROOM, MeetingOnFake, meeting_on_fake, until

EVERYTHING = models.ParticipantPermission(can_subscribe=True, can_publish=True)
SWEEP_S = 0.05
Nodes = tuple[MeetingOnFake, MeetingOnFake]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def nodes(fake: FakeRoomService, store: MemoryStore) -> AsyncIterator[Nodes]:
    """Two processes, as far as the module can tell, on one store and one LiveKit."""
    async with meeting_on_fake(fake, store=store) as one, meeting_on_fake(fake, store=store) as other:
        yield one, other


@pytest.fixture
def _quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaling.meetings, "BEAT_S", 0.02)


async def members(store: MemoryStore) -> set[str]:
    record = await store.read(ROOM)
    return set() if record is None else set(record.state.members)


async def connected(store: MemoryStore) -> set[str]:
    record = await store.read(ROOM)
    assert record is not None
    return {who for who, member in record.state.members.items() if member.returns_until is None}


class Reports:
    """What LiveKit reports, brought to whichever node."""

    def __init__(self, fake: FakeRoomService) -> None:
        self._fake = fake
        self.bodies: list[bytes] = []
        fake.observe(self._collect)

    def _collect(self, change: Change) -> None:
        if (body := webhook_of(change)) is not None:
            self.bodies.append(body)

    async def bring_to(self, node: MeetingOnFake) -> None:
        bodies, self.bodies = self.bodies, []
        for body in bodies:
            await node.module.receive_webhook(body, sign_webhook(body, self._fake.api_key, self._fake.api_secret))


# --- Who lives ---------------------------------------------------------------------------------------------------


async def test_a_starting_node_leaves_the_people_of_the_others_alone(fake: FakeRoomService, store: MemoryStore) -> None:
    async with meeting_on_fake(fake, store=store) as one:
        bob = await one.join("bob")
        revision = (await one.module._entered.meetings[ROOM].journal.record()).revision
        async with meeting_on_fake(fake, store=store) as other:
            assert await connected(store) == {"bob"}
            assert other.module._entered.meetings.get(ROOM) is None, "another node sees to it"
        assert await connected(store) == {"bob"}
        assert (await one.module._entered.meetings[ROOM].journal.record()).revision == revision
        assert not bob.session.ended.done()


@pytest.mark.usefixtures("_quick_beats")
async def test_the_people_of_a_node_that_is_gone_have_the_grace_to_come_back_anywhere(
    fake: FakeRoomService, store: MemoryStore
) -> None:
    async with meeting_on_fake(fake, store=store, moderation_disconnect_grace_s=0.3) as one:
        alice = await one.join("alice", Role.MODERATOR)
        async with meeting_on_fake(fake, store=store) as other:
            await other.join("bob")
            await other.join("carol")
        async with asyncio.timeout(10):
            while await connected(store) != {"alice"}:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.002)
        assert await members(store) == {"alice", "bob", "carol"}
        await one.join("bob")
        assert (await alice.until_told("left", "control"))["id"] == "carol"
        assert await members(store) == {"alice", "bob"}


@pytest.mark.usefixtures("_quick_beats")
async def test_a_node_that_says_nothing_for_long_counts_as_gone(
    fake: FakeRoomService, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Meeting) -> None:
        """As if it heard nothing either."""

    monkeypatch.setattr(signaling.presence, "LIVES_S", 1.0)
    async with meeting_on_fake(fake, store=store) as one, meeting_on_fake(fake, store=store) as other:
        await one.join("alice", Role.MODERATOR)
        await other.join("bob")
        monkeypatch.setattr(other.module._entered.meetings._presence, "let_in_again", nothing)
        for task in tuple(other.module._entered.meetings._background):
            task.cancel()
        async with asyncio.timeout(10):
            while await connected(store) != {"alice"}:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.002)


@pytest.mark.usefixtures("_quick_beats")
async def test_another_node_sweeps_when_the_one_that_did_is_gone(fake: FakeRoomService, store: MemoryStore) -> None:
    async with meeting_on_fake(fake, store=store, moderation_sweep_s=SWEEP_S) as other:
        async with meeting_on_fake(fake, store=store, moderation_sweep_s=SWEEP_S) as one:
            await one.join("carol")
            alice, bob = await other.join("alice", Role.MODERATOR), await other.join("bob")
            await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
        fake.join(ROOM, "bob", permission=EVERYTHING)
        await until(lambda: not other.may(bob))


# --- Who is where ------------------------------------------------------------------------------------------------


async def test_who_connects_elsewhere_takes_over_there(nodes: Nodes, store: MemoryStore) -> None:
    one, other = nodes
    older = await one.join("bob")
    newer = await other.join("bob")
    assert await asyncio.wait_for(older.session.ended, 5) == "taken_over"
    await older.session.leave()
    assert await connected(store) == {"bob"}
    assert not newer.session.ended.done()
    back = await one.join("bob")
    assert await asyncio.wait_for(newer.session.ended, 5) == "taken_over"
    assert not back.session.ended.done()


@pytest.mark.parametrize("how", ["leave", "disconnect"])
async def test_who_is_here_by_a_session_elsewhere_does_not_go_by_an_older_one(
    nodes: Nodes, store: MemoryStore, how: str
) -> None:
    one, other = nodes
    older = await one.join("bob")
    async with one.module._entered.meetings[ROOM].journal._writing:
        ending = asyncio.create_task(older.session.leave() if how == "leave" else older.session.disconnect())
        await asyncio.wait({ending}, timeout=0.02)
        await other.join("bob")
    await ending
    assert await connected(store) == {"bob"}


async def test_a_place_is_that_of_the_session_in_the_state_whatever_has_been_heard_of(
    nodes: Nodes, store: MemoryStore
) -> None:
    bob = await nodes[0].join("bob")
    record = await store.read(ROOM)
    assert record is not None
    assert bob.session.has_place(record.state)
    elsewhere = replace(record.state.members[bob.id], session=SessionId("elsewhere"))
    assert not bob.session.has_place(replace(record.state, members={bob.id: elsewhere}))


async def test_who_is_kicked_from_elsewhere_is_told_and_goes(nodes: Nodes) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    assert await alice.comes_to("kick", participants=["bob"], reason="noise") == {"bob": "removed"}
    assert await asyncio.wait_for(bob.session.ended, 5) == "kicked"
    assert [told["reason"] for told in bob.noticed("kicked")] == ["noise"]
    await until(lambda: "bob" not in one.fake.permissions(ROOM))


async def test_who_is_moved_from_elsewhere_gets_credentials_for_the_other_room(nodes: Nodes) -> None:
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    bob = await other.join("bob")
    await one.module.move(ROOM, bob.id, BreakoutId("red"))
    assert (await bob.until_told("credentials"))["room"] == "standup:red"
    assert bob.session.join_data is not None
    assert bob.session.join_data["room"] == "standup:red"
    assert len(bob.told("credentials")) == 1
    await until(lambda: "bob" not in one.fake.permissions(ROOM))


async def test_who_moves_themselves_gets_credentials_once(nodes: Nodes) -> None:
    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    bob = await other.join("bob")
    await bob.session.move(BreakoutId("red"))
    assert [told["room"] for told in bob.told("credentials")] == ["standup:red"]


async def test_a_meeting_that_is_ended_elsewhere_is_over_here(nodes: Nodes) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await one.module.close_room(ROOM)
    for person in (alice, bob):
        assert await asyncio.wait_for(person.session.ended, 5) == "meeting_ended"
    for node in nodes:
        await until(lambda node=node: node.module._entered.meetings.get(ROOM) is None)  # type: ignore[misc]
    assert one.fake.rooms == ()


async def test_rooms_of_a_meeting_are_deleted_though_whoever_ended_it_does_no_more(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> None:
        """As if the process were gone."""

    one, other = nodes
    await one.join("alice", Role.MODERATOR)
    await other.join("bob")
    monkeypatch.setattr(one.module._entered.meetings[ROOM].rooms, "delete_doomed", nothing)
    await one.module.close_room(ROOM)
    await until(lambda: one.fake.rooms == ())
    await until(lambda: other.module._entered.meetings.get(ROOM) is None)


async def test_a_room_that_was_closed_makes_way_once(nodes: Nodes) -> None:
    one, other = nodes
    await one.join("bob")
    await one.module.close_room(ROOM)
    await until(lambda: one.fake.rooms == ())
    for node in nodes:
        await node.module._entered.meetings.closed.load()
        await until(lambda node=node: node.module._entered.meetings.get(ROOM) is None)  # type: ignore[misc]
    one.fake.calls.clear()
    await one.join("bob")
    await other.join("carol")
    assert set(one.fake.permissions(ROOM)) == {"bob", "carol"}
    assert len(one.calls("DeleteRoom")) == 1


# --- What is told ------------------------------------------------------------------------------------------------


async def test_all_are_told_of_a_commit_in_order_and_its_sender_with_the_transaction_id(nodes: Nodes) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    for _ in range(3):
        await alice.send("enable_microphone_restrictions", transaction_id=7, unrestricted_participants=[])
        await alice.send("disable_microphone_restrictions", transaction_id=8)
    told = "microphone_restrictions_enabled", "microphone_restrictions_disabled"
    for person, ids in ((alice, [7, 8]), (bob, [None, None])):
        heard = [each for each in person.inbox if each.payload["message"] in told]
        assert [each.payload["message"] for each in heard] == [*told] * 3
        assert [each.transaction_id for each in heard] == ids * 3


async def test_a_token_that_is_made_elsewhere_during_a_turn_is_made_up_for(nodes: Nodes) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    carol = await other.join("carol")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await until(lambda: not one.may(carol))
    with one.fake.hang(method="UpdateParticipant", identity="carol") as hanging:
        lifting = asyncio.create_task(alice.send("disable_microphone_restrictions"))
        await hanging.hit()
        await bob.send("create_new_access_token")
        other.enter(bob, bob.told("credentials")[-1]["token"])
        assert not other.may(bob), "the stricter of before and after"
    await lifting
    await until(lambda: other.may(bob))


async def test_what_is_reported_to_a_node_without_the_meeting_is_repaired_there_and_told_once(
    fake: FakeRoomService, nodes: Nodes
) -> None:
    one, other = nodes
    reports = Reports(fake)
    alice, bob = await one.join("alice", Role.MODERATOR), await one.join("bob")
    token = bob.token
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await reports.bring_to(one)
    fake.leave(ROOM, "bob")
    one.enter(bob, token)
    assert one.may(bob)
    await reports.bring_to(other)
    await until(lambda: not one.may(bob))
    await alice.until_told("drift_repaired", "livekit_moderation")
    await one.module._entered.meetings[ROOM].reconciler.sweep()
    assert [told["participant"] for told in alice.noticed("drift_repaired")] == ["bob"]
    await other.module._entered.meetings.beat()
    await until(lambda: other.module._entered.meetings.get(ROOM) is None)


async def test_what_is_published_right_after_a_mute_is_muted_wherever_it_is_reported(
    fake: FakeRoomService, nodes: Nodes
) -> None:
    one, other = nodes
    reports = Reports(fake)
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await reports.bring_to(one)
    await alice.outcomes("force_mute", participants=["bob"])
    sid = fake.publish(ROOM, "bob", "microphone")
    await reports.bring_to(other)
    await until(lambda: one.is_muted(bob, sid))
    assert (await bob.until_told("force_muted"))["moderator"] == "alice"


async def test_what_is_given_elsewhere_right_after_a_mute_is_theirs_to_publish(
    fake: FakeRoomService, nodes: Nodes
) -> None:
    one, other = nodes
    reports = Reports(fake)
    alice, bob = await one.join("alice", Role.MODERATOR), await other.join("bob")
    await alice.outcomes("force_mute", participants=["bob"])
    await alice.comes_to("allow", source="microphone", participants=["bob"])
    there = other.module._entered.meetings[ROOM].just_muted
    await until(lambda: all(not muting.sources for muting in there.mutings.values()))
    sid = fake.publish(ROOM, "bob", "microphone")
    await reports.bring_to(other)
    await bob.send("create_new_access_token")
    assert not one.is_muted(bob, sid)


async def test_strangers_and_drift_are_told_once_though_all_look(fake: FakeRoomService, store: MemoryStore) -> None:
    reports = Reports(fake)
    async with (
        meeting_on_fake(fake, store=store, moderation_sweep_s=SWEEP_S) as one,
        meeting_on_fake(fake, store=store, moderation_sweep_s=SWEEP_S) as other,
    ):
        moderators = [await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)]
        bob = await other.join("bob")
        await moderators[0].send("enable_microphone_restrictions", unrestricted_participants=[])
        await until(lambda: not one.may(bob))
        fake.join(ROOM, "eve", permission=EVERYTHING)
        fake.leave(ROOM, "bob")
        fake.join(ROOM, "bob", permission=EVERYTHING)
        await reports.bring_to(other)
        for moderator in moderators:
            await moderator.until_told("unknown_participant", "livekit_moderation")
        await until(lambda: not one.may(bob) and not fake.may_publish(ROOM, "eve", "microphone"))
        looks = len(one.calls("ListParticipants"))
        await until(lambda: len(one.calls("ListParticipants")) > looks + 6)
        for moderator in moderators:
            assert [told["identity"] for told in moderator.noticed("unknown_participant")] == ["eve"]
            drifted = [told["participant"] for told in moderator.noticed("drift_repaired")]
            assert sorted(drifted) == sorted(set(drifted)), "each once"


async def test_one_node_sweeps_at_a_time(fake: FakeRoomService, store: MemoryStore) -> None:
    async with (
        meeting_on_fake(fake, store=store, moderation_sweep_s=SWEEP_S) as one,
        meeting_on_fake(fake, store=store, moderation_sweep_s=SWEEP_S) as other,
    ):
        await one.join("alice", Role.MODERATOR)
        await other.join("bob")
        meetings = [node.module._entered.meetings[ROOM] for node in (one, other)]
        looks = len(one.calls("ListParticipants"))
        await until(lambda: len(one.calls("ListParticipants")) > looks + 3)
        looking = [bool(meeting.roster.presences) for meeting in meetings]
        assert sorted(looking) == [False, True]


async def test_commands_given_on_two_nodes_at_once_are_carried_out_one_after_another(
    nodes: Nodes, store: MemoryStore
) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    await other.join("bob")
    results = await asyncio.gather(
        *(alice.moderated("restrict", source="camera") for _ in range(3)),
        *(anne.moderated("restrict", source="microphone") for _ in range(3)),
    )
    assert all("error" not in result for result in results)
    record = await store.read(ROOM)
    assert record is not None
    assert record.staged is None
    assert {Source.CAMERA, Source.MICROPHONE} <= record.state.restricted


# --- What is counted once, wherever ------------------------------------------------------------------------------


async def test_popouts_are_numbered_through_wherever_their_owner_is(nodes: Nodes) -> None:
    named = []
    for node in (*nodes, *nodes):
        bob = await node.join("bob")
        await bob.send("request_popout_stream_access_token")
        token = bob.told("popout_stream_access_token")[-1]["token"]
        named.append(jwt.decode(token, options={"verify_signature": False})["sub"])
    assert named == [f"bob-popout{number}" for number in range(1, 5)]


async def test_a_question_is_answered_wherever_whoever_was_asked_is_by_then(nodes: Nodes) -> None:
    one, other = nodes
    alice, bob = await one.join("alice", Role.MODERATOR), await one.join("bob")
    await alice.comes_to("restrict", source="microphone")
    assert await alice.comes_to("ask_to_unmute", participants=["bob"]) == {"bob": "asked"}
    (asked,) = bob.noticed("unmute_requested")
    back = await other.join("bob")
    assert back.noticed("unmute_requested") == [asked]
    assert await back.comes_to("answer_unmute_request", request_id=asked["request_id"], accept=True) == {
        "bob": "granted"
    }
    answered = await alice.until_told("unmute_request_answered", "livekit_moderation")
    assert (answered["participant"], answered["accepted"]) == ("bob", True)
    again = await back.moderated("answer_unmute_request", request_id=asked["request_id"], accept=True)
    assert again["error"] == "unknown_request_id"


async def test_nobody_is_asked_more_often_because_others_ask_elsewhere(nodes: Nodes) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    bob = await other.join("bob")
    assert await alice.comes_to("ask_to_unmute", participants=["bob"]) == {"bob": "asked"}
    assert (await anne.moderated("ask_to_unmute", participants=["bob"]))["error"] == "rate_limit_exceeded"
    assert len(bob.noticed("unmute_requested")) == 1


async def test_hands_are_in_one_order(nodes: Nodes) -> None:
    one, other = nodes
    alice, anne = await one.join("alice", Role.MODERATOR), await other.join("anne", Role.MODERATOR)
    people = [await node.join(name) for name, node in zip(("dave", "bob", "carol"), (other, one, other), strict=True)]
    for person in people:
        await person.session.receive("control", {"action": "raise_hand"})
    seen = []
    for moderator in (alice, anne):
        await moderator.moderate("get_state")
        state = moderator.noticed("state")[-1]
        up = [each for each in state["participants"] if each["hand_is_up"]]
        seen.append([each["participant"] for each in sorted(up, key=lambda each: each["hand_updated_at"])])
    assert seen == [["dave", "bob", "carol"]] * 2


async def test_a_report_counts_once_whichever_nodes_it_is_brought_to(nodes: Nodes, fake: FakeRoomService) -> None:
    reports = Reports(fake)
    await nodes[0].join("bob")
    again = reports.bodies[-1:]
    await reports.bring_to(nodes[0])
    reports.bodies = again
    with pytest.raises(WebhookRefused, match="replayed"):
        await reports.bring_to(nodes[1])

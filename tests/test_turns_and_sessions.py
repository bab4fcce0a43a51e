"""What happens seldom: clocks that are set back, restarts, people who come twice at once, and queues that are full."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from signaling import NoSuchMeeting, ParticipantBanned, Role, WebhookRefused, metrics
from signaling.core.participants import Source
from signaling.identifiers import ParticipantId
from signaling.meeting.meeting import Meeting
from signaling.stores.contract import Commit
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.webhooks import sign_webhook, webhook_of
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until

BOB = ParticipantId("bob")
LIFT = "disable_microphone_restrictions"


def kept(meeting: MeetingOnFake) -> Meeting:
    return meeting.module._entered.meetings[ROOM]


# --- Time --------------------------------------------------------------------------------------------------------


async def test_timestamps_never_go_back_though_the_clock_does(
    meeting: MeetingOnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await alice.send(LIFT)
    earlier = meeting.module._clock() - 3_600
    monkeypatch.setattr(meeting.module._audience, "_clock", lambda: earlier)
    await alice.send(LIFT)
    stamps = [delivery.timestamp for delivery in alice.inbox]
    assert len(stamps) >= 4
    assert stamps == sorted(stamps)


# --- Restarts ----------------------------------------------------------------------------------------------------


def restarts(fake: FakeRoomService, path: Path, **settings: object) -> AbstractAsyncContextManager[MeetingOnFake]:
    store = SQLiteStore(path / "meetings.sqlite", audit_entries=10)
    return meeting_on_fake(fake, store=store, **settings)


async def test_after_a_restart_everybody_has_the_grace_period_to_return_and_no_more(
    fake: FakeRoomService, tmp_path: Path
) -> None:
    async with restarts(fake, tmp_path) as meeting:
        await meeting.join("alice", Role.MODERATOR)
        await meeting.join("bob")
    async with restarts(fake, tmp_path, moderation_disconnect_grace_s=0.05) as meeting:
        await until(lambda: fake.permissions(ROOM) == {})
        assert (await kept(meeting).journal.record()).state.members == {}


async def test_after_a_restart_what_was_kept_of_a_meeting_with_nobody_in_it_ends_in_time(
    fake: FakeRoomService, tmp_path: Path
) -> None:
    async with restarts(fake, tmp_path) as meeting:
        await (await meeting.join("bob")).session.leave()
    async with restarts(fake, tmp_path, moderation_empty_room_s=0.05) as meeting:
        await until(lambda: ROOM not in fake.rooms)
        await until(lambda: ROOM not in meeting.module._entered.meetings._meetings)


async def test_after_a_restart_the_rooms_of_a_meeting_are_made_again(fake: FakeRoomService, tmp_path: Path) -> None:
    async with restarts(fake, tmp_path) as meeting:
        await meeting.join("bob", in_livekit=False)
    fake.close_room(ROOM)
    async with restarts(fake, tmp_path):
        await until(lambda: ROOM in fake.rooms)


async def test_after_a_restart_the_rooms_of_a_meeting_that_is_over_are_deleted(
    fake: FakeRoomService, tmp_path: Path
) -> None:
    async with restarts(fake, tmp_path, moderation_livekit_timeout_s=0.05) as meeting:
        await meeting.join("bob")
        with fake.refuse("unavailable", method="DeleteRoom"):
            await meeting.module.close_room(ROOM)
            assert ROOM in fake.rooms
            await meeting.module.__aexit__(None, None, None)
    async with restarts(fake, tmp_path):
        await until(lambda: ROOM not in fake.rooms)


# --- Sessions ----------------------------------------------------------------------------------------------------


class Slow(MemoryStore):
    """A store whose answers can be held back when it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.answers, self.has_written = asyncio.Event(), asyncio.Event()
        self.answers.set()

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        is_written = await super().append(commit, fence=fence)
        self.has_written.set()
        await self.answers.wait()
        return is_written


async def test_of_two_who_join_at_once_as_the_same_the_newer_one_stays(fake: FakeRoomService) -> None:
    store = Slow()
    async with meeting_on_fake(fake, store=store) as meeting:
        store.answers.clear()
        joining = [asyncio.create_task(meeting.join("bob", in_livekit=False))]
        await store.has_written.wait()
        joining.append(asyncio.create_task(meeting.join("bob", in_livekit=False)))
        await until(lambda: len(meeting.module._audience._sessions[ROOM][BOB]) == 2)
        store.answers.set()
        older, newer = await asyncio.gather(*joining)
        assert await older.session.ended == "taken_over"
        assert not newer.session.is_over
        assert meeting.module._audience._sessions[ROOM][BOB] == [newer.session]


async def test_who_comes_back_with_other_rights_has_these_in_livekit_too(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob", Role.MODERATOR)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert meeting.may(bob)
    await meeting.join("bob", Role.USER, in_livekit=False)
    await until(lambda: not meeting.may(bob))
    await meeting.join("bob", Role.MODERATOR, in_livekit=False)
    await until(lambda: meeting.may(bob))


async def test_who_comes_back_into_another_room_is_removed_from_the_old_one(meeting: MeetingOnFake) -> None:
    await meeting.join("bob")
    await meeting.join("bob", breakout="blue")
    await until(lambda: "bob" not in fake_people(meeting, ROOM))
    assert "bob" in fake_people(meeting, f"{ROOM}:blue")


def fake_people(meeting: MeetingOnFake, room: str) -> set[str]:
    return set(meeting.fake.permissions(room))


# --- The queue ---------------------------------------------------------------------------------------------------


async def test_exactly_so_many_wait_as_may_and_their_places_are_free_again(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_livekit_timeout_s=60) as meeting:
        alice, mona = await meeting.join("alice", Role.MODERATOR), await meeting.join("mona", Role.MODERATOR)
        for _ in range(2):
            alice.forget()
            mona.forget()
            with fake.hang(method="ListParticipants", times=1) as hanging:
                commands = [asyncio.create_task(alice.send(LIFT))]
                await hanging.hit()
                # Of 64 places half are for one person, and half of what is left for the next.
                for person, most in ((alice, 32), (mona, 16)):
                    before = kept(meeting).turns._waiting.total()
                    commands += [asyncio.create_task(person.send(LIFT)) for _ in range(most)]
                    await until(lambda wanted=before + most: kept(meeting).turns._waiting.total() == wanted)  # type: ignore[misc]
                    assert person.told("error") == []
                    await person.send(LIFT)
                    assert [error["error"] for error in person.told("error")] == ["rate_limit_exceeded"]
            await asyncio.gather(*commands)
            assert len(alice.told("microphone_restrictions_disabled")) == 1 + 32 + 16
        assert kept(meeting).turns._waiting.total() == 0


async def test_commands_that_still_wait_when_the_module_ends_wait_no_longer(fake: FakeRoomService) -> None:
    before = metrics.COMMANDS_WAITING._value.get()
    async with meeting_on_fake(fake) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        with fake.hang(method="ListParticipants", times=1) as hanging:
            commands = [asyncio.create_task(alice.send(LIFT)) for _ in range(3)]
            await hanging.hit()
            await until(lambda: kept(meeting).turns._waiting.total() == 2)
            assert metrics.COMMANDS_WAITING._value.get() == before + 2
            await meeting.module.__aexit__(None, None, None)
    await asyncio.gather(*commands)
    assert metrics.COMMANDS_WAITING._value.get() == before


# --- Ends --------------------------------------------------------------------------------------------------------


async def test_nothing_that_was_about_to_be_done_is_left_when_a_meeting_ends(meeting: MeetingOnFake) -> None:
    alice, _ = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    room = kept(meeting)
    with meeting.fake.hang(method="UpdateParticipant", times=1) as hanging:
        running = asyncio.create_task(alice.send("enable_microphone_restrictions", unrestricted_participants=[]))
        await hanging.hit()
        assert (await room.journal.record()).staged is not None
        await meeting.module.close_room(ROOM)
        ended = room.journal.newest
        assert ended is not None
        assert (ended.state.goes_on, ended.staged) == (False, None)
    await running


# --- Strangers ---------------------------------------------------------------------------------------------------


def told_of(moderator: Person) -> list[str]:
    return [told["identity"] for told in moderator.noticed("unknown_participant")]


async def test_a_stranger_is_told_of_once_whoever_finds_them_first_and_again_when_they_come_again(
    fake: FakeRoomService,
) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
        bodies: list[bytes] = []
        fake.observe(lambda change: bodies.extend(body for body in [webhook_of(change)] if body))
        fake.join(ROOM, "stranger")
        for body in bodies:
            await meeting.module.receive_webhook(body, sign_webhook(body, fake.api_key, fake.api_secret))
        await alice.until_told("unknown_participant", "livekit_moderation")
        await sweeps(meeting, 3)
        assert told_of(alice) == ["stranger"]
        fake.leave(ROOM, "stranger")
        await sweeps(meeting, 2)
        fake.join(ROOM, "stranger")
        await until(lambda: told_of(alice) == ["stranger", "stranger"])
        await sweeps(meeting, 2)
        assert told_of(alice) == ["stranger", "stranger"]


async def sweeps(meeting: MeetingOnFake, times: int) -> None:
    """Wait until so many more sweeps are over."""
    looks = len(meeting.calls("ListParticipants"))
    await until(lambda: len(meeting.calls("ListParticipants")) > looks + times)


# --- Questions ---------------------------------------------------------------------------------------------------


async def test_only_who_was_asked_is_asked_again_and_only_while_they_may_answer(
    meeting: MeetingOnFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(person: Person) -> int:
        return len(person.noticed("unmute_requested"))

    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.comes_to("ask_to_unmute", participants=["bob"])
    await bob.session.disconnect()
    assert asked(await meeting.join("carol")) == 0
    assert asked(await meeting.join("bob", extensions=())) == 0
    assert asked(await meeting.join("bob")) == 1
    later = meeting.module._clock() + 61  # by the clock that joining goes by, and no other
    monkeypatch.setattr(meeting.module._entered.joining, "_clock", lambda: later)
    assert asked(await meeting.join("bob")) == 0


# --- Who is told -------------------------------------------------------------------------------------------------


async def test_nobody_is_told_of_their_own_coming_nor_in_a_namespace_that_they_did_not_ask_for(
    meeting: MeetingOnFake,
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", extensions=())
    carol = await meeting.join("carol")
    assert [joined["id"] for joined in alice.told("joined", "control")] == ["bob", "carol"]
    assert carol.told("joined", "control") == []
    meeting.fake.publish(ROOM, "bob", "microphone")
    await alice.send("force_mute", transaction_id=7, participants=["bob"])
    assert [(delivery.payload["message"], delivery.transaction_id) for delivery in bob.inbox] == [("force_muted", None)]
    assert all(delivery.transaction_id is None for delivery in carol.inbox)
    assert alice.noticed("action_taken")
    assert carol.noticed("action_taken") == []
    await carol.session.change_role(Role.MODERATOR)
    assert (len(alice.told("update", "control")), carol.told("update", "control")) == (1, [])


async def test_whoever_is_made_to_go_is_told_why(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    bob, carol, dave = [await meeting.join(name) for name in ("bob", "carol", "dave")]
    await alice.comes_to("kick", participants=["bob"])
    await alice.comes_to("kick", participants=["carol"], ban=True)
    assert (await bob.session.ended, await carol.session.ended) == ("kicked", "banned")
    with pytest.raises(ParticipantBanned):
        await meeting.join("carol")
    await meeting.module.close_room(ROOM)
    assert (await alice.session.ended, await dave.session.ended) == ("meeting_ended", "meeting_ended")
    for person in (alice, bob, carol, dave):
        person.forget()
        await person.send("create_new_access_token")
        assert person.inbox == []


async def test_only_moderators_who_watch_are_told_of_changes(meeting: MeetingOnFake) -> None:
    alice, mona = await meeting.join("alice", Role.MODERATOR), await meeting.join("mona", Role.MODERATOR)
    eve = await meeting.join("eve", Role.MODERATOR)
    for watcher in (alice, eve):
        await watcher.moderate("watch", enabled=True)
    await eve.session.change_role(Role.USER)
    eve.forget()
    await meeting.join("bob")
    await until(lambda: len(alice.noticed("state_changed")) > 0 and not kept(meeting).view._showing)
    assert (mona.noticed("state_changed"), eve.noticed("state_changed")) == ([], [])


async def test_what_livekit_reports_twice_is_refused(meeting: MeetingOnFake) -> None:
    await meeting.join("bob", in_livekit=False)
    bodies: list[bytes] = []
    meeting.fake.observe(lambda change: bodies.extend(body for body in [webhook_of(change)] if body))
    meeting.fake.join(ROOM, "stranger")
    signed = [(body, sign_webhook(body, meeting.fake.api_key, meeting.fake.api_secret)) for body in bodies]
    await meeting.module.receive_webhook(*signed[0])
    with pytest.raises(WebhookRefused, match="replayed"):
        await meeting.module.receive_webhook(*signed[0])


async def test_the_controllers_command_for_a_meeting_that_ends_meanwhile_is_for_none(meeting: MeetingOnFake) -> None:
    await meeting.join("alice", Role.MODERATOR)
    command = {"action": "enable_microphone_restrictions", "unrestricted_participants": []}
    with meeting.fake.hang(method="ListParticipants", times=1) as hanging:
        commanding = asyncio.create_task(meeting.module.command(ROOM, "livekit", command))
        await hanging.hit()
        await meeting.module.close_room(ROOM)
    with pytest.raises(NoSuchMeeting):
        await commanding


async def test_after_a_restart_what_was_staged_is_finished_at_once(fake: FakeRoomService, tmp_path: Path) -> None:
    async with restarts(fake, tmp_path) as meeting:
        alice, _ = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        with fake.hang(method="UpdateParticipant") as hanging:
            restricting = asyncio.create_task(
                alice.send("enable_microphone_restrictions", unrestricted_participants=[])
            )
            await hanging.hit()
            await meeting.module.__aexit__(None, None, None)
    await restricting
    async with restarts(fake, tmp_path, moderation_livekit_timeout_s=60) as meeting:
        await until(lambda: not fake.may_publish(ROOM, "bob", "microphone"))
        await until(lambda: (newest := kept(meeting).journal.newest) is not None and newest.staged is None)
        assert Source.MICROPHONE in (await kept(meeting).journal.record()).state.restricted


async def test_a_joiner_is_not_told_again_what_their_welcome_says_already(fake: FakeRoomService) -> None:
    store = Slow()
    async with meeting_on_fake(fake, store=store) as meeting:
        carol, dave = await meeting.join("carol"), await meeting.join("dave")
        store.answers.clear()
        hands = []
        for person in (carol, dave):
            store.has_written.clear()
            hands.append(asyncio.create_task(person.session.receive("control", {"action": "raise_hand"})))
            if person is carol:
                await store.has_written.wait()
        await until(lambda: bool(kept(meeting).journal._line._waiters))
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await until(lambda: BOB in meeting.module._audience._sessions[ROOM])
        store.answers.set()  # Dave's hand goes up between Bob's beginning to join and his being in
        bob = await joining
        await asyncio.gather(*hands)
        welcome = bob.session.take_join_success()
        assert [one.control.hand_is_up for one in welcome.participants] == [True, True]
        assert bob.told("update", "control") == []
        await carol.session.receive("control", {"action": "lower_hand"})
        assert [told["id"] for told in bob.told("update", "control")] == ["carol"]


@pytest.mark.parametrize("end", ["leave", "disconnect"])
async def test_who_goes_while_a_newer_connection_of_theirs_comes_takes_nothing_from_it(
    fake: FakeRoomService, end: str
) -> None:
    store = Slow()
    async with meeting_on_fake(fake, store=store) as meeting:
        carol, older = await meeting.join("carol"), await meeting.join("bob")
        store.answers.clear()
        store.has_written.clear()
        raising = asyncio.create_task(carol.session.receive("control", {"action": "raise_hand"}))
        await store.has_written.wait()
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await until(lambda: len(meeting.module._audience._sessions[ROOM][BOB]) == 2)
        going = asyncio.create_task(getattr(older.session, end)())
        await until(lambda: older.session.is_over or len(kept(meeting).journal._line._waiters or ()) > 0)
        store.answers.set()
        newer = await joining
        await asyncio.gather(going, raising)
        assert await older.session.ended == "taken_over"
        assert not newer.session.is_over
        member = (await kept(meeting).journal.record()).state.members[BOB]
        assert member.returns_until is None


async def test_who_comes_again_before_their_leaving_is_written_was_never_away(fake: FakeRoomService) -> None:
    store = Slow()
    async with meeting_on_fake(fake, store=store) as meeting:
        carol, older = await meeting.join("carol"), await meeting.join("bob")
        store.answers.clear()
        store.has_written.clear()
        raising = asyncio.create_task(carol.session.receive("control", {"action": "raise_hand"}))
        await store.has_written.wait()
        leaving = asyncio.create_task(older.session.leave())
        await until(lambda: bool(kept(meeting).journal._line._waiters))
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await until(lambda: len(meeting.module._audience._sessions[ROOM][BOB]) == 2)
        store.answers.set()
        newer = await joining
        await asyncio.gather(leaving, raising)
        assert not newer.session.is_over
        assert carol.told("left", "control") == []
        assert "bob" in fake.permissions(ROOM)


async def test_nothing_is_decided_for_a_meeting_that_ended_while_livekit_was_asked(meeting: MeetingOnFake) -> None:
    await meeting.join("alice", Role.MODERATOR)
    ban = {"action": "kick", "participants": ["dave"], "ban": True}
    with meeting.fake.hang(method="ListParticipants", times=1) as hanging:  # whether Dave is in LiveKit alone
        banning = asyncio.create_task(meeting.module.command(ROOM, "livekit_moderation", ban))
        await hanging.hit()
        await meeting.module.close_room(ROOM)
    with pytest.raises(NoSuchMeeting):
        await banning
    await meeting.join("dave")

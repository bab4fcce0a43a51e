"""The queue of a meeting is its moderators': who may not command, and who does small things, keeps nobody waiting."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from signaling import Role
from signaling.identifiers import ParticipantId
from signaling.meeting.turn import MAX_SMALL, MAX_WAITING
from signaling.stores import open_store
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person, meeting_on_fake, until

if TYPE_CHECKING:
    from signaling.stores.contract import Commit

MUTE: dict[str, object] = {"action": "mute", "participants": ["nobody"]}


async def refused(person: Person, command: dict[str, object]) -> str:
    await person.session.receive("livekit_moderation", command, len(person.inbox) + 1)
    return str(person.noticed("result")[-1].get("error"))


@pytest.mark.parametrize(
    "command",
    [
        MUTE,
        {"action": "mute", "everyone_except": []},
        {"action": "kick", "participants": ["nobody"]},
        {"action": "preview", "command": MUTE},
        {"action": "undo", "command_id": "c"},
    ],
)
async def test_who_may_not_command_is_refused_at_once_and_livekit_is_not_asked(
    meeting: MeetingOnFake, command: dict[str, object]
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    with meeting.fake.hang(method="UpdateParticipant", times=1) as hanging:
        running = asyncio.create_task(alice.moderate("restrict", source="camera"))
        await hanging.hit()
        meeting.fake.calls.clear()
        assert await refused(bob, command) == "insufficient_permissions"
        assert meeting.fake.calls == []
        assert meeting.module._entered.meetings[ROOM].turns._waiting.total() == 0
    await running


async def test_who_answers_what_nobody_has_asked_takes_no_place(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    with meeting.fake.hang(method="UpdateParticipant", times=1) as hanging:
        running = asyncio.create_task(alice.moderate("restrict", source="camera"))
        await hanging.hit()
        answer = {"action": "answer_unmute_request", "request_id": "never", "accept": True}
        assert await refused(bob, answer) == "unknown_request_id"
    await running


@pytest.mark.parametrize(("action", "before"), [("grant", Role.USER), ("revoke", Role.MODERATOR)])
async def test_who_may_before_or_after_what_is_being_done_waits_for_it(
    meeting: MeetingOnFake, action: str, before: Role
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", before)
    bob.session.has_moderation = True
    await alice.moderated("disallow", source="screen_share", participants=["bob"])  # so that a role changes something
    with meeting.fake.delay(0.2, method="ListParticipants", times=1) as delayed:
        changing = asyncio.create_task(
            alice.session.receive("control", {"action": f"{action}_moderator_role", "target": "bob"})
        )
        await delayed.hit()
        answered = asyncio.create_task(refused(bob, {"action": "mute", "participants": ["alice"]}))
        await until(lambda: meeting.module._entered.meetings[ROOM].turns._waiting.total() == 1)
    await changing
    assert (await answered == "None") == (action == "grant")


async def test_a_crowd_without_rights_takes_no_place_of_a_moderators(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    guests = [await meeting.join(f"g{number}") for number in range(10)]
    with meeting.fake.hang(method="UpdateParticipant", times=1) as hanging:
        running = asyncio.create_task(alice.moderate("restrict", source="camera"))
        await hanging.hit()
        crowd = [refused(guest, MUTE) for guest in guests for _ in range(20)]
        assert set(await asyncio.gather(*crowd)) == {"insufficient_permissions"}
        assert meeting.module._entered.meetings[ROOM].turns._waiting.total() == 0
        restrict = {"action": "restrict", "source": "camera"}
        numbers = range(MAX_WAITING // 2)
        await asyncio.gather(*(alice.session.receive("livekit_moderation", restrict, number) for number in numbers))
    await running
    errors = [result.get("error") for result in alice.noticed("result")]
    assert len(errors) == len(numbers)
    assert "rate_limit_exceeded" not in errors


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_at_most_one_raised_hand_or_join_is_ahead_of_each_write_of_a_moderators_turn(
    fake: FakeRoomService, tmp_path: Path, kind: str
) -> None:
    store = open_store("memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'm.sqlite'}", audit_entries=10)
    commits: list[Commit] = []
    async with meeting_on_fake(fake, store=store) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        guests = [await meeting.join(f"g{number}", in_livekit=False) for number in range(20)]
        here = meeting.module._entered.meetings[ROOM]
        store.listen(commits.append)
        async with here.journal._writing:
            hands = [
                asyncio.create_task(guest.session.receive("control", {"action": "raise_hand"})) for guest in guests
            ]
            joins = [asyncio.create_task(meeting.join(f"late{number}", in_livekit=False)) for number in range(20)]
            await until(lambda: len(here.turns._small) == 20)
            restricting = asyncio.create_task(alice.moderated("restrict", source="camera"))
            await until(lambda: here.lease.is_held)
        result = await restricting
        await asyncio.gather(*hands, *joins)
    assert "error" not in result
    staged = [commit.record.staged is not None for commit in commits]
    assert staged.index(True) <= 1
    assert not staged[-1], "the turn was over before the crowd was"


async def test_one_person_has_only_a_few_small_things_waiting(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    here = meeting.module._entered.meetings[ROOM]
    async with here.journal._writing:
        asked = [
            asyncio.create_task(bob.session.receive("livekit", {"action": "request_popout_stream_access_token"}))
            for _ in range(MAX_SMALL + 3)
        ]
        await until(lambda: len(bob.told("error")) == 3)
        hand = asyncio.create_task(alice.session.receive("control", {"action": "raise_hand"}))
        await until(lambda: alice.id in here.turns._small)
    await asyncio.gather(*asked, hand)
    assert {error["error"] for error in bob.told("error")} == {"rate_limit_exceeded"}
    assert len(bob.told("popout_stream_access_token")) == MAX_SMALL
    record = await here.journal.record()
    assert record.state.members[ParticipantId("alice")].hand_is_up
    assert not here.turns._small


async def test_the_end_of_a_meeting_waits_for_no_crowd(fake: FakeRoomService) -> None:
    store = MemoryStore()
    commits: list[Commit] = []
    async with meeting_on_fake(fake, store=store) as meeting:
        await meeting.join("alice")
        here = meeting.module._entered.meetings[ROOM]
        store.listen(commits.append)
        async with here.journal._writing:
            joins = [asyncio.create_task(meeting.join(f"p{number}", in_livekit=False)) for number in range(20)]
            await until(lambda: len(meeting.module._entrance._waiting_since) == 20)
            ending = asyncio.create_task(meeting.module.close_room(ROOM))
            await asyncio.sleep(0.01)
        await asyncio.gather(*joins, ending)
    assert [commit.record.state.goes_on for commit in commits].index(False) <= 1


@pytest.mark.parametrize("by_controller", [False, True])
async def test_who_moderates_lowers_ten_hands_at_once(
    fake: FakeRoomService, tmp_path: Path, *, by_controller: bool
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'm.sqlite'}", audit_entries=10)
    async with meeting_on_fake(fake, store=store) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        people = [await meeting.join(f"p{number}", in_livekit=False) for number in range(10)]
        for person in people:
            await person.session.receive("control", {"action": "raise_hand"})
        commands = [{"action": "lower_hand", "target": person.id} for person in people]
        await asyncio.gather(
            *(
                meeting.module.command(ROOM, "control", each)
                if by_controller
                else alice.session.receive("control", each)
                for each in commands
            )
        )
        assert alice.told("error", "control") == []
        assert [len(person.told("hand_lowered", "control")) for person in people] == [1] * 10

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from signaling.core.changes import Change, ConnectionLost, Departed, TimedOut
from signaling.core.participants import Role
from signaling.identifiers import CommandId, ParticipantId, SessionId
from signaling.messages import control, livekit, moderation
from signaling.stores.contract import Staged, Unstaged
from tests.core.meetings import ALICE, BOB, MEETING, decided
from tests.histories.checking import (
    answered_after_commit,
    audited_once,
    linearizable,
    logs_are_whole,
    nobody_left_over,
    nothing_left_staged,
    places_kept,
    told_in_order,
    violations,
)
from tests.histories.linearizing import Accepted, Fact, Given, Operation, Refused, why_not_linearizable
from tests.histories.nodes import some_command
from tests.histories.recording import Delivered, History
from tests.histories.simulating import ROOM, Simulated

MODERATION = "livekit_moderation"
RESTRICT = {"action": "restrict", "source": "camera"}
PROMOTE_BOB = {"action": "grant_moderator_role", "target": "bob"}
REFUSED = frozenset({"insufficient_permissions"})


@pytest.fixture
def world() -> Simulated:
    """Alice moderates (session 0), Bob does not (session 1)."""
    simulated = Simulated()
    simulated.join("alice", Role.MODERATOR)
    simulated.join("bob")
    return simulated


def answer(history: History, frame: int, **fields: object) -> None:
    """Have a frame answered otherwise."""
    answered = history.frames[frame].answer
    assert answered is not None
    history.answered(frame, replace(answered, payload={**answered.payload, **fields}))


def found(check: Callable[[History], Any], history: History) -> str:
    """The one thing that a check finds."""
    [violation] = check(history)
    return str(violation)


# --- Linearizable ------------------------------------------------------------------------------------------------


def test_what_core_does_is_right(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    world.ask(1, MODERATION, RESTRICT)
    world.ask(0, "control", PROMOTE_BOB)
    world.ask(1, MODERATION, {"action": "undo", "command_id": "c-0"})
    world.ask(1, "control", {"action": "raise_hand"})
    assert violations(world.history) == []


def test_nobody_is_refused_who_was_allowed_before_they_asked(world: Simulated) -> None:
    world.ask(0, "control", PROMOTE_BOB)
    late = world.ask(1, MODERATION, {"action": "undo", "command_id": "none"})
    answer(world.history, late, error="insufficient_permissions")
    assert f"frame {late} of bob (undo) is refused as unknown_command_id" in found(linearizable, world.history)


def test_who_asked_before_that_was_answered_may_be_refused(world: Simulated) -> None:
    world.ask(0, "control", PROMOTE_BOB)
    early = world.ask(1, MODERATION, {"action": "undo", "command_id": "none"}, before_s=1.5)
    answer(world.history, early, error="insufficient_permissions")
    assert violations(world.history) == []


def test_nobody_is_let_do_what_they_may_not(world: Simulated) -> None:
    refused = world.ask(1, MODERATION, RESTRICT)
    answer(world.history, refused, error=None, outcomes=[])
    assert "is refused as insufficient_permissions, and was answered Accepted" in found(linearizable, world.history)


def test_an_outcome_is_what_core_makes_of_it(world: Simulated) -> None:
    number = world.ask(0, MODERATION, RESTRICT)
    outcomes = [
        {"participant": "alice", "outcome": "exempt"},
        {"participant": "bob", "outcome": "unchanged"},
    ]
    answer(world.history, number, outcomes=outcomes)
    assert "('bob', 'restricted', None)" in found(linearizable, world.history)


def test_what_livekit_did_is_not_in_the_model(world: Simulated) -> None:
    number = world.ask(0, "livekit", {"action": "force_mute", "participants": ["bob"]})
    for outcome in ("muted", "already_muted", "no_track"):
        answer(world.history, number, outcomes=[{"participant": "bob", "outcome": outcome}])
        assert list(linearizable(world.history)) == []


def test_nobody_is_kept_out_who_was_never_banned(world: Simulated) -> None:
    number = world.history.joining(ROOM, "carol", at=world.now)
    world.history.kept_out(number, "banned", at=world.now + 1)
    assert f"session {number} of carol (join)" in found(linearizable, world.history)


def test_who_was_banned_is_kept_out(world: Simulated) -> None:
    world.ask(0, MODERATION, {"action": "kick", "participants": ["bob"], "ban": True})
    number = world.history.joining(ROOM, "bob", at=world.now + 1)
    world.history.kept_out(number, "banned", at=world.now + 2)
    assert list(linearizable(world.history)) == []


def test_a_command_without_an_answer_has_happened_if_the_log_says_so(world: Simulated) -> None:
    unanswered = world.ask(0, "control", PROMOTE_BOB)
    world.history.frames[unanswered] = replace(world.history.frames[unanswered], answer=None)
    world.ask(1, MODERATION, RESTRICT)
    assert violations(world.history) == []
    lost = world.history.asked(0, MODERATION, RESTRICT, transaction_id="lost", at=world.now)
    assert violations(world.history) == []
    world.history.answered(
        lost, Delivered(MODERATION, {"message": "result", "error": "unavailable"}, "lost", world.now)
    )
    assert violations(world.history) == []


def given_command(sender: ParticipantId, command: Any, came_to: Accepted | Refused, number: int = 1) -> Given:  # noqa: ANN401
    return Given(sender, command, CommandId(f"c-{number}"), (1.0,), came_to)


def test_what_may_have_happened_happens_where_it_is_needed_and_at_no_other_time() -> None:
    promoting = Operation(
        "unknown", given_command(ALICE, control.GrantModeratorRole(target=BOB), Accepted()), 1, must=False
    )
    lifting = livekit.DisableMicrophoneRestrictions()
    accepted = Operation("accepted", given_command(BOB, lifting, Accepted(), 2), 2, 3)
    refused = Operation("refused", given_command(BOB, lifting, Refused(REFUSED), 3), 4, 5)
    assert why_not_linearizable(MEETING, [promoting, refused]) is None
    assert why_not_linearizable(MEETING, [promoting, accepted]) is None
    assert why_not_linearizable(MEETING, [accepted]) is not None
    assert why_not_linearizable(MEETING, [promoting, accepted, refused]) is not None, "it would be taken back"
    assert why_not_linearizable(MEETING, [replace(promoting, begins=4), accepted]) is not None, "it was asked later"


def test_who_leaves_in_the_middle_of_a_command_was_there_when_it_was_decided() -> None:
    muted = Accepted((("bob", "not_connected", None),))
    muting_bob = livekit.ForceMute(participants=(BOB,))
    muting = Operation("mute", given_command(ALICE, muting_bob, muted), 1, 9)
    leaving = Operation("leave", Fact((Departed(BOB, 1.0, "quit"),)), 2, 3)
    asking = Operation("ask", given_command(ALICE, livekit.DisableMicrophoneRestrictions(), Accepted(), 2), 4, 5)
    assert why_not_linearizable(MEETING, [muting, leaving]) is None
    assert why_not_linearizable(MEETING, [replace(muting, ends=1.5), leaving]) is None
    unknown = replace(muting, what=given_command(ALICE, muting_bob, Accepted((("bob", "unknown", None),))))
    assert why_not_linearizable(MEETING, [replace(unknown, begins=4), leaving]) is None
    assert why_not_linearizable(MEETING, [replace(unknown, ends=1.5), leaving]) is not None
    assert why_not_linearizable(MEETING, [muting, leaving, asking]) is None


def test_an_outcome_of_somebody_who_has_left_is_compared_too() -> None:
    came_to = dict.fromkeys(("alice", "bob", "carol"), "unchanged")
    leaving = Operation("leave", Fact((Departed(BOB, 1.0, "quit"),)), 2, 3)

    def why(**came_to_others: str) -> str | None:
        told = Accepted(tuple((who, came, None) for who, came in {**came_to, **came_to_others}.items()))
        command = moderation.SetPresenter(participant=BOB)
        setting = Operation("set", given_command(ALICE, command, told), 1, 9)
        return why_not_linearizable(MEETING, [setting, leaving])

    assert why(bob="unchanged") is None, "he is still in LiveKit"
    assert why(bob="not_connected") is None
    assert why(bob="restricted") is not None
    assert why(bob="granted") is not None, "nobody is the presenter"


# --- What was told -----------------------------------------------------------------------------------------------


def told(history: History, session: int) -> list[int]:
    """Where in what a session got there are the events of commits."""
    return [index for index, each in enumerate(history.told[session]) if each.message not in {"result", "error"}]


def test_an_event_that_was_left_out_is_found(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    world.ask(0, "control", {"action": "lower_hand"})
    del world.history.told[1][told(world.history, 1)[0]]
    assert "where revision 3 tells" in found(told_in_order, world.history)


def test_an_event_that_never_came_is_found_unless_the_session_ended(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    del world.history.told[1][told(world.history, 1)[-1]]
    assert "was never told" in found(told_in_order, world.history)
    world.history.ended(1, None, at=world.now)
    assert list(told_in_order(world.history)) == []


def test_an_event_that_was_told_twice_is_found(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    world.history.told[1].append(world.history.told[1][told(world.history, 1)[-1]])
    assert "when all had been told" in found(told_in_order, world.history)


def test_events_in_another_order_are_found(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    world.ask(0, "control", {"action": "lower_hand"})
    world.history.told[1].reverse()
    assert "where revision 3 tells" in found(told_in_order, world.history)


def test_an_event_before_its_commit_is_found(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    last = world.history.told[1][-1]
    world.history.told[1][-1] = replace(last, at=world.now - 0.1)
    assert "0.050 s before its commit" in found(told_in_order, world.history)


def test_an_event_with_a_transaction_id_of_somebody_else_is_found(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    world.history.told[1][-1] = replace(world.history.told[1][-1], transaction_id=1)
    assert "where revision 3 tells" in found(told_in_order, world.history)


def test_who_is_in_is_in_the_log(world: Simulated) -> None:
    number = world.history.joining(ROOM, "carol", at=world.now)
    world.history.joined(number, at=world.now + 1, key=SessionId("nobody's"))
    assert "has joined, and the log does not have it" in found(told_in_order, world.history)


def test_a_session_that_ended_by_itself_was_told_all_that_came_before(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    world.join("bob")
    world.history.ended(1, "taken_over", at=world.now)
    del world.sessions[1]
    assert list(told_in_order(world.history)) == []
    world.history.told[1].clear()
    assert "was never told" in found(told_in_order, world.history)


# --- The log and the audit ---------------------------------------------------------------------------------------


def test_a_log_with_a_gap_or_a_command_twice_is_found(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    log = world.history.log[ROOM]
    log.append(replace(log[-1], entry=replace(log[-1].entry, revision=5)))
    gap, twice = logs_are_whole(world.history)
    assert "has the revisions [1, 2, 3, 5]" in gap
    assert "c-0 was committed 2 times" in twice


def test_a_decision_that_was_staged_is_finished_before_the_next(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    log = world.history.log[ROOM]
    decision = decided(MEETING, ALICE, livekit.DisableMicrophoneRestrictions())
    log.append(replace(log[-1], entry=replace(log[-1].entry, staging=Staged(decision))))
    assert "is still staged" in found(nothing_left_staged, world.history)
    other = replace(decision, command_id=CommandId("c-2"))
    log.append(replace(log[-1], entry=replace(log[-1].entry, staging=Staged(other))))
    over, still = nothing_left_staged(world.history)
    assert "c-2 was staged over c-1" in over
    assert "is still staged" in still
    log.append(replace(log[-1], entry=replace(log[-1].entry, staging=Unstaged())))
    assert "c-2 was staged over c-1" in found(nothing_left_staged, world.history)


@pytest.mark.parametrize(
    "how", [Departed(BOB, 1.0, "quit"), ConnectionLost(frozenset({BOB}), 1.0), TimedOut(frozenset({BOB}), 1.0)]
)
def test_who_is_here_by_a_newer_session_keeps_their_place(world: Simulated, how: Change) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    log = world.history.log[ROOM]
    log[-1] = replace(log[-1], entry=replace(log[-1].entry, changes=(how,)))
    assert "session 1 of bob goes on, and lost its place by" in found(places_kept, world.history)
    world.history.ended(1, None, at=world.now - 0.5)
    assert list(places_kept(world.history)) == []
    world.join("bob")
    log.append(replace(log[-1], entry=replace(log[-1].entry, changes=(how,), at=world.now)))
    assert "session 2 of bob goes on" in found(places_kept, world.history)


def test_a_node_that_could_not_say_that_it_lives_may_be_taken_for_gone(world: Simulated) -> None:
    world.ask(0, "control", {"action": "raise_hand"})
    log = world.history.log[ROOM]
    for how in (ConnectionLost(frozenset({BOB}), 1.0), TimedOut(frozenset({BOB}), 1.0)):
        log[-1] = replace(log[-1], entry=replace(log[-1].entry, changes=(how,)))
        lost_at, node = log[-1].at or log[-1].entry.at, world.history.sittings[1].node
        world.history.silences.clear()
        world.history.was_silent("another node", lost_at - 1, lost_at)
        world.history.was_silent(node, lost_at + 1, lost_at + 2)
        assert "session 1 of bob goes on" in found(places_kept, world.history)
        world.history.was_silent(node, lost_at - 12, lost_at - 1)
        assert bool(list(places_kept(world.history))) is isinstance(how, TimedOut)


def test_who_is_gone_for_long_is_not_in_the_meeting(world: Simulated) -> None:
    assert list(nobody_left_over(world.history)) == []
    world.history.ended(1, None, at=world.now)
    assert "bob is in it by session-1, which is over" in found(nobody_left_over, world.history)


def test_a_command_that_stands_in_the_audit_twice_is_found(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    world.history.audit[ROOM] *= 2
    twice, nobody = [*audited_once(world.history), ""]
    assert "c-0 stands there 2 times" in twice
    assert nobody == ""


def test_an_acknowledged_command_that_stands_nowhere_is_found(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    world.history.audit[ROOM].clear()
    assert "was acknowledged as c-0, and does not stand there" in found(audited_once, world.history)


def test_other_outcomes_in_the_audit_than_in_the_answer_are_found(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    world.history.audit[ROOM][0] = replace(world.history.audit[ROOM][0], outcomes=())
    assert "and stands there as ()" in found(audited_once, world.history)


def test_a_refused_command_in_the_audit_is_found(world: Simulated) -> None:
    number = world.ask(0, MODERATION, RESTRICT)
    answer(world.history, number, error="livekit_unavailable", outcomes=[])
    assert "was refused, and stands there" in found(audited_once, world.history)


def test_what_nobody_asked_for_in_the_audit_is_found(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT)
    entry = world.history.audit[ROOM][0]
    world.history.audit[ROOM].append(replace(entry, command_id=CommandId("forged")))
    assert "nobody asked for forged, restrict of alice" in found(audited_once, world.history)
    world.history.asked(0, MODERATION, RESTRICT, at=world.now)
    assert list(audited_once(world.history)) == []


# --- When it was answered ----------------------------------------------------------------------------------------


def test_an_answer_before_its_commit_is_found(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT, after_s=-0.15)
    assert "was answered 0.100 s before its commit" in found(answered_after_commit, world.history)


def test_by_the_same_clock_no_time_is_too_short(world: Simulated) -> None:
    world.ask(0, MODERATION, RESTRICT, after_s=0.0)
    log = world.history.log[ROOM]
    log[-1] = replace(log[-1], at=world.now + 1e-6)
    assert "before its commit" in found(answered_after_commit, world.history)


@pytest.mark.parametrize("action", ["raise_hand", "restrict"])
def test_an_answer_without_a_commit_is_found(world: Simulated, action: str) -> None:
    namespace = "control" if action == "raise_hand" else MODERATION
    world.ask(0, namespace, RESTRICT if action == "restrict" else {"action": action})
    world.history.log[ROOM].pop()
    assert "was acknowledged, and never committed" in found(answered_after_commit, world.history)


# --- By chance ---------------------------------------------------------------------------------------------------


def simulated(seed: int, count: int) -> Simulated:
    """A meeting in which some of what is asked overlaps in time."""
    chance = random.Random(seed)  # noqa: S311 - the same again, which no secret may be
    world = Simulated()
    sessions = [
        world.join(who, role) for who, role in (("alice", Role.MODERATOR), ("mia", Role.MODERATOR), ("bob", Role.USER))
    ]
    for _ in range(count):
        session = chance.choice(sessions)
        namespace, payload = some_command(chance, world.command_ids)
        if payload["action"] != "kick":  # whoever it is stays to the end
            before_s, after_s = chance.choice([0.1, 0.9, 2.5]), chance.choice([0.1, 0.9, 2.5])
            world.ask(session, namespace, payload, before_s=before_s, after_s=after_s)
    return world


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_core_does_is_right(seed: int) -> None:
    assert violations(simulated(seed, 60).history) == []


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    what=st.sampled_from(["swap", "repeat", "leave out", "answer"]),
    where=st.integers(0, 10_000),
)
def test_whatever_is_changed_is_found(seed: int, what: str, where: int) -> None:
    history = simulated(seed, 25).history
    session = where % len(history.told)
    events, run = told(history, session), history.told[session]
    if what == "answer":
        answered = [frame for frame in history.frames if frame.answer is not None]
        frame = answered[where % len(answered)]
        assert frame.answer is not None
        assume("error" not in frame.answer.payload)
        answer(history, frame.number, error="livekit_unavailable", outcomes=[])
    else:
        assume(len(events) > 1)
        index = where % (len(events) - 1)
        one, other = events[index], events[index + 1]
        if what == "swap":
            assume(replace(run[one], at=0) != replace(run[other], at=0))
            run[one], run[other] = run[other], run[one]
        elif what == "repeat":
            run.insert(one, run[one])
        else:
            del run[one]
    assert violations(history) != []


def test_hundreds_of_commands_are_checked_at_once() -> None:
    world = simulated(7, 400)
    assert len(world.history.frames) > 300
    assert violations(world.history) == []


# --- Keeping -----------------------------------------------------------------------------------------------------


def test_a_history_that_is_kept_is_the_same(tmp_path: Path) -> None:
    history = simulated(3, 40).history
    lost = history.asked(0, MODERATION, RESTRICT, at=2_000.0)
    history.kept_out(history.joining(ROOM, "eve", at=1.0), "banned", at=2.0)
    history.dump(path := tmp_path / "history.jsonl")
    again = History.load(path)
    assert (again.sittings, again.told, again.audit) == (history.sittings, history.told, history.audit)
    assert again.log == history.log
    assert again.frames[lost].answer is None
    assert again.frames == history.frames

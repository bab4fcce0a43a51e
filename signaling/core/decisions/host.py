"""What the host decides, and what comes by itself."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, assert_never

from signaling.core.changes import (
    BypassNoted,
    CameSeen,
    Change,
    ConnectionLost,
    Departed,
    Ended,
    Entered,
    Extended,
    HoldsEnded,
    Moved,
    MutesForgotten,
    RequestsLapsed,
    RoomDeleted,
    TimedOut,
    Unrestricted,
)
from signaling.core.commands import (
    Bypass,
    ChangeRole,
    Depart,
    DepartUnlessBack,
    End,
    EndIfEmpty,
    Enter,
    Expire,
    Extend,
    HostCommand,
    LoseConnections,
    Move,
    NoteCame,
    NoteRoomDeleted,
    NoteUnmutedAgain,
    Reconnect,
)
from signaling.core.decisions.decision import Decision, Refusal
from signaling.core.decisions.reach import with_sound
from signaling.core.decisions.roles import give_role
from signaling.core.effects import Agree, Effect, Expel
from signaling.core.participants import Source
from signaling.core.policy import obeys_room
from signaling.core.state import MeetingState, Member
from signaling.identifiers import CONTROLLER, CommandId

BYPASSES: Final = 2
"""By so many bypasses somebody has to go."""


def decide_for_host(state: MeetingState, command: HostCommand, now: float, command_id: CommandId) -> Decision | Refusal:
    """What a command comes to that only the host gives, or nobody."""
    match command:
        case Enter(participant):
            if state.is_banned(participant.id):
                return Refusal("banned")
            changes = tuple(_enter(state, command, now))
            return Decision(command_id, "join", participant.id, now, changes, holds=True)
        case Extend(participant):
            if participant not in state.members:
                return Refusal("nothing_to_do")
            return Decision(command_id, "extend", participant, now, (Extended(participant),), holds=True)
        case Depart(participant, reason):
            if participant not in state.members:
                return Refusal("nothing_to_do")
            changes = (Departed(participant, now, reason),)
            return Decision(command_id, "leave", participant, now, changes, holds=True)
        case DepartUnlessBack(participants, due_at):
            away = {who: state.members[who].returns_until for who in participants & state.members.keys()}
            overdue = frozenset(who for who, until in away.items() if until is not None and until <= due_at)
            if not overdue:
                return Refusal("nothing_to_do")
            timed_out = (TimedOut(overdue, now),)
            return Decision(command_id, "time_out", CONTROLLER, now, timed_out, holds=True, targets=overdue)
        case LoseConnections(participants, until):
            present = participants & frozenset(state.members)
            if not present:
                return Refusal("nothing_to_do")
            lost = (ConnectionLost(present, until),)
            return Decision(command_id, "lose_connections", CONTROLLER, now, lost, holds=True)
        case Reconnect(sessions):
            back = tuple(
                Entered(who, replace(member, returns_until=None))
                for who, member in state.members.items()
                if member.returns_until is not None and who in sessions and sessions[who] == member.session
            )
            if not back:
                return Refusal("nothing_to_do")
            return Decision(command_id, "reconnect", CONTROLLER, now, back, holds=True)
        case Move(participant, breakout, is_action):
            if participant not in state.members:
                return Refusal("nothing_to_do")
            moved = Decision(command_id, "move", participant, now, (Moved(participant, breakout),), holds=True)
            if not is_action:
                return moved
            where = "the main room" if breakout is None else breakout
            return replace(
                moved, sender=CONTROLLER, targets=frozenset({participant}), is_action=True, reason=f"to {where}"
            )
        case ChangeRole(participant, role):
            return give_role(state, CONTROLLER, participant, role, "change_role", now, command_id)
        case EndIfEmpty(since) if state.empty_since is None or state.empty_since > since:
            return Refusal("nothing_to_do")
        case End() | EndIfEmpty():
            return Decision(command_id, "end", CONTROLLER, now, (Ended(),), holds=True)
        case NoteRoomDeleted(room):
            return Decision(command_id, "room_deleted", CONTROLLER, now, (RoomDeleted(room),), holds=True)
        case Expire(due_at):
            return _expire(state, due_at, now, command_id)
        case Bypass():
            return _note_bypass(state, command, now, command_id)
        case NoteUnmutedAgain(participants):
            noted = participants.intersection(state.mutes)
            if not noted:
                return Refusal("nothing_to_do")
            forgotten = (MutesForgotten(noted),)
            return Decision(command_id, "note_unmuted_again", CONTROLLER, now, forgotten, holds=True, targets=noted)
        case NoteCame(came):
            noted_came = {
                room: {
                    who: what for who, what in people.items() if who not in state.members or not obeys_room(who, state)
                }
                for room, people in came.items()
            }
            if not any(noted_came.values()) or not state.goes_on:
                return Refusal("nothing_to_do")
            seen = (CameSeen({room: people for room, people in noted_came.items() if people}),)
            return Decision(command_id, "note_came", CONTROLLER, now, seen, holds=True)
        case _:
            assert_never(command)


def _expire(state: MeetingState, due_at: float, now: float, command_id: CommandId) -> Decision | Refusal:
    lifted = [source for source in Source if state.restricted_until.get(source, due_at + 1) <= due_at]
    released = {who: {source for source, until in held.items() if until <= due_at} for who, held in state.holds.items()}
    sources = {source for ended in released.values() for source in ended}
    changes: list[Change] = [Unrestricted(source) for source in lifted]
    if sources:
        changes.append(HoldsEnded(due_at))
    if any(request.expires_at <= due_at for request in state.unmute_requests.values()):
        changes.append(RequestsLapsed(due_at))
    if not changes:
        return Refusal("nothing_to_do")
    people = frozenset(who for who, ended in released.items() if ended)
    effect = Agree(None if lifted else people, with_sound(sources.union(lifted))) if lifted or people else None
    return Decision(command_id, "expire", CONTROLLER, now, tuple(changes), effect, holds=True, targets=people)


def _note_bypass(state: MeetingState, command: Bypass, now: float, command_id: CommandId) -> Decision | Refusal:
    who, noted = command.participant, state.bypasses.get(command.participant, frozenset())
    if command.track in noted:
        return Refusal("nothing_to_do")
    targets = frozenset({who})
    changes: tuple[Change, ...] = (BypassNoted(who, command.source, command.track, command.media),)
    effect: Effect = Agree(targets, with_sound({command.source}))
    if len(noted) + 1 >= BYPASSES:
        changes, effect = (*changes, Departed(who, now, "kicked")), Expel(targets)
    return Decision(command_id, "bypass", CONTROLLER, now, changes, effect, holds=True, targets=targets)


def _enter(state: MeetingState, command: Enter, now: float) -> Iterator[Change]:
    participant = command.participant
    before = state.members.get(participant.id)
    breakout = before.breakout if before is not None and participant.keeps_room else participant.breakout
    if before is not None and before.breakout != breakout:
        yield Moved(participant.id, breakout)
    yield Entered(
        participant.id,
        Member(
            role=participant.role,
            kind=participant.kind,
            joined_at=now if before is None else before.joined_at,
            display_name=participant.display_name,
            breakout=breakout,
            hand_is_up=before is not None and before.hand_is_up,
            hand_updated_at=None if before is None else before.hand_updated_at,
            knows_moderation=command.knows_moderation,
            session=command.session,
            node=command.node,
        ),
    )

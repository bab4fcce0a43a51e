"""What is wrong with a history: each check yields a sentence for whatever it finds."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from signaling.core.announcements import Announcement, Everyone
from signaling.core.changes import ConnectionLost, Departed, Ended, Entered, TimedOut
from signaling.core.commands import Enter, MemberCommand, ModeratorCommand
from signaling.core.participants import Kind, Participant, Role
from signaling.core.state import new_meeting
from signaling.errors import MessageError
from signaling.identifiers import CONTROLLER, CommandId, ParticipantId, RoomId, SessionId
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Namespace, parse_payload
from signaling.stores.contract import AuditEntry, Entry, Record, Staged, Unstaged, fold
from tests.histories.linearizing import (
    Accepted,
    Fact,
    Given,
    Operation,
    Outcomes,
    Refused,
    outcomes_told,
    why_not_linearizable,
)
from tests.histories.recording import Committed, Frame, History, Payload, Sitting

CLOCKS_S: Final = 0.05
"""By how much clocks of one machine may differ where a time of the log is compared with one of a client."""

_BEAT_S: Final = 6.0
"""What passes until a node says again that it lives, and a little."""
_UNANSWERED: Final = frozenset({"unavailable", "internal"})
"""Refusals that do not say whether anything was done."""
_NOT_BEGUN: Final = frozenset({"livekit_unavailable", "rate_limit_exceeded"})
"""Refusals that say nothing of the state: the command came to nothing, or was taken back."""
_PERSONAL: Final = frozenset(
    {
        *("result", "error", "credentials", "popout_stream_access_token", "join_success"),
        *("state", "state_changed", "audit", "state_rolled_back"),
    }
)
"""Events that are told to one session alone, and belong to no commit."""


def violations(history: History) -> list[str]:
    """All that is wrong with a history."""
    return [
        f"{check.__name__}: {violation}"
        for check in (
            *(logs_are_whole, linearizable, told_in_order, audited_once, answered_after_commit),
            *(nothing_left_staged, places_kept),
        )
        for violation in check(history)
    ]


# --- The log -----------------------------------------------------------------------------------------------------


def logs_are_whole(history: History) -> Iterator[str]:
    """Each log has each revision once, in order, and each command at most once."""
    for room, log in history.log.items():
        revisions = [commit.entry.revision for commit in log]
        if revisions != list(range(1, len(log) + 1)):
            yield f"{room}: the log has the revisions {revisions}"
        ids = Counter(commit.entry.command_id for commit in log if commit.entry.command_id is not None)
        for command_id in (each for each, times in ids.items() if times > 1):
            yield f"{room}: {command_id} was committed {ids[command_id]} times"


def nothing_left_staged(history: History) -> Iterator[str]:
    """What was staged is concluded, or taken back, before anything else is staged, and before all is over."""
    for room, log in history.log.items():
        staged: CommandId | None = None
        for commit in log:
            entry = commit.entry
            match entry.staging:
                case Staged(decision):
                    if staged not in {None, decision.command_id}:  # finishing begins with staging it again
                        yield f"{room}: {decision.command_id} was staged over {staged}"
                    staged = decision.command_id
                case Unstaged():
                    staged = None
                case _ if any(isinstance(change, Ended) for change in entry.changes):
                    staged = None
        if staged is not None:
            yield f"{room}: {staged} is still staged"


def places_kept(history: History) -> Iterator[str]:
    """Nobody loses their place while their newest session goes on, but by being removed, or with the meeting."""
    sittings = {sitting.key: sitting for sitting in history.sittings if sitting.key is not None}
    for log in history.log.values():
        holder = dict[ParticipantId, Sitting | None]()
        for commit in log:
            for change in commit.entry.changes:
                if isinstance(change, Entered):
                    key = change.member.session
                    holder[change.participant] = None if key is None else sittings.get(key)
                lost = frozenset[ParticipantId]()
                if isinstance(change, TimedOut | ConnectionLost):
                    lost = change.participants
                elif isinstance(change, Departed) and change.reason not in {"kicked", "banned"}:
                    lost = frozenset({change.participant})
                for who in lost & holder.keys():
                    sitting = holder[who]
                    at = commit.entry.at if commit.at is None else commit.at
                    if isinstance(change, ConnectionLost) and _is_taken_for_gone(history, sitting, at):
                        continue
                    if sitting is not None and (sitting.ended_at is None or sitting.ended_at > at + CLOCKS_S):
                        what = f"{type(change).__name__} of revision {commit.entry.revision}"
                        yield f"session {sitting.number} of {who} goes on, and lost its place by {what}"


def _is_taken_for_gone(history: History, sitting: Sitting | None, at: float) -> bool:
    """Whether others could not know that the node lives to which somebody is connected."""
    return sitting is not None and any(
        silence.node == sitting.node and silence.began_at <= at <= silence.ended_at + _BEAT_S
        for silence in history.silences
    )


def nobody_left_over(history: History) -> Iterator[str]:
    """
    When nothing has happened for longer than nodes count as alive and places are kept, who is connected is.

    That is no violation of itself before that time.
    """
    open_keys = {sitting.key for sitting in history.sittings if sitting.ended_at is None}
    for room, log in history.log.items():
        record = Record(0, new_meeting(room, screen_share_requires_permission=False))
        for commit in log:
            record = fold(record, commit.entry)
        for who, member in record.state.members.items():
            if member.session not in open_keys:
                yield f"{room}: {who} is in it by {member.session}, which is over"


# --- Linearizable ------------------------------------------------------------------------------------------------


def linearizable(history: History) -> Iterator[str]:
    """There is an order of the commands, consistent with real time, in which core answers each as it was answered."""
    for room in sorted({sitting.room for sitting in history.sittings}):
        log = history.log.get(room, [])
        if log and log[0].entry.begins_as is not None:
            state = log[0].entry.begins_as
        else:
            state = new_meeting(room, screen_share_requires_permission=False)
        if (why := why_not_linearizable(state, operations(history, room))) is not None:
            yield f"{room}: {why}"


def operations(history: History, room: RoomId) -> list[Operation]:
    """
    What was done in a meeting: what its clients asked for, and what the log says has become of the state besides.

    A command without an answer counts if the log has it, and is left out if not. What nobody asked for has its place in
    the log between what was asked and answered.
    """
    asked = {frame.number: frame for frame in history.frames if history.sittings[frame.session].room == room}
    log = history.log.get(room, [])
    known = _frames_of(history, asked, log)
    joined: dict[SessionId | None, Sitting] = {
        sitting.key: sitting for sitting in history.sittings if sitting.key is not None
    }
    found = []
    begins, ends = _bounds(asked, log, known, joined)
    for index, commit in enumerate(log):
        entry, frame = commit.entry, known.get(commit.entry.revision)
        given = None if frame is None else _given(history, frame, entry)
        if given is not None and frame is not None:
            del asked[frame.number]
            known_ends = min(ends[index], _ends_of(frame))
            found.append(Operation(_name(history, frame), given, frame.at, known_ends, place=entry.revision))
        elif entry.changes:
            fact = Fact(entry.changes, entry.command_id if entry.is_undoable else None)
            found.append(
                Operation(f"revision {entry.revision}", fact, begins[index], ends[index], place=entry.revision)
            )
    for frame in asked.values():
        given = _given(history, frame, None)
        if given is not None and frame.answer is not None:
            found.append(Operation(_name(history, frame), given, frame.at, frame.answer.at))
    here = (sitting for sitting in history.sittings if sitting.room == room)
    found += [_kept_out(sitting) for sitting in here if sitting.kept_out is not None]
    return found


def _frames_of(history: History, asked: dict[int, Frame], log: list[Committed]) -> dict[int, Frame]:
    """Which frame each revision carried out, by the command id of its answer, or by its session and transaction."""
    by_command, by_origin = dict[str, Frame](), dict[tuple[object, object], Frame]()
    for frame in asked.values():
        if frame.answer is not None and (command_id := frame.answer.payload.get("command_id")) is not None:
            by_command[command_id] = frame
        if frame.transaction_id is not None and (key := history.sittings[frame.session].key) is not None:
            by_origin[key, frame.transaction_id] = frame
    found = dict[int, Frame]()
    for commit in log:
        entry, origin = commit.entry, commit.entry.origin
        carried_out = by_command.get(str(entry.command_id))
        if carried_out is None and origin is not None and entry.command_id is not None:
            carried_out = by_origin.get((origin.session, origin.transaction_id))
        if carried_out is not None and carried_out not in found.values():
            found[entry.revision] = carried_out
    return found


def _bounds(
    asked: dict[int, Frame], log: list[Committed], known: dict[int, Frame], joined: dict[SessionId | None, Sitting]
) -> tuple[list[float], list[float]]:
    """Between when and when each entry took effect, by what was asked before it and answered after it."""
    begins, ends = [-math.inf] * len(log), [math.inf] * len(log)
    joining = dict(joined)  # whoever was taken for gone enters again by the session that they have
    for index, commit in enumerate(log):
        entry = commit.entry
        if (frame := known.get(entry.revision)) is not None and frame.number in asked:
            begins[index] = frame.at
            ends[index] = _ends_of(frame)
        for change in entry.changes:
            if isinstance(change, Entered) and (sitting := joining.pop(change.member.session, None)) is not None:
                begins[index] = sitting.asked_at
                ends[index] = math.inf if sitting.joined_at is None else sitting.joined_at
    for index in range(1, len(log)):
        begins[index] = max(begins[index], begins[index - 1])
    for index in reversed(range(len(log) - 1)):
        ends[index] = min(ends[index], ends[index + 1])
    return begins, ends


def _ends_of(frame: Frame) -> float:
    """When a command had come to something, or nothing, by its answer."""
    return math.inf if frame.answer is None or _came_to(frame) is None else frame.answer.at


def _name(history: History, frame: Frame) -> str:
    sitting = history.sittings[frame.session]
    return f"frame {frame.number} of {sitting.participant} ({frame.payload.get('action')})"


def _given(history: History, frame: Frame, entry: Entry | None) -> Given | None:
    """The command of a frame, if its answer says anything of the state."""
    command = _command(frame)
    came_to = _came_to(frame)
    if came_to is None and entry is not None:
        came_to = Accepted()
    if came_to is None or not isinstance(command, ModeratorCommand | MemberCommand):
        return None
    if isinstance(came_to, Refused) and came_to.codes <= _NOT_BEGUN:
        return None
    answered = frame.answer
    command_id = None if answered is None else answered.payload.get("command_id")
    times = [frame.at] if answered is None else [frame.at, answered.at]
    if entry is not None:
        command_id = entry.command_id or command_id
        times.insert(0, entry.at if entry.audit is None else entry.audit.at)
    waits = not isinstance(command, control.RaiseHand | control.LowerHand | livekit.RequestPopoutStreamAccessToken)
    sender = ParticipantId(history.sittings[frame.session].participant)
    return Given(sender, command, CommandId(command_id or f"frame-{frame.number}"), tuple(times), came_to, waits)


def _command(frame: Frame) -> object:
    """The command that a frame holds, `None` if it holds none."""
    try:
        match Namespace(frame.namespace):
            case Namespace.LIVEKIT:
                return parse_payload(frame.payload, livekit.COMMANDS)
            case Namespace.MODERATION:
                return parse_payload(frame.payload, moderation.COMMANDS)
            case _:
                return parse_payload(frame.payload, control.COMMANDS)
    except MessageError:
        return None


def _came_to(frame: Frame) -> Accepted | Refused | None:
    """What the sender was told that it came to; `None` if nothing."""
    if frame.answer is None:
        return None
    payload = frame.answer.payload
    error = payload.get("error")
    if payload["message"] != "result":
        return Accepted() if error is None else _refused(error)
    outcomes = _outcomes(payload)
    if error is not None and not outcomes:
        return _refused(error)
    return Accepted(outcomes)


def _refused(error: str) -> Refused | None:
    return None if error in _UNANSWERED else Refused(frozenset({error}))


def _outcomes(payload: Payload) -> Outcomes:
    return tuple((each["participant"], each["outcome"], each.get("error")) for each in payload.get("outcomes", ()))


def _kept_out(sitting: Sitting) -> Operation:
    """That somebody was not let in, as an operation."""
    assert sitting.joined_at is not None
    who = Participant(ParticipantId(sitting.participant), role=Role.USER, kind=Kind.USER)
    came_to = Refused(frozenset({sitting.kept_out or ""}))
    command_id = CommandId(f"join-{sitting.number}")
    given = Given(who.id, Enter(who), command_id, (sitting.asked_at,), came_to, waits=False)
    return Operation(f"session {sitting.number} of {who.id} (join)", given, sitting.asked_at, sitting.joined_at)


# --- What was told -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Expected:
    """An event that a session is to be told, of which commit."""

    revision: int
    text: tuple[str, object, object]
    not_before: float


def told_in_order(history: History) -> Iterator[str]:
    """Each session's events are a contiguous run of the commit order, and none comes before its commit."""
    for sitting in history.sittings:
        if sitting.joined_at is None or sitting.kept_out is not None or sitting.participant == CONTROLLER:
            continue
        log = history.log.get(sitting.room, [])
        starts = _starts(sitting, log)
        if not starts:
            yield f"session {sitting.number} of {sitting.participant} has joined, and the log does not have it"
            continue
        found = [_wrong_run(history, sitting, log, start) for start in starts]
        if all(each is not None for each in found):
            yield f"session {sitting.number} of {sitting.participant}: {found[-1]}"


def _starts(sitting: Sitting, log: list[Committed]) -> list[int]:
    """From which revisions on it may have been told."""
    if sitting.revision is not None:
        return [sitting.revision] if sitting.revision <= len(log) else []
    entered = [
        (commit.entry.revision, change.member.session)
        for commit in log
        for change in commit.entry.changes
        if isinstance(change, Entered) and change.participant == sitting.participant
    ]
    return [revision for revision, key in entered if sitting.key in {None, key}]


def _wrong_run(history: History, sitting: Sitting, log: list[Committed], start: int) -> str | None:
    expected, needed = _expected(sitting, log, start)
    asked_before = {
        event.request_id
        for commit in log[:start]
        for announcement in commit.entry.announcements
        if isinstance(event := announcement.event, moderation.UnmuteRequested)
    }
    told = [
        ((frame.namespace, _comparable(frame.payload), frame.transaction_id), frame.at)
        for frame in history.told[sitting.number]
        if frame.message not in _PERSONAL
        and not (frame.message == "unmute_requested" and frame.payload["request_id"] in asked_before)
    ]
    for index, (text, at) in enumerate(told):
        if index >= len(expected):
            return f"was told {text} when all had been told{_of(text, expected)}"
        due = expected[index]
        if due.text != text:
            return f"was told {text} where revision {due.revision} tells {due.text}{_of(text, expected)}"
        if at < due.not_before:
            return f"was told {text} {due.not_before - at:.3f} s before its commit"
    if len(told) < needed:
        return f"was never told {expected[len(told)].text} of revision {expected[len(told)].revision}"
    return None


def _of(text: object, expected: list[_Expected]) -> str:
    revisions = [each.revision for each in expected if each.text == text]
    return f" (revisions {revisions} tell that)" if revisions else " (nothing tells that)"


def _expected(sitting: Sitting, log: list[Committed], start: int) -> tuple[list[_Expected], int]:
    """All that a session is told after `start` if it stays until it ends by itself, and how much it must have got."""
    expected, before_end = list[_Expected](), 0
    for commit in log[start:]:
        entry = commit.entry
        before_end = len(expected)
        for announcement in entry.announcements:
            if _is_for(sitting, announcement):
                own = entry.origin is not None and entry.origin.session == sitting.key and sitting.key is not None
                transaction_id = entry.origin.transaction_id if own and entry.origin is not None else None
                event = announcement.event
                payload = event.model_dump(mode="json", exclude_none=True)
                text = (event.namespace.value, _comparable(payload), transaction_id)
                expected.append(_Expected(entry.revision, text, _not_before(commit)))
                if isinstance(event, moderation.Kicked):
                    return expected, len(expected) if sitting.ended_at is None or sitting.why else 0
        if _ends(sitting, entry):
            return expected, before_end if sitting.ended_at is None or sitting.why else 0
    return expected, len(expected) if sitting.ended_at is None else 0


def _comparable(payload: object) -> object:
    if isinstance(payload, dict):
        return frozenset((name, _comparable(value)) for name, value in payload.items())
    if isinstance(payload, list | tuple):
        return tuple(map(_comparable, payload))
    return payload


def _is_for(sitting: Sitting, announcement: Announcement) -> bool:
    namespace = announcement.event.namespace
    if namespace in {Namespace.CONTROL, Namespace.MODERATION} and namespace.value not in sitting.extensions:
        return False
    audience = announcement.audience
    if isinstance(audience, Everyone):
        return sitting.participant not in audience.but
    return sitting.participant in audience.participants


def _ends(sitting: Sitting, entry: Entry) -> bool:
    """Whether the session ends by this commit: another one of the same person begins, or the meeting is over."""
    for change in entry.changes:
        if isinstance(change, Entered) and change.participant == sitting.participant:
            return sitting.key is None or change.member.session != sitting.key
        if isinstance(change, Ended):
            return True
    return False


# --- The audit ---------------------------------------------------------------------------------------------------


def audited_once(history: History) -> Iterator[str]:
    """Each acknowledged command stands in the audit once, as it was answered; and nothing stands there twice."""
    for room in sorted({sitting.room for sitting in history.sittings}):
        audit = history.audit.get(room)
        if audit is None:
            continue
        times = Counter(entry.command_id for entry in audit)
        for command_id in (each for each, count in times.items() if count > 1):
            yield f"{room}: {command_id} stands there {times[command_id]} times"
        entries = {str(entry.command_id): entry for entry in audit}
        for frame in history.frames:
            if history.sittings[frame.session].room == room and frame.answer is not None:
                yield from _wrongly_audited(history, frame, entries)
        yield from _nobody_asked(history, room, audit)


def _wrongly_audited(history: History, frame: Frame, entries: dict[str, AuditEntry]) -> Iterator[str]:
    came_to = _came_to(frame)
    command_id = None if frame.answer is None else frame.answer.payload.get("command_id")
    if command_id is None or came_to is None or not _is_action(frame):
        return
    name, entry = _name(history, frame), entries.get(command_id)
    if isinstance(came_to, Refused):
        if entry is not None:
            yield f"{name} was refused, and stands there"
    elif entry is None:
        yield f"{name} was acknowledged as {command_id}, and does not stand there"
    elif outcomes_told(entry.outcomes) != came_to.outcomes:
        yield f"{name} was answered {came_to.outcomes}, and stands there as {outcomes_told(entry.outcomes)}"


def _is_action(frame: Frame) -> bool:
    """Whether the audit keeps such a command when it is carried out."""
    command = _command(frame)
    is_yes = isinstance(command, moderation.AnswerUnmuteRequest) and command.accept
    return isinstance(command, ModeratorCommand) or is_yes


def _nobody_asked(history: History, room: RoomId, audit: list[AuditEntry]) -> Iterator[str]:
    """What stands there was asked for: as often as that, by whoever counts as having done it."""
    answered = {frame.answer.payload.get("command_id") for frame in history.frames if frame.answer is not None}
    open_ones = Counter(
        (history.sittings[frame.session].participant, str(frame.payload.get("action")))
        for frame in history.frames
        if history.sittings[frame.session].room == room
        and (frame.answer is None or frame.answer.payload.get("command_id") is None or _came_to(frame) is None)
    )
    for entry in audit:
        if entry.command_id in answered or entry.moderator == CONTROLLER or entry.action == "answer_unmute_request":
            continue
        if open_ones[entry.moderator, entry.action] <= 0:
            yield f"{room}: nobody asked for {entry.command_id}, {entry.action} of {entry.moderator}"
        open_ones[entry.moderator, entry.action] -= 1


# --- When it was answered ----------------------------------------------------------------------------------------


def answered_after_commit(history: History) -> Iterator[str]:
    """No answer came before its commit, none is of what was never committed, and what was refused was not committed."""
    for room, log in sorted(history.log.items()):
        asked = {frame.number: frame for frame in history.frames if history.sittings[frame.session].room == room}
        carried_out = _frames_of(history, asked, log)
        commits = {commit.entry.revision: commit for commit in log}
        written = {frame.number: commits[revision] for revision, frame in carried_out.items()}
        for frame in asked.values():
            came_to, commit, name = _came_to(frame), written.get(frame.number), _name(history, frame)
            if isinstance(came_to, Refused) and commit is not None:
                yield f"{name} was refused, and committed as revision {commit.entry.revision}"
            if frame.answer is None or not isinstance(came_to, Accepted) or not _is_kept(history, frame):
                continue
            if commit is None:
                yield f"{name} was acknowledged, and never committed"
            elif frame.answer.at < _not_before(commit):
                yield f"{name} was answered {_not_before(commit) - frame.answer.at:.3f} s before its commit"


def _is_kept(history: History, frame: Frame) -> bool:
    """Whether the log has such a command when it is carried out, and says whose it was."""
    if isinstance(_command(frame), control.RaiseHand | control.LowerHand):
        return history.sittings[frame.session].key is not None
    return frame.namespace != Namespace.CONTROL and _is_action(frame)


def _not_before(commit: Committed) -> float:
    """When it was written at the earliest, as far as the clocks tell."""
    return commit.entry.at - CLOCKS_S if commit.at is None else commit.at

"""From a command to a decision."""

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, assert_never

from signaling.core.changes import (
    Asked,
    Banned,
    BypassNoted,
    CameSeen,
    Change,
    ConnectionLost,
    Departed,
    Ended,
    Entered,
    Extended,
    Granted,
    HandSet,
    Held,
    HoldsEnded,
    Moved,
    MutesForgotten,
    PopoutIssued,
    PresenterSet,
    PutBack,
    RequestClosed,
    RequestsLapsed,
    Restricted,
    Revoked,
    RoleGiven,
    RoomDeleted,
    TimedOut,
    Unbanned,
    Unrestricted,
)
from signaling.core.commands import (
    AnyCommand,
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
    MemberCommand,
    ModeratorCommand,
    Move,
    NoteCame,
    NoteRoomDeleted,
    NoteUnmutedAgain,
)
from signaling.core.effects import Agree, Effect, Expel, Mute, Presence, Stop
from signaling.core.participants import NEVER_MODERATORS, SCREEN_SOURCES, SERVICES, Participant, Role, Source
from signaling.core.policy import is_service, obeys_room
from signaling.core.references import people
from signaling.core.state import (
    ASK_AGAIN_S,
    BanWas,
    BlockWas,
    HoldWas,
    ListingWas,
    MeetingState,
    Member,
    Popout,
    Popouts,
    PresenterWas,
    RestrictionWas,
    Setting,
    UnmuteRequest,
)
from signaling.identifiers import CONTROLLER, CommandId, ParticipantId, popout_identity
from signaling.messages import control, livekit, moderation

FRESH_S: Final = 15.0
"""A mute is carried out, or tried again, only this long after its command: later it would hit what it did not mean."""
REQUEST_S: Final = 60.0
"""How long somebody has to answer a request to unmute."""
BYPASSES: Final = 2
"""By so many bypasses somebody has to go."""


RefusalCode = Literal[
    "already_joined",
    "banned",
    "insufficient_permissions",
    "internal",
    "invalid_command",
    "livekit_unavailable",
    "not_undoable",
    "nothing_to_do",
    "rate_limit_exceeded",
    "unavailable",
    "unknown_command_id",
    "unknown_request_id",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, and nothing changed."""

    error: RefusalCode
    detail: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What a command comes to, before LiveKit is asked.

    Attributes:
        sender: `CONTROLLER` for the host.
        at: When it was decided, in seconds since the epoch.
        holds: Whether it stands even if LiveKit answers nothing.
        targets: The people it names, as far as they are here.
        unknown: The people it names who are not.
        exempt: The people whom it leaves alone although they might be meant.
        is_action: Whether a moderator or the host did it, so that it is kept, told to moderators, and may be undone.
        wished_by: The moderator whose wish somebody else fulfils by it.
        reason: What the moderator says about it.
    """

    command_id: CommandId
    action: str
    sender: ParticipantId
    at: float
    changes: tuple[Change, ...] = ()
    effect: Effect | None = None
    holds: bool = False
    targets: frozenset[ParticipantId] = frozenset()
    unknown: frozenset[ParticipantId] = frozenset()
    exempt: frozenset[ParticipantId] = frozenset()
    is_action: bool = False
    wished_by: ParticipantId | None = None
    reason: str | None = None

    @property
    def moderator(self) -> ParticipantId:
        """Who counts as having done it."""
        return self.sender if self.wished_by is None else self.wished_by


def decide(
    state: MeetingState,
    sender: ParticipantId,
    command: AnyCommand,
    *,
    now: float,
    command_id: CommandId,
    strangers: Mapping[ParticipantId, Presence] = MappingProxyType({}),
) -> Decision | Refusal:
    """
    What `command` comes to in `state`. Refused in this order: the sender may not, the target is unknown, already so.

    Args:
        sender: Who asks; `CONTROLLER` for the host.
        now: Seconds since the epoch.
        strangers: Who is in LiveKit and has never joined; moderators may name them too, or mean them by everyone.
    """
    if isinstance(command, HostCommand):
        return _decide_for_host(state, command, now, command_id)
    if isinstance(command, MemberCommand):
        return _decide_for_member(state, sender, command, now, command_id)
    if (refusal := refusal_of(state, sender, command, now)) is not None:
        return refusal
    return _decide_for_moderator(state, sender, command, now, command_id, strangers)


def may_moderate(state: MeetingState, sender: ParticipantId) -> bool:
    """Whether somebody may command now, and see what moderators see."""
    return state.goes_on if sender == CONTROLLER else state.is_moderator(sender)


def refusal_of(state: MeetingState, sender: ParticipantId, command: AnyCommand, now: float) -> Refusal | None:
    """Why somebody may not give such a command at all, whatever it would come to; `None` if they may."""
    match command:
        case moderation.AnswerUnmuteRequest(request_id=request_id):
            if sender not in state.members:
                return Refusal("insufficient_permissions")
            request = state.unmute_requests.get(request_id)
            is_theirs = request is not None and request.participant == sender and request.expires_at > now
            return None if is_theirs else Refusal("unknown_request_id")
        case _ if isinstance(command, HostCommand | MemberCommand) or may_moderate(state, sender):
            return None
        case _:
            return Refusal("insufficient_permissions")


def _decide_for_host(
    state: MeetingState, command: HostCommand, now: float, command_id: CommandId
) -> Decision | Refusal:
    match command:
        case Enter(participant, knows_moderation):
            if state.is_banned(participant.id):
                return Refusal("banned")
            changes = tuple(_enter(state, participant, now, knows_moderation=knows_moderation))
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
            return _give_role(state, CONTROLLER, participant, role, "change_role", now, command_id)
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
            noted = participants & state.mutes.keys()
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
    effect = Agree(None if lifted else people, _with_sound(sources.union(lifted))) if lifted or people else None
    return Decision(command_id, "expire", CONTROLLER, now, tuple(changes), effect, holds=True, targets=people)


def _note_bypass(state: MeetingState, command: Bypass, now: float, command_id: CommandId) -> Decision | Refusal:
    who, noted = command.participant, state.bypasses.get(command.participant, frozenset())
    if command.track in noted:
        return Refusal("nothing_to_do")
    targets = frozenset({who})
    changes: tuple[Change, ...] = (BypassNoted(who, command.source, command.track, command.media),)
    effect: Effect = Agree(targets, _with_sound({command.source}))
    if len(noted) + 1 >= BYPASSES:
        changes, effect = (*changes, Departed(who, now, "kicked")), Expel(targets)
    return Decision(command_id, "bypass", CONTROLLER, now, changes, effect, holds=True, targets=targets)


def _enter(state: MeetingState, participant: Participant, now: float, *, knows_moderation: bool) -> Iterator[Change]:
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
            knows_moderation=knows_moderation,
        ),
    )


def _decide_for_member(
    state: MeetingState, sender: ParticipantId, command: MemberCommand, now: float, command_id: CommandId
) -> Decision | Refusal:
    if isinstance(command, control.LowerHand):
        return _lower_hand(state, sender, command, now, command_id)
    room = state.room_of(sender)
    if room is None:
        return Refusal("insufficient_permissions")
    match command:
        case moderation.AnswerUnmuteRequest():
            return _answer(state, sender, command, now, command_id)
        case livekit.RequestPopoutStreamAccessToken():
            number = state.popouts.get(sender, Popouts()).issued + 1
            change: Change = PopoutIssued(sender, number, Popout(popout_identity(sender, number), room))
        case control.RaiseHand():
            change = HandSet(sender, up=True, at=now)
        case _:
            assert_never(command)
    return Decision(command_id, command.action, sender, now, (change,), holds=True)


def _lower_hand(
    state: MeetingState, sender: ParticipantId, command: control.LowerHand, now: float, command_id: CommandId
) -> Decision | Refusal:
    target = sender if command.target is None else command.target
    if not (sender in state.members if target == sender else may_moderate(state, sender)):
        return Refusal("insufficient_permissions")
    if target not in state.members:
        return _UNKNOWN_TARGET
    return Decision(command_id, command.action, sender, now, (HandSet(target, up=False, at=now),), holds=True)


def _answer(
    state: MeetingState,
    sender: ParticipantId,
    command: moderation.AnswerUnmuteRequest,
    now: float,
    command_id: CommandId,
) -> Decision | Refusal:
    request = state.unmute_requests.get(command.request_id)
    if request is None or request.participant != sender or request.expires_at <= now:
        return Refusal("unknown_request_id")
    closed = RequestClosed(command.request_id, command.accept)
    decision = Decision(command_id, command.action, sender, now, (closed,), wished_by=request.moderator)
    if not command.accept:
        return replace(decision, holds=True)
    targets = frozenset({sender})
    return replace(
        decision,
        changes=(*decision.changes, Granted(targets, Source.MICROPHONE)),
        effect=Agree(targets, frozenset({Source.MICROPHONE})),
        targets=targets,
        is_action=True,
    )


def _decide_for_moderator(
    state: MeetingState,
    sender: ParticipantId,
    command: ModeratorCommand,
    now: float,
    command_id: CommandId,
    strangers: Mapping[ParticipantId, Presence],
) -> Decision | Refusal:
    action = Decision(command_id, command.action, sender, now, is_action=True)
    match command:
        case livekit.ForceMute():
            targets, unknown = _known(state, command.participants, strangers)
            mute = Mute(targets, frozenset({Source.MICROPHONE}))
            return replace(action, effect=mute, targets=targets, unknown=unknown)
        case livekit.GrantScreenSharePermission():
            return _name(state, action, command.participants, Source.SCREEN_SHARE, allow=True)
        case livekit.RevokeScreenSharePermission():
            return _name(state, action, command.participants, Source.SCREEN_SHARE, allow=False)
        case livekit.EnableMicrophoneRestrictions():
            listed = people(command.unrestricted_participants, state, strangers)
            restricted = Restricted(Source.MICROPHONE, listed)
            return replace(action, changes=(restricted,), effect=_about({Source.MICROPHONE}))
        case livekit.DisableMicrophoneRestrictions():
            return replace(action, changes=(Unrestricted(Source.MICROPHONE),), effect=_about({Source.MICROPHONE}))
        case control.GrantModeratorRole():
            return _give_role(state, sender, command.target, Role.MODERATOR, command.action, now, command_id)
        case control.RevokeModeratorRole():
            return _take_role(state, sender, command, now, command_id)
        case moderation.Mute():
            return _mute(state, action, command, strangers)
        case moderation.Restrict(source=name, allowed=allowed, expires_in_s=lasts_s):
            until = None if lasts_s is None else now + lasts_s
            change = Restricted(Source(name), people(allowed, state, strangers), until)
            return replace(action, changes=(change,), effect=_about({Source(name)}))
        case moderation.Unrestrict(source=name):
            return replace(action, changes=(Unrestricted(Source(name)),), effect=_about({Source(name)}))
        case moderation.Disallow():
            return _name(state, action, command.participants, Source(command.source), strangers, allow=False)
        case moderation.Allow():
            return _name(state, action, command.participants, Source(command.source), strangers, allow=True)
        case moderation.Stop():
            targets, unknown = _known(state, command.participants, strangers)
            stop = Stop(targets, _with_sound({Source(command.source)}))
            return replace(action, effect=stop, targets=targets, unknown=unknown)
        case moderation.SetPresenter(participant=presenter):
            if presenter is not None and presenter not in state.members:
                return Refusal("invalid_command", "participant: is not in this meeting")
            targets = frozenset[ParticipantId]() if presenter is None else frozenset({presenter})
            effect = _about({Source.SCREEN_SHARE})
            return replace(action, changes=(PresenterSet(presenter),), effect=effect, targets=targets)
        case moderation.AskToUnmute():
            return _ask(state, action, command.participants, now, strangers)
        case moderation.Kick():
            return _kick(state, action, command, strangers)
        case moderation.Unban():
            named = people(command.participants, state, strangers)
            known = named & (state.bans | state.departed | state.members.keys())
            return replace(action, changes=(Unbanned(known),), holds=True, targets=known, unknown=named - known)
        case moderation.Undo():
            return _undo(state, action, CommandId(command.command_id))
        case _:
            assert_never(command)


def _mute(
    state: MeetingState, action: Decision, command: moderation.Mute, strangers: Mapping[ParticipantId, Presence]
) -> Decision:
    sources = frozenset(map(Source, command.sources))
    unknown: frozenset[ParticipantId] = frozenset()
    exempt: frozenset[ParticipantId] = frozenset()
    spared: frozenset[ParticipantId] | None = None
    if command.participants is not None:
        targets, unknown = _known(state, command.participants, strangers)
    else:
        spared = people(command.everyone_except or (), state, strangers) | _themselves(action.sender)
        exempt = frozenset(
            who for who in state.members if who in spared or state.is_moderator(who) or not obeys_room(who, state)
        )
        exempt |= frozenset(who for who, found in strangers.items() if who in spared or is_service(found))
        targets = frozenset({*strangers, *state.members}) - exempt
    is_held = command.hold_s is not None
    return replace(
        action,
        changes=() if command.hold_s is None else (Held(targets, sources, action.at + command.hold_s),),
        effect=Mute(targets, sources, is_held=is_held, strangers_but=spared),
        targets=targets,
        unknown=unknown,
        exempt=exempt,
    )


def _name(
    state: MeetingState,
    action: Decision,
    named: tuple[ParticipantId, ...],
    source: Source,
    strangers: Collection[ParticipantId] = (),
    *,
    allow: bool,
) -> Decision:
    targets, unknown = _known(state, named, strangers)
    departed = unknown & state.departed
    targets, unknown = targets | departed, unknown - departed  # it holds when they come back
    change = Granted(targets, source) if allow else Revoked(targets, source)
    effect = Agree(targets, _with_sound({source}))
    return replace(action, changes=(change,), effect=effect, targets=targets, unknown=unknown)


def _ask(
    state: MeetingState,
    action: Decision,
    named: tuple[ParticipantId, ...],
    now: float,
    strangers: Collection[ParticipantId],
) -> Decision | Refusal:
    targets, unknown = _known(state, named, strangers)
    reached = {who for who in targets & state.members.keys() if _may_be_asked(state.members[who])}
    wait_s = {who: state.asked_at[who] + ASK_AGAIN_S - now for who in reached & state.asked_at.keys()}
    too_soon = {who for who, left_s in wait_s.items() if left_s > 0}
    if reached and reached == too_soon:
        return Refusal("rate_limit_exceeded", retry_after_s=min(wait_s.values()))
    changes = tuple(
        Asked(f"{action.command_id}-{number}", UnmuteRequest(who, action.sender, now + REQUEST_S), now)
        for number, who in enumerate(sorted(reached - too_soon), 1)
    )
    return replace(action, changes=changes, holds=True, targets=targets, unknown=unknown)


def _may_be_asked(member: Member) -> bool:
    return member.returns_until is None and member.knows_moderation and member.kind not in SERVICES


def _kick(
    state: MeetingState, action: Decision, command: moderation.Kick, strangers: Collection[ParticipantId]
) -> Decision:
    named = people(command.participants, state, strangers)
    exempt = named & _themselves(action.sender)
    targets = (named & {*strangers, *state.departed, *state.members}) - exempt
    departed = [Departed(who, action.at, "banned" if command.ban else "kicked") for who in sorted(targets)]
    return replace(
        action,
        changes=(*departed, Banned(targets)) if command.ban else tuple(departed),
        effect=Expel(targets),
        holds=True,
        targets=targets,
        unknown=named - targets - exempt,
        exempt=exempt,
        reason=command.reason,
    )


def _undo(state: MeetingState, action: Decision, command_id: CommandId) -> Decision | Refusal:
    changed = state.undoable.get(command_id)
    if changed is None:
        return Refusal("unknown_command_id")
    settings = tuple(setting for setting in changed if _may_be_put_back(state, setting, action.at))
    if not settings:
        return Refusal("not_undoable")
    sources: set[Source] = set()
    people: set[ParticipantId] = set()
    concerns_everybody = False
    for setting in settings:
        match setting:
            case RestrictionWas(source):
                concerns_everybody = True
                sources.add(source)
            case PresenterWas():
                concerns_everybody = True
                sources.add(Source.SCREEN_SHARE)
            case ListingWas(source, who) | HoldWas(source, who):
                people.add(who)
                sources.add(source)
            case BlockWas(block):
                people.add(block.participant)
                sources.add(block.source)
            case BanWas(who):
                people.add(who)
            case _:
                assert_never(setting)
    targets = frozenset(people)
    effect = Agree(None if concerns_everybody else targets, _with_sound(sources))
    return replace(
        action,
        changes=(PutBack(settings),),
        effect=effect if sources else None,
        targets=targets,
        reason=f"undoes {command_id}",
    )


def _may_be_put_back(state: MeetingState, setting: Setting, now: float) -> bool:
    """Not what would have ended by itself since, nor a presenter who is gone, nor a ban on who has come in again."""
    match setting:
        case RestrictionWas(until=float(until)) | HoldWas(until=float(until)):
            return until > now
        case PresenterWas(participant):
            return participant is None or participant in state.members
        case BanWas(participant, was_set):
            return not was_set or participant not in state.members
        case _:
            return True


def _take_role(
    state: MeetingState, sender: ParticipantId, command: control.RevokeModeratorRole, now: float, command_id: CommandId
) -> Decision | Refusal:
    target = command.target
    if target not in state.members:
        return _UNKNOWN_TARGET
    if not state.is_moderator(target):
        return Refusal("nothing_to_do")
    if sender != CONTROLLER and all(moderator == target for moderator in state.moderators()):
        return Refusal("insufficient_permissions")
    role = state.members[target].role
    return _give_role(
        state, sender, target, Role.USER if role is Role.MODERATOR else role, command.action, now, command_id
    )


def _give_role(
    state: MeetingState,
    sender: ParticipantId,
    target: ParticipantId,
    role: Role,
    action: str,
    now: float,
    command_id: CommandId,
) -> Decision | Refusal:
    member = state.members.get(target)
    if member is None:
        return _UNKNOWN_TARGET
    if role is Role.MODERATOR and member.kind in NEVER_MODERATORS:
        return Refusal("insufficient_permissions")
    if state.role_of(target) is role:
        return Refusal("nothing_to_do")
    targets = frozenset({target})
    return Decision(
        command_id,
        action,
        sender,
        now,
        (RoleGiven(target, role),),
        Agree(targets, frozenset(Source)),
        holds=True,
        targets=targets,
        is_action=True,
    )


def _known(
    state: MeetingState,
    named: tuple[ParticipantId, ...],
    strangers: Collection[ParticipantId] = (),
) -> tuple[frozenset[ParticipantId], frozenset[ParticipantId]]:
    meant = people(named, state, strangers)
    known = frozenset(who for who in meant if who in strangers or who in state.members)
    return known, meant - known


def _themselves(sender: ParticipantId) -> frozenset[ParticipantId]:
    """Who gives a command, as somebody whom it might concern; the host is nobody, whoever bears its name in LiveKit."""
    return frozenset() if sender == CONTROLLER else frozenset({sender})


def _about(sources: set[Source]) -> Agree:
    return Agree(None, _with_sound(sources))


def _with_sound(sources: AbstractSet[Source]) -> frozenset[Source]:
    """The same sources, and with a screen its sound."""
    return frozenset(sources) | SCREEN_SOURCES if Source.SCREEN_SHARE in sources else frozenset(sources)


_UNKNOWN_TARGET: Final = Refusal("invalid_command", "target: is not in this meeting")

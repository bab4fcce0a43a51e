"""What becomes of the state of a meeting by what happens to it."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import assert_never

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
    MutesNoted,
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
from signaling.core.participants import SERVICES, Role, Source
from signaling.core.state import (
    ASK_AGAIN_S,
    POPOUTS_PER_PERSON,
    REMEMBERED_S,
    Block,
    BlockCause,
    CameInto,
    MeetingState,
    Member,
    MuteNote,
    Popouts,
    came_into_both,
)
from signaling.core.steps import drop_requests, forget_questions, restrict, without
from signaling.core.undo import put_all_back, undoable_after
from signaling.identifiers import BreakoutId, CommandId, ParticipantId, livekit_room


def apply(state: MeetingState, changes: Iterable[Change], *, command_id: CommandId | None = None) -> MeetingState:
    """
    The state after these changes; `version` goes up by one if that differs.

    Args:
        command_id: By which the changes can be undone.
    """
    after = state
    for change in changes:
        after = _apply(after, change)
    if after == state:
        return state
    return replace(after, undoable=undoable_after(state, after, command_id), version=state.version + 1)


def _apply(state: MeetingState, change: Change) -> MeetingState:
    match change:
        case Entered(participant, member):
            return _enter(state, participant, member)
        case Departed(participant, at, reason):
            return _depart(state, frozenset({participant}), at, is_removed=reason in {"kicked", "banned"})
        case TimedOut(participants, at):
            return _depart(state, participants, at)
        case ConnectionLost(participants, until):
            lost = {who: replace(state.members[who], returns_until=until) for who in participants & set(state.members)}
            return replace(state, members={**state.members, **lost})
        case Moved(participant, breakout):
            return _move(state, participant, breakout)
        case HandSet(participant, up, at):
            return _change_member(state, participant, lambda member: _set_hand(member, at, up=up))
        case Extended(participant):
            return _change_member(state, participant, lambda member: replace(member, knows_moderation=True))
        case RoleGiven(participant, role):
            forgotten = _name_nobody(state, Source.SCREEN_SHARE, frozenset({participant}))
            if role is not Role.MODERATOR:
                forgotten = drop_requests(forgotten, lambda request: request.moderator == participant)
            return replace(forgotten, roles={**state.roles, participant: role})
        case Restricted(source, listed, until):
            return replace(restrict(state, source, until), listed={**state.listed, source: listed})
        case Unrestricted(source):
            kept = state.listed if source is Source.SCREEN_SHARE else without(state.listed, source)
            restricted = (state.restricted - {source}) | (state.restricted_by_default & {source})
            ends = without(state.restricted_until, source)
            return replace(state, restricted=restricted, restricted_until=ends, listed=kept)
        case Granted(participants, source):
            return _grant(state, participants, source)
        case Revoked(participants, source):
            return _revoke(state, participants, source)
        case Held(participants, sources, until):
            return _hold(state, participants, sources, until)
        case CameSeen(came):
            return replace(state, came=came_into_both(state.came, came))
        case HoldsEnded(at):
            return replace(state, holds=_holds_that(state, lambda _, __, until: until > at))
        case BypassNoted(participant, source, track, _):
            tracks = state.bypasses.get(participant, frozenset())
            if track in tracks:
                return state
            block = Block(participant, source, BlockCause.BYPASS)
            return replace(
                forget_questions(state, {participant}, {source}),
                bypasses={**state.bypasses, participant: tracks | {track}},
                blocks=state.blocks | {block},
            )
        case PresenterSet(participant):
            is_here = participant is None or participant in state.members
            return replace(state, presenter=participant) if is_here else state
        case Banned(participants):
            return replace(state, bans=state.bans | participants)
        case Unbanned(participants):
            return replace(state, bans=state.bans - participants)
        case Asked(request_id, request, at):
            asked = (request.moderator, request.participant)
            others = drop_requests(state, lambda older: (older.moderator, older.participant) == asked)
            recently = {who: asked_at for who, asked_at in state.asked_at.items() if asked_at + ASK_AGAIN_S > at}
            return replace(
                others,
                unmute_requests={**others.unmute_requests, request_id: request},
                asked_at={**recently, request.participant: at},
            )
        case RequestClosed(request_id, _):
            return replace(state, unmute_requests=without(state.unmute_requests, request_id))
        case RequestsLapsed(at):
            return drop_requests(state, lambda request: request.expires_at <= at)
        case MutesNoted(mutes, at):
            fresh = {who: note for who, note in state.mutes.items() if note.at + REMEMBERED_S > at}
            noted = {who: MuteNote(at, sources) for who, sources in mutes.items()}
            return replace(state, mutes={**fresh, **noted})
        case MutesForgotten(participants):
            return replace(state, mutes={who: note for who, note in state.mutes.items() if who not in participants})
        case PutBack(settings):
            return put_all_back(state, settings)
        case PopoutIssued(participant, number, popout):
            issued = state.popouts.get(participant, Popouts())
            if number <= issued.issued:
                return state
            opened = (*issued.open, popout)[-POPOUTS_PER_PERSON:]
            return replace(state, popouts={**state.popouts, participant: Popouts(issued=number, open=opened)})
        case Ended():
            return MeetingState(
                room=state.room,
                version=state.version,
                restricted=state.restricted_by_default,
                restricted_by_default=state.restricted_by_default,
                doomed=state.doomed | state.rooms,
            )
        case RoomDeleted(room):
            return replace(state, doomed=state.doomed - {room})
        case _:
            assert_never(change)


def _empty_since(state: MeetingState, members: Mapping[ParticipantId, Member], at: float) -> float | None:
    """Since when, `at` the latest, nobody but services is in the meeting with these members; `None` if somebody is."""
    if any(member.kind not in SERVICES for member in members.values()):
        return None
    return at if state.empty_since is None else state.empty_since


def _enter(state: MeetingState, participant: ParticipantId, member: Member) -> MeetingState:
    members = {**state.members, participant: member}
    entered = replace(
        state,
        members=members,
        came=state.came if member.kind in SERVICES else _forget_coming(state.came, participant),
        departed=state.departed - {participant},
        rooms=state.rooms | {livekit_room(state.room, member.breakout)},
        empty_since=_empty_since(state, members, member.joined_at),
    )
    if entered.is_moderator(participant):
        return entered
    return drop_requests(entered, lambda request: request.moderator == participant)


def _forget_coming(came: CameInto, participant: ParticipantId) -> CameInto:
    return {room: others for room, known in came.items() if (others := without(known, participant))}


def _change_member(state: MeetingState, participant: ParticipantId, change: Callable[[Member], Member]) -> MeetingState:
    member = state.members.get(participant)
    if member is None:
        return state
    return replace(state, members={**state.members, participant: change(member)})


def _set_hand(member: Member, at: float, *, up: bool) -> Member:
    return member if member.hand_is_up is up else replace(member, hand_is_up=up, hand_updated_at=at)


def _depart(
    state: MeetingState, participants: frozenset[ParticipantId], at: float, *, is_removed: bool = False
) -> MeetingState:
    if participants.isdisjoint(state.members):
        # Whoever is in LiveKit without having joined is removed by this alone.
        return replace(state, departed=state.departed | participants) if is_removed else state
    members = {who: member for who, member in state.members.items() if who not in participants}
    asked = drop_requests(state, lambda request: not participants.isdisjoint({request.participant, request.moderator}))
    return replace(
        _close_popouts(asked, participants),
        members=members,
        mutes={who: note for who, note in state.mutes.items() if who not in participants},
        presenter=None if state.presenter in participants else state.presenter,
        departed=state.departed | (participants & state.members.keys()),
        empty_since=_empty_since(state, members, at),
    )


def _move(state: MeetingState, participant: ParticipantId, breakout: BreakoutId | None) -> MeetingState:
    member = state.members.get(participant)
    if member is None or member.breakout == breakout:
        return state
    return replace(
        # A popout shows the room that its owner is in; one left behind would go on watching the other.
        _close_popouts(state, {participant}),
        members={**state.members, participant: replace(member, breakout=breakout)},
        rooms=state.rooms | {livekit_room(state.room, breakout)},
    )


def _close_popouts(state: MeetingState, participants: AbstractSet[ParticipantId]) -> MeetingState:
    open_ones = {who: issued for who, issued in state.popouts.items() if issued.open and who in participants}
    if not open_ones:
        return state
    closed = {who: replace(issued, open=()) for who, issued in open_ones.items()}
    return replace(state, popouts={**state.popouts, **closed})


def _name_nobody(state: MeetingState, source: Source, participants: frozenset[ParticipantId]) -> MeetingState:
    """Forget what moderators decided about these people and this source by name."""
    listed = state.listed
    if (named := listed.get(source)) is not None and named & participants:
        listed = {**listed, source: named - participants}
    return replace(state, listed=listed, blocks=state.blocks - {Block(who, source) for who in participants})


def _hold(
    state: MeetingState, participants: frozenset[ParticipantId], sources: frozenset[Source], until: float
) -> MeetingState:
    held = {who: {**state.holds.get(who, {}), **dict.fromkeys(sources, until)} for who in participants}
    holds = {**state.holds, **held} if sources else state.holds
    return replace(forget_questions(state, participants, sources), holds=holds)


def _revoke(state: MeetingState, participants: frozenset[ParticipantId], source: Source) -> MeetingState:
    kept = forget_questions(_name_nobody(state, source, participants), participants, {source})
    return replace(kept, blocks=kept.blocks | {Block(who, source) for who in participants})


def _grant(state: MeetingState, participants: frozenset[ParticipantId], source: Source) -> MeetingState:
    sources = {source, Source.SCREEN_SHARE_AUDIO} if source is Source.SCREEN_SHARE else {source}
    lifted = {Block(who, each, cause) for who in participants for each in sources for cause in BlockCause}
    listed = state.listed
    if source is Source.SCREEN_SHARE or source in state.restricted:
        listed = {**listed, source: listed.get(source, frozenset()) | participants}
    return replace(
        state,
        blocks=state.blocks - lifted,
        holds=_holds_that(state, lambda who, each, _: who not in participants or each not in sources),
        listed=listed,
    )


def _holds_that(
    state: MeetingState, remain: Callable[[ParticipantId, Source, float], bool]
) -> Mapping[ParticipantId, Mapping[Source, float]]:
    kept = {
        who: {source: until for source, until in held.items() if remain(who, source, until)}
        for who, held in state.holds.items()
    }
    return {who: held for who, held in kept.items() if held}

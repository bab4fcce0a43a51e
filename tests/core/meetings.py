"""What the tests of core share: a meeting in which Alice moderates and Bob and Carol do not, and ways to change it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from signaling.core import conclusions
from signaling.core.announcements import Only
from signaling.core.applying import apply
from signaling.core.changes import Change
from signaling.core.commands import AnyCommand, Depart, Enter
from signaling.core.conclusions import Conclusion
from signaling.core.decisions import Decision, Refusal, decide
from signaling.core.effects import Allow, Call, Finding, Permission, Presence, Remove, Track
from signaling.core.participants import ALL_SOURCES, Kind, Participant, Role, Source
from signaling.core.state import MeetingState
from signaling.identifiers import (
    CONTROLLER,
    BreakoutId,
    CommandId,
    Identity,
    LiveKitRoom,
    ParticipantId,
    RoomId,
    TrackSid,
)
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, Namespace

ALICE = ParticipantId("alice")
BOB = ParticipantId("bob")
CAROL = ParticipantId("carol")
DAVE = ParticipantId("dave")
GUEST = ParticipantId("guest")
PHONE = ParticipantId("sip:49")
RECORDER = ParticipantId("recorder")

BOARD = RoomId("board")
MAIN = LiveKitRoom("board")
LEFT = BreakoutId("left")
LEFT_ROOM = LiveKitRoom("board:left")
RIGHT = BreakoutId("right")

AT = 1_000.0
COMMAND = CommandId("c-1")

CAMERA, MICROPHONE, SCREEN, SCREEN_AUDIO = ALL_SOURCES
ALL = ALL_SOURCES
WITHOUT_MICROPHONE = (CAMERA, SCREEN, SCREEN_AUDIO)
WITHOUT_SCREEN = (CAMERA, MICROPHONE)


def somebody(
    who: ParticipantId, role: Role = Role.USER, kind: Kind = Kind.USER, breakout: BreakoutId | None = None
) -> Participant:
    return Participant(who, role=role, kind=kind, display_name=who.title(), breakout=breakout)


def decided(state: MeetingState, sender: ParticipantId, command: AnyCommand, *, at: float = AT) -> Decision:
    """The decision of a command that is not refused."""
    decision = decide(state, sender, command, now=at, command_id=COMMAND)
    assert isinstance(decision, Decision), decision
    return decision


def refused(state: MeetingState, sender: ParticipantId, command: AnyCommand) -> tuple[str, str | None]:
    """Why a command is refused."""
    refusal = decide(state, sender, command, now=AT, command_id=COMMAND)
    assert isinstance(refusal, Refusal), refusal
    return refusal.error, refusal.detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded(Conclusion):
    """What a command came to, and the state that its changes made."""

    state: MeetingState


def conclude(
    state: MeetingState,
    decision: Decision,
    findings: Mapping[ParticipantId, Finding] | None = None,
    **seen: Any,  # noqa: ANN401 - as core has them
) -> Concluded:
    """Conclude a decision, and apply what came of it as whoever commits it does."""
    conclusion = conclusions.conclude(state, decision, findings, **seen)
    command_id = decision.command_id if decision.is_action else None
    return Concluded(
        **{each.name: getattr(conclusion, each.name) for each in fields(conclusion)},
        state=apply(state, conclusion.changes, command_id=command_id),
    )


def concluded(
    state: MeetingState,
    sender: ParticipantId,
    command: AnyCommand,
    findings: Mapping[ParticipantId, Finding] | None = None,
    *,
    at: float = AT,
) -> Concluded:
    """What a command that is not refused comes to."""
    return conclude(state, decided(state, sender, command, at=at), findings)


def after(state: MeetingState, *steps: tuple[ParticipantId, AnyCommand]) -> MeetingState:
    """The state when these commands were carried out, none refused."""
    for sender, command in steps:
        state = concluded(state, sender, command).state
    return state


def changed(state: MeetingState, *changes: Change) -> MeetingState:
    return apply(state, changes)


def joined(state: MeetingState, *people: Participant, at: float = AT) -> MeetingState:
    for person in people:
        state = concluded(state, CONTROLLER, Enter(person), at=at).state
    return state


def left(state: MeetingState, *people: ParticipantId) -> MeetingState:
    return after(state, *((CONTROLLER, Depart(who)) for who in people))


MEETING = joined(MeetingState(BOARD), somebody(ALICE, Role.MODERATOR), somebody(BOB), somebody(CAROL))
"""Alice moderates, Bob and Carol do not."""


# --- Commands ----------------------------------------------------------------------------------------------------


def mute(*people: ParticipantId) -> livekit.ForceMute:
    return livekit.ForceMute(participants=people)


def grant(*people: ParticipantId) -> livekit.GrantScreenSharePermission:
    return livekit.GrantScreenSharePermission(participants=people)


def revoke(*people: ParticipantId) -> livekit.RevokeScreenSharePermission:
    return livekit.RevokeScreenSharePermission(participants=people)


def enable(*people: ParticipantId) -> livekit.EnableMicrophoneRestrictions:
    return livekit.EnableMicrophoneRestrictions(unrestricted_participants=people)


DISABLE = livekit.DisableMicrophoneRestrictions()
POPOUT = livekit.RequestPopoutStreamAccessToken()
RAISE = control.RaiseHand()
LOWER = control.LowerHand()


def lower(target: ParticipantId) -> control.LowerHand:
    return control.LowerHand(target=target)


def promote(target: ParticipantId) -> control.GrantModeratorRole:
    return control.GrantModeratorRole(target=target)


def demote(target: ParticipantId) -> control.RevokeModeratorRole:
    return control.RevokeModeratorRole(target=target)


# --- What is told ------------------------------------------------------------------------------------------------


def everything_told(conclusion: Conclusion, who: ParticipantId) -> list[Event]:
    """The events that reach somebody who is in the meeting, in order."""
    return [
        announcement.event
        for announcement in conclusion.announcements
        if (
            who in announcement.audience.participants
            if isinstance(announcement.audience, Only)
            else who not in announcement.audience.but
        )
    ]


def told(conclusion: Conclusion, who: ParticipantId) -> list[Event]:
    """What reaches somebody whose client knows nothing of this package."""
    return [event for event in everything_told(conclusion, who) if event.namespace is not Namespace.MODERATION]


def noticed(conclusion: Conclusion, who: ParticipantId) -> list[Event]:
    """What reaches somebody with the extension beyond that, but for the audit."""
    return [
        event
        for event in everything_told(conclusion, who)
        if event.namespace is Namespace.MODERATION and not isinstance(event, moderation.ActionTaken)
    ]


def actions(conclusion: Conclusion, who: ParticipantId) -> list[moderation.ActionTaken]:
    """The audit entries that reach somebody."""
    return [event for event in everything_told(conclusion, who) if isinstance(event, moderation.ActionTaken)]


def outcomes(conclusion: Conclusion) -> dict[str, str]:
    return {outcome.participant: outcome.outcome for outcome in conclusion.outcomes}


# --- LiveKit -----------------------------------------------------------------------------------------------------


def allowing(*sources: Source) -> Permission:
    """What LiveKit records when it was told these sources."""
    return Permission(can_publish=bool(sources), sources=sources)


def track(source: Source | None = MICROPHONE, *, muted: bool = False) -> Track:
    return Track(TrackSid("TR_1"), source, muted=muted, is_sound=source in {MICROPHONE, SCREEN_AUDIO})


def present(
    who: str,
    *sources: Source,
    room: LiveKitRoom = MAIN,
    tracks: tuple[Track, ...] = (),
    is_service: bool = False,
) -> Presence:
    """Somebody in a LiveKit room who may publish these sources."""
    return Presence(room, Identity(who), allowing(*sources), tracks, is_hidden=is_service)


def carried_out(roster: list[Presence], calls: list[Call]) -> list[Presence]:
    """Who is in LiveKit with what permission when these calls were answered."""
    places = {(presence.room, presence.identity): presence for presence in roster}
    for call in calls:
        place = (call.room, call.identity)
        before = places.pop(place)
        match call:
            case Remove():
                pass
            case Allow(sources=sources):
                places[place] = replace(before, permission=allowing(*sources))
    return list(places.values())

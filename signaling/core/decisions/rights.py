"""Who may publish what: restrictions, people by name, the presenter."""

from collections.abc import Collection
from dataclasses import replace

from signaling.core.changes import Granted, PresenterSet, Restricted, Revoked, Unrestricted
from signaling.core.decisions.decision import Decision, Refusal
from signaling.core.decisions.reach import about, known_and_unknown, with_sound
from signaling.core.effects import Agree
from signaling.core.participants import Source
from signaling.core.references import people
from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId
from signaling.messages import livekit, moderation


def restrict_microphones(
    state: MeetingState,
    action: Decision,
    command: livekit.EnableMicrophoneRestrictions,
    strangers: Collection[ParticipantId],
) -> Decision:
    """Only moderators and those listed may use their microphones."""
    listed = people(command.unrestricted_participants, state, strangers)
    restricted = Restricted(Source.MICROPHONE, listed)
    return replace(action, changes=(restricted,), effect=about({Source.MICROPHONE}))


def restrict(
    state: MeetingState, action: Decision, command: moderation.Restrict, strangers: Collection[ParticipantId]
) -> Decision:
    """Only moderators and those listed may publish the source, perhaps for a while."""
    source = Source(command.source)
    until = None if command.expires_in_s is None else action.at + command.expires_in_s
    change = Restricted(source, people(command.allowed, state, strangers), until)
    return replace(action, changes=(change,), effect=about({source}))


def lift(action: Decision, source: Source) -> Decision:
    """Everybody may publish the source."""
    return replace(action, changes=(Unrestricted(source),), effect=about({source}))


def allow(
    state: MeetingState,
    action: Decision,
    named: tuple[ParticipantId, ...],
    source: Source,
    strangers: Collection[ParticipantId] = (),
) -> Decision:
    """Those named may publish the source."""
    return _name(state, action, named, source, strangers, allow=True)


def disallow(
    state: MeetingState,
    action: Decision,
    named: tuple[ParticipantId, ...],
    source: Source,
    strangers: Collection[ParticipantId] = (),
) -> Decision:
    """Those named may not publish the source."""
    return _name(state, action, named, source, strangers, allow=False)


def set_presenter(state: MeetingState, action: Decision, command: moderation.SetPresenter) -> Decision | Refusal:
    """Nobody else may share the screen, or everybody may again."""
    presenter = command.participant
    if presenter is not None and presenter not in state.members:
        return Refusal("invalid_command", "participant: is not in this meeting")
    targets = frozenset[ParticipantId]() if presenter is None else frozenset({presenter})
    effect = about({Source.SCREEN_SHARE})
    return replace(action, changes=(PresenterSet(presenter),), effect=effect, targets=targets)


def _name(
    state: MeetingState,
    action: Decision,
    named: tuple[ParticipantId, ...],
    source: Source,
    strangers: Collection[ParticipantId],
    *,
    allow: bool,
) -> Decision:
    targets, unknown = known_and_unknown(state, named, strangers)
    departed = unknown & state.departed
    targets, unknown = targets | departed, unknown - departed  # it holds when they come back
    change = Granted(targets, source) if allow else Revoked(targets, source)
    effect = Agree(targets, with_sound({source}))
    return replace(action, changes=(change,), effect=effect, targets=targets, unknown=unknown)

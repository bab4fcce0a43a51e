"""Who may publish what. The only place that says so: tokens, commands, joins and repairs all ask here."""

from typing import Final

from signaling.core.effects import Presence
from signaling.core.participants import ALL_SOURCES, SCREEN_SOURCES, SERVICES, LiveKitKind, Role, Source
from signaling.core.state import Block, BlockCause, MeetingState
from signaling.identifiers import ParticipantId

LIVEKIT_SERVICES: Final = frozenset({LiveKitKind.INGRESS, LiveKitKind.EGRESS, LiveKitKind.AGENT})


def publishable(participant: ParticipantId, state: MeetingState, *, is_service: bool = False) -> tuple[Source, ...]:
    """
    The sources that `participant` may publish, in LiveKit's order.

    In order of precedence: everything is gone for the banned; what a bypass or a mute that holds took away; what is
    blocked by name, for moderators too; screen sharing, for everyone but the presenter; then what is restricted, for
    whoever is neither a moderator nor listed, where the presenter counts as listed for screen sharing. What is decided
    for everybody does not concern services such as recorders. Screen sharing has two sources, which go together, except
    that a restricted microphone leaves `screen_share_audio` alone, and that it may be kept from somebody by itself.

    Args:
        is_service: Whether LiveKit says so of somebody who is not a member; who is none is restricted like anyone.
    """
    if participant in state.bans:
        return ()
    obeys = obeys_room(participant, state, is_service=is_service)
    return tuple(
        source
        for source in ALL_SOURCES
        if not is_blocked(participant, source, state) and not (obeys and _is_restricted(participant, source, state))
    )


def obeys_room(participant: ParticipantId, state: MeetingState, *, is_service: bool = False) -> bool:
    """Whether what is decided for everybody concerns them: not so for services, which obey only what names them."""
    member = state.members.get(participant)
    return not is_service if member is None else member.kind not in SERVICES


def is_service(presence: Presence) -> bool:
    """Whether LiveKit says of an identity that it is no ordinary participant. Phone callers are."""
    return presence.is_hidden or presence.kind in LIVEKIT_SERVICES


def is_blocked(participant: ParticipantId, source: Source, state: MeetingState) -> bool:
    """Whether something keeps the source from them by name."""
    if not state.blocks and not state.holds:
        return False
    held = state.holds.get(participant, {})
    return any(
        each in held or any(Block(participant, each, cause) in state.blocks for cause in BlockCause)
        for each in {source, ruled_by(source)}
    )


def ruled_by(source: Source) -> Source:
    """The source whose rules hold for this one."""
    return Source.SCREEN_SHARE if source in SCREEN_SOURCES else source


def _is_restricted(participant: ParticipantId, source: Source, state: MeetingState) -> bool:
    rule = ruled_by(source)
    if rule is Source.SCREEN_SHARE and state.presenter is not None:
        return participant != state.presenter
    if rule not in state.restricted or (participant in state.members and state.role_of(participant) is Role.MODERATOR):
        return False
    return participant not in state.listed.get(rule, frozenset())


def stricter(participant: ParticipantId, before: MeetingState, after: MeetingState) -> tuple[Source, ...]:
    """What `participant` may publish in both; a token minted while a decision is carried out allows no more."""
    allowed = publishable(participant, before)
    return tuple(source for source in publishable(participant, after) if source in allowed)

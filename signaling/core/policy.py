"""Who may publish what: the only place that says so, for tokens, commands, joins and repairs alike."""

from signaling.core.participants import ALL_SOURCES, SCREEN_SOURCES, SERVICES, Role, Source
from signaling.core.state import Block, MeetingState
from signaling.identifiers import ParticipantId


def publishable(participant: ParticipantId, state: MeetingState) -> tuple[Source, ...]:
    """
    The sources that `participant` may publish, in LiveKit's order.

    In order of precedence: what is blocked by name is gone, for moderators too; then what is restricted, for whoever is
    neither a moderator nor listed nor a service such as a recorder. Screen sharing has two sources, which go together,
    except that a restricted microphone leaves `screen_share_audio` alone. Somebody who is not a member, but in LiveKit
    all the same, is restricted like anyone.
    """
    return tuple(source for source in ALL_SOURCES if _may_publish(participant, _ruled_by(source), state))


def _ruled_by(source: Source) -> Source:
    """The source whose rules hold for this one."""
    return Source.SCREEN_SHARE if source in SCREEN_SOURCES else source


def _may_publish(participant: ParticipantId, source: Source, state: MeetingState) -> bool:
    if Block(participant, source) in state.blocks:
        return False
    if source not in state.restricted:
        return True
    member = state.members.get(participant)
    if member is not None and (member.kind in SERVICES or state.role_of(participant) is Role.MODERATOR):
        return True
    return participant in state.listed.get(source, frozenset())


def stricter(participant: ParticipantId, before: MeetingState, after: MeetingState) -> tuple[Source, ...]:
    """What `participant` may publish in both; a token minted while a decision is carried out allows no more."""
    allowed = publishable(participant, before)
    return tuple(source for source in publishable(participant, after) if source in allowed)

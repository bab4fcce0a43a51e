"""Who may publish what. The only place that says so: tokens, commands, joins and repairs all ask here."""

from collections.abc import Mapping
from functools import cache
from typing import Final
from weakref import ref

from signaling.core.effects import Presence
from signaling.core.participants import ALL_SOURCES, SCREEN_SOURCES, SERVICES, LiveKitKind, Source
from signaling.core.state import Block, MeetingState
from signaling.identifiers import ParticipantId

LIVEKIT_SERVICES: Final = frozenset({LiveKitKind.INGRESS, LiveKitKind.EGRESS, LiveKitKind.AGENT})
_NOTHING: Final[frozenset[Source]] = frozenset()


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
    taken = _blocked(participant, state)
    if obeys_room(participant, state, is_service=is_service):
        taken |= _restricted(participant, state)
    return _all_but(taken)


@cache
def _all_but(taken: frozenset[Source]) -> tuple[Source, ...]:
    """What is left; there are sixteen of these, and a large meeting asks for each person in it."""
    return tuple(source for source in ALL_SOURCES if not _is_among(taken, source))


def _is_among(taken: frozenset[Source], source: Source) -> bool:
    return source in taken or ruled_by(source) in taken


def obeys_room(participant: ParticipantId, state: MeetingState, *, is_service: bool = False) -> bool:
    """Whether what is decided for everybody concerns them: not so for services, which obey only what names them."""
    member = state.members.get(participant)
    return not is_service if member is None else member.kind not in SERVICES


def is_service(presence: Presence) -> bool:
    """Whether LiveKit says of an identity that it is no ordinary participant. Phone callers are."""
    return presence.is_hidden or presence.kind in LIVEKIT_SERVICES


def is_blocked(participant: ParticipantId, source: Source, state: MeetingState) -> bool:
    """Whether something keeps the source from them by name."""
    return _is_among(_blocked(participant, state), source)


def is_named(participant: ParticipantId, state: MeetingState) -> bool:
    """Whether something keeps any source from them by name."""
    return bool(_blocked(participant, state))


def _blocked(participant: ParticipantId, state: MeetingState) -> frozenset[Source]:
    blocked = _by_person(state.blocks).get(participant, _NOTHING) if state.blocks else _NOTHING
    held = state.holds.get(participant)
    return blocked.union(held) if held else blocked


_known: Final[dict[int, tuple[ref[frozenset[Block]], Mapping[ParticipantId, frozenset[Source]]]]] = {}
"""By the id of the set of blocks, for as long as there is that set."""


def _by_person(blocks: frozenset[Block]) -> Mapping[ParticipantId, frozenset[Source]]:
    """What is blocked for whom, made once for a set of blocks: to look for each block of each person is slow."""
    key = id(blocks)
    known = _known.get(key)
    if known is None:
        found: dict[ParticipantId, frozenset[Source]] = {}
        for block in blocks:
            found[block.participant] = found.get(block.participant, _NOTHING) | {block.source}
        known = _known[key] = ref(blocks, lambda _: _known.pop(key)), found
    return known[1]


def ruled_by(source: Source) -> Source:
    """The source whose rules hold for this one."""
    return Source.SCREEN_SHARE if source in SCREEN_SOURCES else source


def _restricted(participant: ParticipantId, state: MeetingState) -> frozenset[Source]:
    restricted = _NOTHING
    if state.restricted and not state.is_moderator(participant):
        restricted = frozenset([rule for rule in state.restricted if participant not in state.listed.get(rule, ())])
    if state.presenter is None:
        return restricted
    screen = {Source.SCREEN_SHARE}
    return restricted - screen if participant == state.presenter else restricted | screen


def stricter(participant: ParticipantId, before: MeetingState, after: MeetingState) -> tuple[Source, ...]:
    """What `participant` may publish in both; a token minted while a decision is carried out allows no more."""
    allowed = publishable(participant, before)
    return tuple(source for source in publishable(participant, after) if source in allowed)

"""What the newest commands changed, and putting it back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, assert_never

from signaling.core.participants import ALL_SOURCES
from signaling.core.state import (
    BanWas,
    BlockWas,
    HoldWas,
    ListingWas,
    MeetingState,
    PresenterWas,
    RestrictionWas,
    Setting,
)
from signaling.core.steps import forget_questions, restrict, without
from signaling.identifiers import CommandId

UNDOABLE_COMMANDS: Final = 50
UNDOABLE_SETTINGS: Final = 2_000
"""How much of what the newest commands changed is kept, besides what the very newest one did."""


def undoable_after(
    before: MeetingState, after: MeetingState, command_id: CommandId | None
) -> Mapping[CommandId, tuple[Setting, ...]]:
    """
    What can be undone in the state after this command: what it changed is remembered.

    No older command can undo what differs now: it was changed since, whatever it was changed to.
    """
    differing = tuple(_differing(before, after))
    if not differing:
        return after.undoable
    changed = {_key(setting) for setting in differing}
    undoable = {
        other: tuple(setting for setting in settings if _key(setting) not in changed)
        for other, settings in after.undoable.items()
        if other != command_id
    }
    if command_id is not None:
        undoable[command_id] = differing
    while len(undoable) > UNDOABLE_COMMANDS or (
        len(undoable) > 1 and sum(map(len, undoable.values())) > UNDOABLE_SETTINGS
    ):
        del undoable[next(iter(undoable))]
    return undoable


def put_all_back(state: MeetingState, settings: Iterable[Setting]) -> MeetingState:
    """The state in which these settings are as they were, as far as they can be."""
    for setting in settings:
        state = _put_back(state, setting)
    lists = {source: named for source, named in state.listed.items() if named or source in state.restricted}
    return replace(state, listed=lists)


def _key(setting: Setting) -> tuple[object, ...]:
    """What it is a setting of: two with the same key cannot both hold."""
    match setting:
        case RestrictionWas(source):
            return RestrictionWas, source
        case ListingWas(source, participant) | HoldWas(source, participant):
            return type(setting), source, participant
        case BlockWas(block):
            return BlockWas, block
        case PresenterWas():
            return (PresenterWas,)
        case BanWas(participant):
            return BanWas, participant
        case _:
            assert_never(setting)


def _differing(before: MeetingState, after: MeetingState) -> Iterator[Setting]:
    """What differs, as it was before."""
    for source in ALL_SOURCES:
        was, ended = source in before.restricted, before.restricted_until.get(source)
        if (was, ended) != (source in after.restricted, after.restricted_until.get(source)):
            yield RestrictionWas(source, was, ended)
        named = before.listed.get(source, frozenset())
        for who in sorted(named ^ after.listed.get(source, frozenset())):
            yield ListingWas(source, who, who in named)
    if before.blocks is not after.blocks:
        in_order = sorted(
            before.blocks ^ after.blocks, key=lambda block: (block.participant, block.source, block.cause)
        )
        for block in in_order:
            yield BlockWas(block, block in before.blocks)
    if before.holds is not after.holds:
        yield from _differing_holds(before, after)
    if before.presenter != after.presenter:
        yield PresenterWas(before.presenter)
    for who in sorted(before.bans ^ after.bans):
        yield BanWas(who, who in before.bans)


def _differing_holds(before: MeetingState, after: MeetingState) -> Iterator[Setting]:
    for who in sorted(before.holds.keys() | after.holds.keys()):
        held, holds = before.holds.get(who, {}), after.holds.get(who, {})
        for source in ALL_SOURCES:
            if held.get(source) != holds.get(source):
                yield HoldWas(source, who, held.get(source))


def _put_back(state: MeetingState, setting: Setting) -> MeetingState:
    match setting:
        case RestrictionWas(source, was_set, until):
            if not was_set:
                ends = without(state.restricted_until, source)
                return replace(state, restricted=state.restricted - {source}, restricted_until=ends)
            return restrict(state, source, until)
        case ListingWas(source, who, was_set):
            named = state.listed.get(source, frozenset())
            return replace(state, listed={**state.listed, source: named | {who} if was_set else named - {who}})
        case BlockWas(block, was_set):
            if not was_set:
                return replace(state, blocks=state.blocks - {block})
            return replace(forget_questions(state, {block.participant}, {block.source}), blocks=state.blocks | {block})
        case HoldWas(source, who, until):
            held = without(state.holds.get(who, {}), source) | ({} if until is None else {source: until})
            others = without(state.holds, who)
            kept = state if until is None else forget_questions(state, {who}, {source})
            return replace(kept, holds=others | {who: held} if held else others)
        case PresenterWas(who):
            return replace(state, presenter=who if who in state.members else None)
        case BanWas(who, was_set):
            # Whoever has come in since is not to be here and banned at once.
            is_banned = was_set and who not in state.members
            return replace(state, bans=state.bans | {who} if is_banned else state.bans - {who})
        case _:
            assert_never(setting)

"""
Whether there is an order of what was done, each within the time that it took, in which all of it came to what it did.

After Wing and Gong, with Lowe's memory of what was tried. The model is `signaling.core` itself: a command is decided in
one state, and concluded in that or a later one, since LiveKit is asked meanwhile and people come and go.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from signaling.core.applying import apply
from signaling.core.changes import Change
from signaling.core.commands import AnyCommand
from signaling.core.conclusions import Conclusion, conclude
from signaling.core.decisions import Decision, Refusal, decide
from signaling.core.effects import Finding, Permission, Presence
from signaling.core.state import MeetingState
from signaling.identifiers import CommandId, Identity, LiveKitRoom, ParticipantId
from signaling.messages.moderation import Outcome

MOST_TRIED: Final = 5_000
"""States that are looked at before a search is given up."""

Outcomes = tuple[tuple[str, str, str | None], ...]
"""Of each person: who, what came of it, and why not."""


class Undecided(Exception):
    """There is too much at once to try it all."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A command was carried out; `outcomes` as the sender was told, `None` if of those nothing is known."""

    outcomes: Outcomes | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A command came to nothing, for one of these reasons."""

    codes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Given:
    """
    A command of somebody's.

    Attributes:
        times: When it may have been decided, in seconds since the epoch.
        waits: Whether it takes the meeting's turn: no other one is decided before it is concluded.
    """

    sender: ParticipantId
    command: AnyCommand
    command_id: CommandId
    times: tuple[float, ...]
    came_to: Accepted | Refused
    waits: bool = True


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known to have become of the state, which no client asked for."""

    changes: tuple[Change, ...]
    command_id: CommandId | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """
    Something that took effect at one moment of some time, if at all.

    Attributes:
        name: For readers.
        ends: `inf` if nobody knows.
        must: Whether it did take effect.
        place: Which is tried first of those that may be next.
    """

    name: str
    what: Given | Fact
    begins: float
    ends: float = math.inf
    must: bool = True
    place: float = math.inf

    @property
    def reads(self) -> bool:
        """Whether it leaves the state alone in any case."""
        return isinstance(self.what, Given) and isinstance(self.what.came_to, Refused)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A command whose turn it is: decided, and not concluded."""

    index: int
    decided: Decision
    seen: object


@dataclass(frozen=True, slots=True)
class _Node:
    """How far the search has come: what was done (a bit each), and the state that came of it."""

    done: int
    state: MeetingState
    begun: _Begun | None = None

    @property
    def key(self) -> object:
        return self.done, observed(self.state), None if self.begun is None else (self.begun.index, self.begun.seen)


def why_not_linearizable(state: MeetingState, operations: Sequence[Operation]) -> str | None:
    """
    What is in the way of any order, where the search came furthest; `None` if there is one.

    The order of the log is tried first, which is the likeliest by far and leaves little to choose. If the search of any
    other is given up, what was in the way of that one is told.
    """
    ordered = sorted(operations, key=lambda each: (each.begins, each.place))
    why = _Search(ordered, keeps_places=True).run(state)
    if why is None:
        return None
    with suppress(Undecided):
        return _Search(ordered, keeps_places=False).run(state)
    return why


class _Search:
    def __init__(self, operations: list[Operation], *, keeps_places: bool) -> None:
        self._operations = operations
        self._places = sorted(each.place for each in operations if each.place < math.inf) if keeps_places else []
        self._index_at = {each.place: index for index, each in enumerate(operations)}
        self._needed = sum(1 << index for index, each in enumerate(operations) if each.must)
        self._furthest: _Node | None = None

    def run(self, state: MeetingState) -> str | None:
        tried = set[object]()
        ways: list[Iterator[_Node]] = [iter((_Node(0, state),))]
        while ways:
            node = next(ways[-1], None)
            if node is None:
                ways.pop()
                continue
            node = self._read(node)
            if node.done & self._needed == self._needed and node.begun is None:
                return None
            if (key := node.key) in tried:
                continue
            tried.add(key)
            if len(tried) > MOST_TRIED:
                raise Undecided(f"{len(self._operations)} operations, {len(tried)} states")
            if self._furthest is None or node.done.bit_count() > self._furthest.done.bit_count():
                self._furthest = node
            ways.append(self._next(node))
        assert self._furthest is not None
        return self._describe(self._furthest)

    def _candidates(self, done: int) -> list[int]:
        """What may be next: nothing that is not done yet had ended when it began."""
        found, ends = [], math.inf
        index = (~done & (done + 1)).bit_length() - 1  # the first that is not done
        for number in range(index, len(self._operations)):
            if done >> number & 1:
                continue
            operation = self._operations[number]
            if operation.begins > ends:
                break
            found.append(number)
            ends = min(ends, operation.ends)
        return [number for number in found if self._operations[number].begins <= ends]

    def _read(self, node: _Node) -> _Node:
        """Do all that changes nothing and came to what it would: to do it later is never of use."""
        while True:
            done = node.done
            for number in self._candidates(done):
                operation = self._operations[number]
                if operation.reads and _carry_out(node.state, operation.what) is not None:
                    done |= 1 << number
            if done == node.done:
                return node
            node = _Node(done, node.state, node.begun)

    def _next(self, node: _Node) -> Iterator[_Node]:
        candidates = sorted(self._candidates(node.done), key=lambda number: self._operations[number].place)
        begun, next_place = node.begun, self._next_place(node.done)
        if begun is not None and begun.index in candidates and self._is_next(begun.index, next_place):
            given = self._operations[begun.index].what
            assert isinstance(given, Given)
            after = _concluded(node.state, begun.decided, given)
            if after is not None:
                yield _Node(node.done | 1 << begun.index, after)
        for number in candidates:
            what = self._operations[number].what
            is_turn = isinstance(what, Given) and what.waits
            if self._operations[number].reads or (begun is not None and is_turn):
                continue
            if not self._is_next(number, next_place):
                continue
            after = _carry_out(node.state, what)
            if after is not None:
                yield _Node(node.done | 1 << number, after, begun)
        if begun is None:
            for number in candidates:
                given = self._operations[number].what
                if isinstance(given, Given) and given.waits and not self._operations[number].reads:
                    for decision in _decisions(node.state, given):
                        yield _Node(node.done, node.state, _Begun(number, decision, observed(node.state)))

    def _next_place(self, done: int) -> float:
        """Of what has a place that is to be kept, which is next."""
        places = (place for place in self._places if not done >> self._index_at[place] & 1)
        return next(places, math.inf)

    def _is_next(self, number: int, next_place: float) -> bool:
        place = self._operations[number].place
        return place == math.inf or place <= next_place

    def _describe(self, node: _Node) -> str:
        stuck = [
            f"{operation.name} {_difference(node.state, operation.what)}"
            for operation in map(self._operations.__getitem__, self._candidates(node.done))
            if operation.must
        ]
        count = node.done.bit_count()
        return f"after {count} of {len(self._operations)} operations none can be next: {'; '.join(stuck)}"


# --- The model ---------------------------------------------------------------------------------------------------


def _carry_out(state: MeetingState, what: Given | Fact) -> MeetingState | None:
    """The state after it was done at once; `None` if it would not have come to what it did."""
    if isinstance(what, Fact):
        return apply(state, what.changes, command_id=what.command_id)
    if isinstance(what.came_to, Refused):
        refusals = (refusal.error for refusal in _decided(state, what) if isinstance(refusal, Refusal))
        return state if any(_codes(code) & what.came_to.codes for code in refusals) else None
    after = (_concluded(state, decision, what) for decision in _decisions(state, what))
    return next((each for each in after if each is not None), None)


def _decided(state: MeetingState, given: Given) -> Iterator[Decision | Refusal]:
    came_to = given.came_to
    told = () if isinstance(came_to, Refused) or came_to.outcomes is None else came_to.outcomes
    others = {ParticipantId(who) for who, came, _ in told if came != "unknown"} - state.members.keys()
    # Or nothing else would be said of them.
    strangers = _in_livekit(state, others) | _in_livekit(state, _services(state, told), is_hidden=True)
    for now in given.times:
        yield decide(state, given.sender, given.command, now=now, command_id=given.command_id, strangers=strangers)


def _decisions(state: MeetingState, given: Given) -> Iterator[Decision]:
    return (decision for decision in _decided(state, given) if isinstance(decision, Decision))


def _concluded(state: MeetingState, decision: Decision, given: Given) -> MeetingState | None:
    assert isinstance(given.came_to, Accepted)
    outcomes = given.came_to.outcomes
    conclusion = conclude(state, decision, _findings(outcomes or ()), present=_present(state, outcomes or ()))
    if outcomes is not None and not _agree(_told(conclusion), outcomes):
        return None
    command_id = decision.command_id if decision.is_action else None
    return apply(state, conclusion.changes, command_id=command_id)


def _told(conclusion: Conclusion) -> Outcomes:
    return outcomes_told(conclusion.outcomes)


def outcomes_told(outcomes: Sequence[Outcome]) -> Outcomes:
    """Outcomes, as far as they are compared."""
    return tuple((each.participant, each.outcome, each.error) for each in outcomes)


_SEEN: Final[Mapping[tuple[str, str | None], Finding]] = MappingProxyType(
    {
        ("failed", "livekit_unavailable"): Finding.UNANSWERED,
        ("failed", "livekit_rejected"): Finding.REJECTED,
        ("settling", None): Finding.SETTLING,
        ("muted", None): Finding.MUTED,
        ("already_muted", None): Finding.ALREADY_MUTED,
        ("no_track", None): Finding.NO_TRACK,
        ("stopped", None): Finding.STOPPED,
        ("removed", None): Finding.CHANGED,
    }
)


def _findings(outcomes: Outcomes) -> dict[ParticipantId, Finding]:
    """What LiveKit must have done for this to be answered: that alone is not the model's."""
    return {ParticipantId(who): _SEEN[came, why] for who, came, why in outcomes if (came, why) in _SEEN}


def _present(state: MeetingState, outcomes: Outcomes) -> dict[ParticipantId, Presence]:
    """
    Who must be in LiveKit for this to be answered, with rights that go with that.

    For them nothing has changed though they were given something, or they are no members and something is said of them.
    """
    came_to = {ParticipantId(who): came for who, came, _ in outcomes}
    unchanged = {who for who, came in came_to.items() if came == "unchanged"}
    changed = {who for who, came in came_to.items() if came in {"restricted", "unrestricted"}} - state.members.keys()
    services = _in_livekit(state, _services(state, outcomes), is_hidden=True)
    return _in_livekit(state, unchanged, can_publish=False) | _in_livekit(state, changed) | services


def _services(state: MeetingState, outcomes: Outcomes) -> AbstractSet[ParticipantId]:
    """Whom nothing touches though they are no members: they listen unseen."""
    return {ParticipantId(who) for who, came, _ in outcomes if came == "exempt"} - state.members.keys()


def _in_livekit(
    state: MeetingState, people: AbstractSet[ParticipantId], *, can_publish: bool = True, is_hidden: bool = False
) -> dict[ParticipantId, Presence]:
    permission = Permission(can_publish=can_publish, sources=())
    return {who: Presence(LiveKitRoom(state.room), Identity(who), permission, is_hidden=is_hidden) for who in people}


def _agree(expected: Outcomes, told: Outcomes) -> bool:
    return sorted(expected, key=str) == sorted(told, key=str)


def _codes(code: str) -> frozenset[str]:
    # Of a command that the state has forgotten, the audit says which of the two it is.
    return frozenset({code} if code != "unknown_command_id" else {"unknown_command_id", "not_undoable"})


def _difference(state: MeetingState, what: Given | Fact) -> str:
    if isinstance(what, Fact):
        return "came by itself"
    came = [
        f"is refused as {each.error}" if isinstance(each, Refusal) else f"comes to {_told(conclude(state, each))}"
        for each in _decided(state, what)
    ]
    return f"{came[0]}, and was answered {what.came_to}"


def observed(state: MeetingState) -> object:
    """What answers can depend on, in a form that can be compared quickly."""
    members = frozenset(
        (who, each.role, each.kind, each.hand_is_up, each.returns_until is None, each.knows_moderation)
        for who, each in state.members.items()
    )
    return (
        members,
        frozenset(state.roles.items()),
        state.restricted,
        _frozen(state.listed),
        state.blocks,
        frozenset((who, _frozen(held)) for who, held in state.holds.items()),
        state.bans,
        state.presenter,
        _frozen(state.unmute_requests),
        _frozen(state.asked_at),
        tuple(state.undoable.items()),
        frozenset((who, each.issued) for who, each in state.popouts.items()),
        _frozen(state.bypasses),
        state.departed,
        state.goes_on,
    )


def _frozen(values: Mapping[Any, object]) -> frozenset[object]:
    return frozenset(values.items())

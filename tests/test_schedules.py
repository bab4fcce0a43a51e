"""Two or three nodes on one store, and what goes wrong at any operation: nothing is lost, told twice, or left."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from signaling import BreakoutId, Role
from signaling.identifiers import NodeId, ParticipantId, RoomId
from signaling.presence import LIVES_S
from signaling.stores.contract import Commit, Record
from tests.nodes_on_fake import ROOM, Node, World
from tests.stores.shared_store import LEASE_S, Planned, SharedStore, Trouble

PAUSES_S: Final = (0.3, 2.0, LEASE_S + 0.01, LIVES_S + 5, LIVES_S + 10)
"""How long something goes wrong: shorter, longer than a deadline, a lease, a node's life, and the grace after that."""
LEASE_PAUSE: Final = 2
"""Just longer than a lease: whoever has taken the turn over is in the middle of it."""
GAPS_S: Final = (0.0, 0.001, 0.004, 0.02, 0.3, 2.0)
PEOPLE: Final = ("bob", "carol", "dave")
Action = Callable[[World, Node, int], None]


def _by_moderator(namespace: str, action: str, **fields: object) -> Action:
    """A command of the node's moderator, or of its host when there is none any more."""

    def act(world: World, node: Node, who: int) -> None:
        target = PEOPLE[who % len(PEOPLE)]
        payload: dict[str, Any] = {"action": action}
        payload |= {name: _with_target(value, target) for name, value in fields.items()}
        moderator = world.people[f"mod-{node.number}"]
        if moderator.is_connected and moderator.node is node:
            world.begin(node, world.ask(str(moderator.id), namespace, payload))
        else:
            world.begin(node, node.module.command(ROOM, namespace, payload))

    return act


def _with_target(value: object, target: str) -> object:
    return [target] if value == ["*"] else target if value == "*" else value


def _join(world: World, node: Node, who: int) -> None:
    world.begin(node, world.join(node, PEOPLE[who % len(PEOPLE)]))


def _moderator_joins(world: World, node: Node, _who: int) -> None:
    world.begin(node, world.join(node, f"mod-{node.number}"))


def _go(how: str) -> Action:
    def act(world: World, _node: Node, who: int) -> None:
        person = world.people[PEOPLE[who % len(PEOPLE)]]
        if person.is_connected and person.session is not None and person.node is not None:
            world.begin(person.node, getattr(person.session, how)())

    return act


def _move(breakout: str | None) -> Action:
    def act(world: World, node: Node, who: int) -> None:
        target = ParticipantId(PEOPLE[who % len(PEOPLE)])
        world.begin(node, node.module.move(ROOM, target, None if breakout is None else BreakoutId(breakout)))

    return act


def _end(world: World, node: Node, _who: int) -> None:
    world.begin(node, node.module.close_room(ROOM))


def _enter_by_an_old_token(world: World, _node: Node, who: int) -> None:
    world.people[PEOPLE[who % len(PEOPLE)]].enter(0)


ACTIONS: Final[tuple[Action, ...]] = (
    _by_moderator("livekit_moderation", "restrict", source="microphone"),
    _by_moderator("livekit_moderation", "unrestrict", source="microphone"),
    _by_moderator("livekit_moderation", "mute", participants=["*"], sources=["microphone"]),
    _by_moderator("livekit_moderation", "mute", everyone_except=[], sources=["microphone"], hold_s=20),
    _by_moderator("livekit_moderation", "disallow", source="microphone", participants=["*"]),
    _by_moderator("livekit_moderation", "allow", source="microphone", participants=["*"]),
    _by_moderator("livekit_moderation", "stop", source="microphone", participants=["*"]),
    _by_moderator("livekit_moderation", "kick", participants=["*"], ban=False),
    _by_moderator("livekit_moderation", "kick", participants=["*"], ban=True),
    _by_moderator("livekit_moderation", "unban", participants=["*"]),
    _by_moderator("control", "grant_moderator_role", target="*"),
    _by_moderator("control", "revoke_moderator_role", target="*"),
    _by_moderator("livekit", "enable_microphone_restrictions", unrestricted_participants=["*"]),
    _by_moderator("livekit", "disable_microphone_restrictions"),
    _join,
    _join,
    _moderator_joins,
    _go("leave"),
    _go("disconnect"),
    _move("red"),
    _move(None),
    _enter_by_an_old_token,
    _end,
)
TROUBLES: Final = tuple(Trouble)


@dataclass(frozen=True)
class Schedule:
    """
    What is done, and what goes wrong: numbers alone, so that one that fails can be written down.

    Attributes:
        acts: The node, which of `ACTIONS`, about whom, and which of `GAPS_S` passes after it.
        faults: The node, at which of its operations from the start on, which of `TROUBLES`, which of `PAUSES_S`.
    """

    acts: tuple[tuple[int, int, int, int], ...]
    faults: tuple[tuple[int, int, int, int], ...]
    nodes: int = 2


def run(schedule: Schedule, make_store: type[SharedStore] = SharedStore) -> World:
    """Run a schedule, and judge what has come of it."""
    world = World(schedule.nodes, make_store)
    try:
        for node in world.nodes:
            world.come(f"mod-{node.number}", Role.MODERATOR, node)
        for number, name in enumerate(PEOPLE):
            world.come(name, Role.USER, world.nodes[number % len(world.nodes)])
        world.pass_time(1)
        for number, step, trouble, pause in schedule.faults:
            link = world.nodes[number % len(world.nodes)].link
            planned = Planned(TROUBLES[trouble % len(TROUBLES)], PAUSES_S[pause])
            link.planned[link.steps + 1 + step] = planned
        for number, action, who, gap in schedule.acts:
            node = world.nodes[number % len(world.nodes)]
            if node.is_alive:
                ACTIONS[action % len(ACTIONS)](world, node, who)
            world.pass_time(GAPS_S[gap % len(GAPS_S)])
        world.pass_time(2)
        for node in world.nodes:
            node.link.planned.clear()
        world.pass_time(max((PAUSES_S[pause] for _, _, _, pause in schedule.faults), default=0))
        world.settle()
        world.judge()
    finally:
        world.close()
    return world


# --- Whatever goes wrong ---------------------------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, len(ACTIONS) - 1), st.integers(0, 2), st.integers(0, len(GAPS_S) - 1)),
    min_size=1,
    max_size=6,
).map(tuple)
FAULTS = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 60), st.integers(0, len(TROUBLES) - 1), st.integers(0, len(PAUSES_S) - 1)
    ),
    max_size=2,
).map(tuple)
SCHEDULES = st.builds(Schedule, ACTS, FAULTS, nodes=st.sampled_from((2, 2, 2, 3)))


@settings(
    max_examples=int(os.environ.get("SCHEDULES", "2000")),
    derandomize="SCHEDULES" not in os.environ,  # a change is judged by the same schedules; by others when asked for
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(SCHEDULES)
def test_whatever_goes_wrong_nothing_is_lost(schedule: Schedule) -> None:
    run(schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        # Whoever is let in while a meeting ends is in the next one, whose revisions begin anew.
        Schedule(((0, 22, 2, 3), (1, 15, 2, 5), (0, 1, 0, 5)), ()),
        # The store does not say who looks after a meeting that nobody is in any more.
        Schedule(((1, 22, 0, 2), (0, 15, 2, 1), (0, 19, 1, 4), (1, 16, 2, 3)), ((1, 38, 0, 0),)),
        # Another node finishes what is staged, and LiveKit has not answered the one that staged it.
        Schedule(((1, 13, 1, 5),), ((1, 6, 4, 2),)),
    ],
)
def test_what_went_wrong_once_does_not_again(schedule: Schedule) -> None:
    run(schedule)


@pytest.mark.parametrize(
    ("trouble", "pause", "ends_as"), [(3, 3, None), (3, 4, "interrupted"), (7, 3, None), (7, 4, "interrupted")]
)
def test_whose_node_is_not_heard_of_stays_if_it_is_before_their_place_is_given_up(
    trouble: int, pause: int, ends_as: str | None
) -> None:
    world = run(Schedule(((0, 3, 0, 4),), ((0, 11, trouble, pause),)))
    ended = {session.id: session._ended.result() for _, session in world.sessions if session._ended.done()}
    assert ended == ({} if ends_as is None else dict.fromkeys(("mod-0", "bob", "dave"), ends_as))
    assert [line["log_level"] for line in world.logs if line["event"] == "node_was_silent"] == ["warning"]


def test_a_schedule_happens_the_same_way_each_time() -> None:
    schedule = Schedule(((0, 0, 0, 1), (1, 7, 1, 1), (0, 15, 2, 4)), ((0, 4, 3, 1), (1, 9, 1, 0)))
    first, again = run(schedule), run(schedule)
    for one, other in zip(first.nodes, again.nodes, strict=True):
        assert one.link.happened == other.link.happened != []
        assert one.link.steps == other.link.steps
    told = [[payload["message"] for heard in world.heard.values() for _, payload in heard] for world in (first, again)]
    assert told[0] == told[1] != []


# --- What would be found -----------------------------------------------------------------------------------------


class WithoutFence(SharedStore):
    """Commits of turns that are over are taken."""

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:  # noqa: ARG002
        return await super().append(commit)


class AnswersBeforeCommit(SharedStore):
    """What is to be written counts as written."""

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        kept = await self.read(commit.entry.room)
        if commit.entry.revision != (0 if kept is None else kept.revision) + 1:
            return False
        self._spawn(super().append(commit, fence=fence))
        return True


class KnowsOfNobodyElse(SharedStore):
    """Each node takes the others for gone."""

    async def beat(self, node: NodeId, *, until: float, now: float) -> frozenset[NodeId]:
        return frozenset({node}) & await super().beat(node, until=until, now=now)


class HearsLate(SharedStore):
    """What others commit is heard of when the meeting is read, and not before."""

    def hear(self, room: RoomId) -> None:
        """Nothing is read for that."""


class TellsTwice(SharedStore):
    """Listeners are told again of what was not answered in time."""

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        before = len(self.link.happened)
        is_written = await super().append(commit, fence=fence)
        if is_written and len(self.link.happened) > before:
            self._tell(Commit(commit.entry, fold_anew(commit)))
        return is_written


def fold_anew(commit: Commit) -> Record:
    """The same record, but another object."""
    return replace(commit.record)


ONE_STANDS_STILL = st.tuples(st.just(0), st.integers(0, 11), st.sampled_from((3, 4)), st.just(LEASE_PAUSE))
DURING_A_TURN = st.builds(
    lambda first, others, fault: Schedule((first, *others), (fault,)),
    st.tuples(st.just(0), st.integers(0, 13), st.integers(0, 2), st.just(0)),
    st.lists(st.tuples(st.just(1), st.integers(0, 13), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3),
    ONE_STANDS_STILL,
)


@pytest.mark.parametrize(
    ("defect", "schedules", "told"),
    [
        (WithoutFence, DURING_A_TURN, "is staged over|concludes what was not staged"),
        (AnswersBeforeCommit, SCHEDULES, "is not in the log"),
        (KnowsOfNobodyElse, SCHEDULES, "is taken for gone"),
        (HearsLate, SCHEDULES, "has not heard"),
        (TellsTwice, SCHEDULES, "heard .* instead of"),
    ],
)
def test_what_a_store_must_not_do_is_found(
    defect: type[SharedStore], schedules: st.SearchStrategy[Schedule], told: str
) -> None:
    def finds(schedule: Schedule) -> bool:
        try:
            run(schedule, defect)
        except AssertionError as error:
            return re.search(told, str(error)) is not None
        return False

    find(
        schedules,
        finds,
        settings=settings(max_examples=250, deadline=None, phases=[Phase.generate], database=None, derandomize=True),
    )

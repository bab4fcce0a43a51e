"""Which faults come when: the same again with the same seed."""

import random
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "answer_lost",  # a node's commit gets to Redis, and its answer is lost
    "node_killed_in_turn",  # while LiveKit is being told of a decision
    "node_without_redis",  # for longer than its leases last
    "node_paused_in_turn",  # until another node has taken its turn over
    "redis_killed",  # and started again with its file
    "redis_paused",
    "redis_dropped",  # all connections of a node to it
    "redis_delayed",
    "redis_request_halved",
    "redis_answer_halved",
    "redis_stalled",  # what a node asks, and is answered, is swallowed
    "node_killed",
    "node_paused",
    "livekit_refused",  # to one node
    "livekit_stalled",
    "livekit_killed",  # and started again, empty
]

NEEDED: Final[tuple[Kind, ...]] = (
    "answer_lost",
    "node_killed_in_turn",
    "node_without_redis",
    "node_paused_in_turn",
    "redis_killed",
)
"""With these, all comes to pass that must have been seen."""
_TAKES_S: Final[dict[Kind, float]] = {
    "answer_lost": 2,
    "node_killed_in_turn": 5,
    "node_without_redis": 11,
    "node_paused_in_turn": 14,
    "redis_killed": 1,
    "redis_paused": 2.5,
    "redis_dropped": 0.5,
    "redis_delayed": 3,
    "redis_request_halved": 0.5,
    "redis_answer_halved": 0.5,
    "redis_stalled": 3,
    "node_killed": 3,
    "node_paused": 4,
    "livekit_refused": 3,
    "livekit_stalled": 4,
    "livekit_killed": 3,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when it begins, to which node it happens, and for how long it lasts at most."""

    at_s: float
    kind: Kind
    node: int
    for_s: float


def plan(seed: int, seconds: float, nodes: int = 3) -> tuple[Fault, ...]:
    """Faults one after the other: those that are needed first, then whichever, until the time is over."""
    chance = random.Random(seed)  # noqa: S311 - the same again, which no secret may be
    kinds = list(_TAKES_S)
    waiting = list(NEEDED)
    found, at_s = list[Fault](), 1.0
    while waiting or at_s + max(_TAKES_S.values()) < seconds:
        if not waiting:
            waiting = chance.sample(kinds, len(kinds))
        kind = waiting.pop(0)
        found.append(Fault(round(at_s, 3), kind, chance.randrange(nodes), _TAKES_S[kind]))
        at_s += _TAKES_S[kind] + chance.uniform(0.5, 2)
    return tuple(found)

"""Which faults come when: the same again with the same seed."""

import random
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "node_killed_in_turn",  # while LiveKit is being told of a decision; another node is to finish it
    "node_paused_in_turn",  # until another node has taken its turn over
    "node_without_redis",  # for longer than its leases last
    "answer_lost",  # a node's commit gets to Redis, and its answer is lost
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
    "livekit_paused",
]
Sight = Literal[
    "a turn taken over",
    "a commit refused by its fence",
    "a staged decision finished by another node",
    "a lost answer repeated",
    "a node without Redis for 10 s",
]

SHOWN_BY: Final[dict[Sight, Kind]] = {
    "a turn taken over": "node_killed_in_turn",
    "a commit refused by its fence": "node_paused_in_turn",
    "a staged decision finished by another node": "node_killed_in_turn",
    "a lost answer repeated": "answer_lost",
    "a node without Redis for 10 s": "node_without_redis",
}
"""All that must have been seen, and what brings it about."""
NEEDED: Final[tuple[Kind, ...]] = (
    "answer_lost",
    "node_killed_in_turn",
    "node_without_redis",
    "node_paused_in_turn",
    "redis_killed",
    "redis_dropped",
)
"""With these, all comes to pass that must have been seen."""
LASTS_S: Final[dict[Kind, float]] = {
    "answer_lost": 1,
    "node_killed_in_turn": 12,
    "node_without_redis": 11,
    "node_paused_in_turn": 13,
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
    "livekit_paused": 4,
}
"""About how long each takes; what is steered for may take more or less."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, the node to which it happens, and for how long nothing happens after the one before it."""

    kind: Kind
    node: int
    after_s: float


def plan(seed: int, seconds: float, nodes: int = 3) -> tuple[Fault, ...]:
    """Faults one after the other: those that are needed first, then whichever, until the time is about over."""
    chance = random.Random(seed)  # noqa: S311 - the same again, which no secret may be
    kinds = list(LASTS_S)
    waiting = list(NEEDED)
    found, takes_s, needed = list[Fault](), 0.0, len(NEEDED)
    while True:
        if not waiting:
            waiting = chance.sample(kinds, len(kinds))
        fault = Fault(waiting.pop(0), chance.randrange(nodes), round(chance.uniform(0.5, 2), 3))
        takes_s += fault.after_s + LASTS_S[fault.kind]
        if len(found) >= needed and takes_s > seconds:
            return tuple(found)
        found.append(fault)

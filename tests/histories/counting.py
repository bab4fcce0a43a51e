"""What a history has of what makes it hard: one without that would be right whatever is wrong."""

from collections import Counter
from itertools import pairwise
from typing import Final

from tests.histories.checking import operations
from tests.histories.recording import Frame, History

MUCH: Final = 20
"""A session that was told of so many commits was told much."""


def seen(history: History) -> Counter[str]:
    """How often there is what."""
    found = Counter[str](asked=len(history.frames))
    for frame in history.frames:
        answer = frame.answer
        error = None if answer is None else answer.payload.get("error")
        found["unanswered"] += answer is None
        found["unavailable"] += error == "unavailable"
        found["refused"] += error == "insufficient_permissions"
        found["carried out"] += answer is not None and error is None
    found["taken over"] = sum(sitting.why == "taken_over" for sitting in history.sittings)
    found["kept out"] = sum(sitting.kept_out is not None for sitting in history.sittings)
    found["at once"] = sum(_at_once(one, other) for one, other in pairwise(_by_time(history)))
    found["told much"] = sum(len(told) >= MUCH for told in history.told.values())
    found["audited"] = sum(map(len, history.audit.values()))
    for room, log in history.log.items():
        finished = (commit.entry for commit in log if commit.entry.audit is not None)
        found["finished later"] += sum(entry.origin is None for entry in finished)
        found["judged"] += sum(operation.name.startswith("frame") for operation in operations(history, room))
    return +found


def _by_time(history: History) -> list[Frame]:
    return sorted((frame for frame in history.frames if frame.answer is not None), key=lambda frame: frame.at)


def _at_once(one: Frame, other: Frame) -> bool:
    """Whether the other was asked for, in another session, before one of them was answered."""
    return one.session != other.session and one.answer is not None and other.at < one.answer.at

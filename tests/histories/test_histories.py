"""What clients of several nodes see is what one meeting would show them, whatever fails: random histories, checked."""

from collections import Counter

import pytest

from tests.histories.checking import nobody_left_over, violations
from tests.histories.nodes import ROOM, Nodes, some_history
from tests.histories.recording import History

RUNS = 8
"""In each of so many tests."""


def all_wrong(history: History) -> list[str]:
    """What is wrong with a history that ended when all had been quiet for long."""
    return [*violations(history), *nobody_left_over(history)]


def seen(history: History) -> Counter[str]:
    """What a history has of what makes it hard."""
    found = Counter[str]()
    for frame in history.frames:
        answer = frame.answer
        error = None if answer is None else answer.payload.get("error")
        found["unanswered"] += answer is None
        found["unavailable"] += error == "unavailable"
        found["refused"] += error == "insufficient_permissions"
        found["carried out"] += error is None
    found["taken over"] = sum(sitting.why == "taken_over" for sitting in history.sittings)
    found["kept out"] = sum(sitting.kept_out is not None for sitting in history.sittings)
    finished = (commit.entry for commit in history.log[ROOM] if commit.entry.audit is not None)
    found["finished later"] = sum(entry.origin is None for entry in finished)
    return found


@pytest.mark.parametrize("first", range(0, 3 * RUNS, RUNS))
def test_what_clients_of_three_nodes_see_is_one_meeting(first: int) -> None:
    for seed in range(first, first + RUNS):
        wrong = all_wrong(some_history(seed, faults=False))
        assert not wrong, f"seed {seed}: {wrong[0]}"


def test_it_is_one_meeting_though_answers_are_lost_and_nodes_are_cut_off() -> None:
    found = Counter[str]()
    for seed in range(6 * RUNS):
        history = some_history(seed)
        wrong = all_wrong(history)
        assert not wrong, f"seed {seed}: {wrong[0]}"
        found += seen(history)
    hard = {"unanswered", "unavailable", "refused", "carried out", "taken over", "kept out", "finished later"}
    assert hard == {what for what, times in found.items() if times}, found


async def _ask_a_node_that_lags(nodes: Nodes) -> None:
    await nodes.open(count=2)
    one, other = nodes.nodes
    await nodes.join("alice", one)
    await nodes.join("bob", other)
    other.store.lags_s = 60.0
    await nodes.ask(0, one, "control", {"action": "grant_moderator_role", "target": "bob"})
    await nodes.ask(1, other, "livekit", {"action": "disable_microphone_restrictions"})
    await nodes.become_quiet()


def test_who_may_is_not_refused_by_a_node_that_has_not_heard_of_it() -> None:
    nodes = Nodes(seed=1)
    nodes.run(_ask_a_node_that_lags(nodes))
    nodes.close()
    assert violations(nodes.history) == []
    answer = nodes.history.frames[1].answer
    assert answer is not None
    assert "error" not in answer.payload

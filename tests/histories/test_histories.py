"""What clients of several nodes see is what one meeting would show them, whatever fails: random histories, checked."""

from collections import Counter

import pytest

from tests.histories.checking import nobody_left_over, violations
from tests.histories.counting import seen
from tests.histories.nodes import Nodes, some_history
from tests.histories.recording import History

RUNS = 8
"""In each of so many tests."""


HARD = ("unanswered", "unavailable", "refused", "carried out", "taken over", "kept out", "finished later")
MUCH = {"at once": 20 * RUNS, "told much": 10 * RUNS, "audited": 50 * RUNS}
"""What is to be in the histories, and how often at least: without that, nothing would be found whatever is wrong."""


def all_wrong(history: History) -> list[str]:
    """What is wrong with a history that ended when all had been quiet for long."""
    return [*violations(history), *nobody_left_over(history)]


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
    for what, least in {**dict.fromkeys(HARD, 1), **MUCH}.items():
        assert found[what] >= least, found
    assert found["judged"] > 0.8 * found["asked"], found


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

"""What clients of three nodes on one real Redis see is what one meeting would show them, whatever fails meanwhile."""

import os
from collections import Counter
from typing import Final

from tests.histories.checking import (
    answered_after_commit,
    audited_once,
    linearizable,
    logs_are_whole,
    nothing_left_staged,
    told_in_order,
)
from tests.histories.counting import seen
from tests.histories.on_redis import history_on_redis

RUNS: Final = int(os.environ.get("HISTORIES", "2"))
"""How many histories there are; ten seconds each."""
CHECKS: Final = (
    *(logs_are_whole, linearizable, told_in_order),
    *(audited_once, answered_after_commit, nothing_left_staged),
)
"""All but for places: a node that is often without Redis may be taken for gone."""
LOGGED: Final = frozenset({"store_away", "commit_repeated", "turn_taken_over"})


def test_it_is_one_meeting_though_redis_is_out_of_reach_and_nodes_stand_still_or_are_killed() -> None:
    found = Counter[str]()
    for seed in range(RUNS):
        history, logs = history_on_redis(seed)
        wrong = [f"{check.__name__}: {each}" for check in CHECKS for each in check(history)]
        assert not wrong, f"seed {seed}: {wrong[0]}"
        found += seen(history) + Counter(each["event"] for each in logs if each["event"] in LOGGED)
    hard = {"at once", "unanswered", "unavailable", "refused", "carried out", "taken over", "told much"}
    assert hard | LOGGED <= found.keys(), found

"""The plan of a soak: the same again with the same seed, and never without what must be seen."""

import itertools

from tests.soak.people import names
from tests.soak.plan import NEEDED, plan


def test_a_plan_is_the_same_again_with_its_seed() -> None:
    assert plan(7, 600) == plan(7, 600)
    assert plan(7, 600) != plan(8, 600)


def test_what_must_be_seen_comes_first_however_short_it_is() -> None:
    assert [fault.kind for fault in plan(7, 1)] == list(NEEDED)


def test_faults_come_one_after_the_other() -> None:
    faults = plan(3, 600)
    assert all(one.at_s + one.for_s < other.at_s for one, other in itertools.pairwise(faults))
    assert faults[-1].at_s + faults[-1].for_s <= 600


def test_who_moderates_is_in_every_room() -> None:
    assert names(6)[:3] == ["olga", "alice", "mia"]
    assert len(set(names(10))) == 10

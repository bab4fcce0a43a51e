"""The plan of a soak: the same again with the same seed, and never without what must be seen."""

from tests.soak.people import names
from tests.soak.plan import LASTS_S, NEEDED, plan


def test_a_plan_is_the_same_again_with_its_seed() -> None:
    assert plan(7, 600) == plan(7, 600)
    assert plan(7, 600) != plan(8, 600)


def test_what_must_be_seen_comes_first_however_short_it_is() -> None:
    assert [fault.kind for fault in plan(7, 1)] == list(NEEDED)


def test_faults_last_about_as_long_as_they_may() -> None:
    faults = plan(3, 600)
    assert 550 < sum(fault.after_s + LASTS_S[fault.kind] for fault in faults) <= 600


def test_who_moderates_is_in_every_room() -> None:
    assert names(6)[:3] == ["olga", "alice", "mia"]
    assert len(set(names(10))) == 10

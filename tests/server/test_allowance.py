import pytest

from signaling.server.allowance import Allowance


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_begins_full_and_comes_back_up_to_that() -> None:
    clock = Clock()
    allowance = Allowance(2, 10, clock)
    assert (allowance.left, allowance.is_full) == (10, True)
    allowance.spend(4)
    clock.now += 1
    assert (allowance.left, allowance.is_full) == (8, False)
    clock.now += 1_000
    assert (allowance.left, allowance.is_full) == (10, True)


def test_what_is_spent_in_the_same_moment_needs_no_clock() -> None:
    clock = Clock()
    allowance = Allowance(2, 10, clock)
    allowance.spend(4)
    allowance.owe(8)
    assert allowance.left == -2


def test_what_is_overspent_is_owed_for_a_while() -> None:
    clock = Clock()
    allowance = Allowance(2, 10, clock)
    allowance.spend(16)
    assert (allowance.left, allowance.owed_for_s) == (-6, 3)
    clock.now += 4
    assert (allowance.left, allowance.owed_for_s) == (2, 0)


def test_only_what_is_there_is_taken() -> None:
    clock = Clock()
    allowance = Allowance(0.5, 2, clock)
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    assert allowance.one_after_s == pytest.approx(2)
    clock.now += 2
    assert [allowance.take() for _ in range(2)] == [True, False]
    clock.now += 4
    assert not allowance.take(3)
    assert allowance.take(2)

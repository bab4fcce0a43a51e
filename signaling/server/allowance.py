"""How much somebody may do: so much a second, and so much at once."""

from collections.abc import Callable


class Allowance:
    """
    Fills up with time and is spent; whoever spends more than there is owes it, and waits until that is made up for.

    Args:
        per_s: What comes back each second, above 0.
        burst: The most that is there at once; where it begins.
        now: A monotonic clock, in seconds.
    """

    __slots__ = ("_at", "_burst", "_left", "_now", "_per_s")

    def __init__(self, per_s: float, burst: float, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now = now
        self._left = burst
        self._at = now()

    @property
    def left(self) -> float:
        """What may be spent now; below 0 what is owed."""
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        return self._left

    @property
    def one_after_s(self) -> float:
        """Seconds in which one comes back."""
        return 1 / self._per_s

    @property
    def owed_for_s(self) -> float:
        """Seconds until nothing is owed."""
        return max(0.0, -self.left / self._per_s)

    @property
    def is_full(self) -> bool:
        """Whether all that may be there is there."""
        return self.left >= self._burst

    def spend(self, amount: float = 1) -> None:
        """Spend it, whether it is there or not."""
        self._left = self.left - amount

    def owe(self, amount: float) -> None:
        """Spend it in the same moment as something else: the clock is not read again."""
        self._left -= amount

    def take(self, amount: float = 1) -> bool:
        """Spend it if so much is there; whether it was."""
        if self.left < amount:
            return False
        self._left -= amount
        return True

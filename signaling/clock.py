"""What time it is for everything that ends by itself."""

import time
from collections.abc import Callable


class SteadyClock:
    """
    Seconds since the epoch that pass evenly, whatever is done to the system's clock meanwhile.

    It is set by the system's clock when it is made. Stepping that afterwards, in either direction, makes nothing
    last longer or shorter; what this clock shows follows at the next start of the process.

    Args:
        wall: The system's clock.
        monotonic: Seconds that pass evenly, from whenever.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._began_at = wall() - monotonic()

    def __call__(self) -> float:
        """Now."""
        return self._began_at + self._monotonic()

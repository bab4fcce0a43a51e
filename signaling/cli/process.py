"""What `serve` sets for the whole process: how many descriptors it may have, and when its garbage is collected."""

import asyncio
import contextlib
import gc
import resource
import time
from collections.abc import Callable
from typing import Final

YOUNG: Final = (5_000, 10)
"""New objects, and collections of these, after which the two younger generations are collected: 5 ms at most."""
MANY: Final = 1_000
"""Connections with which a whole collection would be felt."""
_NEVER: Final = 2**31 - 1
_EVERY_S: Final = 1
_HOUR_S: Final = 3_600
_DAY_S: Final = 86_400


def raise_descriptor_limit() -> None:
    """Let the process have as many descriptors as it may give itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems take less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def collect_in_passing(connections: Callable[[], int]) -> None:
    """
    Collect garbage so that nobody waits for it; until cancelled.

    A whole collection looks at everything that lives, which with ten thousand connections takes a second. What has been
    looked at once is frozen, so the next one looks only at what is new since. All is looked at again when most people
    have gone, every hour while there are few, and once a day in any case.

    Args:
        connections: How many there are now.
    """
    most = 0
    whole_at = time.monotonic()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, _NEVER)
    try:
        while True:
            await asyncio.sleep(_EVERY_S)
            there = connections()
            most = max(most, there)
            age_s = time.monotonic() - whole_at
            have_gone = most >= MANY and there <= most // 8
            if have_gone or (age_s > _HOUR_S and there < MANY) or age_s > _DAY_S:
                gc.unfreeze()
                _collect()
                most, whole_at = there, time.monotonic()
            elif gc.get_count()[2] > 1:
                _collect()
    finally:
        gc.set_threshold(*_DEFAULT)
        gc.unfreeze()


_DEFAULT: Final = gc.get_threshold()


def _collect() -> None:
    gc.collect()
    gc.freeze()

"""What `serve` sets for the whole process: its descriptors, its event loop, and when its garbage is collected."""

import asyncio
import contextlib
import gc
import resource
import select
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

YOUNG: Final = (5_000, 10)
"""New objects, and collections of these, after which the two younger generations are collected: 5 ms at most."""
MANY: Final = 1_000
"""Connections with which a whole collection would be felt."""
_NEVER: Final = 2**31 - 1
_EVERY_S: Final = 1
_HOUR_S: Final = 3_600
_DAY_S: Final = 86_400


READY_AT_ONCE: Final = 128
"""Of so many connections the event loop takes note in one round; each may take a tenth of a millisecond."""


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_File: TypeAlias = int | _HasFileno


class FairSelector(selectors.BaseSelector):
    """
    Tells of so many files in one round, and of the others in the next ones: Linux has them wait in line.

    When a network fails, thousands of connections end in one moment. Whoever is still there has a turn in between.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: _File, events: int, data: object = None) -> selectors.SelectorKey:
        """Watch a file; see `selectors.BaseSelector`."""
        fd = _fileno(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is watched already")
        self._epoll.register(fd, _EPOLL_OF[events])
        self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return self._keys[fd]

    def unregister(self, fileobj: _File) -> selectors.SelectorKey:
        """Watch a file no longer; one that was closed meanwhile is not watched by itself."""
        key = self._keys.pop(_fileno(fileobj))
        with contextlib.suppress(OSError):
            self._epoll.unregister(key.fd)
        return key

    def modify(self, fileobj: _File, events: int, data: object = None) -> selectors.SelectorKey:
        """Watch a file for something else."""
        key = self._keys[_fileno(fileobj)]
        if events != key.events:
            self._epoll.modify(key.fd, _EPOLL_OF[events])
        self._keys[key.fd] = key._replace(events=events, data=data)
        return self._keys[key.fd]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Which files are ready; those that are left out stay so."""
        ready = []
        for fd, told in self._epoll.poll(-1 if timeout is None else max(timeout, 0), READY_AT_ONCE):
            events = selectors.EVENT_WRITE if told & ~select.EPOLLIN else 0
            events |= selectors.EVENT_READ if told & ~select.EPOLLOUT else 0
            if key := self._keys.get(fd):
                ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        """Watch nothing any more."""
        self._epoll.close()
        self._keys.clear()

    def get_key(self, fileobj: _File) -> selectors.SelectorKey:
        """How a file is watched; `KeyError` if it is not."""
        return self._keys[_fileno(fileobj)]

    def get_map(self) -> Mapping[_File, selectors.SelectorKey]:
        """How each file is watched."""
        return {key.fileobj: key for key in self._keys.values()}


_EPOLL_OF: Final = {
    selectors.EVENT_READ: select.EPOLLIN,
    selectors.EVENT_WRITE: select.EPOLLOUT,
    selectors.EVENT_READ | selectors.EVENT_WRITE: select.EPOLLIN | select.EPOLLOUT,
}


def _fileno(fileobj: _File) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def fair_event_loop() -> asyncio.AbstractEventLoop:
    """A loop in which nobody waits for thousands of others; elsewhere than on Linux, one as Python has it."""
    return asyncio.SelectorEventLoop(FairSelector() if hasattr(select, "epoll") else None)


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

"""Processes within one event loop whose time jumps: each can stand still, as if it were stopped, or go on no more."""

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

from tests.timeless import TimelessLoop


class Process:
    """Whatever was begun in its context: nothing of it runs while it stands still, its timers and callbacks neither."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.stands_still = False
        self.is_dead = False
        self.context = copy_context()
        self.context.run(_PROCESS.set, self)
        self._held: list[asyncio.Handle] = []

    def stand_still(self, for_s: float | None = None) -> None:
        """Nothing of it runs from now on, for so long; `None`: ever again, but for `bury`."""
        self.stands_still = True
        if for_s is None:
            self.is_dead = True
        else:
            self._loop.call_later(for_s, self._go_on, context=Context())

    def bury(self) -> None:
        """What is left of it runs again, to be ended; whoever calls this has cut it off from everything before."""
        self.is_dead = False
        self._go_on()

    def _go_on(self) -> None:
        if not self.is_dead:
            self.stands_still = False
            held, self._held = self._held, []
            self._loop._ready.extend(held)  # type: ignore[attr-defined]

    def hold(self, handle: asyncio.Handle) -> None:
        """Run this when the process goes on, in order."""
        self._held.append(handle)


_PROCESS: ContextVar[Process] = ContextVar("process")


class _Step:
    """A callback of a process; it runs when that does."""

    __slots__ = ("_callback", "_process", "handle")

    handle: asyncio.Handle

    def __init__(self, process: Process, callback: Callable[..., object]) -> None:
        self._process = process
        self._callback = callback

    def __call__(self, *args: object) -> None:
        if self._process.stands_still:
            self._process.hold(self.handle)
        else:
            self._callback(*args)


class _OfProcesses(asyncio.SelectorEventLoop):
    """A loop for processes and what is none."""

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401
        context: Context | None = None,
    ) -> asyncio.Handle:
        process = _PROCESS.get(None) if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        step = _Step(process, callback)
        step.handle = handle = super().call_soon(step, *args, context=context)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        process = _PROCESS.get(None) if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        step = _Step(process, callback)
        step.handle = handle = super().call_at(when, step, *args, context=context)
        return handle


class ProcessesLoop(_OfProcesses, TimelessLoop):
    """The same, whose time jumps."""


class RealProcessesLoop(_OfProcesses):
    """The same in real time; what a process that stands still is sent is kept for it, as a kernel would."""

"""`livekit-moderation serve` as a child process, which can be killed, and ends with this process."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from signaling.errors import SignalingError
from signaling.livekit.child_process import ChildProcess

_READY_S: Final = 20
_STOP_S: Final = (10.0,)
"""`serve` itself gives up sooner."""


class NodeFailed(SignalingError):
    """It ended, or was not ready in time; why, it wrote to standard error."""


class NodeProcess:
    """
    A node; an asynchronous context manager. What it logs goes to our standard error.

    Args:
        settings: As in its environment; the rest of it is ours.

    Raises:
        NodeFailed: When entering: it does not accept connections.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **settings}
        self._child: ChildProcess | None = None
        self._is_ready = asyncio.Event()
        self.signaling_url = ""
        self.internal_url = ""
        self.livekit_url = ""

    async def __aenter__(self) -> Self:
        command = (sys.executable, "-m", "signaling", "serve")
        self._child = child = await ChildProcess.start(
            command, self._environment, on_line=self._note, takes_errors=False
        )
        if not await child.until(self._is_ready, _READY_S):
            raise NodeFailed(f"a node was not ready: it ended with status {child.status}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._running.end(_STOP_S)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.pid

    async def kill(self) -> None:
        """Let it die at once, as by a crash."""
        self._running.signal(signal.SIGKILL)
        await self._running.ended()

    @property
    def _running(self) -> ChildProcess:
        if self._child is None:
            raise RuntimeError("NodeProcess is used outside its `async with`")
        return self._child

    def _note(self, line: str) -> None:
        if not self._is_ready.is_set():  # it says no more than one line
            ready = json.loads(line)
            self.signaling_url, self.internal_url = ready["signaling"], ready["internal"]
            self.livekit_url = ready["livekit"]
            self._is_ready.set()

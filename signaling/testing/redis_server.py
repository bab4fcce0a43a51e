"""A real `redis-server` as a child process: on loopback, in a directory of its own, and never left behind."""

import asyncio
import os
import random
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from signaling.errors import SignalingError
from signaling.livekit.child_process import ChildProcess

_LOOPBACK: Final = "127.0.0.1"
_PROGRAMS: Final = ("redis-server", "valkey-server")
_READY_S: Final = 10
_READY: Final = "Ready to accept connections"
_PORT_TAKEN: Final = "Address already in use"
_PORT_ATTEMPTS: Final = 5
_STOP_S: Final = (2.0,)
_LISTENED_ON: Final = range(20_000, 32_000)
"""Below what systems give to outgoing connections, one of which may take a port between its choice and its use."""


class RedisMissing(SignalingError):
    """There is no `redis-server` to start."""


class RedisFailed(SignalingError):
    """It ended, or did not answer in time; the message holds its last words."""


def find_redis() -> Path:
    """
    The `redis-server`, or else `valkey-server`, on `PATH`.

    Raises:
        RedisMissing: There is none; the message names the package.
    """
    for program in _PROGRAMS:
        if (found := shutil.which(program)) is not None:
            return Path(found)
    raise RedisMissing(
        "There is no redis-server on PATH. Install it: `apt-get install redis-server` on Debian and Ubuntu, "
        "the package redis or valkey elsewhere."
    )


class RedisServer:
    """
    A Redis of our own that writes every command to its file; an asynchronous context manager.

    Args:
        directory: Where it keeps its file, if that is to outlive this; one of its own otherwise.
        config: More of its configuration, by name.

    Raises:
        RedisMissing: There is none; the message names the package.
        RedisFailed: When entering: it does not answer; the message holds its last words.
    """

    def __init__(self, directory: Path | None = None, **config: str) -> None:
        self._path = find_redis()
        self.config = {name.replace("_", "-"): value for name, value in config.items()}
        self._own = tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True)
        self.directory = Path(self._own.name) if directory is None else directory
        self._child: ChildProcess | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        try:
            for attempts_left in reversed(range(_PORT_ATTEMPTS)):
                self.port = free_port()
                try:
                    await self.start()
                except RedisFailed as error:
                    if not attempts_left or _PORT_TAKEN not in str(error):
                        raise
                else:
                    break
        except BaseException:
            self._own.cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._child is not None:
                await self._child.end(_STOP_S)
        finally:
            self._own.cleanup()

    @property
    def url(self) -> str:
        """For `MODERATION_STORE_URL`."""
        return f"redis://{_LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process id; another one after `start`."""
        return self._running.pid

    def pause(self) -> None:
        """Stall it, as a machine out of breath would, until `resume`; when this returns, it has stopped."""
        self._running.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Let it die at once, as by a crash; `start` starts it again, on the same port and with what it had written."""
        self._running.signal(signal.SIGKILL)
        await self._running.ended()

    async def start(self) -> None:
        """
        Start it again after `kill`.

        Raises:
            RedisFailed: It does not answer.
        """
        ready = asyncio.Event()

        def note(line: str) -> None:
            self._note(line)
            if _READY in line:
                ready.set()

        self._child = child = await ChildProcess.start(self._command(), os.environ, on_line=note)
        if not await child.until(ready, _READY_S):
            words = "\n".join(child.last_words) or "(it said nothing)"
            raise RedisFailed(f"redis-server ({self._path}) does not answer. Its last words:\n{words}")

    def _note(self, line: str) -> None:
        """What it logs; it is for who inherits from this."""

    def _command(self) -> list[str]:
        config = {
            "bind": _LOOPBACK,
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
            **self.config,
        }
        return [str(self._path), *(word for name, value in config.items() for word in (f"--{name}", value))]

    @property
    def _running(self) -> ChildProcess:
        if self._child is None:
            raise RuntimeError("RedisServer is used outside its `async with`")
        return self._child


def free_port() -> int:
    """One on which nobody listened a moment ago, and which no outgoing connection is given meanwhile."""
    while True:
        port = random.choice(_LISTENED_ON)  # noqa: S311 - no secret
        with socket.socket() as tried, suppress(OSError):
            tried.bind((_LOOPBACK, port))
            return port

"""A server as a child process that ends with this process, however that ends."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

_LINE_BYTES: Final = 2000
_LAST_WORDS: Final = 20

# The shell becomes the server (so the pid is the server's) and leaves a watcher behind, which waits for the end of a
# pipe that only we could write to: then we are gone, whatever the reason was, and their process group has to go too.
# PR_SET_PDEATHSIG would do on Linux alone, and it asks for the thread that started the child, not for the process.
_START: Final = """
exec 3<&0 </dev/null
(read -r _ <&3; kill -s KILL -- -$$) >/dev/null 2>&1 &
exec "$@" 3<&-
"""


class ChildProcess:
    """
    One process, from its start to its end.

    Attributes:
        last_words: The last lines of what it wrote.
    """

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int, on_line: Callable[[str], None]) -> None:
        """Take charge of `process`, which dies when `lifeline` is closed."""
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._process = process
        self._lifeline: int | None = lifeline
        self._on_line = on_line
        self._reading = asyncio.create_task(self._read(), name=f"output of process {process.pid}")

    @classmethod
    async def start(
        cls,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        *,
        on_line: Callable[[str], None],
        takes_errors: bool = True,
    ) -> Self:
        """
        Start a program.

        Args:
            on_line: Called with each line that it writes.
            takes_errors: Whether that is so for its standard error too; else it shares ours.

        Raises:
            OSError: Not even the shell could be started.
        """
        theirs, lifeline = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _START, "sh", *command),
                stdin=theirs,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT if takes_errors else None,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for us to answer
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(theirs)
        return cls(process, lifeline, on_line)

    @property
    def pid(self) -> int:
        """The program's."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """None while it runs; minus the signal's number when one ended it."""
        return self._process.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):  # it has just died: whoever asked learns that in other ways
            self._process.send_signal(number)

    async def until(self, ready: asyncio.Event, within_s: float) -> bool:
        """Wait until it is `ready`: whether that was before it ended, and in time. Nothing of it is left otherwise."""
        ended = asyncio.create_task(self.ended())
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait({ended, waiting}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, waiting):
                task.cancel()
            await asyncio.wait({ended, waiting})
            if not ready.is_set():
                await self.end(())
        return ready.is_set()

    async def ended(self) -> int:
        """Wait until it has ended by itself, and let go of everything that it held."""
        status = await self._process.wait()
        await self.end(())
        return status

    async def end(self, patience_s: Sequence[float]) -> None:
        """
        End it, paused or not, and let go of everything that it held. Cancelling ends it the hard way.

        Args:
            patience_s: How long to wait after each SIGTERM, one after the other, before the hard way.
        """
        try:
            self.signal(signal.SIGCONT)
            for seconds in patience_s:
                self.signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._process.wait()
                        break
        finally:
            if self._lifeline is not None:
                # The watcher is still there, so the group's number has not been given to others.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                os.close(self._lifeline)
                self._lifeline = None
            await self._process.wait()
            await self._reading

    async def _read(self) -> None:
        """Pass on what it writes, and read on in any case: it must never wait for us."""
        stream = self._process.stdout
        if stream is None:
            return
        pending = b""
        while chunk := await stream.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._keep(line)
            pending = pending[:_LINE_BYTES]
        if pending:
            self._keep(pending)

    def _keep(self, line: bytes) -> None:
        text = line[:_LINE_BYTES].decode(errors="replace")
        self.last_words.append(text)
        self._on_line(text)

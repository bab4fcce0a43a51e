"""A child process with participants in it, to which one speaks JSON lines."""

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from signaling.errors import SignalingError

_LINE_BYTES: Final = 2**20
_STDERR_BYTES: Final = 16_384
_GRACE_S: Final = 5.0
"""How long a child may take longer than it was given, before it counts as not answering."""


class ParticipantError(SignalingError):
    """A participant did not do what it was asked."""


class ParticipantProcessDied(ParticipantError):
    """
    The child process ended by itself, with all its participants.

    Attributes:
        exit_status: Its status; minus the signal's number when one ended it.
        stderr: The last lines of what it wrote there.
    """

    def __init__(self, exit_status: int, stderr: tuple[str, ...]) -> None:
        """Put both into words."""
        words = "\n".join(stderr) or "(nothing)"
        super().__init__(f"the participants' process ended with status {exit_status}; on stderr it wrote:\n{words}")
        self.exit_status: Final = exit_status
        self.stderr: Final = stderr


class Child(ABC):
    """
    A process that answers each request, `{"request": 1, "op": …, …}`, and tells more unasked.

    It ends when its standard input does, and so with this process, however that ends.
    """

    def __init__(self, when_ended: str, *errors: type[ParticipantError]) -> None:
        """
        Start nothing yet.

        Args:
            when_ended: What to say to who asks when we have ended it.
            errors: What else than `ParticipantError` an answer may name.

        """
        self._when_ended = when_ended
        kinds: tuple[type[ParticipantError], ...] = (ParticipantError, *errors)
        self._errors = {kind.__name__: kind for kind in kinds}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: tuple[asyncio.Task[None], ...] = ()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._requests = 0
        self._stderr = bytearray()
        self._death: ParticipantProcessDied | None = None
        self._death_is_known = False
        self._ending = False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """
        Let everybody leave, and end the child.

        Raises:
            ParticipantProcessDied: It had ended before, and nobody was told so far.

        """
        await self._end()
        if self._death is not None and not self._death_is_known and error is None:
            raise self._death

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def raise_if_dead(self) -> None:
        """Raise `ParticipantProcessDied` if the child has ended by itself."""
        if self._death is not None:
            self._death_is_known = True
            raise self._death

    async def ask(self, operation: str, within_s: float, **fields: object) -> dict[str, Any]:
        """Let the child do something for one of its participants, who call this."""
        self.raise_if_dead()
        stdin = self._child.stdin
        if stdin is None or self._ending:
            raise ParticipantError(self._when_ended)
        self._requests += 1
        request = self._requests
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[request] = answered
        stdin.write(json.dumps({"request": request, "op": operation, **fields}).encode() + b"\n")
        try:
            async with asyncio.timeout(within_s + _GRACE_S):
                answer = await answered
        except TimeoutError:
            raise ParticipantError(f"the participants' process did not answer {operation}") from None
        except ParticipantProcessDied:
            self._death_is_known = True
            raise
        finally:
            del self._answers[request]
        if "error" in answer:
            raise self._errors[answer["error"]](answer["message"])
        return answer

    @abstractmethod
    async def _tell(self, message: dict[str, Any] | None) -> None:
        """Pass on what the child told unasked; None when it has ended."""

    @property
    def _child(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{type(self).__name__} is used outside its `async with`")
        return self._process

    async def _start(self, *command: str | Path, environment: Mapping[str, str] = os.environ) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in a terminal is for us to answer
        )
        self._reading = (
            asyncio.create_task(self._read(self._process), name="child"),
            asyncio.create_task(self._read_stderr(self._process), name="child's stderr"),
        )

    async def _end(self) -> None:
        process = self._child
        self._ending = True
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
        finally:
            if process.returncode is None:
                process.kill()
            await asyncio.wait(self._reading)
        for task in self._reading:
            task.result()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what the child says, until it ends."""
        output = process.stdout
        if output is None:
            raise RuntimeError("the child was started without its pipes")
        while line := await output.readline():
            message: dict[str, Any] = json.loads(line)
            if "request" not in message:
                await self._tell(message)
            elif (answered := self._answers.get(message["request"])) is not None and not answered.done():
                answered.set_result(message)
        status = await process.wait()
        if not self._ending:
            await asyncio.wait(self._reading[1:])
            self._death = ParticipantProcessDied(status, tuple(self._stderr.decode(errors="replace").splitlines()))
        for answered in self._answers.values():
            if not answered.done():
                answered.set_exception(self._death or ParticipantError(self._when_ended))
        await self._tell(None)

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        output = process.stderr
        if output is None:
            raise RuntimeError("the child was started without its pipes")
        while block := await output.read(_LINE_BYTES):
            self._stderr += block  # lines come in pieces
            del self._stderr[:-_STDERR_BYTES]

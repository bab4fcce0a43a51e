"""A TCP proxy on loopback that does to a connection what networks do to it, when it is told so."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 65536

Where = Callable[[bytes], bool]


class FaultProxy:
    """
    Stands before a port; an asynchronous context manager.

    Args:
        target: The port that it stands before.
        seed: What is by chance is the same again with the same one.

    Attributes:
        port: Its own; it stays the same.
        cut: How many connections it has cut so far.
        lost: How many answers it has lost so far.
    """

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.target = target
        self.port = 0
        self.cut = 0
        self.lost = 0
        self._chance = random.Random(seed)  # noqa: S311 - the same again, which no secret may be
        self._server: asyncio.Server | None = None
        self._wires: set[_Wire] = set()
        self._relaying: set[asyncio.Task[None]] = set()
        self._delays_s = (0.0, 0.0)
        self._swallows = (False, False)
        self._halving: set[bool] = set()
        self._losing: Where | None = None
        self._reply: bytes | None = None
        self._expected: list[tuple[Where, asyncio.Future[None]]] = []

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        self.drop()
        if self._relaying:
            await asyncio.wait(self._relaying)

    # --- Faults --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Cut all connections."""
        for wire in list(self._wires):
            self._cut(wire)

    def refuse(self) -> None:
        """Let nobody connect any more; who is connected stays so."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Let people connect (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, _HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def delay(self, requests_s: float = 0.0, answers_s: float = 0.0) -> None:
        """Let each read of a direction wait so long before it goes on."""
        self._delays_s = (requests_s, answers_s)

    def stall(self) -> None:
        """Take what comes, from either side, and pass nothing on. Who got nothing is cut off by `heal`."""
        self._swallows = (True, True)

    def swallow_answers(self) -> None:
        """Pass on what is asked, and not what is answered. Who got nothing is cut off by `heal`."""
        self._swallows = (False, True)

    def halve(self, *, answers: bool = False) -> None:
        """Pass on a part of the next read of that direction, on whichever connection that is, and cut it."""
        self._halving.add(answers)

    def lose_answer(self, where: Where = lambda _: True) -> None:
        """Pass on the next request of which that is true, and cut its connection instead of answering it."""
        self._losing = where

    def reply(self, answer: bytes) -> None:
        """Answer with that whatever is asked, pass nothing on, and close the connection."""
        self._reply = answer

    async def heal(self) -> None:
        """End all faults."""
        self._reply = None
        self._delays_s = (0.0, 0.0)
        self._swallows = (False, False)
        self._halving.clear()
        self._losing = None
        for wire in [wire for wire in self._wires if wire.is_spoiled]:
            self._cut(wire)
        await self.accept()

    async def until_asked(self, where: Where) -> None:
        """Wait for a request of which that is true; it has been passed on, and its answer not yet."""
        expected = where, asyncio.get_running_loop().create_future()
        self._expected.append(expected)
        try:
            await expected[1]
        finally:
            self._expected.remove(expected)

    # --- Passing on ----------------------------------------------------------------------------------------------

    async def _accept(self, reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relaying.add(task)
        task.add_done_callback(self._relaying.discard)
        try:
            theirs = await asyncio.open_connection(_HOST, self.target)
        except OSError:
            writing.transport.abort()
            return
        wire = _Wire((writing, theirs[1]))
        self._wires.add(wire)
        try:
            await asyncio.gather(
                self._pass_on(wire, reading, theirs[1], answers=False),
                self._pass_on(wire, theirs[0], writing, answers=True),
            )
        finally:
            self._wires.discard(wire)
            wire.abort()

    async def _pass_on(
        self, wire: "_Wire", reading: asyncio.StreamReader, writing: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with suppress(OSError):  # either side has gone: the other learns that
            while chunk := await reading.read(_CHUNK_BYTES):
                if self._delays_s[answers]:
                    await asyncio.sleep(self._delays_s[answers])
                if not await self._pass(wire, chunk, writing, answers=answers):
                    break
        wire.abort()

    async def _pass(self, wire: "_Wire", chunk: bytes, writing: asyncio.StreamWriter, *, answers: bool) -> bool:
        """Whether the connection goes on."""
        if self._swallows[answers]:
            wire.is_spoiled = True
            return True
        if not answers and self._reply is not None:
            asking = wire.asking
            asking.write(self._reply)
            await asking.drain()
            asking.close()  # what was written gets there
            self._cut(wire, but=asking)
            return False
        if answers and wire.loses_answer:
            self.lost += 1
            self._cut(wire)
            return False
        if not answers and self._losing is not None and self._losing(chunk):
            self._losing = None
            wire.loses_answer = True
        if answers in self._halving and len(chunk) > 1:
            self._halving.discard(answers)
            writing.write(chunk[: self._chance.randrange(1, len(chunk))])
            await writing.drain()
            writing.close()  # what was written gets there
            self._cut(wire, but=writing)
            return False
        writing.write(chunk)
        await writing.drain()
        for where, asked in [] if answers else self._expected:
            if not asked.done() and where(chunk):
                asked.set_result(None)
        return True

    def _cut(self, wire: "_Wire", but: asyncio.StreamWriter | None = None) -> None:
        if not wire.is_cut:
            wire.is_cut = True
            self.cut += 1
        wire.abort(but)


class _Wire:
    """One connection through the proxy."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._writers = writers
        self.is_spoiled = False
        self.is_cut = False
        self.loses_answer = False

    @property
    def asking(self) -> asyncio.StreamWriter:
        """To whoever connected."""
        return self._writers[0]

    def abort(self, but: asyncio.StreamWriter | None = None) -> None:
        for writer in self._writers:
            if writer is not but and not writer.is_closing():
                writer.transport.abort()

"""An event loop that never waits, and connections without a kernel: hours of a meeting in a moment, always the same."""

import asyncio
import selectors
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.client_proto import ResponseHandler

from signaling.testing.fake_room_service import FakeRoomService

if TYPE_CHECKING:
    from aiohttp.tracing import Trace


MOST_ROUNDS = 20_000
"""Rounds of the loop in which no time passes; more are taken for an endless loop."""


class TimelessLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can be done, and skips to the next timer when nothing can."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        return self.now


class _Skipping(selectors.DefaultSelector):
    def __init__(self, loop: TimelessLoop) -> None:
        super().__init__()
        self._loop = loop
        self._rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        self._rounds += 1
        assert self._rounds < MOST_ROUNDS, "there is no end of things to do"
        if not found:
            assert timeout is not None, "everybody waits for somebody else"
            if timeout:
                self._loop.now += timeout
                self._rounds = 0
        return found


class Direct(aiohttp.BaseConnector):
    """Connects to a fake RoomService within this process."""

    def __init__(self, fake: FakeRoomService) -> None:
        super().__init__(limit=0)
        self._fake = fake

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,  # noqa: ARG002 - all of them lead to the fake
        traces: "list[Trace]",  # noqa: ARG002
        timeout: aiohttp.ClientTimeout,  # noqa: ARG002, ASYNC109
    ) -> ResponseHandler:
        if self._fake._listener.web is None:
            raise aiohttp.ClientConnectionError("nobody listens")
        protocol: ResponseHandler = self._factory()
        near, far = _End(protocol, self._loop), _End(self._fake._listener.web(), self._loop)
        near.other, far.other = far, near
        for end in (far, near):
            end.protocol.connection_made(end)
        return protocol


class _End(asyncio.Transport):
    """One end of a connection."""

    other: "_End"

    def __init__(self, protocol: asyncio.Protocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.protocol = protocol
        self._loop = loop
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing:
            self._loop.call_soon(self.other._receive, bytes(data))

    def _receive(self, data: bytes) -> None:
        if not self._is_closing:
            self.protocol.data_received(data)

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self.protocol.connection_lost, None)
            self._loop.call_soon(self.other.close)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

"""A client of the stand-alone server, for tests: it sends commands and keeps what it is told."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from signaling.errors import SignalingError

SUBPROTOCOL = Subprotocol("opentalk-signaling-json-v1.0")


class NotTold(SignalingError):
    """What was waited for did not come in time; the message lists what came instead."""


class SignalingRefused(SignalingError):
    """
    The server did not let the client connect.

    Attributes:
        status: Of HTTP.
        error: Why, such as `banned`; empty if whoever answered did not say.
    """

    def __init__(self, status: int, error: str) -> None:
        super().__init__(f"the server refused the connection: {status} {error}".rstrip())
        self.status = status
        self.error = error


@dataclass(frozen=True, slots=True)
class Received:
    """
    A frame from the server.

    Attributes:
        at: When it arrived, by `time.monotonic`.
    """

    namespace: str
    payload: dict[str, Any]
    transaction_id: int | str | None
    timestamp: str
    at: float

    @property
    def message(self) -> str:
        """The event's name."""
        return str(self.payload["message"])


class SignalingClient:
    """
    One connection to `/signaling`; an asynchronous context manager that connects, and closes with 1000.

    Args:
        url: Of the server, as its ready line has it.
        ticket: Used once.

    Raises:
        SignalingRefused: When entering: the server lets nobody in with this ticket.
    """

    def __init__(self, url: str, ticket: str) -> None:
        self._url = url
        self._ticket = ticket
        self._connection: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._arrived = asyncio.Condition()
        self._transactions = itertools.count(1)
        self.inbox: list[Received] = []

    async def __aenter__(self) -> Self:
        try:
            self._connection = await connect(
                self._url,
                subprotocols=[SUBPROTOCOL, Subprotocol(f"ticket#{self._ticket}")],
                compression=None,
                max_size=None,
            )
        except InvalidStatus as refused:
            raise SignalingRefused(refused.response.status_code, _error(refused.response.body or b"")) from refused
        self._reading = asyncio.create_task(self._read(self._connection), name="signaling-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connection(self) -> ClientConnection:
        """The WebSocket itself, for what a well-behaved client would not do."""
        if self._connection is None:
            raise RuntimeError("SignalingClient is used outside its `async with`")
        return self._connection

    async def close(self, code: int = 1000) -> None:
        """Close the connection: 1000 means leaving, anything else keeps the place for the grace period."""
        await self.connection.close(code)
        if self._reading is not None:
            await self._reading

    async def closed(self, timeout_s: float = 5) -> int | None:
        """Wait until the server has closed; its code."""
        async with asyncio.timeout(timeout_s):
            await self.connection.wait_closed()
        return self.connection.close_code

    async def join(
        self, display_name: str | None = None, extensions: tuple[str, ...] = ("livekit_moderation",)
    ) -> dict[str, Any]:
        """Join the meeting of the ticket; the payload of `join_success`."""
        fields: dict[str, Any] = {"extensions": list(extensions)}
        if display_name is not None:
            fields["display_name"] = display_name
        await self.send("join", namespace="control", **fields)
        return (await self.wait_for("join_success", namespace="control")).payload

    async def send(
        self, action: str, *, namespace: str = "livekit", transaction_id: int | str | None = None, **fields: object
    ) -> None:
        """Send a command, and wait for nothing."""
        frame: dict[str, object] = {"namespace": namespace, "payload": {"action": action, **fields}}
        if transaction_id is not None:
            frame["transaction_id"] = transaction_id
        await self.connection.send(json.dumps(frame))

    async def command(self, action: str, *, namespace: str = "livekit", **fields: object) -> dict[str, Any]:
        """Send a command with a transaction id, and wait for its `result`; the connection must have the extension."""
        transaction_id = next(self._transactions)
        await self.send(action, namespace=namespace, transaction_id=transaction_id, **fields)
        received = await self.wait_for(
            "result", namespace="livekit_moderation", where=lambda frame: frame.transaction_id == transaction_id
        )
        return received.payload

    async def wait_for(
        self,
        message: str,
        *,
        namespace: str = "livekit",
        since: int = 0,
        where: Callable[[Received], bool] = lambda _: True,
        timeout_s: float = 20,
    ) -> Received:
        """
        Wait for an event.

        Args:
            since: Only after so many frames of the inbox.
            where: What else must hold of it.

        Raises:
            NotTold: It did not come in time.
        """

        def found() -> Received | None:
            return next(
                (
                    frame
                    for frame in self.inbox[since:]
                    if frame.namespace == namespace and frame.message == message and where(frame)
                ),
                None,
            )

        try:
            async with asyncio.timeout(timeout_s), self._arrived:
                await self._arrived.wait_for(lambda: found() is not None)
        except TimeoutError:
            came = ", ".join(f"{frame.namespace}/{frame.message}" for frame in self.inbox[since:]) or "nothing"
            raise NotTold(f"{namespace}/{message} did not come within {timeout_s} s, but {came}") from None
        frame = found()
        if frame is None:
            raise NotTold(f"{namespace}/{message} was taken out of the inbox")
        return frame

    def told(self, message: str, namespace: str = "livekit") -> list[dict[str, Any]]:
        """The payloads of these events so far, oldest first."""
        return [frame.payload for frame in self.inbox if frame.namespace == namespace and frame.message == message]

    async def _read(self, connection: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = json.loads(await connection.recv())
                received = Received(
                    frame["namespace"], frame["payload"], frame.get("transaction_id"), frame["timestamp"], loop.time()
                )
                async with self._arrived:
                    self.inbox.append(received)
                    self._arrived.notify_all()


def _error(body: bytes | bytearray) -> str:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(body)["error"])
    return ""  # a proxy answered, in whatever words

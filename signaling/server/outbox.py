"""What goes out: one encoded text to many connections, and nobody waits for who does not read."""

import asyncio
from collections.abc import Iterable
from typing import Final

import structlog
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from signaling.messages.envelope import Delivery
from signaling.server.channel import Channel

log = structlog.get_logger(__name__)

_LONG_S: Final = 0.01
"""An iteration of the event loop that takes longer is one that an answer is not to wait for."""
_PACED_S: Final = 0.002
"""Writing that takes longer, to some hundreds of connections, is followed by as long a rest."""
_BUSY_S: Final = 5
"""How long after one of these another is expected."""


class Outbox:
    """
    Writes what was put in during one iteration of the event loop, at the next one, in order.

    A delivery that goes to many is encoded and framed once for all of them, and all that goes to a connection is
    written at once: system calls are what a broadcast costs. `websockets.broadcast` frames and writes each for each.
    When writing to so many took long, what comes next waits for as long, and is written together; answers do not wait.
    """

    def __init__(self) -> None:
        self._pending: dict[Channel, list[Delivery]] = {}
        self._due_at = 0.0
        self._is_paced = False
        self._rests_until = 0.0
        self._busy_until = 0.0

    def put(self, connection: Channel, delivery: Delivery) -> None:
        """Send a delivery to a connection, after whatever was put in for it before."""
        if self._is_paced and delivery.transaction_id is not None:
            self._write(connection, delivery)
            return
        before = self._pending.get(connection)
        if before is not None:
            before.append(delivery)
            return
        if not self._pending:
            self._schedule()
        self._pending[connection] = [delivery]

    def put_first(self, connection: Channel, delivery: Delivery) -> None:
        """
        Send a delivery as `put` does, or at once while iterations of the event loop are long.

        To read from all who have sent something and then to write to all of them takes half as long as turn by turn.
        """
        if self._is_paced or asyncio.get_running_loop().time() < self._busy_until:
            self._write(connection, delivery)
        else:
            self.put(connection, delivery)

    def flush(self) -> None:
        """Write everything now."""
        pending, self._pending = self._pending, {}
        frames: dict[Delivery, bytes] = {}
        for connection, deliveries in pending.items():
            _write(connection, deliveries, frames)

    def _write(self, connection: Channel, delivery: Delivery) -> None:
        """Write it now, with whatever was put in for this connection before."""
        _write(connection, (*self._pending.pop(connection, ()), delivery), {})

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._due_at = max(loop.time(), self._rests_until)
        self._is_paced = self._due_at == self._rests_until
        if self._is_paced:
            loop.call_at(self._due_at, self._flush_in_turn)
        else:
            loop.call_soon(self._flush_in_turn)

    def _flush_in_turn(self) -> None:
        self._is_paced = False
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        if self._pending and began_at - self._due_at > _LONG_S:
            self._busy_until = began_at + _BUSY_S
        self.flush()
        ended_at = loop.time()
        if ended_at - began_at > _PACED_S:
            self._rests_until = ended_at + (ended_at - began_at)


def _write(connection: Channel, deliveries: Iterable[Delivery], frames: dict[Delivery, bytes]) -> None:
    """Write these at once; `frames` has what is framed already."""
    parts = []
    for delivery in deliveries:
        frame = frames.get(delivery)
        if frame is None:
            frame = frames[delivery] = _framed(delivery)
        parts.append(frame)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if data and connection.state is State.OPEN:
        connection.put(data)


def _framed(delivery: Delivery) -> bytes:
    """The frame; nothing for what cannot be encoded: whoever gets something else is to get that."""
    try:
        return Frame(Opcode.TEXT, delivery.text.encode()).serialize(mask=False)
    except Exception:
        log.exception("delivery_failed", message=repr(delivery))
        return b""

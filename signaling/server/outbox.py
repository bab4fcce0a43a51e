"""What goes out: one encoded text to many connections, and nobody waits for who does not read."""

import asyncio
from collections import defaultdict

import structlog
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from signaling.messages.envelope import Delivery
from signaling.server.channel import Channel

log = structlog.get_logger(__name__)


class Outbox:
    """
    Writes what was put in during one iteration of the event loop, at the next one, in order.

    A delivery that goes to many is encoded and framed once for all of them, and all that goes to a connection is
    written at once: system calls are what a broadcast costs. `websockets.broadcast` frames and writes each for each.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Delivery, list[Channel]]] = []

    def put(self, connection: Channel, delivery: Delivery) -> None:
        """Send a delivery to a connection, after whatever was put in for it before."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self.flush)
        elif self._pending[-1][0] is delivery:
            self._pending[-1][1].append(connection)
            return
        self._pending.append((delivery, [connection]))

    def flush(self) -> None:
        """Write everything now."""
        pending, self._pending = self._pending, []
        frames: defaultdict[Channel, list[bytes]] = defaultdict(list)
        for delivery, connections in pending:
            try:
                frame = Frame(Opcode.TEXT, delivery.text.encode()).serialize(mask=False)
            except Exception:  # what cannot be encoded; the others are to get theirs all the same
                log.exception("delivery_failed", message=repr(delivery))
                continue
            for connection in connections:
                frames[connection].append(frame)
        for connection, parts in frames.items():
            if connection.state is State.OPEN:
                connection.put(parts[0] if len(parts) == 1 else b"".join(parts))

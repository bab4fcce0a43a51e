"""What goes out: one encoded text to many connections, and nobody waits for who does not read."""

import asyncio
from typing import Final

import structlog
from websockets.asyncio.server import ServerConnection, broadcast

from signaling.messages.envelope import Delivery

log = structlog.get_logger(__name__)

MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Who has more than this waiting for them is cut off."""


class Outbox:
    """
    Writes what was put in during one iteration of the event loop, at the next one, in order.

    A delivery that goes to many is encoded and framed for all of them at once.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Delivery, list[ServerConnection]]] = []

    def put(self, connection: ServerConnection, delivery: Delivery) -> None:
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
        for delivery, connections in pending:
            try:
                broadcast(connections, delivery.text)
            except Exception:  # what cannot be encoded; the others are to get theirs all the same
                log.exception("delivery_failed", message=repr(delivery))
            for connection in connections:
                if connection.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                    _cut_off(connection)


def _cut_off(connection: ServerConnection) -> None:
    if not connection.transport.is_closing():
        log.warning("slow_reader_cut_off", connection=str(connection.id))
        connection.transport.abort()

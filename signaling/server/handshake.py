"""Who may open a connection: path, origin, subprotocol and ticket, in this order."""

import json
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.headers import parse_subprotocol
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from signaling.errors import StoreError
from signaling.identifiers import ParticipantId, RoomId
from signaling.server.tickets import InvalidTicket, Ticket, Tickets

log = structlog.get_logger(__name__)

PATH: Final = "/signaling"
SUBPROTOCOL: Final = Subprotocol("opentalk-signaling-json-v1.0")
TICKET_PREFIX: Final = "ticket#"

RefusalCode = Literal[
    "not_found",
    "missing_protocol",
    "invalid_protocol",
    "missing_ticket",
    "invalid_ticket",
    "banned",
    "origin",
    "unavailable",
    "too_many_connections",
]
STATUS: Final[dict[RefusalCode, HTTPStatus]] = {
    "not_found": HTTPStatus.NOT_FOUND,
    "missing_protocol": HTTPStatus.BAD_REQUEST,
    "invalid_protocol": HTTPStatus.BAD_REQUEST,
    "missing_ticket": HTTPStatus.UNAUTHORIZED,
    "invalid_ticket": HTTPStatus.UNAUTHORIZED,
    "banned": HTTPStatus.FORBIDDEN,
    "origin": HTTPStatus.FORBIDDEN,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "too_many_connections": HTTPStatus.TOO_MANY_REQUESTS,
}
MESSAGES: Final[dict[RefusalCode, str]] = {
    "not_found": f"The WebSocket is at {PATH}.",
    "missing_protocol": f"Offer the subprotocol {SUBPROTOCOL}, and a ticket.",
    "invalid_protocol": f"None of the subprotocols offered is {SUBPROTOCOL}.",
    "missing_ticket": f"Offer the subprotocol {TICKET_PREFIX}<ticket>, or send it as a bearer token.",
    "invalid_ticket": "The ticket lets nobody in: it is not valid, or was used before.",
    "banned": "A moderator has banned this participant from the meeting.",
    "origin": "Pages of this origin may not connect.",
    "too_many_connections": "There are too many connections from this address; try again later, with the same ticket.",
    "unavailable": "The server cannot tell now; try again later, with the same ticket.",
}
_JSON: Final = "application/json"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Refused(Exception):
    """The handshake fails with this code."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(code)
        self.code = code


class Origins:
    """
    Which pages a browser may connect from.

    Args:
        allowed: Origins such as `https://meet.example.org`, where `*` stands for all, and what is of no web scheme
            is compared as it is written; `None` for whatever comes from `host`, by any port.
        host: Where the server listens.
    """

    def __init__(self, allowed: frozenset[str] | None, host: str) -> None:
        self._allowed = None if allowed is None else {_parse_origin(origin) or origin for origin in allowed}
        self._hosts = _LOOPBACK if host.lower() in _LOOPBACK else frozenset({host.lower()})

    def allow(self, origins: Sequence[str]) -> bool:
        """Whether a request with these `Origin` headers may connect; only browsers send one."""
        if not origins or (self._allowed is not None and "*" in self._allowed):
            return True
        if len(origins) > 1:
            return False
        origin = _parse_origin(origins[0])
        if self._allowed is None:
            return origin is not None and origin[1] in self._hosts
        return (origin or origins[0]) in self._allowed


class UseTicket(Protocol):
    """Uses a ticket up."""

    def __call__(self, ticket: str, *, until: float) -> Awaitable[bool]:
        """Whether it was not used before; see `ModerationModule.use_ticket`."""


class Handshake:
    """
    Checks each request, uses its ticket up when everything else is right, and answers refusals in JSON.

    It is made of callbacks of `websockets.asyncio.server.serve`.

    Args:
        is_banned: Whether a moderator has banned the participant from the meeting.
        use_ticket: Of all who come with the same ticket, one is told that it is the first.
    """

    def __init__(
        self,
        tickets: Tickets,
        origins: Origins,
        is_banned: Callable[[RoomId, ParticipantId], Awaitable[bool]],
        use_ticket: UseTicket,
    ) -> None:
        self._tickets = tickets
        self._origins = origins
        self._is_banned = is_banned
        self._use_ticket = use_ticket
        self._verified: dict[ServerConnection, Ticket] = {}

    async def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse, or keep the ticket for `process_response`."""
        if request.path.partition("?")[0] != PATH:
            return refusal("not_found")
        if not self._origins.allow(request.headers.get_all("Origin")):
            return refusal("origin")
        try:
            text = _ticket_of(request.headers)
            await self._tickets.refresh_keys(text)
            if connection.transport.is_closing() or not connection.server.is_serving():
                # Too late for this attempt; the ticket remains for another.
                return refusal("unavailable")
            ticket = self._tickets.verify(text)
            if await self._is_banned(ticket.room, ticket.participant.id):
                return refusal("banned")
            self._verified[connection] = ticket
        except InvalidTicket as error:
            return refusal("invalid_ticket", str(error))
        except Refused as refused:
            return refusal(refused.code)
        return None

    async def process_response(
        self, connection: ServerConnection, _request: Request, response: Response
    ) -> Response | None:
        """Use the ticket up if this becomes a connection; whoever came first with it gets in."""
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return _saying_less(response)
        ticket = self._verified[connection]
        try:
            is_first = await self._use_ticket(ticket.id, until=ticket.until)
        except StoreError as error:
            log.error("store_failed", error=str(error))  # noqa: TRY400 - no bug, no traceback
            return refusal("unavailable")
        return None if is_first else refusal("invalid_ticket", "was used before: jti")

    @staticmethod
    def select_subprotocol(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """Name the protocol, never the ticket; nothing if the client offered nothing."""
        return SUBPROTOCOL if SUBPROTOCOL in offered else None

    def take_ticket(self, connection: ServerConnection) -> Ticket:
        """Hand over what was verified for a connection that is open now."""
        return self._verified.pop(connection)

    def forget(self, connection: ServerConnection) -> None:
        """Keep nothing of a connection that is gone."""
        self._verified.pop(connection, None)


def _ticket_of(headers: Headers) -> str:
    try:
        offers = [offer for value in headers.get_all("Sec-WebSocket-Protocol") for offer in parse_subprotocol(value)]
    except InvalidHeader:
        # Not chained, and not left to the library: its message repeats the header.
        raise Refused("invalid_protocol") from None
    tickets = {offer.removeprefix(TICKET_PREFIX) for offer in offers if offer.startswith(TICKET_PREFIX)}
    credentials = [value.partition(" ") for value in headers.get_all("Authorization")]
    bearers = {value.strip() for scheme, _, value in credentials if scheme.lower() == "bearer"}
    if offers and SUBPROTOCOL not in offers:
        raise Refused("invalid_protocol")
    if not offers and not bearers:
        raise Refused("missing_protocol")
    found = (tickets | bearers) - {""}
    if not found:
        raise Refused("missing_ticket")
    if len(found) > 1:
        raise InvalidTicket("is not the only one")
    return found.pop()


def refusal(code: RefusalCode, reason: str | None = None) -> Response:
    """The answer to who may not open a connection."""
    log.info("connection_refused", error=code, reason=reason)
    body = json.dumps({"error": code, "code": code, "message": MESSAGES[code]}).encode()
    headers = Headers(
        [
            ("Connection", "close"),
            ("Content-Length", str(len(body))),
            ("Content-Type", _JSON),
            ("Cache-Control", "no-store"),
        ]
    )
    return Response(STATUS[code].value, STATUS[code].phrase, headers, body)


def _saying_less(response: Response) -> Response | None:
    """The library's own refusals repeat the header that is wrong, where a ticket may be; ours are as they are."""
    if response.headers.get("Content-Type") == _JSON:
        return None
    body = f"No WebSocket was opened: {response.status_code} {response.reason_phrase}.\n".encode()
    del response.headers["Content-Length"]
    response.headers["Content-Length"] = str(len(body))
    return Response(response.status_code, response.reason_phrase, response.headers, body)


def _parse_origin(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; `None` for what has none of the web, such as `null`."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme]

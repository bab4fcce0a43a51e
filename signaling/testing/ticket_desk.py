"""Tickets for whoever asks on this machine: for demonstrations and tests, never for a server that others reach."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from signaling.identifiers import ParticipantId, parse_participant_id

_MAX_BODY_BYTES = 4_096


class TicketDesk:
    """
    `POST /demo/ticket {"as": "dave"}` on loopback: a ticket of a moderator, for programs and for its own origin.

    Args:
        make_ticket: A ticket for this participant.
        signaling_url: Told beside the ticket.
    """

    def __init__(self, make_ticket: Callable[[ParticipantId], str], signaling_url: str) -> None:
        self._make_ticket = make_ticket
        self._signaling_url = signaling_url
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/demo/ticket", self._hand_out)
        self._runner = web.AppRunner(app, access_log=None)
        self._origin = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        _, port = self._runner.addresses[0]
        self._origin = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where tickets are to be had."""
        return f"{self._origin}/demo/ticket"

    async def _hand_out(self, request: web.Request) -> web.Response:
        # A page from elsewhere, or one that only resolves to this machine, must not get in.
        if request.headers.get("Origin", self._origin) != self._origin or f"http://{request.host}" != self._origin:
            return web.json_response({"error": "origin"}, status=403)
        if request.content_type != "application/json":
            return _refuse("content-type: must be application/json", 415)
        try:
            asked = await request.json()
        except ValueError:
            return _refuse("must be JSON")
        name = asked.get("as") if isinstance(asked, dict) else None
        if not isinstance(name, str):
            return _refuse("as: must be a participant's id")
        try:
            participant = parse_participant_id(name)
        except ValueError as error:
            return _refuse(f"as: {error}")
        return web.json_response({"ticket": self._make_ticket(participant), "signaling": self._signaling_url})


def _refuse(detail: str, status: int = 400) -> web.Response:
    return web.json_response({"error": "invalid_request", "detail": detail}, status=status)

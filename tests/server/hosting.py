"""The server on a free port, and clients of all kinds."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from signaling import Kind, ModerationModule, Participant, Role
from signaling.identifiers import BreakoutId, ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.server import ModerationServer, make_ticket
from signaling.server.websocket import Timing
from signaling.settings import ServerSettings
from signaling.stores.contract import Store
from signaling.testing.client import SignalingClient
from signaling.testing.fake_room_service import FakeRoomService
from tests.server.keys import SECRET

ROOM = RoomId("standup")
FREE: dict[str, Any] = {
    "moderation_ticket_key": SECRET,
    "moderation_listen": "127.0.0.1:0",
    "moderation_internal_listen": "127.0.0.1:0",
    "moderation_store_url": "memory:",
    "moderation_sweep_s": 60,
}


class Hosted:
    """A running server."""

    def __init__(self, server: ModerationServer) -> None:
        self.server = server
        self.module = server.module

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return self.server.signaling_url

    def ticket(
        self,
        name: str = "bob",
        role: Role = Role.USER,
        *,
        kind: Kind = Kind.USER,
        breakout: str | None = None,
        to_main_room: bool = False,
    ) -> str:
        """A fresh ticket."""
        somebody = Participant(
            ParticipantId(name),
            role=role,
            kind=kind,
            display_name=name.title(),
            breakout=None if breakout is None else BreakoutId(breakout),
        )
        return make_ticket(SECRET, "HS256", somebody, ROOM, to_main_room=to_main_room)

    def client(self, name: str = "bob", role: Role = Role.USER, *, kind: Kind = Kind.USER) -> SignalingClient:
        """A client with a fresh ticket, which has yet to connect and to join."""
        return SignalingClient(self.url, self.ticket(name, role, kind=kind))

    def dial(
        self,
        *protocols: str,
        bearer: str | None = None,
        origin: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        url: str | None = None,
    ) -> connect:
        """A bare connection that offers these subprotocols."""
        authorization = [] if bearer is None else [("Authorization", f"Bearer {bearer}")]
        return connect(
            url or self.url,
            subprotocols=[Subprotocol(protocol) for protocol in protocols] or None,
            origin=None if origin is None else Origin(origin),
            additional_headers=[*authorization, *headers],
            user_agent_header=None,
            compression=None,
            max_size=None,
            proxy=None,
        )

    async def refusal(self, connecting: connect) -> tuple[int, str]:
        """With what an attempt to connect is refused: status and code."""
        try:
            async with connecting:
                return 101, "connected"
        except InvalidStatus as refused:
            response = refused.response
        assert response.headers["Content-Type"] == "application/json"
        body = json.loads(response.body)
        assert body.keys() == {"error", "code", "message"}
        assert body["code"] == body["error"]
        assert body["message"]
        return response.status_code, body["error"]


@asynccontextmanager
async def hosted(
    livekit: EmbeddedServer | FakeRoomService | None = None,
    *,
    store: Store | None = None,
    timing: Timing | None = None,
    **settings: object,
) -> AsyncIterator[Hosted]:
    """A server on this LiveKit, or on one that nobody answers for."""
    chosen = {
        "livekit_url": "ws://127.0.0.1:9" if livekit is None else livekit.url,
        "livekit_api_key": "key" if livekit is None else livekit.api_key,
        "livekit_api_secret": SECRET if livekit is None else livekit.api_secret,
        **FREE,
        **settings,
    }
    built = ServerSettings(**chosen)
    async with (
        ModerationModule(built, store=store) as module,
        ModerationServer(built, module=module, timing=timing or Timing()) as server,
    ):
        yield Hosted(server)


async def ask(connection: ClientConnection, frame: object) -> dict[str, Any]:
    """Send a frame, as JSON unless it is text or bytes already, and take the next that comes back."""
    await connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
    return await take(connection)


async def take(connection: ClientConnection) -> dict[str, Any]:
    """The next frame."""
    return cast("dict[str, Any]", json.loads(await connection.recv()))


def command(action: str, namespace: str = "control", transaction_id: object = None, **fields: object) -> dict[str, Any]:
    """A command as it is sent."""
    frame: dict[str, Any] = {"namespace": namespace, "payload": {"action": action, **fields}}
    return frame if transaction_id is None else frame | {"transaction_id": transaction_id}


PING = command("ping", "echo")


def logged(said: str) -> list[str]:
    """The events in a log of JSON lines, but for those of a LiveKit that nobody answers for."""
    events = [json.loads(line)["event"] for line in said.splitlines()]
    return [event for event in events if not event.startswith(("livekit_", "media_server_"))]

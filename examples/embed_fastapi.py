"""
A small conferencing controller around `ModerationModule`: logins, a waiting room and a WebSocket of its own.

Needs `livekit-moderation[server]`, `fastapi` and `uvicorn`. Settings are the environment's; without `LIVEKIT_URL` it
runs a `livekit-server` of its own.

    uvicorn --app-dir examples --ws-max-size 1048576 embed_fastapi:app

| request | does |
|---|---|
| `POST /meetings` | opens a meeting, with a key for its owner and one to invite others with |
| `POST /login {key, name}` | sets a cookie for one participant; the key, not the client, says where and in which role |
| `GET /signaling` | the WebSocket: a moderator joins at once, everybody else when a moderator has accepted them |

Frames are `{namespace, payload, transaction_id?}`. The namespaces `livekit` and `livekit_moderation` are the module's;
`lobby` is ours: moderators send `accept {participant}`, `refuse {participant}` and `end_meeting`. A client that closes
with 1000 leaves; any other end keeps its place and media for the grace period.
"""
# ruff: noqa: INP001 - a program, not a package

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Never

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tenacity import retry, retry_if_exception_type, wait_exponential

from signaling import (
    Delivery,
    ModerationModule,
    Participant,
    Role,
    RoomId,
    Session,
    StoreError,
    parse_participant_id,
    parse_room_id,
)

COOKIE: Final = "meeting_login"
EXTENSIONS: Final = frozenset({"livekit_moderation"})
LEFT: Final = 1000
COMES_BACK: Final = 1012
UNREAD_S: Final = 10
"""How long a client may leave unread what is sent to it."""


class LoginRequest(BaseModel):
    """Who wants to come in, and what entitles them to."""

    key: str
    name: str = Field(min_length=1, max_length=100)


class Frame(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(strict=True)
    namespace: Literal["livekit", "livekit_moderation", "lobby"]
    payload: dict[str, Any]
    transaction_id: (
        Annotated[int, Field(ge=0, lt=2**64)] | Annotated[str, Field(min_length=1, max_length=64)] | None
    ) = None


@dataclass(eq=False)
class Meeting:
    """A meeting, and the connections of those who are in it or wait, by participant."""

    id: RoomId
    joined: "dict[str, Connection]" = field(default_factory=dict)
    waiting: "dict[str, Connection]" = field(default_factory=dict)

    def tell(self, payload: Mapping[str, object]) -> None:
        """Tell everybody who is in it."""
        for connection in self.joined.values():
            connection.send(payload)

    def show_waiting(self) -> None:
        """Tell every moderator who waits."""
        waiting = [each.person for each in self.waiting.values()]
        for connection in self.joined.values():
            if connection.login.participant.role is Role.MODERATOR:
                connection.send({"message": "waiting_room", "participants": waiting})


@dataclass(eq=False)
class Login:
    """Somebody who may come in, by as many connections as they make, one after another."""

    meeting: Meeting
    participant: Participant
    accepted: asyncio.Event


@dataclass(eq=False)
class Controller:
    """What is known by which secret: in memory here, in a database there."""

    module: ModerationModule
    keys: dict[str, tuple[Meeting, Role]] = field(default_factory=dict)
    logins: dict[str, Login] = field(default_factory=dict)

    async def end(self, meeting: Meeting) -> None:
        """End a meeting; the module ends the sessions of those who are in it."""
        self.keys = {key: entitled for key, entitled in self.keys.items() if entitled[0] is not meeting}
        self.logins = {secret: login for secret, login in self.logins.items() if login.meeting is not meeting}
        for connection in meeting.waiting.values():
            connection.close("meeting_ended")
        await self.module.close_room(meeting.id)


class Connection:
    """One WebSocket, from its login to its end."""

    def __init__(self, socket: WebSocket, controller: Controller, login: Login) -> None:
        self.socket, self.controller, self.login = socket, controller, login
        self.meeting, self.id = login.meeting, login.participant.id
        self.person = {"id": self.id, "name": login.participant.display_name, "role": login.participant.role}
        self.outbox: asyncio.Queue[str | None] = asyncio.Queue()
        self.session: Session | None = None
        self.end_reason = ""
        self.is_leaving = False

    def send(self, payload: Mapping[str, object], transaction_id: int | str | None = None) -> None:
        """Send an event of ours."""
        frame = {"namespace": "lobby", "payload": payload, "transaction_id": transaction_id}
        self.outbox.put_nowait(json.dumps({key: value for key, value in frame.items() if value is not None}))

    def close(self, reason: str) -> None:
        """Close the connection when all that was sent has gone out."""
        self.end_reason = reason
        self.outbox.put_nowait(None)

    async def serve(self) -> None:
        """Serve the client until either side closes."""
        try:
            async with asyncio.TaskGroup() as tasks:  # what ends with an exception ends all the others
                tasks.create_task(self.write())
                tasks.create_task(self.take_part())
                await self.read(tasks)
        except* WebSocketDisconnect:
            pass  # commands that were being carried out are, all the same
        finally:
            await self.depart()

    async def write(self) -> None:
        """Send what is in the outbox; who does not read it is cut off."""
        while (text := await self.outbox.get()) is not None:
            try:
                async with asyncio.timeout(UNREAD_S):
                    await self.socket.send_text(text)
            except TimeoutError:
                raise WebSocketDisconnect from None
        await self.socket.close(COMES_BACK if self.end_reason == "interrupted" else LEFT, reason=self.end_reason)

    async def read(self, tasks: asyncio.TaskGroup) -> Never:
        """Take commands, each in a task: none waits until another is answered, and they take effect in this order."""
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                self.is_leaving = message["code"] == LEFT
                raise WebSocketDisconnect
            try:
                frame = Frame.model_validate_json(message.get("text") or "")
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False, include_input=False)[0]
                code = "invalid_json" if first["type"] == "json_invalid" else "invalid_frame"
                detail = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
                self.send({"message": "error", "error": code, "detail": detail})
            else:
                tasks.create_task(self.carry_out(frame))
            await asyncio.sleep(0)  # whoever sends without a pause takes turns with everybody else

    async def carry_out(self, frame: Frame) -> None:
        """Do what a client asks: `lobby` is ours; the rest is the module's, which answers by itself."""
        error = None
        if self.session is None:
            error = "not_yet_joined"
        elif frame.namespace != "lobby":
            await self.session.receive(frame.namespace, frame.payload, frame.transaction_id)
        elif self.login.participant.role is not Role.MODERATOR:
            error = "insufficient_permissions"
        else:
            match frame.payload:
                case {"action": "end_meeting"}:
                    await self.controller.end(self.meeting)
                case {"action": "accept" | "refuse", "participant": str(who)} if who not in self.meeting.waiting:
                    error = "not_waiting"
                case {"action": "accept", "participant": str(who)}:
                    self.meeting.waiting[who].login.accepted.set()
                case {"action": "refuse", "participant": str(who)}:
                    self.meeting.waiting[who].close("refused")
                case _:
                    error = "invalid_command"
        if error is not None:
            self.send({"message": "error", "error": error}, frame.transaction_id)

    async def take_part(self) -> None:
        """Wait until accepted, join, and pass on what the module delivers, until it ends the session."""
        if not self.login.accepted.is_set():
            await self.wait_in_the_lobby()
        deliveries: asyncio.Queue[Delivery | None] = asyncio.Queue()
        self.session = session = await self.controller.module.join(
            self.meeting.id, self.login.participant, deliver=deliveries.put_nowait, extensions=EXTENSIONS
        )
        session.ended.add_done_callback(lambda _: deliveries.put_nowait(None))
        if self.id not in self.meeting.joined:
            self.meeting.tell({"message": "joined", **self.person})
        self.meeting.joined[self.id] = self
        people = [each.person for each in self.meeting.joined.values()]
        # Without `livekit`, LiveKit does not answer now; the module tells the client so.
        livekit = {} if session.join_data is None else {"livekit": session.join_data}
        self.send({"message": "join_success", **self.person, "participants": people, **livekit})
        self.meeting.show_waiting()
        while (delivery := await deliveries.get()) is not None:
            self.outbox.put_nowait(delivery.text)
        self.close(session.ended.result())

    async def wait_in_the_lobby(self) -> None:
        """Return when a moderator has accepted this login."""
        if self.id in self.meeting.waiting:
            self.meeting.waiting[self.id].close("taken_over")
        self.meeting.waiting[self.id] = self
        self.send({"message": "waiting", **self.person})
        self.meeting.show_waiting()
        try:
            await self.login.accepted.wait()
        finally:
            if self.meeting.waiting.get(self.id) is self:
                del self.meeting.waiting[self.id]
                self.meeting.show_waiting()

    @retry(retry=retry_if_exception_type(StoreError), wait=wait_exponential(max=5))
    async def depart(self) -> None:
        """Leave, or keep the place for a client that may be back; neither matters to a session that has ended."""
        if self.meeting.joined.get(self.id) is self:
            del self.meeting.joined[self.id]
            self.meeting.tell({"message": "left", "id": self.id})
        if self.session is not None:
            await (self.session.leave() if self.is_leaving else self.session.disconnect())


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Controller]]:
    """The module lives as long as the application."""
    async with ModerationModule() as module:
        yield {"controller": Controller(module)}


app = FastAPI(title="A small conferencing controller", lifespan=lifespan)


@app.post("/meetings", status_code=201)
async def open_meeting(request: Request) -> dict[str, str]:
    """Open a meeting; whoever asks for it has the owner's key, and gives the invitation to others."""
    meeting = Meeting(parse_room_id(secrets.token_hex(8)))
    owner_key, invitation = secrets.token_urlsafe(), secrets.token_urlsafe()
    request.state.controller.keys |= {owner_key: (meeting, Role.MODERATOR), invitation: (meeting, Role.USER)}
    return {"meeting": meeting.id, "owner_key": owner_key, "invitation": invitation}


@app.post("/login")
async def log_in(asked: LoginRequest, request: Request, response: Response) -> dict[str, str]:
    """Log in to the meeting of a key; `strict` keeps the cookie out of what other sites make a browser send."""
    if asked.key not in request.state.controller.keys:
        raise HTTPException(401, "unknown key")
    meeting, role = request.state.controller.keys[asked.key]
    participant = Participant(parse_participant_id(secrets.token_hex(8)), role, display_name=asked.name)
    secret, accepted = secrets.token_urlsafe(), asyncio.Event()
    if role is Role.MODERATOR:
        accepted.set()
    request.state.controller.logins[secret] = Login(meeting, participant, accepted)
    response.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return {"id": participant.id, "name": asked.name, "role": role}


@app.websocket("/signaling")
async def connect(socket: WebSocket) -> None:
    """Let in whoever has logged in; anybody else gets status 403."""
    login = socket.state.controller.logins.get(socket.cookies.get(COOKIE, ""))
    if login is None:
        await socket.close()
    else:
        await socket.accept()
        await Connection(socket, socket.state.controller, login).serve()

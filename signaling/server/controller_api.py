"""The controller API: meetings over HTTP, for controllers in any language."""

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeVar

import structlog
from aiohttp import web
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

from signaling.core.participants import Role
from signaling.errors import InvalidParticipant, MessageError, NoSuchMeeting, NotInMeeting, StoreError
from signaling.identifiers import (
    BreakoutId,
    CommandId,
    ParticipantId,
    RoomId,
    parse_breakout_id,
    parse_participant_id,
    parse_room_id,
)
from signaling.meeting.view import audit_view
from signaling.messages import moderation
from signaling.messages.base import MAX_NAME_LENGTH, Message, Namespace, Participant, validated
from signaling.messages.envelope import MAX_FRAME_BYTES, EnvelopeError, parse_object
from signaling.messages.json_schema import PLAIN_ID
from signaling.module import ModerationModule, NotEntered
from signaling.server.requests import BodyError, BodyRefused, read_body

log = structlog.get_logger(__name__)

PREFIX: Final = "/v1/"
MAX_BODY_BYTES: Final = MAX_FRAME_BYTES
"""As much as a WebSocket takes."""

ErrorCode = Literal[
    "bad_request",
    "host",
    "internal",
    "invalid_command",
    "invalid_json",
    "invalid_participant",
    "invalid_request",
    "method_not_allowed",
    "not_found",
    "oversized",
    "timeout",
    "unauthorized",
    "unavailable",
    "unknown_participant",
    "unknown_room",
    "unsupported_media_type",
]
STATUS: Final[Mapping[ErrorCode, HTTPStatus]] = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "invalid_command": HTTPStatus.BAD_REQUEST,
    "invalid_json": HTTPStatus.BAD_REQUEST,
    "invalid_request": HTTPStatus.BAD_REQUEST,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "host": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "unknown_participant": HTTPStatus.NOT_FOUND,
    "unknown_room": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "timeout": HTTPStatus.REQUEST_TIMEOUT,
    "invalid_participant": HTTPStatus.CONFLICT,
    "oversized": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


# --- Bodies ------------------------------------------------------------------------------------------------------


class Body(Message):
    """What is sent: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class RoleChange(Body):
    """The role that a participant is to have until the meeting ends."""

    role: moderation.RoleName


def _parsed_breakout(breakout: BreakoutId | None) -> BreakoutId | None:
    return None if breakout is None else parse_breakout_id(breakout)


class BreakoutChange(Body):
    """Where a participant is to be; without `breakout`, in the main room."""

    breakout: Annotated[
        BreakoutId | None,
        AfterValidator(_parsed_breakout),
        WithJsonSchema({"anyOf": [PLAIN_ID, {"type": "null"}]}),
    ] = None


def _not_null(value: object) -> object:
    if value is None:
        raise ValueError("must be left out, never null")  # that would be to command as the controller
    return value


class CommandRequest(Body):
    """A command, as it is sent over a WebSocket; with `as`, with the rights of that participant and no others."""

    as_: Annotated[Participant | None, BeforeValidator(_not_null)] = Field(default=None, alias="as")
    namespace: Literal["livekit", "livekit_moderation", "control"]
    payload: dict[str, Any]


def _number(text: object) -> object:
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) else text


class AuditQuery(Body):
    """How many entries, and after which."""

    limit: Annotated[int, BeforeValidator(_number), Field(ge=1, le=moderation.MAX_AUDIT)] = moderation.MAX_AUDIT
    before: moderation.ShortId | None = None


class Error(Message):
    """Why a request was refused; `detail` names the field of what is wrong, and repeats no input."""

    error: ErrorCode
    detail: str | None = None


_Body = TypeVar("_Body", bound=Body)
_Id = TypeVar("_Id", bound=str)


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, code: ErrorCode, detail: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


class ControllerApi:
    """
    Answers what is asked below `/v1/`.

    Args:
        token: What a controller shows; without one, nothing is there.
        is_listening: Whether meetings can be dealt with.
    """

    def __init__(self, module: ModerationModule, token: SecretStr | None, is_listening: Callable[[], bool]) -> None:
        self._module = module
        self._token = None if token is None else token.get_secret_value().encode()
        self._is_listening = is_listening

    def application(self) -> web.Application:
        """What is to be mounted at `PREFIX`."""
        app = web.Application(middlewares=[self._answer])
        for route in ROUTES:
            app.router.add_route(route.method, f"/{route.path}", self._handler(route))
        return app

    def _handler(self, route: "Route") -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            answer = await route.handler(self, request)
            return web.Response(status=HTTPStatus.NO_CONTENT) if answer is None else _json(answer)

        return handle

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._admit(request)
            return await handler(request)
        except Refused as refused:
            return _refusal(refused.code, refused.detail)
        except web.HTTPNotFound:
            return _refusal("not_found")
        except web.HTTPMethodNotAllowed as error:
            return _refusal("method_not_allowed", headers={"Allow": error.headers["Allow"]})
        except NoSuchMeeting:
            return _refusal("unknown_room")
        except NotInMeeting:
            return _refusal("unknown_participant")
        except ConnectionError:  # nobody waits for an answer any more
            raise
        except StoreError as error:
            log.error("store_failed", error=str(error))  # noqa: TRY400 - no bug, no traceback
            return _refusal("unavailable")
        except NotEntered:  # while this request was read
            return _refusal("unavailable")
        except Exception:
            log.exception("request_failed")
            return _refusal("internal")

    def _admit(self, request: web.Request) -> None:
        """Whoever does not know the token learns nothing else."""
        if self._token is None:
            raise Refused("not_found")
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        is_known = hmac.compare_digest(shown.strip().encode(errors="surrogateescape"), self._token)
        if scheme.lower() != "bearer" or not is_known:
            raise Refused("unauthorized")
        if not self._is_listening():
            raise Refused("unavailable")

    # --- Answers -------------------------------------------------------------------------------------------------

    async def get_state(self, request: web.Request) -> moderation.State:
        """The whole meeting as its moderators see it."""
        return await self._module.state(_room(request))

    async def end_meeting(self, request: web.Request) -> None:
        """End the meeting: its LiveKit rooms are deleted, its state is cleared."""
        room = await self._meeting(request)
        await self._module.close_room(room)

    async def change_role(self, request: web.Request) -> None:
        """Give or take a role until the meeting ends."""
        room, participant = _room(request), _participant(request)
        body = await _body(request, RoleChange)
        try:
            await self._module.change_role(room, participant, Role(body.role))
        except InvalidParticipant:
            raise Refused("invalid_participant", f"role: nobody of their kind is a {body.role}") from None

    async def move(self, request: web.Request) -> None:
        """Move somebody to a breakout or back; their connection gets `credentials`."""
        room, participant = _room(request), _participant(request)
        body = await _body(request, BreakoutChange)
        await self._module.move(room, participant, body.breakout)

    async def kick(self, request: web.Request) -> moderation.Result:
        """Remove somebody from LiveKit and the signaling, whoever is called so; they may join again."""
        room = _room(request)
        kick = {"action": "kick", "participants": [request.match_info["id"]]}
        result = await self._module.command(room, Namespace.MODERATION, kick)
        if result.error == "invalid_command":
            raise Refused("invalid_request", f"id: must be 1 to {MAX_NAME_LENGTH} characters")
        if any(outcome.outcome == "unknown" for outcome in result.outcomes):
            raise Refused("unknown_participant")
        return result

    async def command(self, request: web.Request) -> moderation.Result:
        """Carry out a command; a refusal is a `result` too, whose `error` says why."""
        room = _room(request)
        body = await _body(request, CommandRequest)
        result = await self._module.command(room, body.namespace, body.payload, as_=body.as_)
        if result.error == "invalid_command":
            detail = result.detail or "is no command"
            raise Refused("invalid_command", f"payload{'.' if ': ' in detail else ': '}{detail}")
        return result

    async def get_audit(self, request: web.Request) -> moderation.Audit:
        """What moderators and the controller did, newest first."""
        room = await self._meeting(request)
        if len(set(request.query)) < len(request.query):
            raise Refused("invalid_request", "a parameter is there twice")
        query = _valid(AuditQuery, dict(request.query))
        before = None if query.before is None else CommandId(query.before)
        entries = await self._module.audit(room, limit=query.limit, before=before)
        return moderation.Audit(entries=tuple(map(audit_view, entries)))

    async def _meeting(self, request: web.Request) -> RoomId:
        room = _room(request)
        if not await self._module.has_meeting(room):
            raise Refused("unknown_room")
        return room


# --- Routes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """
    One thing that a controller may ask.

    Attributes:
        path: Below `PREFIX`.
        answer: What it is answered by; nothing, with status 204, if left out.
        errors: Beside those of every route.
        names_anybody: Whether `id` may be any identity in LiveKit, and not only that of a member.
    """

    method: str
    path: str
    handler: Callable[[ControllerApi, web.Request], Awaitable[Message | None]]
    body: type[Body] | None = None
    query: type[Body] | None = None
    answer: type[Message] | None = None
    errors: tuple[ErrorCode, ...] = ()
    names_anybody: bool = False


_BODY_ERRORS: Final[Mapping[BodyError, tuple[ErrorCode, str | None]]] = {
    "malformed": ("bad_request", None),
    "not_encoded_so": ("invalid_request", "Content-Encoding: is not how the body is encoded"),
    "unknown_encoding": ("unsupported_media_type", "Content-Encoding: must be gzip or deflate, if any"),
    "oversized": ("oversized", None),
    "timeout": ("timeout", None),
}
_ROOM: Final = "rooms/{room}"
_PARTICIPANT: Final = f"{_ROOM}/participants/{{id}}"
_NOT_HERE: Final[tuple[ErrorCode, ...]] = ("unknown_participant",)
_ROLE_ERRORS: Final[tuple[ErrorCode, ...]] = (*_NOT_HERE, "invalid_participant")

ROUTES: Final = (
    Route("GET", _ROOM, ControllerApi.get_state, answer=moderation.State),
    Route("DELETE", _ROOM, ControllerApi.end_meeting),
    Route("PUT", f"{_PARTICIPANT}/role", ControllerApi.change_role, body=RoleChange, errors=_ROLE_ERRORS),
    Route("PUT", f"{_PARTICIPANT}/breakout", ControllerApi.move, body=BreakoutChange, errors=_NOT_HERE),
    Route("DELETE", _PARTICIPANT, ControllerApi.kick, answer=moderation.Result, errors=_NOT_HERE, names_anybody=True),
    Route(
        "POST",
        f"{_ROOM}/commands",
        ControllerApi.command,
        body=CommandRequest,
        answer=moderation.Result,
        errors=("invalid_command",),
    ),
    Route("GET", f"{_ROOM}/audit", ControllerApi.get_audit, query=AuditQuery, answer=moderation.Audit),
)


# --- Reading and writing -----------------------------------------------------------------------------------------


def _room(request: web.Request) -> RoomId:
    return _id("room", parse_room_id, request)


def _participant(request: web.Request) -> ParticipantId:
    return _id("id", parse_participant_id, request)


def _id(name: str, parse: Callable[[str], _Id], request: web.Request) -> _Id:
    try:
        return parse(request.match_info[name])
    except ValueError as error:
        raise Refused("invalid_request", f"{name}: {error}") from None  # the cause would hold the input


async def _body(request: web.Request, model: type[_Body]) -> _Body:
    if request.content_type != "application/json":
        raise Refused("unsupported_media_type", "Content-Type: must be application/json")
    try:
        raw = await read_body(request, MAX_BODY_BYTES, is_known=True)
    except BodyRefused as refused:
        raise Refused(*_BODY_ERRORS[refused.error]) from None
    try:
        return _valid(model, parse_object(raw.decode()))
    except EnvelopeError as error:
        raise Refused("invalid_json", error.detail) from None  # the cause would hold the input
    except UnicodeDecodeError:
        raise Refused("invalid_json", "must be UTF-8") from None


def _valid(model: type[_Body], value: object) -> _Body:
    try:
        return validated(model, value)
    except MessageError as error:
        raise Refused("invalid_request", str(error)) from None


def _json(
    message: Message, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    text = message.model_dump_json(exclude_none=True)
    return web.Response(text=text, content_type="application/json", status=status, headers=headers)


def _refusal(code: ErrorCode, detail: str | None = None, *, headers: Mapping[str, str] | None = None) -> web.Response:
    status = STATUS[code]
    challenge = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else None
    return _json(Error(error=code, detail=detail), status, headers or challenge)

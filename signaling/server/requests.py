"""HTTP as the internal port takes it: who asks badly, slowly or too often costs little and is never repeated."""

import asyncio
import ipaddress
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from signaling import metrics
from signaling.settings import HostPort

log = structlog.get_logger(__name__)

MAX_CONNECTIONS: Final = 256
"""Of one more, the oldest that asks for nothing is closed, or has yet to send what it asks."""
HEAD_S: Final = 10
"""How long a request may take until its headers are there."""
BODY_S: Final = 10
"""How long its body may take after that."""
_IDLE_S: Final = 60
"""How long an answer may take to be read, and a connection may wait for its next request."""
_LINGER_S: Final = 1
"""How long what nobody asked for is read and thrown away, so that the answer arrives."""
_SHUTDOWN_S: Final = 1
_DEFLATE: Final = 8
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with

BadRequest = Literal["bad_request", "host", "timeout"]
_STATUS: Final[dict[BadRequest, HTTPStatus]] = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "host": HTTPStatus.FORBIDDEN,
    "timeout": HTTPStatus.REQUEST_TIMEOUT,
}
BodyError = Literal["malformed", "not_encoded_so", "oversized", "timeout", "unknown_encoding"]


class BodyRefused(Exception):
    """A body that cannot be had."""

    def __init__(self, error: BodyError) -> None:
        super().__init__(error)
        self.error = error


class Hosts:
    """
    Which names this server answers to.

    A page whose own name suddenly leads here, which its owner's DNS can arrange, sends that name.

    Args:
        address: Where it listens.
        others: By what names it is reached beside those that no page can have; `*` for any.
    """

    def __init__(self, address: HostPort, others: frozenset[str] = frozenset()) -> None:
        names = {"localhost", address.host, *others} | ({socket.gethostname()} if address.host in _ANY else set())
        self._names = {name.lower() for name in names}

    def allow(self, headers: Sequence[str]) -> bool:
        """Whether a request with these `Host` headers is meant for here; browsers always send one."""
        if "*" in self._names or not headers:
            return True
        try:
            parts = urlsplit(f"//{headers[0]}")
            name = (parts.hostname or "").removesuffix(".")
        except ValueError:
            return False
        is_one = len(headers) == 1 and parts.netloc == headers[0] and "@" not in parts.netloc
        return is_one and (name in self._names or name.endswith(".localhost") or _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class HttpRunner(web.AppRunner):
    """
    Runs an application with limits of time, size and number, and says of a bad request that it was one.

    Args:
        signed: Paths that answer to any name, since whoever asks there must have signed what they send: no page can.
    """

    def __init__(self, app: web.Application, hosts: Hosts, *, signed: frozenset[str] = frozenset()) -> None:
        super().__init__(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
            auto_decompress=False,  # in the event loop, of whoever sends it, for nobody to read: see `read_body`
        )
        self._hosts = hosts
        self._signed = signed

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler, self._hosts, self._signed, request_factory=made.request_factory, **self._kwargs
        )


class _Server(web.Server):
    def __init__(
        self,
        answer: Callable[[Any], Awaitable[web.StreamResponse]],
        hosts: Hosts,
        signed: frozenset[str],
        **more: Any,  # noqa: ANN401 - aiohttp's own
    ) -> None:
        super().__init__(self._answer, **more)
        self._answer_by_app = answer
        self._hosts = hosts
        self._signed = signed
        self._protocol_options = more

    def __call__(self) -> web.RequestHandler:
        options = {name: value for name, value in self._protocol_options.items() if name != "request_factory"}
        return _Protocol(self, loop=self._loop, **options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        open_ones = [one for one in self.connections if isinstance(one, _Protocol) and not one.is_closed]
        if len(open_ones) > MAX_CONNECTIONS:
            next((one for one in open_ones if one.gives_way and one is not handler), open_ones[-1]).give_way()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        protocol = request.protocol
        assert isinstance(protocol, _Protocol)  # noqa: S101 - made above
        with protocol.handling():
            if request.path not in self._signed and not self._hosts.allow(request.headers.getall("Host", ())):
                return refusal("host")
            if any(expected.lower() != "100-continue" for expected in request.headers.getall("Expect", ())):
                return refusal("bad_request")
            try:
                return await self._answer_by_app(request)
            except web.HTTPNotFound:
                return _json("not_found", HTTPStatus.NOT_FOUND)
            except web.HTTPMethodNotAllowed as error:
                return _json("method_not_allowed", HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": error.headers["Allow"]})
            except (web.HTTPException, HttpProcessingError, web.RequestPayloadError):
                return refusal("bad_request")


class _Protocol(web.RequestHandler):
    __slots__ = ("_deadline", "_handled", "_has_given_way", "_is_in_head", "_is_reading")

    def __init__(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - aiohttp's own
        super().__init__(*arguments, **more)
        self._deadline: asyncio.TimerHandle | None = None
        self._handled = 0
        self._is_in_head = False
        self._is_reading = False
        self._has_given_way = False

    @property
    def is_handling(self) -> bool:
        """Whether a request is being dealt with."""
        return self._handled > 0

    @property
    def gives_way(self) -> bool:
        """Whether it may be closed for another: it asks for nothing, or nobody knows yet whether it may."""
        return not self.is_handling or self._is_reading

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone, or about to be."""
        return self.transport is None or self._has_given_way

    def give_way(self) -> None:
        """Close it; not at once, since aiohttp may have yet to begin with it, and would fail to."""
        self._has_given_way = True
        self._loop.call_soon(self.force_close)

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Deal with a request; the limits of time are then those of what is done."""
        self._expect(None)
        self._is_in_head = False
        self._handled += 1
        try:
            yield
        finally:
            self._handled -= 1
            if not self.is_closed:
                self._expect(_IDLE_S)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read what somebody sends who has not shown who they are."""
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._is_in_head = True
        self._expect(HEAD_S)

    def data_received(self, data: bytes) -> None:
        if not self.is_handling and not self._is_in_head:
            self._is_in_head = True
            self._expect(HEAD_S)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - repeats what was sent
    ) -> web.StreamResponse:
        """Answer what went wrong; aiohttp's own logs and answers what was sent."""
        if isinstance(exc, ConnectionError) and self.is_closed:  # nobody waits for an answer any more
            raise exc
        is_bug = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if is_bug:
            log.error("request_failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer is out already")
        answer = _json("internal", HTTPStatus.INTERNAL_SERVER_ERROR) if is_bug else refusal("bad_request")
        answer.force_close()
        return answer

    def log_exception(self, *_arguments: object, **more: Any) -> None:  # noqa: ANN401 - aiohttp's own
        """Log a bug."""
        log.error("request_failed", exc_info=more.get("exc_info"))

    def _expect(self, within_s: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if within_s is None else self._loop.call_later(within_s, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if self._is_in_head:
            _note("timeout")
        self.force_close()


def refusal(error: BadRequest) -> web.Response:
    """Answer, count and log a request that nobody looks at."""
    _note(error)
    return _json(error, _STATUS[error])


def _note(error: BadRequest) -> None:
    metrics.BAD_REQUESTS.labels(error).inc()
    log.info("bad_request", error=error)


def _json(error: str, status: HTTPStatus, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)


async def read_body(request: web.Request, max_bytes: int, *, is_known: bool) -> bytes:
    """
    The body, unpacked if it is compressed; to be called when it is known that somebody may send one.

    Args:
        max_bytes: Of it, packed and unpacked.
        is_known: Whether they have shown who they are; whoever has not gives way to newer connections meanwhile.

    Raises:
        BodyRefused: It is too large, comes too slowly, or cannot be read.
    """
    protocol = request.protocol
    assert isinstance(protocol, _Protocol)  # noqa: S101 - made above
    try:
        with nullcontext() if is_known else protocol.reading():
            async with asyncio.timeout(BODY_S):
                body = await request.clone(client_max_size=max_bytes).read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyRefused("oversized") from None
    except TimeoutError:
        _note("timeout")
        raise BodyRefused("timeout") from None
    except (web.RequestPayloadError, HttpProcessingError):
        _note("bad_request")
        raise BodyRefused("malformed") from None  # the cause repeats what was sent
    encodings = [encoding.strip().lower() for encoding in request.headers.getall("Content-Encoding", ())]
    match encodings:
        case [] | ["" | "identity"]:
            return body
        case ["gzip" | "x-gzip"]:
            return _unpacked(body, max_bytes, zlib.MAX_WBITS | 16)
        case ["deflate"]:
            is_wrapped = bool(body) and body[0] & 0xF == _DEFLATE
            return _unpacked(body, max_bytes, zlib.MAX_WBITS if is_wrapped else -zlib.MAX_WBITS)
        case _:
            raise BodyRefused("unknown_encoding")


def _unpacked(body: bytes, max_bytes: int, wbits: int) -> bytes:
    unpacking = zlib.decompressobj(wbits)
    try:
        unpacked = unpacking.decompress(body, max_bytes + 1)
    except zlib.error:
        raise BodyRefused("not_encoded_so") from None
    if len(unpacked) > max_bytes:
        raise BodyRefused("oversized")
    if not unpacking.eof or unpacking.unused_data:
        raise BodyRefused("not_encoded_so")
    return unpacked

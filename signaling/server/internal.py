"""HTTP for whoever runs the server: health, metrics, webhooks, and the controller API."""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr

from signaling import metrics
from signaling.errors import StoreError, WebhookRefused
from signaling.module import ModerationModule, NotEntered
from signaling.server.addresses import cannot_listen, url_of
from signaling.server.controller_api import PREFIX, ControllerApi
from signaling.server.openapi import openapi
from signaling.server.requests import BodyError, BodyRefused, Hosts, HttpRunner, read_body
from signaling.settings import HostPort

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 256 * 1024
"""LiveKit's webhooks hold the metadata of a participant and of a room, 64 KiB each at most."""
WEBHOOK_PATH: Final = "/livekit/webhook"
_STORE_TIMEOUT_S: Final = 2
_BODY_ERRORS: Final[Mapping[BodyError, tuple[str, HTTPStatus]]] = {
    "malformed": ("unparsable", HTTPStatus.BAD_REQUEST),
    "not_encoded_so": ("unparsable", HTTPStatus.BAD_REQUEST),
    "unknown_encoding": ("unparsable", HTTPStatus.BAD_REQUEST),
    "oversized": ("oversized", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    "timeout": ("timeout", HTTPStatus.REQUEST_TIMEOUT),
}


class InternalServer:
    """
    Health, metrics, LiveKit's webhooks and the controller API, from entering to leaving its `async with`.

    Args:
        is_listening: Whether clients may connect.
        token: What controllers show; without one there is no controller API.
        hosts: Names by which it is reached beside its own.

    Raises:
        ConfigurationError: It cannot listen there; raised when entered.
    """

    def __init__(
        self,
        address: HostPort,
        module: ModerationModule,
        is_listening: Callable[[], bool],
        *,
        token: SecretStr | None = None,
        hosts: frozenset[str] = frozenset(),
    ) -> None:
        self._address = address
        self._hosts = Hosts(address, hosts)
        self._module = module
        self._is_listening = is_listening
        self._api = ControllerApi(module, token, is_listening)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.post(WEBHOOK_PATH, self._webhook),
                web.get("/openapi.json", self._openapi),
            ]
        )
        app.add_subapp(PREFIX, self._api.application())
        runner = HttpRunner(app, self._hosts, signed=frozenset({WEBHOOK_PATH}))
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address.host, self._address.port).start()
        except OSError as error:
            await runner.cleanup()
            raise cannot_listen("MODERATION_INTERNAL_LISTEN", self._address, error) from error
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def url(self) -> str:
        """Where it answers, with the real port."""
        if self._runner is None:
            raise RuntimeError("InternalServer is used outside its `async with`")
        return url_of("http", self._address, self._runner.addresses[0])

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Whether clients may come. LiveKit is told of and counts for nothing: what it misses is made up for."""
        listening = self._is_listening()
        store = listening and await self._store_answers()
        ready = listening and store
        trouble = self._module.look_at_livekit()
        return web.json_response(
            {
                "status": "ready" if ready else "unavailable",
                "listening": listening,
                "store": store,
                "livekit": trouble is None,
            }
            | ({} if trouble is None else {"livekit_error": trouble})
            | self._module.troubles,
            status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    async def _store_answers(self) -> bool:
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                await self._module.check_store()
        except (StoreError, TimeoutError) as error:
            log.warning("store_failed", error=str(error) or "no answer in time")
            return False
        return True

    async def _webhook(self, request: web.Request) -> web.Response:
        try:
            body = await read_body(request, MAX_BODY_BYTES, is_known=False)
        except BodyRefused as refused:
            reason, status = _BODY_ERRORS[refused.error]
            metrics.WEBHOOKS.labels(reason).inc()
            log.warning("webhook_refused", reason=reason)
            return web.json_response({"error": reason}, status=status)
        try:
            await self._module.receive_webhook(body, request.headers.get("Authorization", ""))
        except WebhookRefused as error:
            status = HTTPStatus.BAD_REQUEST if error.reason == "unparsable" else HTTPStatus.UNAUTHORIZED
            return web.json_response({"error": error.reason}, status=status)
        except (StoreError, NotEntered):  # it starts or stops: LiveKit tries again, here or where another node is
            return web.json_response({"error": "unavailable"}, status=HTTPStatus.SERVICE_UNAVAILABLE)
        return web.json_response({})

    async def _openapi(self, _request: web.Request) -> web.Response:
        return web.json_response(openapi())

    async def _metrics(self, _request: web.Request) -> web.Response:
        metrics.TASKS.set(len(asyncio.all_tasks()))
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

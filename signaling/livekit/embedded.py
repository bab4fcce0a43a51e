"""A real `livekit-server` as a child process: on loopback only, kept alive, and never left behind."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
import structlog
from livekit.api import AccessToken, VideoGrants

from signaling.errors import MediaServerFailed, MediaServerUnavailable
from signaling.livekit.child_process import ChildProcess
from signaling.livekit.installation import find, install, require

__all__ = ["EmbeddedServer", "find", "install", "require"]

_LOOPBACK: Final = "127.0.0.1"
_READY_S: Final = 10.0
_POLL_S: Final = 0.01
_PORT_ATTEMPTS: Final = 5
_PORT_TAKEN: Final = "address already in use"
_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0
_HEALTHY_S: Final = 10.0
"""Who lived longer did not die of how it was started, and is restarted at once."""
_STOP_S: Final = (0.15, 0.6)
"""
How long it may take to end after the first SIGTERM, and after the second. The first lets participants leave, without
limit; the second does not wait for them. In its first 100 ms the server takes note of a signal and forgets it, so the
second must not follow at once.
"""
_LOG_LINES: Final = 500
_FOREIGN_SETTINGS: Final = frozenset({"NODE_IP", "UDP_PORT", "REDIS_HOST", "REDIS_PASSWORD"})
"""What `livekit-server` reads from its environment apart from `LIVEKIT_*`."""

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ports:
    http: int
    media: int
    prometheus: int

    @classmethod
    def free(cls) -> Self:
        """Ports that nobody listened on a moment ago."""
        with contextlib.ExitStack() as stack:
            sockets = [
                stack.enter_context(socket.socket(socket.AF_INET, kind))
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
            ]
            for each in sockets:
                each.bind((_LOOPBACK, 0))
            return cls(*(each.getsockname()[1] for each in sockets))


class EmbeddedServer:
    """
    A `livekit-server` of our own, reachable from this machine only, with one random key pair.

    It is restarted with the same keys and ports when it dies (its rooms are gone then), and ends with this process
    however that ends. Use it as an async context manager, or call `start` and `stop`, in one event loop.
    """

    def __init__(
        self,
        *,
        path: Path,
        webhook_urls: Sequence[str] = (),
        prometheus: bool = False,
        on_restart: Callable[[], None] | None = None,
        extra_config: Mapping[str, object] | None = None,
    ) -> None:
        """
        Decide what will be started; nothing is, yet.

        Args:
            path: The program, as from `find`.
            webhook_urls: Where it reports what happens; signed with the key pair.
            prometheus: Whether it serves metrics, at `prometheus_url`.
            on_restart: Called in the event loop each time it answers again after it had died.
            extra_config: Merged into its configuration, mapping by mapping; ports and keys are not meant to be here.

        """
        self.api_key: Final = f"embedded{secrets.token_hex(6)}"
        self.api_secret: Final = secrets.token_urlsafe(32)
        self._path = path.absolute()
        self._webhook_urls = tuple(webhook_urls)
        self._prometheus = prometheus
        self._on_restart = on_restart
        self._extra_config = extra_config or {}
        self._log_lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._ports: _Ports | None = None
        self._child: ChildProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """`start` it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`stop` it."""
        await self.stop()

    async def start(self) -> None:
        """
        Start it and wait until it answers. Cancelling ends it again.

        Raises:
            MediaServerFailed: It ended, or did not answer in time; the message holds its last words.

        """
        if self._supervisor is not None:
            raise RuntimeError("the embedded livekit-server was started already")
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            self._ports = _Ports.free()
            try:
                child = await self._launch()
            except _PortTaken:
                if not attempts_left:
                    raise
            else:
                self._child = child
                self._supervisor = asyncio.create_task(self._supervise(child), name="embedded livekit-server")
                return

    async def stop(self) -> None:
        """End it within a second or so, whoever is connected; does nothing when it is not running."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.cancel()
        try:
            await asyncio.wait([supervisor])
        finally:
            child, self._child = self._child, None
            if child is not None:
                await child.end(_STOP_S)
        if not supervisor.cancelled():
            supervisor.result()  # a bug of ours ended it: say so

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"ws://{_LOOPBACK}:{self._known_ports.http}"

    @property
    def http_url(self) -> str:
        """Where the RoomService is."""
        return f"http://{_LOOPBACK}:{self._known_ports.http}"

    @property
    def prometheus_url(self) -> str | None:
        """Where its metrics are, if it was asked for them."""
        return f"http://{_LOOPBACK}:{self._known_ports.prometheus}/metrics" if self._prometheus else None

    @property
    def pid(self) -> int:
        """
        The server's process id; another one after a restart.

        Raises:
            MediaServerUnavailable: It is not running (just now).

        """
        return self._running.pid

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log, oldest first, those from before a restart included."""
        return tuple(self._log_lines)

    def pause(self) -> None:
        """Stall the server, as a machine out of breath would, until `resume`; when this returns, it has stopped."""
        self._running.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stall the server for the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def kill(self) -> None:
        """Let the server die at once, as by a crash. It is restarted."""
        self._running.signal(signal.SIGKILL)

    @property
    def _running(self) -> ChildProcess:
        if self._child is None:
            raise MediaServerUnavailable("the embedded livekit-server is not running")
        return self._child

    @property
    def _known_ports(self) -> _Ports:
        if self._ports is None:
            raise MediaServerUnavailable("the embedded livekit-server was not started yet")
        return self._ports

    async def _supervise(self, child: ChildProcess) -> None:
        """Restart it whenever it dies, until cancelled."""
        backoff_s = 0.0
        started = time.monotonic()
        while True:
            status = await child.ended()
            self._child = None
            died = time.monotonic()
            _log.warning("media_server_died", pid=child.pid, exit_status=status)
            if died - started >= _HEALTHY_S:
                backoff_s = 0.0
            while True:
                await asyncio.sleep(backoff_s)
                backoff_s = min(max(2 * backoff_s, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
                try:
                    child = await self._launch()
                    break
                except MediaServerFailed as error:
                    _log.warning("media_server_restart_failed", error=str(error))
            self._child = child
            started = time.monotonic()
            _log.warning("media_server_restarted", pid=child.pid, duration_ms=round((started - died) * 1000))
            if self._on_restart is not None:
                # What it raises is for the event loop to report: supervision goes on.
                asyncio.get_running_loop().call_soon(self._on_restart)

    async def _launch(self) -> ChildProcess:
        """Start it on the known ports and wait until it answers; nothing is left running otherwise."""
        try:
            child = await ChildProcess.start((self._path,), self._environment(), on_line=self._log_lines.append)
        except OSError as error:
            raise MediaServerFailed(f"livekit-server could not be started: {error.strerror or error}") from error
        try:
            failure = await self._wait_until_ready(child)
        except BaseException:
            await child.end(_STOP_S)
            raise
        if failure is None:
            return child
        await child.end(_STOP_S)
        words = "\n".join(child.last_words) or "(it said nothing)"
        kind = _PortTaken if _PORT_TAKEN in words else MediaServerFailed
        raise kind(f"livekit-server ({self._path}) {failure}. Its last words:\n{words}")

    async def _wait_until_ready(self, child: ChildProcess) -> str | None:
        """What went wrong; None when it answers."""
        try:
            async with asyncio.timeout(_READY_S), aiohttp.ClientSession() as http:
                while child.status is None:
                    with contextlib.suppress(aiohttp.ClientError):
                        if await self._answers(http):
                            return None
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return f"did not answer within {_READY_S:.0f} s"
        return f"ended with status {child.status} before it answered"

    async def _answers(self, http: aiohttp.ClientSession) -> bool:
        async with http.get(f"{self.http_url}/") as response:
            if response.status != HTTPStatus.OK:
                return False
        # Somebody else may have taken the port meanwhile, even another embedded server: only ours knows our key.
        token = AccessToken(self.api_key, self.api_secret).with_grants(VideoGrants(room_list=True))
        async with http.post(
            f"{self.http_url}/twirp/livekit.RoomService/ListRooms",
            json={},
            headers={"Authorization": f"Bearer {token.with_ttl(timedelta(seconds=_READY_S)).to_jwt()}"},
        ) as response:
            return response.status == HTTPStatus.OK

    def _environment(self) -> dict[str, str]:
        """Ours, without what would configure it otherwise. The secret is where only this user can read it."""
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("LIVEKIT_") and name not in _FOREIGN_SETTINGS
            },
            "LIVEKIT_CONFIG": json.dumps(self._config()),  # JSON is YAML too
        }

    def _config(self) -> Mapping[str, object]:
        config: dict[str, object] = {
            "port": self._known_ports.http,
            "bind_addresses": [_LOOPBACK],
            "rtc": {
                "udp_port": self._known_ports.media,
                "tcp_port": 0,
                "node_ip": _LOOPBACK,
                "use_external_ip": False,
                "enable_loopback_candidate": True,
                "interfaces": {"includes": [_loopback_interface()]},
                "stun_servers": [f"{_LOOPBACK}:3478"],  # the default asks servers on the Internet
            },
            "keys": {self.api_key: self.api_secret},
            "room": {"auto_create": False},
            "api": {"enable_psrpc_for_get_list_participants": True},
            "logging": {"json": True, "level": "info"},
        }
        if self._webhook_urls:
            config["webhook"] = {"api_key": self.api_key, "urls": list(self._webhook_urls)}
        if self._prometheus:
            config["prometheus"] = {"port": self._known_ports.prometheus}
        return _merged(config, self._extra_config)


class _PortTaken(MediaServerFailed):
    """Somebody else got one of the ports between our look and the server's."""


def _loopback_interface() -> str:
    """`lo`, or what this system calls it."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return "lo" if "lo" in names or not names else names[0]


def _merged(base: Mapping[str, object], extra: Mapping[str, object]) -> dict[str, object]:
    """`base` with `extra` over it, mapping by mapping."""
    merged = dict(base)
    for name, value in extra.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged

"""nginx and Caddy, configured as docs/deploying says, in front of two nodes."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Response

from signaling.server.websocket import Timing
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.redis_server import free_port
from tests.redis_server import Certificate
from tests.server.hosting import Hosted, ask, command, hosted

FILES = Path(__file__).parents[2] / "docs" / "deploying"
SILENCE_S = 4
PING_S = 1.5
PINGS = 3
"""The proxy takes so much silence in these tests, and has to see so many pings to be silent for longer."""
LIMIT_S = 20
DOMAIN = "meet.example.org"


class Counting(ClientConnection):
    """Counts the server's pings."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(*arguments, **options)
        self.pings = asyncio.Semaphore(0)

    def process_event(self, event: Response | Frame) -> None:  # type: ignore[override]
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings.release()
        super().process_event(event)


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    context: ssl.SSLContext | None

    def dial(self, node: Hosted, name: str) -> connect:
        """A connection of somebody through the proxy."""
        return connect(
            f"{self.url.replace('http', 'ws', 1)}/signaling",
            ssl=self.context,
            additional_headers={"Authorization": f"Bearer {node.ticket(name)}"},
            create_connection=Counting,
            compression=None,
            proxy=None,
        )


@asynccontextmanager
async def running(
    *command: str, environment: Mapping[str, str], url: str, context: ssl.SSLContext | None, log: Path
) -> AsyncIterator[Proxy]:
    """The program, until it answers what it lets nobody through to."""
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | environment, stdout=written, stderr=written
        )
    try:
        async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as http:
            while True:
                assert process.returncode is None, log.read_text()
                try:
                    async with http.get(f"{url}/metrics", ssl=context or True) as answer:
                        assert answer.status == 404
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield Proxy(url, context)
    finally:
        process.terminate()
        await process.wait()


def written(directory: Path, name: str, changes: Mapping[str, str]) -> str:
    """The file with what differs here."""
    text = (FILES / name).read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    (directory / name).write_text(text)
    return text


@asynccontextmanager
async def nginx(nodes: tuple[Hosted, Hosted], directory: Path) -> AsyncIterator[Proxy]:
    certificate = Certificate.make(directory)
    port = free_port()
    first, second = (urlsplit(node.url).netloc for node in nodes)
    written(
        directory,
        "nginx.conf",
        {
            "127.0.0.1:8700": first,
            "127.0.0.1:8720": second,
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            f"/etc/ssl/certs/{DOMAIN}.pem": str(certificate.certificate),
            f"/etc/ssl/private/{DOMAIN}.key": str(certificate.key),
            "proxy_read_timeout 60s": f"proxy_read_timeout {SILENCE_S}s",
            "proxy_send_timeout 60s": f"proxy_send_timeout {SILENCE_S}s",
        },
    )
    temporary = "".join(
        f"{kind}_temp_path {directory / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = directory / "main.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {directory / 'nginx.pid'};\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {directory / 'nginx.conf'};\n}}\n"
    )
    await check("nginx", "-t", "-c", str(main), environment={})
    async with running(
        "nginx",
        "-c",
        str(main),
        environment={},
        url=f"https://127.0.0.1:{port}",
        context=ssl.create_default_context(cafile=str(certificate.certificate)),
        log=directory / "nginx.log",
    ) as proxy:
        yield proxy


@asynccontextmanager
async def caddy(nodes: tuple[Hosted, Hosted], directory: Path) -> AsyncIterator[Proxy]:
    port = free_port()
    internal = {urlsplit(node.server.internal_url).port for node in nodes}
    assert len(internal) == 1, "one port on each host"
    environment = {
        "MODERATION_DOMAIN": f"http://127.0.0.1:{port}",
        "MODERATION_NODES": " ".join(urlsplit(node.url).netloc for node in nodes),
        "MODERATION_INTERNAL_PORT": str(internal.pop()),
        "HOME": str(directory),
        "XDG_DATA_HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
    }
    text = written(directory, "Caddyfile", {})
    file = directory / "Caddyfile"
    assert await check("caddy", "fmt", str(FILES / "Caddyfile"), environment=environment) == text, "caddy fmt"
    await check(
        "caddy",
        "validate",
        "--config",
        str(FILES / "Caddyfile"),
        environment={**environment, "MODERATION_DOMAIN": DOMAIN},
    )
    file.write_text("{\n\tadmin off\n}\n" + text)
    async with running(
        "caddy",
        "run",
        "--config",
        str(file),
        environment=environment,
        url=f"http://127.0.0.1:{port}",
        context=None,
        log=directory / "caddy.log",
    ) as proxy:
        yield proxy


async def check(*command: str, environment: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(LIMIT_S):
        said, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return said.decode()


@pytest.mark.parametrize("proxied", [nginx, caddy])
async def test_through_a_proxy_people_stay_while_they_are_idle_and_come_back_when_a_node_stops(
    proxied: Callable[[tuple[Hosted, Hosted], Path], AbstractAsyncContextManager[Proxy]], tmp_path: Path
) -> None:
    store = MemoryStore(audit_entries=10)
    timing = Timing(ping_interval_s=PING_S, ping_timeout_s=PING_S)
    internal = free_port()
    async with FakeRoomService() as fake, AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                hosted(
                    fake,
                    store=store,
                    timing=timing,
                    moderation_listen=f"{host}:0",
                    moderation_internal_listen=f"{host}:{internal}",
                )
            )
            for host in ("127.0.0.1", "127.0.0.2")
        ]
        proxy = await stack.enter_async_context(proxied((one, other), tmp_path))
        people = [await joined(stack, proxy, one, f"p{number}") for number in range(8)]
        assert one.server.connections > 0
        assert other.server.connections > 0
        async with asyncio.timeout(LIMIT_S):
            for person in people:
                for _ in range(PINGS):
                    await person.pings.acquire()
        async with aiohttp.ClientSession() as http:
            for path in ("/metrics", "/readyz", "/healthz", "/v1/rooms", "/twirp/livekit.RoomService/ListRooms", "/"):
                async with http.get(f"{proxy.url}{path}", ssl=proxy.context or True) as answer:
                    assert answer.status == 404, path
        stayed = other.server.connections
        await one.server._websocket.close()
        gone = [person.close_code for person in people if await is_closed(person)]
        assert gone == [1012] * (8 - stayed)
        for number in range(4):
            await joined(stack, proxy, other, f"again{number}")
        assert other.server.connections == stayed + 4


async def joined(stack: AsyncExitStack, proxy: Proxy, node: Hosted, name: str) -> Counting:
    """Somebody who has come through the proxy, with a ticket that any node takes."""
    person = await stack.enter_async_context(proxy.dial(node, name))
    assert (await ask(person, command("join")))["payload"]["message"] == "join_success"
    assert isinstance(person, Counting)
    return person


async def is_closed(person: Counting) -> bool:
    """Whether somebody's connection is over: else they are answered."""
    async with asyncio.timeout(LIMIT_S):
        try:
            await person.send('{"namespace": "echo", "payload": {"action": "ping"}}')
            while '"pong"' not in str(await person.recv()):
                pass
        except ConnectionClosed:
            return True
    return False

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path

import aiohttp
import pytest
import structlog
from aiohttp import web
from livekit.api import AccessToken, CreateRoomRequest, ListRoomsRequest, LiveKitAPI, Room, VideoGrants

import signaling
from signaling.errors import MediaServerFailed, MediaServerUnavailable
from signaling.livekit import embedded
from signaling.livekit.embedded import EmbeddedServer, find

ROOT = Path(signaling.__file__).parents[1]
LIMIT_S = 20

PARENT = """
import asyncio, os, sys
from pathlib import Path
from signaling.livekit.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(path=Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    os._exit(0)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def path() -> Path:
    found = find(None)
    assert found is not None, "run `make server` first"
    return found


@pytest.fixture
async def server(path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(path=path) as started:
        yield started


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Put a shell script in the server's place."""

    def write(text: str) -> Path:
        written = tmp_path / "livekit-server"
        written.write_text(f"#!/bin/sh\n{text}\n")
        written.chmod(0o755)
        return written

    return write


def sockets_of(pid: int) -> set[str]:
    """The IPv4 addresses that a process has bound sockets to, and every IPv6 one as it stands in the table."""
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held.add(descriptor.readlink().name)
    addresses = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in held:
                address = fields[1].partition(":")[0]
                addresses.add(socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address)
    return addresses


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def program_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").resolve()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    """Wait until the process has ended, whoever's child it is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(LIMIT_S):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def create_room(server: EmbeddedServer, name: str) -> Room:
    async with LiveKitAPI(server.http_url, server.api_key, server.api_secret) as livekit:
        return await livekit.room.create_room(CreateRoomRequest(name=name))


async def status_of(url: str, *, timeout_s: float = LIMIT_S) -> int:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as http,
        http.get(url) as response,
    ):
        return response.status


@asynccontextmanager
async def connected(server: EmbeddedServer) -> AsyncIterator[None]:
    """Somebody in a room of it, as far as signaling goes."""
    await create_room(server, "meeting")
    grants = VideoGrants(room_join=True, room="meeting")
    token = AccessToken(server.api_key, server.api_secret).with_identity("alice").with_grants(grants)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{server.url}/rtc?access_token={token.to_jwt()}&protocol=15") as websocket,
    ):
        await websocket.receive_bytes(timeout=LIMIT_S)
        yield


async def test_it_answers_with_its_key_pair_when_started(server: EmbeddedServer) -> None:
    assert await status_of(server.http_url) == 200
    async with LiveKitAPI(server.url, server.api_key, server.api_secret) as livekit:
        assert not (await livekit.room.list_rooms(ListRoomsRequest())).rooms


async def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    assert sockets_of(server.pid) == {"127.0.0.1"}


async def test_two_have_nothing_in_common(path: Path) -> None:
    async with EmbeddedServer(path=path) as one, EmbeddedServer(path=path) as other:
        assert one.url != other.url
        assert one.pid != other.pid
        assert one.api_key != other.api_key
        assert one.api_secret != other.api_secret


async def test_a_token_alone_opens_no_room(server: EmbeddedServer) -> None:
    grants = VideoGrants(room_join=True, room="nowhere")
    token = AccessToken(server.api_key, server.api_secret).with_identity("alice").with_grants(grants).to_jwt()
    assert await status_of(f"{server.http_url}/rtc/validate?access_token={token}") == 404


async def test_it_is_restarted_with_the_same_keys_and_ports(path: Path) -> None:
    again = asyncio.Event()
    async with EmbeddedServer(path=path, on_restart=again.set, prometheus=True) as server:
        before = (server.url, server.http_url, server.prometheus_url, server.api_key, server.api_secret)
        first = server.pid
        assert not again.is_set()
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                server.kill()
                async with asyncio.timeout(LIMIT_S):
                    await again.wait()
                again.clear()
        assert server.pid != first
        assert (server.url, server.http_url, server.prometheus_url, server.api_key, server.api_secret) == before
        await create_room(server, "meeting")
    assert [entry["event"] for entry in logs] == ["media_server_died", "media_server_restarted"] * 2
    assert logs[0]["pid"] == first
    assert logs[0]["exit_status"] == -signal.SIGKILL
    assert logs[1]["duration_ms"] > 0


async def test_it_is_not_there_between_dying_and_answering(path: Path) -> None:
    again = asyncio.Event()
    async with EmbeddedServer(path=path, on_restart=again.set) as server:
        server.kill()
        server.kill()
        await gone(server.pid)
        with pytest.raises(MediaServerUnavailable):  # noqa: PT012 - until the supervisor has seen it
            while not again.is_set():
                _ = server.pid
                await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            await again.wait()
        assert server.pid


async def test_it_is_restarted_until_that_succeeds(
    path: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FIRST_BACKOFF_S", 0.01)
    again = asyncio.Event()
    async with EmbeddedServer(path=script(f'exec "{path}"'), on_restart=again.set) as server:
        with structlog.testing.capture_logs() as logs:
            script("echo out of order")
            server.kill()
            await until(lambda: [entry["event"] for entry in logs].count("media_server_restart_failed") > 1)
            script(f'exec "{path}"')
            async with asyncio.timeout(LIMIT_S):
                await again.wait()
        assert await status_of(server.http_url) == 200
    assert "out of order" in logs[1]["error"]


async def test_who_lived_long_is_restarted_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_HEALTHY_S", 0.0)
    monkeypatch.setattr(embedded, "_FIRST_BACKOFF_S", 10 * LIMIT_S)
    again = asyncio.Event()
    async with EmbeddedServer(path=path, on_restart=again.set) as server:
        for _ in range(2):
            server.kill()
            async with asyncio.timeout(LIMIT_S):
                await again.wait()
            again.clear()


async def test_a_restart_callback_that_raises_does_not_end_supervision(path: Path) -> None:
    calls: list[int] = []
    reported: list[object] = []

    def fail() -> None:
        calls.append(restarting.pid)
        raise LookupError

    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with EmbeddedServer(path=path, on_restart=fail) as restarting:
        for count in (1, 2):
            restarting.kill()
            await until(lambda count=count: len(calls) == count)  # type: ignore[misc]
    assert len(set(calls)) == 2
    assert [type(error) for error in reported] == [LookupError, LookupError]


async def test_paused_it_does_not_answer_and_resumed_it_does(server: EmbeddedServer) -> None:
    server.pause()
    with pytest.raises(TimeoutError):
        await status_of(server.http_url, timeout_s=0.2)
    server.resume()
    assert await status_of(server.http_url) == 200


@pytest.mark.parametrize("paused", [False, True])
async def test_it_stops_soon_though_somebody_is_connected(path: Path, *, paused: bool) -> None:
    server = EmbeddedServer(path=path)
    await server.start()
    pid = server.pid
    async with connected(server):
        if paused:
            server.pause()
        async with asyncio.timeout(20):  # it would wait for everybody to leave
            await server.stop()
    assert not is_running(pid)


async def test_it_stops_though_it_ignores_signals(
    script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_READY_S", 0.2)
    server = EmbeddedServer(path=script("trap '' TERM; echo stubborn $$; while :; do sleep 60; done"))
    with pytest.raises(MediaServerFailed, match="did not answer within"):
        await server.start()
    await gone(int(server.log_tail[-1].removeprefix("stubborn ")))


async def test_stopping_while_it_is_restarted_leaves_nothing(path: Path) -> None:
    server = EmbeddedServer(path=path)
    await server.start()
    pid = server.pid
    server.kill()
    await gone(pid)
    await server.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await status_of(server.http_url)


async def test_stopping_twice_and_before_starting_is_harmless(path: Path) -> None:
    server = EmbeddedServer(path=path)
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()
    with pytest.raises(MediaServerUnavailable):
        _ = server.pid


async def test_stopping_when_cancelled_ends_it_all_the_same(path: Path) -> None:
    server = EmbeddedServer(path=path)
    await server.start()
    pid = server.pid
    async with connected(server):
        stopping = asyncio.create_task(server.stop())
        await until(lambda: any("exit requested" in line for line in server.log_tail))
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
    assert not is_running(pid)


async def test_it_can_be_started_again_but_not_twice(server: EmbeddedServer) -> None:
    with pytest.raises(RuntimeError, match="started already"):
        await server.start()
    await server.stop()
    await server.start()
    assert await status_of(server.http_url) == 200


async def test_nothing_is_known_before_it_was_started(path: Path) -> None:
    server = EmbeddedServer(path=path)
    assert server.prometheus_url is None
    assert server.log_tail == ()
    with pytest.raises(MediaServerUnavailable):
        _ = server.url
    with pytest.raises(MediaServerUnavailable):
        server.kill()


@pytest.mark.parametrize("how", ["killed", "exits"])
async def test_it_ends_with_its_parent(path: Path, how: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    async with asyncio.timeout(LIMIT_S):
        pid = int(await parent.stdout.readline())
    assert program_of(pid) == path.resolve()
    if how == "killed":
        parent.kill()
    else:
        parent.stdin.write(b"\n")
    await parent.communicate()
    await gone(pid)


async def test_it_survives_what_a_terminal_sends_us(server: EmbeddedServer) -> None:
    assert os.getsid(server.pid) != os.getsid(0)


async def test_a_failed_start_tells_its_last_words(path: Path) -> None:
    server = EmbeddedServer(path=path, extra_config={"rtc": {"nonsense": True}})
    with pytest.raises(MediaServerFailed, match=r"(?s)ended with status 0 before.*nonsense") as failure:
        await server.start()
    assert server.api_secret not in str(failure.value)
    await server.stop()


@pytest.mark.parametrize("mode", [0o755, 0o644])
async def test_a_failed_start_says_so_when_there_is_no_such_program(tmp_path: Path, mode: int) -> None:
    program = tmp_path / "livekit-server"
    if mode == 0o644:
        program.touch(mode)
    with pytest.raises(MediaServerFailed, match=str(program)):
        await EmbeddedServer(path=program).start()


async def test_a_failed_start_says_so_when_nothing_can_be_started(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOO_LONG", "x" * 200_000)
    with pytest.raises(MediaServerFailed, match="could not be started: Argument list too long"):
        await EmbeddedServer(path=path).start()


async def test_cancelling_the_start_leaves_nothing(script: Callable[[str], Path]) -> None:
    server = EmbeddedServer(path=script("echo $$; exec sleep 600"))
    starting = asyncio.create_task(server.start())
    await until(lambda: len(server.log_tail) == 1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await gone(int(server.log_tail[0]))


@pytest.mark.parametrize("times", [1, 4])
async def test_a_port_that_was_taken_meanwhile_is_given_up(
    server: EmbeddedServer, path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    taken = int(server.url.rpartition(":")[2])  # and answers 200, as ours would
    free = embedded._Ports.free
    offered = chain((replace(free(), http=taken) for _ in range(times)), iter(free, None))
    monkeypatch.setattr(embedded._Ports, "free", lambda: next(offered))
    async with EmbeddedServer(path=path) as other:
        assert other.url != server.url
        await create_room(other, "meeting")


async def test_ports_are_given_up_on_after_a_few_attempts(
    server: EmbeddedServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server._ports is not None
    ports = server._ports
    monkeypatch.setattr(embedded._Ports, "free", lambda: ports)
    with pytest.raises(MediaServerFailed, match="address already in use"):
        await EmbeddedServer(path=path).start()


async def test_it_gets_nothing_from_our_environment_that_would_configure_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIVEKIT_KEYS", "LIVEKIT_API_SECRET", "LIVEKIT_REGION", "NODE_IP", "UDP_PORT", "REDIS_HOST"):
        monkeypatch.setenv(name, "127.0.0.1:1")
    monkeypatch.setenv("MEANT_FOR_ALL", "yes")
    async with EmbeddedServer(path=path) as server:
        process = Path(f"/proc/{server.pid}")
        environment = dict(each.split("=", 1) for each in process.joinpath("environ").read_text().split("\0") if each)
        arguments = process.joinpath("cmdline").read_text()
    assert environment["MEANT_FOR_ALL"] == "yes"
    assert [name for name in environment if name.startswith("LIVEKIT_")] == ["LIVEKIT_CONFIG"]
    assert not {"NODE_IP", "UDP_PORT", "REDIS_HOST"} & set(environment)
    assert server.api_secret in environment["LIVEKIT_CONFIG"]
    assert server.api_secret not in arguments


async def test_extra_configuration_is_merged_mapping_by_mapping(path: Path) -> None:
    async with EmbeddedServer(path=path, extra_config={"room": {"empty_timeout": 7}, "region": "here"}) as server:
        assert (await create_room(server, "meeting")).empty_timeout == 7
        grants = VideoGrants(room_join=True, room="nowhere")
        token = AccessToken(server.api_key, server.api_secret).with_identity("alice").with_grants(grants)
        unknown_room = f"{server.http_url}/rtc/validate?access_token={token.with_ttl(timedelta(minutes=1)).to_jwt()}"
        assert await status_of(unknown_room) == 404


async def test_it_reports_what_happens(path: Path) -> None:
    received: asyncio.Queue[str] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        assert request.headers["Authorization"]
        await received.put((await request.json())["event"])
        return web.Response()

    application = web.Application()
    application.router.add_post("/livekit/webhook", receive)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        urls = [f"http://127.0.0.1:{port}/livekit/webhook"]
        async with EmbeddedServer(path=path, webhook_urls=urls) as server, asyncio.timeout(LIMIT_S):
            await create_room(server, "meeting")
            assert await received.get() == "room_started"
    finally:
        await runner.cleanup()


async def test_it_serves_metrics_on_request(path: Path) -> None:
    async with EmbeddedServer(path=path, prometheus=True) as server, aiohttp.ClientSession() as http:
        assert server.prometheus_url is not None
        async with http.get(server.prometheus_url) as response:
            assert "livekit_" in await response.text()


async def test_its_log_is_read_on_and_its_end_kept(path: Path, script: Callable[[str], Path]) -> None:
    flood = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; head -c 1000000 /dev/zero | tr '\\0' x"
    async with EmbeddedServer(path=script(f'{flood}; echo; exec "{path}"')) as server:
        assert len(server.log_tail) == 500
        assert max(map(len, server.log_tail)) == 2000
        assert "starting LiveKit server" in "".join(server.log_tail)
        assert "line 2999" in server.log_tail
        assert "line 3" not in server.log_tail


async def test_what_it_said_last_is_kept_without_the_end_of_the_line(script: Callable[[str], Path]) -> None:
    with pytest.raises(MediaServerFailed, match="farewell"):
        await EmbeddedServer(path=script("printf farewell")).start()
    with pytest.raises(MediaServerFailed, match="it said nothing"):
        await EmbeddedServer(path=script("exit 3")).start()


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        ([(1, "lo"), (2, "eth0")], "lo"),
        ([(1, "lo0"), (2, "en0")], "lo0"),
        ([(2, "eth0")], "lo"),
    ],
)
def test_the_loopback_interface_is_called_what_the_system_calls_it(
    interfaces: list[tuple[int, str]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: interfaces)
    assert embedded._loopback_interface() == expected

"""The internal port under attack, over bare sockets: what is answered, what is logged, and for how long it is held."""

import asyncio
import gc
import gzip
import json
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from signaling import metrics
from signaling.server import controller_api, internal, requests
from signaling.server.logs import configure_logging
from signaling.server.requests import Hosts
from signaling.settings import HostPort
from tests.meeting_on_fake import until
from tests.server.hosting import Hosted, hosted, logged

TOKEN = "a-token-of-more-than-sixteen-characters"
TICKET = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJl"
SECRETS = f"Authorization: Bearer {TOKEN}\r\nSec-WebSocket-Protocol: ticket#{TICKET}\r\n"
HEAD = f"Host: 127.0.0.1\r\n{SECRETS}"
LIMIT_S = 20


@pytest.fixture
async def guarded() -> AsyncIterator[Hosted]:
    async with hosted(moderation_internal_token=TOKEN) as host:
        yield host


@asynccontextmanager
async def dialled(host: Hosted) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(host.server.internal_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield reader, writer
    finally:
        writer.transport.abort()


async def answer(host: Hosted, sent: bytes) -> bytes:
    """All that comes back until the server closes."""
    async with dialled(host) as (reader, writer):
        writer.write(sent)
        return await reader.read()


def request(line: str, head: str = "", body: bytes = b"") -> bytes:
    return f"{line}\r\n{HEAD}Connection: close\r\n{head}\r\n".encode() + body


CHUNKED = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
WEBHOOK = "POST /livekit/webhook HTTP/1.1"
COMMANDS = "POST /v1/rooms/standup/commands HTTP/1.1"
MALFORMED = {
    "a NUL byte in a header": request("GET /healthz HTTP/1.1", f"X-Other: {TOKEN}\0\r\n"),
    "a space before a colon": request("GET /healthz HTTP/1.1", f"Authorization : Bearer {TOKEN}\r\n"),
    "a header without a colon": request("GET /healthz HTTP/1.1", f"{TOKEN}\r\n"),
    "a length that is none": request("GET /healthz HTTP/1.1", f"Content-Length: {TOKEN}\r\n"),
    "two lengths": request(COMMANDS, "Content-Length: 1\r\nContent-Length: 2\r\n", b"xx"),
    "a huge header": request("GET /healthz HTTP/1.1", f"X-Other: {TOKEN * 1000}\r\n"),
    "a thousand headers": request("GET /healthz HTTP/1.1", f"X-Other: {TOKEN}\r\n" * 1000),
    "a huge target": request(f"GET /{TOKEN * 1000} HTTP/1.1"),
    "a method that is none": request(f"{TOKEN}@ /healthz HTTP/1.1"),
    "a target that is none": request(f"GET //[{TOKEN} HTTP/1.1"),
    "HTTP/0.9": f"GET /healthz {TOKEN}\r\n\r\n".encode(),
    "another protocol": request(f"GET /healthz {TOKEN}/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + TOKEN.encode() + b"\r\n\r\n",
    "an expectation": request("GET /healthz HTTP/1.1", f"Expect: {TOKEN}\r\n"),
    "an expectation that is no text": request("GET /healthz HTTP/1.1", f"Expect: ~{TOKEN}\r\n").replace(b"~", b"\xf3"),
    "chunks that are none": request(WEBHOOK, CHUNKED, f"{TOKEN}\r\n".encode()),
    "a chunk that is longer": request(WEBHOOK, CHUNKED, f"1\r\n{TOKEN}\r\n".encode()),
    "chunks that are none, for a controller": request(COMMANDS, CHUNKED, f"{TOKEN}\r\n".encode()),
    "a later chunk that is none": request(COMMANDS, CHUNKED, f"2\r\n{{ \r\n{TOKEN}\r\n".encode()),
    "bytes that are no text": request("GET /healthz HTTP/1.1").replace(b"X", b"\xff") + b"\xff" * 100 + b"\r\n\r\n",
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_a_malformed_request_is_at_most_one_line_and_nothing_of_it_is_repeated(
    guarded: Hosted, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    writer = configure_logging("json", "debug")
    before = metrics.BAD_REQUESTS.labels("bad_request")._value.get()
    answered = (await answer(guarded, MALFORMED[kind])).decode()
    writer.flush()
    said = capsys.readouterr().err
    assert TOKEN not in answered + said
    assert TICKET not in answered + said
    assert "Traceback" not in said
    is_told = not answered.startswith("HTTP/1.1 404 ")  # it could be read after all
    assert logged(said) == ["bad_request"] * is_told
    assert metrics.BAD_REQUESTS.labels("bad_request")._value.get() == before + is_told
    assert answered.endswith('{"error": "bad_request"}') is is_told


async def test_garbage_behind_a_request_takes_nothing_from_its_answer(guarded: Hosted) -> None:
    async with dialled(guarded) as (reader, writer):
        writer.write(f"GET /healthz HTTP/1.1\r\n{HEAD}\r\n".encode())
        assert (await reader.readuntil(b"}")).endswith(b'{"status": "ok"}')
        writer.write(MALFORMED["a space before a colon"])
        answered = (await reader.read()).decode()
    assert answered.endswith('{"error": "bad_request"}')
    assert TOKEN not in answered


@pytest.mark.parametrize("name", [".", "..", "%2E", "%2e%2E"])
async def test_an_id_that_means_something_else_in_a_path_is_none(guarded: Hosted, name: str) -> None:
    for line in (f"GET /v1/rooms/{name} HTTP/1.1", f"DELETE /v1/rooms/standup/participants/{name} HTTP/1.1"):
        status, text = await exchange(guarded, line)
        assert (status, json.loads(text)["error"]) in {
            (400, "invalid_request"),
            (404, "not_found"),
            (404, "unknown_room"),
        }
    body = b'{"breakout": ".."}'
    status, text = await exchange(guarded, "PUT /v1/rooms/standup/participants/bob/breakout HTTP/1.1", "", body)
    assert (status, json.loads(text)["detail"]) == (400, "breakout: must not be . or .., which no URL reaches")


# --- Compressed bodies -------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(64 * 1024 * 1024))


async def exchange(host: Hosted, line: str, head: str = "", body: bytes = b"", token: str = TOKEN) -> tuple[int, str]:
    """Status and body of a request that is closed after its answer."""
    sent = (
        f"{line}\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    )
    answered, _, text = (await answer(host, sent.encode() + body)).decode().partition("\r\n\r\n")
    return int(answered.split()[1]), text


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much was unpacked, each time that something was."""
    sizes: list[int] = []

    class Counting:
        def __init__(self, wbits: int) -> None:
            self.real = zlib.decompressobj(wbits)

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            result = self.real.decompress(data, max_length)
            sizes.append(len(result))
            return result

    class Zlib:
        MAX_WBITS = zlib.MAX_WBITS
        error = zlib.error
        decompressobj = Counting

    monkeypatch.setattr(requests, "zlib", Zlib)
    return sizes


@pytest.mark.parametrize(
    ("line", "token", "status"),
    [
        ("GET /healthz HTTP/1.1", TOKEN, 200),
        ("GET /nowhere HTTP/1.1", TOKEN, 404),
        ("POST /healthz HTTP/1.1", TOKEN, 405),
        (COMMANDS, "another-token-of-sixteen", 401),
        ("GET /v1/rooms/standup HTTP/1.1", TOKEN, 404),
    ],
)
async def test_what_nobody_reads_is_not_unpacked(
    guarded: Hosted, unpacked: list[int], monkeypatch: pytest.MonkeyPatch, line: str, token: str, status: int
) -> None:
    def unpack(*_arguments: object, **_more: object) -> None:
        raise AssertionError

    monkeypatch.setattr("aiohttp.http_parser.DeflateBuffer", unpack)
    monkeypatch.setattr("aiohttp._http_parser.DeflateBuffer", unpack, raising=False)
    assert (await exchange(guarded, line, "Content-Encoding: gzip\r\n", BOMB, token))[0] == status
    assert unpacked == []


async def test_what_is_read_is_unpacked_to_its_limit_and_no_further(guarded: Hosted, unpacked: list[int]) -> None:
    packed = "Content-Encoding: gzip\r\n"
    assert await exchange(guarded, COMMANDS, packed, BOMB) == (413, '{"error":"oversized"}')
    assert unpacked == [controller_api.MAX_BODY_BYTES + 1]
    assert await exchange(guarded, WEBHOOK, packed, BOMB) == (413, '{"error": "oversized"}')
    assert unpacked[1:] == [internal.MAX_BODY_BYTES + 1]


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"{}", mtime=0)),
        ("X-GZIP", gzip.compress(b"{}", mtime=0)),
        ("deflate", zlib.compress(b"{}")),
        ("deflate", zlib.compress(b"{}")[2:-4]),
        ("identity", b"{}"),
    ],
)
async def test_a_body_may_be_compressed(guarded: Hosted, encoding: str, packed: bytes) -> None:
    status, text = await exchange(guarded, COMMANDS, f"Content-Encoding: {encoding}\r\n", packed)
    assert (status, json.loads(text)) == (400, {"error": "invalid_request", "detail": "namespace: is required"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\x1f\x8b",
        gzip.compress(b"{}", mtime=0)[:-1],
        gzip.compress(b"{}", mtime=0) + b"x",
        gzip.compress(b"{}", mtime=0) * 2,
    ],
)
async def test_what_says_gzip_and_is_none_is_a_bad_request(
    guarded: Hosted, capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    writer = configure_logging("json", "debug")
    status, text = await exchange(guarded, COMMANDS, "Content-Encoding: gzip\r\n", body)
    detail = "Content-Encoding: is not how the body is encoded"
    assert (status, json.loads(text)) == (400, {"error": "invalid_request", "detail": detail})
    assert await exchange(guarded, WEBHOOK, "Content-Encoding: gzip\r\n", body) == (400, '{"error": "unparsable"}')
    writer.flush()
    assert logged(capsys.readouterr().err) == ["webhook_refused"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", TOKEN])
async def test_other_encodings_are_not_understood(guarded: Hosted, encoding: str) -> None:
    status, text = await exchange(guarded, COMMANDS, f"Content-Encoding: {encoding}\r\n", b"{}")
    detail = "Content-Encoding: must be gzip or deflate, if any"
    assert (status, json.loads(text)) == (415, {"error": "unsupported_media_type", "detail": detail})
    assert await exchange(guarded, WEBHOOK, f"Content-Encoding: {encoding}\r\n", b"{}") == (
        400,
        '{"error": "unparsable"}',
    )


# --- Who is slow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127"])
async def test_a_request_that_does_not_come_is_not_waited_for(
    guarded: Hosted, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(requests, "HEAD_S", 0.05)
    before = metrics.BAD_REQUESTS.labels("timeout")._value.get()
    assert await answer(guarded, sent) == b""
    assert metrics.BAD_REQUESTS.labels("timeout")._value.get() == before + 1


async def test_nor_is_a_second_one(guarded: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "HEAD_S", 0.5)
    good = f"GET /healthz HTTP/1.1\r\n{HEAD}\r\n".encode()
    async with dialled(guarded) as (reader, writer):
        writer.write(good)
        await reader.readuntil(b"}")
        writer.write(good[:-2])
        assert await reader.read() == b""


async def test_who_only_keeps_a_connection_is_let_go_without_a_word(
    guarded: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_IDLE_S", 0.05)
    before = metrics.BAD_REQUESTS.labels("timeout")._value.get()
    answered = await answer(guarded, f"GET /healthz HTTP/1.1\r\n{HEAD}\r\n".encode())
    assert answered.endswith(b'{"status": "ok"}')
    assert metrics.BAD_REQUESTS.labels("timeout")._value.get() == before


@pytest.mark.parametrize("line", [WEBHOOK, COMMANDS])
@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_come_is_not_waited_for(
    guarded: Hosted, monkeypatch: pytest.MonkeyPatch, line: str, length: str
) -> None:
    monkeypatch.setattr(requests, "BODY_S", 0.05)
    monkeypatch.setattr(requests, "_IDLE_S", 0.05)
    head = f"{line}\r\n{HEAD}Content-Type: application/json\r\n{length}\r\n\r\n"
    answered = (await answer(guarded, head.encode())).decode()
    assert answered.startswith("HTTP/1.1 408 ")
    assert '"timeout"' in answered


async def test_who_hangs_up_in_the_middle_is_nobodys_fault(guarded: Hosted, capsys: pytest.CaptureFixture[str]) -> None:
    writer = configure_logging("json", "debug")
    for line in (WEBHOOK, COMMANDS):
        async with dialled(guarded) as (_, sending):
            sending.write(request(line, "Content-Type: application/json\r\nContent-Length: 1000\r\n", b"{"))
            await sending.drain()
            await until(lambda: any(one.is_handling for one in connections(guarded)))
        await until(lambda: not connections(guarded))
    writer.flush()
    assert logged(capsys.readouterr().err) == []


def connections(host: Hosted) -> list[requests._Protocol]:
    runner = host.server._internal._runner
    assert runner is not None
    assert runner.server is not None
    return [one for one in runner.server.connections if isinstance(one, requests._Protocol) and not one.is_closed]


async def test_connections_that_ask_for_nothing_keep_nobody_out(
    guarded: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_CONNECTIONS", 5)
    async with AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(dialled(guarded)) for _ in range(20)]
        assert (await exchange(guarded, "GET /healthz HTTP/1.1"))[0] == 200
        for reader, _ in idle[:15]:
            assert await reader.read() == b""
        assert len(connections(guarded)) <= 5


async def test_bodies_that_do_not_come_keep_nobody_out(
    guarded: Hosted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(requests, "MAX_CONNECTIONS", 5)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            _, writer = await stack.enter_async_context(dialled(guarded))
            writer.write(f"{WEBHOOK}\r\n{HEAD}Content-Length: 1000\r\n\r\n{{".encode())
        await until(lambda: sum(one.is_handling for one in connections(guarded)) == 5)
        for _ in range(5):
            assert (await exchange(guarded, "GET /healthz HTTP/1.1"))[0] == 200
    await until(lambda: not connections(guarded))
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_who_has_shown_the_token_is_not_let_go_for_one_more(
    guarded: Hosted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(requests, "MAX_CONNECTIONS", 1)
    body = b'{"namespace": "livekit", "payload": {"action": "x"}}'
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with dialled(guarded) as (reader, writer):
        writer.write(request(COMMANDS, head))
        await until(lambda: any(one.is_handling for one in connections(guarded)))
        assert await answer(guarded, b"") == b""
        writer.write(body)
        assert (await reader.read()).endswith(b'{"error":"unknown_room"}')
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# --- Hosts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "others", "header", "allowed"),
    [
        ("127.0.0.1", "", "127.0.0.1:8701", True),
        ("127.0.0.1", "", "localhost", True),
        ("127.0.0.1", "", "LocalHost.:8701", True),
        ("127.0.0.1", "", "meeting.localhost:1", True),
        ("127.0.0.1", "", "[::1]:8701", True),
        ("127.0.0.1", "", "10.0.0.7:8701", True),
        ("127.0.0.1", "", "[2001:db8::1]", True),
        ("127.0.0.1", "", "rebound.example.org:8701", False),
        ("127.0.0.1", "", "127.0.0.1.example.org", False),
        ("127.0.0.1", "", "localhost.example.org", False),
        ("127.0.0.1", "", "localhost@example.org", False),
        ("127.0.0.1", "", "localhost/example.org", False),
        ("127.0.0.1", "", "localhost, example.org", False),
        ("127.0.0.1", "", "", False),
        ("127.0.0.1", "", "[", False),
        ("moderation.internal", "", "Moderation.Internal:8701", True),
        ("0.0.0.0", "", "moderation", False),  # noqa: S104 - which name that is, only the setting can say
        ("0.0.0.0", "", socket.gethostname(), True),  # noqa: S104 - it is this machine's
        ("0.0.0.0", "moderation moderation.internal", "moderation:8701", True),  # noqa: S104 - as above
        ("127.0.0.1", "*", "rebound.example.org", True),
    ],
)
def test_only_names_that_no_page_can_have_are_answered_to(
    address: str, others: str, header: str, *, allowed: bool
) -> None:
    assert Hosts(HostPort(address, 8701), frozenset(others.split())).allow([header]) is allowed


def test_two_hosts_are_none_and_no_host_is_no_browsers() -> None:
    hosts = Hosts(HostPort("127.0.0.1", 8701))
    assert not hosts.allow(["localhost", "localhost"])
    assert hosts.allow([])


@pytest.mark.parametrize("line", ["GET /healthz HTTP/1.1", "GET /v1/rooms/standup HTTP/1.1", "GET /metrics HTTP/1.1"])
async def test_a_page_that_rebinds_its_name_learns_nothing(line: str) -> None:
    rebound = f"{line}\r\nHost: rebound.example.org\r\n{SECRETS}Connection: close\r\n\r\n".encode()
    async with hosted(moderation_internal_token=TOKEN) as host:
        answered = (await answer(host, rebound)).decode()
        assert answered.startswith("HTTP/1.1 403 ")
        assert answered.endswith('{"error": "host"}')
    async with hosted(moderation_internal_token=TOKEN, moderation_internal_hosts="rebound.example.org") as host:
        assert not (await answer(host, rebound)).startswith(b"HTTP/1.1 403 ")
    url = "http://rebound.example.org/livekit/webhook"
    async with hosted(moderation_internal_token=TOKEN, moderation_webhook_url=url) as host:
        assert not (await answer(host, rebound)).startswith(b"HTTP/1.1 403 ")


async def test_a_webhook_may_come_by_any_name_since_no_page_can_sign_one(guarded: Hosted) -> None:
    line = f"{WEBHOOK}\r\nHost: moderation.meetings.svc\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
    assert (await answer(guarded, line.encode())).endswith(b'{"error": "forged"}')

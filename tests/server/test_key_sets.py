import asyncio
import base64
import datetime as dt
import gzip
import hashlib
import hmac
import itertools
import json
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from unittest.mock import AsyncMock, Mock

import aiohttp
import jwt
import pytest
import structlog
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

from signaling import ConfigurationError
from signaling.livekit.embedded import EmbeddedServer
from signaling.server import InvalidTicket, Tickets, key_sets
from signaling.server.handshake import PATH, Handshake, Origins
from signaling.server.key_sets import (
    FRESH_S,
    KEPT_S,
    MAX_BYTES,
    PAUSE_S,
    TIMEOUT_S,
    KeySet,
    _parse,
    _Unusable,
    suitable,
)
from signaling.settings import TicketAlgorithm
from tests.meeting_on_fake import until
from tests.server.hosting import ROOM, Hosted, hosted
from tests.server.keys import SECRET, Pair, pair, unsuitable_pems

ASYMMETRIC: tuple[TicketAlgorithm, ...] = ("RS256", "ES256", "EdDSA")
OLD, NEW = pair("ES256", "old"), pair("ES256", "new")
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def jwk(keys: Pair | str, /, **members: object) -> dict[str, Any]:
    """A public key as sets have it, with further or other members."""
    pem = keys if isinstance(keys, str) else keys.public
    key = load_pem_public_key(pem.encode())
    name = {"RSAPublicKey": "RS256", "ECPublicKey": "ES256"}.get(type(key).__name__, "EdDSA")
    return jwt.get_algorithm_by_name(name).to_jwk(key, as_dict=True) | members


def ticket(keys: Pair, kid: str | None = None, jti: str = "1") -> str:
    """What the controller signs, naming the key or not."""
    now = int(time.time())
    claims = {"aud": "livekit-moderation", "sub": "bob", "room": ROOM, "name": "Bob", "role": "user", "kind": "user"}
    return jwt.encode(
        claims | {"jti": jti, "iat": now, "exp": now + 60},
        keys.private,
        keys.algorithm,
        headers={} if kid is None else {"kid": kid},
    )


def segment(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


@dataclass
class Publisher:
    """A controller's HTTP server; what it says may be replaced."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    answer: Answer | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)
    cancelled: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        try:
            return await self.answer(request) if self.answer else web.json_response({"keys": self.keys})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def says(self, body: bytes, status: int = 200, **headers: str) -> None:
        """Give this answer from now on."""

        async def answer(_request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=body, status=status, headers=headers)

        self.answer = answer

    def waits(self) -> asyncio.Event:
        """Answer as before, but only when this is set."""
        gate, before = asyncio.Event(), self.answer

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            await gate.wait()
            return await before(request) if before else web.json_response({"keys": self.keys})

        self.answer = answer
        return gate


@asynccontextmanager
async def publishing(*keys: dict[str, Any], tls: ssl.SSLContext | None = None) -> AsyncIterator[Publisher]:
    publisher = Publisher(list(keys))
    server = web.Server(publisher.handle, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        publisher.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/keys"
        yield publisher
    finally:
        await runner.cleanup()


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    async with publishing(jwk(OLD, kid="old")) as running:
        yield running


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Known:
    """A key set, and whether it has keys."""

    def __init__(self, url: str, algorithm: TicketAlgorithm = "ES256") -> None:
        self.clock = Clock()
        self.key_set = KeySet(url, algorithm, clock=self.clock)

    async def has(self, kid: str | None) -> bool:
        await self.key_set.refresh(kid)
        return self.key_set.find(kid) is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.key_set.close()


@pytest.fixture
async def known(publisher: Publisher) -> AsyncIterator[Known]:
    async with Known(publisher.url) as known:
        yield known


async def subject(url: str, algorithm: TicketAlgorithm, text: str) -> str:
    """Whom a ticket lets in."""
    tickets = Tickets(url, algorithm)
    try:
        await tickets.refresh_keys(text)
        return tickets.verify(text).participant.id
    finally:
        await tickets.close()


# --- Which key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_a_key_of_the_set_lets_in_whoever_it_signed_for(algorithm: TicketAlgorithm) -> None:
    keys = pair(algorithm)
    async with publishing(jwk(keys, kid="a", use="sig", alg=algorithm, key_ops=["verify"], extra=1)) as publisher:
        assert await subject(publisher.url, algorithm, ticket(keys, "a")) == "bob"
        assert await subject(publisher.url, algorithm, ticket(keys)) == "bob"
        with pytest.raises(InvalidTicket, match="not signed"):
            await subject(publisher.url, algorithm, ticket(pair(algorithm, "another"), "a"))
        with pytest.raises(InvalidTicket, match="kid"):
            await subject(publisher.url, algorithm, ticket(keys, "b"))


async def test_the_id_chooses_and_is_needed_where_there_is_a_choice() -> None:
    async with publishing(jwk(OLD, kid="old"), jwk(NEW, kid="new"), jwk(pair("RS256"), kid="rsa")) as publisher:
        assert await subject(publisher.url, "ES256", ticket(OLD, "old")) == "bob"
        assert await subject(publisher.url, "ES256", ticket(NEW, "new")) == "bob"
        assert await subject(publisher.url, "RS256", ticket(pair("RS256"))) == "bob"
        for text in (ticket(OLD), ticket(OLD, "rsa"), ticket(OLD, "new")):
            with pytest.raises(InvalidTicket):
                await subject(publisher.url, "ES256", text)


async def test_two_keys_of_one_id_are_none() -> None:
    async with publishing(jwk(OLD, kid="a"), jwk(NEW, kid="a")) as publisher, Known(publisher.url) as known:
        assert not await known.has("a")


def test_ed448_is_eddsa_too() -> None:
    key = ed448.Ed448PrivateKey.generate().public_key()
    entry = jwt.get_algorithm_by_name("EdDSA").to_jwk(key, as_dict=True)
    assert _parse(json.dumps({"keys": [entry]}).encode(), "EdDSA") == [(None, key)]


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_members_that_are_null_count_as_absent(algorithm: TicketAlgorithm) -> None:
    keys = pair(algorithm)
    async with publishing(jwk(keys, kid=None, use=None, alg=None, key_ops=None, x5c=None)) as publisher:
        assert await subject(publisher.url, algorithm, ticket(keys)) == "bob"


@pytest.mark.parametrize("only", ["application/jwk-set+json", "application/json", "text/plain"])
async def test_a_server_that_has_one_type_only_is_asked_for_it_too(
    publisher: Publisher, known: Known, only: str
) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        accepted = [part.split(";")[0].strip() for part in request.headers["Accept"].split(",")]
        if only not in accepted and "*/*" not in accepted:
            return web.Response(status=406)
        return web.Response(body=json.dumps({"keys": publisher.keys}).encode(), content_type=only)

    publisher.answer = answer
    assert await known.has("old")


async def test_an_api_server_of_kubernetes_is_asked_for_the_one_type_that_it_has(
    publisher: Publisher, known: Known
) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if not request.headers["Accept"].startswith("application/jwk-set+json"):
            return web.Response(status=406)
        return web.Response(body=json.dumps({"keys": publisher.keys}).encode(), content_type="application/jwk-set+json")

    publisher.answer = answer
    assert await known.has("old")


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_what_was_packed_unasked_is_unpacked(
    publisher: Publisher, known: Known, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    headers: dict[str, Any] = {"Content-Encoding": encoding}
    publisher.says(pack(json.dumps({"keys": publisher.keys}).encode()), **headers)
    assert await known.has("old")


def without(name: str) -> dict[str, Any]:
    return {member: value for member, value in jwk(OLD).items() if member != name}


@pytest.mark.parametrize(
    ("algorithm", "entry"),
    [
        ("RS256", jwk(unsuitable_pems()["a short RSA key"])),
        ("RS256", jwk(pair("RS256"), use="enc")),
        ("RS256", jwk(pair("RS256"), alg="RS512")),
        ("RS256", jwk(pair("RS256"), alg="PS256")),
        ("RS256", jwk(pair("RS256"), alg="HS256")),
        ("RS256", jwk(pair("RS256"), n="AQAB")),
        ("RS256", jwk(pair("RS256"), kty="EC")),
        ("RS256", jwk(pair("ES256"))),
        ("ES256", jwk(unsuitable_pems()["a P-384 key"])),
        ("ES256", jwk(unsuitable_pems()["a P-384 key"], crv="P-256")),
        ("ES256", jwk(OLD, x=jwk(NEW)["x"])),  # no point of the curve
        ("ES256", jwk(OLD, x=7)),
        ("ES256", jwk(OLD, x="ü")),
        ("ES256", jwk(OLD, crv=["P-256"])),
        ("ES256", jwk(OLD, kty=[])),
        ("ES256", jwk(OLD, kid=7)),
        ("ES256", jwk(OLD, use="")),
        ("ES256", jwk(OLD, use=["sig"])),
        ("ES256", jwk(OLD, alg="")),
        ("ES256", jwk(OLD, alg=["ES256"])),
        ("ES256", without("y")),
        ("ES256", without("kty")),
        ("EdDSA", jwk(pair("EdDSA"), crv="X25519")),
        ("EdDSA", jwk(pair("EdDSA"), x="AQAB")),
        ("EdDSA", {"kty": "oct", "k": segment(SECRET.encode()), "kid": "a"}),
        ("EdDSA", [jwk(pair("EdDSA"))]),
        ("EdDSA", None),
    ],
)
def test_what_does_not_suit_counts_as_absent(algorithm: TicketAlgorithm, entry: object) -> None:
    good = jwk(pair(algorithm, "good"), kid="good")
    assert [kid for kid, _ in _parse(json.dumps({"keys": [entry, good]}).encode(), algorithm)] == ["good"]
    with pytest.raises(_Unusable, match=f"^no key for {algorithm} among 1$"):
        _parse(json.dumps({"keys": [entry]}).encode(), algorithm)


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_private_key_that_was_published_counts_as_absent(algorithm: TicketAlgorithm) -> None:
    key = load_pem_private_key(pair(algorithm).private.encode(), None)
    entry = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    assert "d" in entry
    with pytest.raises(_Unusable):
        _parse(json.dumps({"keys": [entry]}).encode(), algorithm)


def test_a_private_key_that_was_made_up_is_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"kty": "RSA", "n": "_" * 683, "e": "AQAB", "d": "_" * 683}
    looked_at: list[object] = []
    monkeypatch.setattr(jwt, "PyJWK", lambda *entry: looked_at.append(entry))  # which would take hours
    with pytest.raises(_Unusable):
        _parse(json.dumps({"keys": [entry]}).encode(), "RS256")
    assert looked_at == []


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_neither_ticket_nor_set_chooses_the_algorithm(algorithm: TicketAlgorithm) -> None:
    keys = pair(algorithm)
    secrets = [SECRET.encode(), keys.public.encode(), json.dumps(jwk(keys)).encode()]
    symmetric = {"kty": "oct", "k": segment(SECRET.encode()), "kid": "b", "alg": "HS256"}
    async with publishing(jwk(keys, kid="a"), symmetric) as publisher:
        claims = ticket(keys).split(".")[1]
        for kid in ("a", "b"):
            for alg, secret in (("HS256", secret) for secret in secrets):
                signed = f"{segment(json.dumps({'alg': alg, 'kid': kid}).encode())}.{claims}"
                forged = f"{signed}.{segment(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
                with pytest.raises(InvalidTicket):
                    await subject(publisher.url, algorithm, forged)
            none = segment(json.dumps({"alg": "none", "kid": kid}).encode())
            with pytest.raises(InvalidTicket):
                await subject(publisher.url, algorithm, f"{none}.{claims}.")
        assert publisher.asked == []


@pytest.mark.parametrize("text", ["", "nonsense", "a.b.c", "e" * 9_000, f"{segment(b'[' * 3_000)}.e30.x", "\ud800"])
async def test_for_what_is_no_ticket_nothing_is_fetched(publisher: Publisher, text: str) -> None:
    with pytest.raises(InvalidTicket):
        await subject(publisher.url, "ES256", text)
    for kid in (7, None, ["old"]):
        head = segment(json.dumps({"alg": "ES256", "kid": kid}).encode())
        with pytest.raises(InvalidTicket):
            await subject(publisher.url, "ES256", f"{head}.e30.x")
    assert publisher.asked == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
MEMBERS = ("kty", "kid", "use", "alg", "crv", "x", "y", "n", "e", "d", "p", "q", "dp", "dq", "qi", "oth", "k", "x5c")
TEXTS = st.sampled_from(["", "RSA", "EC", "OKP", "oct", "sig", "P-256", "Ed25519", "Ed448", "AQAB", "AA", *ASYMMETRIC])
CHANGES = st.dictionaries(st.sampled_from(MEMBERS), TEXTS | JSON)
ENTRIES = st.builds(lambda algorithm, changes: jwk(pair(algorithm)) | changes, st.sampled_from(ASYMMETRIC), CHANGES) | (
    CHANGES | JSON
)


@given(
    st.lists(ENTRIES).map(lambda keys: json.dumps({"keys": keys}).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(),
    st.sampled_from(ASYMMETRIC),
)
def test_whatever_is_published_gives_suitable_keys_or_none(body: bytes, algorithm: TicketAlgorithm) -> None:
    try:
        found = _parse(body, algorithm)
    except _Unusable:
        return
    assert found
    for kid, key in found:
        assert kid is None or isinstance(kid, str)
        assert suitable(key, algorithm) is key


# --- Rotation --------------------------------------------------------------------------------------------------------


async def test_a_new_key_is_found_when_it_is_first_used(publisher: Publisher, known: Known) -> None:
    assert await known.has("old")
    publisher.keys.append(jwk(NEW, kid="new"))
    assert not await known.has("new")  # a moment ago it was not there
    known.clock.now += PAUSE_S
    assert await known.has("new")
    assert await known.has("old")
    assert len(publisher.asked) == 2


async def test_however_many_unknown_keys_are_named_the_set_is_fetched_once_in_a_while(
    publisher: Publisher, known: Known
) -> None:
    for rounds in range(1, 4):
        assert not any(await asyncio.gather(*(known.has(f"at once {number}") for number in range(100))))
        for number in range(100):
            assert not await known.has(f"one by one {number}")
        assert await known.has("old")
        assert len(publisher.asked) == rounds
        known.clock.now += PAUSE_S - 0.1
        assert not await known.has("too soon")
        assert len(publisher.asked) == rounds
        known.clock.now += 0.1


async def test_an_answer_that_comes_late_does_not_shorten_the_pause(publisher: Publisher, known: Known) -> None:
    gate = publisher.waits()
    waiting = asyncio.create_task(known.has("new"))
    await until(lambda: publisher.asked != [])
    known.clock.now += PAUSE_S
    gate.set()
    assert not await waiting
    assert not await known.has("new")
    assert len(publisher.asked) == 1


async def test_all_who_wait_share_one_answer(publisher: Publisher, known: Known) -> None:
    gate = publisher.waits()
    waiting = [asyncio.create_task(known.has("old")) for _ in range(50)]
    await until(lambda: publisher.asked != [])
    waiting.pop().cancel()  # one who gives up takes it from nobody
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 49
    assert len(publisher.asked) == 1


async def test_who_needs_no_answer_waits_for_none(publisher: Publisher, known: Known) -> None:
    assert await known.has("old")
    known.clock.now += PAUSE_S
    gate = publisher.waits()
    waiting = asyncio.create_task(known.has("new"))
    await until(lambda: len(publisher.asked) == 2)
    assert await known.has("old")
    assert not waiting.done()
    gate.set()
    assert not await waiting


async def test_a_key_that_was_removed_is_not_used_for_more_than_five_minutes(
    publisher: Publisher, known: Known
) -> None:
    assert await known.has("old")
    publisher.keys[:] = [jwk(NEW, kid="new")]
    known.clock.now = FRESH_S
    assert FRESH_S <= 300
    assert await known.has("old")
    assert len(publisher.asked) == 1
    known.clock.now += 0.1
    assert not await known.has("old")
    assert await known.has("new")
    assert len(publisher.asked) == 2


async def test_keys_are_as_old_as_the_question(publisher: Publisher, known: Known) -> None:
    gate = publisher.waits()
    waiting = asyncio.create_task(known.has("old"))
    await until(lambda: publisher.asked != [])
    known.clock.now = FRESH_S
    publisher.answer = None
    gate.set()
    assert await waiting
    known.clock.now = FRESH_S + PAUSE_S
    assert await known.has("old")
    assert len(publisher.asked) == 2


# --- A set that cannot be had ----------------------------------------------------------------------------------------


def gave_up(logged: list[Any]) -> list[str]:
    return [entry["error"] for entry in logged if entry["event"] == "key_set_failed"]


async def test_known_keys_outlast_an_outage_of_an_hour_and_no_longer(publisher: Publisher, known: Known) -> None:
    assert await known.has("old")
    publisher.says(b"", status=503)
    publisher.keys.append(jwk(NEW, kid="new"))
    with structlog.testing.capture_logs() as logged:
        for now in (FRESH_S + 1, FRESH_S + 2, FRESH_S + 1 + PAUSE_S, KEPT_S):
            known.clock.now = now
            assert await known.has("old")
            assert not await known.has("new")
        assert len(publisher.asked) == 4
        known.clock.now = KEPT_S + PAUSE_S
        assert not await known.has("old")
    assert [(entry["log_level"], entry["error"], entry["keys"]) for entry in logged] == [
        *[("warning", "status 503", 1)] * 3,
        ("warning", "status 503", 0),
    ]
    publisher.answer = None
    known.clock.now += PAUSE_S
    assert await known.has("old")
    assert await known.has("new")


SET = json.dumps({"keys": [jwk(OLD, kid="old")]}).encode()


@pytest.mark.parametrize(
    ("body", "status", "headers", "reason"),
    [
        (b"", 200, {}, "no JSON"),
        (b"<html>", 200, {"Content-Type": "text/html"}, "no JSON"),
        (b"\xff\xfe\x00", 200, {}, "no JSON"),
        (b"[" * 200_000, 200, {}, "no JSON"),
        (b'{"keys": [' + b"9" * 5_000 + b"]}", 200, {}, "no JSON"),
        (b"null", 200, {}, "no key set"),
        (b"[]", 200, {}, "no key set"),
        (b"{}", 200, {}, "no key set"),
        (b'{"keys": {"old": 1}}', 200, {}, "no key set"),
        (b'{"keys": []}', 200, {}, "no key for ES256 among 0"),
        (b'{"keys": [null, 7, {}, "old"]}', 200, {}, "no key for ES256 among 4"),
        (SET.ljust(MAX_BYTES + 1), 200, {}, "more than 262144 bytes"),
        (b" " * (20 * MAX_BYTES), 200, {}, "more than 262144 bytes"),
        (gzip.compress(b" " * 50_000_000), 200, {"Content-Encoding": "gzip"}, "more than 262144 bytes"),
        (gzip.compress(SET)[:-20], 200, {"Content-Encoding": "gzip"}, "cut off"),
        (SET, 200, {"Content-Encoding": "gzip"}, "encoded otherwise than it says"),
        (SET, 200, {"Content-Encoding": "br"}, "encoded in a way that is not known"),
        (SET, 406, {}, "status 406"),
        (SET, 404, {}, "status 404"),
        (SET, 201, {}, "status 201"),
        (SET, 302, {"Location": "/elsewhere"}, "status 302"),
        (SET, 307, {"Location": "https://elsewhere.example.org/"}, "status 307"),
    ],
    ids=map(str, itertools.count()),  # the bodies are long
)
async def test_what_is_no_key_set_changes_nothing(
    publisher: Publisher, known: Known, body: bytes, status: int, headers: dict[str, str], reason: str
) -> None:
    with structlog.testing.capture_logs() as logged:
        publisher.says(body, status, **headers)
        assert not await known.has("old")
        publisher.answer = None
        known.clock.now += PAUSE_S
        assert await known.has("old")
        publisher.says(body, status, **headers)
        known.clock.now += FRESH_S + 1
        assert await known.has("old")
        assert not await known.has("new")
    assert gave_up(logged) == [reason] * 2
    assert set(publisher.asked) == {"/keys"}


async def test_a_set_may_be_as_long_as_the_limit(publisher: Publisher, known: Known) -> None:
    publisher.says(SET.ljust(MAX_BYTES))
    assert await known.has("old")


async def test_a_host_that_is_not_there_is_named(known: Known) -> None:
    known.key_set._url = "http://user:hunter2@127.0.0.1:9/keys?token=hunter2"
    with structlog.testing.capture_logs() as logged:
        assert not await known.has("old")
    assert len(logged) == 1
    assert gave_up(logged)[0].startswith("Cannot connect to host 127.0.0.1:9 ")
    assert "hunter2" not in str(logged)


async def no_http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    writer.close()


async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + SET[:20])
    writer.close()


async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("speak", [no_http, cut_off, hang_up])
async def test_what_breaks_off_is_told_without_the_url(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Known(f"http://user:hunter2@127.0.0.1:{port}/hunter2?token=hunter2") as known:
            with structlog.testing.capture_logs() as logged:
                assert not await known.has("old")
    assert [entry["event"] for entry in logged] == ["key_set_failed"]
    assert "hunter2" not in str(logged)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
async def test_a_name_that_nobody_can_have_is_an_outage(host: str) -> None:
    async with Known(f"https://{host}/keys") as known:
        with structlog.testing.capture_logs() as logged:
            assert not await known.has("old")
    assert [entry["event"] for entry in logged] == ["key_set_failed"]


async def test_an_answer_that_takes_too_long_is_not_waited_for(
    publisher: Publisher, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def trickle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    assert TIMEOUT_S <= 5
    assert await known.has("old")
    monkeypatch.setattr(key_sets, "TIMEOUT_S", 0.1)
    publisher.waits()
    with structlog.testing.capture_logs() as logged:
        for answer in (publisher.answer, trickle):
            publisher.answer = answer
            known.clock.now += FRESH_S + 1
            async with asyncio.timeout(20):  # neither answer ever ends
                assert await known.has("old")
            assert not await known.has("new")  # and nobody waits in the pause
    assert gave_up(logged) == ["no answer within 0.1 s"] * 2
    await until(lambda: publisher.cancelled == 2)


async def test_a_bug_is_told_and_keeps_nobody_waiting(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sets, "_parse", Mock(side_effect=ZeroDivisionError))
    with structlog.testing.capture_logs() as logged:
        assert not await known.has("old")
    assert [entry["event"] for entry in logged] == ["task_failed"]


# --- Where it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "url", "reason"),
    [
        ("HS256", "https://auth.example.org/certs", "set MODERATION_TICKET_ALGORITHM to RS256"),
        ("HS256", "HTTPS://auth.example.org/certs/hunter2", "needs a secret"),
        ("HS256", " http://127.0.0.1:8080/certs", "needs a secret"),
        ("RS256", "http://auth.example.org/certs", "https://"),
        ("RS256", "http://10.0.0.1/certs", "https://"),
        ("RS256", "http://127.0.0.1.example.org/certs", "https://"),
        ("RS256", "http://localhost:80@auth.example.org/certs", "https://"),
        ("RS256", "https://", "complete URL"),
        ("RS256", "https:///certs", "complete URL"),
        ("RS256", "https://auth.example.org:port/certs", "complete URL"),
        ("RS256", "https://[::1/certs", "complete URL"),
        ("RS256", "ftp://auth.example.org/certs", "an RSA key"),
    ],
)
def test_a_url_that_nobody_could_trust_stops_the_start(algorithm: TicketAlgorithm, url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^MODERATION_TICKET_KEY: .*{reason}") as caught:
        Tickets(url, algorithm)
    assert url.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://auth.example.org/certs",
        "https://auth.example.org:8443/certs?tenant=1\n",
        "HTTPS://AUTH.EXAMPLE.ORG",
        "http://localhost:8080/certs",
        "http://LOCALHOST/certs",
        "http://127.0.0.1/certs",
        "http://127.1.2.3:9/certs",
        "http://[::1]:9/certs",
    ],
)
def test_others_by_https_and_this_machine_by_either(url: str) -> None:
    Tickets(url, "RS256")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine, and its key, that nobody trusts by themselves."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        signed.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[Publisher]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with publishing(jwk(OLD, kid="old"), tls=tls) as running:
        yield running


async def test_a_certificate_that_nobody_trusts_is_an_outage(secure: Publisher) -> None:
    async with Known(secure.url) as known:
        with structlog.testing.capture_logs() as logged:
            assert not await known.has("old")
    assert "certificate verify failed" in gave_up(logged)[0]
    assert secure.asked == []


async def test_a_certificate_that_the_environment_trusts_is_enough(secure: Publisher, certificate: Path) -> None:
    program = """
import asyncio, sys
from signaling.server.key_sets import KeySet
async def main():
    key_set = KeySet(sys.argv[1], "ES256")
    await key_set.refresh("old")
    await key_set.close()
    sys.exit(key_set.find("old") is None)
asyncio.run(main())
"""
    arguments = ("-X", "dev", "-W", "error", "-c", program, secure.url)
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env={"SSL_CERT_FILE": str(certificate), "PYTHONPATH": ":".join(sys.path)}
    )
    async with asyncio.timeout(20):
        assert await child.wait() == 0
    assert secure.asked == ["/keys"]


# --- The server ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def guarded(publisher: Publisher, livekit: EmbeddedServer | None = None) -> AsyncIterator[Hosted]:
    """A server that takes its keys from there."""
    async with hosted(
        livekit, moderation_ticket_key=publisher.url, moderation_ticket_algorithm=OLD.algorithm
    ) as running:
        yield running


async def test_the_server_follows_the_set(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sets, "PAUSE_S", 0)
    async with guarded(publisher) as door:
        assert await door.refusal(door.dial(bearer=ticket(OLD, "old"))) == (101, "connected")
        assert await door.refusal(door.dial(bearer=ticket(NEW, "new", "2"))) == (401, "invalid_ticket")
        publisher.keys[:] = [jwk(NEW, kid="new")]
        assert await door.refusal(door.dial(bearer=ticket(NEW, "new", "2"))) == (101, "connected")
        assert await door.refusal(door.dial(bearer=ticket(NEW, "new", "2"))) == (401, "invalid_ticket")
        assert await door.refusal(door.dial(bearer=ticket(OLD, "old", "3"))) == (401, "invalid_ticket")


async def test_it_starts_without_the_set_and_lets_people_in_once_it_is_there(
    publisher: Publisher, livekit: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "PAUSE_S", 0)
    publisher.says(b"", status=502)
    with structlog.testing.capture_logs() as logged:
        async with guarded(publisher, livekit) as door, aiohttp.ClientSession() as http:
            await until(lambda: gave_up(logged) != [])
            async with http.get(f"{door.server.internal_url}/readyz") as response:
                assert (response.status, (await response.json())["status"]) == (200, "ready")
            assert await door.refusal(door.dial(bearer=ticket(OLD, "old"))) == (401, "invalid_ticket")
            publisher.answer = None
            assert await door.refusal(door.dial(bearer=ticket(OLD, "old"))) == (101, "connected")
    assert gave_up(logged) == ["status 502"] * 2


async def test_the_set_is_fetched_before_anybody_comes(publisher: Publisher) -> None:
    gate = publisher.waits()
    async with guarded(publisher) as door:
        await until(lambda: publisher.asked != [])
        dials = [asyncio.create_task(door.refusal(door.dial(bearer=ticket(OLD, "old", str(n))))) for n in range(20)]
        await until(lambda: len(door.server._websocket._open) == 20)
        gate.set()
        assert await asyncio.gather(*dials) == [(101, "connected")] * 20
    assert len(publisher.asked) == 1


async def test_of_all_who_wait_with_a_ticket_one_gets_in(publisher: Publisher) -> None:
    gate = publisher.waits()
    async with guarded(publisher) as door:
        text = ticket(OLD, "old")
        dials = [asyncio.create_task(door.refusal(door.dial(bearer=text))) for _ in range(5)]
        await until(lambda: len(door.server._websocket._open) == 5)
        gate.set()
        assert sorted(await asyncio.gather(*dials)) == [(101, "connected"), *[(401, "invalid_ticket")] * 4]


async def test_who_gives_up_waiting_keeps_the_ticket(publisher: Publisher) -> None:
    gate = publisher.waits()
    async with guarded(publisher) as door:
        text = ticket(OLD, "old")
        with pytest.raises(TimeoutError):
            await connect(
                door.url, additional_headers={"Authorization": f"Bearer {text}"}, open_timeout=0.2, proxy=None
            )
        await until(lambda: not door.server._websocket._open)
        again = asyncio.create_task(door.refusal(door.dial(bearer=text)))
        await until(lambda: len(door.server._websocket._open) == 1)
        gate.set()
        assert await again == (101, "connected")
        await until(lambda: not door.server._websocket._handshake._verified)


async def test_stopping_waits_for_no_set(publisher: Publisher) -> None:
    publisher.waits()
    async with guarded(publisher) as door:
        waiting = asyncio.ensure_future(door.dial(bearer=ticket(OLD, "old")))
        await until(lambda: len(door.server._websocket._open) == 1)
    with pytest.raises(InvalidStatus) as refused:
        await waiting
    assert refused.value.response.status_code == 503
    await until(lambda: publisher.cancelled == 1)


async def test_a_ticket_that_was_used_in_between_is_refused() -> None:
    tickets = Tickets(OLD.public, "ES256")
    use_ticket = AsyncMock(side_effect=[True, False])
    handshake = Handshake(tickets, Origins(None, "127.0.0.1"), AsyncMock(return_value=False), use_ticket)
    request = Request(PATH, Headers({"Authorization": f"Bearer {ticket(OLD)}"}))
    both = [Mock(**{"transport.is_closing.return_value": False}) for _ in range(2)]
    for connection in both:
        assert await handshake.process_request(connection, request) is None
    answers = [await handshake.process_response(each, request, Response(101, "", Headers())) for each in both]
    assert answers[0] is None
    assert answers[1] is not None
    assert (answers[1].status_code, json.loads(answers[1].body)["error"]) == (401, "invalid_ticket")

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server
from websockets.exceptions import InvalidStatus

from signaling import Role, StoreError
from signaling.server.handshake import MESSAGES, STATUS, Origins, RefusalCode
from signaling.settings import HostPort
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.client import SUBPROTOCOL
from tests.meeting_on_fake import until
from tests.server.hosting import PING, Hosted, ask, hosted

OTHER = "wamp.2.json"


@pytest.mark.parametrize("ticket_first", [False, True])
async def test_a_browser_offers_protocol_and_ticket_in_any_order(door: Hosted, *, ticket_first: bool) -> None:
    offers = [SUBPROTOCOL, f"ticket#{door.ticket()}"]
    async with door.dial(*(reversed(offers) if ticket_first else offers)) as connection:
        assert connection.subprotocol == SUBPROTOCOL
        assert (await ask(connection, PING))["payload"] == {"message": "pong"}


async def test_protocol_and_ticket_may_come_in_two_headers(door: Hosted) -> None:
    headers = [("Sec-WebSocket-Protocol", f"ticket#{door.ticket()}")]
    async with door.dial(SUBPROTOCOL, headers=headers) as connection:
        assert connection.subprotocol == SUBPROTOCOL


async def test_other_protocols_may_be_offered_too(door: Hosted) -> None:
    async with door.dial(OTHER, SUBPROTOCOL, f"ticket#{door.ticket()}") as connection:
        assert connection.subprotocol == SUBPROTOCOL


async def test_a_bearer_may_leave_the_protocol_out_or_offer_it(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as connection:
        assert connection.subprotocol is None
        assert (await ask(connection, PING))["payload"] == {"message": "pong"}
    async with door.dial(SUBPROTOCOL, bearer=door.ticket()) as connection:
        assert connection.subprotocol == SUBPROTOCOL


async def test_the_scheme_of_a_bearer_is_read_in_any_case(door: Hosted) -> None:
    async with door.dial(headers=[("authorization", f"bearer  {door.ticket()}")]):
        pass


async def test_nothing_is_compressed(door: Hosted) -> None:
    async with connect(
        door.url, additional_headers=[("Authorization", f"Bearer {door.ticket()}")], compression="deflate", proxy=None
    ) as connection:
        assert connection.protocol.extensions == []


async def test_what_is_refused_and_how(door: Hosted) -> None:
    good = f"ticket#{door.ticket()}"
    refused = [
        (door.dial(), (400, "missing_protocol")),
        (door.dial(good), (400, "invalid_protocol")),
        (door.dial(headers=[("Authorization", "Basic Ym9iOmJvYg==")]), (400, "missing_protocol")),
        (door.dial(OTHER), (400, "invalid_protocol")),
        (door.dial(good, bearer=door.ticket()), (400, "invalid_protocol")),
        (door.dial(OTHER, good), (400, "invalid_protocol")),
        (door.dial(OTHER, bearer=door.ticket()), (400, "invalid_protocol")),
        (door.dial(SUBPROTOCOL.upper(), good), (400, "invalid_protocol")),
        (door.dial(SUBPROTOCOL), (401, "missing_ticket")),
        (door.dial(SUBPROTOCOL, "ticket#"), (401, "missing_ticket")),
        (door.dial(SUBPROTOCOL, headers=[("Authorization", "Bearer ")]), (401, "missing_ticket")),
        (door.dial(SUBPROTOCOL, "ticket#nonsense"), (401, "invalid_ticket")),
        (door.dial(SUBPROTOCOL, good, f"ticket#{door.ticket()}"), (401, "invalid_ticket")),
        (door.dial(SUBPROTOCOL, good, bearer=door.ticket()), (401, "invalid_ticket")),
        (door.dial(bearer="nonsense"), (401, "invalid_ticket")),
        (door.dial(SUBPROTOCOL, good, origin="https://elsewhere.example.org"), (403, "origin")),
        (door.dial(origin="https://elsewhere.example.org"), (403, "origin")),
        (door.dial(SUBPROTOCOL, good, url=door.url + "s"), (404, "not_found")),
        (door.dial(SUBPROTOCOL, good, url=door.url.removesuffix("/signaling")), (404, "not_found")),
    ]
    for connecting, expected in refused:
        assert await door.refusal(connecting) == expected
    # None of these has used it up.
    assert await door.refusal(door.dial(SUBPROTOCOL, good)) == (101, "connected")


def test_every_refusal_has_its_status_and_its_words() -> None:
    assert MESSAGES.keys() == STATUS.keys() == set(get_args(RefusalCode))


@pytest.mark.parametrize(
    ("offers", "status", "body"),
    [
        (
            [],
            400,
            {
                "error": "missing_protocol",
                "code": "missing_protocol",
                "message": "Offer the subprotocol opentalk-signaling-json-v1.0, and a ticket.",
            },
        ),
        (
            ["ticket#nonsense"],
            400,
            {
                "error": "invalid_protocol",
                "code": "invalid_protocol",
                "message": "None of the subprotocols offered is opentalk-signaling-json-v1.0.",
            },
        ),
        (
            [SUBPROTOCOL, "ticket#nonsense"],
            401,
            {
                "error": "invalid_ticket",
                "code": "invalid_ticket",
                "message": "The ticket lets nobody in: it is not valid, or was used before.",
            },
        ),
    ],
)
async def test_a_refusal_says_it_for_programs_and_for_people(
    door: Hosted, offers: list[str], status: int, body: dict[str, str]
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with door.dial(*offers):
            pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body) == body


async def test_a_ticket_works_once(door: Hosted) -> None:
    ticket = door.ticket()
    async with door.dial(SUBPROTOCOL, f"ticket#{ticket}"):
        assert await door.refusal(door.dial(SUBPROTOCOL, f"ticket#{ticket}")) == (401, "invalid_ticket")
        assert await door.refusal(door.dial(bearer=ticket)) == (401, "invalid_ticket")


async def test_a_ticket_works_once_whatever_is_restarted(tmp_path: Path) -> None:
    path = tmp_path / "meetings.sqlite"
    async with hosted(store=SQLiteStore(path)) as door:
        ticket, other = door.ticket(), door.ticket()
        assert await door.refusal(door.dial(bearer=ticket)) == (101, "connected")
    async with hosted(store=SQLiteStore(path)) as door:
        assert await door.refusal(door.dial(bearer=ticket)) == (401, "invalid_ticket")
        assert await door.refusal(door.dial(bearer=other)) == (101, "connected")


async def test_a_ticket_works_once_whichever_server_it_is_shown_to() -> None:
    store = MemoryStore()
    async with hosted(store=store) as door, hosted(store=store) as another:
        ticket = door.ticket()
        dialled = [each.refusal(each.dial(bearer=ticket)) for _ in range(3) for each in (door, another)]
        answers = await asyncio.gather(*dialled)
    assert sorted(answers) == [(101, "connected"), *[(401, "invalid_ticket")] * 5]


async def test_nobody_gets_in_while_the_store_cannot_say_who_was_first(
    door: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> bool:
        raise StoreError("the disk is full")

    used, unused = door.ticket(), door.ticket()
    assert await door.refusal(door.dial(bearer=used)) == (101, "connected")
    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logged:
        patched.setattr(MemoryStore, "keep_once", fail)
        for ticket in (used, unused):
            assert await door.refusal(door.dial(bearer=ticket)) == (503, "unavailable")
    assert [line["error"] for line in logged if line["event"] == "store_failed"] == ["the disk is full"] * 2
    assert await door.refusal(door.dial(bearer=used)) == (401, "invalid_ticket")
    assert await door.refusal(door.dial(bearer=unused)) == (101, "connected")


async def test_who_comes_while_the_server_stops_may_come_elsewhere_with_the_same_ticket(
    door: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = door.ticket()
    with monkeypatch.context() as patched:
        patched.setattr(Server, "is_serving", lambda _server: False)
        assert await door.refusal(door.dial(bearer=ticket)) == (503, "unavailable")
    assert await door.refusal(door.dial(bearer=ticket)) == (101, "connected")


async def test_of_two_who_come_at_once_with_a_ticket_one_gets_in(door: Hosted) -> None:
    ticket = door.ticket()
    answers = await asyncio.gather(*(door.refusal(door.dial(bearer=ticket)) for _ in range(5)))
    assert sorted(answers) == [(101, "connected"), *[(401, "invalid_ticket")] * 4]


async def test_a_request_that_is_no_websocket_leaves_the_ticket_as_it_is(door: Hosted) -> None:
    ticket = door.ticket()
    async with (
        aiohttp.ClientSession() as http,
        http.get(
            door.url.replace("ws://", "http://"),
            headers={"Sec-WebSocket-Protocol": f"{SUBPROTOCOL}, ticket#{ticket}"},
        ) as response,
    ):
        assert response.status == 426
        assert ticket not in await response.text()
    await until(lambda: not door.server._websocket._handshake._verified)
    assert await door.refusal(door.dial(bearer=ticket)) == (101, "connected")


async def test_neither_answers_nor_logs_repeat_a_ticket(door: Hosted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ticket = door.ticket()
    malformed = [f"{SUBPROTOCOL}, ticket#{ticket}, (", f"{SUBPROTOCOL} ticket#{ticket}"]
    with structlog.testing.capture_logs() as logged:
        for value in malformed:
            with pytest.raises(InvalidStatus) as refused:
                async with connect(
                    door.url, additional_headers=[("Sec-WebSocket-Protocol", value)], compression=None, proxy=None
                ):
                    pass
            assert refused.value.response.status_code == 400
            assert json.loads(refused.value.response.body)["error"] == "invalid_protocol"
            assert ticket.encode() not in refused.value.response.body
        async with door.dial(SUBPROTOCOL, f"ticket#{ticket}"):
            pass
        await door.refusal(door.dial(SUBPROTOCOL, f"ticket#{ticket}"))
    ours = [record for record in caplog.records if not record.name.startswith("websockets.client")]
    assert ticket not in str(logged) + str([record.getMessage() for record in ours])
    used = {"event": "connection_refused", "error": "invalid_ticket", "reason": "was used before: jti"}
    assert any(used.items() <= line.items() for line in logged)


async def test_origins_that_are_set_are_the_only_ones() -> None:
    async with hosted(moderation_allowed_origins="https://meet.example.org, http://localhost:3000") as door:
        for origin in ("https://meet.example.org", "http://localhost:3000"):
            assert await door.refusal(door.dial(bearer=door.ticket(), origin=origin)) == (101, "connected")
        for origin in ("http://meet.example.org", "https://meet.example.org:8443", "http://127.0.0.1:3000", "null"):
            assert await door.refusal(door.dial(bearer=door.ticket(), origin=origin)) == (403, "origin")
        assert await door.refusal(door.dial(bearer=door.ticket())) == (101, "connected")


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1", "http://127.0.0.1:3000", True),
        ("127.0.0.1", "http://localhost", True),
        ("127.0.0.1", "https://[::1]:8443", True),
        ("localhost", "http://127.0.0.1", True),
        ("::1", "http://LOCALHOST:1", True),
        ("127.0.0.1", "http://127.0.0.2", False),
        ("127.0.0.1", "http://localhost.example.org", False),
        ("127.0.0.1", "null", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "file://localhost", False),
        ("127.0.0.1", "http://localhost:port", False),
        ("127.0.0.1", "http://[", False),
        ("Meet.example.org", "https://meet.example.org:444", True),
        ("meet.example.org", "http://localhost", False),
        ("0.0.0.0", "http://localhost", False),  # noqa: S104 - which host that is, only the setting can say
    ],
)
def test_without_a_setting_a_page_of_the_listening_host_may_connect_whatever_its_port(
    host: str, origin: str, *, allowed: bool
) -> None:
    assert Origins(None, HostPort(host, 8700).host).allow([origin]) is allowed


@pytest.mark.parametrize("shell", ["capacitor://localhost", "app://x", "tauri://localhost", "file://", "null"])
async def test_an_app_in_a_shell_may_connect_if_its_origin_is_set(shell: str) -> None:
    async with hosted(moderation_allowed_origins=f"https://meet.example.org,{shell}") as door:
        for origin in (shell, "https://meet.example.org"):
            assert await door.refusal(door.dial(bearer=door.ticket(), origin=origin)) == (101, "connected")
        for origin in (f"{shell}2", "http://localhost", "https://null", "app://localhost"):
            assert await door.refusal(door.dial(bearer=door.ticket(), origin=origin)) == (403, "origin")


def test_what_is_no_origin_of_the_web_is_compared_as_it_is_written() -> None:
    origins = Origins(frozenset({"app://Meet", "HTTPS://Meet.Example.org:443"}), "localhost")
    assert origins.allow(["app://Meet"])
    assert not origins.allow(["app://meet"])
    assert origins.allow(["https://meet.example.org"])


@pytest.mark.parametrize("origin", ["https://anywhere.example.org", "null", "app://x", "http://["])
def test_all_origins_may_be_allowed(origin: str) -> None:
    assert Origins(frozenset({"*"}), "localhost").allow([origin])


def test_two_origins_are_none() -> None:
    assert not Origins(None, "localhost").allow(["http://localhost", "http://localhost"])


async def test_a_connection_that_only_looks_right_is_no_moderator(door: Hosted) -> None:
    ticket = door.ticket("alice", Role.MODERATOR)
    head, claims, signature = ticket.split(".")
    assert await door.refusal(door.dial(bearer=f"{head}.{claims}.{signature[:-2]}AA")) == (401, "invalid_ticket")


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_who_sends_nonsense_before_they_are_let_in_is_dropped_without_a_word(
    door: Hosted, caplog: pytest.LogCaptureFixture, *, in_pieces: bool
) -> None:
    head = f"GET /signaling HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n".encode()
    url = urlsplit(door.url)
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        for piece in [head[:-2], head[-2:] + b"\xff\xff"] if in_pieces else [head + b"\xff\xff"]:
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert await door.refusal(door.dial(SUBPROTOCOL)) == (401, "missing_ticket")
    assert caplog.records == []

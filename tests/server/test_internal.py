import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from signaling import ModerationModule, Participant, Role, StoreError, metrics
from signaling.identifiers import ParticipantId
from signaling.livekit import availability
from signaling.livekit.embedded import EmbeddedServer
from signaling.server import ModerationServer, internal, make_ticket
from signaling.server.websocket import WebSocketServer
from signaling.settings import ServerSettings
from signaling.stores.contract import Kept
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore
from signaling.testing import SignalingClient, SignalOnlyParticipant
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.webhooks import sign_webhook
from tests.meeting_on_fake import until
from tests.server.hosting import FREE, ROOM, Hosted, hosted
from tests.server.keys import SECRET


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        yield session


@pytest.fixture
async def host_on_file(livekit: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Hosted]:
    async with hosted(livekit, store=SQLiteStore(tmp_path / "state" / "meetings.sqlite")) as running:
        yield running


async def get(http: aiohttp.ClientSession, host: Hosted, path: str) -> tuple[int, Mapping[str, Any]]:
    async with http.get(f"{host.server.internal_url}{path}") as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_healthz_says_that_the_process_answers(door: Hosted, http: aiohttp.ClientSession) -> None:
    assert await get(http, door, "/healthz") == (200, {"status": "ok"})


async def test_readyz_says_that_clients_may_come(host: Hosted, http: aiohttp.ClientSession) -> None:
    everything = {"status": "ready", "listening": True, "store": True, "livekit": True}
    assert await get(http, host, "/readyz") == (200, everything)


async def test_readyz_says_what_went_wrong_and_people_come_all_the_same(
    door: Hosted, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"rolled_back": {"meetings": 2, "at": 1_780_000_000.0}, "clock_differs_s": -61}
    monkeypatch.setattr(ModerationModule, "troubles", found)
    status, answer = await get(http, door, "/readyz")
    assert status == HTTPStatus.OK
    assert answer.items() >= found.items()


async def test_livekit_that_does_not_answer_is_no_reason_not_to_come(
    livekit: EmbeddedServer, http: aiohttp.ClientSession
) -> None:
    async with hosted(livekit, moderation_livekit_timeout_s=0.2) as host:
        livekit.pause()
        async with host.client("bob") as bob:
            await bob.join()
            status, answer = await get(http, host, "/readyz")
        livekit.resume()
    expected = {"status": "ready", "listening": True, "store": True, "livekit": False, "livekit_error": "unreachable"}
    assert (status, answer) == (200, expected)


async def test_a_store_that_fails_is_a_reason(
    door: Hosted, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_module: ModerationModule) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(ModerationModule, "check_store", fail)
    status, answer = await get(http, door, "/readyz")
    assert (status, answer["status"], answer["listening"], answer["store"]) == (503, "unavailable", True, False)


async def test_a_store_that_hangs_is_a_reason_too(
    door: Hosted, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_module: ModerationModule) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(ModerationModule, "check_store", hang)
    monkeypatch.setattr(internal, "_STORE_TIMEOUT_S", 0.01)
    status, answer = await get(http, door, "/readyz")
    assert (status, answer["store"]) == (503, False)


async def test_a_store_that_is_full_is_a_reason_until_there_is_room_again(
    host_on_file: Hosted, http: aiohttp.ClientSession
) -> None:
    store = host_on_file.module._store
    assert isinstance(store, SQLiteStore)

    async def allow_pages(number: int) -> None:
        await store._do(lambda database: database.execute(f"PRAGMA max_page_count = {number}").fetchone())

    async with host_on_file.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        await allow_pages(1)  # no more than there are
        everybody = [f"somebody-{number:0100}" for number in range(1_000)]
        result = await alice.command("enable_microphone_restrictions", unrestricted_participants=everybody)
        assert result["error"] == "unavailable"
        status, answer = await get(http, host_on_file, "/readyz")
        assert (status, answer["status"], answer["store"]) == (503, "unavailable", False)
        await allow_pages(100_000)
        status, answer = await get(http, host_on_file, "/readyz")
        assert (status, answer["store"]) == (200, True)
        result = await alice.command("enable_microphone_restrictions", unrestricted_participants=everybody)
        assert "error" not in result


async def test_a_store_whose_file_cannot_be_made_anew_is_a_reason(
    host_on_file: Hosted, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with host_on_file.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        shutil.rmtree(state)
        state.write_text("in the way")
        status, answer = await get(http, host_on_file, "/readyz")
        assert (status, answer["store"]) == (503, False)
        state.unlink()

        async def is_ready() -> bool:
            return (await get(http, host_on_file, "/readyz"))[0] == HTTPStatus.OK

        async with asyncio.timeout(10):
            while not await is_ready():  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.05)
    assert (state / "meetings.sqlite").exists()


async def test_who_does_not_listen_is_not_ready(door: Hosted, http: aiohttp.ClientSession) -> None:
    await door.server._websocket.close()
    status, answer = await get(http, door, "/readyz")
    assert (status, answer["status"], answer["listening"]) == (503, "unavailable", False)
    assert await get(http, door, "/healthz") == (200, {"status": "ok"})


async def test_metrics_are_for_prometheus(host: Hosted, http: aiohttp.ClientSession) -> None:
    async def value(name: str) -> float:
        async with http.get(f"{host.server.internal_url}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            lines = (await response.text()).splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        return float(line.split()[1])

    async with host.client("alice") as alice, host.client("bob") as bob:
        assert await value("moderation_connections") == 2
        await alice.join()
        await bob.join()
        assert await value("moderation_sessions") == 2
        assert await value("moderation_meetings") == 1
        assert await value("moderation_tasks") > 2
    await host.server._websocket.close()
    assert await value("moderation_connections") == 0


async def test_nothing_else_is_there(door: Hosted, http: aiohttp.ClientSession) -> None:
    for path in ("/", "/signaling", "/metrics/", "/v1/rooms/standup"):
        async with http.get(f"{door.server.internal_url}{path}") as response:
            assert response.status == 404
    async with http.post(f"{door.server.internal_url}/healthz", data=b"x") as response:
        assert response.status == 405


async def test_a_livekit_out_of_reach_is_told_from_the_start(door: Hosted, http: aiohttp.ClientSession) -> None:
    status, answer = await get(http, door, "/readyz")
    assert (status, answer["livekit"], answer["livekit_error"]) == (200, False, "unreachable")


@pytest.mark.parametrize("wrong", [{"livekit_api_key": "another"}, {"livekit_api_secret": "x" * 40}], ids=str)
async def test_a_wrong_key_pair_is_told_from_the_start(
    livekit: EmbeddedServer, http: aiohttp.ClientSession, wrong: dict[str, Any]
) -> None:
    with capture_logs() as logs:
        async with hosted(livekit, **wrong) as host:
            status, answer = await get(http, host, "/readyz")
    assert (status, answer["livekit"], answer["livekit_error"]) == (200, False, "unauthorized")
    (line,) = [line for line in logs if line["event"] == "media_server_refuses"]
    assert (line["log_level"], line["setting"]) == ("error", "LIVEKIT_API_KEY, LIVEKIT_API_SECRET")
    assert not any(secret in str(logs) for secret in (livekit.api_secret, *wrong.values(), "eyJ"))


async def test_something_else_in_the_place_of_livekit_is_told_from_the_start(http: aiohttp.ClientSession) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    server = TestServer(web.Application())
    server.app.router.add_route("*", "/{path:.*}", hello)
    async with server, hosted(livekit_url=str(server.make_url("/"))) as host:
        status, answer = await get(http, host, "/readyz")
    assert (status, answer["livekit"], answer["livekit_error"]) == (200, False, "unexpected_answer")


async def test_livekit_is_well_again_when_it_takes_calls(
    fake: FakeRoomService, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "_LONGEST_PAUSE_S", 0.01)
    with fake.refuse("unauthenticated"):
        async with AsyncExitStack() as entering:
            host = await entering.enter_async_context(hosted(fake))
            assert (await get(http, host, "/readyz"))[1]["livekit"] is False
            bob = await entering.enter_async_context(host.client("bob"))
            assert "livekit" not in await bob.join()
            entered = entering.pop_all()
    async with entered:
        await until(lambda: host.module.look_at_livekit() is None)
        everything = {"status": "ready", "listening": True, "store": True, "livekit": True}
        assert await get(http, host, "/readyz") == (200, everything)
        assert (await bob.command("create_new_access_token")).get("error") is None


@pytest.mark.parametrize(
    ("body", "is_signed", "answer"),
    [
        (b"{}", False, (401, {"error": "forged"})),
        (b"{", True, (400, {"error": "unparsable"})),
        (b'{"event":"room_finished","id":"EV_1","createdAt":"1"}', True, (401, {"error": "stale"})),
        (b" " * (internal.MAX_BODY_BYTES + 1), True, (413, {"error": "oversized"})),
    ],
)
async def test_a_webhook_that_is_none_is_refused_and_counted(
    livekit: EmbeddedServer,
    host: Hosted,
    http: aiohttp.ClientSession,
    body: bytes,
    is_signed: bool,  # noqa: FBT001 - a case
    answer: tuple[int, dict[str, str]],
) -> None:
    headers = {"Authorization": sign_webhook(body, livekit.api_key, livekit.api_secret)} if is_signed else {}
    refused = metrics.WEBHOOKS.labels(answer[1]["error"])
    before = refused._value.get()
    async with http.post(f"{host.server.internal_url}/livekit/webhook", data=body, headers=headers) as response:
        assert (response.status, await response.json()) == answer
    assert refused._value.get() == before + 1


async def test_a_webhook_that_comes_twice_counts_once(
    livekit: EmbeddedServer, host: Hosted, http: aiohttp.ClientSession
) -> None:
    event = {"event": "room_finished", "id": "EV_once", "createdAt": int(time.time()), "room": {"name": "standup"}}
    body = json.dumps(event).encode()
    headers = {"Authorization": sign_webhook(body, livekit.api_key, livekit.api_secret)}
    url = f"{host.server.internal_url}/livekit/webhook"
    answers = []
    for _ in range(2):
        async with http.post(url, data=body, headers=headers) as response:
            answers.append((response.status, await response.text()))
    assert answers == [(200, "{}"), (401, '{"error": "replayed"}')]


async def test_who_asks_while_the_module_stops_or_has_stopped_is_told_to_ask_again(
    livekit: EmbeddedServer, http: aiohttp.ClientSession
) -> None:
    body = json.dumps(
        {"event": "room_finished", "id": "EV_late", "createdAt": int(time.time()), "room": {"name": "standup"}}
    ).encode()
    signed = {"Authorization": sign_webhook(body, livekit.api_key, livekit.api_secret)}
    bearer = {"Authorization": "Bearer 16 characters or more"}
    store = MemoryStore()
    async with hosted(livekit, store=store, moderation_internal_token="16 characters or more") as host:
        webhook, meeting = (f"{host.server.internal_url}{path}" for path in ("/livekit/webhook", "/v1/rooms/standup"))
        with patch.object(WebSocketServer, "is_listening", new=True):  # as when they were let in
            await host.server._websocket.close()
            async with http.post(webhook, data=body, headers=signed) as response:
                assert (response.status, await response.json()) == (503, {"error": "unavailable"})
            await host.module.__aexit__(None, None, None)
            async with http.post(webhook, data=body, headers=signed) as response:
                assert (response.status, await response.json()) == (503, {"error": "unavailable"})
            async with http.get(meeting, headers=bearer) as response:
                assert (response.status, await response.json()) == (503, {"error": "unavailable"})
    assert await store.kept(Kept.WEBHOOK, now=1.0) == {}, "it counts where it is sent next"


async def test_the_embedded_livekit_reports_by_itself() -> None:
    before = accepted_webhooks()
    ticket = make_ticket(SECRET, "HS256", Participant(ParticipantId("bob")), ROOM)
    with capture_logs() as logs:
        async with (
            ModerationServer(ServerSettings(**FREE | {"moderation_sweep_s": 0.05})) as server,
            SignalingClient(server.signaling_url, ticket) as bob,
        ):
            token = (await bob.join())["livekit"]["token"]
            async with await SignalOnlyParticipant.connect(server.livekit_url, token):
                await until(lambda: accepted_webhooks() > before)
    assert "webhooks_missing" not in [line["event"] for line in logs]


def accepted_webhooks() -> float:
    return float(metrics.WEBHOOKS.labels("accepted")._value.get())

"""The controller API over real HTTP; every answer is held against its description."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import aiohttp
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from structlog.testing import capture_logs

from signaling import Kind, ModerationModule, NoSuchMeeting, NotInMeeting, ParticipantId, Role, RoomId, StoreError
from signaling.livekit.embedded import EmbeddedServer
from signaling.messages.base import Namespace
from signaling.server.controller_api import MAX_BODY_BYTES, ROUTES
from signaling.server.openapi import commands, openapi
from signaling.testing import ParticipantProcess, SignalingClient
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import until
from tests.server.hosting import ROOM, Hosted, hosted

TOKEN = "a token of more than sixteen characters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MODERATION = "livekit_moderation"
SCHEMAS = Path(__file__).parents[2] / "schemas"
DOCUMENT = openapi()
ABSOLUTE = json.loads(json.dumps(DOCUMENT).replace('"$ref": "#/', '"$ref": "urn:openapi#/'))
REGISTRY: Registry[Any] = Registry().with_resource("urn:openapi", DRAFT202012.create_resource(ABSOLUTE))
COMMAND = {"$ref": "urn:openapi#/components/schemas/CommandRequest"}
Answer = tuple[int, Any]


def objections(schema: dict[str, Any], instance: object) -> list[str]:
    """What a schema of the description has against an instance."""
    validator = Draft202012Validator(schema, registry=REGISTRY)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def operation(method: str, path: str) -> dict[str, Any]:
    """What the description says of a request."""
    _, *more = path.partition("?")[0].removeprefix("/v1/rooms/").split("/")
    if more[:1] == ["participants"]:
        more[1] = "{id}"
    found = ABSOLUTE["paths"]["/".join(["/v1/rooms/{room}", *more])]
    return cast("dict[str, Any]", found[method.lower()])


class Controller:
    """A controller, and the server that it uses."""

    def __init__(self, http: aiohttp.ClientSession, host: Hosted) -> None:
        self.http = http
        self.host = host

    async def ask(self, method: str, path: str = "", body: object = None, *, room: str = ROOM, **more: Any) -> Answer:  # noqa: ANN401 - as aiohttp takes it
        """A request about the meeting: status and answer, which are as described."""
        more = {"headers": BEARER, **({} if body is None else {"json": body}), **more}
        target = f"/v1/rooms/{room}{path}"
        async with self.http.request(method, f"{self.host.server.internal_url}{target}", **more) as response:
            text = await response.text()
        described = operation(method, target)
        answer = described["responses"][str(response.status)]
        if response.status == 204:
            assert text == ""
            return 204, None
        assert response.content_type == "application/json"
        assert objections(answer["content"]["application/json"]["schema"], json.loads(text)) == []
        if body is not None and response.status < 400:
            assert objections(described["requestBody"]["content"]["application/json"]["schema"], body) == []
        return response.status, json.loads(text)

    async def command(
        self, action: str, namespace: str = MODERATION, *, as_: str | None = None, **fields: object
    ) -> Answer:
        """A command, in the meeting."""
        body = {"namespace": namespace, "payload": {"action": action, **fields}}
        return await self.ask("POST", "/commands", body if as_ is None else {"as": as_, **body})

    async def join(self, name: str, role: Role = Role.USER, kind: Kind = Kind.USER) -> SignalingClient:
        """Somebody who joins over a WebSocket."""
        client = self.host.client(name, role, kind=kind)
        await client.__aenter__()
        await client.join()
        return client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        yield session


@pytest.fixture
async def controller(fake: FakeRoomService, http: aiohttp.ClientSession) -> AsyncIterator[Controller]:
    async with hosted(fake, moderation_internal_token=TOKEN) as host:
        yield Controller(http, host)


@pytest.fixture
async def alice(controller: Controller) -> AsyncIterator[SignalingClient]:
    client = await controller.join("alice", Role.MODERATOR)
    yield client
    await client.close()


@pytest.fixture
async def bob(controller: Controller, alice: SignalingClient) -> AsyncIterator[SignalingClient]:  # noqa: ARG001 - first
    client = await controller.join("bob")
    yield client
    await client.close()


def every_request() -> Iterator[tuple[str, str, Any]]:
    """A good request of each route, about Bob."""
    bodies: dict[str, Any] = {
        "change_role": {"role": "user"},
        "move": {"breakout": "red"},
        "command": {"namespace": MODERATION, "payload": {"action": "unrestrict", "source": "camera"}},
    }
    for route in ROUTES:
        path = route.path.replace("{id}", "bob").removeprefix("rooms/{room}")
        yield route.method, path, bodies.get(route.handler.__name__)


# --- Who may ask -------------------------------------------------------------------------------------------------


async def test_without_a_token_there_is_no_controller_api(door: Hosted, http: aiohttp.ClientSession) -> None:
    for method, path, body in every_request():
        assert await Controller(http, door).ask(method, path, body) == (404, {"error": "not_found"})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer ü"},
        {"Authorization": "Bearer"},
    ],
)
async def test_who_does_not_show_the_token_learns_nothing_and_changes_nothing(
    controller: Controller, bob: SignalingClient, headers: dict[str, str]
) -> None:
    for method, path, body in every_request():
        for room in (ROOM, "nowhere", "%20"):
            assert await controller.ask(method, path, body, room=room, headers=headers) == (
                401,
                {"error": "unauthorized"},
            )
    url = f"{controller.host.server.internal_url}/v1/elsewhere"
    async with controller.http.get(url, headers=headers) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    state = await controller.host.module.state(ROOM)
    assert [person.participant for person in state.participants] == ["alice", "bob"]
    assert bob.told("credentials") == []


async def test_the_name_of_the_scheme_is_written_in_any_case(controller: Controller, alice: SignalingClient) -> None:
    status, state = await controller.ask("GET", headers={"Authorization": f"bEARER {TOKEN}"})
    assert (status, state["participants"][0]["participant"]) == (200, "alice")
    assert alice.inbox


async def test_other_paths_and_methods_are_refused_in_the_same_form(controller: Controller) -> None:
    base = f"{controller.host.server.internal_url}/v1"
    for path in ("/rooms", "/rooms/", "/rooms/standup/", "/rooms/standup/participants", "/x"):
        async with controller.http.get(f"{base}{path}", headers=BEARER) as response:
            assert (response.status, await response.json()) == (404, {"error": "not_found"})
    async with controller.http.post(f"{base}/rooms/standup", headers=BEARER) as response:
        assert (response.status, await response.json()) == (405, {"error": "method_not_allowed"})
        assert response.headers["Allow"] == "DELETE,GET"


# --- What cannot be answered -------------------------------------------------------------------------------------


async def test_a_meeting_that_does_not_exist_is_not_begun_by_asking(controller: Controller) -> None:
    for method, path, body in every_request():
        assert await controller.ask(method, path, body) == (404, {"error": "unknown_room"})
    assert controller.host.module._entered.meetings._meetings == {}
    assert await controller.host.module._store.rooms() == ()


async def test_a_meeting_that_is_over_does_not_exist_though_livekit_still_has_its_rooms(
    fake: FakeRoomService, http: aiohttp.ClientSession
) -> None:
    async with hosted(fake, moderation_internal_token=TOKEN, moderation_livekit_timeout_s=0.2) as host:
        controller = Controller(http, host)
        bob = await controller.join("bob")
        with fake.hang(method="DeleteRoom"):
            assert await controller.ask("DELETE") == (204, None)
            assert await bob.closed() == 1000
            for method, path, body in every_request():
                assert await controller.ask(method, path, body) == (404, {"error": "unknown_room"})


WRONG_IDS = [
    ("standup%20", "bob", "room"),
    ("a%2Fb", "bob", "room"),
    ("a:b", "bob", "room"),
    ("a" * 128, "bob", "room"),
    (ROOM, "controller", "id"),
    (ROOM, "bob-popout1", "id"),
    (ROOM, "%C3%BC", "id"),
]


@pytest.mark.parametrize(("room", "participant", "field"), WRONG_IDS)
async def test_a_wrong_id_is_named(controller: Controller, room: str, participant: str, field: str) -> None:
    for method, path in (("PUT", "/role"), ("PUT", "/breakout"), ("DELETE", "")):
        if method == "DELETE" and field == "id":
            continue  # whoever is in LiveKit can be removed
        status, answer = await controller.ask(method, f"/participants/{participant}{path}", {}, room=room)
        assert (status, answer["error"]) == (400, "invalid_request")
        assert answer["detail"].startswith(f"{field}: ")


async def test_whoever_is_in_livekit_can_be_removed_by_any_name(
    controller: Controller, fake: FakeRoomService, alice: SignalingClient
) -> None:
    del alice  # it is enough that the meeting goes on
    for name in ("sip_+4930 #1", "studio/1", "ä%2F", "0B1F9F6E6A3C4B8E9C538D5F1F7F2A10"):
        fake.join(ROOM, name)
        status, result = await controller.ask("DELETE", f"/participants/{quote(name, safe='')}")
        assert (status, result["outcomes"]) == (200, [{"participant": name, "outcome": "removed"}])
        assert name not in fake.permissions(ROOM)
    too_long = (400, {"error": "invalid_request", "detail": "id: must be 1 to 256 characters"})
    assert await controller.ask("DELETE", f"/participants/{'x' * 257}") == too_long


async def test_an_id_that_reads_as_a_uuid_is_normalised(controller: Controller) -> None:
    written = "0B1F9F6E6A3C4B8E9C538D5F1F7F2A10"
    client = await controller.join("0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10")
    assert await controller.ask("PUT", f"/participants/{written}/role", {"role": "moderator"}) == (204, None)
    await client.wait_for("role_updated", namespace="control")
    await client.close()


JSON = {"Content-Type": "application/json"}
WRONG_BODIES: list[tuple[str, Any, int, str, str | None]] = [
    ("/participants/bob/role", {}, 400, "invalid_request", "role: is required"),
    ("/participants/bob/role", {"role": None}, 400, "invalid_request", None),
    ("/participants/bob/role", {"role": "admin"}, 400, "invalid_request", None),
    ("/participants/bob/role", {"role": "user", "x": 1}, 400, "invalid_request", "unknown field"),
    ("/participants/bob/role", b'{"role": "user", "role": "moderator"}', 400, "invalid_json", None),
    ("/participants/bob/role", b"", 400, "invalid_json", None),
    ("/participants/bob/role", b'"user"', 400, "invalid_json", "must be an object"),
    ("/participants/bob/role", b'{"role": "\xff"}', 400, "invalid_json", "must be UTF-8"),
    ("/participants/bob/role", b" " * (MAX_BODY_BYTES + 1), 413, "oversized", None),
    ("/participants/bob/breakout", {"breakout": "a b"}, 400, "invalid_request", None),
    ("/participants/bob/breakout", {"breakout": 1}, 400, "invalid_request", "breakout: must be a string"),
    ("/participants/bob/breakout", {"room": "red"}, 400, "invalid_request", "unknown field"),
    ("/commands", {}, 400, "invalid_request", "namespace: is required"),
    ("/commands", {"namespace": "echo", "payload": {"action": "ping"}}, 400, "invalid_request", None),
    ("/commands", {"namespace": "livekit", "payload": []}, 400, "invalid_request", "payload: must be an object"),
    ("/commands", {"namespace": "livekit", "payload": {}}, 400, "invalid_command", "payload.action: is required"),
    (
        "/commands",
        {"as": None, "namespace": "livekit", "payload": {}},
        400,
        "invalid_request",
        "as: must be left out, never null",
    ),
    (
        "/commands",
        {"as": "controller", "namespace": "livekit", "payload": {}},
        400,
        "invalid_request",
        "as: is reserved",
    ),
    (
        "/commands",
        {"namespace": "livekit", "payload": {"action": "force_mute"}},
        400,
        "invalid_command",
        "payload.participants: is required",
    ),
    (
        "/commands",
        {"namespace": MODERATION, "payload": {"action": "unrestrict", "source": "camera", "x": 1}},
        400,
        "invalid_command",
        "payload: unknown field",
    ),
    (
        "/commands",
        {"namespace": "control", "payload": {"action": "grant_moderator_role", "target": "dave"}},
        400,
        "invalid_command",
        "payload.target: is not in this meeting",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "detail"), WRONG_BODIES)
@pytest.mark.usefixtures("bob")
async def test_a_wrong_body_is_refused_and_not_repeated(
    controller: Controller, path: str, body: object, status: int, code: str, detail: str | None
) -> None:
    method = "POST" if path == "/commands" else "PUT"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused, answer = await controller.ask(method, path, data=io.BytesIO(data), headers={**BEARER, **JSON})
    assert (refused, answer["error"]) == (status, code)
    if detail is not None:
        assert answer["detail"] == detail


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json5", None])
async def test_a_body_that_is_not_said_to_be_json_is_refused(controller: Controller, kind: str | None) -> None:
    headers = BEARER if kind is None else {**BEARER, "Content-Type": kind}
    for method, path, body in every_request():
        if body is not None:
            skipped = ("Content-Type",) if kind is None else ()
            answer = await controller.ask(
                method, path, data=json.dumps(body).encode(), headers=headers, skip_auto_headers=skipped
            )
            assert (answer[0], answer[1]["error"]) == (415, "unsupported_media_type")


async def test_a_command_may_be_as_large_as_over_a_websocket(controller: Controller, bob: SignalingClient) -> None:
    people = sorted(f"{number:05}{'x' * 122}" for number in range(5_000))
    status, result = await controller.command("restrict", source="microphone", allowed=people)
    assert (status, result.get("error")) == (200, None)
    told = await bob.wait_for("microphone_restrictions_enabled")
    assert told.payload["unrestricted_participants"] == people


async def test_a_store_that_fails_is_unavailable_and_a_bug_is_logged_once(
    controller: Controller, bob: SignalingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, expected, event in (
        (StoreError("the disk is full"), (503, {"error": "unavailable"}), "store_failed"),
        (KeyError("a secret"), (500, {"error": "internal"}), "request_failed"),
    ):

        async def fail(*_: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(controller.host.module._store, "read", fail)
            for method, path, body in every_request():
                assert await controller.ask(method, path, body) == expected
        assert [line["event"] for line in logs] == [event] * len(ROUTES)
    assert bob.told("credentials") == []


async def test_a_server_that_does_not_listen_is_unavailable(controller: Controller) -> None:
    await controller.host.server._websocket.close()
    assert await controller.ask("GET") == (503, {"error": "unavailable"})


# --- The meeting -------------------------------------------------------------------------------------------------


async def test_the_state_is_what_a_moderator_sees(controller: Controller, alice: SignalingClient) -> None:
    await controller.command("restrict", source="camera", allowed=["bob"])
    status, state = await controller.ask("GET")
    await alice.send("get_state", namespace=MODERATION)
    assert (status, state) == (200, (await alice.wait_for("state", namespace=MODERATION)).payload)
    assert state["restrictions"] == [{"source": "camera", "allowed": ["bob"]}]


async def test_ending_the_meeting_closes_everybody_and_deletes_its_rooms(
    controller: Controller, fake: FakeRoomService, alice: SignalingClient, bob: SignalingClient
) -> None:
    assert list(fake.rooms) == [ROOM]
    assert await controller.ask("DELETE") == (204, None)
    assert (await alice.closed(), await bob.closed()) == (1000, 1000)
    assert list(fake.rooms) == []
    assert await controller.ask("DELETE") == (404, {"error": "unknown_room"})


# --- Participants ------------------------------------------------------------------------------------------------


async def test_a_role_is_given_and_taken_even_from_the_last_moderator(
    controller: Controller, alice: SignalingClient, bob: SignalingClient
) -> None:
    assert await controller.ask("PUT", "/participants/bob/role", {"role": "moderator"}) == (204, None)
    told = await bob.wait_for("role_updated", namespace="control")
    assert told.payload == {"message": "role_updated", "new_role": "moderator"}
    taken = await alice.wait_for("action_taken", namespace=MODERATION)
    assert (taken.payload["moderator"], taken.payload["action"]) == ("controller", "change_role")
    for name in ("bob", "alice", "alice"):  # once more changes nothing
        assert await controller.ask("PUT", f"/participants/{name}/role", {"role": "user"}) == (204, None)
    state = await controller.host.module.state(ROOM)
    assert {person.participant: person.role for person in state.participants} == {"alice": "user", "bob": "user"}


async def test_a_role_that_cannot_be_is_refused(controller: Controller, bob: SignalingClient) -> None:
    guest = await controller.join("guest", Role.GUEST, Kind.GUEST)
    status, answer = await controller.ask("PUT", "/participants/guest/role", {"role": "moderator"})
    assert (status, answer["error"]) == (409, "invalid_participant")
    answered = await controller.ask("PUT", "/participants/dave/role", {"role": "moderator"})
    assert answered == (404, {"error": "unknown_participant"})
    assert bob.told("role_updated", "control") == []
    await guest.close()


async def test_moving_to_a_breakout_and_back_gives_the_persons_connection_credentials(
    controller: Controller, bob: SignalingClient
) -> None:
    for body, room in (
        ({"breakout": "red"}, "standup:red"),
        ({"breakout": None}, "standup"),
        ({"breakout": "red"}, "standup:red"),
        ({}, "standup"),
    ):
        since = len(bob.inbox)
        assert await controller.ask("PUT", "/participants/bob/breakout", body) == (204, None)
        credentials = await bob.wait_for("credentials", since=since)
        assert credentials.payload["room"] == room
        assert credentials.transaction_id is None


def connected(controller: Controller, name: str) -> bool:
    newest = controller.host.module._entered.meetings[ROOM].journal.newest
    return newest is not None and newest.state.members[ParticipantId(name)].returns_until is None


@pytest.mark.usefixtures("alice")
async def test_somebody_whose_connection_is_broken_is_moved_too(controller: Controller, fake: FakeRoomService) -> None:
    bob = controller.host.client("bob")
    await bob.__aenter__()
    fake.join(ROOM, "bob", token=(await bob.join())["livekit"]["token"])
    await bob.close(1001)
    await until(lambda: not connected(controller, "bob"))
    assert await controller.ask("PUT", "/participants/bob/breakout", {"breakout": "red"}) == (204, None)
    assert fake.participants(ROOM) == ()
    record = await controller.host.module._store.read(ROOM)
    assert record is not None
    assert record.state.members[ParticipantId("bob")].breakout == "red"


@pytest.mark.usefixtures("bob")
async def test_nobody_else_can_be_moved(controller: Controller) -> None:
    answered = await controller.ask("PUT", "/participants/dave/breakout", {"breakout": "red"})
    assert answered == (404, {"error": "unknown_participant"})


async def test_whoever_is_kicked_is_told_by_the_controller_and_may_join_again(
    controller: Controller, bob: SignalingClient
) -> None:
    status, result = await controller.ask("DELETE", "/participants/bob")
    assert (status, result["action"]) == (200, "kick")
    assert result["outcomes"] == [{"participant": "bob", "outcome": "removed"}]
    assert await bob.closed() == 1000
    assert [frame.payload for frame in bob.inbox[-2:]] == [
        {"message": "kicked", "moderator": "controller"},
        {"message": "kicked"},
    ]
    again = await controller.join("bob")
    assert await controller.ask("DELETE", "/participants/dave") == (404, {"error": "unknown_participant"})
    await again.close()


# --- Commands ----------------------------------------------------------------------------------------------------


async def test_the_controller_commands_as_such(
    controller: Controller, alice: SignalingClient, bob: SignalingClient
) -> None:
    status, result = await controller.command("disallow", source="camera", participants=["alice", "bob", "dave"])
    assert (status, result["action"]) == (200, "disallow")
    assert {each["participant"]: each["outcome"] for each in result["outcomes"]} == {
        "alice": "revoked",
        "bob": "revoked",
        "dave": "unknown",
    }
    changed = await bob.wait_for("permissions_changed", namespace=MODERATION)
    assert changed.payload["moderator"] == "controller"
    taken = await alice.wait_for("action_taken", namespace=MODERATION)
    assert (taken.payload["moderator"], taken.payload["command_id"]) == ("controller", result["command_id"])
    status, undone = await controller.command("undo", command_id=result["command_id"])
    assert (status, undone.get("error")) == (200, None)


async def test_as_somebody_it_is_their_command_with_their_rights(
    controller: Controller, alice: SignalingClient, bob: SignalingClient
) -> None:
    for nobody in ("bob", "dave"):
        status, result = await controller.command("kick", as_=nobody, participants=["alice"])
        assert (status, result["error"], result["outcomes"]) == (200, "insufficient_permissions", [])
    status, result = await controller.command("raise_hand", "control", as_="bob")
    assert (status, result.get("error")) == (200, None)
    assert (await alice.wait_for("update", namespace="control")).payload["control"]["hand_is_up"] is True
    await controller.command("disallow", as_="alice", source="camera", participants=["bob"])
    told = await bob.wait_for("permissions_changed", namespace=MODERATION)
    assert told.payload["moderator"] == "alice"
    status, result = await controller.command("kick", as_="alice", participants=["alice"])
    assert result["outcomes"] == [{"participant": "alice", "outcome": "exempt"}]
    status, result = await controller.command("revoke_moderator_role", "control", as_="alice", target="alice")
    assert (status, result["error"]) == (200, "insufficient_permissions"), "she is the last one"


@pytest.mark.usefixtures("bob")
async def test_a_request_to_unmute_by_the_controller_can_be_answered(
    controller: Controller, bob: SignalingClient
) -> None:
    await controller.command("restrict", source="microphone")
    await controller.command("ask_to_unmute", participants=["bob"])
    asked = (await bob.wait_for("unmute_requested", namespace=MODERATION)).payload
    assert asked["moderator"] == "controller"
    answer = {"request_id": asked["request_id"], "accept": True}
    assert (await controller.command("answer_unmute_request", **answer))[1]["error"] == "insufficient_permissions"
    assert (await bob.command("answer_unmute_request", namespace=MODERATION, **answer)).get("error") is None
    assert "microphone" in bob.told("permissions_changed", MODERATION)[-1]["may_publish"]


async def test_hands_are_lowered_by_the_controller_and_never_raised(
    controller: Controller, bob: SignalingClient
) -> None:
    await bob.send("raise_hand", namespace="control")
    await bob.wait_for("hand_raised", namespace="control")
    for _ in range(2):  # that it is down already is no error
        status, result = await controller.command("lower_hand", "control", target="bob")
        assert (status, result.get("error"), result["action"]) == (200, None, "lower_hand")
    await bob.send("ping", namespace="echo")
    await bob.wait_for("pong", namespace="echo")
    assert bob.told("hand_lowered", "control") == [{"message": "hand_lowered"}] * 2
    assert bob.told("update", "control") == []
    assert (await controller.command("raise_hand", "control"))[1]["error"] == "insufficient_permissions"
    assert (await controller.command("lower_hand", "control"))[1]["error"] == "insufficient_permissions"


@pytest.mark.usefixtures("bob")
async def test_a_preview_says_what_would_come_of_it(controller: Controller) -> None:
    previewed = {"action": "restrict", "source": "camera"}
    for who in (None, "alice"):
        status, result = await controller.command("preview", as_=who, command=previewed)
        assert (status, result["action"]) == (200, "restrict")
        assert {each["participant"] for each in result["outcomes"]} == {"alice", "bob"}
    assert (await controller.command("preview", as_="bob", command=previewed))[1]["error"] == "insufficient_permissions"
    assert (await controller.host.module.state(ROOM)).restrictions == ()


@pytest.mark.parametrize(
    ("namespace", "payload"),
    [
        (MODERATION, {"action": "get_state"}),
        (MODERATION, {"action": "watch", "enabled": True}),
        (MODERATION, {"action": "get_audit", "limit": 1}),
        ("livekit", {"action": "create_new_access_token"}),
        ("livekit", {"action": "request_popout_stream_access_token"}),
        ("control", {"action": "join"}),
    ],
)
@pytest.mark.parametrize("as_", [{}, {"as": "alice"}])
@pytest.mark.usefixtures("alice")
async def test_what_only_a_session_can_answer_is_no_command_here(
    controller: Controller, namespace: str, payload: dict[str, Any], as_: dict[str, str]
) -> None:
    body = {**as_, "namespace": namespace, "payload": payload}
    status, answer = await controller.ask("POST", "/commands", body)
    assert (status, answer["error"]) == (400, "invalid_command")
    assert answer["detail"] == f"payload.action: {payload['action']} is for sessions only"
    assert objections(COMMAND, body)


def examples() -> Iterator[tuple[Namespace, dict[str, Any]]]:
    """Of each command that needs no session, as the schemas show it."""
    for namespace, kind in commands():
        file = SCHEMAS / namespace / f"{kind.model_fields['action'].default}.command.json"
        for example in json.loads(file.read_text())["examples"]:
            yield namespace, example


@pytest.mark.parametrize(("namespace", "payload"), [*examples()])
def test_the_description_accepts_the_examples_of_every_command(namespace: Namespace, payload: dict[str, Any]) -> None:
    for as_ in ({}, {"as": "alice"}):
        body = {**as_, "namespace": namespace.value, "payload": payload}
        assert objections(COMMAND, body) == []
    elsewhere = {"namespace": "control" if namespace is Namespace.LIVEKIT else "livekit", "payload": payload}
    assert objections(COMMAND, elsewhere)


@pytest.mark.parametrize(("namespace", "payload"), [*examples()])
@pytest.mark.usefixtures("alice")
async def test_the_controller_may_do_what_moderators_may(
    controller: Controller, namespace: Namespace, payload: dict[str, Any]
) -> None:
    status, answer = await controller.ask("POST", "/commands", {"namespace": namespace.value, "payload": payload})
    is_personal = payload["action"] in {"raise_hand", "answer_unmute_request"} or payload == {"action": "lower_hand"}
    assert (answer.get("error") == "insufficient_permissions") is is_personal
    assert status == 200 or answer["detail"].endswith("is not in this meeting")


# --- The audit ---------------------------------------------------------------------------------------------------


async def test_the_audit_is_read_in_parts_newest_first(controller: Controller, alice: SignalingClient) -> None:
    done = [(await controller.command("restrict", source="camera"))[1]["command_id"] for _ in range(3)]
    await alice.command("unrestrict", namespace=MODERATION, source="camera")
    status, audit = await controller.ask("GET", "/audit")
    assert status == 200
    assert [entry["moderator"] for entry in audit["entries"]] == ["alice", "controller", "controller", "controller"]
    assert [entry["command_id"] for entry in audit["entries"][1:]] == done[::-1]
    _, part = await controller.ask("GET", f"/audit?limit=1&before={done[1]}")
    assert part["entries"] == audit["entries"][-1:]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=1.0", "limit=", "limit=-1", "limit=1&limit=2", "before=", "x=1"]
)
@pytest.mark.usefixtures("alice")
async def test_a_wrong_parameter_is_refused(controller: Controller, query: str) -> None:
    status, answer = await controller.ask("GET", f"/audit?{query}")
    assert (status, answer["error"]) == (400, "invalid_request")


# --- The description ---------------------------------------------------------------------------------------------


async def test_the_description_is_public_and_names_every_route(door: Hosted, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{door.server.internal_url}/openapi.json") as response:
        assert response.content_type == "application/json"
        document = await response.json()
    assert document == DOCUMENT
    assert document["openapi"].startswith("3.1.")
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    routes = door.server._internal._api.application().router.routes()
    assert described == {(route.method, f"/v1{route.resource.canonical}") for route in routes if route.resource}
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names) == len(ROUTES)


def parts(document: object) -> Iterator[dict[str, Any]]:
    if isinstance(document, list):
        for part in document:
            yield from parts(part)
    elif isinstance(document, dict):
        yield document
        for part in document.values():
            yield from parts(part)


def test_every_schema_is_one_and_every_reference_resolves() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    referred = {part["$ref"] for part in parts(DOCUMENT) if isinstance(part.get("$ref"), str)}
    assert referred == {f"#/components/schemas/{name}" for name in schemas}, "each is used, and none is missing"


def test_every_parameter_of_a_path_is_described() -> None:
    for path, item in DOCUMENT["paths"].items():
        for described in item.values():
            in_path = [each["name"] for each in described["parameters"] if each["in"] == "path"]
            assert in_path == [part.strip("{}") for part in path.split("/") if part.startswith("{")]
            for each in described["parameters"]:
                Draft202012Validator.check_schema(each["schema"])
            assert described["summary"]
            assert {"400", "401", "404", "500", "503"} < set(described["responses"])


# --- For hosts ---------------------------------------------------------------------------------------------------


async def test_the_module_raises_what_the_routes_answer(controller: Controller, bob: SignalingClient) -> None:
    module: ModerationModule = controller.host.module
    nobody, nowhere = ParticipantId("dave"), RoomId("nowhere")
    for failing in (module.change_role(ROOM, nobody, Role.USER), module.move(ROOM, nobody, None)):
        with pytest.raises(NotInMeeting, match="dave"):
            await failing
    for missing in (
        module.state(nowhere),
        module.command(nowhere, "livekit", {}),
        module.change_role(nowhere, nobody, Role.USER),
        module.move(nowhere, nobody, None),
    ):
        with pytest.raises(NoSuchMeeting, match="nowhere"):
            await missing
    with pytest.raises(ValueError, match="echo"):
        await module.command(ROOM, "echo", {"action": "ping"})
    assert bob.told("role_updated", "control") == []


async def test_a_command_whose_turn_comes_after_the_meeting_has_ended_is_refused(
    controller: Controller, bob: SignalingClient
) -> None:
    module = controller.host.module
    async with module._store.turn(ROOM):
        waiting = asyncio.create_task(module.command(ROOM, MODERATION, {"action": "restrict", "source": "camera"}))
        meeting = module._entered.meetings[ROOM]
        await until(lambda: meeting.turns._waiting.total() == 1)
        await module.close_room(ROOM)
        assert await bob.closed() == 1000
    with pytest.raises(NoSuchMeeting):
        await waiting
    record = await module._store.read(ROOM)
    assert record is None or record.state.restricted == frozenset()


# --- A real meeting ----------------------------------------------------------------------------------------------


async def test_a_command_over_http_silences_a_real_participant(
    livekit: EmbeddedServer, http: aiohttp.ClientSession
) -> None:
    async with hosted(livekit, moderation_internal_token=TOKEN) as host, ParticipantProcess() as process:
        controller = Controller(http, host)
        async with host.client("bob") as bob, host.client("listener", kind=Kind.RECORDER) as recorder:
            token = (await bob.join())["livekit"]["token"]
            await process.connect(livekit.url, token, publish_tone_hz=440)
            listening = (await recorder.join())["livekit"]["token"]
            listener = await process.connect(livekit.url, listening, listens=True)
            await listener.heard("bob")
            status, refused = await controller.command("force_mute", "livekit", as_="bob", participants=["bob"])
            assert (status, refused["error"]) == (200, "insufficient_permissions")
            await listener.heard("bob", since=time.monotonic())
            asked_at = time.monotonic()
            status, result = await controller.command("force_mute", "livekit", participants=["bob"])
            assert (status, result["outcomes"]) == (200, [{"participant": "bob", "outcome": "muted"}])
            assert await listener.silent("bob") >= asked_at
            told = await bob.wait_for("force_muted")
            assert told.payload == {"message": "force_muted", "moderator": "controller"}
            _, state = await controller.ask("GET")
            (person,) = [each for each in state["participants"] if each["participant"] == "bob"]
            assert (person["in_livekit"], len(person["publishing"])) == (True, 1)

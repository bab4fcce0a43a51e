"""OpenTalk's web app against the real server, in its order: what it sends, reads unguarded, and hangs up on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from signaling import Role
from signaling.livekit.embedded import EmbeddedServer
from signaling.testing.client import SUBPROTOCOL
from tests.server.hosting import ROOM, Hosted, hosted

PONG_WITHIN_S = 10
"""After so long without an answer the app hangs up."""
HANGS_UP_ON = {("moderation", "kicked"), ("moderation", "banned"), ("control", "room_deleted")}
COMES_BACK_AFTER = {1001, 1006, 1012, 1013}


class WebApp:
    """
    What the app keeps of a meeting, filled as the app does it: a member that is missing is an error, not a default.

    Attributes:
        stage: `connecting`, `conference`, `left` when it has hung up, `lost` when it is to come back.
        people: Everybody else who is present, by id.
    """

    def __init__(self, name: str, connection: ClientConnection) -> None:
        self.name = name
        self.stage = "connecting"
        self.id = self.role = self.display_name = ""
        self.hand_is_up = False
        self.people: dict[str, dict[str, Any]] = {}
        self.livekit: dict[str, Any] = {}
        self.told: list[tuple[str, str]] = []
        self.pongs = 0
        self._connection = connection
        self._changed = asyncio.Condition()

    async def send(self, namespace: str, action: str, **fields: object) -> None:
        await self._connection.send(json.dumps({"namespace": namespace, "payload": {"action": action, **fields}}))

    async def ping(self) -> None:
        """As every 12 s."""
        answered = self.pongs
        async with asyncio.timeout(PONG_WITHIN_S):
            await self.send("echo", "ping")
            await self.until(lambda: self.pongs > answered)

    async def until(self, fact: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(fact)

    async def read(self) -> None:
        """Take whatever comes, until the app hangs up or the server closes."""
        try:
            async for text in self._connection:
                frame = json.loads(text)
                namespace, payload = frame["namespace"], frame["payload"]
                self.told.append((namespace, payload["message"]))
                self._take(namespace, payload)
                if (namespace, payload["message"]) in HANGS_UP_ON:
                    await self.hang_up()
                async with self._changed:
                    self._changed.notify_all()
        except ConnectionClosed:
            pass  # told by its code, below
        if self.stage != "left":
            self.stage = "lost" if self._connection.close_code in COMES_BACK_AFTER else "closed"
        async with self._changed:
            self._changed.notify_all()

    async def hang_up(self) -> None:
        """`close()` of a browser: a close without a code."""
        self.stage = "left"
        async with self._connection.send_context():
            self._connection.protocol.send_close()

    def _take(self, namespace: str, payload: dict[str, Any]) -> None:
        match namespace, payload["message"]:
            case "echo", "pong":
                self.pongs += 1
            case "control", "join_success":
                self._welcome(payload)
            case "control", "joined" | "update":
                self._show(payload)
            case "control", "left":
                del self.people[payload["id"]]
            case "control", "hand_raised":
                self.hand_is_up = True
            case "control", "hand_lowered":
                self.hand_is_up = False
            case "control", "role_updated":
                self.role = payload["new_role"]
            case "control", "moderator_role_granted":
                assert self.people[payload["target"]]
            case "control", "error":
                raise AssertionError(payload["error"])
            case _:
                pass  # read by parts of the app that are not played here

    def _welcome(self, payload: dict[str, Any]) -> None:
        self.id, self.role, self.display_name = payload["id"], payload["role"], payload["display_name"]
        self.hand_is_up = payload["hand_is_up"]
        self.people = {}
        for person in payload["participants"]:
            self._show(person)
        chat, tariff, room = payload["chat"], payload["tariff"], payload["room_info"]
        assert [message["content"] for message in chat["room_history"]["messages"]] == []
        assert [group["name"] for group in chat["groups_history"]] == []
        assert [talk["history"] for talk in chat["private_history"]] == []
        assert {**chat["last_seen_timestamps_private"], **chat["last_seen_timestamps_group"]} == {}
        assert chat["last_seen_timestamp_global"] is None
        assert list(tariff["modules"].values()) == []
        assert tariff["quotas"].items() >= set()
        assert (tariff["id"], tariff["name"], room["id"]) != ("", "", "")
        assert isinstance(room["created_by"]["display_name"] + room["created_by"]["avatar_url"], str)
        self.livekit = payload["livekit"]
        assert self.livekit["token"] == self.livekit["credentials"]["token"]
        self.stage = "conference"

    def _show(self, person: dict[str, Any]) -> None:
        """`left_at === null` is present; everything else, `undefined` too, has gone."""
        control = person["control"]
        if control["left_at"] is None:
            assert control["hand_updated_at"] >= control["joined_at"]
            self.people[person["id"]] = control
        else:
            self.people.pop(person["id"], None)


@asynccontextmanager
async def open_app(host: Hosted, name: str, role: Role = Role.USER) -> AsyncIterator[WebApp]:
    """The app in a browser, in the meeting."""
    async with (
        host.dial(SUBPROTOCOL, f"ticket#{host.ticket(name, role)}") as connection,
        asyncio.TaskGroup() as running,
    ):
        app = WebApp(name, connection)
        running.create_task(app.read())
        await app.send("control", "join", display_name=name.title())
        await app.until(lambda: app.stage == "conference")
        yield app
        if app.stage == "conference":
            await app.hang_up()


async def test_a_meeting_with_the_web_app(livekit: EmbeddedServer, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'meetings.sqlite'}"
    async with (
        hosted(livekit, moderation_store_url=store) as host,
        open_app(host, "alice", Role.MODERATOR) as alice,
        open_app(host, "bob") as bob,
    ):
        await alice.ping()
        await bob.ping()
        await alice.until(lambda: set(alice.people) == {"bob"})
        assert set(bob.people) == {"alice"}
        assert (bob.role, bob.display_name, bob.livekit["room"]) == ("user", "Bob", ROOM)

        # A hand goes up and down, twice each since the button was pressed twice, and down by the moderator.
        for _ in range(2):
            await bob.send("control", "raise_hand")
        await bob.until(lambda: bob.told.count(("control", "hand_raised")) == 2)
        assert bob.hand_is_up
        await alice.until(lambda: alice.people["bob"]["hand_is_up"])
        for _ in range(2):
            await bob.send("control", "lower_hand")
        await bob.until(lambda: bob.told.count(("control", "hand_lowered")) == 2)
        assert not bob.hand_is_up
        await bob.send("control", "raise_hand")
        await alice.until(lambda: alice.told.count(("control", "update")) == 3)
        await alice.send("control", "lower_hand", target="bob")
        await bob.until(lambda: not bob.hand_is_up)

        # A role is given and taken.
        await alice.send("control", "grant_moderator_role", target="bob")
        await bob.until(lambda: bob.role == "moderator")
        await alice.until(lambda: ("control", "moderator_role_granted") in alice.told)
        await alice.until(lambda: alice.people["bob"]["role"] == "moderator")
        await alice.send("control", "revoke_moderator_role", target="bob")
        await bob.until(lambda: bob.role == "user")
        await alice.until(lambda: ("control", "moderator_role_revoked") in alice.told)

        # Bob raises his hand, and the server is restarted.
        await bob.send("control", "raise_hand")
        await bob.until(lambda: bob.hand_is_up)
        await bob.ping()
        stopping = asyncio.create_task(host.server._websocket.close())
        await alice.until(lambda: alice.stage == "lost")
        await bob.until(lambda: bob.stage == "lost")
        await stopping

    async with (
        hosted(livekit, moderation_store_url=store) as host,
        open_app(host, "bob") as bob,
        open_app(host, "alice", Role.MODERATOR) as alice,
    ):
        assert bob.hand_is_up
        assert alice.people["bob"]["hand_is_up"]
        await bob.until(lambda: set(bob.people) == {"alice"})

        # Whoever hangs up has left at once.
        async with open_app(host, "carol") as carol:
            await alice.until(lambda: "carol" in alice.people)
            assert set(carol.people) == {"alice", "bob"}
        await alice.until(lambda: "carol" not in alice.people)

        # Bob has to go.
        await host.module.command(ROOM, "livekit_moderation", {"action": "kick", "participants": ["bob"]})
        await bob.until(lambda: bob.stage == "left")
        assert bob.told[-1] == ("moderation", "kicked")
        await alice.until(lambda: alice.people == {})

        # The meeting is over.
        await host.module.close_room(ROOM)
        await alice.until(lambda: alice.stage == "left")
        assert alice.told[-1] == ("control", "room_deleted")


@pytest.mark.parametrize(("ban", "word"), [(False, "kicked"), (True, "banned")])
async def test_the_app_hangs_up_when_it_has_to_go(host: Hosted, word: str, *, ban: bool) -> None:
    async with open_app(host, "alice", Role.MODERATOR) as alice, open_app(host, "bob") as bob:
        await alice.until(lambda: "bob" in alice.people)
        payload = {"action": "kick", "participants": ["bob"], "ban": ban}
        await host.module.command(ROOM, "livekit_moderation", payload)
        await bob.until(lambda: bob.stage == "left")
        assert bob.told[-1] == ("moderation", word)
        await alice.until(lambda: alice.people == {})


async def test_the_app_hangs_up_at_the_end_of_the_meeting(host: Hosted) -> None:
    async with open_app(host, "alice", Role.MODERATOR) as alice, open_app(host, "bob") as bob:
        await host.module.close_room(ROOM)
        await alice.until(lambda: alice.stage == "left")
        await bob.until(lambda: bob.stage == "left")
        assert alice.told[-1] == bob.told[-1] == ("control", "room_deleted")


async def test_the_app_is_in_the_conference_without_livekit(door: Hosted) -> None:
    async with door.dial(SUBPROTOCOL, f"ticket#{door.ticket()}") as connection:
        await connection.send(
            json.dumps({"namespace": "control", "payload": {"action": "join", "display_name": "Bob"}})
        )
        welcome = json.loads(await connection.recv())["payload"]
        assert welcome["chat"]["room_history"]["messages"] == []
        assert welcome["tariff"]["modules"] == {}
        assert "livekit" not in welcome

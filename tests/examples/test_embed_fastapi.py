import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from signaling.testing.participants import ParticipantProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
GRACE_S = 2


class Tab:
    """A browser's tab: one WebSocket, whose events are read when they are asked for."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, namespace: str, action: str, transaction_id: object = None, **fields: object) -> None:
        frame = {"namespace": namespace, "payload": {"action": action, **fields}, "transaction_id": transaction_id}
        await self.connection.send(json.dumps(frame))

    async def told(self, message: str, **fields: object) -> dict[str, Any]:
        """Read on until this event comes, with these fields; its payload."""
        async with asyncio.timeout(10):
            while True:
                payload: dict[str, Any] = json.loads(await self.connection.recv())["payload"]
                if payload["message"] == message and fields.items() <= payload.items():
                    return payload

    async def answer(self, frame: str | bytes) -> dict[str, Any]:
        """Send a frame as it is; the next that comes."""
        await self.connection.send(frame)
        async with asyncio.timeout(10):
            answer: dict[str, Any] = json.loads(await self.connection.recv())
        return answer

    async def closed(self) -> tuple[int | None, str | None]:
        """Read until the server has closed: code and reason."""
        async with asyncio.timeout(10):
            async for _ in self.connection:
                pass
        return self.connection.close_code, self.connection.close_reason


class Browser:
    """Somebody's browser, which keeps a cookie."""

    def __init__(self, controller: "Running", login: dict[str, str], cookie: str) -> None:
        self.controller = controller
        self.id = login["id"]
        self.person = login
        self.cookie = cookie

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        async with connect(
            self.controller.url.replace("http", "ws") + "/signaling",
            additional_headers={"Cookie": self.cookie},
            compression=None,
        ) as connection:
            yield Tab(connection)


class Running:
    """The example under uvicorn, in a process of its own, with a media server of its own."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = http

    async def open_meeting(self) -> dict[str, str]:
        async with self.http.post(f"{self.url}/meetings") as response:
            assert response.status == 201
            opened: dict[str, str] = await response.json()
        return opened

    async def log_in(self, name: str, key: str) -> Browser:
        async with self.http.post(
            f"{self.url}/login", json={"key": key, "name": name, "role": "moderator"}
        ) as response:
            assert response.status == 200
            cookie = response.cookies["meeting_login"]
            assert (cookie["httponly"], cookie["samesite"]) == (True, "strict")
            return Browser(self, await response.json(), f"meeting_login={cookie.value}")


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Running]:
    """Python with these arguments, which are to run the example on a free port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=EXAMPLES,
        env=os.environ | {"MODERATION_DISCONNECT_GRACE_S": str(GRACE_S)},
    )
    assert process.stderr is not None
    log = b""
    try:
        async with asyncio.timeout(20):
            while (found := re.search(rb"running on (http://\S+)", log)) is None:
                line = await process.stderr.readline()
                assert line, log.decode()
                log += line
        async with aiohttp.ClientSession() as http:
            yield Running(found[1].decode(), http)
        process.terminate()
        async with asyncio.timeout(20):
            _, rest = await process.communicate()
        assert b"Traceback" not in log + rest, (log + rest).decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def controller() -> AsyncIterator[Running]:
    async with running("-m", "uvicorn", "--port", "0", "embed_fastapi:app") as example:
        yield example


@asynccontextmanager
async def alice_and_bob(controller: Running) -> AsyncIterator[tuple[Tab, Tab, dict[str, Any]]]:
    """A moderator and somebody whom she has accepted, in a meeting; what Bob was welcomed with."""
    opened = await controller.open_meeting()
    alice = await controller.log_in("Alice", opened["owner_key"])
    bob = await controller.log_in("Bob", opened["invitation"])
    async with alice.tab() as hers, bob.tab() as his:
        await hers.told("waiting_room", participants=[bob.person])
        await hers.send("lobby", "accept", participant=bob.id)
        yield hers, his, await his.told("join_success")


async def test_who_was_invited_waits_until_a_moderator_accepts(controller: Running) -> None:
    opened = await controller.open_meeting()
    alice = await controller.log_in("Alice", opened["owner_key"])
    bob = await controller.log_in("Bob", opened["invitation"])
    assert (alice.person["role"], bob.person["role"]) == ("moderator", "user")  # whatever they asked for
    async with alice.tab() as hers, bob.tab() as his:
        welcome = await hers.told("join_success", **alice.person, participants=[alice.person])
        assert welcome["livekit"]["microphone_restriction_state"] == {"type": "disabled"}
        await his.told("waiting", id=bob.id)
        await his.send("livekit", "create_new_access_token", transaction_id=1)
        await his.told("error", error="not_yet_joined")
        await hers.told("waiting_room", participants=[bob.person])

        await hers.send("lobby", "accept", participant=bob.id)
        await hers.told("waiting_room", participants=[])
        await hers.told("joined", **bob.person)
        await his.told("join_success", **bob.person, participants=[alice.person, bob.person])
        await his.send("lobby", "accept", participant=alice.id)
        await his.told("error", error="insufficient_permissions")
    async with bob.tab() as his:  # accepted once, accepted for the meeting
        await his.told("join_success")


async def test_who_has_joined_is_heard_until_muted(controller: Running) -> None:
    async with ParticipantProcess() as media, alice_and_bob(controller) as (hers, his, welcome):
        bob, livekit = welcome["id"], welcome["livekit"]
        await media.connect(livekit["public_url"], livekit["token"], publish_tone_hz=440)
        await hers.send("livekit", "create_new_access_token")
        credentials = await hers.told("credentials")
        listener = await media.connect(credentials["public_url"], credentials["token"], listens=True)
        await listener.heard(bob)
        await hers.send("livekit", "force_mute", transaction_id="mute", participants=[bob])
        assert (await hers.told("result"))["outcomes"] == [{"participant": bob, "outcome": "muted"}]
        await his.told("force_muted")
        await listener.silent(bob)


async def test_a_refused_one_does_not_come_in(controller: Running) -> None:
    opened = await controller.open_meeting()
    alice = await controller.log_in("Alice", opened["owner_key"])
    bob = await controller.log_in("Bob", opened["invitation"])
    async with alice.tab() as hers:
        async with bob.tab() as his:
            await hers.told("waiting_room", participants=[bob.person])
            await hers.send("lobby", "refuse", participant=bob.id)
            assert await his.closed() == (1000, "refused")
        async with bob.tab() as first, bob.tab() as second:
            await first.told("waiting")
            assert await first.closed() == (1000, "taken_over")
            await second.told("waiting")
        await hers.told("waiting_room", participants=[])
        await hers.send("lobby", "accept", transaction_id=5, participant=bob.id)
        await hers.told("error", error="not_waiting")


async def test_without_a_login_nobody_connects(controller: Running) -> None:
    opened = await controller.open_meeting()
    for key in ("", "guessed", opened["meeting"]):
        async with controller.http.post(f"{controller.url}/login", json={"key": key, "name": "Eve"}) as response:
            assert response.status == 401
            assert not response.cookies
    for cookie in ("", "meeting_login=", "meeting_login=guessed", f"meeting_login={opened['owner_key']}"):
        with pytest.raises(InvalidStatus, match="403"):
            async with Browser(controller, {"id": ""}, cookie).tab():
                pass


BAD_FRAMES: list[tuple[str | bytes, str, str, str]] = [
    ("{", "lobby", "invalid_json", "EOF"),
    (b"\x00", "lobby", "invalid_json", "EOF"),
    ("[]", "lobby", "invalid_frame", "object"),
    ('{"namespace": "echo", "payload": {}}', "lobby", "invalid_frame", "namespace: "),
    ('{"namespace": "lobby", "payload": []}', "lobby", "invalid_frame", "payload: "),
    ('{"namespace": "livekit", "payload": {}, "transaction_id": -1}', "lobby", "invalid_frame", "transaction_id: "),
    ('{"namespace": "lobby", "payload": {"action": "accept"}}', "lobby", "invalid_command", ""),
    ('{"namespace": "lobby", "payload": {"action": "accept", "participant": "x"}}', "lobby", "not_waiting", ""),
    ('{"namespace": "livekit", "payload": {"action": "dance"}}', "livekit", "invalid_command", "action: "),
]


async def test_bad_frames_are_answered_and_the_connection_survives(controller: Running) -> None:
    opened = await controller.open_meeting()
    async with (await controller.log_in("Alice", opened["owner_key"])).tab() as tab:
        await tab.told("waiting_room")
        for frame, namespace, error, detail in BAD_FRAMES:
            answer = await tab.answer(frame)
            assert (answer["namespace"], answer["payload"]["error"]) == (namespace, error)
            assert detail in answer["payload"].get("detail", "")
        await tab.send("livekit", "create_new_access_token")
        await tab.told("credentials")


async def ask_without_listening(tab: Tab) -> None:
    """Ask for a kilobyte again and again, until nothing more can be sent."""
    while True:
        for _ in range(100):
            await tab.send("livekit", "create_new_access_token")
        await asyncio.sleep(0)  # nothing of the above need have waited


async def test_who_does_not_read_is_cut_off() -> None:
    impatient = "import embed_fastapi as e, uvicorn; e.UNREAD_S = 0.2; uvicorn.run(e.app, port=0)"
    async with running("-c", impatient) as controller, alice_and_bob(controller) as (hers, his, welcome):
        his.connection.transport.pause_reading()
        asking = asyncio.create_task(ask_without_listening(his))
        await hers.told("left", id=welcome["id"])
        his.connection.transport.abort()
        with pytest.raises(ConnectionClosed):
            await asking


async def test_a_second_tab_takes_over(controller: Running) -> None:
    opened = await controller.open_meeting()
    alice = await controller.log_in("Alice", opened["owner_key"])
    async with alice.tab() as first:
        await first.told("join_success")
        async with alice.tab() as second:
            await second.told("join_success", id=alice.id)
            assert await first.closed() == (1000, "taken_over")
            await second.send("livekit", "create_new_access_token")
            await second.told("credentials")


async def test_closing_is_leaving_and_breaking_off_is_not(controller: Running) -> None:
    async with ParticipantProcess() as media, alice_and_bob(controller) as (hers, his, welcome):
        bob, livekit = welcome["id"], welcome["livekit"]
        speaker = await media.connect(livekit["public_url"], livekit["token"])
        broken_off_at = time.monotonic()
        his.connection.transport.abort()
        await hers.told("left", id=bob)
        removed = await speaker.wait_for("disconnected", since=broken_off_at)
        assert removed.at - broken_off_at >= GRACE_S

    async with ParticipantProcess() as media, alice_and_bob(controller) as (hers, his, welcome):
        livekit = welcome["livekit"]
        speaker = await media.connect(livekit["public_url"], livekit["token"])
        closed_at = time.monotonic()
        await his.connection.close(1000)
        await hers.told("left", id=welcome["id"])
        removed = await speaker.wait_for("disconnected", since=closed_at)
        assert removed.at - closed_at < GRACE_S


async def test_the_end_of_the_meeting_is_everybodys(controller: Running) -> None:
    opened = await controller.open_meeting()
    alice = await controller.log_in("Alice", opened["owner_key"])
    bob = await controller.log_in("Bob", opened["invitation"])
    async with alice.tab() as hers, bob.tab() as his:
        await his.told("waiting")
        await hers.told("join_success")
        await hers.send("lobby", "end_meeting")
        assert await hers.closed() == await his.closed() == (1000, "meeting_ended")
    with pytest.raises(InvalidStatus, match="403"):
        async with alice.tab():
            pass
    async with controller.http.post(
        f"{controller.url}/login", json={"key": opened["owner_key"], "name": "Alice"}
    ) as response:
        assert response.status == 401

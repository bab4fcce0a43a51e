import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import signaling
from signaling import Kind, Participant, Role
from signaling.cli import main
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import WAYS_OUT, require
from signaling.server import make_ticket
from signaling.stores.sqlite import SQLiteStore
from signaling.testing.client import SignalingClient, SignalingRefused
from tests.meeting_on_fake import until

SECRET = "a secret of at least thirty-two bytes"
NAMES = {"alice": "Alice Liddell", "bob": "Robert Tables", "eve": "Evelyn Listener"}
LIMIT_S = 20


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Settings of this process's environment, and no others."""
    for name in os.environ:
        if name.startswith(("MODERATION_", "LIVEKIT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def set_all(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    set_all(MODERATION_TICKET_KEY=SECRET, MODERATION_LISTEN="127.0.0.1:0", MODERATION_INTERNAL_LISTEN="127.0.0.1:0")
    return set_all


class Serving:
    """The command as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, ready: Mapping[str, Any]) -> None:
        self.process = process
        self.ready = ready

    def client(self, ticket: str) -> SignalingClient:
        return SignalingClient(self.ready["signaling"], ticket)

    async def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Ask it to end: its status, and what it wrote beyond the ready line."""
        self.process.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def serving(*arguments: str, stderr: int = subprocess.PIPE) -> AsyncIterator[Serving]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signaling", "serve", *arguments), stdout=subprocess.PIPE, stderr=stderr
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = await process.stdout.readline()
        assert line, (await process.communicate())[1].decode()
        yield Serving(process, json.loads(line))
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def ticket(name: str, role: Role = Role.USER, kind: Kind = Kind.USER) -> str:
    participant = Participant(ParticipantId(name), role, kind, display_name=NAMES[name])
    return make_ticket(SECRET, "HS256", participant, RoomId("standup"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_ready_line_has_all_addresses_and_a_signal_ends_it_with_0(
    environment: Callable[..., None], number: signal.Signals
) -> None:
    environment(MODERATION_STORE_URL="memory:")
    async with serving() as server, aiohttp.ClientSession() as http:
        assert server.ready.keys() == {"ready", "signaling", "internal", "livekit"}
        assert server.ready["ready"] is True
        async with http.get(f"{server.ready['internal']}/readyz") as response:
            assert response.status == 200
        async with server.client(ticket("alice")) as alice:
            assert (await alice.join())["livekit"]["public_url"] == server.ready["livekit"]
            status, out, err = await server.end(number)
            assert await alice.closed() == 1012
    assert (status, out) == (0, "")
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["participant_joined"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_used_ticket_lets_nobody_in_after_a_restart(
    environment: Callable[..., None], tmp_path: Path, number: signal.Signals
) -> None:
    environment(
        MODERATION_STORE_URL=f"sqlite:///{tmp_path}/meetings.sqlite",
        LIVEKIT_URL="ws://127.0.0.1:9",
        LIVEKIT_API_KEY="key",
        LIVEKIT_API_SECRET=SECRET,
    )
    used = ticket("alice", Role.MODERATOR)
    async with serving() as server, server.client(used):
        await server.end(number)
    async with serving() as server:
        with pytest.raises(SignalingRefused) as refused:
            async with server.client(used):
                pass
        assert refused.value.error == "invalid_ticket"


async def test_logs_hold_no_secrets_tokens_tickets_or_display_names(environment: Callable[..., None]) -> None:
    secrets = {SECRET, *NAMES.values()}
    async with EmbeddedServer(path=require(None)) as livekit:
        environment(
            MODERATION_LOG_LEVEL="debug",
            LIVEKIT_URL=livekit.url,
            LIVEKIT_API_KEY=livekit.api_key,
            LIVEKIT_API_SECRET=livekit.api_secret,
        )
        secrets.add(livekit.api_secret)
        async with serving() as server:
            tickets = {"alice": ticket("alice", Role.MODERATOR), "bob": ticket("bob")}
            tickets["eve"] = ticket("eve", kind=Kind.GUEST)
            secrets |= set(tickets.values())
            async with (
                server.client(tickets["alice"]) as alice,
                server.client(tickets["bob"]) as bob,
                server.client(tickets["eve"]) as eve,
            ):
                everybody = (alice, bob, eve)
                await alice.join()
                await bob.join(extensions=())
                await eve.join("A Guest of Honour")
                secrets.add("A Guest of Honour")
                await alice.command("enable_microphone_restrictions", unrestricted_participants=["eve"])
                await alice.command("force_mute", participants=["bob", "nobody"])
                await alice.command("grant_screen_share_permission", participants=["bob"])
                await eve.command("request_popout_stream_access_token")
                await alice.command("create_new_access_token")
                await bob.send("force_mute", participants=["alice"])
                await bob.send(NAMES["eve"], namespace="control", target=NAMES["bob"])
                await bob.connection.send(NAMES["eve"])
                await bob.wait_for("error", namespace="control")
                await bob.wait_for("error")
                livekit.kill()
                await alice.send("force_mute", participants=["bob"])
                await alice.send("no_such_command", transaction_id=NAMES["alice"])
                await alice.wait_for(
                    "result", namespace="livekit_moderation", where=lambda f: f.transaction_id == NAMES["alice"]
                )
                eve.connection.transport.abort()
                for client in everybody:
                    secrets |= {str(value) for frame in client.inbox for value in found(frame.payload, "token")}
                with pytest.raises(Exception, match="401"):
                    async with server.client(tickets["alice"]):
                        pass
                status, _, err = await server.end(signal.SIGTERM)
    assert status == 0
    events = {json.loads(line)["event"] for line in err.splitlines()}
    assert events >= {"participant_joined", "command_applied", "command_refused", "connection_refused"}
    assert len([secret for secret in secrets if secret.startswith("eyJ")]) >= 7
    assert [secret for secret in secrets if secret in err] == []


async def test_a_log_that_nobody_reads_holds_nothing_up(environment: Callable[..., None]) -> None:
    environment(MODERATION_STORE_URL="memory:")
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 1_024)
    os.set_blocking(writing, True)
    try:
        async with serving(stderr=writing) as server, aiohttp.ClientSession() as http, asyncio.timeout(LIMIT_S):
            async with http.get(server.ready["signaling"].replace("ws", "http", 1)) as response:
                assert response.status == 400
            async with http.get(f"{server.ready['internal']}/healthz") as response:
                assert response.status == 200
            server.process.send_signal(signal.SIGTERM)
            assert await server.process.wait() == 0
    finally:
        os.close(reading)
        os.close(writing)


def found(value: object, name: str) -> Iterator[object]:
    """Everything of this name, however deep."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key == name:
                yield below
            yield from found(below, name)


async def test_a_signal_ends_it_while_it_starts(environment: Callable[..., None], tmp_path: Path) -> None:
    began = tmp_path / "began"
    never_ready = tmp_path / "livekit-server"
    never_ready.write_text(
        f"#!/bin/sh\n[ \"$1\" = --version ] || {{ touch '{began}'; exec sleep 1000; }}\necho livekit-server version 1\n"
    )
    never_ready.chmod(0o755)
    environment(MODERATION_STORE_URL="memory:", LIVEKIT_SERVER_PATH=str(never_ready))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signaling", "serve"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        await until(began.exists)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_nothing_that_hangs_keeps_it_from_ending(environment: Callable[..., None]) -> None:
    environment(MODERATION_STORE_URL="memory:", MODERATION_LOG_FORMAT="json")
    hanging = """
import time
import signaling.cli.serve as serve
from signaling.server import ModerationServer

async def hang(*_):
    time.sleep(1000)

ModerationServer.__aexit__ = hang
serve.STOP_S = 0.1
serve._run(serve.argparse.Namespace(config=None))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", hanging), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            assert process.stdout is not None
            assert await process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0
    assert json.loads(err)["event"] == "stopped_unfinished"


async def test_a_file_may_hold_the_settings_and_the_environment_wins(
    environment: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment()
    monkeypatch.delenv("MODERATION_TICKET_KEY")
    monkeypatch.delenv("MODERATION_INTERNAL_LISTEN")
    config = tmp_path / "moderation.toml"
    config.write_text(
        f'moderation_ticket_key = "{SECRET}"\nmoderation_listen = "no.such.host.invalid:1"\n'
        'moderation_internal_listen = "localhost:0"\nmoderation_store_url = "memory:"\n'
    )
    async with serving("--config", str(config)) as server:
        assert server.ready["internal"].startswith("http://localhost:")
        async with server.client(ticket("bob")) as bob:
            await bob.join()


async def test_meetings_outlive_it_by_default(environment: Callable[..., None], tmp_path: Path) -> None:
    environment()
    async with serving() as server, server.client(ticket("alice", Role.MODERATOR)) as alice:
        await alice.join()
        await alice.command("enable_microphone_restrictions", unrestricted_participants=["bob"])
        await server.end(signal.SIGTERM)
    assert list(tmp_path.rglob("*.sqlite"))
    async with serving() as server, server.client(ticket("bob")) as bob:
        assert (await bob.join())["livekit"]["microphone_restriction_state"] == {
            "type": "enabled",
            "unrestricted_participants": ["bob"],
        }


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("MODERATION_TICKET_KEY", "too short", "must be a secret of 32 bytes or more"),
        ("MODERATION_TICKET_KEY", "", "must be set"),
        ("MODERATION_TICKET_ALGORITHM", "none", "'HS256', 'RS256', 'ES256' or 'EdDSA'"),
        ("MODERATION_LISTEN", "8700", "must be HOST:PORT"),
        ("MODERATION_ALLOWED_ORIGINS", "meet.example.org", "must be origins"),
        ("MODERATION_RATE_PER_S", "0", "greater than 0"),
        ("MODERATION_STORE_URL", "mysql://localhost", "not supported"),
        ("LIVEKIT_URL", "ws://127.0.0.1:7880", "must be set with the other two"),
        ("LIVEKIT_SERVER_PATH", "/dev/null", "not an executable file"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name(
    environment: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    setting: str,
    value: str,
    reason: str,
) -> None:
    environment(**{setting: value})
    assert main(["serve"]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    named = "LIVEKIT_API_KEY" if setting == "LIVEKIT_URL" else setting
    assert line.startswith(f"{named}: ")
    assert reason in line
    assert "too short" not in line


def test_a_port_that_is_taken_stops_the_start(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment(MODERATION_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}", MODERATION_STORE_URL="memory:")
        assert main(["serve"]) == 2
    assert capsys.readouterr().err.startswith("MODERATION_LISTEN: cannot listen on ")


def test_a_file_that_cannot_be_read_stops_the_start(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    environment()
    for text in (None, "moderation_ticket_key = \n", "no_such_setting = 1\n"):
        path = tmp_path / "moderation.toml"
        if text is not None:
            path.write_text(text)
        assert main(["serve", "--config", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("NO_SUCH_SETTING: " if text == "no_such_setting = 1\n" else f"--config {path}: ")


def test_without_a_media_server_the_ways_out_are_told(
    environment: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    environment(XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path))
    monkeypatch.delenv("LIVEKIT_SERVER_PATH", raising=False)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == f"{WAYS_OUT}\n"


def test_a_store_that_somebody_holds_stops_the_start(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "meetings.sqlite"
    environment(MODERATION_STORE_URL=f"sqlite:///{path}")
    store = SQLiteStore(path, audit_entries=10)
    with asyncio.Runner() as runner:
        runner.run(store.open())
        try:
            assert main(["serve"]) == 1
        finally:
            runner.run(store.close())
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"livekit-moderation {signaling.__version__}\n"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["play"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: livekit-moderation" in capsys.readouterr().err


def test_other_commands_do_not_load_the_server() -> None:
    heavy = "{'websockets', 'numpy', 'signaling.server', 'signaling.testing'}"
    written = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", f"import sys, signaling.cli; print([name for name in {heavy} if name in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert written.stdout == "[]\n"

"""Every code block of the README and of the pages does what it says."""

import ast
import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from _pytest.mark import ParameterSet

from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.messages.base import validated
from signaling.server.controller_api import CommandRequest
from signaling.settings import ServerSettings
from tests.docs.pages import REPOSITORY, Block, blocks
from tests.test_schemas import SCHEMAS, objections

BLOCKS = blocks()
SAMPLES = {
    ("README.md", "In the meeting after 1.7 s"): "times differ; tests/cli/test_demo.py sees each line of it come true",
    (
        "docs/design.md",
        "frame ─► server/connection.py ─► session.py ─► answers.py ─► meeting/turn.py, when it is the command's turn",
    ): ("a picture; tests/docs/test_design.py goes along it"),
    (
        "docs/server.md",
        "ACL SETUSER moderation on >PASSWORD ~moderation:* &moderation:news",
    ): "tests/stores/test_redis_inspection.py reads it from there, and takes away one right after the other",
}
"""Output that cannot be compared, by page and first line, and why; what follows a program is compared."""
BY_SPHINX = {"{toctree}", "{eval-rst}"}
"""What the build executes."""
LIMIT_S = 60
PYTEST_INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
"""What a test on the pages may count on, beside the plugins that are installed."""


def first_line(block: Block) -> str:
    return block.text.partition("\n")[0]


def follows_a_program(block: Block) -> bool:
    return block.language == "text" and block.before is not None and block.before.language == "python"


def is_test(block: Block) -> bool:
    return any(getattr(node, "name", "").lower().startswith("test") for node in ast.parse(block.text).body)


def chosen(language: str, *, tests: bool = False) -> list[ParameterSet]:
    return [
        pytest.param(block, id=block.where)
        for block in BLOCKS
        if block.language == language and (language != "python" or is_test(block) is tests)
    ]


def test_every_block_is_of_a_language_that_is_tested_or_a_sample() -> None:
    tested = {"python", "json", "toml", "sh", "yaml"}
    others = {
        (block.page, first_line(block))
        for block in BLOCKS
        if block.language not in tested | BY_SPHINX and not follows_a_program(block)
    }
    assert others == SAMPLES.keys()
    assert tested - {"yaml", "toml"} <= {block.language for block in BLOCKS}, "the pages are not read"


# --- Processes ---------------------------------------------------------------------------------------------------


def environment(directory: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, with the commands of this installation, free ports and a state directory of its own."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "XDG_STATE_HOME": str(directory),
        "MODERATION_LISTEN": "127.0.0.1:0",
        "MODERATION_INTERNAL_LISTEN": "127.0.0.1:0",
        **(more or {}),
    }


@asynccontextmanager
async def process(
    *command: str, directory: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that does not outlive the block."""
    started = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env=environment(directory, more),
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.communicate()


async def output(*command: str, directory: Path, more: Mapping[str, str] | None = None) -> str:
    """What a command that succeeds prints."""
    async with process(*command, directory=directory, more=more) as started:
        out, err = await started.communicate()
    assert started.returncode == 0, out.decode() + err.decode()
    return out.decode()


@asynccontextmanager
async def serving(script: str, directory: Path) -> AsyncIterator[dict[str, Any]]:
    """The server that a script starts at its end: its ready line. SIGTERM ends it, and it says nothing more."""
    async with process("bash", "-euo", "pipefail", "-c", script, directory=directory) as started:
        assert started.stdout is not None
        line = await started.stdout.readline()
        assert line, (await started.communicate())[1].decode()
        yield json.loads(line)
        started.send_signal(signal.SIGTERM)
        assert (await started.communicate())[0] == b""
        assert started.returncode == 0


# --- Programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", chosen("python"))
async def test_a_program_runs_and_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    async with EmbeddedServer(path=require(None)) as livekit:
        printed = await output(
            *(sys.executable, "-W", "error", "-c", block.text),
            directory=tmp_path,
            more={
                "LIVEKIT_URL": livekit.url,
                "LIVEKIT_API_KEY": livekit.api_key,
                "LIVEKIT_API_SECRET": livekit.api_secret,
            },
        )
    lines = iter(printed.splitlines())
    for following in BLOCKS:
        if following.before == block and follows_a_program(following):
            for expected in following.text.splitlines():
                assert expected in lines, f"{expected!r} was not printed, or not in this order, but:\n{printed}"


@pytest.mark.parametrize("block", chosen("python", tests=True))
async def test_a_test_passes(block: Block, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(PYTEST_INI)
    (tmp_path / "test_block.py").write_text(block.text)
    printed = await output(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "test_block.py"), directory=tmp_path
    )
    assert re.search(r"\b[1-9]\d* passed\b", printed)
    assert not re.search(r"\d (skipped|xfailed|deselected)", printed)


# --- Commands ----------------------------------------------------------------------------------------------------

TARGETS = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("block", chosen("sh"))
async def test_commands_work(block: Block, tmp_path: Path) -> None:
    script: list[str] = []
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        match words:
            case []:
                pass
            case ["make", target, *variables]:
                assert target in TARGETS
                assert all(variable.startswith("ARGS=") for variable in variables)
            case ["livekit-moderation", "serve", *_]:
                async with serving("\n".join([*script, f"exec {line}"]), tmp_path) as ready:
                    assert ready["ready"] is True
            case ["export" | "livekit-moderation", *_]:
                script.append(line)
            case _:
                pytest.fail(f"nothing says how to run {line}")
    printed = await output("bash", "-euo", "pipefail", "-c", "\n".join(script), directory=tmp_path)
    commands = [line for line in script if not line.startswith("export")]
    assert len(printed.splitlines()) == len(commands), "each prints one line"


# --- Data --------------------------------------------------------------------------------------------------------


def schemas_for(value: dict[str, Any]) -> Iterable[str]:
    """The schemas of which a value may be an instance, by what it says of itself."""
    match value:
        case {"namespace": _, "timestamp": _}:
            return ["server_frame.json"]
        case {"namespace": _}:
            return ["client_frame.json"]
        case {"message": str(tag)}:
            return [name for name in SCHEMAS if name.endswith(f"/{tag}.event.json")]
        case {"action": str(tag)}:
            return [name for name in SCHEMAS if name.endswith(f"/{tag}.command.json")]
    return []


@pytest.mark.parametrize("block", chosen("json"))
async def test_json_is_a_message_or_what_the_server_answers(block: Block, tmp_path: Path) -> None:
    value = json.loads(block.text)
    if "as" in value:
        validated(CommandRequest, value)
        del value["as"]
    if names := schemas_for(value):
        found = {name: objections(name, value) for name in names}
        assert [] in found.values(), found
        return
    script = "export MODERATION_TICKET_KEY=$(head -c 32 /dev/urandom | base64)\nexec livekit-moderation serve"
    async with serving(script, tmp_path) as ready, aiohttp.ClientSession() as http:
        async with http.get(f"{ready['internal']}/readyz") as response:
            readyz = await response.json()
        assert without_ports(value) in (without_ports(ready), readyz)


def without_ports(ready: dict[str, Any]) -> dict[str, Any]:
    return {name: re.sub(r":\d+", ":PORT", part) if isinstance(part, str) else part for name, part in ready.items()}


@pytest.mark.parametrize("block", chosen("toml"))
def test_toml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(block.text)
    ServerSettings.load(file)


@pytest.mark.parametrize("block", chosen("yaml"))
async def test_yaml_is_a_configuration_of_livekit(block: Block) -> None:
    config = yaml.safe_load(block.text)
    if "port" not in config:
        async with EmbeddedServer(path=require(None), extra_config=config):  # it refuses what it does not know
            return
    # A whole one is that of the embedded server, but for what is picked at random.
    assert isinstance(config.pop("port"), int)
    assert isinstance(config["rtc"].pop("udp_port"), int)
    assert len(config.pop("keys").popitem()[1]) >= 32
    async with EmbeddedServer(path=require(None)) as server:
        own: dict[str, Any] = {**server._config()}
    own["rtc"] = {name: value for name, value in own["rtc"].items() if name != "udp_port"}
    assert config == {name: value for name, value in own.items() if name not in {"port", "keys"}}

"""The demo, as somebody sees it who runs it."""

import asyncio
import os
import re
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from signaling.cli import main, performance
from signaling.cli.cheats import CHEATS, Cheater
from signaling.cli.nodes import Node, Nodes
from signaling.cli.tour import STEPS, Cast, Line, NotTrue
from signaling.testing.node_process import NodeFailed, NodeProcess
from signaling.testing.ticket_desk import TicketDesk

WIDEST = 110


async def _shown(directory: Path, *arguments: str) -> list[str]:
    """What the demo prints when all comes true, in its sections."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signaling", "demo", "--once", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **_environment()},
    )
    async with asyncio.timeout(180):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode() + output.decode()
    assert errors == b""
    assert list(directory.iterdir()) == []
    return output.decode().strip().split("\n\n")


def _check_lines(section: str, titles: Iterable[str]) -> None:
    lines = section.splitlines()
    shown = [re.fullmatch(r"✓ (.*?) · .*\b\d+ ms\b.*", line) for line in lines]
    assert [line and line[1] for line in shown] == list(titles)
    assert max(map(len, lines)) <= WIDEST


async def test_the_demo_shows_every_command_and_every_cheat_and_exits_0_when_all_came_true(tmp_path: Path) -> None:
    _, tour, heading, cheats = await _shown(tmp_path)
    assert heading.startswith("Clients that cheat:")
    _check_lines(tour, [title for title, _ in STEPS])
    _check_lines(cheats, [title for title, _ in CHEATS])


async def test_on_two_nodes_all_comes_true_too_and_who_was_on_a_killed_one_is_back_on_the_other(tmp_path: Path) -> None:
    where, tour, _, cheats, heading, back = await _shown(tmp_path, "--nodes=2")
    assert where.endswith(" s, Alice on node 1, Bob on node 2, Carol on node 2")
    _check_lines(tour, [title for title, _ in STEPS])
    _check_lines(cheats, [title for title, _ in CHEATS])
    assert heading.startswith("A node is killed:")
    _check_lines(back, ["node 2 killed", "disable_microphone_restrictions"])
    assert "Bob is back on node 1, still restricted" in back


def _nodes(*dead: int, of: int) -> Nodes:
    nodes = tuple(Node(f"node {number}", "", "", lives=number not in dead) for number in range(1, of + 1))
    return Nodes(nodes, "", ("key", "secret"), is_reported_to=True)


def test_people_are_on_several_nodes_and_whose_is_gone_goes_to_the_next() -> None:
    people = ("alice", "listener", "bob", "carol", "mallory")
    for nodes, numbers in (
        (_nodes(of=1), (1, 1, 1, 1, 1)),
        (_nodes(of=2), (1, 1, 2, 2, 2)),
        (_nodes(of=4), (1, 1, 2, 3, 4)),
        (_nodes(2, of=2), (1, 1, 1, 1, 1)),
        (_nodes(2, of=3), (1, 1, 3, 3, 3)),
    ):
        assert [nodes.of(each).name for each in people] == [f"node {number}" for number in numbers]


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "17", "", "²"])
def test_a_number_of_nodes_that_is_none_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", f"--nodes={number}"])
    assert ended.value.code == 2
    assert "argument --nodes: must be a number from 1 to 16" in capsys.readouterr().err


def test_without_redis_several_nodes_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo", "--once", "--nodes=2"]) == 1
    assert "apt-get install redis-server" in capsys.readouterr().err


async def test_a_node_that_cannot_start_is_an_error() -> None:
    with pytest.raises(NodeFailed, match="ended with status 2"):
        await NodeProcess({"MODERATION_TICKET_KEY": "k" * 32, "MODERATION_SWEEP_S": "soon"}).__aenter__()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("LIVEKIT_", "MODERATION_"))}


async def test_what_did_not_come_true_is_an_error_and_nothing_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_: Cast) -> Line:
        raise NotTrue("Bob is still heard")

    async def speaks(cheater: Cheater) -> Line:
        return Line("heard for", await cheater.heard(cheater.speak))

    async def breaks_off(cheater: Cheater) -> Line:
        await cheater.decide("disallow", source="microphone")
        await cheater.decide("kick", ban=True)
        raise NotTrue("on the way")

    monkeypatch.setattr(performance, "STEPS", (*STEPS[:1], ("force_mute", fails)))
    monkeypatch.setattr(performance, "CHEATS", (("speaks", speaks), ("breaks off", breaks_off), CHEATS[-1]))
    output = StringIO()
    assert await performance.perform(Console(file=output, width=100), once=True) == 1
    joins, fails_too, _, _, _, is_heard, breaks, leaves = output.getvalue().splitlines()[2:10]
    assert joins.startswith("✓ join · three tones heard")
    assert fails_too == "✗ force_mute · Bob is still heard"
    assert re.fullmatch(r"✗ speaks · heard for \d{3,4} ms", is_heard)
    assert breaks == "✗ breaks off · on the way"
    assert leaves.startswith("✓ leaves · all others heard and seen")
    assert leaves.endswith("all rights as before")


def test_without_a_media_server_and_without_go_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main(["demo", "--once"]) == 1
    words = capsys.readouterr().err
    for way_out in ("LIVEKIT_URL", "LIVEKIT_SERVER_PATH", "PATH", "Go"):
        assert way_out in words


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo", "--once"]) == 1
    assert capsys.readouterr().err == "rich.console is not installed; install livekit-moderation[testing]\n"


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MODERATION_SWEEP_S", "soon")
    assert main(["demo", "--once"]) == 2
    assert "MODERATION_SWEEP_S" in capsys.readouterr().err


async def test_the_desk_hands_tickets_to_programs_and_its_own_origin_only() -> None:
    async with (
        TicketDesk(lambda name: f"ticket of {name}", "ws://here/signaling") as desk,
        aiohttp.ClientSession() as http,
    ):
        origin = desk.url.removesuffix("/demo/ticket")
        for headers in ({}, {"Origin": origin}):
            async with http.post(desk.url, json={"as": "dave"}, headers=headers) as response:
                assert await response.json() == {"ticket": "ticket of dave", "signaling": "ws://here/signaling"}
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
            async with http.post(desk.url, json={"as": "dave"}, headers=headers) as response:
                assert response.status == 403


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"{", "JSON"),
        (b"[]", "as"),
        (b"{}", "as"),
        (b'{"as": 5}', "as"),
        (b'{"as": "controller"}', "as: is reserved"),
        (b"\xff", "JSON"),
    ],
)
async def test_the_desk_names_what_is_wrong(body: bytes, names: str) -> None:
    async with TicketDesk(str, "ws://here/signaling") as desk, aiohttp.ClientSession() as http:
        headers = {"Content-Type": "application/json"}
        async with http.post(desk.url, data=body, headers=headers) as response:
            assert response.status == 400
            assert names in (await response.json())["detail"]
        async with http.post(desk.url, data=body, headers={"Content-Type": "text/plain"}) as response:
            assert response.status == 415

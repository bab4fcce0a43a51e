import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from signaling.livekit.embedded import EmbeddedServer
from tests.fuzz.__main__ import only_of, told
from tests.fuzz.fuzzer import fuzz
from tests.fuzz.grammar import Grammar, dice_of, mangled, nearly
from tests.fuzz.targets import TARGETS
from tests.fuzz.world import World

SCHEMAS = sorted((Path(__file__).parents[2] / "schemas").glob("*/*.command.json"))


async def test_half_a_minute_of_anything_breaks_nothing() -> None:
    report = await fuzz(1, seconds=30, cases=1_000)
    assert report.cases.keys() == {target.name for target in TARGETS}
    assert min(report.cases.values()) > 0
    assert report.echo.count > 0  # how late they are is asked on an idle machine only, by `make fuzz`
    assert not report.findings, "\n".join(told(report, with_echo=False))


# --- It would find ---------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Of a server that was not started."""
    return World(EmbeddedServer(path=tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (
            lambda _: '{"level": "error", "event": "e", "exception": "Traceback\\nx.Oops: 1"}',
            "logged as error: e ['x.Oops']",
        ),
        (lambda _: "Warning: ids", "a line of the log is no JSON: Warning: ids"),
        (lambda world: json.dumps({"level": "info", "x": world.token}), "the controller's token is in the log"),
        (lambda world: json.dumps({"level": "info", "x": world.ticket_key}), "the ticket key is in the log"),
        (lambda world: json.dumps({"level": "info", "x": world.livekit.api_secret}), "the API secret is in the log"),
        (lambda world: json.dumps({"x": next(iter(world.secrets_of_tokens))}), "a ticket or a token is in the log"),
    ],
)
def test_what_the_log_must_not_hold_is_found(
    world: World, tmp_path: Path, line: Callable[[World], str], finding: str
) -> None:
    world.secrets_of_tokens.add("eyJ0.eyJ1.sig")
    (tmp_path / "serve.log").write_text('{"level": "info", "event": "command_applied"}\n')
    world.check_log()
    assert not world.findings
    with (tmp_path / "serve.log").open("a") as log:
        log.write(f"{line(world)}\n")
    world.check_log()
    (found,) = world.findings
    assert found.startswith(finding)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_a_schema_allows_is_thrown_and_what_it_nearly_allows(path: Path) -> None:
    schema = json.loads(path.read_text())
    grammar, validator = Grammar(schema), Draft7Validator(schema)
    thrown = [grammar.throw(dice_of(0, path.name, number), schema) for number in range(60)]
    allowed = [value for value in thrown if validator.is_valid(value)]
    assert len(allowed) > 15
    changed = [nearly(dice_of(0, "nearly", number), value) for number, value in enumerate(thrown)]
    assert [value for value in changed if not validator.is_valid(value)]


def test_the_same_dice_throw_the_same() -> None:
    schema = json.loads(SCHEMAS[0].read_text())
    first, second = ([Grammar(schema).throw(dice_of(7, "frames", n), schema) for n in range(50)] for _ in range(2))
    assert first == second
    assert mangled(dice_of(7, "frames", 1), b"{}" * 9) == mangled(dice_of(7, "frames", 1), b"{}" * 9)


def test_cases_are_named_to_see_them_again() -> None:
    assert only_of(["frames:12", "api:3-5"]) == {"frames": range(12, 13), "api": range(3, 6)}
    for wrong in ("frames", "nothing:1", "api:x", "api:1-x"):
        with pytest.raises(ValueError, match="is not TARGET:NUMBER"):
            only_of([wrong])

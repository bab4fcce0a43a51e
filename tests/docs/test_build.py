"""The documentation builds without a warning, and holds what it must."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sphinx.util.inventory import InventoryFile

import signaling
from docs._ext.protocol_reference import SCHEMAS, Reference
from signaling import Role
from tests.docs.pages import DOCS, REPOSITORY
from tests.meeting_on_fake import MeetingOnFake


def build(source: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    """As `make docs` does."""
    return subprocess.run(  # noqa: S603 - our own
        [*(sys.executable, "-m", "sphinx"), *("-W", "--keep-going", "-n", "-q", "-b", "html"), source, target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(DOCS, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return target


def objects(site: Path) -> Any:  # noqa: ANN401 - Sphinx's inventory
    with (site / "objects.inv").open("rb") as file:
        return InventoryFile.load(file, "", lambda base, uri: base + uri)


def test_every_public_name_is_documented(site: Path) -> None:
    inventory = objects(site)
    documented = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    assert {f"signaling.{name}" for name in signaling.__all__} <= documented


def test_every_message_is_described(site: Path) -> None:
    described = {label for label in objects(site)["std:label"] if label.endswith((".command", ".event"))}
    files = {file.relative_to(SCHEMAS).as_posix() for file in SCHEMAS.glob("*/*.json")}
    assert described == {name.removesuffix(".json").replace("/", ".") for name in files}


@pytest.mark.parametrize("name", [file.relative_to(SCHEMAS).as_posix() for file in sorted(SCHEMAS.glob("*/*.json"))])
def test_every_field_of_a_message_is_described(name: str) -> None:
    label = name.removesuffix(".json").replace("/", ".")
    section = Reference(SCHEMAS).markdown().partition(f"({label})=\n")[2].partition(")=\n")[0]
    schema = json.loads((SCHEMAS / name).read_text())
    tag = "action" if name.endswith(".command.json") else "message"
    described = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [tag, *described] == list(schema["properties"])
    assert schema["description"] in section


def test_what_there_are_no_words_for_stops_the_build(tmp_path: Path) -> None:
    copied = Path(shutil.copytree(SCHEMAS, tmp_path / "schemas"))
    file = copied / "livekit" / "force_mute.command.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "minProperties": 2}))
    with pytest.raises(LookupError, match=r"force_mute.*: no words for minProperties"):
        Reference(copied).markdown()


@pytest.mark.parametrize(
    "name", [file.relative_to(SCHEMAS).as_posix() for file in sorted(SCHEMAS.glob("*/*.command.json"))]
)
async def test_who_may_give_a_command_is_as_described(name: str, meeting: MeetingOnFake) -> None:
    namespace = name.partition("/")[0]
    await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob")
    refused = []
    for example in json.loads((SCHEMAS / name).read_text())["examples"]:
        bob.forget()
        if namespace != "echo":  # anybody's, and not the module's
            await bob.session.receive(namespace, example, "asked")
        errors = [delivery.payload.get("error") for delivery in bob.inbox if delivery.transaction_id == "asked"]
        refused.append("insufficient_permissions" in errors)
    assert all(refused) is (name in Reference(SCHEMAS).for_moderators)

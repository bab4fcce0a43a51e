"""What belongs into the folder `schemas/`, and writing it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from signaling.cli.schemas.async_api import asyncapi
from signaling.cli.schemas.json_schemas import client_frame_schema, message_schema, server_frame_schema
from signaling.cli.schemas.kinds import ASYNCAPI, commands, events
from signaling.messages.json_schema import Json


def files() -> dict[str, str]:
    """Everything that belongs into `schemas/`, by path."""
    schemas = [
        *(message_schema(namespace, kind) for namespace, kind in commands()),
        *(message_schema(namespace, kind) for namespace, kind in events()),
        client_frame_schema(),
        server_frame_schema(),
    ]
    texts = {schema["$id"]: f"{json.dumps(schema, indent=2, ensure_ascii=False)}\n" for schema in schemas}
    return texts | {ASYNCAPI: _yaml(asyncapi())}


def generated(folder: Path) -> set[str]:
    """The files in `folder` that were made here, of whatever version."""
    return {
        file.relative_to(folder).as_posix()
        for pattern in ("*.json", "*.yaml", "*/*.command.json", "*/*.event.json")
        for file in folder.glob(pattern)
    }


def main(argv: Sequence[str]) -> int:
    """Write the files into the folder that is named, and remove those that are no longer made; the exit status."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m signaling.cli.schemas DIR\n")
        return 2
    folder = Path(argv[0])
    texts = files()
    for name in generated(folder) - texts.keys():
        (folder / name).unlink()
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


def _yaml(document: Json) -> str:
    import yaml  # noqa: PLC0415 - nobody else needs it

    class Dumper(yaml.SafeDumper):
        """Long texts keep their lines, nothing is an alias, and lists are indented."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - PyYAML's
            super().increase_indent(flow, indentless=False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return dumped

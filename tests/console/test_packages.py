import asyncio
import json
import re
from pathlib import Path

import pytest

from tests.console import npm

pytestmark = pytest.mark.usefixtures("built")

CONSUMER = """\
import { AccessDenied, CommandRefused, connect, NoAnswer, type Snapshot } from "livekit-moderation-client";

class Silent {
  constructor(readonly url: string, readonly protocols: string[]) {}
  send(_: string): void {}
  close(): void {}
  addEventListener(): void {}
}

const client = connect({ url: "wss://meet.example.org/signaling", ticket: () => "ticket", WebSocket: Silent });
client.on("livekit_moderation/muted", ({ moderator, sources }) => console.log(moderator, sources.includes("camera")));
// @ts-expect-error - there is no such event
client.on("livekit_moderation/silenced", () => undefined);

const known: Snapshot = client.getSnapshot();
// @ts-expect-error - a snapshot does not change
known.connection = { state: "joined" };
if (known.connection.state === "ended") console.log(known.connection.reason satisfies string);

async function moderate(): Promise<void> {
  const { outcomes } = await client.mute({ everyone_except: ["alice"], sources: ["microphone"] });
  for (const { participant, outcome } of outcomes) console.log(participant, outcome === "muted");
  // @ts-expect-error - either these, or everyone but these
  await client.mute({ participants: [], everyone_except: [] });
  // @ts-expect-error - there is no such source
  await client.restrict({ source: "telephone" });
}

moderate().catch((error: unknown) => {
  if (error instanceof CommandRefused) console.log(error.code);
  else if (error instanceof NoAnswer) console.log(error.why, error.sent);
  client.close();
  console.log(client.getSnapshot().connection, new AccessDenied("no") instanceof Error);
});
"""
STRICT = {
    "target": "ES2022",
    "module": "NodeNext",
    "types": [],
    "lib": ["ES2022", "DOM"],
    "strict": True,
    "exactOptionalPropertyTypes": True,
    "noUncheckedIndexedAccess": True,
    "skipLibCheck": False,
}


async def test_types_are_right_tests_pass_and_the_reference_has_no_warning() -> None:
    async with asyncio.TaskGroup() as group:  # each has a processor of its own
        group.create_task(npm.run("npm", "run", "check"))
        group.create_task(npm.run("npm", "run", "reference", "--workspace=client", "--", "--emit", "none"))
        testing = group.create_task(npm.run("npm", "test"))
    assert re.search(r"Tests +\d+ passed", testing.result())


async def test_the_packed_client_works_in_an_empty_project(tmp_path: Path) -> None:
    packed = await npm.run("npm", "pack", "--json", "--workspace=client", f"--pack-destination={tmp_path}")
    [archive] = tmp_path.glob("*.tgz")
    for name in ("README.md", "LICENSE", "dist/index.js", "dist/index.d.ts", "src/index.ts"):
        assert f'"path": "{name}"' in packed
    assert "test/" not in packed
    (tmp_path / "main.ts").write_text(CONSUMER)
    (tmp_path / "package.json").write_text(json.dumps({"name": "consumer", "private": True, "type": "module"}))
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": STRICT, "files": ["main.ts"]}))
    await npm.run("npm", "install", "--prefix", str(tmp_path), "--offline", "--no-audit", "--no-fund", str(archive))
    await npm.run("npx", "tsc", "--project", str(tmp_path))
    printed = await npm.run("node", str(tmp_path / "main.js"))
    assert printed.splitlines() == ["not_joined false", "{ state: 'ended', reason: 'left' } true"]


def test_the_lock_file_does_not_say_where_packages_come_from() -> None:
    lock = json.loads((npm.CONSOLE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name.startswith("node_modules/")}
    assert [name for name, package in packages.items() if "://" in package.get("resolved", "")] == []
    assert [name for name, package in packages.items() if "integrity" not in package and "link" not in package] == []
    assert [name for name, package in packages.items() if not package.get("dev") and "link" not in package] == []

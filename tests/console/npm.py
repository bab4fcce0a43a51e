"""The JavaScript part of the repository: how its commands are run."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONSOLE = ROOT / "examples" / "console"
CLIENT = CONSOLE / "client"


async def run(*command: str, timeout_s: float = 300) -> str:
    """Run a command in `examples/console`, with Node.js and the locked packages; what it printed. Fails if it does."""
    process = await asyncio.create_subprocess_exec(
        *(str(ROOT / ".ci" / "console"), *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "0"},
    )
    async with asyncio.timeout(timeout_s):
        printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


class Refused(Exception):
    """A function of the client rejected; `error` is with what."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["text"])
        self.error = error


class NodeClient:
    """
    The client of `examples/console/client` in a process of its own; see `test/driver.mjs` there.

    Attributes:
        tickets: Makes one whenever it is asked for; `None` says that there will be none.
        snapshot: As it is now.
        told: Every event of the server so far, as `namespace/message` and payload.
    """

    def __init__(self, process: asyncio.subprocess.Process, tickets: Callable[[], str | None]) -> None:
        self._process = process
        self._changed = asyncio.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._calls = 0
        self.tickets = tickets
        self.asked = 0
        self.lost = 0
        self.snapshot: dict[str, Any] = {}
        self.credentials: dict[str, Any] | None = None
        self.told: list[tuple[str, dict[str, Any]]] = []

    @property
    def state(self) -> str:
        """How it stands to the server."""
        return str(self.snapshot["connection"]["state"])

    def send(self, line: dict[str, Any]) -> None:
        """Tell the driver something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def call(self, name: str, *fields: object) -> Any:  # noqa: ANN401 - any JSON
        """Call a function of the client; to what it resolved. Raises `Refused` if it rejected."""
        return await self.answer(self.begin(name, *fields))

    def begin(self, name: str, *fields: object) -> int:
        """Call a function of the client, and wait for nothing."""
        self._calls += 1
        self.send({"id": self._calls, "call": name, "fields": fields})
        return self._calls

    async def answer(self, call: int) -> Any:  # noqa: ANN401 - any JSON
        """What came of a call."""
        await self.until(lambda: call in self._answers)
        answer = self._answers.pop(call)
        if "rejected" in answer:
            raise Refused(answer["rejected"])
        return answer["resolved"]

    async def refusal(self, name: str, *fields: object) -> dict[str, Any]:
        """With what a function of the client rejected."""
        try:
            resolved = await self.call(name, *fields)
        except Refused as refused:
            return refused.error
        raise AssertionError(f"{name} resolved to {resolved}")

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 20) -> None:
        """Wait until something is so."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(is_so)
        except TimeoutError:
            raise AssertionError(f"it was not so within {timeout_s} s: {self.snapshot}") from None

    async def read(self) -> None:
        """Read what the driver tells, until its end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._changed:
                self._note(json.loads(line))
                self._changed.notify_all()

    def _note(self, told: dict[str, Any]) -> None:
        match told:
            case {"asks": "ticket"}:
                self.asked += 1
                ticket = self.tickets()
                self.send({"denied": "not invited"} if ticket is None else {"ticket": ticket})
            case {"snapshot": snapshot}:
                self.snapshot, self.credentials = snapshot, told.get("credentials")
            case {"event": event, "payload": payload}:
                self.told.append((event, payload))
            case {"lost": _}:
                self.lost += 1
            case {"id": call}:
                self._answers[call] = told
            case _:
                raise AssertionError(f"the driver said {told}")


@asynccontextmanager
async def node_client(url: str, tickets: Callable[[], str | None], **options: object) -> AsyncIterator[NodeClient]:
    """A client that connects at once."""
    process = await asyncio.create_subprocess_exec(
        *(str(ROOT / ".ci" / "console"), "node", "client/test/driver.mjs", url, json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=16 * 1024 * 1024,
    )
    client = NodeClient(process, tickets)
    reading = asyncio.create_task(client.read())
    try:
        await client.until(lambda: client.snapshot != {})
        yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(20):
            await process.wait()
            await reading

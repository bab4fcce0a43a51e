"""
The double of RoomService in a process of its own, so that what it costs is not counted for who calls it.

As a program it prints its address and key, then does what it is told, a line of JSON at a time, and ends when its
standard input does.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from signaling.testing import FakeRoomService

_LIMIT_S: Final = 120


class FakeProcess:
    """What is told to it, and what it answered."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, api_key: str, api_secret: str) -> None:
        self._process = process
        self.url = url
        self.api_key = api_key
        self.api_secret = api_secret

    async def join(self, room: str, identity: str, token: str) -> None:
        """Let somebody into a room."""
        await self._tell("join", room, identity, token)

    async def publish(self, room: str, identity: str, source: str) -> str:
        """Let somebody publish, and return the sid of the track."""
        return str(await self._tell("publish", room, identity, source))

    async def unmute(self, room: str, identity: str, track: str) -> None:
        """Let somebody unmute; the calls of before are forgotten, too."""
        await self._tell("unmute", room, identity, track)

    async def _tell(self, *words: str) -> Any:  # noqa: ANN401 - JSON's
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        async with asyncio.timeout(_LIMIT_S):
            return json.loads(await self._process.stdout.readline())


@asynccontextmanager
async def fake_process() -> AsyncIterator[FakeProcess]:
    """One that ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.fake_process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_LIMIT_S):
            yield FakeProcess(process, *json.loads(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


def _do(fake: FakeRoomService, words: Iterable[str]) -> str | None:
    match tuple(words):
        case "join", room, identity, token:
            fake.join(room, identity, token=token)
        case "publish", room, identity, source:
            return fake.publish(room, identity, source)
        case "unmute", room, identity, track:
            fake.unmute(room, identity, track)
            fake.calls.clear()
        case unknown:
            raise ValueError(unknown)
    return None


async def main() -> None:
    """Serve until nobody holds the other end of standard input."""
    async with FakeRoomService() as fake:
        said: list[str | None] | str | None = [fake.url, fake.api_key, fake.api_secret]
        while True:
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
            line = await asyncio.to_thread(sys.stdin.readline)
            if not line:
                return
            said = _do(fake, json.loads(line))


if __name__ == "__main__":
    asyncio.run(main())

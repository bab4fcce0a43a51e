"""A node of the soak: `livekit-moderation serve` behind proxies to Redis and LiveKit, over all its lives."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from signaling.livekit.child_process import ChildProcess
from signaling.testing.node_process import NodeFailed
from signaling.testing.redis_server import free_port
from tests.fault_proxy import FaultProxy

_READY_S: Final = 30
_STOP_S: Final = (15.0,)


class Node:
    """
    A node, over all its lives; an asynchronous context manager.

    Attributes:
        is_up: Whether it is neither killed nor paused, as far as it was us.
        seen: How often it logged each event.
        away_s: How long it was without Redis, each time that it was back.
        broken: What it logged that only a bug can be.
    """

    def __init__(
        self, number: int, directory: Path, settings: Mapping[str, str], *, redis: int, livekit: int, seed: int
    ) -> None:
        self.name = f"node-{number}"
        self.redis = FaultProxy(redis, seed=seed)
        self.livekit = FaultProxy(livekit, seed=seed + 1)
        self.is_up = False
        self.seen: Counter[str] = Counter()
        self.away_s: list[float] = []
        self.broken: list[str] = []
        self._taken_over: Counter[str] = Counter()
        self._log = (directory / f"{self.name}.log").open("w")
        self._settings = settings
        self._child: ChildProcess | None = None
        self._listen = free_port()
        self._internal = free_port()

    async def __aenter__(self) -> Self:
        await self.redis.__aenter__()
        await self.livekit.__aenter__()
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_up = False
        if self._child is not None:
            await self._child.end(_STOP_S)
        await self.redis.__aexit__(None, None, None)
        await self.livekit.__aexit__(None, None, None)
        self._log.close()

    @property
    def url(self) -> str:
        """Where people connect."""
        return f"ws://127.0.0.1:{self._listen}/signaling"

    @property
    def internal_url(self) -> str:
        """Where it is reported to."""
        return f"http://127.0.0.1:{self._internal}"

    @property
    def pid(self) -> int:
        """Of its life just now."""
        return self._running.pid

    def turns_taken_over(self, room: str) -> int:
        """How often it took over somebody's turn in a meeting."""
        return self._taken_over[room]

    async def start(self) -> None:
        """
        Start it (again), with the same addresses, and wait until it is ready.

        Raises:
            NodeFailed: It is not.
        """
        environment = {
            **os.environ,
            **self._settings,
            "LIVEKIT_URL": f"http://127.0.0.1:{self.livekit.port}",
            "MODERATION_STORE_URL": f"redis://127.0.0.1:{self.redis.port}/0",
            "MODERATION_LISTEN": f"127.0.0.1:{self._listen}",
            "MODERATION_INTERNAL_LISTEN": f"127.0.0.1:{self._internal}",
            "MODERATION_LOG_FORMAT": "json",
            "MODERATION_LOG_LEVEL": "info",
        }
        ready = asyncio.Event()

        def note(line: str) -> None:
            if self._note(line):
                ready.set()

        command = (sys.executable, "-m", "signaling", "serve")
        self._child = child = await ChildProcess.start(command, environment, on_line=note)
        if not await child.until(ready, _READY_S):
            raise NodeFailed(f"{self.name} was not ready: {' / '.join(child.last_words)}")
        self.is_up = True

    async def kill(self) -> None:
        """Let it die at once."""
        self.is_up = False
        self._running.signal(signal.SIGKILL)
        await self._running.ended()

    def pause(self) -> None:
        """Have it stand still."""
        self.is_up = False
        self._running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        self._running.signal(signal.SIGCONT)
        self.is_up = True

    def size(self) -> tuple[int, int]:
        """What it is now: resident KiB, and open files."""
        process = Path("/proc") / str(self._running.pid)
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        return int(status["VmRSS"].split()[0]), len(list((process / "fd").iterdir()))

    @property
    def _running(self) -> ChildProcess:
        if self._child is None:
            raise RuntimeError(f"{self.name} is used outside its `async with`")
        return self._child

    def _note(self, line: str) -> bool:
        """Take note of a line; whether it says that the node is ready."""
        self._log.write(f"{line}\n")
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            self.broken.append(line[:300])
            return False
        if "signaling" in told:
            return True
        event = str(told.get("event"))
        self.seen[event] += 1
        match event:
            case "turn_taken_over":
                self._taken_over[str(told["room"])] += 1
            case "store_back":
                self.away_s.append(float(told["away_s"]))
            case _:
                pass
        if "exception" in told:
            self.broken.append(f"{event}: {str(told['exception'])[-600:]}")
        return False

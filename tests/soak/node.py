"""A node of the soak: `livekit-moderation serve` behind proxies to Redis and LiveKit, over all its lives."""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from signaling.livekit.child_process import ChildProcess
from signaling.testing.node_process import NodeFailed
from signaling.testing.redis_server import free_port
from tests.fault_proxy import FaultProxy
from tests.soak.bell import Bell

_READY_S: Final = 30
_STARTS: Final = 4
_STOP_S: Final = (15.0,)
_ANSWERS_S: Final = 5
_AFTER_S: Final = 6.0
"""A beat and a little: for so long after an outage a node still finds out whom it has lost meanwhile."""
_UNHEARD_S: Final = 30.0
"""For how long a node may have been taken for gone, at most, that says now that it was."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a node takes: resident KiB, open files, and tasks of its event loop."""

    memory_kib: int
    files: int
    tasks: int


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
        self,
        number: int,
        directory: Path,
        settings: Mapping[str, str],
        bell: Bell,
        *,
        redis: int,
        livekit: int,
        seed: int,
    ) -> None:
        self.name = f"node-{number}"
        self.redis = FaultProxy(redis, seed=seed)
        self.livekit = FaultProxy(livekit, seed=seed + 1)
        self.is_up = False
        self.seen: Counter[str] = Counter()
        self.away_s: list[float] = []
        self.broken: list[str] = []
        self._bell = bell
        self._in_room: Counter[tuple[str, str]] = Counter()
        self._outages: list[list[float]] = []
        self._let_in_again: list[float] = []
        self._log = (directory / f"{self.name}.log").open("w")
        self._settings = settings
        self._child: ChildProcess | None = None
        self._listen = free_port()
        self._internal = free_port()
        self._is_ready = False

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
    def internal_port(self) -> int:
        """Where webhooks go."""
        return self._internal

    @property
    def internal_url(self) -> str:
        """Where it is reported to, and asked by a controller."""
        return f"http://127.0.0.1:{self._internal}"

    @property
    def pid(self) -> int:
        """Of its life just now."""
        return self._running.pid

    def logged(self, event: str, room: str) -> int:
        """How often it logged an event of a meeting."""
        return self._in_room[event, room]

    # --- Its lives -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Start it (again), with the same addresses, and wait until it is ready; again if it is not, as systemd would.

        Raises:
            NodeFailed: It never is.
        """
        for _ in range(_STARTS):
            if await self._start():
                self.recovered()
                return
        raise NodeFailed(f"{self.name} was not ready: {' / '.join(self._running.last_words)}")

    async def _start(self) -> bool:
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
        self._is_ready = False
        command = (sys.executable, "-m", "signaling", "serve")
        self._child = child = await ChildProcess.start(command, environment, on_line=self._note)
        await self._bell.until(lambda: self._is_ready or child.status is not None, _READY_S)
        if not self._is_ready:
            await child.end(())
        return self._is_ready

    async def kill(self) -> None:
        """Let it die at once."""
        self.suffers()
        self._running.signal(signal.SIGKILL)
        await self._running.ended()

    def pause(self) -> None:
        """Have it stand still."""
        self.suffers()
        self._running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        self._running.signal(signal.SIGCONT)
        self.recovered()

    def suffers(self) -> None:
        """From now on it cannot say that it lives."""
        self.is_up = False
        if not self._outages or len(self._outages[-1]) > 1:
            self._outages.append([time.time()])

    def recovered(self) -> None:
        """It can say again that it lives."""
        self.is_up = True
        if self._outages and len(self._outages[-1]) == 1:
            self._outages[-1].append(time.time())

    @property
    def outages(self) -> list[tuple[float, float]]:
        """From when until when it could not say that it lives."""
        by_us = [(each[0], each[1]) for each in self._outages if len(each) > 1]
        return [*by_us, *((at - _UNHEARD_S, at) for at in self._let_in_again)]

    def outage_before(self, at: float) -> float | None:
        """When the outage began by which a session may have been lost that ended then."""
        for began_at, *ended_at in self._outages:
            if began_at <= at and all(at <= end + _AFTER_S for end in ended_at):
                return began_at
        return None

    # --- What it takes -------------------------------------------------------------------------------------------

    async def size(self) -> Size | None:
        """What it takes now; `None` if it does not say."""
        tasks = await self._metric("moderation_tasks")
        try:
            process = Path("/proc") / str(self.pid)
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
            files = len(list((process / "fd").iterdir()))
        except OSError:
            return None  # it was killed
        return None if tasks is None else Size(int(status["VmRSS"].split()[0]), files, tasks)

    async def webhooks(self) -> int:
        """How many webhooks it has accepted in this life."""
        return await self._metric('moderation_webhooks_total{result="accepted"}') or 0

    async def _metric(self, name: str) -> int | None:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWERS_S)) as http,
                http.get(f"{self.internal_url}/metrics") as answer,
            ):
                lines = (await answer.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return None  # it was killed, or stands still
        found = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
        return int(float(found[0])) if found else 0

    @property
    def _running(self) -> ChildProcess:
        if self._child is None:
            raise RuntimeError(f"{self.name} is used outside its `async with`")
        return self._child

    def _note(self, line: str) -> None:
        """Take note of a line."""
        self._log.write(f"{line}\n")
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            if self._is_ready:  # what it says when it cannot start is for people
                self.broken.append(line[:300])
            return
        if "signaling" in told:
            self._is_ready = True
        event = str(told.get("event"))
        self.seen[event] += 1
        self._in_room[event, str(told.get("room"))] += 1
        if event == "store_back":
            self.away_s.append(float(told["away_s"]))
        elif event == "let_in_again":
            self._let_in_again.append(time.time())
        if "exception" in told:
            self.broken.append(f"{event}: {str(told['exception'])[-600:]}")
        self._bell.ring()

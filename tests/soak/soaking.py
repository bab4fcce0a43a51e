"""The soak itself: nodes, Redis, LiveKit, people and faults, and what is to be said of them when it is over."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, assert_never

from livekit.protocol.models import TrackSource

from signaling import Role
from signaling.core.changes import Entered
from signaling.core.participants import Source
from signaling.core.policy import publishable
from signaling.core.state import MeetingState
from signaling.identifiers import ParticipantId, RoomId
from signaling.stores import open_store
from signaling.stores.contract import Commit, Store
from signaling.stores.contract import Fault as StoreFault
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.participants import JoinRefused, PublishRefused
from tests.histories.checking import CLOCKS_S, violations
from tests.histories.recording import History
from tests.meetings.serving import KEY
from tests.redis_server import RedisServer
from tests.soak.node import Node
from tests.soak.people import Person, names
from tests.soak.plan import Fault, plan

_IN_TURN_S: Final = 4
_SETTLES_S: Final = 15.0
"""A lease, the deadline of what is told LiveKit, and a sweep."""
_SAMPLE_S: Final = 0.25
_POLL_S: Final = 0.02
_SLOW_S: Final = 1.5
_BETWEEN_S: Final = 3.0
"""Between two faults at least, so that what one leaves behind is seen; one that is steered for may take longer."""
_NODES: Final = 3
_APPENDS: Final = b'"revision":'
"""What is in a commit on its way to Redis, and in no other request."""
_TELLS: Final = (b"UpdateParticipant", b"MutePublishedTrack", b"RemoveParticipant")


@dataclass
class Report:
    """
    What came of a soak.

    Attributes:
        seen: How often what must have been seen was.
        commands: How many were acknowledged.
        left_heard: Who can be heard in the end though the state forbids it.
        longest_heard_s: For how long somebody could be who may not, at most, while there were faults.
        grown: Of each node that has lived long enough: resident KiB, and open files, at first and in the end.
    """

    seed: int
    seconds: float
    people: int
    rooms: int
    faults: Counter[str] = field(default_factory=Counter)
    seen: dict[str, int] = field(default_factory=dict)
    commands: int = 0
    joins: int = 0
    commits: int = 0
    wrong: list[str] = field(default_factory=list)
    left_heard: list[str] = field(default_factory=list)
    longest_heard_s: float = 0.0
    grown: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def of(self, check: str) -> list[str]:
        """What this check found."""
        return [each for each in self.wrong if each.startswith(f"{check}:")]

    @property
    def unseen(self) -> list[str]:
        """What never came to pass, and should have."""
        return [what for what, times in self.seen.items() if not times]

    @property
    def failures(self) -> list[str]:
        """All because of which it is no success."""
        return [
            *(f"never seen: {what}" for what in self.unseen),
            *self.wrong,
            *(f"heard in the end: {who}" for who in self.left_heard),
            *(f"broken: {what}" for what in self.broken),
        ]


class Soak:
    """Everything that runs; `run` it once."""

    def __init__(
        self, directory: Path, *, seed: int, seconds: float, rooms: int = 30, room_size: int = 10, pause_s: float = 12
    ) -> None:
        self.report = Report(seed, seconds, rooms * room_size, rooms)
        self._directory = directory
        self._chance = random.Random(seed)  # noqa: S311 - the same again, which no secret may be
        self._rooms = [RoomId(f"room-{number}") for number in range(rooms)]
        self._room_size = room_size
        self._pause_s = pause_s
        self._history = History()
        self._states = dict[RoomId, MeetingState]()
        self._since: dict[tuple[str, str], float] = {}
        self._quiet, self._over = asyncio.Event(), asyncio.Event()
        self._people: list[Person] = []
        self._nodes: list[Node] = []
        self._is_recorded = False
        self._asking: list[asyncio.Task[bool]] = []
        self._sizes: dict[str, tuple[float, tuple[int, int]]] = {}

    async def run(self) -> Report:
        """From the beginning to the end of it."""
        async with AsyncExitStack() as stack:
            self._redis = await stack.enter_async_context(RedisServer(self._directory / "redis", appendfsync="always"))
            self._fake = await stack.enter_async_context(FakeRoomService())
            follower = open_store(self._redis.url, audit_entries=1_000_000)
            follower.listen(self._on_commit)
            follower.listen_to_faults(self._on_fault)
            await follower.open()
            stack.push_async_callback(follower.close)
            for room in self._rooms:
                follower.follow(room)
            settings = {
                "LIVEKIT_API_KEY": self._fake.api_key,
                "LIVEKIT_API_SECRET": self._fake.api_secret,
                "MODERATION_TICKET_KEY": KEY,
                "MODERATION_RATE_PER_S": "1000",
                "MODERATION_RATE_BURST": "1000",
            }
            for number in range(_NODES):
                node = Node(
                    number,
                    self._directory,
                    settings,
                    redis=self._redis.port,
                    livekit=int(self._fake.url.rpartition(":")[2].strip("/")),
                    seed=self.report.seed + 10 * number,
                )
                self._nodes.append(await stack.enter_async_context(node))
            await self._happen(follower)
            self._count()
        _find_sessions(self._history)
        self.report.wrong = await asyncio.to_thread(violations, self._history)
        return self.report

    async def _happen(self, follower: Store) -> None:
        for room in self._rooms:
            for name in names(self._room_size):
                chance = random.Random(f"{self.report.seed} {room} {name}")  # noqa: S311 - as above
                person = Person(
                    room,
                    name,
                    self._nodes,
                    self._history,
                    chance=chance,
                    enter=self._enter_livekit,
                    pause_s=self._pause_s,
                )
                self._people.append(person)
        living = [asyncio.create_task(person.live(self._quiet, self._over)) for person in self._people]
        watching = [asyncio.create_task(self._listen()), asyncio.create_task(self._measure())]
        try:
            async with asyncio.timeout(60):
                while not all(person.joins for person in self._people):  # noqa: ASYNC110 - each is asked
                    await asyncio.sleep(_SAMPLE_S)
            await self._go_wrong()
            await self._heal()
            self._quiet.set()
            await asyncio.sleep(_SETTLES_S)
            self.report.left_heard = [f"{who} in {room}" for room, who in self._forbidden()]
            self._over.set()
            await asyncio.gather(*living)
            await asyncio.sleep(1)
            for room in self._rooms:
                entries = await follower.audit(room, limit=1_000_000)
                self._history.audited(room, reversed(entries))
            self._is_recorded = True
        finally:
            for task in (*living, *watching, *self._asking):
                task.cancel()
            ended = await asyncio.gather(*living, *watching, *self._asking, return_exceptions=True)
            await asyncio.gather(*(person.close() for person in self._people))
        for error in ended:
            if isinstance(error, Exception):
                raise error

    # --- Faults --------------------------------------------------------------------------------------------------

    async def _go_wrong(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for fault in plan(self.report.seed, self.report.seconds, _NODES):
            await asyncio.sleep(max(_BETWEEN_S, began + fault.at_s - loop.time()))
            self.report.faults[fault.kind] += 1
            await self._have(fault, self._nodes[fault.node])
            await self._heal()

    async def _have(self, fault: Fault, node: Node) -> None:  # noqa: PLR0915 - a case for each kind
        match fault.kind:
            case "answer_lost":
                node.redis.lose_answer(lambda request: _APPENDS in request)
                await asyncio.sleep(fault.for_s)
            case "node_killed_in_turn":
                await self._until_in_turn(node)
                await node.kill()
                node.livekit.delay()
                await asyncio.sleep(fault.for_s)
                await node.start()
            case "node_killed":
                await node.kill()
                await asyncio.sleep(fault.for_s)
                await node.start()
            case "node_paused_in_turn":
                room = await self._until_in_turn(node)
                before = self._taken_over(room)
                node.pause()
                for other in self._nodes:  # whoever takes over is still at it when this one goes on
                    other.livekit.delay(answers_s=_SLOW_S)
                self._have_somebody_ask(room)
                with suppress(TimeoutError):
                    async with asyncio.timeout(fault.for_s):
                        while self._taken_over(room) == before:  # noqa: ASYNC110 - it is another process
                            await asyncio.sleep(_POLL_S)
                node.resume()
                await asyncio.sleep(_SLOW_S)
            case "node_paused":
                node.pause()
                await asyncio.sleep(fault.for_s)
                node.resume()
            case "node_without_redis":
                node.redis.refuse()
                node.redis.drop()
                await asyncio.sleep(fault.for_s)
            case "redis_killed":
                await self._redis.kill()
                await asyncio.sleep(fault.for_s)
                await self._redis.start()
            case "redis_paused":
                self._redis.pause()
                await asyncio.sleep(fault.for_s)
                self._redis.resume()
            case "redis_dropped":
                node.redis.drop()
            case "redis_delayed":
                node.redis.delay(0.05, 0.05)
                await asyncio.sleep(fault.for_s)
            case "redis_request_halved" | "redis_answer_halved":
                node.redis.halve(answers=fault.kind == "redis_answer_halved")
                await asyncio.sleep(fault.for_s)
            case "redis_stalled":
                node.redis.stall()
                await asyncio.sleep(fault.for_s)
            case "livekit_refused":
                node.livekit.refuse()
                node.livekit.drop()
                await asyncio.sleep(fault.for_s)
            case "livekit_stalled":
                node.livekit.stall()
                await asyncio.sleep(fault.for_s)
            case "livekit_killed":
                await self._fake.offline()
                self._fake.crash()
                await asyncio.sleep(fault.for_s)
                await self._fake.online()
            case _:
                assert_never(fault.kind)

    async def _heal(self) -> None:
        for node in self._nodes:
            await node.redis.heal()
            await node.livekit.heal()

    async def _until_in_turn(self, node: Node) -> RoomId:
        """Return when a node waits for LiveKit in the middle of a command, with the room."""
        node.livekit.delay(answers_s=_SLOW_S)
        while True:
            moderators = [
                person
                for person in self._people
                if person.is_in and person.node is node and person.role is Role.MODERATOR
            ]
            if not moderators:
                await asyncio.sleep(_SAMPLE_S)
                continue
            person = self._chance.choice(moderators)
            is_told = asyncio.create_task(
                node.livekit.until_asked(lambda request: any(name in request for name in _TELLS))
            )
            action = self._chance.choice(["restrict", "unrestrict"])
            asking = asyncio.create_task(
                person.ask("livekit_moderation", {"action": action, "source": "microphone"}, patience_s=25)
            )
            self._asking.append(asking)
            done, _ = await asyncio.wait({is_told}, timeout=_IN_TURN_S)
            if done:
                return person.room
            is_told.cancel()
            await asyncio.gather(is_told, return_exceptions=True)

    def _have_somebody_ask(self, room: RoomId) -> None:
        """Somebody on a node that is up commands, so that the turn is wanted."""
        for person in self._people:
            if person.room == room and person.role is Role.MODERATOR and person.node is not None and person.node.is_up:
                asking = person.ask("livekit_moderation", {"action": "set_presenter"}, patience_s=20)
                self._asking.append(asyncio.create_task(asking))

    def _taken_over(self, room: RoomId) -> int:
        return sum(node.turns_taken_over(room) for node in self._nodes)

    # --- What is seen --------------------------------------------------------------------------------------------

    def _on_commit(self, commit: Commit) -> None:
        if self._is_recorded:
            return  # of people who go because all is over
        self.report.commits += 1
        self._history.committed(commit.entry)
        self._states[commit.entry.room] = commit.record.state

    def _on_fault(self, fault: StoreFault) -> None:
        self.report.broken.append(f"who only follows was told {fault}")

    def _enter_livekit(self, name: str, _room: str, credentials: dict[str, Any]) -> None:
        with suppress(JoinRefused, PublishRefused):
            self._fake.join(str(credentials["room"]), name, token=str(credentials["token"]))
            self._fake.publish(str(credentials["room"]), name, "microphone")

    async def _listen(self) -> None:
        """Who can be heard though the state forbids it, and for how long."""
        while True:
            now = time.monotonic()
            heard = set(self._forbidden())
            self._since = {who: self._since.get(who, now) for who in heard}
            longest = max((now - since for since in self._since.values()), default=0.0)
            self.report.longest_heard_s = max(self.report.longest_heard_s, longest)
            await asyncio.sleep(_SAMPLE_S)

    def _forbidden(self) -> list[tuple[str, str]]:
        found = []
        for name in self._fake.rooms:
            state = self._states.get(RoomId(name))
            if state is None:
                continue
            for someone in self._fake.participants(name):
                is_heard = any(track.source == TrackSource.MICROPHONE and not track.muted for track in someone.tracks)
                if is_heard and Source.MICROPHONE not in publishable(ParticipantId(someone.identity), state):
                    found.append((name, someone.identity))
        return found

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(10)
            for node in self._nodes:
                if node.is_up and (size := node.size()):
                    self._sizes.setdefault(f"{node.name}, process {node.pid}", (time.monotonic(), size))

    def _count(self) -> None:
        report = self.report
        for node in self._nodes:
            first = self._sizes.get(f"{node.name}, process {node.pid}")
            if first is not None:
                report.grown[node.name] = (first[1], node.size())
            report.broken += [f"{node.name}: {what}" for what in node.broken]
        seen = sum((node.seen for node in self._nodes), Counter[str]())
        report.seen = {
            "a turn taken over": seen["turn_taken_over"],
            "a commit refused by its fence": seen["commit_refused_by_fence"],
            "a staged decision finished by another node": seen["staged_command_finished"],
            "a lost answer repeated": seen["commit_repeated"],
            "a node without Redis for 10 s": sum(away >= 10 for node in self._nodes for away in node.away_s),
        }
        report.commands = sum(frame.answer is not None for frame in self._history.frames)
        report.joins = sum(person.joins for person in self._people)


def _find_sessions(history: History) -> None:
    """Clients are not told the key of their session: it is that of whoever entered while they were joining."""
    for number, sitting in enumerate(history.sittings):
        if sitting.joined_at is None or sitting.kept_out is not None:
            continue
        entered = [
            (commit.entry.revision, change.member.session)
            for commit in history.log.get(sitting.room, [])
            if sitting.asked_at - CLOCKS_S <= commit.entry.at <= sitting.joined_at + CLOCKS_S
            for change in commit.entry.changes
            if isinstance(change, Entered) and change.participant == sitting.participant
        ]
        if len(entered) == 1:
            [(revision, key)] = entered
            history.sittings[number] = replace(sitting, key=key, revision=revision)


def table(report: Report) -> Sequence[str]:
    """The figures, as a table in Markdown."""
    lost = report.of("audited_once") + report.of("answered_after_commit")
    disorder = report.of("told_in_order")
    others = [each for each in report.wrong if each not in lost and each not in disorder]
    rows = [
        ("seed, seconds of faults", f"{report.seed}, {report.seconds:g}"),
        ("people, rooms, nodes", f"{report.people}, {report.rooms}, {_NODES}"),
        *((f"fault: {kind.replace('_', ' ')}", times) for kind, times in sorted(report.faults.items())),
        *((f"seen: {what}", times) for what, times in report.seen.items()),
        ("sessions", report.joins),
        ("commits", f"{report.commits:,}"),
        ("commands acknowledged", f"{report.commands:,}"),
        ("of those lost, answered before their commit, or otherwise than kept", len(lost)),
        ("sessions with events left out, twice or out of order", len(disorder)),
        ("meetings that no order of the commands explains, and logs with gaps", len(others)),
        ("people heard in the end who may not be", len(report.left_heard)),
        ("longest that somebody could be heard who may not, under faults", f"{report.longest_heard_s:.1f} s"),
        *(
            (f"{name}: memory, open files of its last life", f"{a[0]:,} → {b[0]:,} KiB, {a[1]} → {b[1]}")
            for name, (a, b) in report.grown.items()
        ),
    ]
    return ["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows)]

"""The soak itself: nodes, Redis, LiveKit, people and faults, and what is to be said of them when it is over."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from signaling.core.changes import Entered, HandSet
from signaling.identifiers import ParticipantId, RoomId
from signaling.messages.base import Namespace
from signaling.stores import open_store
from signaling.stores.contract import Store
from signaling.testing.client import Received
from tests.histories.checking import CLOCKS_S, violations
from tests.histories.nodes import WATCHER
from tests.histories.recording import History
from tests.meetings.serving import KEY
from tests.redis_server import RedisServer
from tests.soak.bell import Bell
from tests.soak.controller import TOKEN, control
from tests.soak.hearing import ONE_NODE_S, Hearing
from tests.soak.node import Node, Size
from tests.soak.people import Person, names
from tests.soak.plan import LASTS_S, NEEDED, SHOWN_BY, Fault, Sight, plan
from tests.soak.report import Report
from tests.soak.sound import Sound
from tests.soak.trouble import Trouble
from tests.soak.witness import Witness

NODES: Final = 3
_COMING_S: Final = 120.0
_COME_A_SECOND: Final = 15
_SETTLES_S: Final = 30.0
"""A lease, the deadline of what is told LiveKit, a sweep, and what a machine with other work adds."""
_LAST_WORD_S: Final = 20.0
_LOOKS_EVERY_S: Final = 0.25
_LONG_AWAY_S: Final = 10.0
_MEASURES_AFTER_S: Final = 10.0
_ROUNDS: Final = 2
"""How often what should have been seen is tried again."""


class Soak:
    """
    Everything that runs; `run` it once.

    Args:
        directory: For the logs of all nodes, and Redis' file.
        sound: What LiveKit is.
        pause_s: How long people do nothing between two things, on average.
    """

    def __init__(
        self,
        directory: Path,
        sound: Sound,
        *,
        seed: int,
        seconds: float,
        rooms: int = 30,
        room_size: int = 10,
        pause_s: float = 12,
        say: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._sound = sound
        self._chance = random.Random(f"{seed} what is by chance")  # noqa: S311 - the same again, which no secret may be
        self._rooms = rooms_of(rooms)
        self._room_size = room_size
        self._pause_s = pause_s
        self._say = say
        self._bell = Bell()
        self._history = History()
        self._quiet, self._over = asyncio.Event(), asyncio.Event()
        self._people: list[Person] = []
        self._nodes: list[Node] = []
        self._sizes: dict[str, tuple[float, Size]] = {}
        listened = sum(map(sound.listens_to, self._rooms))
        self.report = Report(seed, seconds, rooms * room_size, rooms, NODES, sound.what, listened)

    async def run(self) -> Report:
        """From the beginning to the end of it."""
        async with AsyncExitStack() as stack:
            redis = RedisServer(self._directory / "redis", appendfsync="always")
            await stack.enter_async_context(redis)
            await stack.enter_async_context(self._sound.on(redis.port))
            store = open_store(redis.url, audit_entries=1_000_000)
            witness = Witness(store, self._history, self._bell)
            await store.open()
            stack.push_async_callback(store.close)
            for room in self._rooms:
                store.follow(room)
            settings = {
                "LIVEKIT_API_KEY": self._sound.api_key,
                "LIVEKIT_API_SECRET": self._sound.api_secret,
                "MODERATION_TICKET_KEY": KEY,
                "MODERATION_INTERNAL_TOKEN": TOKEN,
                "MODERATION_RATE_PER_S": "1000",
                "MODERATION_RATE_BURST": "1000",
            }
            self._nodes += [
                Node(
                    *(number, self._directory, settings, self._bell),
                    redis=redis.port,
                    livekit=self._sound.port(number),
                    seed=self.report.seed + 10 * number,
                )
                for number in range(NODES)
            ]
            await asyncio.gather(*(stack.enter_async_context(node) for node in self._nodes))
            trouble = Trouble(
                *(self._nodes, redis, self._sound, self._rooms, witness, self._history, self._bell, self._chance)
            )
            stack.push_async_callback(trouble.end)
            await self._happen(store, witness, trouble)
        _find_sessions(self._history)
        self._history.dump(self._directory / "history.jsonl")
        self._say("checking what was recorded")
        self.report.wrong += await asyncio.to_thread(violations, self._history)
        self._count_commands()
        return self.report

    # --- What happens --------------------------------------------------------------------------------------------

    async def _happen(self, store: Store, witness: Witness, trouble: Trouble) -> None:
        seed = self.report.seed
        for room in self._rooms:
            for name in names(self._room_size):
                chance = random.Random(f"{seed} {room} {name}")  # noqa: S311 - as above
                person = Person(
                    *(room, name, self._nodes, self._history, self._bell),
                    chance=chance,
                    pause_s=self._pause_s,
                    voice=self._sound.voice(room, name),
                )
                self._people.append(person)
        hearing = Hearing(self._sound, witness, self.report.listened_to, lambda: trouble.is_on)
        chance = random.Random(f"{seed} controller")  # noqa: S311 - as above
        moving = self._pause_s * 10 / len(self._people)
        async with asyncio.TaskGroup() as group:
            coming_s = len(self._people) / _COME_A_SECOND
            living = [
                group.create_task(person.live(self._quiet, self._over, within_s=coming_s)) for person in self._people
            ]
            controlling = group.create_task(control(self._people, self._nodes, chance, moving, self._quiet))
            watching = [group.create_task(each) for each in (hearing.listen(), self._look(), self._measure())]
            if not await self._bell.until(lambda: all(person.joins for person in self._people), _COMING_S):
                raise TimeoutError("not everybody could come before anything was wrong")
            few = len(self._people) // 20  # some are always being moved or removed
            await self._bell.until(lambda: self._sound.missing() <= few, _COMING_S)
            self._say(f"all are there, but {self._sound.missing()} in LiveKit")
            await self._go_wrong(trouble)
            self._say("waiting until all is well again")
            self._quiet.set()
            self._bell.ring()
            self.report.moves = await controlling
            await self._settle(witness, hearing)
            self._say("having a last word in each meeting")
            await self._say_last_words(witness)
            for room in self._rooms:
                self._history.audited(room, reversed(await store.audit(room, limit=1_000_000)))
            await self._count(witness, hearing)
            self._over.set()
            self._bell.ring()
            await asyncio.gather(*living)
            for task in watching:
                task.cancel()
        await asyncio.gather(*(person.close() for person in self._people))

    async def _go_wrong(self, trouble: Trouble) -> None:
        began_at = time.monotonic()
        faults = list(plan(self.report.seed, self.report.seconds, NODES))
        needed = len(NEEDED)
        for number, fault in enumerate(faults):
            if number >= needed and time.monotonic() - began_at + LASTS_S[fault.kind] > self.report.seconds:
                break
            await self._have(trouble, fault)
        for _ in range(_ROUNDS):
            for kind in dict.fromkeys(SHOWN_BY[what] for what, times in self._seen().items() if not times):
                await self._have(trouble, Fault(kind, self._chance.randrange(NODES), 1.0))
        self.report.seconds = round(time.monotonic() - began_at)

    async def _have(self, trouble: Trouble, fault: Fault) -> None:
        await asyncio.sleep(fault.after_s)
        began_at = time.monotonic()
        is_done = await trouble.have(fault)
        self.report.faults[fault.kind] += is_done
        outcome = "" if is_done else ", in vain"
        self._say(f"{fault.kind} of node {fault.node} for {time.monotonic() - began_at:.1f} s{outcome}")

    async def _settle(self, witness: Witness, hearing: Hearing) -> None:
        """Wait until everybody is in, nothing is being carried out, and nobody is heard who may not be."""

        def is_well() -> bool:
            is_staged = any(witness.staged(room) for room in self._rooms)
            return not (is_staged or hearing.forbidden) and all(
                _is_in_or_banned(person, witness) for person in self._people
            )

        async with asyncio.timeout(2 * _SETTLES_S):
            well_since, began_at = None, time.monotonic()
            while time.monotonic() - began_at < _SETTLES_S:
                await asyncio.sleep(_LOOKS_EVERY_S)
                if not is_well():
                    well_since = None
                elif well_since is None:
                    well_since = time.monotonic()
                elif time.monotonic() - well_since > 1:
                    break
        self.report.left_heard = [f"{who} in {room}" for room, who in hearing.forbidden]
        self.report.wrong += [
            f"not_in: {person.name} could not come back to {person.room}"
            for person in self._people
            if not _is_in_or_banned(person, witness)
        ]

    async def _say_last_words(self, witness: Witness) -> None:
        """
        In each meeting one command is told to everybody in it, and there the record ends.

        Who has been told of it has been told of all before it; what comes later may be on its way still.
        """
        said = await asyncio.gather(*(self._say_last_word(room, witness) for room in self._rooms))
        self.report.wrong += [f"last_word: {what}" for found in said for what in found]

    async def _say_last_word(self, room: RoomId, witness: Witness) -> list[str]:
        here = [person for person in self._people if person.room == room]
        speakers = [person.seat for person in here if person.name == WATCHER and person.is_in]
        if not speakers or speakers[0] is None:
            return [f"nobody is left in {room} who could say it"]
        seats = [(person.name, seat) for person in here for seat in person.seats if seat.goes_on]
        for _, seat in seats:
            seat.record()
        await speakers[0].ask("control", {"action": "raise_hand"})
        for _, seat in seats:
            seat.ends_with = _is_last_word
        before, began_at = len(self._history.log[room]), time.time()
        await speakers[0].ask("control", {"action": "lower_hand"})
        is_kept = await self._bell.until(lambda: self._keep_until_last_word(room, before), _LAST_WORD_S)
        witness.end(room)
        await self._bell.until(lambda: all(seat.is_done or not seat.goes_on for _, seat in seats), _LAST_WORD_S)
        self._forget_who_came(room, began_at, {seat.number for _, seat in seats})
        untold = [f"{name} in {room} was not told" for name, seat in seats if seat.goes_on and not seat.is_done]
        return untold if is_kept else [f"the log of {room} does not have it", *untold]

    def _keep_until_last_word(self, room: RoomId, after: int) -> bool:
        log = self._history.log[room]
        for index in range(after, len(log)):
            if any(isinstance(each, HandSet) and _is_lowered(each) for each in log[index].entry.changes):
                del log[index + 1 :]
                return True
        return False

    def _forget_who_came(self, room: RoomId, since: float, known: set[int]) -> None:
        """Who came since then is in no record."""
        for number, sitting in enumerate(self._history.sittings):
            if sitting.room == room and sitting.asked_at >= since and number not in known:
                self._history.sittings[number] = replace(sitting, joined_at=None)

    # --- What is seen --------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOKS_EVERY_S)
            self._sound.report_to([node.internal_port for node in self._nodes if node.is_up])
            self._sound.look()
            late = [person for person in self._people if person.look()]
            await asyncio.gather(*(person.renew() for person in late))
            self._bell.ring()

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(_MEASURES_AFTER_S)
            for node in self._nodes:
                if node.is_up and (life := _life(node)) not in self._sizes and (size := await node.size()) is not None:
                    self._sizes[life] = time.monotonic(), size

    def _seen(self) -> dict[Sight, int]:
        seen = sum((node.seen for node in self._nodes), Counter[str]())
        long_away = [away_s for node in self._nodes for away_s in node.away_s if away_s >= _LONG_AWAY_S]
        return {
            "a turn taken over": seen["turn_taken_over"],
            "a commit refused by its fence": seen["commit_refused_by_fence"],
            "a staged decision finished by another node": seen["staged_command_finished"],
            "a lost answer repeated": seen["commit_repeated"],
            "a node without Redis for 10 s": len(long_away),
        }

    async def _count(self, witness: Witness, hearing: Hearing) -> None:
        report = self.report
        for node in self._nodes:
            known, size = self._sizes.get(_life(node)), await node.size()
            if known is not None and size is not None:
                report.grown[node.name] = time.monotonic() - known[0], known[1], size
            report.broken += [f"{node.name}: {what}" for what in node.broken]
            for began_at, ended_at in node.outages:
                self._history.was_silent(node.name, began_at, ended_at)
            report.webhooks += await node.webhooks()
        report.broken += witness.broken
        report.seen = {str(what): times for what, times in self._seen().items()}
        report.let_in_again = sum(node.seen["let_in_again"] for node in self._nodes)
        report.commits = witness.commits
        report.joins = sum(person.joins for person in self._people)
        report.beyond = [f"{who}, longer than {ONE_NODE_S:g} s" for who in hearing.beyond]
        report.heard_times, report.heard_ever = hearing.times, len(hearing.ever)
        report.listened_share = hearing.listened[0] / max(hearing.listened[1], 1)
        report.longest_s, report.longest_without_s = hearing.longest_s, hearing.longest_without_s

    def _count_commands(self) -> None:
        answers = [frame.answer for frame in self._history.frames]
        self.report.unanswered = sum(answer is None for answer in answers)
        self.report.refused = sum(answer is not None and "error" in answer.payload for answer in answers)
        self.report.acknowledged = len(answers) - self.report.unanswered - self.report.refused


def rooms_of(number: int) -> list[RoomId]:
    """So many meetings."""
    return [RoomId(f"room-{each}") for each in range(number)]


def _life(node: Node) -> str:
    return f"{node.name}, process {node.pid}"


def _is_in_or_banned(person: Person, witness: Witness) -> bool:
    state = witness.states.get(person.room)
    return person.is_in or (state is not None and ParticipantId(person.name) in state.bans)


def _is_lowered(change: HandSet) -> bool:
    return change.participant == WATCHER and not change.up


def _is_last_word(frame: Received) -> bool:
    """Whether it tells, to whoever did it or to others, that the hand of who stays until the end is down."""
    if frame.namespace != Namespace.CONTROL:
        return False
    is_others = frame.message == "update" and frame.payload["id"] == WATCHER
    return frame.message == "hand_lowered" or (is_others and not frame.payload["control"]["hand_is_up"])


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

"""What carries the faults of a plan out, one after the other."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, assert_never

from signaling.core.participants import Source
from signaling.core.policy import publishable
from signaling.identifiers import RoomId
from tests.histories.recording import History
from tests.redis_server import RedisServer
from tests.soak.bell import Bell
from tests.soak.node import Node
from tests.soak.people import Person
from tests.soak.plan import LASTS_S, Fault
from tests.soak.sound import Sound
from tests.soak.witness import Witness

_TAKEN_OVER: Final = "turn_taken_over"
_REFUSED: Final = "commit_refused_by_fence"
_FINISHED: Final = "staged_command_finished"
_TRIES: Final = 5
_STAGED_S: Final = 6.0
_TAKEN_OVER_S: Final = 20.0
"""A lease, and what a machine with other work adds."""
_FINISHED_S: Final = 15.0
_SLOW_S: Final = 1.5
"""Less than the deadline of a call, and long enough for somebody to be stopped meanwhile."""
_COMMITTED_S: Final = 10.0
_TELLS: Final = b"/UpdateParticipant"
_APPENDS: Final = b'"revision":'
"""What is in a commit on its way to Redis, and in no other request."""


class Trouble:
    """
    Everything that goes wrong.

    Attributes:
        is_on: Whether something is wrong just now.
        not_brought_about: What was tried in vain.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        redis: RedisServer,
        sound: Sound,
        rooms: Sequence[RoomId],
        witness: Witness,
        history: History,
        bell: Bell,
        chance: random.Random,
    ) -> None:
        self.is_on = False
        self.not_brought_about: list[str] = []
        self._nodes = nodes
        self._redis = redis
        self._sound = sound
        self._rooms = rooms
        self._witness = witness
        self._history = history
        self._bell = bell
        self._chance = chance
        self._asking: set[asyncio.Task[Any]] = set()

    async def have(self, fault: Fault) -> bool:
        """Let something go wrong, and come right again: whether it could be brought about."""
        self.is_on = True
        try:
            is_done = await self._have(fault, self._nodes[fault.node])
        finally:
            await self.heal()
            self.is_on = False
        if not is_done:
            self.not_brought_about.append(fault.kind)
        return is_done

    async def heal(self) -> None:
        """Nothing is in the way any more."""
        for node in self._nodes:
            await node.redis.heal()
            await node.livekit.heal()

    async def end(self) -> None:
        """Nothing is asked any more."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _have(self, fault: Fault, node: Node) -> bool:  # noqa: PLR0915 - a case for each kind
        for_s = LASTS_S[fault.kind]
        match fault.kind:
            case "node_killed_in_turn":
                return await self._kill_in_turn(node)
            case "node_paused_in_turn":
                return await self._pause_in_turn(node)
            case "answer_lost":
                return await self._lose_answer(node)
            case "node_without_redis":
                node.suffers()
                node.redis.refuse()
                node.redis.drop()
                await asyncio.sleep(for_s)
                await node.redis.heal()
                node.recovered()
            case "node_killed":
                await node.kill()
                await asyncio.sleep(for_s)
                await node.start()
            case "node_paused":
                node.pause()
                await asyncio.sleep(for_s)
                node.resume()
            case "redis_killed":
                await self._redis.kill()
                await asyncio.sleep(for_s)
                await self._redis.start()
            case "redis_paused":
                self._redis.pause()
                await asyncio.sleep(for_s)
                self._redis.resume()
            case "redis_dropped":
                node.redis.drop()
            case "redis_delayed":
                node.redis.delay(0.05, 0.05)
                await asyncio.sleep(for_s)
            case "redis_request_halved" | "redis_answer_halved":
                node.redis.halve(answers=fault.kind == "redis_answer_halved")
                await asyncio.sleep(for_s)
            case "redis_stalled":
                node.redis.stall()
                await asyncio.sleep(for_s)
            case "livekit_refused":
                node.livekit.refuse()
                node.livekit.drop()
                await asyncio.sleep(for_s)
            case "livekit_stalled":
                node.livekit.stall()
                await asyncio.sleep(for_s)
            case "livekit_killed":
                await self._sound.kill(fault.node)
                await asyncio.sleep(for_s)
                await self._sound.start(fault.node)
            case "livekit_paused":
                self._sound.pause(fault.node)
                await asyncio.sleep(for_s)
                self._sound.resume(fault.node)
            case _:
                assert_never(fault.kind)
        return True

    # --- In a turn -----------------------------------------------------------------------------------------------

    async def _kill_in_turn(self, node: Node) -> bool:
        async with self._in_turn(node) as found:
            if found is None:
                return False
            room, other = found
            taken_over, finished = self._logged(_TAKEN_OVER, room), self._logged(_FINISHED, room)
            await node.kill()
            node.livekit.delay()
            self._have_ask(other, {"action": "set_presenter"})
            is_seen = await self._until_logged(_TAKEN_OVER, room, taken_over, _TAKEN_OVER_S)
            is_seen = is_seen and await self._until_logged(_FINISHED, room, finished, _FINISHED_S)
            await node.start()
            return is_seen

    async def _pause_in_turn(self, node: Node) -> bool:
        async with self._in_turn(node) as found:
            if found is None:
                return False
            room, other = found
            taken_over, refused = self._logged(_TAKEN_OVER, room), self._logged(_REFUSED, room)
            finished = self._logged(_FINISHED, room)
            node.pause()
            for each in self._nodes:  # whoever takes over is still at it when this one goes on
                each.livekit.delay(answers_s=_SLOW_S)
            self._have_ask(other, {"action": "set_presenter"})
            is_seen = await self._until_logged(_TAKEN_OVER, room, taken_over, _TAKEN_OVER_S)
            node.resume()
            is_seen = is_seen and await self._until_logged(_REFUSED, room, refused, _FINISHED_S)
            return is_seen and await self._until_logged(_FINISHED, room, finished, _FINISHED_S)

    @asynccontextmanager
    async def _in_turn(self, node: Node) -> AsyncIterator[tuple[RoomId, Person] | None]:
        """A meeting in which LiveKit answers a node late, and who is in it on another node to take the turn over."""
        others = [other for other in self._nodes if other is not node]
        node.livekit.delay(answers_s=_SLOW_S)
        for _ in range(_TRIES):
            room = self._chance.choice(self._rooms)
            here, there = self._moderator(room, "tess"), self._moderator(room, "tim")
            try:
                if not (await here.come(node=node) and await there.come(node=self._chance.choice(others))):
                    continue
                if (command := self._command_about_one(room)) is None:
                    continue
                is_asked = asyncio.create_task(node.livekit.until_asked(lambda request: _TELLS in request))
                self._have_ask(here, command)
                is_staged = await self._until_staged(room)
                await asyncio.wait({is_asked}, timeout=_STAGED_S if is_staged else 0)
                is_told = is_asked.done()
                is_asked.cancel()
                await asyncio.gather(is_asked, return_exceptions=True)
                if is_told and self._witness.staged(room) is not None:
                    yield room, there
                    return
            finally:
                await here.close()
                await there.close()
        yield None

    def _command_about_one(self, room: RoomId) -> dict[str, Any] | None:
        """What takes a single call, so that who was stopped in it has nothing left to do but to commit."""
        state = self._witness.states.get(room)
        if state is None:
            return None
        allowed = [
            who
            for who, member in sorted(state.members.items())
            if who.startswith("guest") and member.returns_until is None and Source.CAMERA in publishable(who, state)
        ]
        if not allowed:
            return None
        return {"action": "disallow", "source": "camera", "participants": [self._chance.choice(allowed)]}

    def _moderator(self, room: RoomId, name: str) -> Person:
        return Person(room, name, self._nodes, self._history, self._bell, chance=self._chance, pause_s=1)

    def _have_ask(self, person: Person, payload: dict[str, Any]) -> None:
        """Have somebody command, and wait for nothing."""
        assert person.seat is not None
        self._asking.add(task := asyncio.create_task(person.seat.ask("livekit_moderation", payload, patience_s=30)))
        task.add_done_callback(self._asking.discard)

    async def _until_staged(self, room: RoomId) -> bool:
        before = self._witness.staged(room)
        return await self._bell.until(lambda: self._witness.staged(room) not in {None, before}, _STAGED_S)

    async def _until_logged(self, event: str, room: RoomId, before: int, within_s: float) -> bool:
        return await self._bell.until(lambda: self._logged(event, room) > before, within_s)

    def _logged(self, event: str, room: RoomId) -> int:
        return sum(node.logged(event, room) for node in self._nodes)

    # --- An answer -----------------------------------------------------------------------------------------------

    async def _lose_answer(self, node: Node) -> bool:
        before = node.seen["commit_repeated"]
        person = self._moderator(self._chance.choice(self._rooms), "tess")
        try:
            for _ in range(_TRIES):
                if not person.is_in and not await person.come(node=node):
                    continue
                node.redis.lose_answer(lambda request: _APPENDS in request)
                self._have_ask(person, {"action": "set_presenter"})
                if await self._bell.until(lambda: node.seen["commit_repeated"] > before, _COMMITTED_S):
                    return True
        finally:
            await person.close()
        return False

"""Who takes part in the soak: each connects to some node, does this and that, and comes back when cut off."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from websockets.exceptions import InvalidHandshake, WebSocketException

from signaling import Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.server.tickets import make_ticket
from signaling.testing.client import NotTold, SignalingClient, SignalingRefused
from tests.histories.nodes import PEOPLE, WATCHER, some_command
from tests.histories.recording import History
from tests.meetings.serving import KEY
from tests.soak.node import Node

_CONNECTING_S: Final = 6
_PATIENCE_S: Final = 20
_EXTENSIONS: Final = frozenset({"livekit_moderation", "control"})

Entering = Callable[[str, str, dict[str, Any]], None]


class Person:
    """
    Somebody in a meeting, over all their sessions.

    Args:
        enter: Told of their name, room and credentials for LiveKit at each join.
    """

    def __init__(
        self,
        room: RoomId,
        name: str,
        nodes: Sequence[Node],
        history: History,
        *,
        chance: random.Random,
        enter: Entering,
        pause_s: float,
    ) -> None:
        self.room, self.name = room, name
        self.role = PEOPLE.get(name, Role.MODERATOR if name == WATCHER else Role.USER)
        self.node: Node | None = None
        self.joins = 0
        self._nodes = nodes
        self._history = history
        self._chance = chance
        self._enter = enter
        self._pause_s = pause_s
        self._client: SignalingClient | None = None
        self._session = -1
        self._recorded = 0
        self._transactions = 0
        self._command_ids: list[str] = []
        self._request = "none"
        self._offset_s = 0.0

    @property
    def is_in(self) -> bool:
        """Whether they are connected, as far as they know."""
        return self._client is not None

    async def live(self, quiet: asyncio.Event, over: asyncio.Event) -> None:
        """Come, act until it is to be quiet, stay until it is over."""
        self._offset_s = time.time() - asyncio.get_running_loop().time()
        while not over.is_set():
            if self._client is None and not await self._come():
                await asyncio.sleep(self._chance.uniform(0.2, 1))
                continue
            if quiet.is_set():
                await self._stay(over)
            else:
                await asyncio.sleep(self._chance.expovariate(1 / self._pause_s))
                if not quiet.is_set() and not over.is_set():
                    await self._act()
            self._look_whether_over()
        self._record()

    async def close(self) -> None:
        """Be gone."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def ask(self, namespace: str, payload: dict[str, Any], *, patience_s: float = _PATIENCE_S) -> bool:
        """Send a command; whether anything came back."""
        client = self._client
        if client is None:
            return False
        self._transactions += 1
        number = self._transactions
        self._history.asked(self._session, namespace, payload, transaction_id=number, at=time.time())
        asked_in = len(client.inbox)
        fields = {name: value for name, value in payload.items() if name != "action"}
        try:
            async with asyncio.timeout(patience_s):
                await client.send(payload["action"], namespace=namespace, transaction_id=number, **fields)
                closed = asyncio.ensure_future(client.connection.wait_closed())
                answered = asyncio.ensure_future(_answer(client, number, asked_in))
                try:
                    await asyncio.wait({closed, answered}, return_when=asyncio.FIRST_COMPLETED)
                    return answered.done()
                finally:
                    closed.cancel()
                    answered.cancel()
                    await asyncio.gather(closed, answered, return_exceptions=True)
        except (TimeoutError, WebSocketException, OSError):
            return False

    async def _come(self) -> bool:
        up = [node for node in self._nodes if node.is_up]
        if not up:
            return False
        node = self._chance.choice(up)
        who = Participant(ParticipantId(self.name), self.role, display_name=self.name.title())
        client = SignalingClient(node.url, make_ticket(KEY, "HS256", who, self.room))
        session = self._history.joining(self.room, self.name, at=time.time(), node=node.name, extensions=_EXTENSIONS)
        try:
            async with asyncio.timeout(_CONNECTING_S):
                await client.__aenter__()
                welcome = await client.join()
        except SignalingRefused as refused:
            if refused.error == "banned":
                self._history.kept_out(session, "banned", at=time.time())
            return False
        except (TimeoutError, NotTold, WebSocketException, InvalidHandshake, OSError):
            if client._connection is not None:
                client.connection.transport.abort()
            return False
        self._history.joined(session, at=time.time())
        self._client, self._session, self.node, self._recorded = client, session, node, 0
        self.joins += 1
        if "livekit" in welcome:
            self._enter(self.name, self.room, welcome["livekit"])
        return True

    async def _act(self) -> None:
        chance = self._chance
        what = chance.random()
        if self.name != WATCHER and what < 0.04:
            await self._go(1000)
        elif self.name != WATCHER and what < 0.08:
            await self._go(4321)  # a place is kept for who goes like that
        else:
            namespace, payload = some_command(chance, self._command_ids, self._request)
            if self.name not in {WATCHER, *PEOPLE}:
                namespace, payload = "control", {"action": chance.choice(["raise_hand", "lower_hand"])}
            await self.ask(namespace, payload)

    async def _go(self, code: int) -> None:
        client = self._client
        if client is None:
            return
        try:
            async with asyncio.timeout(_CONNECTING_S):
                await client.close(code)
        except TimeoutError:
            client.connection.transport.abort()
        self._has_ended()

    async def _stay(self, over: asyncio.Event) -> None:
        assert self._client is not None
        gone = asyncio.ensure_future(self._client.connection.wait_closed())
        waiting = asyncio.ensure_future(over.wait())
        await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        waiting.cancel()
        await asyncio.gather(gone, waiting, return_exceptions=True)

    def _look_whether_over(self) -> None:
        if self._client is not None and self._client.connection.close_code is not None:
            self._has_ended()
        elif self._client is not None:
            self._record()

    def _has_ended(self) -> None:
        self._record()
        self._history.ended(self._session, None, at=time.time())
        self._client = None

    def _record(self) -> None:
        """What has come since the last time goes into the history."""
        if self._client is None:
            return
        for frame in self._client.inbox[self._recorded :]:
            self._recorded += 1
            self._history.delivered(
                self._session, frame.namespace, frame.payload, frame.transaction_id, at=frame.at + self._offset_s
            )
            if (command_id := frame.payload.get("command_id")) is not None:
                self._command_ids.append(command_id)
            if frame.message == "unmute_requested":
                self._request = frame.payload["request_id"]


async def _answer(client: SignalingClient, number: int, since: int) -> None:
    async with client._arrived:
        await client._arrived.wait_for(lambda: any(frame.transaction_id == number for frame in client.inbox[since:]))


def names(size: int) -> list[str]:
    """Who is in a room of so many: those who moderate first."""
    everyone = [WATCHER, *PEOPLE]
    return [*everyone, *(f"guest-{number}" for number in range(max(0, size - len(everyone))))][:size]

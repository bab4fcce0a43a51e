"""Who takes part in the soak: each connects to some node, does this and that, and comes back when cut off."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from websockets.exceptions import WebSocketException

from signaling import Participant, Role
from signaling.identifiers import ParticipantId, RoomId
from signaling.server.tickets import make_ticket
from signaling.testing.client import NotTold, Received, SignalingClient, SignalingRefused
from tests.histories.nodes import PEOPLE, WATCHER, some_command
from tests.histories.recording import History
from tests.meetings.serving import KEY
from tests.soak.bell import Bell
from tests.soak.node import Node
from tests.soak.sound import Voice

_CONNECTING_S: Final = 6
_PATIENCE_S: Final = 20
_OF_THE_CONNECTION: Final = frozenset({"moderation"})
"""Why the server closes, after the last event of the meeting; see `docs/protocol.md`."""
_SOON_S: Final = 1.0
_BANNED_S: Final = 10.0
_LOOKS_EVERY_S: Final = 0.5
_EXTENSIONS: Final = frozenset({"livekit_moderation", "control"})


class Seat:
    """
    One session of somebody.

    Attributes:
        goes_on: Whether the client is connected.
        ends_with: The last frame that is recorded; none is yet while there is no such.
        is_done: Whether that has come.
        credentials: The newest for LiveKit that were not looked at.
        is_without: Whether the newest could not be made, since LiveKit did not answer.
    """

    def __init__(self, number: int, node: Node, client: SignalingClient, bell: Bell, history: History) -> None:
        self.number, self.node, self.client = number, node, client
        self.goes_on = True
        self.ends_with: Callable[[Received], bool] = lambda _: False
        self.is_done = False
        self.is_without = False
        self._bell = bell
        self._history = history
        self._recorded = 0
        self._transactions = 0
        self._offset_s = time.time() - time.monotonic()
        self._left_at: float | None = None
        self._watching = asyncio.create_task(self._until_closed())
        self._command_ids: list[str] = []
        self._request = "none"
        self.credentials: dict[str, Any] = {}

    async def ask(self, namespace: str, payload: dict[str, Any], *, patience_s: float = _PATIENCE_S) -> Received | None:
        """Send a command; what it was answered by, if anything."""
        self._transactions += 1
        number = self._transactions
        self._history.asked(self.number, namespace, payload, transaction_id=number, at=time.time())
        asked_in = len(self.client.inbox)
        fields = {name: value for name, value in payload.items() if name != "action"}
        with suppress(TimeoutError, WebSocketException, OSError):
            async with asyncio.timeout(patience_s):
                await self.client.send(payload["action"], namespace=namespace, transaction_id=number, **fields)

        def answers() -> list[Received]:
            return [frame for frame in self.client.inbox[asked_in:] if frame.transaction_id == number]

        async def answer() -> None:
            async with self.client._arrived:
                await self.client._arrived.wait_for(lambda: bool(answers()))

        answering = asyncio.create_task(answer())
        await asyncio.wait({answering, self._watching}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        found = answers()
        return found[0] if found else None

    async def some_command(self, chance: random.Random) -> None:
        """Ask for this or that."""
        await self.ask(*some_command(chance, self._command_ids, self._request))

    async def leave(self, code: int) -> None:
        """Close the connection with this code."""
        self._left_at = time.time()
        try:
            async with asyncio.timeout(_CONNECTING_S):
                await self.client.close(code)
        except TimeoutError:
            self.client.connection.transport.abort()
        await self._watching

    def record(self) -> None:
        """What has come since the last time goes into the history."""
        for frame in self.client.inbox[self._recorded :]:
            if self.is_done:
                return
            self._recorded += 1
            if frame.namespace in _OF_THE_CONNECTION:
                continue
            self._history.delivered(
                self.number, frame.namespace, frame.payload, frame.transaction_id, at=frame.at + self._offset_s
            )
            if (command_id := frame.payload.get("command_id")) is not None:
                self._command_ids.append(command_id)
            if frame.message == "unmute_requested":
                self._request = frame.payload["request_id"]
            if frame.message == "credentials":
                self.credentials = frame.payload
                self.is_without = False
            if frame.message == "error" and frame.payload.get("error") == "livekit_unavailable":
                self.is_without = True
            self.is_done = self.ends_with(frame)

    async def _until_closed(self) -> None:
        await self.client.connection.wait_closed()
        self.goes_on = False
        ended_at = time.time()
        reading = self.client._reading
        assert reading is not None
        await reading
        self.record()
        if not self.is_done:
            began_at = self._left_at or self.node.outage_before(ended_at)
            self._history.ended(self.number, None, at=ended_at if began_at is None else began_at)
        self._bell.ring()


class Person:
    """
    Somebody in a meeting, over all their sessions.

    Attributes:
        seat: Their newest session, if there was any.
        seats: Those that go on, and those that were not looked at since they ended.
        joins: How many there were.
    """

    def __init__(
        self,
        room: RoomId,
        name: str,
        nodes: Sequence[Node],
        history: History,
        bell: Bell,
        *,
        chance: random.Random,
        pause_s: float,
        voice: Voice | None = None,
    ) -> None:
        self.room, self.name = room, name
        moderates = name not in PEOPLE and not name.startswith("guest")
        self.role = Role.MODERATOR if moderates else PEOPLE.get(name, Role.USER)
        self.seat: Seat | None = None
        self.seats: list[Seat] = []
        self.joins = 0
        self._nodes = nodes
        self._history = history
        self._bell = bell
        self._chance = chance
        self._pause_s = pause_s
        self._voice = voice
        self._patience_s = _SOON_S

    @property
    def is_in(self) -> bool:
        """Whether they are connected."""
        return self.seat is not None and self.seat.goes_on

    async def live(self, quiet: asyncio.Event, over: asyncio.Event, *, within_s: float) -> None:
        """Come within that time, act until it is to be quiet, stay until it is over."""
        await _until(over, self._chance.uniform(0, within_s))
        while not over.is_set():
            if not self.is_in:
                self._patience_s = _SOON_S
                if not await self.come():
                    await _until(over, self._chance.uniform(self._patience_s / 5, self._patience_s))
            elif quiet.is_set():
                await _until(over, _LOOKS_EVERY_S)
            else:
                await _until(quiet, self._chance.expovariate(1 / self._pause_s))
                if not quiet.is_set():
                    await self._act()

    async def come(self, *, node: Node | None = None) -> bool:
        """Connect to a node, and join; whether that came to anything."""
        up = [each for each in self._nodes if each.is_up]
        if node is None:
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
                self._patience_s = _BANNED_S
            return False
        except (TimeoutError, NotTold, WebSocketException, OSError):
            if client._connection is not None:
                client.connection.transport.abort()
                await client.close()
            return False
        self._history.joined(session, at=time.time())
        self.seat = Seat(session, node, client, self._bell, self._history)
        self.seats.append(self.seat)
        self.joins += 1
        if "livekit" in welcome and self._voice is not None:
            self._voice.allow(welcome["livekit"])
        return True

    async def close(self) -> None:
        """Be gone."""
        await asyncio.gather(*(seat.leave(1000) for seat in self.seats))

    async def _act(self) -> None:
        if self.seat is None or not self.seat.goes_on:
            return
        chance, what = self._chance, self._chance.random()
        if self.name != WATCHER and what < 0.04:
            await self.seat.leave(1000)
            if self._voice is not None:
                self._voice.leave()
        elif self.name != WATCHER and what < 0.08:
            await self.seat.leave(4321)  # a place is kept for who goes like that
        elif self.name != WATCHER and what < 0.1:
            await self.come()  # on another node, perhaps, while the first connection is there
        elif self.name in {WATCHER, *PEOPLE}:
            await self.seat.some_command(chance)
        else:
            await self.seat.ask("control", {"action": chance.choice(["raise_hand", "lower_hand"])})

    def look(self) -> bool:
        """
        What has come is recorded, and LiveKit is joined by it.

        Returns:
            Whether what LiveKit is joined with has to be asked for, see `renew`.
        """
        for seat in self.seats:
            seat.record()
        self.seats = [seat for seat in self.seats if seat.goes_on]
        if self._voice is None or self.seat is None:
            return False
        if self.seat.credentials:
            self._voice.allow(self.seat.credentials)
            self.seat.credentials = {}
        self._voice.look(is_wanted=self.is_in)
        return self.is_in and (self._voice.wants_credentials or self.seat.is_without)

    async def renew(self) -> None:
        """Ask for what LiveKit is joined with."""
        assert self._voice is not None
        assert self.seat is not None
        self._voice.wants_credentials = self.seat.is_without = False
        with suppress(TimeoutError, WebSocketException, OSError):
            async with asyncio.timeout(_CONNECTING_S):
                await self.seat.client.send("create_new_access_token")


async def _until(event: asyncio.Event, within_s: float) -> None:
    """Wait for that, and no longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()


def names(size: int) -> list[str]:
    """Who is in a room of so many: those who moderate first."""
    everyone = [WATCHER, *PEOPLE]
    return [*everyone, *(f"guest-{number}" for number in range(max(0, size - len(everyone))))][:size]

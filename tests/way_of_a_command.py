"""
Which files of `signaling/` a command enters, and how often it moves between them: `python -m tests.way_of_a_command`.

A moderator restricts the microphones in a meeting of ten, in a module with the memory store on the fake RoomService.
The way begins with the text of the moderator's frame, and ends with the text of the last event that anybody is told;
what settles afterwards does not count, and `signaling/testing` is none of it.

A move is a call of a function in another file, or the return from it, and whoever reads the way makes it once: what is
done for each of ten people, or once more after an await, is no new move. What is called by way of other packages is
called by the function that called those. How often all of it happened is printed beside it.
"""

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Final, NamedTuple

import structlog

import signaling
from signaling import Delivery, Kind, Participant, Role
from signaling.identifiers import ParticipantId
from signaling.messages.envelope import parse_frame
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, meeting_on_fake

PEOPLE: Final = 10
SHOWN: Final = 20
PACKAGE: Final = Path(signaling.__file__).parent
HARNESS: Final = PACKAGE / "testing"


class Function(NamedTuple):
    """A function of `signaling/`, with what is written inside it."""

    file: str
    name: str


class Move(NamedTuple):
    """From one file to another."""

    by: str
    begin: Function
    end: Function


@dataclass
class Way:
    """
    The way of whatever this thread does between `begin` and `end`.

    Attributes:
        files: Which were entered, in this order.
        moves: How many times each was made.
    """

    files: list[str] = field(default_factory=list)
    moves: Counter[Move] = field(default_factory=Counter)
    _functions: dict[CodeType, Function | None] = field(default_factory=dict)

    def begin(self) -> None:
        sys.setprofile(self._note)

    def end(self) -> None:
        sys.setprofile(None)

    def between(self) -> Counter[tuple[str, str]]:
        """How many moves there are from one file to another."""
        return Counter((move.begin.file, move.end.file) for move in self.moves)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        called = self._function(frame.f_code)
        if event not in {"call", "return"} or called is None:
            return
        if called.file not in self.files:
            self.files.append(called.file)
        caller = self._caller(frame)
        if caller is not None and caller.file != called.file:
            self.moves[Move(event, *((caller, called) if event == "call" else (called, caller)))] += 1

    def _caller(self, frame: FrameType) -> Function | None:
        """The function of ours from which this one was called, at once or by way of others; none for a task's first."""
        above = frame.f_back
        while above is not None:
            if (caller := self._function(above.f_code)) is not None:
                return caller
            above = above.f_back
        return None

    def _function(self, code: CodeType) -> Function | None:
        if code not in self._functions:
            path = Path(code.co_filename)
            is_ours = path.is_relative_to(PACKAGE) and not path.is_relative_to(HARNESS)
            name = code.co_qualname.partition(".<")[0]
            self._functions[code] = Function(path.relative_to(PACKAGE).as_posix(), name) if is_ours else None
        return self._functions[code]


@dataclass
class Everybody:
    """Those in the meeting, what they are told as a number, and the way that ends with the last of it."""

    told: int = 0
    way: Way | None = None
    ends_at: int = 0

    def deliver(self, delivery: Delivery) -> None:
        assert delivery.text
        self.told += 1
        if self.way is not None and self.told == self.ends_at:
            self.way.end()


async def walk(action: str = "enable_microphone_restrictions", undo: str = "disable_microphone_restrictions") -> Way:
    """The way of a command, after it was gone once before."""
    everybody = Everybody()
    async with FakeRoomService() as fake, meeting_on_fake(fake) as meeting:
        sessions = []
        for number in range(PEOPLE):
            role = Role.USER if number else Role.MODERATOR
            participant = Participant(ParticipantId(f"p{number}"), role=role, kind=Kind.USER)
            session = await meeting.module.join(
                ROOM, participant, deliver=everybody.deliver, extensions=frozenset({"livekit_moderation"})
            )
            assert session.join_data is not None
            fake.join(ROOM, participant.id, token=str(session.join_data["token"]))
            sessions.append(session)

        async def send(text: str) -> None:
            frame = parse_frame(text)
            await sessions[0].receive(frame.namespace.value, frame.payload, frame.transaction_id)

        before = everybody.told
        await send(frame_of(action))
        events = everybody.told - before
        await send(frame_of(undo))
        everybody.ends_at = everybody.told + events
        everybody.way = way = Way()
        text = frame_of(action)
        way.begin()
        try:
            await send(text)
        finally:
            way.end()
        assert everybody.told == everybody.ends_at
    return way


def frame_of(action: str) -> str:
    fields: dict[str, object] = {"unrestricted_participants": []} if action.startswith("enable") else {}
    return json.dumps({"namespace": "livekit", "payload": {"action": action, **fields}, "transaction_id": 1})


def told(way: Way) -> list[str]:
    """What is printed, line by line."""
    pairs = way.between()
    made: Counter[tuple[str, str]] = Counter()
    for move, times in way.moves.items():
        made[move.begin.file, move.end.file] += times
    return [
        *(f"{number:3} {file}" for number, file in enumerate(way.files, start=1)),
        f"{len(way.files)} files, {len(way.moves)} moves between them, made {way.moves.total()} times",
        f"{'moves':>5} {'times':>6}",
        *(f"{moves:5} {made[pair]:6} {pair[0]} -> {pair[1]}" for pair, moves in pairs.most_common(SHOWN)),
    ]


def main() -> None:
    with structlog.testing.capture_logs():
        way = asyncio.run(walk())
    sys.stdout.write("\n".join(told(way)) + "\n")


if __name__ == "__main__":
    main()

"""Distinct types for strings that must not be swapped, and what each may look like."""

import re
from typing import Final, NewType
from uuid import UUID, uuid4

RoomId = NewType("RoomId", str)
"""A meeting."""
BreakoutId = NewType("BreakoutId", str)
"""A breakout room of a meeting."""
LiveKitRoom = NewType("LiveKitRoom", str)
"""LiveKit's name of a room: the meeting's, with the breakout's appended."""
ParticipantId = NewType("ParticipantId", str)
"""Somebody in a meeting."""
Identity = NewType("Identity", str)
"""The `sub` of a LiveKit token: a participant's id, or the name of one of their popouts."""
TrackSid = NewType("TrackSid", str)
"""LiveKit's id of a published track."""
CommandId = NewType("CommandId", str)
"""Our id of a command that was carried out."""
SessionId = NewType("SessionId", str)
"""Our id of one participant's way into a meeting, on whichever node."""
NodeId = NewType("NodeId", str)
"""Our id of one process that looks after meetings, until it ends."""

MAX_LENGTH: Final = 127
CONTROLLER: Final = ParticipantId("controller")
"""Stands for the host in events; nobody may have this id."""

_UUID: Final = re.compile(
    r"[0-9a-f]{32}|(?:urn:uuid:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}",
    re.IGNORECASE | re.ASCII,
)
_PLAIN: Final = re.compile(rf"[A-Za-z0-9._@-]{{1,{MAX_LENGTH}}}")
_PARTICIPANT: Final = re.compile(rf"[A-Za-z0-9._@:-]{{1,{MAX_LENGTH}}}")
_IN_PATHS: Final = frozenset({".", ".."})
"""What every client takes out of a path before it asks."""
_POPOUT: Final = re.compile(r"-popout[0-9]+\Z")


def new_command_id() -> CommandId:
    """A fresh id for a command."""
    return CommandId(uuid4().hex)


def new_session_id() -> SessionId:
    """A fresh id for a session."""
    return SessionId(uuid4().hex)


def new_node_id() -> NodeId:
    """A fresh id for a process."""
    return NodeId(uuid4().hex)


def parse_room_id(text: str) -> RoomId:
    """The meeting that `text` names; `ValueError` says what is wrong with it."""
    return RoomId(_parse(text, _PLAIN, "A-Z a-z 0-9 . _ @ -"))


def parse_breakout_id(text: str) -> BreakoutId:
    """The breakout that `text` names; `ValueError` says what is wrong with it."""
    return BreakoutId(_parse(text, _PLAIN, "A-Z a-z 0-9 . _ @ -"))


def parse_participant_id(text: str) -> ParticipantId:
    """The participant that `text` names; `ValueError` says what is wrong with it."""
    parsed = _parse(text, _PARTICIPANT, "A-Z a-z 0-9 . _ @ : -")
    if parsed == CONTROLLER:
        raise ValueError("is reserved")
    if _POPOUT.search(parsed):
        raise ValueError("must not end like a popout's identity")
    return ParticipantId(parsed)


def livekit_room(room: RoomId, breakout: BreakoutId | None) -> LiveKitRoom:
    """What LiveKit calls this meeting's room, or one of its breakouts; no id of ours holds the colon between them."""
    return LiveKitRoom(room if breakout is None else f"{room}:{breakout}")


def room_of(room: LiveKitRoom) -> RoomId:
    """The meeting that a room of LiveKit belongs to, if it is one of ours."""
    return RoomId(room.partition(":")[0])


def popout_identity(participant: ParticipantId, number: int) -> Identity:
    """The identity of a participant's popout; numbers start at 1."""
    return Identity(f"{participant}-popout{number}")


def normalised(text: str) -> str:
    """The text, in lower case and with hyphens if it reads as a UUID in any textual form."""
    return str(UUID(text.lower())) if _UUID.fullmatch(text) else text  # UUID() knows `urn:uuid:` in lower case only


def _parse(text: str, allowed: re.Pattern[str], alphabet: str) -> str:
    normal = normalised(text)
    if not allowed.fullmatch(normal):
        raise ValueError(f"must be 1 to {MAX_LENGTH} characters of {alphabet}")
    if normal in _IN_PATHS:
        raise ValueError("must not be . or .., which no URL reaches")
    return normal

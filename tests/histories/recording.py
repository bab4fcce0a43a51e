"""
A history: what clients asked and were told, when, and what the store kept of it in the end.

All times are seconds by one clock, the one of the log's entries (the epoch) if the two are to be compared.

    history = History()
    session = history.joining(room, "alice", at=…)              # before the connection is made
    history.joined(session, at=…, key=…, revision=…)            # or history.kept_out(session, "banned", at=…)
    asked = history.asked(session, "livekit", payload, transaction_id=7, at=…)
    history.delivered(session, namespace, payload, transaction_id, at=…)    # each frame; answers are found among them
    history.ended(session, "taken_over", at=…)                  # not for who is still connected when it is over
    history.committed(entry)                                    # each entry of a meeting's log, in its order
    history.was_silent("node-1", from, until)                   # if others may have taken a node for gone
    history.audited(room, audit)                                # when it is over, oldest first
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from signaling.identifiers import RoomId, SessionId
from signaling.messages.base import Namespace
from signaling.stores.contract import AuditEntry, Entry
from signaling.stores.serialization import dump_audit_entry, dump_entry, load_audit_entry, load_entry

TransactionId = int | str
Payload = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delivered:
    """A frame that a client got."""

    namespace: str
    payload: Payload
    transaction_id: TransactionId | None
    at: float

    @property
    def message(self) -> str:
        return str(self.payload["message"])


@dataclass(frozen=True, slots=True)
class Sitting:
    """
    One session, as its client saw it.

    Attributes:
        joined_at: `None` if it is not known whether joining came to anything.
        kept_out: Why the client was not let in.
        key: The product's own id of the session, where it is known.
        revision: Of the meeting's log, from which on it is told of commits, where that is known.
        ended_at: `None` if it was still connected when all was over, and had been told all by then.
        why: As what it ended; `None` if the client went, or was cut off.
    """

    number: int
    room: RoomId
    participant: str
    node: str
    extensions: frozenset[str]
    asked_at: float
    joined_at: float | None = None
    kept_out: str | None = None
    key: SessionId | None = None
    revision: int | None = None
    ended_at: float | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """
    A command, and what came of it as far as its sender knows.

    Attributes:
        answer: `None` if there was none: it may have come to something, or not.
    """

    number: int
    session: int
    namespace: str
    payload: Payload
    transaction_id: TransactionId | None
    at: float
    answer: Delivered | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """An entry of a meeting's log, and when it was written if that is known better than by the entry itself."""

    entry: Entry
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """When a node could not say that it lives, though it did; it is not believed to at once when it can again."""

    node: str
    began_at: float
    ended_at: float


@dataclass
class History:
    """What was asked, told and kept."""

    sittings: list[Sitting] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    told: dict[int, list[Delivered]] = field(default_factory=dict)
    log: dict[RoomId, list[Committed]] = field(default_factory=dict)
    audit: dict[RoomId, list[AuditEntry]] = field(default_factory=dict)
    silences: list[Silence] = field(default_factory=list)
    _waiting: dict[tuple[int, TransactionId], int] = field(default_factory=dict)

    # --- Recording -----------------------------------------------------------------------------------------------

    def joining(
        self,
        room: RoomId,
        participant: str,
        *,
        at: float,
        node: str = "",
        extensions: Iterable[str] = ("livekit_moderation", "control"),
    ) -> int:
        """Somebody begins to join; the number of their session here."""
        number = len(self.sittings)
        self.sittings.append(Sitting(number, room, participant, node, frozenset(extensions), at))
        self.told[number] = []
        return number

    def joined(self, session: int, *, at: float, key: SessionId | None = None, revision: int | None = None) -> None:
        """Somebody is in."""
        self.sittings[session] = replace(self.sittings[session], joined_at=at, key=key, revision=revision)

    def kept_out(self, session: int, why: str, *, at: float) -> None:
        """Somebody was not let in."""
        self.sittings[session] = replace(self.sittings[session], joined_at=at, kept_out=why)

    def ended(self, session: int, why: str | None, *, at: float) -> None:
        """A session is over."""
        self.sittings[session] = replace(self.sittings[session], ended_at=at, why=why)

    def asked(
        self,
        session: int,
        namespace: str,
        payload: Payload,
        *,
        transaction_id: TransactionId | None = None,
        at: float,
    ) -> int:
        """A client sends a command; its number here. A transaction id is used once in a session."""
        number = len(self.frames)
        self.frames.append(Frame(number, session, namespace, payload, transaction_id, at))
        if transaction_id is not None:
            self._waiting[session, transaction_id] = number
        return number

    def answered(self, frame: int, answer: Delivered) -> None:
        """A command was answered."""
        self.frames[frame] = replace(self.frames[frame], answer=answer)

    def delivered(
        self, session: int, namespace: str, payload: Payload, transaction_id: TransactionId | None, *, at: float
    ) -> None:
        """A client got a frame."""
        frame = Delivered(namespace, payload, transaction_id, at)
        self.told[session].append(frame)
        if transaction_id is None:
            return
        waiting = self._waiting.get((session, transaction_id))
        if waiting is not None and _is_answer(frame, self.frames[waiting].namespace):
            del self._waiting[session, transaction_id]
            self.answered(waiting, frame)

    def committed(self, entry: Entry, *, at: float | None = None) -> None:
        """A meeting's log goes on by this."""
        self.log.setdefault(entry.room, []).append(Committed(entry, at))

    def audited(self, room: RoomId, entries: Iterable[AuditEntry]) -> None:
        """All that is kept of what moderators did, oldest first."""
        self.audit[room] = list(entries)

    def was_silent(self, node: str, began_at: float, ended_at: float) -> None:
        """Others may have taken a node for gone, with everybody who was connected to it."""
        self.silences.append(Silence(node, began_at, ended_at))

    # --- Keeping -------------------------------------------------------------------------------------------------

    def dump(self, path: Path) -> None:
        """Write it as JSON lines, each `{"what": …}`."""
        with path.open("w", encoding="utf-8") as file:
            for line in self._lines():
                file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def _lines(self) -> Iterable[dict[str, Any]]:
        for sitting in self.sittings:
            fields = {name: getattr(sitting, name) for name in Sitting.__slots__}
            yield {"what": "session", **fields, "extensions": sorted(sitting.extensions)}
        for frame in self.frames:
            fields = {name: getattr(frame, name) for name in Frame.__slots__}
            yield {"what": "asked", **fields, "answer": None if frame.answer is None else _dumped(frame.answer)}
        for session, told in self.told.items():
            for each in told:
                yield {"what": "delivered", "session": session, **_dumped(each)}
        for log in self.log.values():
            for commit in log:
                yield {"what": "committed", "at": commit.at, "entry": json.loads(dump_entry(commit.entry))}
        for silence in self.silences:
            yield {"what": "silent", **{name: getattr(silence, name) for name in Silence.__slots__}}
        for room, audit in self.audit.items():
            entries = [json.loads(dump_audit_entry(entry)) for entry in audit]
            yield {"what": "audited", "room": room, "entries": entries}

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `dump` wrote."""
        history = cls()
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = json.loads(line)
            match fields.pop("what"):
                case "session":
                    history.sittings.append(Sitting(**{**fields, "extensions": frozenset(fields["extensions"])}))
                    history.told[fields["number"]] = []
                case "asked":
                    answer = None if fields["answer"] is None else Delivered(**fields["answer"])
                    history.frames.append(Frame(**{**fields, "answer": answer}))
                case "delivered":
                    history.told[fields.pop("session")].append(Delivered(**fields))
                case "committed":
                    history.committed(load_entry(json.dumps(fields["entry"]).encode()), at=fields["at"])
                case "silent":
                    history.was_silent(**fields)
                case "audited":
                    entries = [load_audit_entry(json.dumps(entry).encode()) for entry in fields["entries"]]
                    history.audited(RoomId(fields["room"]), entries)
                case what:
                    raise ValueError(f"{what} is nothing that is in a history")
        return history


def _dumped(frame: Delivered) -> dict[str, Any]:
    return {name: getattr(frame, name) for name in Delivered.__slots__}


def _is_answer(frame: Delivered, asked_in: str) -> bool:
    """Whether this is what a command comes to; one of `control` is answered by what it causes."""
    if asked_in == Namespace.CONTROL:
        return frame.namespace == Namespace.CONTROL or frame.message == "error"
    return frame.namespace == Namespace.MODERATION and frame.message == "result"

"""What the fake LiveKit holds: rooms, who is in them, and what they may and do publish. Whoever observes is told."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, TypeVar

from google.protobuf.message import Message
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling.testing.participants import JoinRefused, PublishRefused

_EMPTY_TIMEOUT_S: Final = 300
_DEPARTURE_TIMEOUT_S: Final = 20
_CODECS: Final = tuple(
    models.Codec(mime=mime)
    for mime in (
        *("audio/PCMU", "audio/PCMA", "audio/opus", "audio/red"),
        *("video/VP8", "video/H264", "video/VP9", "video/AV1", "video/H265", "video/rtx"),
    )
)
_MIME_TYPES: Final = MappingProxyType(
    {
        "camera": "video/VP8",
        "microphone": "audio/red",
        "screen_share": "video/VP8",
        "screen_share_audio": "audio/red",
    }
)
_SID_LETTERS: Final = MappingProxyType(
    {"camera": "C", "microphone": "M", "screen_share": "S", "screen_share_audio": "s", "unknown": ""}
)

Happening: TypeAlias = Literal[
    "room_started",
    "room_finished",
    "participant_joined",
    "participant_left",
    "track_published",
    "track_unpublished",
    "track_muted",
    "track_unmuted",
    "permission_changed",
]
_AnyMessage = TypeVar("_AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Change:
    """
    Something that changed, in the words of LiveKit's webhooks as far as those have one for it.

    The messages are copies of how things were right after it.
    """

    happening: Happening
    room: models.Room
    participant: models.ParticipantInfo | None = None
    track: models.TrackInfo | None = None


@dataclass(slots=True)
class Person:
    """Somebody in a room, as LiveKit describes them."""

    info: models.ParticipantInfo
    spelt_sources: tuple[str, ...] | None = None
    """The sources as the token spells them, until a permission replaces them: LiveKit compares the spelling."""

    def may_publish(self, source: str) -> bool:
        """Whether LiveKit would let them."""
        if not self.info.permission.can_publish:
            return False
        names = self.spelt_sources
        if names is None:
            names = tuple(source_name(number) for number in self.info.permission.can_publish_sources)
        return not names or source in names

    def track(self, sid: str) -> models.TrackInfo:
        """A track of theirs; `KeyError` when it is none."""
        for track in self.info.tracks:
            if track.sid == sid:
                return track
        raise KeyError(sid)


@dataclass(slots=True)
class Room:
    """A room, and who is there by identity."""

    info: models.Room
    people: dict[str, Person] = field(default_factory=dict)

    def described(self) -> models.Room:
        """It, with the numbers of those who are there."""
        self.info.num_participants = len(self.people)
        self.info.num_publishers = sum(1 for person in self.people.values() if person.info.tracks)
        return self.info


class Rooms:
    """The rooms that there are. Everything that changes one tells of it; `KeyError` is for who is not there."""

    def __init__(self) -> None:
        """Begin without any."""
        self._rooms: dict[str, Room] = {}
        self._observers: list[Callable[[Change], None]] = []
        self._numbers = itertools.count(1)
        self._joined_at_ms = 0

    def __iter__(self) -> Iterator[Room]:
        """All of them, oldest first."""
        return iter(self._rooms.values())

    def __getitem__(self, name: str) -> Room:
        """One that has to be there."""
        return self._rooms[name]

    def get(self, name: str) -> Room | None:
        """One that may be there."""
        return self._rooms.get(name)

    def find(self, room: str, identity: str) -> tuple[Room, Person]:
        """Somebody who has to be there."""
        found = self._rooms[room]
        return found, found.people[identity]

    def observe(self, observer: Callable[[Change], None]) -> None:
        """Call `observer` at every change."""
        self._observers.append(observer)

    def make(self, asked: protocol.CreateRoomRequest) -> Room:
        """Make a room that is not there yet."""
        now = time.time()
        room = Room(
            models.Room(
                sid=self._sid("RM_"),
                name=asked.name,
                empty_timeout=asked.empty_timeout or _EMPTY_TIMEOUT_S,
                departure_timeout=asked.departure_timeout or _DEPARTURE_TIMEOUT_S,
                max_participants=asked.max_participants,
                creation_time=int(now),
                creation_time_ms=int(now * 1000),
                turn_password="the fake's turn password",  # noqa: S106  there is no TURN
                enabled_codecs=_CODECS,
                metadata=asked.metadata,
            )
        )
        self._rooms[asked.name] = room
        self._tell("room_started", room)
        return room

    def finish(self, room: Room) -> None:
        """End a room, and send off whoever is there."""
        for person in tuple(room.people.values()):
            self.drop(room, person)
        del self._rooms[room.info.name]
        self._tell("room_finished", room)

    def forget(self) -> None:
        """Have no rooms any more, and tell nobody."""
        self._rooms.clear()

    def enter(self, room: str, identity: str, person: Person, state: models.ParticipantInfo.State) -> None:
        """Let somebody in; whoever is there by the same identity has to go."""
        entered = self._rooms.get(room)
        if entered is None:
            raise JoinRefused("404: requested room does not exist")
        if identity in entered.people:
            self.drop(entered, entered.people[identity])
        # Nobody joins twice in a millisecond, though a test's people may.
        self._joined_at_ms = max(int(time.time() * 1000), self._joined_at_ms + 1)
        person.info.sid = self._sid("PA_")
        person.info.identity = identity
        person.info.state = state
        person.info.version = 1
        person.info.joined_at = self._joined_at_ms // 1000
        person.info.joined_at_ms = self._joined_at_ms
        entered.people[identity] = person
        if state == models.ParticipantInfo.ACTIVE:
            self._tell("participant_joined", entered, person)

    def drop(self, room: Room, person: Person) -> None:
        """Let somebody go, with their tracks."""
        for track in tuple(person.info.tracks):
            self.take_away(room, person, track)
        person.info.state = models.ParticipantInfo.DISCONNECTED
        del room.people[person.info.identity]
        self._tell("participant_left", room, person)

    def permit(self, room: Room, person: Person, permission: models.ParticipantPermission) -> None:
        """Replace all that somebody may do; what they publish without the right to goes."""
        person.info.permission.CopyFrom(permission)
        person.info.version += 1
        person.spelt_sources = None
        for track in tuple(person.info.tracks):
            if not person.may_publish(source_name(track.source)):
                self.take_away(room, person, track)
        self._tell("permission_changed", room, person)

    def publish(
        self,
        room: str,
        identity: str,
        source: str,
        *,
        mime_type: str | None,
        type: "models.TrackType | None",  # noqa: A002  as in TrackInfo
        muted: bool,
        name: str,
    ) -> str:
        """Add a track, if they may; its sid. What is `None` is what fits the source."""
        where, person = self.find(room, identity)
        if not person.may_publish(source):
            raise PublishRefused(f"{identity} may not publish {source}")
        mime_type = _MIME_TYPES[source] if mime_type is None else mime_type
        if type is None:
            type = models.AUDIO if mime_type.startswith("audio/") else models.VIDEO  # noqa: A001
        letters = ("A" if type == models.AUDIO else "V") + _SID_LETTERS[source]
        track = models.TrackInfo(
            sid=self._sid(f"TR_{letters}"),
            type=type,
            name=name,
            source=source.upper(),
            mime_type=mime_type,
            muted=muted,
        )
        person.info.tracks.append(track)
        person.info.is_publisher = True
        person.info.version += 1
        self._tell("track_published", where, person, track)
        return track.sid

    def take_away(self, room: Room, person: Person, track: models.TrackInfo) -> None:
        """End a track."""
        gone = copy_of(track)
        person.info.tracks.remove(track)
        person.info.version += 1
        self._tell("track_unpublished", room, person, gone)

    def set_muted(self, room: Room, person: Person, track: models.TrackInfo, *, muted: bool) -> None:
        """Mute or unmute a track, if it is not so already."""
        if track.muted != muted:
            track.muted = muted
            person.info.version += 1
            self._tell("track_muted" if muted else "track_unmuted", room, person, track)

    def _tell(
        self,
        happening: Happening,
        room: Room,
        person: Person | None = None,
        track: models.TrackInfo | None = None,
    ) -> None:
        if self._observers:
            change = Change(
                happening,
                copy_of(room.described()),
                None if person is None else copy_of(person.info),
                None if track is None else copy_of(track),
            )
            for observer in self._observers:
                observer(change)

    def _sid(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers):012d}"


def source_name(source: int) -> str:
    """As tokens spell it."""
    return models.TrackSource.Name(source).lower()


def copy_of(message: _AnyMessage) -> _AnyMessage:
    """What it is now, whatever becomes of it."""
    copied = type(message)()
    copied.CopyFrom(message)
    return copied

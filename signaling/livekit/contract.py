"""What a turn and the reconciler need of a media server."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from signaling.core.effects import Presence, Priority, Track
from signaling.core.participants import Source
from signaling.identifiers import Identity, LiveKitRoom, TrackSid

NoticeKind = Literal["participant_joined", "participant_left", "track_published", "track_unpublished", "room_finished"]
NOBODY: Final = Identity("")


@dataclass(frozen=True, slots=True)
class Notice:
    """
    Something that happened in a LiveKit room.

    Attributes:
        identity: Whom it is about; empty for a room.
        sid: LiveKit's id of their session.
        presence: With `participant_joined`: what LiveKit lets them do, as of then.
        track: With `track_published` and `track_unpublished`.
    """

    kind: NoticeKind
    room: LiveKitRoom
    identity: Identity = NOBODY
    sid: str = ""
    presence: Presence | None = None
    track: Track | None = None


class MediaServer(Protocol):
    """
    The calls, each with a deadline.

    All raise `MediaServerUnavailable` when nothing was answered in time (the call may still take effect) and
    `MediaServerRejected` when the answer was no. Calls about one identity must not overlap.
    """

    @property
    def answering(self) -> bool:
        """False from the moment when calls get no answer until a probe gets one; meanwhile every call fails at once."""

    @property
    def timeout_s(self) -> float:
        """The deadline of one call."""

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever LiveKit answers again after it had not; its rooms may be gone."""

    def slot(self, room: LiveKitRoom, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Wait for one of the places that calls for a room have, and keep it inside the block."""

    async def ensure_room(self, room: LiveKitRoom) -> None:
        """Make sure that the room is there. Costs a call only when that is not known; many who ask at once share it."""

    def forget_rooms(self, *rooms: LiveKitRoom) -> None:
        """What was known of these rooms is known no longer; of all of them, if none is named."""

    async def delete_room(self, room: LiveKitRoom) -> None:
        """End a room for everybody in it. One that is gone already is fine."""

    async def rooms_there(self, rooms: Sequence[LiveKitRoom]) -> frozenset[LiveKitRoom]:
        """Which of these rooms there are. Asks for at least one."""

    async def list_presences(self, room: LiveKitRoom, *, make: bool = True) -> tuple[Presence, ...]:
        """Everybody in the room, whatever they are. A room that is gone is empty; it is made anew if `make`."""

    async def allow(self, presence: Presence, sources: tuple[Source, ...]) -> Presence:
        """
        Let somebody publish these sources and no others, with the rest of their permission as it was.

        Returns:
            What LiveKit says of them now.

        Raises:
            ParticipantGone: LiveKit does not know them (any more).
        """

    async def mute(self, room: LiveKitRoom, identity: Identity, track: TrackSid) -> None:
        """
        Mute a track.

        Raises:
            TrackGone: There is no such track (any more).
            ParticipantGone: There is perhaps nobody to mute: LiveKit found nobody who would answer for them.
        """

    async def remove(self, room: LiveKitRoom, identity: Identity) -> None:
        """
        Disconnect an identity. One that is gone already is fine.

        Raises:
            ParticipantGone: They are perhaps gone: LiveKit found nobody who would answer for them.
        """

"""The double itself: its parts put together, and what tests do with it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self, Unpack

from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling.testing.fake_room_service.answers import PROTOBUF, Answer, Reset, error
from signaling.testing.fake_room_service.faults import Fault, Which
from signaling.testing.fake_room_service.listener import Listener
from signaling.testing.fake_room_service.methods import Methods
from signaling.testing.fake_room_service.rooms import Change, Person, Rooms, copy_of
from signaling.testing.fake_room_service.tokens import Tokens
from signaling.testing.fake_room_service.twirp import Call, Twirp


class FakeRoomService:
    """
    LiveKit's RoomService without LiveKit, on a free port of this machine, with its state in plain sight.

    Participants come and go, and publish, by plain methods: `join`, `publish` and the like, which allow what LiveKit
    would allow. Calls over HTTP see and change the same state. Rooms do not end by themselves when they are empty.
    Use it as an async context manager.
    """

    def __init__(self, *, psrpc_timeout_s: float = 3, latency_s: float = 0, auto_create: bool = False) -> None:
        """
        Decide how it answers.

        Args:
            psrpc_timeout_s: How long a call waits where nobody is there to answer it, before it is `unavailable`.
            latency_s: How long each call takes at least; may be changed at any time, as the attribute.
            auto_create: Whether whoever joins makes the room, which is LiveKit's default; may be changed at any time.

        """
        self.api_key: Final = "fake"
        self.api_secret: Final = "a secret of the fake RoomService's own"  # noqa: S105  guards nothing
        self.calls: Final[list[Call]] = []
        """Every call so far, in the order of their answers. Yours to clear."""
        self.latency_s = latency_s
        self.auto_create = auto_create
        self._rooms = Rooms()
        self._methods = Methods(self._rooms, psrpc_timeout_s)
        self._tokens = Tokens(self.api_key, self.api_secret)
        self._faults: list[Fault] = []
        twirp = Twirp(self._methods, self._tokens, self._faults, self.calls, lambda: self.latency_s)
        self._listener = Listener(twirp.answer)

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._listener.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cut every connection and let go of the port."""
        await self._listener.close()

    @property
    def url(self) -> str:
        """Where it is, in http form; the same for as long as it lives."""
        return self._listener.url

    # --- What participants do ------------------------------------------------------------------------------------

    @property
    def rooms(self) -> tuple[str, ...]:
        """The names of the rooms that there are."""
        return tuple(room.info.name for room in self._rooms)

    def create_room(self, room: str) -> None:
        """Make sure that the room is there, as `CreateRoom` does."""
        self._methods.create_room(protocol.CreateRoomRequest(name=room))

    def close_room(self, room: str) -> None:
        """End a room, as LiveKit does with one that was empty for long."""
        self._rooms.finish(self._rooms[room])

    def join(
        self,
        room: str,
        identity: str,
        *,
        token: str | None = None,
        permission: models.ParticipantPermission | None = None,
        kind: models.ParticipantInfo.Kind = models.ParticipantInfo.STANDARD,
        hidden: bool = False,
        state: models.ParticipantInfo.State = models.ParticipantInfo.ACTIVE,
    ) -> models.ParticipantInfo:
        """
        Let somebody in; whoever is there by the same identity has to go.

        Args:
            token: Decides what they are and may do; else `permission`, `kind` and `hidden` do.
            permission: Without it and without a token they may publish and subscribe to everything.
            state: `JOINED` for a client that never answers LiveKit's offer; LiveKit reports no `participant_joined`.

        Raises:
            JoinRefused: There is no such room, or the token is not one for it.

        """
        if token is None:
            if permission is None:
                permission = models.ParticipantPermission(can_subscribe=True, can_publish=True, can_publish_data=True)
            person = Person(models.ParticipantInfo(kind=kind, permission=permission))
            person.info.permission.hidden |= hidden
        elif permission is not None:
            raise ValueError("a token has a permission of its own")
        else:
            person = self._tokens.admit(token, room, identity)
        if self.auto_create:
            self.create_room(room)
        self._rooms.enter(room, identity, person, state)
        return self.participant(room, identity)

    def leave(self, room: str, identity: str) -> None:
        """Let somebody go, with their tracks."""
        self._rooms.drop(*self._rooms.find(room, identity))

    def participant(self, room: str, identity: str) -> models.ParticipantInfo:
        """Somebody, as LiveKit would describe them; `KeyError` when they are not there."""
        return copy_of(self._rooms.find(room, identity)[1].info)

    def participants(self, room: str) -> tuple[models.ParticipantInfo, ...]:
        """Everybody in a room; `KeyError` when it is not there."""
        return tuple(copy_of(person.info) for person in self._rooms[room].people.values())

    def permissions(self, room: str) -> Mapping[str, models.ParticipantPermission]:
        """What everybody in a room may do now; `KeyError` when it is not there."""
        return {identity: copy_of(person.info.permission) for identity, person in self._rooms[room].people.items()}

    def may_publish(self, room: str, identity: str, source: str) -> bool:
        """Whether LiveKit would let them publish it; a token's sources count as they are spelt there."""
        return self._rooms.find(room, identity)[1].may_publish(source)

    def publish(
        self,
        room: str,
        identity: str,
        source: str,
        *,
        mime_type: str | None = None,
        type: "models.TrackType | None" = None,  # noqa: A002  as in TrackInfo
        muted: bool = False,
        name: str = "",
    ) -> str:
        """
        Publish a track.

        Args:
            source: What the client *says* that it is: `microphone`, `camera`, `screen_share` or `screen_share_audio`.
            mime_type: What it really is; what fits the source by default.
            type: What the client says of that; what fits the mime type by default.
            name: What the client calls it; `synthesized-microphone` and `synthesized-camera` are what came by WHIP.

        Returns:
            The track's sid.

        Raises:
            PublishRefused: They may not.

        """
        return self._rooms.publish(room, identity, source, mime_type=mime_type, type=type, muted=muted, name=name)

    def unpublish(self, room: str, identity: str, track_sid: str) -> None:
        """Take a track of theirs away."""
        where, person = self._rooms.find(room, identity)
        self._rooms.take_away(where, person, person.track(track_sid))

    def mute_self(self, room: str, identity: str, track_sid: str) -> None:
        """Mute a track of their own."""
        where, person = self._rooms.find(room, identity)
        self._rooms.set_muted(where, person, person.track(track_sid), muted=True)

    def unmute(self, room: str, identity: str, track_sid: str) -> None:
        """Unmute a track of their own: no mute from LiveKit hinders them."""
        where, person = self._rooms.find(room, identity)
        self._rooms.set_muted(where, person, person.track(track_sid), muted=False)

    def observe(self, observer: Callable[[Change], None]) -> None:
        """Call `observer` at every change, whoever brought it about."""
        self._rooms.observe(observer)

    # --- What goes wrong -----------------------------------------------------------------------------------------

    def delay(self, delay_s: float, **which: Unpack[Which]) -> Fault:
        """Let calls take longer: the wait is before they take effect, or (`takes_effect`) before the answer."""
        return Fault(self._faults, which, delay_s=delay_s)

    def hang(self, **which: Unpack[Which]) -> Fault:
        """Answer calls only when the fault is lifted; then they take effect, or (`takes_effect`) they had at once."""
        return Fault(self._faults, which, delay_s=None)

    def refuse(self, code: str, message: str = "", *, status: int | None = None, **which: Unpack[Which]) -> Fault:
        """Answer calls with one of Twirp's errors; `status` if not the code's own. They do nothing by default."""
        refusal = error(code, message)
        if status is not None:
            refusal = replace(refusal, status=status)
        return Fault(self._faults, which, instead=refusal)

    def reset(self, **which: Unpack[Which]) -> Fault:
        """Cut the connection instead of carrying calls out, or (`takes_effect`) instead of answering them."""
        return Fault(self._faults, which, instead=Reset())

    def garble(
        self,
        body: bytes = b"\xff\xff\xff",
        *,
        status: int = HTTPStatus.OK,
        content_type: str = PROTOBUF,
        **which: Unpack[Which],
    ) -> Fault:
        """Answer calls with this body, by default one that is no protobuf. They do nothing by default."""
        return Fault(self._faults, which, instead=Answer(status, body, content_type))

    def crash(self) -> None:
        """Forget every room, without a word to anybody, and cut off the calls in flight: a restart within no time."""
        self._rooms.forget()
        self._listener.abort()

    async def offline(self) -> None:
        """Cut every connection and refuse new ones, until `online`."""
        await self._listener.offline()

    async def online(self) -> None:
        """Listen again, on the same port."""
        await self._listener.online()

    def stall(self) -> None:
        """Accept connections and read calls, but do nothing, until `unstall`."""
        self._listener.stall()

    def unstall(self) -> None:
        """Go on, with the calls that came in meanwhile, also of those who no longer wait for the answer."""
        self._listener.unstall()

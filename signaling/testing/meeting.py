"""A meeting on the stand-alone server, with people who signal, publish, listen and watch."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

from signaling.livekit.embedded import EmbeddedServer
from signaling.testing.child import ParticipantError
from signaling.testing.client import SignalingClient
from signaling.testing.hosting import RunningServer
from signaling.testing.participants import MediaParticipant, ParticipantProcess


class Person:
    """
    Somebody in the meeting; made by `Meeting.join`.

    Attributes:
        id: As in the ticket.
        welcome: The payload of their `join_success`.
        signaling: Their client.
    """

    def __init__(
        self, participant: str, signaling: SignalingClient, welcome: dict[str, Any], media: MediaParticipant | None
    ) -> None:
        """Made by `Meeting.join`."""
        self.id: Final = participant
        self.signaling: Final = signaling
        self.welcome: Final = welcome
        self._media = media

    @property
    def media(self) -> MediaParticipant:
        """Their participant in LiveKit."""
        if self._media is None:
            raise ParticipantError(f"{self.id} joined the signaling alone, by in_livekit=False")
        return self._media

    @property
    def token(self) -> str:
        """What they were told when they joined."""
        return _token(self.welcome)

    async def command(self, action: str, **fields: object) -> dict[str, Any]:
        """Send a command, of `livekit` unless `namespace=` says otherwise, and wait for its `result`."""
        return await self.signaling.command(action, **fields)  # type: ignore[arg-type]


class Meeting:
    """
    A meeting of its own, to be entered by `async with`; leaving it lets everybody leave.

    Media are published and heard in one child process: should LiveKit's native library crash, this test fails with its
    last words, and no other.

    Attributes:
        room: Its id.
        process: Where the participants are.
    """

    def __init__(self, livekit: EmbeddedServer, server: RunningServer, room: str) -> None:
        """Made by the fixture `moderation_meeting`."""
        self.room: Final = room
        self._livekit = livekit
        self._server = server
        self.process: Final = ParticipantProcess()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the participants' process."""
        await self._stack.enter_async_context(self.process)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let everybody leave."""
        await self._stack.__aexit__(kind, error, traceback)

    async def join(
        self,
        participant: str,
        role: str = "user",
        *,
        kind: str = "user",
        breakout: str | None = None,
        extensions: tuple[str, ...] = ("livekit_moderation",),
        in_livekit: bool = True,
        listens: bool = False,
        tone_hz: int | None = None,
        camera: bool = False,
        screen: bool = False,
    ) -> Person:
        """
        Let somebody join the signaling, and LiveKit with the token that they were told.

        Args:
            participant: Their id.
            role: `guest`, `user` or `moderator`.
            kind: `user`, `guest`, `sip` or `recorder`; a recorder is hidden, and no room-wide rule touches it.
            extensions: What the client asks for; `result` needs `livekit_moderation`.
            in_livekit: Whether they enter LiveKit too.
            listens: Whether their participant hears the others.
            tone_hz: Publish a microphone with this tone; nothing without.
            camera, screen: Publish these pictures.

        Raises:
            JoinRefused: LiveKit did not let them in.
            PublishRefused: They may not publish what they are to publish.
        """
        claims = {"role": role, "kind": kind, "breakout": breakout}
        signaling = await self._stack.enter_async_context(self._server.client(self.room, participant, **claims))
        welcome = await signaling.join(extensions=extensions)
        if not in_livekit:
            return Person(participant, signaling, welcome, None)
        media = await self.enter(_token(welcome), listens=listens)
        if tone_hz is not None:
            await media.publish_microphone(tone_hz)
        if camera:
            await media.publish_camera()
        if screen:
            await media.publish_screen_share()
        return Person(participant, signaling, welcome, media)

    async def enter(self, token: str, *, listens: bool = False) -> MediaParticipant:
        """Let a further participant into LiveKit, such as a popout, or an old token that returns."""
        return await self.process.connect(self._livekit.url, token, listens=listens)


def _token(welcome: dict[str, Any]) -> str:
    if "livekit" not in welcome:
        raise ParticipantError(f"{welcome['id']} got no token, since LiveKit did not answer")
    return str(welcome["livekit"]["token"])

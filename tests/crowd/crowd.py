"""
A crowd of real LiveKit participants in one small Go program: many publishers, and clients that cheat.

A publisher costs about a thousandth of a core, where one of `signaling.testing` costs forty times that. Who `listens`
here takes note of tones that come in, and decodes nothing; what can really be heard `ParticipantProcess` says.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Required, Self, TypeAlias, TypedDict, Unpack

import jwt

from signaling.errors import MediaServerFailed
from signaling.livekit.building import Progress, build_once, cache_directory, failure, find_go, run
from signaling.testing.child import Child
from signaling.testing.participants import JoinRefused, PublishRefused, WaitedInVain

_DIRECTORY: Final = Path(__file__).parent
_CALL_S: Final = 60.0
"""For what the program itself gives up after 10 s each: connecting, the answers to it, the media."""
_SOUNDS: Final = frozenset({"microphone", "screen_share_audio"})

EventName: TypeAlias = Literal[
    "joined",  # with the permission
    "permission",
    "published",
    "unpublished",  # by LiveKit or by itself
    "mute",  # by LiveKit
    "refresh_token",
    "leave",  # LiveKit ended the session, and says why
    "closed",  # LiveKit closed the signaling without a word; media goes on
    "participant",  # about somebody else, for who watches
    "ended",  # a stream, by LiveKit or by itself
]


class Publication(TypedDict, total=False):
    """
    A track to publish.

    Attributes:
        source: What the client says it is.
        sound: Whether it really is sound, a tone; what fits the source when nothing is said. A picture otherwise.
        type: What the client says it is; the truth when nothing is said.
        muted: From the beginning.
    """

    source: Required[str]
    sound: bool
    type: Literal["AUDIO", "VIDEO"]
    muted: bool


class Behaviour(TypedDict, total=False):
    """
    What a client does; by default it is honest.

    Attributes:
        publish: At once; a string is a source.
        auto_subscribe: Have LiveKit send what others publish; it is thrown away.
        compression: Ask for compressed signaling, as browsers do.
        answers_offers: Whether it answers LiveKit's offer of media; who does not stays JOINED. True by default.
        path_query: What to add to the address, such as `publish=x`, which makes a second session `identity#x`.
        unmute_always: Unmute at once after each mute by LiveKit.
        republish_always: Publish anew what LiveKit took away or refused, as soon as it lets one.
        watch: Get `participant` events.
        listens: Take note of whose tone comes in, see `Member.heard`; `auto_subscribe` too, then.
    """

    publish: Sequence[Publication | str]
    auto_subscribe: bool
    compression: bool
    answers_offers: bool
    path_query: str
    unmute_always: bool
    republish_always: bool
    watch: bool
    listens: bool


class Join(Behaviour):
    """Arguments of `Crowd.join`."""

    url: Required[str]
    token: Required[str]


@dataclass(frozen=True, slots=True)
class Track:
    """Somebody else's track, as a watcher is told of it."""

    sid: str
    source: str
    type: str
    muted: bool


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that a member was told.

    Attributes:
        at: When, by `time.monotonic`.
        identity, state, tracks: With `participant`, whom it is about.
        source, track_sid: Of the track that it is about.
        muted: With `mute`: whether it was muted, or unmuted.
        can_publish, sources: With `joined` and `permission`; no sources at all allow every one, as in LiveKit.
        reason: Of `leave` as LiveKit names it, of `closed` in words.
    """

    name: EventName
    at: float
    identity: str = ""
    state: str = ""
    tracks: tuple[Track, ...] = ()
    source: str = ""
    track_sid: str = ""
    muted: bool = False
    can_publish: bool = False
    sources: tuple[str, ...] = ()
    reason: str = ""


class _Somebody:
    """What members and streams have in common."""

    def __init__(self, crowd: "Crowd", number: int, url: str) -> None:
        self._crowd = crowd
        self._number = number
        self._url = url
        self._identity = self._sid = ""
        self._events: list[Event] = []
        self._news = asyncio.Event()

    @property
    def identity(self) -> str:
        """Who it is for LiveKit."""
        return self._identity

    @property
    def sid(self) -> str:
        """LiveKit's id of this session."""
        return self._sid

    @property
    def events(self) -> tuple[Event, ...]:
        """All that it was told, oldest first."""
        return tuple(self._events)

    async def leave(self) -> None:
        """Leave the room."""
        await self._ask("leave")

    async def wait_for(
        self,
        name: EventName,
        condition: Callable[[Event], bool] = lambda _: True,
        *,
        since: float = 0,
        timeout_s: float = 10,
    ) -> Event:
        """
        Wait for an event, or find it among those of before.

        Args:
            condition: What must be true of it.
            since: It must not be older, by `time.monotonic`.

        Raises:
            WaitedInVain: It did not come; the message has what did.

        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for event in self._events:
                        if event.name == name and event.at >= since and condition(event):
                            return event
                    self._crowd.raise_if_dead()
                    await self._news.wait()
        except TimeoutError:
            told = ", ".join(f"{event.name} {event.track_sid}".rstrip() for event in self._events)
            raise WaitedInVain(f"{self._identity} was not told {name} within {timeout_s:g} s, but: {told}") from None

    def _take(self, told: dict[str, Any]) -> None:
        """Learn from a line of the program's."""
        if told["event"] == "joined":
            self._identity, self._sid = told.get("identity", self._identity), told.pop("sid")
        tracks = tuple(Track(**track) for track in told.pop("tracks", ()))
        sources = tuple(told.pop("sources", ()))
        self._events.append(Event(name=told.pop("event"), tracks=tracks, sources=sources, **told))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        return await self._crowd.ask(operation, _CALL_S, member=self._number, arguments=arguments)


class Member(_Somebody):
    """Somebody in the crowd. Every method raises `ParticipantProcessDied` when the program is no more."""

    def __init__(self, crowd: "Crowd", number: int, url: str) -> None:
        """Made by `Crowd.join`."""
        super().__init__(crowd, number, url)
        self._behaviour: dict[str, object] = {}
        self._refresh_token = ""
        self._tracks: list[str] = []
        self._heard: dict[str, float] = {}

    @property
    def heard(self) -> Mapping[str, float]:
        """When the tone of each other came in last, by `time.monotonic` and to a tenth of a second."""
        return self._heard

    @property
    def tracks(self) -> tuple[str, ...]:
        """The sids of what it publishes, oldest first."""
        return tuple(self._tracks)

    @property
    def refresh_token(self) -> str:
        """The last token that LiveKit gave it to come back with; empty before there was one."""
        return self._refresh_token

    async def publish(self, publication: Publication | str) -> str:
        """
        Publish one more track, and return its sid.

        Raises:
            PublishRefused: LiveKit says that it may not.

        """
        answer = await self._ask("publish", publish=[_explicit(publication)])
        return str(answer["tracks"][0])

    async def unpublish(self, track_sid: str) -> None:
        """End its own track."""
        await self._ask("unpublish", track_sid=track_sid)

    async def mute(self, track_sid: str) -> None:
        """Mute its own track; returns when LiveKit was told so."""
        await self._ask("mute", track_sid=track_sid, muted=True)

    async def unmute(self, track_sid: str) -> None:
        """Unmute its own track, whoever muted it; returns when LiveKit was told so."""
        await self._ask("mute", track_sid=track_sid, muted=False)

    async def rejoin(self, token: str, **behaviour: Unpack[Behaviour]) -> None:
        """
        Leave, if it has not left, and join with this token; `publish` apart, what is not said is as before.

        Who may not publish everything is out again, but for who publishes again always.

        Raises:
            JoinRefused: LiveKit did not let it in.
            PublishRefused: It may not publish that.

        """
        self._tracks.clear()
        publish = [_explicit(publication) for publication in behaviour.get("publish", ())]
        self._behaviour |= {"answers_offers": True, **self._behaviour, **behaviour, "publish": publish}
        await self._ask("join", url=self._url, token=token, **self._behaviour)

    def _take(self, told: dict[str, Any]) -> None:
        match told["event"]:
            case "heard":
                self._heard |= dict.fromkeys(told["identities"], told["at"])
                return
            case "published":
                self._tracks.append(told["track_sid"])
            case "unpublished" if told["track_sid"] in self._tracks:
                self._tracks.remove(told["track_sid"])
            case "refresh_token":
                self._refresh_token = told.pop("token")
            case _:
                pass
        super()._take(told)


class Stream(_Somebody):
    """
    What somebody streams in by WHIP: published once, when it comes, and told nothing by LiveKit but that it has ended.

    Its identity is that of its token, which LiveKit does not repeat.
    """

    async def begin(self, token: str, publish: Sequence[Publication | str]) -> None:
        """Made by `Crowd.stream`."""
        self._identity = jwt.decode(token, options={"verify_signature": False})["sub"]
        published = [_explicit(publication) for publication in publish]
        await self._ask("stream", url=self._url, token=token, publish=published)


class Crowd(Child):
    """
    The program, built when it must be, and everybody in it. It ends with this process, however that ends.

    Use it as an async context manager; leaving it takes everybody out.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        super().__init__("the crowd has left", JoinRefused, PublishRefused)
        self._members: list[Member | Stream] = []

    async def __aenter__(self) -> Self:
        """
        Build the program, if that was not done before, and start it.

        Raises:
            ConfigurationError: There is nowhere to build it.
            MediaServerMissing: There is no Go to build it with, and none could be had.
            MediaServerFailed: It could not be built; the message holds the compiler's last lines.

        """
        await self._start(await build())
        return self

    async def join(self, url: str, token: str, **behaviour: Unpack[Behaviour]) -> Member:
        """
        Let somebody join; returns when all of their media flows.

        Args:
            url: Of LiveKit, in ws form.

        Raises:
            JoinRefused: LiveKit did not let them in.
            PublishRefused: They may not publish that.

        """
        member = Member(self, len(self._members), url)
        self._members.append(member)
        await member.rejoin(token, **behaviour)
        return member

    async def stream(self, url: str, token: str, publish: Sequence[Publication | str]) -> Stream:
        """
        Let somebody stream in by WHIP; returns when LiveKit takes their media, though it may throw them away.

        LiveKit takes all sound for a microphone, and every picture for a camera, whatever else they may be called here.

        Args:
            url: Of LiveKit, in ws form.

        Raises:
            JoinRefused: LiveKit did not let them in.

        """
        stream = Stream(self, len(self._members), url)
        self._members.append(stream)
        await stream.begin(token, publish)
        return stream

    async def join_many(self, joins: Iterable[Join], *, at_once: int = 8) -> Sequence[Member]:
        """`join` for each of them, so many at a time; they are returned in this order."""
        turn = asyncio.Semaphore(at_once)

        async def join(arguments: Join) -> Member:
            async with turn:
                return await self.join(**arguments)

        async with asyncio.TaskGroup() as group:
            joining = [group.create_task(join(arguments)) for arguments in joins]
        return [task.result() for task in joining]

    async def _tell(self, message: dict[str, Any] | None) -> None:
        if message is not None:
            self._members[message.pop("member")]._take(message)
        else:
            for member in self._members:
                member._wake()


def _explicit(publication: Publication | str) -> Publication:
    given: Publication = {"source": publication} if isinstance(publication, str) else publication
    is_sound = given.get("sound", given["source"] in _SOUNDS)
    return {"sound": is_sound, "type": "AUDIO" if is_sound else "VIDEO", **given}


async def build() -> Path:
    """
    Build the program into the user's cache directory, unless one of these sources is there already.

    Raises:
        ConfigurationError: There is no such directory.
        MediaServerMissing: There is no Go to build it with, and none could be had.
        MediaServerFailed: It could not be built; the message holds the compiler's last lines.

    """
    sources = sorted([*_DIRECTORY.glob("*.go"), _DIRECTORY / "go.mod", _DIRECTORY / "go.sum"])
    digest = hashlib.sha256(b"\0".join(part for path in sources for part in (path.name.encode(), path.read_bytes())))
    target = cache_directory() / f"crowd-{digest.hexdigest()[:16]}"
    await build_once(target, _build, lambda _: None)
    return target


async def _build(directory: Path, progress: Progress) -> Path:
    go, environment = await find_go(directory, progress)
    built = directory / "crowd"
    status, lines = await run(
        [str(go), "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(built), "."],
        environment,
        _DIRECTORY,
    )
    if status != 0:
        raise MediaServerFailed(failure("The crowd could not be built", status, lines))
    return built

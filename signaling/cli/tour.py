"""Every command of the namespace `livekit` once, on real media: what was heard and seen, never what was sent."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from signaling.errors import SignalingError
from signaling.testing.client import SignalingClient
from signaling.testing.participants import MediaParticipant, ParticipantProcess

ROOM: Final = "demo"
LISTENER: Final = "listener"
TONES_HZ: Final = {"alice": 330, "bob": 440, "carol": 550, "mallory": 660}

MakeClient = Callable[..., SignalingClient]
"""`make_client(participant, role=…, kind=…)`: a client with a ticket for the demo's meeting."""


class NotTrue(SignalingError):
    """What the demo says did not come true."""


@dataclass(slots=True)
class Guest:
    """Somebody in the demo: their connection to the server, and their participant in LiveKit."""

    name: str
    client: SignalingClient
    media: MediaParticipant
    url: str
    token: str

    @property
    def title(self) -> str:
        """The name as it is shown."""
        return self.name.title()

    async def until_told(self, action: Callable[[], Awaitable[object]], message: str) -> dict[str, Any]:
        """Do something, and wait until this guest is told of it."""
        since = len(self.client.inbox)
        await action()
        return (await self.client.wait_for(message, since=since)).payload


@dataclass(frozen=True, slots=True)
class Line:
    """
    What came of a step of the tour.

    Attributes:
        seen: What `ms` is about: it follows.
        then: What is to be said after it.
    """

    seen: str
    ms: float
    then: str = ""


@dataclass(slots=True)
class Cast:
    """Who is on stage: Alice moderates, the listener hears, and nobody sees it."""

    alice: Guest
    bob: Guest
    carol: Guest
    listener: MediaParticipant
    client: MakeClient

    @property
    def guests(self) -> tuple[Guest, Guest, Guest]:
        """The three whom everybody sees."""
        return self.alice, self.bob, self.carol


async def enter(
    stack: AsyncExitStack, make_client: MakeClient, name: str, *, role: str = "user", kind: str = "user"
) -> Guest:
    """Let somebody join, in a process of their own: recorders listen, everybody else has sound and picture."""
    listens = kind == "recorder"
    process = await stack.enter_async_context(ParticipantProcess())
    client = await stack.enter_async_context(make_client(name, role=role, kind=kind))
    welcome = (await client.join())["livekit"]
    media = await process.connect(welcome["public_url"], welcome["token"], listens=listens)
    if not listens:
        await asyncio.gather(media.publish_microphone(TONES_HZ[name]), media.publish_camera())
    return Guest(name, client, media, welcome["public_url"], welcome["token"])


@asynccontextmanager
async def cast(make_client: MakeClient) -> AsyncIterator[Cast]:
    """Let everybody join."""
    async with AsyncExitStack() as stack:
        alice, bob, carol, listener = await asyncio.gather(
            enter(stack, make_client, "alice", role="moderator"),
            enter(stack, make_client, "bob"),
            enter(stack, make_client, "carol"),
            enter(stack, make_client, LISTENER, kind="recorder"),
        )
        yield Cast(alice, bob, carol, listener.media, make_client)


Step = Callable[[Cast], Awaitable[Line]]


async def everybody_is_heard_and_seen(cast: Cast) -> Line:
    """Three tones and three pictures arrive."""
    began_at = time.monotonic()
    names = [guest.name for guest in cast.guests]
    heard = await asyncio.gather(*(cast.listener.heard(name, since=began_at) for name in names))
    seen = await asyncio.gather(*(cast.listener.seen(name, since=began_at) for name in names))
    return Line("three tones heard, three cameras seen after", ms_between(began_at, max(*heard, *seen)))


async def force_mute(cast: Cast) -> Line:
    """Bob falls silent, and is told by whom; then he unmutes himself, which is his right."""
    began_at = time.monotonic()
    told = await cast.bob.until_told(
        lambda: cast.alice.client.command("force_mute", participants=["bob"]), "force_muted"
    )
    last_heard_at = await cast.listener.silent("bob")
    await _still_heard(cast, "alice", "carol")
    check(told["moderator"] == "alice", "Bob was not told who muted him")
    unmuted_at = time.monotonic()
    await cast.bob.media.unmute("microphone")
    await cast.listener.heard("bob", since=unmuted_at)
    return Line("Bob's tone gone, Bob told by whom after", ms_between(began_at, last_heard_at))


async def restrict(cast: Cast) -> Line:
    """Bob falls silent, and LiveKit lets him publish no microphone; Carol is listed, Alice moderates."""
    began_at = time.monotonic()
    told = await cast.carol.until_told(
        lambda: cast.alice.client.command("enable_microphone_restrictions", unrestricted_participants=["carol"]),
        "microphone_restrictions_enabled",
    )
    last_heard_at = await cast.listener.silent("bob")
    await _still_heard(cast, "alice", "carol")
    check(told["unrestricted_participants"] == ["carol"], "the list was told wrongly")
    await cast.bob.media.wait_for("permission_changed", identity="bob", since=began_at)
    check(not may_publish_microphone(cast.bob), "LiveKit still lets Bob publish a microphone")
    return Line("Bob's tone gone, Carol's stays after", ms_between(began_at, last_heard_at))


async def renew_restricted(cast: Cast) -> Line:
    """A fresh token knows of the restriction: Bob comes back and still may not speak."""
    began_at = time.monotonic()
    credentials = await cast.bob.until_told(lambda: cast.bob.client.command("create_new_access_token"), "credentials")
    await cast.bob.media.reconnect(cast.bob.url, credentials["token"])
    back_at = time.monotonic()
    check(not may_publish_microphone(cast.bob), "the new token lets Bob publish a microphone")
    await cast.bob.media.publish_camera()
    await cast.listener.seen("bob", since=back_at)
    return Line("Bob back, still not to speak after", ms_between(began_at, back_at))


async def lift(cast: Cast) -> Line:
    """Bob may speak again, and does."""
    began_at = time.monotonic()
    await cast.bob.until_told(
        lambda: cast.alice.client.command("disable_microphone_restrictions"), "microphone_restrictions_disabled"
    )
    await cast.bob.media.wait_for("permission_changed", identity="bob", since=began_at)
    await cast.bob.media.publish_microphone(TONES_HZ["bob"])
    heard_at = await cast.listener.heard("bob", since=began_at)
    return Line("Bob's tone back after", ms_between(began_at, heard_at))


async def revoke_screen(cast: Cast) -> Line:
    """Bob's running share ends."""
    await cast.bob.media.publish_screen_share()
    await cast.listener.seen("bob", "screen_share")
    began_at = time.monotonic()
    told = await cast.alice.until_told(
        lambda: cast.alice.client.command("revoke_screen_share_permission", participants=["bob"]),
        "screen_share_permissions_updated",
    )
    check(told == {"message": told["message"], "grant": False, "participants": ["bob"]}, "Alice was told wrongly")
    last_seen_at = await cast.listener.unseen("bob", "screen_share")
    return Line("Bob's running share gone after", ms_between(began_at, last_seen_at))


async def grant_screen(cast: Cast) -> Line:
    """Bob may share again, and does."""
    began_at = time.monotonic()
    await cast.alice.until_told(
        lambda: cast.alice.client.command("grant_screen_share_permission", participants=["bob"]),
        "screen_share_permissions_updated",
    )
    await cast.bob.media.wait_for("permission_changed", identity="bob", since=began_at)
    await cast.bob.media.publish_screen_share()
    seen_at = await cast.listener.seen("bob", "screen_share", since=began_at)
    return Line("Bob's screen seen again after", ms_between(began_at, seen_at))


async def popout(cast: Cast) -> Line:
    """A second window of Carol's hears everybody, and nobody sees it."""
    async with ParticipantProcess() as process:
        began_at = time.monotonic()
        answer = await cast.carol.until_told(
            lambda: cast.carol.client.command("request_popout_stream_access_token"), "popout_stream_access_token"
        )
        window = await process.connect(cast.carol.url, answer["token"], listens=True)
        heard = await asyncio.gather(*(window.heard(guest.name) for guest in cast.guests))
        permission = window.permission
        check(permission.hidden and not permission.can_publish, "the popout is not a hidden viewer")
        met = {event.identity for event in cast.bob.media.events if event.name == "participant_connected"}
        check(window.identity not in met, "Bob sees the popout")
    return Line("hidden viewer hears all after", ms_between(began_at, max(heard)))


STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("join", everybody_is_heard_and_seen),
    ("force_mute", force_mute),
    ("enable_microphone_restrictions", restrict),
    ("create_new_access_token", renew_restricted),
    ("disable_microphone_restrictions", lift),
    ("revoke_screen_share_permission", revoke_screen),
    ("grant_screen_share_permission", grant_screen),
    ("request_popout_stream_access_token", popout),
)


async def _still_heard(cast: Cast, *names: str) -> None:
    since = time.monotonic()
    await asyncio.gather(*(cast.listener.heard(name, since=since) for name in names))


def check(fact: object, complaint: str) -> None:
    """Raise `NotTrue` with the complaint if it is no fact."""
    if not fact:
        raise NotTrue(complaint)


def ms_between(since: float, until: float) -> float:
    """Milliseconds, and none if nothing was left to wait for."""
    return max(until - since, 0) * 1_000


def may_publish_microphone(guest: Guest) -> bool:
    """Whether LiveKit lets them."""
    permission = guest.media.permission
    microphone = 2  # LiveKit's number of the source
    return permission.can_publish and (
        not permission.can_publish_sources or microphone in permission.can_publish_sources
    )

"""
Clients that try to get round what a moderator decided: for how long each was heard, and what moderators were told.

Mallory may do what anybody may, and tries what else LiveKit's own SDK can be made to do, whatever LiveKit told her.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from signaling.cli.tour import (
    ROOM,
    TONES_HZ,
    Cast,
    Guest,
    Line,
    NotTrue,
    check,
    enter,
    everybody_is_heard_and_seen,
    ms_between,
)
from signaling.testing.client import SignalingRefused
from signaling.testing.participants import (
    JoinRefused,
    MediaParticipant,
    ParticipantProcess,
    PublishRefused,
    room_service_answers,
)

MALLORY: Final = "mallory"
STRANGER: Final = "stranger"
_EXTENSION: Final = "livekit_moderation"
_HELD_S: Final = 30
_TRIED_S: Final = 0.5
"""How long a client tries to publish; who may has done so after a tenth of that."""
_LISTENED_S: Final = 0.8
"""How long the listener waits for what may still come; sound that nobody stops is heard after a quarter of that."""
_PICTURE_S: Final = 1.0
"""How long the sound of a screen may be there before its picture."""


@dataclass(slots=True)
class Cheater:
    """
    Mallory, among the others.

    Attributes:
        old_tokens: From before the restriction: the one that she used, and one that she never used.
        forged_token: Of somebody whom LiveKit alone knows.
        heard_at_most_s: How long a cheat may be heard.
        sweep_s: How often LiveKit is asked for what it does not report.
        rights: Everybody's, before she came.
        stack: Closes her connections.
    """

    cast: Cast
    mallory: Guest
    old_tokens: tuple[str, str]
    forged_token: str
    heard_at_most_s: float
    sweep_s: float
    rights: dict[str, object]
    stack: AsyncExitStack

    @property
    def media(self) -> MediaParticipant:
        """Her participant in LiveKit."""
        return self.mallory.media

    # --- What is decided about her -------------------------------------------------------------------------------

    async def decide(self, action: str, **fields: object) -> None:
        """Let Alice decide something about Mallory."""
        await self.cast.alice.client.command(action, namespace=_EXTENSION, participants=[MALLORY], **fields)

    async def restrict(self) -> None:
        """Let nobody speak but those who do not cheat."""
        names = [guest.name for guest in self.cast.guests]
        await self.cast.alice.client.command("enable_microphone_restrictions", unrestricted_participants=names)
        await self.cast.listener.silent(MALLORY)

    async def release(self) -> None:
        """Take back all that keeps Mallory from publishing."""
        await self.cast.alice.client.command("disable_microphone_restrictions")
        for source in ("microphone", "camera", "screen_share"):
            await self.decide("allow", source=source)

    # --- What she does -------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Let Mallory join the signaling, whatever became of her there."""
        client = await self.stack.enter_async_context(self.cast.client(MALLORY))
        await client.join()
        self.mallory.client = client

    async def speak(self) -> None:
        """Let Mallory be heard: what is silent afterwards could be heard if nobody had decided otherwise."""
        await self.join()
        await self.release()
        self.mallory.token = await _renewed_token(self.mallory)
        began_at = time.monotonic()
        await self.media.reconnect(self.mallory.url, self.mallory.token)
        await self.media.publish_microphone(TONES_HZ[MALLORY])
        await self.cast.listener.heard(MALLORY, since=began_at)

    async def try_to_publish(self, source: str = "microphone") -> None:
        """Publish what she may not."""
        await _publish(self.media, source, within_s=_TRIED_S)

    async def come_back(self, token: str) -> None:
        """Enter LiveKit with this token, and publish."""
        await self.media.reconnect(self.mallory.url, token)
        await self.try_to_publish()

    async def come_back_and_be_removed(self) -> None:
        """Enter LiveKit with the newest token, publish, and be removed."""
        began_at = time.monotonic()
        await self.media.reconnect(self.mallory.url, self.mallory.token)
        with suppress(PublishRefused):  # it may be too late for that already
            await self.try_to_publish()
        connected = await self.media.wait_for("connected", since=began_at)
        await self.media.wait_for("disconnected", since=connected.at)

    # --- What comes of it ----------------------------------------------------------------------------------------

    async def heard(
        self, cheat: Callable[[], Awaitable[object]], *, who: str = MALLORY, told: str = "", longer_s: float = 0
    ) -> float:
        """
        Let somebody cheat, and listen: for how many milliseconds they were heard.

        Args:
            told: The event that moderators must be told.
            longer_s: How much longer than others this cheat may be heard.
        """
        began_at, read = time.monotonic(), len(self.cast.alice.client.inbox)
        with suppress(JoinRefused, PublishRefused):  # whom LiveKit refuses may be heard no more than anybody else
            await cheat()
        if told:
            await self.told(told, who, read)
        heard_s = await self.cast.listener.heard_for(who, since=began_at, until=time.monotonic() + _LISTENED_S)
        check(heard_s <= self.heard_at_most_s + longer_s, f"heard for {heard_s * 1_000:.0f} ms")
        return heard_s * 1_000

    async def told(self, event: str, who: str, since: int) -> None:
        """Wait until moderators are told so of somebody."""
        await self.cast.alice.client.wait_for(
            event,
            namespace=_EXTENSION,
            since=since,
            where=lambda frame: who in {frame.payload.get("participant"), frame.payload.get("identity")},
            timeout_s=self.sweep_s + 10,
        )


@asynccontextmanager
async def cheater(cast: Cast, *, forged_token: str, heard_at_most_s: float, sweep_s: float) -> AsyncIterator[Cheater]:
    """Let Mallory join, and be heard."""
    rights = await _rights(cast)
    async with AsyncExitStack() as stack:
        mallory = await enter(stack, cast.client, MALLORY)
        await cast.listener.heard(MALLORY)
        tokens = mallory.token, await _renewed_token(mallory)
        yield Cheater(cast, mallory, tokens, forged_token, heard_at_most_s, sweep_s, rights, stack)


Cheat = Callable[[Cheater], Awaitable[Line]]


async def return_with_old_token(cheater: Cheater) -> Line:
    """LiveKit lets in with the rights of before whoever has a token of before."""
    await cheater.restrict()
    heard_ms = await cheater.heard(lambda: cheater.come_back(cheater.old_tokens[0]), told="drift_repaired")
    return Line("heard for", heard_ms, ", told: drift_repaired")


async def come_with_unused_token(cheater: Cheater) -> Line:
    """A token that was never used is no other."""
    await cheater.restrict()
    await cheater.media.disconnect()
    heard_ms = await cheater.heard(lambda: cheater.come_back(cheater.old_tokens[1]), told="drift_repaired")
    return Line("heard for", heard_ms, ", told: drift_repaired")


async def call_sound_nothing(cheater: Cheater) -> Line:
    """Sound of no source at all is none that she may publish."""
    await cheater.restrict()
    heard_ms = await cheater.heard(lambda: _not_taken(cheater.try_to_publish("unknown")))
    return Line("heard for", heard_ms, ", not taken by LiveKit")


async def use_room_service(cheater: Cheater) -> Line:
    """She asks LiveKit itself for what Alice took from her, and tries whether she got it."""
    await cheater.restrict()
    token = await _renewed_token(cheater.mallory)
    answers: dict[str, int] = {}

    async def ask() -> None:
        answers.update(await room_service_answers(cheater.mallory.url, token, ROOM, MALLORY))
        await _not_taken(cheater.try_to_publish())

    heard_ms = await cheater.heard(ask)
    allowed = [call for call, status in answers.items() if status != HTTPStatus.UNAUTHORIZED]
    check(not allowed, f"LiveKit did not refuse {', '.join(allowed)}")
    return Line("heard for", heard_ms, f", all {len(answers)} calls refused")


async def enter_livekit_alone(cheater: Cheater) -> Line:
    """Somebody whom only LiveKit knows is restricted like anyone."""
    await cheater.restrict()
    async with ParticipantProcess() as process:

        async def come() -> None:
            stranger = await process.connect(cheater.mallory.url, cheater.forged_token)
            await _publish(stranger, "microphone", within_s=_TRIED_S)

        heard_ms = await cheater.heard(come, who=STRANGER, told="unknown_participant")
    return Line("heard for", heard_ms, ", told: unknown_participant")


async def call_sound_camera(cheater: Cheater) -> Line:
    """Her camera she may publish; her sound is none."""
    await cheater.restrict()
    heard_ms = await cheater.heard(partial(_publish, cheater.media, "camera"), told="bypass_stopped")
    return Line("heard for", heard_ms, ", told: bypass_stopped")


async def call_sound_screens(cheater: Cheater) -> Line:
    """The sound of a screen waits for its picture; then it is the second time that she cheats so, and she has to go."""
    await cheater.restrict()
    read = len(cheater.mallory.client.inbox)
    publish = partial(_publish, cheater.media, "screen_share_audio")
    heard_ms = await cheater.heard(publish, told="bypass_stopped", longer_s=_PICTURE_S)
    await cheater.mallory.client.wait_for("kicked", namespace=_EXTENSION, since=read)
    return Line("heard for", heard_ms, ", no picture came; removed, told: bypass_stopped")


async def unmute(cheater: Cheater) -> Line:
    """Whoever was muted may unmute."""
    await cheater.speak()
    read = len(cheater.cast.alice.client.inbox)
    await cheater.cast.alice.client.command("force_mute", participants=[MALLORY])
    await cheater.cast.listener.silent(MALLORY)
    began_at = time.monotonic()
    await cheater.media.unmute("microphone")
    heard_at = await cheater.cast.listener.heard(MALLORY, since=began_at)
    await cheater.told("unmuted_again", MALLORY, read)
    return Line("its right: heard again after", ms_between(began_at, heard_at), ", told: unmuted_again")


async def unmute_while_held(cheater: Cheater) -> Line:
    """A mute that holds is one that she cannot take back, nor get round by publishing anew."""
    await cheater.speak()
    await cheater.decide("mute", hold_s=_HELD_S)
    await cheater.cast.listener.silent(MALLORY)

    async def unmute_and_publish() -> None:
        await cheater.media.unmute("microphone")
        await _not_taken(cheater.try_to_publish())

    return Line("heard for", await cheater.heard(unmute_and_publish), ", not taken by LiveKit")


async def publish_after_stop(cheater: Cheater) -> Line:
    """Whoever was stopped may begin again."""
    await cheater.speak()
    await cheater.decide("stop", source="microphone")
    await cheater.cast.listener.silent(MALLORY)
    began_at = time.monotonic()
    await cheater.media.publish_microphone(TONES_HZ[MALLORY])
    heard_at = await cheater.cast.listener.heard(MALLORY, since=began_at)
    return Line("its right: heard again after", ms_between(began_at, heard_at))


async def publish_after_disallow(cheater: Cheater) -> Line:
    """Whoever may not publish by name may not begin again."""
    await cheater.speak()
    await cheater.decide("disallow", source="microphone")
    await cheater.cast.listener.silent(MALLORY)
    heard_ms = await cheater.heard(lambda: _not_taken(cheater.try_to_publish()))
    return Line("heard for", heard_ms, ", not taken by LiveKit")


async def return_after_kick(cheater: Cheater) -> Line:
    """LiveKit would let her in."""
    await cheater.speak()
    await cheater.decide("kick")
    await cheater.cast.listener.silent(MALLORY)
    heard_ms = await cheater.heard(cheater.come_back_and_be_removed, told="drift_repaired")
    return Line("heard for", heard_ms, ", removed again, told: drift_repaired")


async def return_after_ban(cheater: Cheater) -> Line:
    """Neither LiveKit nor the signaling is hers any more."""
    await cheater.speak()
    await cheater.decide("kick", ban=True)
    await cheater.cast.listener.silent(MALLORY)
    heard_ms = await cheater.heard(cheater.come_back_and_be_removed, told="drift_repaired")
    try:
        await cheater.join()
    except SignalingRefused as refused:
        check(refused.error == "banned", str(refused))
        return Line("heard for", heard_ms, f", removed again, the signaling says {refused.status} {refused.error}")
    raise NotTrue("the signaling let her in")


async def leave(cheater: Cheater) -> Line:
    """Whatever was decided about her is taken back, and the others are as they were."""
    alice = cheater.cast.alice.client
    await cheater.decide("unban")
    await cheater.join()
    await cheater.release()
    await cheater.media.disconnect()
    read = len(alice.inbox)
    await cheater.mallory.client.close()
    await alice.wait_for("left", namespace="control", since=read, where=lambda frame: frame.payload["id"] == MALLORY)
    check(await _rights(cheater.cast) == cheater.rights, "something is left of what was decided")
    others = await everybody_is_heard_and_seen(cheater.cast)
    return Line("all others heard and seen after", others.ms, ", all rights as before")


CHEATS: Final[tuple[tuple[str, Cheat], ...]] = (
    ("returns with its token of before", return_with_old_token),
    ("comes with an unused token of before", come_with_unused_token),
    ("calls its sound nothing at all", call_sound_nothing),
    ("turns to LiveKit's RoomService", use_room_service),
    ("enters LiveKit past the signaling", enter_livekit_alone),
    ("calls its sound a camera", call_sound_camera),
    ("calls its sound that of a screen", call_sound_screens),
    ("unmutes after a mute", unmute),
    ("unmutes while a mute holds", unmute_while_held),
    ("publishes again after stop", publish_after_stop),
    ("publishes again after disallow", publish_after_disallow),
    ("returns after a kick", return_after_kick),
    ("returns after a ban", return_after_ban),
    ("leaves", leave),
)


async def _renewed_token(guest: Guest) -> str:
    credentials = await guest.until_told(lambda: guest.client.command("create_new_access_token"), "credentials")
    return str(credentials["token"])


async def _publish(media: MediaParticipant, source: str, *, within_s: float = 15) -> None:
    await media.publish(source, frequency_hz=TONES_HZ[MALLORY], is_sound=True, anyway=True, within_s=within_s)


async def _not_taken(publishing: Awaitable[None]) -> None:
    try:
        await publishing
    except PublishRefused:
        return
    raise NotTrue("LiveKit took the sound")


async def _rights(cast: Cast) -> dict[str, object]:
    read = len(cast.alice.client.inbox)
    await cast.alice.client.send("get_state", namespace=_EXTENSION)
    state = (await cast.alice.client.wait_for("state", namespace=_EXTENSION, since=read)).payload
    return {
        **{name: state.get(name) for name in ("restrictions", "blocks", "bans", "presenter")},
        **{person["participant"]: person["may_publish"] for person in state["participants"]},
    }

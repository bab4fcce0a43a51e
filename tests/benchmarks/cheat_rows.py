"""For how long a hidden listener hears clients that cheat, with LiveKit's webhooks and without."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from signaling import Role
from signaling.identifiers import RoomId
from signaling.testing.participants import participant_token
from tests.benchmarks.hosts import fresh_room, in_flight
from tests.benchmarks.measure import Goal, Options, Row, Sample, in_turns
from tests.crowd.crowd import Crowd, Member
from tests.meetings.stage import Stage, stage

_SWEEP_S: Final = 1
_APART_S: Final = 0.382
"""Between the beginnings of two cheats; no divisor of a sweep's, so that sweeps come at any time of a cheat."""
_HEARD_MS: Final = 50
_PICTURE_MS: Final = 1_050
"""More for the sound of a screen, whose picture may come for a second."""
_BUFFERED_MS: Final = 25
"""More where media flows already: what the listener's jitter buffer holds is heard to its end."""
_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Cheater:
    """
    Somebody who knows tokens of before the restriction.

    Attributes:
        session: In which they spoke before; `None` for whoever was not in LiveKit.
        refresh_token: What LiveKit gave them to come back with.
    """

    crowd: Crowd
    url: str
    identity: str
    token: str
    session: Member | None = None
    refresh_token: str = ""

    async def enter(self, path_query: str = "") -> None:
        """Join and speak, beside any session that there is."""
        await self.crowd.join(self.url, self.token, publish=["microphone"], path_query=path_query)

    async def come_back(self, token: str, *, answers_offers: bool = True) -> None:
        """Leave, join with this token, and speak."""
        assert self.session is not None
        await self.session.rejoin(token, publish=["microphone"], answers_offers=answers_offers)

    async def publish_sound_as(self, source: str, declared: Literal["AUDIO", "VIDEO"] = "AUDIO") -> None:
        """Publish sound that they say is something else."""
        assert self.session is not None
        await self.session.publish({"source": source, "sound": True, "type": declared})


@dataclass(frozen=True, slots=True)
class Cheat:
    """
    What a client does that may not speak.

    Attributes:
        before: What they are when everybody has been restricted.
        source: What others are told that it is.
        session: What LiveKit adds to the identity.
        is_heard: Not so for what aborts whoever subscribes: what counts then is how long it is published.
        waits_for_a_picture: Whether it may be just what it says for a second.
    """

    what: str
    act: Callable[[Cheater], Awaitable[None]]
    before: Literal["speaking", "kicked", "invited", "unknown"] = "speaking"
    source: str = "microphone"
    session: str = ""
    is_heard: bool = True
    waits_for_a_picture: bool = False


CHEATS: Final = (
    Cheat("first join, old token", lambda who: who.enter(), before="invited"),
    Cheat("rejoin, original token", lambda who: who.come_back(who.token)),
    Cheat("rejoin, old refresh token", lambda who: who.come_back(who.refresh_token)),
    Cheat("never answers the offer", lambda who: who.come_back(who.token, answers_offers=False)),
    Cheat("sound as camera", lambda who: who.publish_sound_as("camera"), source="camera"),
    Cheat(
        "sound as camera of type VIDEO, published",
        lambda who: who.publish_sound_as("camera", "VIDEO"),
        source="camera",
        is_heard=False,
    ),
    Cheat(
        "sound of a screen without the screen",
        lambda who: who.publish_sound_as("screen_share_audio"),
        source="screen_share_audio",
        waits_for_a_picture=True,
    ),
    Cheat("sound as unknown", lambda who: who.publish_sound_as("unknown"), source="unknown"),
    Cheat("second session", lambda who: who.enter("publish=x"), session="#x"),
    Cheat("rejoin after a kick", lambda who: who.come_back(who.token), before="kicked"),
    Cheat("stranger's token", lambda who: who.enter(), before="unknown"),
)


async def cheats(options: Options) -> AsyncIterator[Row]:
    """Each cheat once in each meeting, by somebody who has not cheated before."""
    for where, reports, sweep_s, rounds in (
        ("webhooks", True, 3_600, options.cheats),
        (f"MODERATION_SWEEP_S={_SWEEP_S}, no webhooks", False, _SWEEP_S, options.cheats // 2 or 1),
    ):
        async with stage(reports=reports, moderation_sweep_s=sweep_s) as on:
            taken = await in_turns({where: partial(_meeting, on, itertools.count())}, rounds)
        for cheat in CHEATS:
            heard_ms, times = taken[where][cheat.what], taken[where][_times(cheat)]
            goal_ms = _HEARD_MS + cheat.waits_for_a_picture * _PICTURE_MS
            yield Row(
                benchmark="cheats",
                what=cheat.what,
                where=f"{where}; heard {sum(times):.0f} of {rounds} times" if cheat.is_heard else where,
                n=len(CHEATS),
                unit="ms",
                measured=heard_ms,
                goal=Goal(goal_ms if reports else goal_ms + _BUFFERED_MS + 1_000 * _SWEEP_S, "p95"),
            )


def _times(cheat: Cheat) -> str:
    return f"{cheat.what}: heard at all"


async def _meeting(on: Stage, turns: Iterator[int]) -> Sample:
    """Everybody is restricted in a meeting of its own, and cheats when it is their turn; who begins takes turns too."""
    place = Stage(on.server, on.module, on.process, RoomId(fresh_room()))
    async with Crowd() as crowd:
        alice = await place.join("alice", Role.MODERATOR, enters_livekit=False)
        listener = await place.listener()
        cheaters = await in_flight(_AT_ONCE, [partial(_gather, place, crowd, cheat) for cheat in CHEATS])
        speakers = [who for who in cheaters if who.session is not None]
        await asyncio.gather(*(listener.heard(who.identity) for who in speakers))
        await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
        kicked = [who for who, cheat in zip(cheaters, CHEATS, strict=True) if cheat.before == "kicked"]
        await alice.moderate("kick", participants=[who.identity for who in kicked])
        await asyncio.gather(*(who.session.wait_for("leave") for who in kicked if who.session is not None))
        await asyncio.gather(*(listener.silent(who.identity) for who in speakers))

        async def cheat_after(delay_s: float, cheat: Cheat, who: Cheater) -> float | None:
            await asyncio.sleep(delay_s)
            if not cheat.is_heard:
                return await _published_for(cheat, who)
            return await place.heard_for(who.identity + cheat.session, partial(cheat.act, who), cheat.source)

        first = next(turns) % len(CHEATS)
        delays = [(number - first) % len(CHEATS) * _APART_S for number in range(len(CHEATS))]
        heard_s = await asyncio.gather(*map(cheat_after, delays, CHEATS, cheaters))
        await listener.disconnect()
    await on.module.close_room(place.room)
    sample: dict[str, float] = {}
    for cheat, seconds in zip(CHEATS, heard_s, strict=True):
        sample[cheat.what] = 1_000 * (seconds or 0)
        sample[_times(cheat)] = seconds is not None
    return sample


async def _gather(place: Stage, crowd: Crowd, cheat: Cheat) -> Cheater:
    url, name = place.server.url, f"p{CHEATS.index(cheat)}"
    if cheat.before == "unknown":
        token = participant_token(place.server.api_key, place.server.api_secret, place.room, name)
        return Cheater(crowd, url, name, token)
    token = (await place.join(name, enters_livekit=False)).token
    if cheat.before == "invited":
        return Cheater(crowd, url, name, token)
    session = await crowd.join(url, token, publish=["microphone"])
    await session.wait_for("refresh_token")
    return Cheater(crowd, url, name, token, session, session.refresh_token)


async def _published_for(cheat: Cheat, who: Cheater) -> float:
    """From their publishing it, before LiveKit has agreed on any media, to LiveKit's taking it away."""
    assert who.session is not None
    since = time.monotonic()
    await cheat.act(who)
    published = await who.session.wait_for("published", since=since)
    ended = await who.session.wait_for("unpublished", lambda event: event.track_sid == published.track_sid)
    return ended.at - published.at

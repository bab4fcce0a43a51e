"""People whom somebody else let into LiveKit, and people who begin to speak in the moment in which they are muted."""

import asyncio
import time
from datetime import timedelta

import pytest
from livekit.api import AccessToken, VideoGrants

from tests.meetings import cheating
from tests.meetings.cheating import SILENT, Scene
from tests.meetings.stage import ROOM


def token_for_watching(scene: Scene, identity: str, *sources: str) -> str:
    """One that somebody else has minted, for these sources or for none."""
    server = scene.stage.server
    grants = VideoGrants(
        room_join=True, room=ROOM, can_publish=bool(sources), can_publish_sources=list(sources), can_subscribe=True
    )
    token = AccessToken(server.api_key, server.api_secret).with_identity(identity).with_grants(grants)
    return token.with_ttl(timedelta(minutes=1)).to_jwt()


@pytest.mark.parametrize("sources", [(), ("camera",)])
async def test_whoever_may_only_watch_is_given_nothing(sources: tuple[str, ...]) -> None:
    async with cheating.scene(moderation_sweep_s=0.5) as scene:
        name = "wumpus#1234"
        await scene.enter(token_for_watching(scene, name, *sources), publish=list(sources))
        before = await scene.may_publish(name)
        assert before == list(sources)
        told = await scene.alice.until_told("unknown_participant", "livekit_moderation")
        assert told["identity"] == name
        await scene.restrict()
        assert await scene.alice.comes_to("unrestrict", source="microphone") == {
            "alice": "unchanged",
            "bob": "unrestricted",
            name: "unchanged",
            "recorder-main": "unchanged",
        }
        assert await scene.may_publish(name) == before
        await scene.stays_silent(name)


async def test_whoever_was_taken_something_gets_back_what_they_came_with(scene: Scene) -> None:
    await scene.enter(token_for_watching(scene, "eve", "camera", "microphone"))
    await scene.listener.heard("eve")
    await scene.restrict()
    await scene.listener.silent("eve")
    assert await scene.may_publish("eve") == ["camera"]
    await scene.alice.comes_to("unrestrict", source="microphone")
    assert await scene.may_publish("eve") == ["camera", "microphone"]
    await scene.listener.heard("eve", since=time.monotonic())


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.02, 0.05])
async def test_whoever_begins_to_speak_in_the_moment_of_a_mute_is_muted(scene: Scene, after_s: float) -> None:
    names = [f"p{number}" for number in range(8)]
    people = []
    for name in names:
        actor = await scene.stage.join(name, enters_livekit=False)
        people.append(await scene.crowd.join(scene.url, actor.token))
    publishing = [asyncio.ensure_future(person.publish("microphone")) for person in people]
    # What is aimed at is the moment in which some have been announced and no media has come: nothing tells of that.
    await asyncio.sleep(after_s)
    await scene.alice.outcomes("force_mute", participants=names)
    await asyncio.gather(*publishing)
    await asyncio.gather(*(scene.listener.silent(name) for name in names))

    async def unmuted() -> list[str]:
        presences = await scene.stage.presences()
        return [name for name in names if not all(track.muted for track in presences[name].tracks)]

    async with asyncio.timeout(5):
        while await unmuted():  # noqa: ASYNC110 - LiveKit tells nobody of a mute
            await asyncio.sleep(0.02)
    assert await scene.may_publish("p0") != SILENT, "they may unmute themselves"

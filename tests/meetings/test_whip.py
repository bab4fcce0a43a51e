"""Who streams in by WHIP, for which a token to join is enough; a hidden listener says what was heard."""

import pytest

from tests.crowd.crowd import Stream
from tests.meetings import cheating
from tests.meetings.cheating import HEARD_S, SILENT, Scene

SWEEP_S = 1.0


async def stream_in(scene: Scene, token: str) -> Stream:
    return await scene.crowd.stream(scene.url, token, ["microphone"])


async def streaming(scene: Scene, name: str = "carol") -> tuple[Stream, str]:
    """Somebody of the meeting is heard by WHIP; with their token."""
    member = await scene.stage.join(name, enters_livekit=False)
    stream = await stream_in(scene, member.token)
    await scene.listener.heard(name)
    return stream, member.token


async def lifting_leaves_silent(scene: Scene, identity: str) -> None:
    """Nobody is told that somebody can be heard again who will not be."""
    command = {"action": "unrestrict", "source": "microphone"}
    silent = {"participant": identity, "outcome": "unrestricted", "detail": "cannot_publish_again"}
    assert silent in (await scene.alice.moderated("preview", command=command))["outcomes"]
    lifted = (await scene.alice.moderated(**command))["outcomes"]
    assert silent in lifted
    assert {"participant": "bob", "outcome": "unrestricted"} in lifted
    assert await scene.may_publish(identity) == ["camera", "microphone", "screen_share", "screen_share_audio"]
    await scene.stays_silent(identity)


async def test_a_member_who_streams_in_is_restricted_and_stays_silent_when_that_is_lifted(scene: Scene) -> None:
    await streaming(scene)
    assert (await scene.alice.comes_to("restrict", source="microphone"))["carol"] == "restricted"
    await scene.listener.silent("carol")
    assert await scene.may_publish("carol") == SILENT
    await lifting_leaves_silent(scene, "carol")


async def test_who_streams_in_with_a_token_of_before_is_restricted_too(scene: Scene) -> None:
    carol = await scene.stage.join("carol", enters_livekit=False)
    await scene.restrict()
    for _ in range(2):
        heard_s = await scene.heard_for("carol", lambda: stream_in(scene, carol.token))
        assert heard_s < HEARD_S
        assert await scene.may_publish("carol") == SILENT
    await scene.stays_silent("carol")


async def test_streaming_in_replaces_the_persons_own_client_and_brings_no_sound_back(scene: Scene) -> None:
    await scene.restrict()
    heard_s = await scene.heard_for("bob", lambda: stream_in(scene, scene.old_token))
    assert heard_s < HEARD_S
    assert (await scene.bob.wait_for("leave")).reason == "DUPLICATE_IDENTITY"
    assert await scene.may_publish("bob") == SILENT
    assert await scene.repaired("bob") == {"microphone"}


@pytest.mark.parametrize("hold", [{}, {"hold_s": 60}], ids=["once", "held"])
async def test_a_mute_silences_who_streams_in(scene: Scene, hold: dict[str, object]) -> None:
    await streaming(scene)
    assert await scene.alice.comes_to("mute", participants=["carol"], **hold) == {"carol": "muted"}
    await scene.listener.silent("carol")
    await scene.stays_silent("carol")


async def test_a_kick_ends_the_stream_and_each_one_with_the_token_of_before(scene: Scene) -> None:
    stream, token = await streaming(scene)
    assert await scene.alice.comes_to("kick", participants=["carol"]) == {"carol": "removed"}
    await stream.wait_for("ended")
    await scene.listener.silent("carol")
    for _ in range(2):
        assert await scene.heard_for("carol", lambda: stream_in(scene, token)) < HEARD_S
        assert "carol" not in await scene.stage.presences()


async def test_a_stranger_who_streams_in_is_told_of_and_restricted_like_anyone(scene: Scene) -> None:
    stranger = await stream_in(scene, scene.forge("stranger"))
    await scene.listener.heard("stranger")
    assert (await scene.alice.until_told("unknown_participant", "livekit_moderation"))["identity"] == "stranger"
    assert (await scene.alice.comes_to("restrict", source="microphone"))["stranger"] == "restricted"
    await scene.listener.silent("stranger")
    assert await scene.may_publish("stranger") == SILENT
    await lifting_leaves_silent(scene, "stranger")
    assert await scene.alice.comes_to("kick", participants=["stranger"]) == {"stranger": "removed"}
    await stranger.wait_for("ended")


async def test_a_stranger_who_streams_in_during_a_restriction_is_not_heard(scene: Scene) -> None:
    await scene.restrict()
    assert await scene.heard_for("stranger", lambda: stream_in(scene, scene.forge("stranger"))) < HEARD_S
    assert await scene.may_publish("stranger") == SILENT


async def test_without_webhooks_the_next_sweep_finds_who_streams_in() -> None:
    async with cheating.scene(reports=False, moderation_sweep_s=SWEEP_S) as scene:
        carol = await scene.stage.join("carol", enters_livekit=False)
        await scene.restrict()
        heard_s = await scene.heard_for("carol", lambda: stream_in(scene, carol.token))
        assert heard_s < SWEEP_S + HEARD_S
        assert await scene.repaired("carol") == {"microphone"}
        await scene.alice.comes_to("unrestrict", source="microphone")
        await scene.stays_silent("carol")

"""Clients that cheat where LiveKit reports nothing: the next sweep finds them."""

from collections.abc import AsyncIterator

import pytest

from tests.meetings import cheating
from tests.meetings.cheating import HEARD_S, SILENT, Scene

SWEEP_S = 0.5


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Bob may not speak any more, and nobody reports what he does."""
    async with cheating.scene(reports=False, moderation_sweep_s=SWEEP_S) as unreported:
        await unreported.restrict()
        yield unreported


@pytest.mark.parametrize("answers_offers", [True, False])
async def test_an_old_token_is_set_right(scene: Scene, *, answers_offers: bool) -> None:
    heard_s = await scene.heard_for("bob", lambda: scene.come_back(answers_offers=answers_offers))
    assert heard_s < SWEEP_S + HEARD_S
    assert await scene.may_publish("bob") == SILENT
    assert await scene.repaired("bob") == {"microphone"}


async def test_sound_declared_as_a_camera_is_stopped(scene: Scene) -> None:
    heard_s = await scene.heard_for("bob", lambda: scene.bob.publish({"source": "camera", "sound": True}), "camera")
    assert heard_s < SWEEP_S + HEARD_S
    assert await scene.may_publish("bob") == ["screen_share", "screen_share_audio"]
    assert (await scene.alice.until_told("bypass_stopped", "livekit_moderation"))["declared"] == "camera"


async def test_a_second_session_is_removed(scene: Scene) -> None:
    assert await scene.heard_for("bob#x", scene.open_second_session) < SWEEP_S + HEARD_S
    assert [identity for identity in await scene.stage.presences() if "#" in identity] == []


async def test_a_stranger_is_restricted_like_anyone(scene: Scene) -> None:
    assert await scene.heard_for("stranger", scene.intrude) < SWEEP_S + HEARD_S
    assert await scene.may_publish("stranger") == SILENT
    told = await scene.alice.until_told("unknown_participant", "livekit_moderation")
    assert told["identity"] == "stranger"

"""What names one person, and their client that gets round everything it can; nothing is restricted for everybody."""

import time

from tests.meetings import cheating
from tests.meetings.cheating import HEARD_S, SILENT, Scene


async def test_who_unmutes_after_each_force_mute_may_and_moderators_are_told() -> None:
    async with cheating.scene(moderation_sweep_s=0.5) as scene:
        await scene.come_back(unmute_always=True)
        await scene.listener.heard("bob", since=time.monotonic())
        for times in (1, 2):
            asked_at = time.monotonic()
            assert await scene.alice.outcomes("force_mute", participants=["bob"]) == {"bob": "muted"}
            muted = await scene.bob.wait_for("mute", since=asked_at)
            await scene.listener.heard("bob", since=muted.at + HEARD_S)
            told = await scene.alice.until_told("unmuted_again", "livekit_moderation", times)
            assert told["participant"] == "bob"


async def test_a_hold_outlasts_a_client_that_always_unmutes_and_publishes_again(scene: Scene) -> None:
    await scene.come_back(unmute_always=True)
    await scene.listener.heard("bob", since=time.monotonic())
    assert await scene.alice.comes_to("mute", participants=["bob"], hold_s=60) == {"bob": "muted"}
    await scene.listener.silent("bob")
    await scene.stays_silent("bob")
    assert await scene.alice.comes_to("allow", source="microphone", participants=["bob"]) == {"bob": "granted"}
    await scene.listener.heard("bob", since=time.monotonic())  # it had not ceased to try


async def test_the_original_token_does_not_end_a_hold(scene: Scene) -> None:
    assert await scene.alice.comes_to("mute", participants=["bob"], hold_s=60) == {"bob": "muted"}
    await scene.listener.silent("bob")
    heard_s = await scene.heard_for("bob", scene.come_back)
    assert heard_s < HEARD_S
    assert await scene.may_publish("bob") == SILENT
    assert await scene.repaired("bob") == {"microphone"}


async def test_who_always_publishes_again_may_after_each_stop_but_not_after_a_disallow(scene: Scene) -> None:
    await scene.come_back()
    await scene.listener.heard("bob", since=time.monotonic())
    for _ in range(2):
        asked_at = time.monotonic()
        assert await scene.alice.comes_to("stop", source="microphone", participants=["bob"]) == {"bob": "stopped"}
        await scene.bob.wait_for("unpublished", since=asked_at)
        again = await scene.bob.wait_for("published", since=asked_at)
        await scene.listener.heard("bob", since=again.at + HEARD_S)
    assert await scene.alice.comes_to("disallow", source="microphone", participants=["bob"]) == {"bob": "revoked"}
    await scene.listener.silent("bob")
    await scene.stays_silent("bob")
    assert await scene.may_publish("bob") == SILENT

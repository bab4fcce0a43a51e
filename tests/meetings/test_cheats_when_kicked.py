"""Who was kicked or banned comes back with whatever they have kept, on a real media server."""

import time

import pytest

from signaling import ParticipantBanned
from signaling.identifiers import BreakoutId
from tests.meetings.cheating import HEARD_S, Scene


async def kick(scene: Scene) -> None:
    asked_at = time.monotonic()
    assert await scene.alice.comes_to("kick", participants=["bob"]) == {"bob": "removed"}
    assert await scene.signaling.session.ended == "kicked"
    await scene.bob.wait_for("leave", since=asked_at)
    await scene.listener.silent("bob")


async def returns_in_vain(scene: Scene, token: str) -> None:
    returned_at = time.monotonic()
    heard_s = await scene.heard_for("bob", lambda: scene.come_back(token))
    await scene.bob.wait_for("joined", since=returned_at)  # LiveKit lets them in; our answer takes them out
    assert heard_s < HEARD_S
    assert "bob" not in await scene.stage.presences()


async def test_a_kick_outlasts_the_original_token_again_and_again(scene: Scene) -> None:
    await kick(scene)
    for _ in range(2):
        await returns_in_vain(scene, scene.old_token)


async def test_a_kick_outlasts_a_refresh_token(scene: Scene) -> None:
    await scene.bob.wait_for("refresh_token")
    await kick(scene)
    await returns_in_vain(scene, scene.bob.refresh_token)


async def test_a_kick_is_for_popouts_and_second_sessions_too(scene: Scene) -> None:
    await scene.signaling.send("request_popout_stream_access_token")
    token = scene.signaling.told("popout_stream_access_token")[0]["token"]
    popout = await scene.stage.enter(token)
    await kick(scene)
    assert (await popout.wait_for("disconnected")).reason == "PARTICIPANT_REMOVED"
    returned_at = time.monotonic()
    await popout.reconnect(scene.url, token)
    assert (await popout.wait_for("disconnected", since=returned_at)).reason == "PARTICIPANT_REMOVED"
    assert await scene.heard_for("bob#x", scene.open_second_session) < HEARD_S
    assert set(await scene.stage.presences()) == {"recorder-main"}


async def test_a_kick_is_for_a_breakout_too_and_for_the_room_of_before(scene: Scene) -> None:
    await scene.signaling.session.move(BreakoutId("red"))
    moved = scene.signaling.told("credentials")[-1]
    red = await scene.stage.listener("red")
    await scene.bob.rejoin(moved["token"], publish=["microphone"])
    await red.heard("bob")
    await kick(scene)
    await red.silent("bob")
    heard_s = await scene.heard_for("bob", lambda: scene.come_back(moved["token"]), listener=red)
    assert heard_s < HEARD_S
    assert set(await scene.stage.presences(moved["room"])) == {"recorder-red"}
    await returns_in_vain(scene, scene.old_token)


async def test_a_ban_lasts_until_it_is_lifted_and_the_old_token_is_no_use_after_that(scene: Scene) -> None:
    assert await scene.alice.comes_to("kick", participants=["bob"], ban=True) == {"bob": "banned"}
    assert await scene.signaling.session.ended == "banned"
    await scene.listener.silent("bob")
    for _ in range(2):
        with pytest.raises(ParticipantBanned):
            await scene.stage.join("bob", enters_livekit=False)
        await returns_in_vain(scene, scene.old_token)
    assert await scene.alice.comes_to("unban", participants=["bob"]) == {"bob": "unrestricted"}
    await returns_in_vain(scene, scene.old_token)
    again = await scene.stage.join("bob", enters_livekit=False)
    await scene.bob.rejoin(again.token, publish=["microphone"])
    await scene.listener.heard("bob", since=time.monotonic())

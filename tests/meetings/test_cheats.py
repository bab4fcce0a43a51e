"""Clients that cheat, on a real media server that reports by webhooks; a hidden listener says what was heard."""

import asyncio
import time
from http import HTTPStatus

import aiohttp
import pytest
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol import room as protocol
from livekit.protocol.models import ParticipantPermission

from signaling import Kind
from signaling.meeting.incidents import PICTURE_S
from signaling.testing.participants import PublishRefused
from tests.meetings import cheating
from tests.meetings.cheating import HEARD_S, SILENT, Scene
from tests.meetings.stage import ROOM


@pytest.fixture
async def scene(scene: Scene) -> Scene:
    """Bob may not speak any more."""
    await scene.restrict()
    return scene


# --- With a token of before ---------------------------------------------------------------------------------------


async def test_the_original_token_brings_no_sound_back(scene: Scene) -> None:
    heard_s = await scene.heard_for("bob", scene.come_back)
    assert heard_s < HEARD_S
    assert await scene.may_publish("bob") == SILENT
    assert await scene.repaired("bob") == {"microphone"}


async def test_a_token_of_before_that_was_never_used_brings_no_sound(scene: Scene) -> None:
    await scene.alice.outcomes("disable_microphone_restrictions")
    carol = await scene.stage.join("carol", enters_livekit=False)
    await scene.restrict()
    heard_s = await scene.heard_for("carol", lambda: scene.enter(carol.token))
    assert heard_s < HEARD_S
    assert await scene.may_publish("carol") == SILENT
    assert await scene.repaired("carol") == {"microphone"}


async def test_a_refresh_token_of_before_brings_no_sound_back(scene: Scene) -> None:
    await scene.alice.outcomes("disable_microphone_restrictions")
    returned_at = time.monotonic()
    await scene.come_back()
    await scene.bob.wait_for("refresh_token", since=returned_at)
    before = scene.bob.refresh_token
    await scene.restrict()
    heard_s = await scene.heard_for("bob", lambda: scene.come_back(before))
    assert heard_s < HEARD_S
    assert await scene.may_publish("bob") == SILENT
    assert await scene.repaired("bob") == {"microphone"}


async def test_who_never_answers_livekits_offer_is_found_by_their_track(scene: Scene) -> None:
    heard_s = await scene.heard_for("bob", lambda: scene.come_back(answers_offers=False))
    assert heard_s < HEARD_S
    assert await scene.may_publish("bob") == SILENT


# --- With media that are not what they are called -----------------------------------------------------------------


async def test_sound_declared_as_a_camera_is_stopped_and_the_second_time_ends_it(scene: Scene) -> None:
    heard_s = await scene.heard_for("bob", lambda: scene.bob.publish({"source": "camera", "sound": True}), "camera")
    assert heard_s < HEARD_S
    assert (await scene.alice.until_told("bypass_stopped", "livekit_moderation"))["declared"] == "camera"
    assert await scene.may_publish("bob") == ["screen_share", "screen_share_audio"]
    heard_s = await scene.heard_for(
        "bob", lambda: scene.bob.publish({"source": "screen_share", "sound": True}), "screen_share"
    )
    assert heard_s < HEARD_S
    assert await asyncio.wait_for(asyncio.shield(scene.signaling.session.ended), 5) == "kicked"
    await scene.bob.wait_for("leave")
    assert "bob" not in await scene.stage.presences()


async def test_sound_declared_as_a_picture_of_type_video_is_unpublished_at_once(scene: Scene) -> None:
    """No listener of ours may subscribe to it, which ends its process: what counts is when LiveKit took it away."""
    sid = await scene.bob.publish({"source": "camera", "sound": True, "type": "VIDEO"})
    published, unpublished = [
        await scene.bob.wait_for(name, lambda event: event.track_sid == sid) for name in ("published", "unpublished")
    ]
    assert unpublished.at - published.at < HEARD_S
    told = await scene.alice.until_told("bypass_stopped", "livekit_moderation")
    assert (told["track_sid"], told["declared"], told["media"]) == (sid, "camera", "audio")
    assert await scene.may_publish("bob") == ["screen_share", "screen_share_audio"]


async def test_the_sound_of_a_screen_is_heard_for_a_second_if_no_picture_comes(scene: Scene) -> None:
    carol = await scene.stage.join("carol", enters_livekit=False)
    sharing = await scene.crowd.join(scene.url, carol.token, publish=["screen_share_audio"])
    await sharing.publish("screen_share")
    heard_s = await scene.heard_for("bob", lambda: scene.bob.publish("screen_share_audio"), "screen_share_audio")
    assert heard_s < PICTURE_S + HEARD_S
    told = await scene.alice.until_told("bypass_stopped", "livekit_moderation")
    assert (told["participant"], told["declared"]) == ("bob", "screen_share_audio")
    assert await scene.may_publish("bob") == ["camera", "screen_share"]
    await scene.listener.heard("carol", "screen_share_audio", since=time.monotonic())


async def test_the_sound_of_a_screen_is_heard_for_a_second_after_its_picture_has_ended(scene: Scene) -> None:
    picture = await scene.bob.publish("screen_share")
    await scene.bob.publish("screen_share_audio")
    await scene.listener.heard("bob", "screen_share_audio")
    heard_s = await scene.heard_for("bob", lambda: scene.bob.unpublish(picture), "screen_share_audio")
    assert heard_s < PICTURE_S + HEARD_S
    assert await scene.may_publish("bob") == ["camera", "screen_share"]


async def test_sound_of_no_declared_source_is_refused_by_livekit_whatever_token_of_ours_brings_it(scene: Scene) -> None:
    async def publish() -> None:
        with pytest.raises(PublishRefused, match="may not publish unknown: NOT_ALLOWED"):
            await scene.bob.publish({"source": "unknown", "sound": True})
        with pytest.raises(PublishRefused, match="may not publish unknown: NOT_ALLOWED"):
            await scene.bob.rejoin(scene.old_token, publish=[{"source": "unknown", "sound": True}])

    assert await scene.heard_for("bob", publish, "unknown") == 0


# --- As somebody else ---------------------------------------------------------------------------------------------


async def test_a_second_session_is_never_heard_and_removed(scene: Scene) -> None:
    assert await scene.heard_for("bob#x", scene.open_second_session) < HEARD_S
    assert [identity for identity in await scene.stage.presences() if "#" in identity] == []


@pytest.mark.parametrize("source", ["microphone", "unknown"])
async def test_a_token_of_somebody_who_never_joined_gives_what_anyone_has(scene: Scene, source: str) -> None:
    assert await scene.heard_for("stranger", lambda: scene.intrude(source), source) < HEARD_S
    assert await scene.may_publish("stranger") == SILENT
    told = await scene.alice.until_told("unknown_participant", "livekit_moderation")
    assert told["identity"] == "stranger"


async def test_a_stranger_is_removed_where_strangers_are_to_be() -> None:
    async with cheating.scene(moderation_unknown_participants="remove") as scene:
        assert await scene.heard_for("stranger", scene.intrude) < HEARD_S
        assert "stranger" not in await scene.stage.presences()
        told = await scene.alice.until_told("unknown_participant", "livekit_moderation")
        assert told["identity"] == "stranger"


async def test_no_token_of_ours_is_accepted_by_the_room_service(scene: Scene) -> None:
    recorder = await scene.stage.join("recorder-two", kind=Kind.RECORDER, enters_livekit=False)
    async with aiohttp.ClientSession() as http:
        for token in (scene.old_token, recorder.token, scene.alice.token):
            service = LiveKitAPI.with_token(token, scene.stage.server.http_url, session=http, failover=False).room
            permission = ParticipantPermission(can_publish=True, can_subscribe=True)
            calls = (
                service.list_participants(protocol.ListParticipantsRequest(room=ROOM)),
                service.get_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob")),
                service.remove_participant(protocol.RoomParticipantIdentity(room=ROOM, identity="bob")),
                service.mute_published_track(protocol.MuteRoomTrackRequest(room=ROOM, identity="bob", track_sid="TR")),
                service.update_participant(
                    protocol.UpdateParticipantRequest(room=ROOM, identity="bob", permission=permission)
                ),
                service.update_room_metadata(protocol.UpdateRoomMetadataRequest(room=ROOM, metadata="x")),
                service.delete_room(protocol.DeleteRoomRequest(room=ROOM)),
                service.create_room(protocol.CreateRoomRequest(name="another")),
                service.list_rooms(protocol.ListRoomsRequest()),
                service.send_data(protocol.SendDataRequest(room=ROOM, data=b"x")),
                service.update_subscriptions(protocol.UpdateSubscriptionsRequest(room=ROOM, identity="bob")),
            )
            for call in calls:
                with pytest.raises(ServerError) as refused:
                    await call
                assert refused.value.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

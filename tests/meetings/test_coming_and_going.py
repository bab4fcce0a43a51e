"""Who is left alone by a room-wide change, and who is removed."""

import asyncio
import time

from signaling import Kind, Role
from tests.meetings.stage import ROOM, Stage


async def test_popouts_and_recorders_hear_on_through_every_room_wide_change(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR, tone_hz=330)
    bob = await meeting.join("bob")
    recorder = await meeting.listener()
    await bob.send("request_popout_stream_access_token")
    popout = await meeting.enter(bob.told("popout_stream_access_token")[0]["token"])
    assert popout.identity == "bob-popout1"
    before = {name: presence.permission for name, presence in (await meeting.presences()).items()}

    for action, fields in (
        ("enable_microphone_restrictions", {"unrestricted_participants": []}),
        ("enable_microphone_restrictions", {"unrestricted_participants": ["bob"]}),
        ("disable_microphone_restrictions", {}),
        ("revoke_screen_share_permission", {"participants": ["alice", "bob"]}),
        ("grant_screen_share_permission", {"participants": ["alice", "bob"]}),
    ):
        await alice.send(action, **fields)
        since = time.monotonic()
        await asyncio.gather(popout.heard("alice", since=since), recorder.heard("alice", since=since))
    after = {name: presence.permission for name, presence in (await meeting.presences()).items()}
    for hidden in ("bob-popout1", "recorder-main"):
        assert after[hidden] == before[hidden]
    changed = [event for event in popout.events + recorder.events if event.name == "permission_changed"]
    assert changed == []
    seen_by_alice = {event.identity for event in alice.media.events if event.name == "participant_connected"}
    assert seen_by_alice == {"bob"}


async def test_leaving_removes_every_identity_of_the_person(meeting: Stage) -> None:
    await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob", tone_hz=440)
    await meeting.all_heard(bob)
    await bob.send("request_popout_stream_access_token")
    popout = await meeting.enter(bob.told("popout_stream_access_token")[0]["token"])
    listener = await meeting.listener()
    await bob.session.leave()
    await listener.silent("bob")
    for gone in (bob.media, popout):
        assert (await gone.wait_for("disconnected")).reason == "PARTICIPANT_REMOVED"
    assert set(await meeting.presences()) == {"alice", "recorder-main"}


async def test_the_end_of_a_meeting_disconnects_everybody(meeting: Stage) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", breakout="red")
    recorder = await meeting.join("recorder", kind=Kind.RECORDER)
    await meeting.module.close_room(ROOM)
    for person in (alice, bob, recorder):
        assert person.session.ended.result() == "meeting_ended"
        assert (await person.media.wait_for("disconnected")).reason == "ROOM_DELETED"


async def test_taking_over_keeps_the_media(meeting: Stage) -> None:
    await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob", tone_hz=440)
    await meeting.all_heard(bob)
    again = await meeting.join("bob", enters_livekit=False)
    assert bob.session.ended.result() == "taken_over"
    await meeting.all_heard(again, since=time.monotonic())

"""What moderators do to microphones, as it is heard."""

import asyncio
import time

import pytest

from signaling import Role
from signaling.testing.participants import PublishRefused
from tests.meetings.stage import Stage


async def test_force_mute_of_one_silences_that_one(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    bob, carol = await meeting.join("bob", tone_hz=440), await meeting.join("carol", tone_hz=550)
    await meeting.all_heard(bob, carol)
    asked_at = time.monotonic()
    assert await alice.outcomes("force_mute", participants=["bob"]) == {"bob": "muted"}
    listener = await meeting.listener()
    assert await listener.silent("bob") >= asked_at
    await meeting.all_heard(carol, since=time.monotonic())
    assert bob.told("force_muted") == [{"message": "force_muted", "moderator": "alice"}]
    await bob.media.unmute("microphone")  # while unrestricted, that is his right
    await meeting.all_heard(bob, since=time.monotonic())


async def test_force_mute_of_many_silences_all_of_them(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    speakers = [await meeting.join(f"p{n}", tone_hz=300 + 50 * n) for n in range(6)]
    await meeting.all_heard(*speakers)
    came_to = await alice.outcomes("force_mute", participants=[speaker.id for speaker in speakers])
    assert came_to == {speaker.id: "muted" for speaker in speakers}
    listener = await meeting.listener()
    await asyncio.gather(*(listener.silent(speaker.id) for speaker in speakers))
    assert all(len(speaker.told("force_muted")) == 1 for speaker in speakers)


async def test_a_restriction_is_heard_for_each_list_it_has(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR, tone_hz=330)
    bob, carol = await meeting.join("bob", tone_hz=440), await meeting.join("carol", tone_hz=550)
    listener = await meeting.listener()
    await meeting.all_heard(alice, bob, carol)

    came_to = await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=["carol"])
    assert {name: came_to[name] for name in ("alice", "bob", "carol")} == {
        "alice": "exempt",
        "bob": "restricted",
        "carol": "unchanged",
    }
    await listener.silent("bob")
    await meeting.all_heard(alice, carol, since=time.monotonic())

    changed_at = time.monotonic()
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["bob"])
    await listener.silent("carol")
    await bob.media.wait_for("permission_changed", identity="bob", since=changed_at)
    await bob.media.publish_microphone(440)
    await meeting.all_heard(alice, bob, since=time.monotonic())

    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await listener.silent("bob")
    await meeting.all_heard(alice, since=time.monotonic())

    changed_at = time.monotonic()
    await alice.send("disable_microphone_restrictions")
    await asyncio.gather(
        *(actor.media.wait_for("permission_changed", identity=actor.id, since=changed_at) for actor in (bob, carol))
    )
    await asyncio.gather(bob.media.publish_microphone(440), carol.media.publish_microphone(550))
    await meeting.all_heard(alice, bob, carol, since=time.monotonic())


async def test_a_late_joiner_cannot_speak_while_restricted(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    bob = await meeting.join("bob")
    with pytest.raises(PublishRefused):
        await bob.media.publish_microphone(440)
    await bob.media.publish_camera()
    listener = await meeting.listener()
    await listener.seen("bob")
    assert await listener.level("bob") == 0


async def test_back_to_back_commands_both_take_effect_in_order(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    bob, carol = await meeting.join("bob", tone_hz=440), await meeting.join("carol", tone_hz=550)
    await meeting.all_heard(bob, carol)
    alice.forget()
    restricting = asyncio.create_task(
        alice.send("enable_microphone_restrictions", unrestricted_participants=["carol"], transaction_id=1)
    )
    muting = asyncio.create_task(alice.send("force_mute", participants=["bob", "carol"], transaction_id=2))
    await asyncio.gather(restricting, muting)
    listener = await meeting.listener()
    await asyncio.gather(listener.silent("bob"), listener.silent("carol"))
    results = alice.told("result", "livekit_moderation")
    assert [result["action"] for result in results] == ["enable_microphone_restrictions", "force_mute"]
    assert carol.told("force_muted")


async def test_two_moderators_at_once_do_not_lose_each_others_decisions(meeting: Stage) -> None:
    alice, mia = await meeting.join("alice", Role.MODERATOR), await meeting.join("mia", Role.MODERATOR)
    bob, carol = await meeting.join("bob", tone_hz=440), await meeting.join("carol", tone_hz=550)
    await meeting.all_heard(bob, carol)
    await asyncio.gather(
        *(alice.send("enable_microphone_restrictions", unrestricted_participants=["carol"]) for _ in range(5)),
        *(mia.send("revoke_screen_share_permission", participants=["carol"]) for _ in range(5)),
    )
    listener = await meeting.listener()
    await listener.silent("bob")
    may = await meeting.may_publish()
    assert may["bob"] == ["camera", "screen_share", "screen_share_audio"]
    assert may["carol"] == ["camera", "microphone"]


async def test_a_role_works_both_ways_at_once_and_outlasts_a_new_ticket(meeting: Stage) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", tone_hz=440)
    listener = await meeting.listener()
    await meeting.all_heard(bob)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await listener.silent("bob")
    granted_at = time.monotonic()
    await alice.session.receive("control", {"action": "grant_moderator_role", "target": "bob"})
    await bob.media.wait_for("permission_changed", identity="bob", since=granted_at)
    await bob.media.publish_microphone(440)
    await meeting.all_heard(bob, since=time.monotonic())

    bob = await meeting.join("bob", Role.USER, tone_hz=440)  # a new ticket, which still says user
    await meeting.all_heard(bob, since=time.monotonic())
    assert "error" not in await bob.result("force_mute", participants=["alice"])

    await alice.session.receive("control", {"action": "revoke_moderator_role", "target": "bob"})
    await listener.silent("bob")
    bob = await meeting.join("bob", Role.MODERATOR)  # a new ticket, which still says moderator
    with pytest.raises(PublishRefused):
        await bob.media.publish_microphone(440)
    assert (await bob.result("force_mute", participants=["alice"]))["error"] == "insufficient_permissions"


async def test_an_old_token_that_returns_is_not_heard_for_longer_than_a_sweep(meeting: Stage) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", tone_hz=440)
    await meeting.all_heard(bob)
    old_token = bob.token
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    listener = await meeting.listener()
    await listener.silent("bob")
    returned_at = time.monotonic()
    await bob.media.reconnect(meeting.server.url, old_token)
    await bob.media.publish_microphone(440)  # LiveKit has forgotten, and lets him
    await bob.media.wait_for("permission_changed", identity="bob", since=returned_at)
    await listener.silent("bob")
    assert "microphone" not in (await meeting.may_publish())["bob"]

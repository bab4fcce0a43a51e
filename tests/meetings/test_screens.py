"""What moderators do to screens, as it is seen: through renewal, reconnect, and breakout and back."""

import time

import pytest

from signaling import Role
from signaling.identifiers import BreakoutId
from signaling.testing.participants import PublishRefused
from tests.meetings.stage import Stage, stage


async def test_revoking_ends_a_running_share_and_granting_lets_it_begin_again(meeting: Stage) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await bob.media.publish_screen_share(with_audio=True)
    listener = await meeting.listener()
    await listener.seen("bob", "screen_share")
    await listener.heard("bob", "screen_share_audio")

    assert await alice.outcomes("revoke_screen_share_permission", participants=["bob"]) == {"bob": "revoked"}
    await listener.unseen("bob", "screen_share")
    await listener.silent("bob", "screen_share_audio")
    with pytest.raises(PublishRefused):
        await bob.media.publish_screen_share()

    granted_at = time.monotonic()
    assert await alice.outcomes("grant_screen_share_permission", participants=["bob"]) == {"bob": "granted"}
    await bob.media.wait_for("permission_changed", identity="bob", since=granted_at)
    await bob.media.publish_screen_share()
    await listener.seen("bob", "screen_share", since=granted_at)


async def test_a_grant_goes_along_through_renewal_reconnect_and_breakout_and_back() -> None:
    async with stage(moderation_screen_share_requires_permission=True) as meeting:
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        with pytest.raises(PublishRefused):
            await bob.media.publish_screen_share()
        await alice.send("grant_screen_share_permission", participants=["bob"])
        await bob.media.wait_for("permission_changed", identity="bob")
        main, red = await meeting.listener(), await meeting.listener("red")
        await bob.media.publish_screen_share()
        await main.seen("bob", "screen_share")

        await bob.send("create_new_access_token")
        renewed_at = time.monotonic()
        await bob.media.reconnect(meeting.server.url, bob.told("credentials")[-1]["token"])
        await bob.media.publish_screen_share()
        await main.seen("bob", "screen_share", since=renewed_at)

        await bob.session.move(BreakoutId("red"))
        await main.unseen("bob", "screen_share")
        await bob.media.wait_for("disconnected")
        await bob.media.reconnect(meeting.server.url, bob.told("credentials")[-1]["token"])
        await bob.media.publish_screen_share()
        await red.seen("bob", "screen_share")

        await bob.session.move(None)
        returned_at = time.monotonic()
        await bob.media.reconnect(meeting.server.url, bob.told("credentials")[-1]["token"])
        await bob.media.publish_screen_share()
        await main.seen("bob", "screen_share", since=returned_at)

        await alice.send("revoke_screen_share_permission", participants=["bob"])
        await main.unseen("bob", "screen_share")
        await bob.session.move(BreakoutId("red"))
        await bob.media.reconnect(meeting.server.url, bob.told("credentials")[-1]["token"])
        with pytest.raises(PublishRefused):
            await bob.media.publish_screen_share()


async def test_a_restriction_made_in_the_main_room_holds_in_a_breakout_too(meeting: Stage) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob", tone_hz=440, breakout="red")
    red = await meeting.listener("red")
    await red.heard("bob")
    came_to = await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
    assert came_to["bob"] == "restricted"
    await red.silent("bob")
    assert bob.told("microphone_restrictions_enabled")

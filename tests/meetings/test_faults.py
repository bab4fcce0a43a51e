"""What becomes of a meeting when its media server is away, dies or hangs."""

import asyncio

import pytest

from signaling import Role, metrics
from signaling.testing.participants import PublishRefused
from tests.meeting_on_fake import outcomes, until
from tests.meetings.stage import Stage, stage


async def test_livekit_down_at_joining_and_back(meeting: Stage) -> None:
    meeting.server.pause()
    bob = await meeting.join("bob", enters_livekit=False)
    assert bob.session.join_data is None
    assert bob.told("error") == [{"message": "error", "error": "livekit_unavailable"}]
    meeting.server.resume()
    await until(lambda: meeting.module.livekit_answers)
    await bob.send("create_new_access_token")
    bob.media = await meeting.process.connect(
        meeting.server.url, bob.told("credentials")[0]["token"], publish_tone_hz=440
    )
    await meeting.all_heard(bob)


async def test_a_hung_livekit_costs_one_deadline_and_tokens_none(meeting: Stage) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", tone_hz=440)
    await meeting.all_heard(bob)
    unanswered = metrics.LIVEKIT_CALLS.labels("ListParticipants", "unavailable")
    before = unanswered._value.get()
    meeting.server.pause()
    muting = asyncio.create_task(alice.result("force_mute", participants=["bob"]))
    restricting = asyncio.create_task(
        alice.send("enable_microphone_restrictions", unrestricted_participants=[], transaction_id="r")
    )
    await bob.send("create_new_access_token")
    assert bob.told("credentials")
    assert not muting.done()
    assert (await muting)["error"] == "livekit_unavailable"
    await restricting
    # Both together took one deadline, not two: the second was refused without another call.
    assert unanswered._value.get() == before + 1
    assert not bob.told("force_muted") + bob.told("microphone_restrictions_enabled")
    meeting.server.resume()
    await until(lambda: meeting.module.livekit_answers)
    assert outcomes(await alice.result("force_mute", participants=["bob"]))["bob"] in {"muted", "already_muted"}
    listener = await meeting.listener()
    await listener.silent("bob")


async def test_livekit_killed_in_the_middle_of_a_bulk_command_and_back() -> None:
    async with stage(moderation_livekit_calls_per_room=1) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        people = [await meeting.join(f"p{n}", tone_hz=300 + 40 * n) for n in range(8)]
        await meeting.all_heard(*people)
        restricting = asyncio.create_task(
            alice.result("enable_microphone_restrictions", unrestricted_participants=["p7"])
        )
        await people[0].media.wait_for("permission_changed", identity=people[0].id)
        meeting.server.kill()
        result = await restricting
        came_to = outcomes(result)
        assert came_to["alice"] == "exempt"
        assert set(came_to.values()) <= {"exempt", "restricted", "failed", "unchanged"}
        failed = [name for name, outcome in came_to.items() if outcome == "failed"]
        assert result["repaired_later"] == sorted(failed)
        assert bool(alice.told("error")) == bool(failed)
        # Somebody was told, so the restriction stands, for those too who were not reached.
        assert alice.told("microphone_restrictions_enabled")
        await until(lambda: meeting.module.livekit_answers)
        for person in people:
            await person.media.wait_for("reconnected", timeout_s=30)
        await until_agreed(meeting, {person.id: person.id == "p7" for person in people})
        with pytest.raises(PublishRefused):
            await people[1].media.publish_microphone(440)
        lifted = outcomes(await alice.result("disable_microphone_restrictions"))
        assert lifted["p0"] in {"unrestricted", "settling"}, "nobody waits for people who publish nothing"
        await until_agreed(meeting, {person.id: True for person in people})


async def until_agreed(meeting: Stage, expected: dict[str, bool]) -> None:
    """Wait until LiveKit lets exactly these people publish a microphone."""
    async with asyncio.timeout(30):
        while True:
            may = await meeting.may_publish()
            if all(("microphone" in may.get(name, [])) is allowed for name, allowed in expected.items()):
                return
            await asyncio.sleep(0.05)

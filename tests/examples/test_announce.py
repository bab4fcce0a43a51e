import asyncio
import json
import os
import signal
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from livekit.protocol import models

from examples.announce import AnnouncementFailed, silence
from signaling import ModerationModule, Participant, Role, Settings
from signaling.identifiers import LiveKitRoom, ParticipantId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.livekit.room_service import RoomService
from signaling.testing.participants import MediaParticipant, ParticipantProcess, PublishRefused, participant_token
from tests.meeting_on_fake import ROOM, MeetingOnFake, Person

ANNOUNCE = Path(__file__).parents[2] / "examples" / "announce.py"
EXTENSIONS = frozenset({"livekit_moderation"})
NOTICED_MS = 125
"""From when on viewers notice that sound is late, by ITU-R BT.1359."""
OFF: dict[str, object] = {"type": "disabled"}


class Announcing:
    """The example as a process of its own, on a LiveKit where people talk."""

    def __init__(self, livekit: EmbeddedServer, people: ParticipantProcess) -> None:
        self.livekit = livekit
        self.people = people
        self.environment = {
            "LIVEKIT_URL": livekit.url,
            "LIVEKIT_API_KEY": livekit.api_key,
            "LIVEKIT_API_SECRET": livekit.api_secret,
        }

    def token(self, identity: str, *, hidden: bool = False) -> str:
        return participant_token(self.livekit.api_key, self.livekit.api_secret, ROOM, identity, hidden=hidden)

    async def speaker(self, name: str, tone_hz: int) -> MediaParticipant:
        return await self.people.connect(self.livekit.url, self.token(name), publish_tone_hz=tone_hz)

    async def listener(self) -> MediaParticipant:
        return await self.people.connect(self.livekit.url, self.token("ear", hidden=True), listens=True)

    async def start(self, seconds: int, **settings: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(ANNOUNCE), "--room", ROOM, "--seconds", str(seconds)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | self.environment | settings,
        )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Wait for its end: its status, and what it wrote to standard error."""
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


@pytest.fixture
async def announcing() -> AsyncIterator[Announcing]:
    async with (
        EmbeddedServer(path=require(None)) as livekit,
        ParticipantProcess() as people,
        RoomService(livekit.url, livekit.api_key, livekit.api_secret) as service,
    ):
        await service.ensure_room(LiveKitRoom(ROOM))
        yield Announcing(livekit, people)


async def announcer(listener: MediaParticipant) -> tuple[str, float]:
    """Wait until the announcement is heard and seen: who it is, and when it was first heard."""
    who = (await listener.wait_for("track_published", source="camera", timeout_s=20)).identity
    began_at, _ = await asyncio.gather(listener.heard(who), listener.seen(who))
    return who, began_at


async def may_speak_again(speaker: MediaParticipant, since: float) -> None:
    """Wait until LiveKit has told them so."""
    await speaker.wait_for("permission_changed", identity=speaker.identity, since=since)
    assert models.TrackSource.MICROPHONE in speaker.permission.can_publish_sources


async def test_everybody_is_silent_while_it_is_heard_and_may_speak_after(announcing: Announcing) -> None:
    bob, carol = await announcing.speaker("bob", 440), await announcing.speaker("carol", 550)
    listener = await announcing.listener()
    await asyncio.gather(listener.heard("bob"), listener.heard("carol"))

    process = await announcing.start(seconds=2)
    who, began_at = await announcer(listener)
    assert models.TrackSource.MICROPHONE not in bob.permission.can_publish_sources
    status, errors = await ended(process)
    assert status == 0, errors
    assert await listener.silent("bob") < began_at
    assert await listener.silent("carol") < began_at

    await listener.wait_for("participant_disconnected", identity=who)
    await asyncio.gather(may_speak_again(bob, began_at), may_speak_again(carol, began_at))
    await asyncio.gather(bob.publish_microphone(440), carol.publish_microphone(550))
    await asyncio.gather(listener.heard("bob"), listener.heard("carol"))


async def test_a_restriction_of_before_is_there_again_after(announcing: Announcing, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'meetings.sqlite'}"
    bob, carol = await announcing.speaker("bob", 440), await announcing.speaker("carol", 550)
    listener = await announcing.listener()
    settings = {name.lower(): value for name, value in announcing.environment.items()}
    async with ModerationModule(Settings(**settings, moderation_store_url=store)) as module:
        alice = Person("alice")
        alice.session = await module.join(
            ROOM, Participant(alice.id, role=Role.MODERATOR), deliver=alice.deliver, extensions=EXTENSIONS
        )
        came_to = await alice.result("enable_microphone_restrictions", unrestricted_participants=["bob"])
        assert "error" not in came_to
    await asyncio.gather(listener.heard("bob"), listener.silent("carol"))

    process = await announcing.start(seconds=1, MODERATION_STORE_URL=store)
    _, began_at = await announcer(listener)
    status, errors = await ended(process)
    assert status == 0, errors
    assert await listener.silent("bob") < began_at

    await may_speak_again(bob, began_at)
    await bob.publish_microphone(440)
    await listener.heard("bob")
    with pytest.raises(PublishRefused):
        await carol.publish_microphone(550)


async def test_being_stopped_puts_everything_back(announcing: Announcing) -> None:
    bob = await announcing.speaker("bob", 440)
    listener = await announcing.listener()
    process = await announcing.start(seconds=60)
    who, began_at = await announcer(listener)
    process.send_signal(signal.SIGTERM)
    status, errors = await ended(process)
    assert (status, errors.splitlines()[-1]) == (1, "stopped")
    await listener.wait_for("participant_disconnected", identity=who)
    await may_speak_again(bob, began_at)
    await bob.publish_microphone(440)
    await listener.heard("bob")


async def test_sound_and_picture_arrive_together(announcing: Announcing) -> None:
    listener = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.examples.drift", announcing.livekit.url, announcing.token("ear", hidden=True)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ANNOUNCE.parents[1],
    )
    assert listener.stdout is not None
    async with asyncio.timeout(60):
        assert json.loads(await listener.stdout.readline()) == {"ready": True}
        status, errors = await ended(await announcing.start(seconds=8))
        assert status == 0, errors
        heard, _ = await listener.communicate()
    assert listener.returncode == 0
    drift_ms = [abs(apart) for apart in json.loads(heard)["drift_ms"]]
    assert len(drift_ms) >= 7
    assert statistics.median(drift_ms) < NOTICED_MS


async def test_without_livekit_it_names_the_settings() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ANNOUNCE), "--room", ROOM), stderr=asyncio.subprocess.PIPE
    )
    status, errors = await ended(process)
    assert status == 2
    assert "LIVEKIT_URL" in errors


# --- What holds afterwards, without media ------------------------------------------------------------------------


async def microphones(module: ModerationModule) -> object:
    """What a joiner is told about them."""
    somebody = Participant(ParticipantId("somebody"))
    session = await module.join(ROOM, somebody, deliver=lambda _: None)
    data = session.join_data
    await session.leave()
    return None if data is None else data["microphone_restriction_state"]


def enabled(*names: str) -> dict[str, object]:
    return {"type": "enabled", "unrestricted_participants": list(names)}


async def test_nobody_is_listed_for_the_block_and_then_who_was_before(meeting: MeetingOnFake) -> None:
    announcer = await meeting.join("announcement", Role.MODERATOR)
    async with silence(announcer.session, announcer.inbox, enabled("bob", "carol")):
        assert await microphones(meeting.module) == enabled()
    assert await microphones(meeting.module) == enabled("bob", "carol")
    async with silence(announcer.session, announcer.inbox, OFF):
        assert await microphones(meeting.module) == enabled()
    assert await microphones(meeting.module) == OFF


async def test_what_a_moderator_decides_meanwhile_stands(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    announcer = await meeting.join("announcement", Role.MODERATOR)
    async with silence(announcer.session, announcer.inbox, OFF):
        await alice.send("enable_microphone_restrictions", unrestricted_participants=["bob"])
    assert await microphones(meeting.module) == enabled("bob")
    announcer.forget()
    async with silence(announcer.session, announcer.inbox, enabled("bob")):
        await alice.send("disable_microphone_restrictions")
    assert await microphones(meeting.module) == OFF


async def test_what_a_moderator_decided_just_before_comes_back(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    announcer = await meeting.join("announcement", Role.MODERATOR)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["carol"])
    async with silence(announcer.session, announcer.inbox, OFF):
        pass
    assert await microphones(meeting.module) == enabled("carol")


async def test_nothing_begins_when_nobody_can_be_silenced(meeting: MeetingOnFake) -> None:
    announcer = await meeting.join("announcement")  # no moderator
    with pytest.raises(AnnouncementFailed, match="insufficient_permissions"):
        async with silence(announcer.session, announcer.inbox, OFF):
            pytest.fail("the announcement began")
    await announcer.session.leave()
    with pytest.raises(AnnouncementFailed, match="has ended"):
        async with silence(announcer.session, announcer.inbox, OFF):
            pytest.fail("the announcement began")

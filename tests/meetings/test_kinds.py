"""Who is no ordinary participant, by what LiveKit says of them: what is decided for everybody, and what names them."""

import asyncio
import time

from signaling import Kind
from tests.meetings.cheating import SILENT, Scene

ROOM_WIDE: tuple[tuple[str, dict[str, object]], ...] = (
    ("mute", {"everyone_except": []}),
    ("mute", {"everyone_except": [], "hold_s": 60}),
    ("restrict", {"source": "microphone"}),
    ("restrict", {"source": "camera"}),
    ("restrict", {"source": "screen_share"}),
    ("set_presenter", {"participant": "bob"}),
)


async def test_a_phone_caller_is_muted_and_restricted_like_anyone(scene: Scene) -> None:
    caller = await scene.enter(scene.forge("caller", "sip"))
    await scene.listener.heard("caller")
    await scene.alice.comes_to("mute", everyone_except=["bob"])
    await scene.listener.silent("caller")
    await caller.unmute(caller.tracks[0])
    await scene.listener.heard("caller", since=time.monotonic())
    came_to = await scene.alice.comes_to("mute", everyone_except=["bob"], hold_s=60)
    assert came_to["caller"] == "muted"
    await scene.listener.silent("caller")
    assert await scene.may_publish("caller") == SILENT
    await scene.alice.comes_to("allow", source="microphone", participants=["caller"])
    await scene.listener.heard("caller", since=time.monotonic())
    await scene.alice.comes_to("restrict", source="microphone")
    await scene.listener.silent("caller")
    assert await scene.may_publish("caller") == SILENT


async def test_services_are_touched_by_nothing_that_is_decided_for_everybody(scene: Scene) -> None:
    await scene.enter(scene.forge("agent", "agent"))
    await scene.enter(scene.forge("egress", "egress"))
    await scene.enter(scene.forge("ingress", "ingress"))
    await scene.enter(scene.forge("hidden", hidden=True), publish=[])
    recorder = await scene.stage.join("recorder-two", kind=Kind.RECORDER, enters_livekit=False)
    await scene.enter(recorder.token, publish=[])
    heard = ("agent", "egress", "ingress")
    await asyncio.gather(*(scene.listener.heard(service) for service in heard))
    before = await scene.stage.presences()
    for action, fields in ROOM_WIDE:
        await scene.alice.comes_to(action, **fields)
    await scene.listener.silent("bob")
    since = time.monotonic()
    await asyncio.gather(*(scene.listener.heard(service, since=since) for service in heard))
    after = await scene.stage.presences()
    for service in (*heard, "hidden", "recorder-two", "recorder-main"):
        assert after[service] == before[service]
    assert await scene.may_publish("bob") == ["screen_share", "screen_share_audio"]


async def test_an_ingress_is_ended_and_let_again_by_its_name(scene: Scene) -> None:
    ingress = await scene.enter(scene.forge("ingress", "ingress"), republish_always=False)
    await scene.listener.heard("ingress")
    assert await scene.alice.comes_to("stop", source="microphone", participants=["ingress"]) == {"ingress": "stopped"}
    await ingress.wait_for("unpublished")
    await scene.listener.silent("ingress")
    await ingress.publish("microphone")
    await scene.listener.heard("ingress", since=time.monotonic())
    came_to = await scene.alice.comes_to("disallow", source="microphone", participants=["ingress"])
    assert came_to == {"ingress": "revoked"}
    await scene.listener.silent("ingress")
    assert await scene.may_publish("ingress") == SILENT
    came_to = await scene.alice.comes_to("allow", source="microphone", participants=["ingress"])
    assert came_to == {"ingress": "granted"}
    await ingress.publish("microphone")
    await scene.listener.heard("ingress", since=time.monotonic())

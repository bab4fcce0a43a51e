import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from signaling import Participant, Role
from signaling.identifiers import ParticipantId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.server import make_ticket
from signaling.testing.fake_room_service import FakeRoomService
from signaling.testing.participants import ParticipantProcess
from tests.console.npm import NodeClient, Refused, node_client
from tests.meetings.serving import KEY, ROOM, Serving, serving

pytestmark = pytest.mark.usefixtures("built")

MODERATOR = Role.MODERATOR
TOKEN = "of the controller alone"


@pytest.fixture
async def server_with_media(tmp_path: Path) -> AsyncIterator[Serving]:
    """For what LiveKit has to do; else the server is as real, and LiveKit is not."""
    async with (
        EmbeddedServer(path=require(None)) as livekit,
        serving(livekit, tmp_path, MODERATION_SWEEP_S="1") as running,
    ):
        yield running


@pytest.fixture
async def server(fake: FakeRoomService, tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(fake, tmp_path, MODERATION_INTERNAL_TOKEN=TOKEN) as running:
        yield running


def tickets(name: str, role: Role = Role.USER, *, age_s: float = 0) -> Callable[[], str]:
    participant = Participant(ParticipantId(name), role, display_name=name.title())
    return lambda: make_ticket(KEY, "HS256", participant, ROOM, now=time.time() - age_s)


async def joined(client: NodeClient) -> None:
    await client.until(lambda: client.state == "joined")


def seen(client: NodeClient, name: str) -> dict[str, object] | None:
    """Somebody in the state of a moderator."""
    people = client.snapshot.get("state", {"participants": []})["participants"]
    found: dict[str, object] | None = next((each for each in people if each["participant"] == name), None)
    return found


async def test_a_mute_is_done_in_livekit_and_seen_in_the_state(server_with_media: Serving) -> None:
    async with (
        node_client(server_with_media.signaling_url, tickets("alice", MODERATOR)) as alice,
        server_with_media.client("bob") as bob,
        ParticipantProcess() as process,
    ):
        welcome = (await bob.join())["livekit"]
        media = await process.connect(welcome["public_url"], welcome["token"], publish_tone_hz=440)
        await joined(alice)

        def bob_is(*, muted: bool) -> bool:
            match seen(alice, "bob"):
                case {"publishing": [{"source": "microphone", "muted": is_muted}]}:
                    return is_muted is muted
            return False

        await alice.until(lambda: bob_is(muted=False))
        result = await alice.call("mute", {"participants": ["bob", "carol"]})
        assert result["outcomes"] == [
            {"participant": "bob", "outcome": "muted"},
            {"participant": "carol", "outcome": "unknown"},
        ]
        await media.wait_for("track_muted", identity="bob")
        await alice.until(lambda: bob_is(muted=True))


async def test_every_kind_of_command_has_its_answer(server: Serving) -> None:
    async with node_client(server.signaling_url, tickets("alice", MODERATOR)) as alice, server.client("bob") as bob:
        await joined(alice)
        me = alice.snapshot["me"]
        assert (me["id"], me["role"], me["may_publish"][0]) == ("alice", "moderator", "camera")
        assert alice.credentials is not None
        assert alice.credentials["room"] == ROOM
        await bob.join()
        await alice.until(lambda: "bob" in alice.snapshot["people"] and seen(alice, "bob") is not None)

        # What changes the meeting, in the answer, in the state and at others.
        locked = await alice.call("restrict", {"source": "microphone", "allowed": ["carol"]})
        assert {"participant": "bob", "outcome": "restricted"} in locked["outcomes"]
        restriction = {"type": "enabled", "unrestricted_participants": ["carol"]}
        await alice.until(lambda: alice.snapshot["microphoneRestriction"] == restriction)
        await alice.until(lambda: alice.snapshot["state"]["restrictions"] != [])
        previewed = await alice.call("preview", {"action": "unrestrict", "source": "microphone"})
        assert {"participant": "bob", "outcome": "unrestricted"} in previewed["outcomes"]
        await alice.call("undo", {"command_id": locked["command_id"]})
        await alice.until(lambda: alice.snapshot["state"]["restrictions"] == [])

        # What shows something.
        [undone, entry] = await alice.call("getAudit", {"limit": 10})
        assert (undone["action"], entry["command_id"]) == ("undo", locked["command_id"])
        assert len((await alice.call("getState"))["participants"]) == 2
        assert (await alice.call("createNewAccessToken")) == alice.credentials
        assert len((await alice.call("requestPopoutStreamAccessToken")).split(".")) == 3

        # Hands and roles, which are answered in the namespace `control`; to do it again is no error but for a role.
        await bob.send("raise_hand", namespace="control")
        await alice.until(lambda: alice.snapshot["people"]["bob"]["hand_is_up"])
        for _ in range(2):
            await alice.call("raiseHand")
            await alice.call("lowerHand", {"target": "bob"})
        assert alice.snapshot["me"]["hand_is_up"]
        assert not alice.snapshot["people"]["bob"]["hand_is_up"]
        await alice.call("lowerHand")
        await alice.call("grantModeratorRole", {"target": "bob"})
        assert (await alice.refusal("grantModeratorRole", {"target": "bob"}))["code"] == "nothing_to_do"

        # What is refused.
        refusal = await alice.refusal("restrict", {"source": "telephone"})
        assert (refusal["name"], refusal["code"]) == ("CommandRefused", "invalid_command")
        assert "source" in refusal["detail"]
        assert (await alice.refusal("undo", {"command_id": "nothing"}))["code"] == "unknown_command_id"

        # No moderator any more: nothing is shown, and nothing may be done.
        await bob.send("revoke_moderator_role", namespace="control", target="alice")
        await alice.until(lambda: "state" not in alice.snapshot)
        assert (await alice.refusal("mute", {"everyone_except": []}))["code"] == "insufficient_permissions"
        await bob.send("grant_moderator_role", namespace="control", target="alice")
        await alice.until(lambda: "state" in alice.snapshot)

        # Leaving.
        alice.begin("close")
        await bob.wait_for("left", namespace="control", where=lambda frame: frame.payload["reason"] == "quit")
        assert alice.snapshot["connection"] == {"state": "ended", "reason": "left"}


async def test_a_change_that_was_lost_is_made_up_for(server: Serving) -> None:
    async with node_client(server.signaling_url, tickets("alice", MODERATOR)) as alice:

        def states() -> list[str]:
            return [event for event, _ in alice.told if event == "livekit_moderation/state"]

        await alice.until(lambda: len(states()) == 1)
        alice.send({"lose": 1})
        await alice.call("restrict", {"source": "camera"})
        await alice.until(lambda: alice.lost == 1)
        assert alice.snapshot["state"]["restrictions"] == []
        await alice.call("restrict", {"source": "screen_share"})
        await alice.until(lambda: len(states()) == 2)  # asked for, since a change was missing
        sources = {restriction["source"] for restriction in alice.snapshot["state"]["restrictions"]}
        assert sources >= {"camera", "screen_share"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_comes_back_to_a_server_that_was_restarted(server: Serving, number: signal.Signals) -> None:
    async with node_client(server.signaling_url, tickets("alice", MODERATOR)) as alice:
        await joined(alice)
        await alice.call("restrict", {"source": "camera"})
        await server.end(number)
        await alice.until(lambda: alice.state == "reconnecting")
        lost = await alice.refusal("mute", {"everyone_except": []})
        assert (lost["name"], lost["why"], lost["sent"]) == ("NoAnswer", "not_joined", False)
        before = alice.asked
        server._environment["MODERATION_LISTEN"] = urlsplit(server.signaling_url).netloc
        await server.start()
        await joined(alice)
        assert alice.asked > before
        assert [each["source"] for each in alice.snapshot["state"]["restrictions"]] == ["camera"]
        assert (await alice.call("unrestrict", {"source": "camera"}))["outcomes"] != []
        await alice.until(lambda: alice.snapshot["state"]["restrictions"] == [])


async def test_what_was_sent_when_the_connection_broke_may_have_been_done(server: Serving) -> None:
    async with node_client(server.signaling_url, tickets("alice", MODERATOR)) as alice:
        await joined(alice)
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
        muting = alice.begin("mute", {"everyone_except": []})
        late = await alice.refusal("raiseHand", {"timeoutMs": 50})
        assert (late["why"], late["sent"]) == ("timed_out", True)
        await server.end(signal.SIGKILL)
        with pytest.raises(Refused) as lost:
            await alice.answer(muting)
        assert (lost.value.error["why"], lost.value.error["sent"]) == ("connection_lost", True)


async def test_the_end_of_the_meeting_is_the_end(server: Serving) -> None:
    async with node_client(server.signaling_url, tickets("bob")) as bob:
        await joined(bob)
        room = f"{server.internal_url}/v1/rooms/{ROOM}"
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http, http.delete(room):
            await bob.until(lambda: bob.state == "ended")
        assert bob.snapshot["connection"] == {"state": "ended", "reason": "room_deleted"}


async def test_who_is_kicked_stays_away_and_who_is_banned_gets_in_no_more(server: Serving) -> None:
    async with server.client("alice", MODERATOR) as alice:
        await alice.join()
        async with node_client(server.signaling_url, tickets("bob")) as bob:
            await joined(bob)
            await alice.command("kick", namespace="livekit_moderation", participants=["bob"], reason="shouting")
            await bob.until(lambda: bob.state == "ended")
            removal = {"message": "kicked", "moderator": "alice", "reason": "shouting"}
            assert bob.snapshot["connection"] == {"state": "ended", "reason": "kicked", "removal": removal}
            assert bob.asked == 1
        async with node_client(server.signaling_url, tickets("bob")) as bob:
            await joined(bob)
            await alice.command("kick", namespace="livekit_moderation", participants=["bob"], ban=True)
            await bob.until(lambda: bob.state == "ended")
            assert bob.snapshot["connection"]["reason"] == "banned"
        async with node_client(server.signaling_url, tickets("bob")) as bob:
            await bob.until(lambda: bob.state == "ended")
            assert bob.snapshot["connection"] == {"state": "ended", "reason": "refused", "status": 403}


async def test_a_ticket_that_has_expired_is_followed_by_a_fresh_one(server: Serving) -> None:
    expired = tickets("bob", age_s=600)
    given = iter([expired(), tickets("bob")()])
    async with node_client(server.signaling_url, given.__next__) as bob:
        await joined(bob)
        assert bob.asked == 2
    async with node_client(server.signaling_url, expired) as bob:
        await bob.until(lambda: bob.state == "ended")
        assert bob.snapshot["connection"] == {"state": "ended", "reason": "refused", "status": 401}
        assert bob.asked == 2
    async with node_client(server.signaling_url, lambda: None) as bob:
        await bob.until(lambda: bob.state == "ended")
        assert bob.snapshot["connection"]["reason"] == "access_denied"


async def test_the_same_person_elsewhere_takes_over(server: Serving) -> None:
    async with node_client(server.signaling_url, tickets("bob")) as first:
        await joined(first)
        async with node_client(server.signaling_url, tickets("bob")) as second:
            await joined(second)
            await first.until(lambda: first.state == "ended")
            assert first.snapshot["connection"] == {"state": "ended", "reason": "taken_over"}
            assert second.state == "joined"

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from signaling import Role
from signaling.livekit.embedded import EmbeddedServer
from signaling.messages.envelope import MAX_FRAME_BYTES
from signaling.server import connection as server_connection
from signaling.server.connection import MAX_FRAME_BYTES_BEFORE_JOINING
from signaling.testing.client import SignalingClient
from tests.server.hosting import PING, Hosted, ask, command, hosted, take

JOIN = command("join")
RESTRICT = command("enable_microphone_restrictions", "livekit", unrestricted_participants=[])


@asynccontextmanager
async def joined(host: Hosted, name: str = "bob") -> AsyncIterator[ClientConnection]:
    """Somebody who has joined without LiveKit, and has read so."""
    async with host.dial(bearer=host.ticket(name)) as connection:
        assert (await ask(connection, JOIN))["payload"]["message"] == "join_success"
        assert (await take(connection))["payload"] == {"message": "error", "error": "livekit_unavailable"}
        yield connection


async def send_without_end(connection: ClientConnection, frame: str | bytes) -> None:
    """Send for as long as it goes, and read what is answered."""
    while True:
        await connection.send(frame)
        await connection.recv()


async def alive(client: SignalingClient, transaction_id: int) -> None:
    """The connection still answers."""
    await client.send("ping", namespace="echo", transaction_id=transaction_id)
    await client.wait_for("pong", namespace="echo", where=lambda frame: frame.transaction_id == transaction_id)


# --- Frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b'{"namespace": "echo", "payload": {"action": "ping"}}',
        "",
        "nonsense",
        "[]",
        "null",
        "{",
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"namespace": "echo", "namespace": "echo", "payload": {"action": "ping"}}',
        '{"namespace": "echo", "payload": {"action": "ping", "action": "ping"}}',
        '{"namespace": "echo", "payload": {"action": "ping"}} trailing',
        '{"namespace": "echo", "payload": NaN}',
        '"' + "x" * (MAX_FRAME_BYTES - 1),
    ],
    ids=lambda frame: repr(frame[:24]),
)
async def test_what_is_no_json_object_is_one_error_and_the_connection_lives(door: Hosted, frame: str | bytes) -> None:
    async with joined(door) as bob, asyncio.timeout(5):
        answer = await ask(bob, frame)
        assert answer["namespace"] == "control"
        assert answer["payload"].items() >= {"message": "error", "error": "invalid_json"}.items()
        assert "transaction_id" not in answer
        assert (await ask(bob, PING))["payload"] == {"message": "pong"}


@pytest.mark.parametrize("namespace", ["chat", "", "LiveKit", 7, None, ["livekit"], {"livekit": 1}])
async def test_an_unknown_namespace_is_told_with_the_transaction_id(door: Hosted, namespace: object) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        answer = await ask(bob, {"namespace": namespace, "payload": {}, "transaction_id": "t"})
        assert (answer["namespace"], answer["transaction_id"]) == ("control", "t")
        assert answer["payload"]["error"] == "invalid_namespace"


@pytest.mark.parametrize("namespace", ["livekit", "livekit_moderation", "control", "echo"])
async def test_a_wrong_transaction_id_is_told_in_the_commands_namespace(door: Hosted, namespace: str) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        wrong: object
        for wrong in (-1, 2**64, "", "t" * 65, 1.5, True, [], {}):
            answer = await ask(bob, {"namespace": namespace, "payload": {"action": "ping"}, "transaction_id": wrong})
            assert answer["namespace"] == namespace
            assert answer["payload"]["error"] == "invalid_command"
            assert answer["payload"]["detail"].startswith("transaction_id: ")
            assert "transaction_id" not in answer


async def test_one_mebibyte_is_read_and_one_byte_more_is_closed_with_1009(door: Hosted) -> None:
    def ping(size: int) -> str:
        frame = '{"namespace":"echo","payload":{"action":"ping"},"x":"'
        return frame + "x" * (size - len(frame) - 2) + '"}'

    async with joined(door) as bob, asyncio.timeout(5):
        assert (await ask(bob, ping(MAX_FRAME_BYTES)))["payload"] == {"message": "pong"}
        with pytest.raises(ConnectionClosed):
            await ask(bob, ping(MAX_FRAME_BYTES + 1))
        assert bob.close_code == 1009


async def test_before_joining_a_frame_has_16_kibibytes_at_most(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob, asyncio.timeout(5):
        assert (await ask(bob, " " * MAX_FRAME_BYTES_BEFORE_JOINING))["payload"]["error"] == "invalid_json"
        with pytest.raises(ConnectionClosed):
            await ask(bob, " " * (MAX_FRAME_BYTES_BEFORE_JOINING + 1))
        assert bob.close_code == 1009


async def test_what_is_not_utf_8_is_closed_with_1007(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob, asyncio.timeout(5):
        await bob.send(b'{"a": "\xff"}', text=True)
        with pytest.raises(ConnectionClosed):
            await bob.recv()
        assert bob.close_code == 1007


# --- Echo ------------------------------------------------------------------------------------------------------------


async def test_a_ping_is_answered_before_joining_with_its_transaction_id(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        for transaction_id in (0, 2**64 - 1, "t", "\u2028 'quoted\""):
            answer = await ask(bob, PING | {"transaction_id": transaction_id})
            timestamp = answer.pop("timestamp")
            assert answer == {"namespace": "echo", "payload": {"message": "pong"}, "transaction_id": transaction_id}
            assert timestamp.endswith("Z")
        assert "transaction_id" not in await ask(bob, PING)


async def test_what_is_no_ping_is_told_in_echo(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        payload: object
        for payload in ({"action": "pong"}, {}, None, [], "ping"):
            answer = await ask(bob, {"namespace": "echo", "payload": payload, "transaction_id": 1})
            assert (answer["namespace"], answer["transaction_id"]) == ("echo", 1)
            assert answer["payload"].keys() == {"message", "error", "detail"}
            assert answer["payload"]["error"] == "invalid_command"


async def test_pings_and_tokens_are_answered_while_a_command_runs(host: Hosted, livekit: EmbeddedServer) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join()
        await bob.join()
        livekit.pause()
        await alice.send("force_mute", participants=["bob"], transaction_id="long")
        await alice.send("create_new_access_token", transaction_id="token")
        await alice.wait_for("credentials")
        for transaction_id in range(50):
            await alive(alice, transaction_id)
        assert [frame.transaction_id for frame in alice.inbox if frame.message == "result"] == ["token"]
        livekit.resume()
        await alice.wait_for(
            "result", namespace="livekit_moderation", where=lambda frame: frame.transaction_id == "long"
        )


# --- Commands --------------------------------------------------------------------------------------------------------


async def test_the_senders_copy_carries_the_transaction_id_and_nobody_elses_does(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join(extensions=())
        await bob.join(extensions=())
        await alice.send("enable_microphone_restrictions", unrestricted_participants=["bob"], transaction_id=2**64 - 1)
        hers = await alice.wait_for("microphone_restrictions_enabled")
        his = await bob.wait_for("microphone_restrictions_enabled")
        assert (hers.transaction_id, his.transaction_id) == (2**64 - 1, None)
        assert (
            hers.payload
            == his.payload
            == {
                "message": "microphone_restrictions_enabled",
                "unrestricted_participants": ["bob"],
            }
        )


async def test_commands_of_a_client_take_effect_in_the_order_sent(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice:
        await alice.join(extensions=())
        for number in range(10):
            await alice.send("enable_microphone_restrictions", unrestricted_participants=[f"p{number}"])
            await alice.send("disable_microphone_restrictions", transaction_id=number)
        await alice.wait_for("microphone_restrictions_disabled", where=lambda frame: frame.transaction_id == 9)
        told = [frame.payload for frame in alice.inbox if "microphone_restrictions" in frame.message]
    assert [payload.get("unrestricted_participants") for payload in told] == [
        expected for number in range(10) for expected in ([f"p{number}"], None)
    ]


async def test_timestamps_never_go_backwards_on_a_connection(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        for number in range(12):
            await alice.send("raise_hand" if number % 2 else "lower_hand", namespace="control", transaction_id=number)
            await alive(alice, number)
        times = [frame.timestamp for frame in alice.inbox]
    assert len(times) > 12
    assert all(earlier <= later for earlier, later in pairwise(times))


async def test_what_the_module_refuses_is_told_to_the_sender_alone(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join(extensions=())
        await bob.join(extensions=())
        seen = len(alice.inbox)
        await bob.send("force_mute", participants=["alice"], transaction_id=1)
        refused = await bob.wait_for("error")
        assert refused.payload == {"message": "error", "error": "insufficient_permissions"}
        assert refused.transaction_id == 1
        await bob.send("force_mute", participants="alice")
        detail = await bob.wait_for("error", where=lambda frame: "detail" in frame.payload)
        assert detail.payload["error"] == "invalid_command"
        await bob.send("lower_hand", namespace="control", target="alice")
        refused = await bob.wait_for("error", namespace="control")
        assert refused.payload["error"] == "insufficient_permissions"
        await alive(alice, 1)
        assert [frame.message for frame in alice.inbox[seen:] if frame.message != "joined"] == ["pong"]


async def test_a_client_that_goes_does_not_take_its_running_commands_along(
    host: Hosted, livekit: EmbeddedServer
) -> None:
    async with host.client("bob") as bob:
        await bob.join()
        async with host.client("alice", Role.MODERATOR) as alice:
            await alice.join()
            livekit.pause()
            await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
            await alive(alice, 1)
            alice.connection.transport.abort()
        livekit.resume()
        await bob.wait_for("microphone_restrictions_enabled")


# --- Limits ----------------------------------------------------------------------------------------------------------


async def test_too_many_commands_are_refused_in_their_namespace_and_pings_never_are(livekit: EmbeddedServer) -> None:
    async with (
        hosted(livekit, moderation_rate_per_s=0.001, moderation_rate_burst=2) as host,
        host.dial(bearer=host.ticket("alice", Role.MODERATOR)) as alice,
    ):
        assert (await ask(alice, JOIN))["payload"]["message"] == "join_success"
        assert (await ask(alice, RESTRICT))["payload"]["message"] == "microphone_restrictions_enabled"
        for frame in (RESTRICT, command("raise_hand")):
            answer = await ask(alice, frame | {"transaction_id": "t"})
            assert (answer["namespace"], answer["transaction_id"]) == (frame["namespace"], "t")
            assert answer["payload"] == {"message": "error", "error": "rate_limit_exceeded"}
        get_state = command("get_state", "livekit_moderation")
        for transaction, message in (({}, "error"), ({"transaction_id": "t"}, "result")):
            answer = (await ask(alice, get_state | transaction))["payload"]
            refusal = {"message": message, "error": "rate_limit_exceeded", "retry_after_s": 1_000}
            assert answer.items() >= refusal.items()
        previewed = {"action": "restrict", "source": "camera"}
        answer = await ask(alice, command("preview", "livekit_moderation", command=previewed))
        assert answer["payload"]["message"] == "result"
        for _ in range(100):
            assert (await ask(alice, PING))["payload"] == {"message": "pong"}
        for nonsense in ("no command at all", b"", command("join", "chat")):
            answer = await ask(alice, nonsense)
            assert (answer["namespace"], answer["payload"]["error"]) == ("control", "rate_limit_exceeded")


@pytest.mark.parametrize("frame", ["nonsense", b"", json.dumps(command("raise_hand"))])
@pytest.mark.parametrize("joins", [False, True])
async def test_who_goes_on_however_often_they_are_refused_is_closed_with_1008(
    frame: str | bytes, *, joins: bool
) -> None:
    async with (
        hosted(moderation_rate_per_s=0.001, moderation_rate_burst=3) as door,
        door.dial(bearer=door.ticket()) as bob,
        asyncio.timeout(5),
    ):
        if joins:
            await bob.send(json.dumps(JOIN))
        with pytest.raises(ConnectionClosed):
            await send_without_end(bob, frame)
        assert bob.close_code == 1008


async def test_one_command_too_many_is_answered_by_a_result_where_one_was_asked_for(livekit: EmbeddedServer) -> None:
    async with (
        hosted(livekit, moderation_rate_per_s=0.001, moderation_rate_burst=1) as host,
        host.client("alice", Role.MODERATOR) as alice,
    ):
        await alice.join()
        result = await alice.command("enable_microphone_restrictions", unrestricted_participants=[])
        assert (result["action"], result["error"]) == ("enable_microphone_restrictions", "rate_limit_exceeded")
        assert result["retry_after_s"] == 1_000
        await alice.wait_for("error", where=lambda frame: frame.payload["error"] == "rate_limit_exceeded")
        result = await alice.command("what_was_sent", namespace="livekit_moderation")
        assert "action" not in result
        await alive(alice, 1)
        assert alice.told("error", "livekit_moderation") == []


async def test_the_rate_comes_back_with_time(livekit: EmbeddedServer) -> None:
    async with (
        hosted(livekit, moderation_rate_per_s=1_000, moderation_rate_burst=1) as host,
        host.dial(bearer=host.ticket()) as bob,
        asyncio.timeout(5),
    ):
        await ask(bob, JOIN)
        answers = [await ask(bob, command("no_such_command"))]
        while answers[-1]["payload"]["error"] == "rate_limit_exceeded":
            answers.append(await ask(bob, command("no_such_command")))
        assert answers[-1]["payload"]["error"] == "invalid_command"


async def test_each_connection_has_a_rate_of_its_own(livekit: EmbeddedServer) -> None:
    async with hosted(livekit, moderation_rate_per_s=0.001, moderation_rate_burst=1) as host:
        for name in ("alice", "bob"):
            async with host.dial(bearer=host.ticket(name)) as somebody:
                assert (await ask(somebody, JOIN))["payload"]["message"] == "join_success"
                assert (await ask(somebody, JOIN))["payload"]["error"] == "rate_limit_exceeded"


async def test_more_running_commands_than_a_connection_may_have_are_refused(
    livekit: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "MAX_RUNNING", 3)
    async with (
        hosted(livekit, moderation_rate_per_s=100, moderation_rate_burst=100) as host,
        host.dial(bearer=host.ticket("alice", Role.MODERATOR)) as alice,
        asyncio.timeout(10),
    ):
        await ask(alice, JOIN)
        livekit.pause()
        for number in range(5):
            await alice.send(json.dumps(RESTRICT | {"transaction_id": number}))
        refused = [await take(alice) for _ in range(2)]
        assert [frame["transaction_id"] for frame in refused] == [3, 4]
        assert {frame["payload"]["error"] for frame in refused} == {"rate_limit_exceeded"}
        assert (await ask(alice, PING))["payload"] == {"message": "pong"}
        livekit.resume()
        assert [(await take(alice))["transaction_id"] for _ in range(3)] == [0, 1, 2]


async def test_a_flood_of_frames_does_not_hold_others_up(door: Hosted) -> None:
    async with joined(door, "flood") as flood, door.dial(bearer=door.ticket("bob")) as bob:
        frame = b"[" * 100_000
        async with asyncio.timeout(10):
            sending = asyncio.gather(*(flood.send(frame, text=True) for _ in range(20)))
            for _ in range(10):
                assert (await ask(bob, PING))["payload"] == {"message": "pong"}
            await sending
            for _ in range(20):
                assert (await take(flood))["payload"]["error"] == "invalid_json"

import asyncio
import json
from collections.abc import Mapping

import jwt
import pytest
from websockets.exceptions import ConnectionClosed

from signaling import Kind, Participant, Role, RoomId
from signaling.errors import StoreError
from signaling.identifiers import ParticipantId
from signaling.livekit.embedded import EmbeddedServer
from signaling.messages.envelope import Delivery
from signaling.messages.livekit import MicrophoneRestrictionsDisabled
from signaling.server.backlog import MAX_UNREAD_BYTES
from signaling.server.channel import Channel
from signaling.server.connection import Connection
from signaling.server.websocket import Timing
from signaling.session import Deliver, Session
from signaling.stores.contract import Record
from signaling.stores.memory import MemoryStore
from signaling.testing.client import SignalingClient
from signaling.testing.fake_room_service import FakeRoomService
from tests.server.hosting import PING, ROOM, Hosted, ask, command, hosted, take
from tests.server.keys import SECRET

JOIN = command("join")
MUTE = command("force_mute", "livekit", participants=["bob"])


class BrokenStore(MemoryStore):
    """A store that can be made not to answer."""

    def __init__(self) -> None:
        super().__init__(audit_entries=10)
        self.is_broken = False

    async def read(self, room: RoomId) -> Record | None:
        if self.is_broken:
            raise StoreError("the disk is full")
        return await super().read(room)

    async def left_alone(self) -> tuple[RoomId, ...]:
        if self.is_broken:
            raise StoreError("the disk is full")
        return await super().left_alone()


async def test_who_joins_is_welcomed_with_everything(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.dial(bearer=host.ticket("bob")) as bob:
        await alice.join(extensions=())
        answer = await ask(bob, command("join", transaction_id=1))
        joined = (await alice.wait_for("joined", namespace="control")).payload
    assert answer.keys() == {"namespace", "timestamp", "payload", "transaction_id"}
    assert (answer["namespace"], answer["transaction_id"]) == ("control", 1)
    welcome = answer["payload"]
    (entry,) = welcome["participants"]
    assert welcome == {
        "message": "join_success",
        "id": "bob",
        "display_name": "Bob",
        "role": "user",
        "hand_is_up": False,
        "participants": [entry],
        "livekit": {
            "room": "standup",
            "token": welcome["livekit"]["token"],
            "public_url": host.server.livekit_url,
            "microphone_restriction_state": {"type": "disabled"},
            "credentials": {
                "room": "standup",
                "token": welcome["livekit"]["token"],
                "public_url": host.server.livekit_url,
            },
        },
        "room_info": {
            "id": "standup",
            "created_by": {"title": "", "firstname": "", "lastname": "", "display_name": "", "avatar_url": ""},
        },
        "tariff": {"id": "00000000-0000-0000-0000-000000000000", "name": "unlimited", "quotas": {}, "modules": {}},
        "chat": {
            "enabled": False,
            "groups_history": [],
            "room_history": {"messages": [], "next_index": None},
            "private_history": [],
            "last_seen_timestamp_global": None,
            "last_seen_timestamps_private": {},
            "last_seen_timestamps_group": {},
        },
    }
    assert jwt.decode(welcome["livekit"]["token"], options={"verify_signature": False})["sub"] == "bob"
    assert entry["id"] == "alice"
    assert entry["control"] == {
        "display_name": "Alice",
        "role": "moderator",
        "participation_kind": "user",
        "hand_is_up": False,
        "hand_updated_at": entry["control"]["joined_at"],
        "joined_at": entry["control"]["joined_at"],
        "left_at": None,
    }
    assert joined == {
        "message": "joined",
        "id": "bob",
        "control": {
            "display_name": "Bob",
            "role": "user",
            "participation_kind": "user",
            "hand_is_up": False,
            "hand_updated_at": joined["control"]["joined_at"],
            "joined_at": joined["control"]["joined_at"],
            "left_at": None,
        },
    }


async def test_the_extension_is_only_for_those_who_ask_for_it(host: Hosted) -> None:
    async with (
        host.client("alice", Role.MODERATOR) as alice,
        host.client("bob") as bob,
        host.client("carol", Role.MODERATOR) as carol,
    ):
        assert (await alice.join())["livekit_moderation"]["participants"][0]["participant"] == "alice"
        assert (await bob.join(extensions=("livekit_moderation", "polls", "control")))["livekit_moderation"] == {
            "may_publish": ["camera", "microphone", "screen_share", "screen_share_audio"]
        }
        assert "livekit_moderation" not in await carol.join(extensions=("polls",))
        await carol.send("enable_microphone_restrictions", unrestricted_participants=[], transaction_id=1)
        await carol.wait_for("microphone_restrictions_enabled")
        await carol.send("ping", namespace="echo")
        await carol.wait_for("pong", namespace="echo")
        assert {frame.namespace for frame in carol.inbox} == {"control", "livekit", "echo"}


async def test_a_guest_chooses_a_name_and_nobody_else_does(host: Hosted) -> None:
    async with host.client("bob") as bob, host.client("eve", kind=Kind.GUEST) as eve, host.client("guy") as guy:
        assert (await bob.join("Alice, your boss"))["display_name"] == "Bob"
        assert (await eve.join("  Eve from next door "))["display_name"] == "Eve from next door"
        entries = (await guy.join())["participants"]
    assert {entry["id"]: entry["control"]["display_name"] for entry in entries} == {
        "bob": "Bob",
        "eve": "Eve from next door",
    }


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        ("n" * 101, "n" * 100),
        ("\u202eEve\u200b\n", "Eve"),
        ("\u3164", "eve"),
        ("", "eve"),
        ("Eve \ud83d", "Eve"),
    ],
)
async def test_no_name_of_a_guest_is_a_reason_to_refuse(host: Hosted, chosen: str, shown: str) -> None:
    async with host.client("eve", kind=Kind.GUEST) as eve:
        assert (await eve.join(chosen))["display_name"] == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("n" * 101, "n" * 100),
        ("Bob\u202e\u200b\n", "Bob"),
        ("\u3164", "bob"),
        ("", "bob"),
        ("Bob \ud83d", "Bob"),
        (None, "bob"),
    ],
)
async def test_no_name_of_a_ticket_is_a_reason_to_refuse(host: Hosted, name: str | None, shown: str) -> None:
    claims = jwt.decode(host.ticket(), options={"verify_signature": False})
    async with SignalingClient(host.url, jwt.encode({**claims, "name": name}, SECRET, "HS256")) as bob:
        assert (await bob.join())["display_name"] == shown


async def test_a_guest_without_a_choice_has_the_name_of_the_ticket(host: Hosted) -> None:
    async with host.client("eve", kind=Kind.GUEST) as eve:
        assert (await eve.join())["display_name"] == "Eve"


async def test_a_breakout_is_entered_at_once(host: Hosted) -> None:
    async with host.dial(bearer=host.ticket("bob", breakout="red")) as bob:
        assert (await ask(bob, JOIN))["payload"]["livekit"]["room"] == "standup:red"


async def test_a_ticket_without_a_breakout_comes_back_to_it_and_null_leads_to_the_main_room(host: Hosted) -> None:
    async def room_of(ticket: str) -> object:
        async with host.dial(bearer=ticket) as bob:
            room = (await ask(bob, JOIN))["payload"]["livekit"]["room"]
            bob.transport.abort()
            return room

    assert await room_of(host.ticket("bob", breakout="red")) == "standup:red"
    assert await room_of(host.ticket("bob")) == "standup:red"
    assert await room_of(host.ticket("bob", breakout="blue")) == "standup:blue"
    assert await room_of(host.ticket("bob")) == "standup:blue"
    assert await room_of(host.ticket("bob", to_main_room=True)) == "standup"
    assert await room_of(host.ticket("bob")) == "standup"


async def test_who_has_left_a_breakout_does_not_come_back_to_it(host: Hosted) -> None:
    async with host.client("alice") as alice, host.dial(bearer=host.ticket("bob", breakout="red")) as bob:
        await alice.join()
        await ask(bob, JOIN)
        await bob.close(1000)
        await alice.wait_for("left", namespace="control")
        async with host.client("bob") as again:
            assert (await again.join())["livekit"]["room"] == "standup"


async def test_nothing_but_control_and_echo_works_before_joining(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        for frame in (
            MUTE,
            command("create_new_access_token", "livekit"),
            command("get_state", "livekit_moderation"),
            command("raise_hand"),
        ):
            answer = await ask(bob, frame | {"transaction_id": "t"})
            assert answer["payload"] == {"message": "error", "error": "not_yet_joined"}
            assert (answer["namespace"], answer["transaction_id"]) == ("control", "t")
        assert (await ask(bob, PING))["payload"] == {"message": "pong"}


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"display_name": 7}, "display_name"),
        ({"extensions": "livekit_moderation"}, "extensions"),
        ({"extensions": ["x"] * 33}, "extensions"),
        ({"action": "enter"}, "action"),
        ({"action": None}, "action"),
    ],
)
async def test_joining_wrongly_is_told_and_may_be_tried_again(
    door: Hosted, fields: Mapping[str, object], detail: str
) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        wrong = {"namespace": "control", "payload": {"action": "join", **fields}, "transaction_id": 3}
        answer = await ask(bob, wrong)
        assert (answer["namespace"], answer["transaction_id"]) == ("control", 3)
        assert (answer["payload"]["message"], answer["payload"]["error"]) == ("error", "invalid_command")
        assert answer["payload"]["detail"].startswith(f"{detail}: ")
        assert (await ask(bob, JOIN))["payload"]["message"] == "join_success"


async def test_joining_again_is_refused(host: Hosted) -> None:
    async with host.dial(bearer=host.ticket()) as bob:
        await bob.send('{"namespace": "control", "payload": {"action": "join"}}')
        answer = await ask(bob, command("join", transaction_id=2))
        if answer["payload"]["message"] == "join_success":
            answer = await take(bob)
        assert (answer["payload"], answer["transaction_id"]) == ({"message": "error", "error": "already_joined"}, 2)


async def test_joining_again_while_joining_is_refused_too(host: Hosted, livekit: EmbeddedServer) -> None:
    livekit.pause()
    async with host.dial(bearer=host.ticket()) as bob:
        await bob.send('{"namespace": "control", "payload": {"action": "join"}}')
        answer = await ask(bob, command("join", transaction_id=2))
        assert (answer["payload"], answer["transaction_id"]) == ({"message": "error", "error": "already_joined"}, 2)
        assert (await ask(bob, MUTE))["payload"]["error"] == "not_yet_joined"
        assert (await ask(bob, PING))["payload"] == {"message": "pong"}
        livekit.resume()
        assert (await take(bob))["payload"]["message"] == "join_success"


async def test_who_has_not_joined_in_time_is_closed_with_1008() -> None:
    async with hosted(timing=Timing(join_s=0.05)) as door, door.dial(bearer=door.ticket()) as bob:
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionClosed):
                await bob.recv()
        assert bob.close_code == 1008


async def test_a_moderator_joins_a_meeting_of_a_thousand_and_is_shown_all_of_it() -> None:
    async with FakeRoomService() as fake, hosted(fake) as host, asyncio.timeout(120):
        people = [ParticipantId(f"{'p' * 120}{number:05}") for number in range(1_200)]
        for each in people:
            await host.module.join(ROOM, Participant(each, display_name="ü" * 100), deliver=lambda _: None)
        async with host.client("alice", Role.MODERATOR) as alice:
            success = await alice.join()
            assert len(json.dumps(success, ensure_ascii=False).encode()) > MAX_UNREAD_BYTES
            assert {each["id"] for each in success["participants"]} == set(people)
            for number in range(3):
                await alice.send("get_state", namespace="livekit_moderation", transaction_id=number)
            await alice.wait_for(
                "result", namespace="livekit_moderation", where=lambda frame: frame.transaction_id == 2
            )
            states = alice.told("state", "livekit_moderation")
            assert [len(state["participants"]) for state in states] == [len(people) + 1] * 3


async def test_who_has_sent_join_is_not_closed_for_not_having_joined(livekit: EmbeddedServer) -> None:
    async with (
        hosted(livekit, timing=Timing(join_s=0.05)) as host,
        host.dial(bearer=host.ticket("bob")) as bob,
        host.dial(bearer=host.ticket("late")) as late,
        asyncio.timeout(10),
    ):
        livekit.pause()
        await bob.send(json.dumps(JOIN))
        await late.wait_closed()
        livekit.resume()
        assert (await take(bob))["payload"]["message"] == "join_success"


async def test_what_waits_for_its_turn_may_be_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = asyncio.Event()
    read = Connection._read

    async def read_late(self: Connection) -> bool:
        await busy.wait()
        return await read(self)

    monkeypatch.setattr(Connection, "_read", read_late)
    checks: list[bool] = []
    check = Connection._check_joined

    def check_and_go_on(self: Connection) -> None:
        checks.append(self._socket.is_behind)
        check(self)
        busy.set()

    monkeypatch.setattr(Connection, "_check_joined", check_and_go_on)
    async with hosted(timing=Timing(join_s=0.1)) as door, door.dial(bearer=door.ticket()) as bob, asyncio.timeout(5):
        assert (await ask(bob, JOIN))["payload"]["message"] == "join_success"
    assert checks[0]


async def test_who_keeps_the_server_behind_gets_no_more_than_twice_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "is_behind", True)
    async with hosted(timing=Timing(join_s=0.05)) as door, door.dial(bearer=door.ticket()) as bob, asyncio.timeout(5):
        await bob.wait_closed()
        assert bob.close_code == 1008


async def test_who_has_joined_in_time_stays(livekit: EmbeddedServer) -> None:
    async with hosted(livekit, timing=Timing(join_s=0.5)) as host, host.dial(bearer=host.ticket("bob")) as bob:
        assert (await ask(bob, JOIN))["payload"]["message"] == "join_success"
        async with host.dial(bearer=host.ticket("late")) as late, asyncio.timeout(5):
            await late.wait_closed()
        assert (await ask(bob, PING))["payload"] == {"message": "pong"}


def test_it_is_ten_seconds_unless_said_otherwise() -> None:
    assert Timing() == Timing(join_s=10, ping_interval_s=15, ping_timeout_s=5, request_s=5, unread_s=10)


async def test_a_store_that_does_not_answer_tells_the_client_to_come_back(livekit: EmbeddedServer) -> None:
    store = BrokenStore()
    async with hosted(livekit, store=store) as host:
        store.is_broken = True
        async with host.dial(bearer=host.ticket()) as bob, asyncio.timeout(5):
            answer = await ask(bob, command("join", transaction_id=5))
            assert (answer["payload"], answer["transaction_id"]) == ({"message": "error", "error": "internal"}, 5)
            await bob.wait_closed()
            assert bob.close_code == 1013
        store.is_broken = False
        async with host.client("bob") as again:
            await again.join()


async def test_a_bug_at_joining_is_internal_and_closes(door: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def join(*_arguments: object, **_options: object) -> Session:
        raise ZeroDivisionError

    monkeypatch.setattr(door.module, "join", join)
    async with door.dial(bearer=door.ticket()) as bob, asyncio.timeout(5):
        assert (await ask(bob, JOIN))["payload"] == {"message": "error", "error": "internal"}
        await bob.wait_closed()
        assert bob.close_code == 1011


async def test_livekit_down_at_joining_leaves_livekit_out_and_says_so(door: Hosted) -> None:
    async with door.dial(bearer=door.ticket()) as bob:
        welcome = (await ask(bob, JOIN))["payload"]
        assert welcome["message"] == "join_success"
        assert "livekit" not in welcome
        after = await take(bob)
        assert (after["namespace"], after["payload"]) == (
            "livekit",
            {"message": "error", "error": "livekit_unavailable"},
        )


async def test_the_welcome_comes_first_and_what_was_delivered_meanwhile_after_it(
    door: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = Delivery(MicrophoneRestrictionsDisabled(), 1.0)
    join = door.module.join

    async def join_and_deliver(
        room: RoomId, participant: Participant, *, deliver: Deliver, extensions: frozenset[str]
    ) -> Session:
        deliver(early)
        return await join(room, participant, deliver=deliver, extensions=extensions)

    monkeypatch.setattr(door.module, "join", join_and_deliver)
    async with door.dial(bearer=door.ticket()) as bob:
        await bob.send('{"namespace": "control", "payload": {"action": "join"}}')
        frames = [await take(bob) for _ in range(3)]
    assert [frame["payload"]["message"] for frame in frames] == [
        "join_success",
        "microphone_restrictions_disabled",
        "error",
    ]
    # It was delivered before the welcome was made, and time does not go backwards on a connection.
    assert [frame["timestamp"] for frame in frames] == sorted(frame["timestamp"] for frame in frames)


async def test_the_room_is_the_one_of_the_ticket(host: Hosted) -> None:
    async with host.client("bob") as bob:
        assert (await bob.join())["livekit"]["room"] == ROOM

import json

import pytest

from signaling.errors import MessageError
from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import livekit
from signaling.messages.base import parse_payload
from signaling.messages.envelope import Delivery
from tests.messages.wire import concrete, dumped, event_of, parsed, reversed_keys, row, text_of, with_unknown_keys

ALICE = ParticipantId("alice")
BOB = ParticipantId("bob")
CAROL = ParticipantId("0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10")

COMMANDS = [
    row(livekit.CreateNewAccessToken(), '{"action": "create_new_access_token"}'),
    row(
        livekit.ForceMute(participants=(CAROL, BOB)),
        '{"action": "force_mute", "participants": ["0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10", "bob"]}',
    ),
    row(
        livekit.GrantScreenSharePermission(participants=(BOB,)),
        '{"action": "grant_screen_share_permission", "participants": ["bob"]}',
    ),
    row(
        livekit.RevokeScreenSharePermission(participants=(BOB,)),
        '{"action": "revoke_screen_share_permission", "participants": ["bob"]}',
    ),
    row(
        livekit.EnableMicrophoneRestrictions(unrestricted_participants=()),
        '{"action": "enable_microphone_restrictions", "unrestricted_participants": []}',
    ),
    row(livekit.DisableMicrophoneRestrictions(), '{"action": "disable_microphone_restrictions"}'),
    row(livekit.RequestPopoutStreamAccessToken(), '{"action": "request_popout_stream_access_token"}'),
]

EVENTS = [
    row(
        livekit.Credentials(room="board", token="eyJ.e.s", public_url="wss://lk.example.org"),
        '{"message": "credentials", "room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org"}',
    ),
    row(
        livekit.Credentials(
            room="board:left", token="eyJ.e.s", public_url="wss://lk.example.org", service_url="ws://lk.internal:7880"
        ),
        '{"message": "credentials", "room": "board:left", "token": "eyJ.e.s", "public_url": "wss://lk.example.org",'
        ' "service_url": "ws://lk.internal:7880"}',
    ),
    row(
        livekit.PopoutStreamAccessToken(token="eyJ.p.s"),
        '{"message": "popout_stream_access_token", "token": "eyJ.p.s"}',
    ),
    row(livekit.ForceMuted(moderator=ALICE), '{"message": "force_muted", "moderator": "alice"}'),
    row(livekit.ForceMuted(moderator=CONTROLLER), '{"message": "force_muted", "moderator": "controller"}'),
    row(
        livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=(BOB, ALICE)),
        '{"message": "microphone_restrictions_enabled", "unrestricted_participants": ["alice", "bob"]}',
    ),
    row(
        livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=()),
        '{"message": "microphone_restrictions_enabled", "unrestricted_participants": []}',
    ),
    row(livekit.MicrophoneRestrictionsDisabled(), '{"message": "microphone_restrictions_disabled"}'),
    row(
        livekit.ScreenSharePermissionsUpdated(grant=True, participants=(BOB,)),
        '{"message": "screen_share_permissions_updated", "grant": true, "participants": ["bob"]}',
    ),
    row(
        livekit.ScreenSharePermissionsUpdated(grant=False, participants=()),
        '{"message": "screen_share_permissions_updated", "grant": false, "participants": []}',
    ),
    *(
        row(livekit.LiveKitError(error=code), f'{{"message": "error", "error": "{code}"}}')
        for code in ("livekit_unavailable", "insufficient_permissions", "rate_limit_exceeded", "internal")
    ),
    row(
        livekit.LiveKitError(error="invalid_command", detail="participants: is required"),
        '{"message": "error", "error": "invalid_command", "detail": "participants: is required"}',
    ),
]

JOIN_DATA = [
    pytest.param(
        livekit.JoinData(
            room="board",
            token="eyJ.e.s",
            public_url="wss://lk.example.org",
            service_url="ws://lk.internal:7880",
            microphone_restriction_state=livekit.MicrophoneRestrictionsOn(unrestricted_participants=(BOB,)),
        ),
        '{"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org",'
        ' "service_url": "ws://lk.internal:7880",'
        ' "microphone_restriction_state": {"type": "enabled", "unrestricted_participants": ["bob"]},'
        ' "credentials": {"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org",'
        ' "service_url": "ws://lk.internal:7880"}}',
        id="restricted",
    ),
    pytest.param(
        livekit.JoinData(
            room="board",
            token="eyJ.e.s",
            public_url="wss://lk.example.org",
            microphone_restriction_state=livekit.MicrophoneRestrictionsOn(unrestricted_participants=()),
        ),
        '{"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org",'
        ' "microphone_restriction_state": {"type": "enabled", "unrestricted_participants": []},'
        ' "credentials": {"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org"}}',
        id="restricted to moderators",
    ),
    pytest.param(
        livekit.JoinData(
            room="board",
            token="eyJ.e.s",
            public_url="wss://lk.example.org",
            microphone_restriction_state=livekit.MicrophoneRestrictionsOff(),
        ),
        '{"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org",'
        ' "microphone_restriction_state": {"type": "disabled"},'
        ' "credentials": {"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org"}}',
        id="unrestricted",
    ),
]


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_dump_a_command(command: livekit.LiveKitCommand, text: str) -> None:
    assert json.loads(dumped(command)) == json.loads(text)


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_parse_a_command(command: livekit.LiveKitCommand, text: str) -> None:
    assert parse_payload(json.loads(text), livekit.COMMANDS) == command


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_parse_a_command_in_any_key_order(command: livekit.LiveKitCommand, text: str) -> None:
    assert parse_payload(json.loads(reversed_keys(text)), livekit.COMMANDS) == command


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_unknown_keys_of_a_command_are_ignored(command: livekit.LiveKitCommand, text: str) -> None:
    assert parse_payload(json.loads(with_unknown_keys(text)), livekit.COMMANDS) == command


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_dump_an_event(event: livekit.LiveKitEvent, text: str) -> None:
    assert json.loads(dumped(event)) == json.loads(text)
    assert Delivery(event, 0).payload == json.loads(text)


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_parse_an_event(event: livekit.LiveKitEvent, text: str) -> None:
    assert parsed(type(event), text) == event
    assert parsed(type(event), reversed_keys(text)) == event


@pytest.mark.parametrize(("data", "text"), JOIN_DATA)
def test_dump_join_data(data: livekit.JoinData, text: str) -> None:
    assert json.loads(dumped(data)) == json.loads(text)


@pytest.mark.parametrize(("data", "text"), JOIN_DATA)
def test_parse_join_data(data: livekit.JoinData, text: str) -> None:
    assert parsed(livekit.JoinData, text) == data


def test_every_command_has_its_rows() -> None:
    assert sorted(json.loads(text_of(param))["action"] for param in COMMANDS) == sorted(livekit.COMMANDS)


def test_every_event_has_its_rows() -> None:
    assert {type(param.values[0]) for param in EVENTS} == concrete(livekit.LiveKitEvent)


def test_every_event_is_of_this_namespace() -> None:
    assert {Delivery(event_of(param), 0).namespace for param in EVENTS} == {"livekit"}


NAMING_PEOPLE = [
    ("force_mute", "participants"),
    ("grant_screen_share_permission", "participants"),
    ("revoke_screen_share_permission", "participants"),
    ("enable_microphone_restrictions", "unrestricted_participants"),
]


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
@pytest.mark.parametrize("wrong", ['"bob"', "1", "1.5", "true", "null", "{}", '{"bob": "bob"}', '{"0": "bob"}'])
def test_people_are_named_in_a_list(action: str, field: str, wrong: str) -> None:
    payload = json.loads(f'{{"action": "{action}", "{field}": {wrong}}}')
    with pytest.raises(MessageError) as caught:
        parse_payload(payload, livekit.COMMANDS)
    assert str(caught.value) == f"{field}: must be a list"


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
def test_people_must_be_named(action: str, field: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": action}, livekit.COMMANDS)
    assert str(caught.value) == f"{field}: is required"


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
@pytest.mark.parametrize("wrong", ["1", "1.5", "true", "null", "{}", '{"id": "bob"}', "[]", '["bob"]'])
def test_each_person_is_a_string(action: str, field: str, wrong: str) -> None:
    payload = json.loads(f'{{"action": "{action}", "{field}": ["bob", {wrong}]}}')
    with pytest.raises(MessageError) as caught:
        parse_payload(payload, livekit.COMMANDS)
    assert str(caught.value) == f"{field}[1]: must be a string"


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
@pytest.mark.parametrize("wrong", ["", "b" * 257])
def test_each_person_has_a_name_that_livekit_takes(action: str, field: str, wrong: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": action, field: ["bob", "carol", wrong]}, livekit.COMMANDS)
    assert str(caught.value).startswith(f"{field}[2]: ")


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
def test_lists_of_people_collapse_and_sort(action: str, field: str) -> None:
    people = ["zoe", "bob", "zoe", "sip_+49 #1", "Bob", "b" * 256]
    command = parse_payload({"action": action, field: people}, livekit.COMMANDS)
    assert getattr(command, field) == ("Bob", "b" * 256, "bob", "sip_+49 #1", "zoe")


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
def test_five_thousand_people_may_be_named(action: str, field: str) -> None:
    command = parse_payload({"action": action, field: [f"p{n}" for n in range(5_000)]}, livekit.COMMANDS)
    assert len(getattr(command, field)) == 5_000


@pytest.mark.parametrize(("action", "field"), NAMING_PEOPLE)
def test_one_more_is_too_many(action: str, field: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": action, field: [f"p{n}" for n in range(5_001)]}, livekit.COMMANDS)
    assert str(caught.value) == f"{field}: must not name more than 5,000"


def test_events_collapse_and_sort_too() -> None:
    event = livekit.ScreenSharePermissionsUpdated(grant=True, participants=(CAROL, BOB, ALICE, BOB))
    assert event.participants == (CAROL, ALICE, BOB)

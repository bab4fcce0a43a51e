import json

import pytest
from pydantic import ValidationError

from signaling.errors import MessageError
from signaling.identifiers import ParticipantId
from signaling.messages import control, livekit, moderation
from signaling.messages.base import parse_payload, rfc3339
from signaling.messages.envelope import Delivery
from tests.messages.wire import concrete, dumped, event_of, parsed, reversed_keys, row, text_of, with_unknown_keys

BOB = ParticipantId("bob")
AT = 1_772_357_400.123  # 2026-03-01T09:30:00.123Z

COMMANDS = [
    row(control.Join(), '{"action": "join", "extensions": []}'),
    row(
        control.Join(display_name="Bob", extensions=("livekit_moderation",)),
        '{"action": "join", "display_name": "Bob", "extensions": ["livekit_moderation"]}',
    ),
    row(control.RaiseHand(), '{"action": "raise_hand"}'),
    row(control.LowerHand(), '{"action": "lower_hand"}'),
    row(control.LowerHand(target=BOB), '{"action": "lower_hand", "target": "bob"}'),
    row(control.GrantModeratorRole(target=BOB), '{"action": "grant_moderator_role", "target": "bob"}'),
    row(control.RevokeModeratorRole(target=BOB), '{"action": "revoke_moderator_role", "target": "bob"}'),
]

DATA = control.ControlData(
    display_name="Bob",
    role="user",
    participation_kind="user",
    hand_is_up=False,
    hand_updated_at=rfc3339(AT + 60),
    joined_at=rfc3339(AT),
)
DATA_TEXT = (
    '{"display_name": "Bob", "role": "user", "participation_kind": "user", "hand_is_up": false,'
    ' "hand_updated_at": "2026-03-01T09:31:00.123Z", "joined_at": "2026-03-01T09:30:00.123Z", "left_at": null}'
)
ROOM_INFO = control.RoomInfo(id="board")
ALWAYS_TEXT = (
    ' "room_info": {"id": "board", "created_by": {"title": "", "firstname": "", "lastname": "", "display_name": "",'
    ' "avatar_url": ""}},'
    ' "tariff": {"id": "00000000-0000-0000-0000-000000000000", "name": "unlimited", "quotas": {}, "modules": {}},'
    ' "chat": {"enabled": false, "groups_history": [], "room_history": {"messages": [], "next_index": null},'
    ' "private_history": [], "last_seen_timestamp_global": null, "last_seen_timestamps_private": {},'
    ' "last_seen_timestamps_group": {}}}'
)

EVENTS = [
    row(
        control.JoinSuccess(
            id=ParticipantId("carol"),
            display_name="Carol",
            role="guest",
            hand_is_up=False,
            participants=(),
            room_info=ROOM_INFO,
        ),
        '{"message": "join_success", "id": "carol", "display_name": "Carol", "role": "guest", "hand_is_up": false,'
        f' "participants": [],{ALWAYS_TEXT}',
    ),
    row(
        control.JoinSuccess(
            id=ParticipantId("carol"),
            display_name="Carol",
            role="user",
            hand_is_up=True,
            hand_updated_at=rfc3339(AT),
            participants=(control.ParticipantEntry(id=BOB, control=DATA),),
            livekit=livekit.JoinData(
                room="board",
                token="eyJ.e.s",
                public_url="wss://lk.example.org",
                microphone_restriction_state=livekit.MicrophoneRestrictionsOff(),
            ),
            livekit_moderation=moderation.MayPublish(may_publish=("camera", "microphone")),
            room_info=ROOM_INFO,
        ),
        '{"message": "join_success", "id": "carol", "display_name": "Carol", "role": "user", "hand_is_up": true,'
        ' "hand_updated_at": "2026-03-01T09:30:00.123Z",'
        f' "participants": [{{"id": "bob", "control": {DATA_TEXT}}}],'
        ' "livekit": {"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org",'
        ' "microphone_restriction_state": {"type": "disabled"},'
        ' "credentials": {"room": "board", "token": "eyJ.e.s", "public_url": "wss://lk.example.org"}},'
        f' "livekit_moderation": {{"may_publish": ["camera", "microphone"]}},{ALWAYS_TEXT}',
    ),
    row(
        control.JoinSuccess(
            id=ParticipantId("alice"),
            display_name="Alice",
            role="moderator",
            hand_is_up=False,
            participants=(),
            room_info=ROOM_INFO,
            livekit_moderation=moderation.StateView(version=3, restrictions=(), blocks=(), bans=(), participants=()),
        ),
        '{"message": "join_success", "id": "alice", "display_name": "Alice", "role": "moderator", "hand_is_up": false,'
        ' "participants": [], "livekit_moderation": {"version": 3, "restrictions": [], "blocks": [], "bans": [],'
        f' "participants": [], "strangers": []}},{ALWAYS_TEXT}',
    ),
    row(control.Joined(id=BOB, control=DATA), f'{{"message": "joined", "id": "bob", "control": {DATA_TEXT}}}'),
    row(
        control.Update(
            id=ParticipantId("sip:49"),
            control=control.ControlData(
                display_name="",
                role="guest",
                participation_kind="sip",
                hand_is_up=True,
                hand_updated_at=rfc3339(1),
                joined_at=rfc3339(0),
            ),
        ),
        '{"message": "update", "id": "sip:49", "control": {"display_name": "", "role": "guest",'
        ' "participation_kind": "sip", "hand_is_up": true, "hand_updated_at": "1970-01-01T00:00:01.000Z",'
        ' "joined_at": "1970-01-01T00:00:00.000Z", "left_at": null}}',
    ),
    row(control.Left(id=BOB, reason="quit"), '{"message": "left", "id": "bob", "reason": "quit"}'),
    row(control.Left(id=BOB, reason="timeout"), '{"message": "left", "id": "bob", "reason": "timeout"}'),
    row(control.Left(id=BOB, reason="kicked"), '{"message": "left", "id": "bob", "reason": "kicked"}'),
    row(control.Left(id=BOB, reason="banned"), '{"message": "left", "id": "bob", "reason": "banned"}'),
    row(control.HandRaised(), '{"message": "hand_raised"}'),
    row(control.HandLowered(), '{"message": "hand_lowered"}'),
    row(control.ModeratorRoleGranted(target=BOB), '{"message": "moderator_role_granted", "target": "bob"}'),
    row(control.ModeratorRoleRevoked(target=BOB), '{"message": "moderator_role_revoked", "target": "bob"}'),
    row(control.RoomDeleted(), '{"message": "room_deleted"}'),
    row(control.RoleUpdated(new_role="moderator"), '{"message": "role_updated", "new_role": "moderator"}'),
    row(control.RoleUpdated(new_role="user"), '{"message": "role_updated", "new_role": "user"}'),
    row(control.RoleUpdated(new_role="guest"), '{"message": "role_updated", "new_role": "guest"}'),
    *(
        row(control.ControlError(error=code), f'{{"message": "error", "error": "{code}"}}')
        for code in (
            "invalid_json",
            "invalid_namespace",
            "already_joined",
            "not_yet_joined",
            "insufficient_permissions",
            "nothing_to_do",
            "rate_limit_exceeded",
            "internal",
        )
    ),
    row(
        control.ControlError(error="invalid_command", detail="target: is required"),
        '{"message": "error", "error": "invalid_command", "detail": "target: is required"}',
    ),
]


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_dump_a_command(command: control.ControlCommand, text: str) -> None:
    assert json.loads(dumped(command)) == json.loads(text)


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_parse_a_command(command: control.ControlCommand, text: str) -> None:
    assert parse_payload(json.loads(text), control.COMMANDS) == command


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_parse_a_command_in_any_key_order(command: control.ControlCommand, text: str) -> None:
    assert parse_payload(json.loads(reversed_keys(text)), control.COMMANDS) == command


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_unknown_keys_of_a_command_are_ignored(command: control.ControlCommand, text: str) -> None:
    assert parse_payload(json.loads(with_unknown_keys(text)), control.COMMANDS) == command


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_dump_an_event(event: control.ControlEvent, text: str) -> None:
    assert json.loads(dumped(event)) == json.loads(text)
    assert Delivery(event, 0).payload == json.loads(text)
    assert json.loads(Delivery(event, 0).text)["payload"] == json.loads(text)


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_parse_an_event(event: control.ControlEvent, text: str) -> None:
    assert parsed(type(event), text) == event
    assert parsed(type(event), reversed_keys(text)) == event


def test_every_command_has_its_rows() -> None:
    assert {json.loads(text_of(param))["action"] for param in COMMANDS} == set(control.COMMANDS)


def test_every_event_has_its_rows() -> None:
    assert {type(param.values[0]) for param in EVENTS} == concrete(control.ControlEvent)


def test_every_event_is_of_this_namespace() -> None:
    assert {Delivery(event_of(param), 0).namespace for param in EVENTS} == {"control"}


def test_joining_needs_nothing_but_the_action() -> None:
    assert parse_payload({"action": "join"}, control.COMMANDS) == control.Join()


def test_extensions_that_nobody_knows_are_no_error() -> None:
    command = parse_payload({"action": "join", "extensions": ["polls", "livekit_moderation"]}, control.COMMANDS)
    assert command == control.Join(extensions=("polls", "livekit_moderation"))


@pytest.mark.parametrize("name", ["", "  \t ", "  Bob B.\n", "é" * 101, "\u200b"])
def test_no_display_name_is_refused(name: str) -> None:
    command = parse_payload({"action": "join", "display_name": name}, control.COMMANDS)
    assert command == control.Join(display_name=name)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ('"display_name": 5', "display_name: must be a string"),
        ('"display_name": ["Bob"]', "display_name: must be a string"),
        ('"display_name": true', "display_name: must be a string"),
        ('"display_name": {}', "display_name: must be a string"),
        ('"extensions": "livekit_moderation"', "extensions: must be a list"),
        ('"extensions": null', "extensions: must be left out, never null"),
        ('"display_name": null', "display_name: must be left out, never null"),
        ('"extensions": {"livekit_moderation": true}', "extensions: must be a list"),
        ('"extensions": 1', "extensions: must be a list"),
        ('"extensions": ["a", 1]', "extensions[1]: must be a string"),
        ('"extensions": [null]', "extensions[0]: must be a string"),
        (f'"extensions": {json.dumps(["x"] * 33)}', "extensions: must not name more than 32"),
    ],
)
def test_what_is_wrong_with_a_join_is_said(fields: str, detail: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload(json.loads(f'{{"action": "join", {fields}}}'), control.COMMANDS)
    assert str(caught.value) == detail


@pytest.mark.parametrize("action", ["grant_moderator_role", "revoke_moderator_role", "lower_hand"])
@pytest.mark.parametrize("wrong", ["1", "1.5", "true", "{}", "[]", '["bob"]'])
def test_a_target_is_a_string(action: str, wrong: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload(json.loads(f'{{"action": "{action}", "target": {wrong}}}'), control.COMMANDS)
    assert str(caught.value) == "target: must be a string"


@pytest.mark.parametrize("action", ["grant_moderator_role", "revoke_moderator_role", "lower_hand"])
@pytest.mark.parametrize("wrong", ["bob#x", "bob-popout3", "controller", "", "b" * 128])
def test_a_target_is_an_id(action: str, wrong: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": action, "target": wrong}, control.COMMANDS)
    assert str(caught.value).startswith("target: ")


@pytest.mark.parametrize("action", ["grant_moderator_role", "revoke_moderator_role"])
@pytest.mark.parametrize(("fields", "detail"), [({}, "is required"), ({"target": None}, "must be a string")])
def test_a_role_is_given_to_somebody(action: str, fields: dict[str, None], detail: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": action, **fields}, control.COMMANDS)
    assert str(caught.value) == f"target: {detail}"


def test_a_target_is_normalised() -> None:
    command = parse_payload(
        {"action": "lower_hand", "target": "{9D2B7A4E-3F10-4C55-8A6B-0123456789AB}"}, control.COMMANDS
    )
    assert command == control.LowerHand(target=ParticipantId("9d2b7a4e-3f10-4c55-8a6b-0123456789ab"))


@pytest.mark.parametrize("wrong", ['"2026-03-01T09:30:00.123Z"', '""', "false", "0", "{}"])
def test_what_is_always_null_is_nothing_else(wrong: str) -> None:
    text = DATA_TEXT.replace("null", wrong)
    with pytest.raises(ValidationError):
        parsed(control.ControlData, text)


@pytest.mark.parametrize("wrong", ['"yesterday"', '""', "true", "null", "[]"])
def test_a_time_is_a_time(wrong: str) -> None:
    text = DATA_TEXT.replace('"2026-03-01T09:30:00.123Z"', wrong)
    with pytest.raises(ValidationError):
        parsed(control.ControlData, text)


@pytest.mark.parametrize("name", ["Carol", '"participants":[]', ',"participants":[]', "\\", '\\"participants\\":[]'])
@pytest.mark.parametrize("people", [0, 1, 3])
def test_who_joins_is_told_as_if_everybody_were_encoded_anew(name: str, people: int) -> None:
    told = control.JoinSuccess(
        id=BOB,
        display_name=name,
        role="guest",
        hand_is_up=False,
        participants=tuple(
            control.ParticipantEntry(id=ParticipantId(f"p{n}"), control=DATA.model_copy(update={"display_name": name}))
            for n in range(people)
        ),
        room_info=control.RoomInfo(id=name),
    )
    expected = told.model_dump_json(exclude_none=True)
    assert [told.to_json(), told.to_json()] == [expected] * 2  # the second with texts that are there
    assert told.model_dump_json(exclude_none=True) == expected
    assert control.JoinSuccess.model_validate(told.model_dump()) == told

import json
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from signaling.errors import MessageError
from signaling.identifiers import ParticipantId
from signaling.messages import control, echo, livekit
from signaling.messages.base import Command, Message, by_action, in_order, parse_payload, rfc3339

COMMANDS: dict[str, type[Command]] = {**livekit.COMMANDS, **control.COMMANDS, **echo.COMMANDS}


class Strict(Command, extra="forbid"):
    """A command as a namespace has it that refuses unknown keys."""

    action: Literal["strict"] = "strict"
    count: int = 0
    switch: bool = False


# --- Times -----------------------------------------------------------------------------------------------------------


@given(
    st.one_of(st.floats(-1e9, 1e11), st.integers(0, 2**33), st.integers(0, 2**43).map(lambda half_us: half_us / 2e6))
)
def test_a_time_is_written_as_datetime_writes_it(at: float) -> None:
    written = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    assert rfc3339(at) == written.replace("+00:00", "Z")


# --- The payload -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [None, [], ["force_mute"], "force_mute", 1, 1.5, True])
def test_a_payload_is_an_object(payload: object) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload(payload, COMMANDS)
    assert str(caught.value) == "payload: must be an object"


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        ({}, "action: is required"),
        ({"action": None}, "action: is required"),
        ({"Action": "raise_hand"}, "action: is required"),
        ({"message": "force_muted"}, "action: is required"),
        ({"action": 1}, "action: must be a string"),
        ({"action": True}, "action: must be a string"),
        ({"action": ["raise_hand"]}, "action: must be a string"),
        ({"action": {"raise_hand": 1}}, "action: must be a string"),
        ({"action": ""}, "action: not a command of this namespace"),
        ({"action": "RAISE_HAND"}, "action: not a command of this namespace"),
        ({"action": "raise_hand\n"}, "action: not a command of this namespace"),
        ({"action": "force_muted"}, "action: not a command of this namespace"),
    ],
)
def test_an_action_names_a_command(payload: dict[str, object], detail: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload(payload, COMMANDS)
    assert str(caught.value) == detail


@pytest.mark.parametrize(
    ("action", "namespace"),
    [("raise_hand", livekit.COMMANDS), ("force_mute", control.COMMANDS), ("join", livekit.COMMANDS)],
)
def test_a_command_of_another_namespace_is_none_of_this_one(action: str, namespace: dict[str, type[Command]]) -> None:
    with pytest.raises(MessageError, match="not a command of this namespace"):
        parse_payload({"action": action, "participants": []}, namespace)


def test_where_unknown_keys_are_refused_they_are_not_repeated() -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": "strict", "hunter2": 1}, by_action(Strict))
    assert str(caught.value) == "unknown field"


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"count": "1"}, "count: must be a whole number"),
        ({"count": True}, "count: must be a whole number"),
        ({"count": 1.5}, "count: must be a whole number"),
        ({"switch": 1}, "switch: must be true or false"),
        ({"switch": "true"}, "switch: must be true or false"),
    ],
)
def test_nothing_is_converted(fields: dict[str, object], detail: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": "strict", **fields}, by_action(Strict))
    assert str(caught.value) == detail


def test_of_several_faults_the_first_is_named() -> None:
    with pytest.raises(MessageError) as caught:
        parse_payload({"action": "force_mute", "participants": ["bob", 1, "#", None]}, COMMANDS)
    assert str(caught.value) == "participants[1]: must be a string"


@pytest.mark.parametrize("command", [livekit.ForceMute(participants=()), control.Join(), echo.Ping()])
def test_messages_do_not_change(command: Command) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(command, "action", "other")  # noqa: B010 - the type checker would not let us


def test_a_tag_is_not_made_up() -> None:
    with pytest.raises(ValidationError):
        livekit.ForceMute.model_validate({"action": "raise_hand", "participants": []})


# --- No input in errors ------------------------------------------------------------------------------------------

CANARY = st.text(alphabet="0123456789QXZ#/é\u202e", min_size=8, max_size=24).map(lambda text: f"CNRY{text}")
PLACES = ["value", "element", "key", "nested", "action", "long", "popout"]


def _command_with(canary: str, action: str, field: str, place: str) -> dict[str, Any]:
    payload: dict[str, Any] = {"action": action, "target": "bob", "participants": ["bob"]}
    match place:
        case "value":
            payload[field] = canary
        case "element":
            payload[field] = ["bob", canary]
        case "key":
            payload = {canary: "bob", **payload}
            payload[field] = {canary: canary}
        case "nested":
            payload[field] = [[canary], {canary: {canary: canary}}]
        case "action":
            payload["action"] = canary
        case "long":
            payload[field] = canary * 40
        case _:
            payload[field] = [f"{canary}-popout1"]
    return payload


def _refusal(payload: object, commands: dict[str, type[Command]]) -> MessageError | None:
    try:
        parse_payload(payload, commands)
    except MessageError as error:
        return error
    return None


@settings(deadline=None, max_examples=300)
@given(
    canary=CANARY,
    action=st.sampled_from(sorted([*COMMANDS, "strict"])),
    field=st.sampled_from(
        ["participants", "unrestricted_participants", "target", "display_name", "extensions", "count", "switch"]
    ),
    place=st.sampled_from(PLACES),
)
def test_no_error_repeats_what_was_sent(canary: str, action: str, field: str, place: str) -> None:
    payload = _command_with(canary, action, field, place)
    error = _refusal(payload, {**COMMANDS, "strict": Strict})
    if error is not None:
        for told in (str(error), repr(error), repr(error.args)):
            assert "CNRY" not in told
            assert canary not in told
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__


def test_not_even_a_validation_error_of_ours_shows_what_was_sent() -> None:
    with pytest.raises(ValidationError) as caught:
        livekit.ForceMute.model_validate({"participants": ["CNRY 1" * 50]})
    assert "CNRY" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(payload=JSON, action=st.sampled_from(sorted(COMMANDS)), field=st.sampled_from(["participants", "target"]))
def test_whatever_is_sent_is_a_command_or_a_message_error(payload: object, action: str, field: str) -> None:
    for sent in (payload, {"action": action, field: payload}, {"action": payload}):
        try:
            command = parse_payload(sent, COMMANDS)
        except MessageError:
            continue
        assert isinstance(command, Command)


# --- Ids and times -----------------------------------------------------------------------------------------------


def test_ids_leave_sorted_and_once() -> None:
    ids = [ParticipantId(text) for text in ("carol", "Alice", "bob", "alice", "bob")]
    assert in_order(ids) == ("Alice", "alice", "bob", "carol")


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_772_357_400.123, "2026-03-01T09:30:00.123Z"),
        (1_772_357_400, "2026-03-01T09:30:00.000Z"),
        (1_772_357_400.9996, "2026-03-01T09:30:00.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(at: float, text: str) -> None:
    assert rfc3339(at) == text


@settings(deadline=None)
@given(times=st.lists(st.floats(min_value=0, max_value=4e9), min_size=2, max_size=8))
def test_times_that_do_not_go_backwards_do_not_on_the_wire_either(times: list[float]) -> None:
    written = [rfc3339(at) for at in sorted(times)]
    assert written == sorted(written)


# --- Optional fields ---------------------------------------------------------------------------------------------


def _below(kind: type[Message]) -> set[type[Message]]:
    direct = set(kind.__subclasses__())
    return direct.union(*(_below(subclass) for subclass in direct))


def test_whatever_may_be_none_is_left_out_by_default() -> None:
    for message in _below(Message):
        for name, field in message.model_fields.items():
            if field.default is None:
                assert not field.is_required(), f"{message.__name__}.{name}"
            else:
                assert NoneType not in get_args(field.annotation), f"{message.__name__}.{name} would have to be null"


def test_no_list_on_the_wire_is_unbounded_where_a_client_sends_it() -> None:
    for action, command in COMMANDS.items():
        schema = json.dumps(command.model_json_schema())
        assert schema.count('"type": "array"') == schema.count('"maxItems"'), action

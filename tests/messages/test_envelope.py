import json
import re
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signaling.errors import MessageError
from signaling.identifiers import ParticipantId
from signaling.messages import control, echo, livekit
from signaling.messages.base import MAX_IDS, Event, Namespace, parse_payload
from signaling.messages.envelope import MAX_FRAME_BYTES, Delivery, EnvelopeError, Frame, parse_frame


def refused(text: str) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        parse_frame(text)
    return caught.value


# --- Frames that are taken ---------------------------------------------------------------------------------------


def test_a_frame_is_taken_apart() -> None:
    text = '{"namespace": "livekit", "payload": {"action": "force_mute", "participants": ["bob"]}, "transaction_id": 7}'
    assert parse_frame(text) == Frame(Namespace.LIVEKIT, {"action": "force_mute", "participants": ["bob"]}, 7)


def test_the_order_of_keys_is_free() -> None:
    text = '{"transaction_id": "t", "payload": {"action": "ping"}, "namespace": "echo"}'
    assert parse_frame(text) == Frame(Namespace.ECHO, {"action": "ping"}, "t")


def test_unknown_keys_beside_the_payload_are_ignored() -> None:
    text = '{"namespace": "control", "timestamp": null, "payload": {"action": "raise_hand"}, "x": [{}]}'
    assert parse_frame(text) == Frame(Namespace.CONTROL, {"action": "raise_hand"}, None)


@pytest.mark.parametrize("namespace", ["livekit", "livekit_moderation", "control", "echo"])
def test_there_are_four_namespaces(namespace: str) -> None:
    assert parse_frame(json.dumps({"namespace": namespace, "payload": {}})).namespace == namespace


@pytest.mark.parametrize("text", ['{"namespace": "echo"}', '{"namespace": "echo", "payload": null}'])
def test_what_the_payload_is_concerns_the_namespace(text: str) -> None:
    frame = parse_frame(text)
    with pytest.raises(MessageError, match="payload: must be an object"):
        parse_payload(frame.payload, echo.COMMANDS)


@pytest.mark.parametrize(
    "text", [r'"\ud83d\ude00"', '"😀"', r'"\u0000"', '"\u2028"', "-0", "1e3", "0.1", "123456789012345678901"]
)
def test_all_of_json_is_taken(text: str) -> None:
    assert parse_frame(f'{{"namespace": "echo", "payload": {text}}}').payload == json.loads(text)


@pytest.mark.parametrize("text", [' \t\r\n{"namespace":"echo"}\n', '{"\\u006eamespace": "echo"}'])
def test_json_is_read_as_json(text: str) -> None:
    assert parse_frame(text).namespace is Namespace.ECHO


# --- Frames that are refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "ping",
        "{",
        "{}}",
        '{"namespace": "echo"',
        '{"namespace": "echo"} {"namespace": "echo"}',
        '{"namespace": "echo",}',
        "{'namespace': 'echo'}",
        '{namespace: "echo"}',
        '\ufeff{"namespace": "echo"}',
        '{"namespace": "echo", "payload": NaN}',
        '{"namespace": "echo", "payload": Infinity}',
        '{"namespace": "echo", "payload": -Infinity}',
        '{"namespace": "echo", "payload": 01}',
        '{"namespace": "echo", "payload": 1.}',
        '{"namespace": "echo", "payload": +1}',
        '{"namespace": "echo", "payload": "\x00"}',
        '{"namespace": "echo", "payload": "\n"}',
        '{"namespace": "echo", "payload": "\\x"}',
        '{"namespace": "echo", "payload": "\\ud800"}',
        '{"namespace": "echo", "payload": "\\udc00\\ud800"}',
        '{"namespace": "echo", "\\ud800": 1}',
        '{"namespace": "echo", "payload": "\ud800"}',
        '{"namespace": "echo"} // comment',
    ],
)
def test_what_is_not_json_is_invalid_json(text: str) -> None:
    error = refused(text)
    assert (error.code, error.detail, error.namespace, error.transaction_id) == ("invalid_json", None, "control", None)


@pytest.mark.parametrize("text", ["[]", '["namespace"]', '"echo"', "1", "1.5", "true", "null"])
def test_a_frame_is_an_object(text: str) -> None:
    error = refused(text)
    assert (error.code, error.detail, error.namespace) == ("invalid_json", "must be an object", "control")


@pytest.mark.parametrize(
    "text",
    [
        '{"namespace": "echo", "namespace": "echo"}',
        '{"namespace": "echo", "namespace": "livekit"}',
        '{"namespace": "echo", "\\u006eamespace": "livekit"}',
        '{"namespace": "echo", "transaction_id": 1, "transaction_id": 1}',
        '{"namespace": "echo", "payload": {"action": "ping", "action": "ping"}}',
        '{"namespace": "echo", "payload": {"x": {"a": 1, "b": 2, "a": 3}}}',
        '{"namespace": "echo", "payload": [[{"x": [{"": 1, "": 1}]}]]}',
        '{"namespace": "echo", "unknown": {"é": 1, "\\u00e9": 2}}',
    ],
)
def test_the_same_key_twice_is_invalid_json_at_any_depth(text: str) -> None:
    assert refused(text).code == "invalid_json"


def test_the_same_key_in_two_objects_is_fine() -> None:
    text = '{"namespace": "echo", "payload": {"namespace": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}}'
    assert parse_frame(text).payload == {"namespace": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}


@pytest.mark.parametrize(
    "name",
    ['""', '"Livekit"', '"livekit "', '"chat"', "null", "1", "true", "1.5", '["livekit"]', "{}", '{"livekit": 1}'],
)
def test_an_unknown_namespace_is_answered_in_control(name: str) -> None:
    error = refused(f'{{"namespace": {name}, "payload": {{"action": "ping"}}}}')
    assert (error.code, error.detail, error.namespace) == ("invalid_namespace", None, "control")


def test_a_namespace_is_required() -> None:
    assert refused('{"payload": {"action": "ping"}}').code == "invalid_namespace"


def test_the_answer_to_an_unknown_namespace_carries_the_transaction_id() -> None:
    assert refused('{"namespace": "chat", "transaction_id": 7}').transaction_id == 7


def test_what_is_no_transaction_id_is_not_carried_back() -> None:
    assert refused('{"namespace": "chat", "transaction_id": [7]}').transaction_id is None


# --- Transaction ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "literal",
    ["0", "1", "9007199254740993", "18446744073709551615", '"a"', '"0"', f'"{"x" * 64}"', f'"{"é" * 64}"', '" "'],
)
def test_a_transaction_id_is_carried_back_as_it_came(literal: str) -> None:
    transaction_id = parse_frame(
        f'{{"namespace": "livekit", "payload": {{}}, "transaction_id": {literal}}}'
    ).transaction_id
    assert type(transaction_id) is type(json.loads(literal))
    assert transaction_id == json.loads(literal)
    assert transaction_id is not None
    assert json.loads(Delivery(echo.Pong(), 0, transaction_id).text)["transaction_id"] == json.loads(literal)


def test_a_transaction_id_is_optional() -> None:
    assert parse_frame('{"namespace": "livekit"}').transaction_id is None


@pytest.mark.parametrize(
    "literal",
    [
        "18446744073709551616",
        "-1",
        "1.0",
        "0.5",
        "1e3",
        "true",
        "false",
        "null",
        '""',
        f'"{"x" * 65}"',
        "[]",
        "{}",
        "[1]",
        "9" * 4_000,
    ],
)
@pytest.mark.parametrize("namespace", ["livekit", "livekit_moderation", "control", "echo"])
def test_what_is_no_transaction_id_is_refused_in_the_commands_namespace(literal: str, namespace: str) -> None:
    error = refused(f'{{"namespace": "{namespace}", "payload": {{}}, "transaction_id": {literal}}}')
    assert (error.code, error.namespace, error.transaction_id) == ("invalid_command", namespace, None)
    assert str(error).startswith("transaction_id: ")


@settings(deadline=None)
@given(
    canary=st.text(alphabet="QXZ0123456789", min_size=8, max_size=80).map(lambda text: f"CNRY{text}"),
    template=st.sampled_from(
        [
            '{"namespace": "%s"}',
            '{"namespace": "echo", "transaction_id": ["%s"]}',
            '{"namespace": "echo", "transaction_id": "%sLONG"}',
            '{"namespace": "echo", "%s": 1, "%s": 2}',
            '{"namespace": "echo", %s}',
            '["%s"]',
            '"%s"',
            "%s",
        ]
    ),
)
def test_no_error_repeats_what_was_sent(canary: str, template: str) -> None:
    error = refused(template.replace("LONG", "x" * 64).replace("%s", canary))
    for told in (str(error), repr(error), str(error.detail), repr(error.args)):
        assert "CNRY" not in told
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60) | st.text(alphabet='{}[]",:0123456789.eE+-\\untrfals ', max_size=60))
def test_whatever_is_sent_is_a_frame_or_an_envelope_error(text: str) -> None:
    for sent in (text, f'{{"namespace":"echo","payload":{text}}}', f'{{"namespace":{text}}}'):
        try:
            frame = parse_frame(sent)
        except EnvelopeError:
            continue
        assert isinstance(json.loads(sent), dict)
        assert isinstance(frame.namespace, Namespace)


# --- Nasty frames ------------------------------------------------------------------------------------------------


def _filled(before: str, piece: str, after: str) -> str:
    """As many pieces as 1 MiB has room for."""
    room = MAX_FRAME_BYTES - len(before.encode()) - len(after.encode())
    return before + piece * (room // len(piece.encode())) + after


def _force_mute(piece: str, last: str) -> str:
    return _filled('{"namespace":"livekit","payload":{"action":"force_mute","participants":[', piece, f"{last}]}}}}")


def _join(piece: str, last: str) -> str:
    return _filled('{"namespace":"control","payload":{"action":"join","extensions":[', piece, f"{last}]}}}}")


def _keys() -> str:
    keys = ",".join(f'"{number}":0' for number in range(100_000))
    return f'{{"namespace":"livekit","payload":{{"action":"force_mute",{keys}}}}}'


NASTY = {
    "open brackets": "[" * MAX_FRAME_BYTES,
    "open braces": _filled("", '{"":', ""),
    "deep nesting": '{"namespace":"livekit","payload":' + "[" * 9_000 + "]" * 9_000 + "}",
    "nesting of the namespace": '{"namespace":' + "[" * 190 + "1" + "]" * 190 + "}",
    "empty objects": _force_mute("{},", "{}"),
    "9,990 empty objects": _filled('{"namespace":"livekit","payload":[' + "{}," * 9_990 + '"', "x", '"]}'),
    "wrong elements": _force_mute("0,", "0"),
    "wrong ids": _force_mute('"",', '""'),
    "good ids": _force_mute('"a",', '"a"'),
    "good ids, then wrong ones": _force_mute('"a",' * 5_000 + "0,", "0"),
    "long wrong id": _filled(
        '{"namespace":"livekit","payload":{"action":"force_mute","participants":["', "-popout1", '"]}}'
    ),
    "wrong extensions": _join("0,", "0"),
    "good extensions": _join('"",', '""'),
    "long display name": _filled(
        '{"namespace":"control","payload":{"action":"join","display_name":"', " ", '","extensions":[0]}}'
    ),
    "100,000 keys": _keys(),
    "one key often": _filled('{"namespace":"livekit","payload":{"a":0', ',"a":0', "}}"),
    "floats": _force_mute("1.5e3,", "1"),
    "big whole numbers": _force_mute("9" * 4_300 + ",", "1"),
    "one huge whole number": _filled('{"namespace":"livekit","payload":', "9", "}"),
    "one huge fraction": _filled('{"namespace":"livekit","payload":0.', "9", "}"),
    "huge exponents": _force_mute("1e999999999,", "1"),
    "huge transaction id": _filled('{"namespace":"livekit","transaction_id":', "9", "}"),
    "long transaction id": _filled('{"namespace":"livekit","transaction_id":"', "x", '"}'),
    "big whole numbers as transaction id": _filled(
        '{"namespace":"livekit","transaction_id":[', "9" * 4_300 + ",", "1]}"
    ),
    "long namespace": _filled('{"namespace":"', "\u0080", '"}'),
    "big whole numbers as namespace": _filled('{"namespace":[', "9" * 4_300 + ",", "1]}"),
    "numbers as namespace": _filled('{"namespace":[', "0,", "0]}"),
    "long action": _filled('{"namespace":"livekit","payload":{"action":"', "x", '"}}'),
    "escapes": _filled('{"namespace":"livekit","payload":"', r"\u0041", '"}'),
    "surrogate pairs": _filled('{"namespace":"livekit","payload":"', r"\ud83d\ude00", '"}'),
    "late lone surrogate": _filled('{"namespace":"livekit","payload":"', "x", '\\ud800"}'),
    "backslashes": _filled('{"namespace":"livekit","payload":"', "\\\\", '"}'),
    "white space": " " * MAX_FRAME_BYTES,
    "quotes": '"' * MAX_FRAME_BYTES,
}


def _parse_all_of(text: str) -> None:
    frame = parse_frame(text)
    commands = control.COMMANDS if frame.namespace is Namespace.CONTROL else livekit.COMMANDS
    parse_payload(frame.payload, commands)


def _steps_of_parsing(text: str) -> int:
    """How many functions are called until it is refused, Python's own among them."""
    steps = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal steps
        steps += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        with pytest.raises(MessageError):
            _parse_all_of(text)
    finally:
        sys.setprofile(before)
    return steps


@pytest.mark.parametrize("kind", NASTY)
def test_a_mebibyte_of_anything_is_refused_by_few_steps(kind: str) -> None:
    # While one client's frame is parsed nobody else is served. What is done for each of its parts is done in C, once;
    # only ids are looked at one by one, and of them no more than a command may name.
    assert len(NASTY[kind].encode()) <= MAX_FRAME_BYTES
    assert _steps_of_parsing(NASTY[kind]) < (6 * MAX_IDS if kind.startswith("good ids") else 200)


@pytest.mark.parametrize("kind", NASTY)
def test_little_is_built_of_a_mebibyte_of_anything(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            _parse_all_of(NASTY[kind])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 * MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (r"Bob \ud83d", "Bob "),
        (r"\uDC00Bob", "Bob"),
        (r"\ud83d\ude00 Bob \ude00\ud83d", "😀 Bob "),
        (r"\ud83d\ud83d\ude00", "😀"),
        (r"\\ud83d", r"\ud83d"),
        (r"\"Bob\" \ud83d", '"Bob" '),
        (r"\u0042ob\ud800", "Bob"),
    ],
)
def test_a_name_that_was_cut_through_a_character_is_read_without_its_half(name: str, read: str) -> None:
    frame = parse_frame(f'{{"namespace": "control", "payload": {{"action": "join", "display_name" : "{name}"}}}}')
    assert parse_payload(frame.payload, control.COMMANDS) == control.Join(display_name=read)


def test_nothing_but_names_is_mended() -> None:
    for payload in (
        r'{"action": "lower_hand", "target": "bo\ud800b"}',
        r'{"action": "join", "display_name": "Bob\ud800", "x": "\ud800"}',
        rf'{{"action": "join", "display_name": "{"x" * 16 * 1024}\ud800"}}',
    ):
        assert str(refused(f'{{"namespace": "control", "payload": {payload}}}')) == "invalid_json"


def test_the_most_people_with_the_longest_ids_fit_into_a_frame() -> None:
    ids = [f"{number:0127d}" for number in range(5_000)]
    text = json.dumps({"namespace": "livekit", "payload": {"action": "force_mute", "participants": ids}})
    assert len(text) <= MAX_FRAME_BYTES
    assert parse_payload(parse_frame(text).payload, livekit.COMMANDS) == livekit.ForceMute(
        participants=tuple(ParticipantId(text) for text in ids)
    )


def test_the_most_people_in_braces_are_not_too_many_values() -> None:
    ids = [f"{{{number:08x}-0000-4000-8000-000000000000}}" for number in range(5_000)]
    text = json.dumps({"namespace": "livekit", "payload": {"action": "force_mute", "participants": ids}})
    command = parse_payload(parse_frame(text).payload, livekit.COMMANDS)
    assert isinstance(command, livekit.ForceMute)
    assert len(command.participants) == 5_000


# --- What leaves -------------------------------------------------------------------------------------------------

AT = 1_772_357_400.123


def test_a_delivery_is_a_frame() -> None:
    delivery = Delivery(livekit.ForceMuted(moderator=ParticipantId("alice")), AT)
    assert json.loads(delivery.text) == json.loads(
        '{"namespace": "livekit", "timestamp": "2026-03-01T09:30:00.123Z",'
        ' "payload": {"message": "force_muted", "moderator": "alice"}}'
    )


@pytest.mark.parametrize("transaction_id", [0, 7, 2**64 - 1, "seven", 'quote " and \\', "é\u2028"])
def test_a_senders_copy_carries_the_transaction_id(transaction_id: int | str) -> None:
    delivery = Delivery(livekit.MicrophoneRestrictionsDisabled(), AT, transaction_id)
    assert json.loads(delivery.text) == {
        "namespace": "livekit",
        "timestamp": "2026-03-01T09:30:00.123Z",
        "payload": {"message": "microphone_restrictions_disabled"},
        "transaction_id": transaction_id,
    }


def test_everybody_elses_copy_carries_none() -> None:
    assert "transaction_id" not in json.loads(Delivery(echo.Pong(), AT).text)


EMPTY_HANDED: list[Event] = [
    control.JoinSuccess(
        id=ParticipantId("bob"),
        display_name="Bob",
        role="user",
        hand_is_up=False,
        participants=(),
        room_info=control.RoomInfo(id="board"),
    ),
    control.ControlError(error="internal"),
    livekit.Credentials(room="board", token="t", public_url="wss://lk.example.org"),
    livekit.LiveKitError(error="internal"),
    echo.EchoError(error="invalid_command"),
]


@pytest.mark.parametrize("event", EMPTY_HANDED)
def test_what_has_no_value_is_left_out_and_never_null(event: Event) -> None:
    delivery = Delivery(event, AT)
    kept = {"next_index", "last_seen_timestamp_global"} if isinstance(event, control.JoinSuccess) else set()
    assert set(re.findall(r'"(\w+)":null', delivery.text)) == kept
    assert None not in delivery.payload.values()


def test_what_clients_compare_with_null_is_there() -> None:
    somebody = control.ControlData(
        display_name="Bob",
        role="user",
        participation_kind="user",
        hand_is_up=False,
        hand_updated_at="2026-03-01T09:30:00.123Z",
        joined_at="2026-03-01T09:30:00.123Z",
    )
    for event in (
        control.Joined(id=ParticipantId("bob"), control=somebody),
        control.Update(id=ParticipantId("bob"), control=somebody),
    ):
        assert Delivery(event, AT).text.count('"left_at":null') == 1
        assert Delivery(event, AT).payload["control"].items() >= {"left_at": None}.items()


def test_payload_and_text_say_the_same() -> None:
    for event in EMPTY_HANDED:
        delivery = Delivery(event, AT)
        assert json.loads(delivery.text)["payload"] == delivery.payload


def test_its_json_is_made_once() -> None:
    delivery = Delivery(echo.Pong(), AT)
    assert delivery.text is delivery.text
    assert delivery.payload is delivery.payload


def test_a_token_is_not_in_its_repr() -> None:
    delivery = Delivery(livekit.PopoutStreamAccessToken(token="eyJ.secret"), AT)
    assert repr(delivery) == "Delivery(livekit/popout_stream_access_token)"


def test_errors_of_the_frame_are_messages_errors_with_their_code() -> None:
    error = refused("{")
    assert isinstance(error, MessageError)
    assert str(error) == "invalid_json"

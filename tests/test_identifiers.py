from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signaling.identifiers import (
    BreakoutId,
    ParticipantId,
    RoomId,
    livekit_room,
    parse_breakout_id,
    parse_participant_id,
    parse_room_id,
    popout_identity,
)

Parser = Callable[[str], str]

UUID = "9d2b7a4e-3f10-4c55-8a6b-0123456789ab"
TEXTUAL_FORMS = [
    "9d2b7a4e-3f10-4c55-8a6b-0123456789ab",
    "9D2B7A4E-3F10-4C55-8A6B-0123456789AB",
    "9d2b7a4e3f104c558a6b0123456789ab",
    "9D2B7A4E3F104C558A6B0123456789AB",
    "{9d2b7a4e-3f10-4c55-8a6b-0123456789ab}",
    "{9D2B7A4E-3F10-4C55-8A6B-0123456789AB}",
    "urn:uuid:9d2b7a4e-3f10-4c55-8a6b-0123456789ab",
    "urn:uuid:9D2B7A4E-3F10-4C55-8A6B-0123456789AB",
    "URN:UUID:9d2b7a4e-3f10-4c55-8a6b-0123456789ab",
    "Urn:Uuid:9D2b7A4e-3f10-4C55-8a6b-0123456789aB",
]

of_every_kind = pytest.mark.parametrize("parse", [parse_participant_id, parse_room_id, parse_breakout_id])
of_rooms = pytest.mark.parametrize("parse", [parse_room_id, parse_breakout_id])


@of_every_kind
@pytest.mark.parametrize("text", TEXTUAL_FORMS)
def test_a_uuid_in_any_textual_form_is_one_id(parse: Parser, text: str) -> None:
    assert parse(text) == UUID


@of_every_kind
@pytest.mark.parametrize(
    "text", ["a", "Alice", "alice@example.org", "A-Z_0.9", "-", "...", ".a", "1" * 127, "popout3", "a-popout"]
)
def test_an_ordinary_id_stays_as_it_is(parse: Parser, text: str) -> None:
    assert parse(text) == text


@of_every_kind
@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 128,
        "a#b",
        "#",
        "a b",
        " alice",
        "alice\n",
        "alice\x00",
        "ali/ce",
        "älice",
        "alic\u0435",
        "\u0661",
        "{9d2b7a4e3f104c558a6b0123456789ab",
        "{9d2b7a4e-3f10-4c55-8a6b-0123456789ab",
        "urn:uu\u0131d:9d2b7a4e-3f10-4c55-8a6b-0123456789ab",
        "\ud800",
    ],
)
def test_anything_else_is_refused_without_being_repeated(parse: Parser, text: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 127 characters of A-Z a-z 0-9") as caught:
        parse(text)
    assert not text or f"{text!r}" not in str(caught.value)


@of_every_kind
@pytest.mark.parametrize("text", [".", ".."])
def test_what_means_something_else_in_a_path_is_refused(parse: Parser, text: str) -> None:
    with pytest.raises(ValueError, match="which no URL reaches"):
        parse(text)


def test_a_participant_id_may_hold_colons() -> None:
    assert parse_participant_id("sip:+49".replace("+", "")) == "sip:49"


@of_rooms
def test_a_rooms_id_holds_no_colon(parse: Parser) -> None:
    with pytest.raises(ValueError, match="must be 1 to 127 characters"):
        parse("main:breakout")


def test_nobody_is_called_controller() -> None:
    with pytest.raises(ValueError, match="is reserved"):
        parse_participant_id("controller")


@pytest.mark.parametrize("text", ["Controller", "controller2", "the-controller"])
def test_what_only_resembles_the_reserved_id_is_free(text: str) -> None:
    assert parse_participant_id(text) == text


@of_rooms
def test_a_room_may_be_called_controller(parse: Parser) -> None:
    assert parse("controller") == "controller"


@pytest.mark.parametrize(
    "text", ["bob-popout3", "-popout3", "bob-popout0", "bob-popout007", "bob-popout1-popout2", f"{UUID}-popout1"]
)
def test_nobody_is_called_like_a_popout(text: str) -> None:
    with pytest.raises(ValueError, match="must not end like a popout's identity"):
        parse_participant_id(text)


@pytest.mark.parametrize("text", ["bob-popout", "bob-popout3x", "bob-popout3-", "bobpopout3", "bob-popout-3"])
def test_what_only_resembles_a_popout_is_free(text: str) -> None:
    assert parse_participant_id(text) == text


@of_rooms
def test_a_room_may_be_called_like_a_popout(parse: Parser) -> None:
    assert parse("bob-popout3") == "bob-popout3"


def test_livekit_calls_the_main_room_like_the_meeting() -> None:
    assert livekit_room(RoomId("board"), None) == "board"


def test_livekit_calls_a_breakout_by_both_names() -> None:
    assert livekit_room(RoomId("board"), BreakoutId("left")) == "board:left"


def test_a_popout_is_named_after_its_owner() -> None:
    assert popout_identity(ParticipantId("bob"), 3) == "bob-popout3"


@settings(deadline=None)
@given(text=st.text(max_size=140) | st.text(alphabet="abcdef0123456789-{}:urnidpot#", max_size=50))
def test_what_was_parsed_once_parses_to_itself(text: str) -> None:
    for parse in (parse_participant_id, parse_room_id, parse_breakout_id):
        try:
            parsed = parse(text)
        except ValueError:
            continue
        assert parse(parsed) == parsed
        assert "#" not in parsed


@settings(deadline=None)
@given(
    room=st.from_regex(r"(?!\.{1,2}\Z)[A-Za-z0-9._@-]{1,9}", fullmatch=True),
    other=st.from_regex(r"(?!\.{1,2}\Z)[A-Za-z0-9._@-]{1,9}", fullmatch=True),
    breakout=st.from_regex(r"(?!\.{1,2}\Z)[A-Za-z0-9._@-]{1,9}", fullmatch=True),
)
def test_no_two_rooms_have_one_livekit_name(room: str, other: str, breakout: str) -> None:
    names = {
        livekit_room(parse_room_id(meeting), None if inner is None else parse_breakout_id(inner))
        for meeting in (room, other)
        for inner in (None, breakout)
    }
    assert len(names) == (2 if room == other else 4)

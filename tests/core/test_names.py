import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling import InvalidParticipant, Participant
from signaling.core.names import _LOOKED_AT, display_name
from signaling.identifiers import BreakoutId, ParticipantId

BOB = ParticipantId("bob")


def shown(text: str) -> str:
    return Participant(BOB, display_name=text).display_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Bob", "Bob"),
        ("  Bob B.\n", "Bob B."),
        ("Bob\nB.\r\t", "BobB."),
        ("Bob\u2028\u2029", "Bob"),
        ("\u00a0Bob\u3000", "Bob"),
        ("\u200bB\u200co\u200db\ufeff", "Bob"),
        ("\u202eboB\u202c", "boB"),
        ("\u2066Bob\u2069", "Bob"),
        ("Bob\x00\x1b\x7f\x9f", "Bob"),
        ("\ud83dBob\udc00", "Bob"),
        ("\u3164Bob\u115f\u1160\uffa0\u2800", "Bob"),
        ("\U000e0041Bob\ufe0f\U000e0100", "Bob"),
        ("Zoë 李雷 Ω 😀", "Zoë 李雷 Ω 😀"),
        ("n" * 100, "n" * 100),
        ("n" * 101, "n" * 100),
        ("\u200b" * 100 + "Bob", "Bob"),
        ("n" * 99 + "  Bob", "n" * 99),
        ("", "bob"),
        (" \t\n", "bob"),
        ("\u200b\ufeff", "bob"),
        ("\u3164", "bob"),
        ("\u2800 \u2800", "bob"),
        ("\u200b" * _LOOKED_AT + "Bob", "bob"),
    ],
)
def test_what_is_shown_of_a_name(text: str, name: str) -> None:
    assert shown(text) == name


def test_every_character_of_these_kinds_is_taken_out() -> None:
    left = [
        f"U+{code:04X}"
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and display_name(chr(code), "") != ""
    ]
    assert left == []


def test_no_letter_digit_or_mark_is_taken_out_but_the_blank_ones() -> None:
    blank = {0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, 0x034F, 0x180F, 0x16FE4, *range(0x180B, 0x180E)}
    blank |= {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    # The Egyptian damage and sign modifiers stand right after the format controls, and are nothing by themselves.
    blank |= {0x13440, *range(0x13447, 0x13456)}
    taken = {
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] in "LNM" and display_name(chr(code), "") == ""
    }
    assert taken <= blank


def test_a_long_id_in_the_place_of_a_name_is_cut_too() -> None:
    assert Participant(ParticipantId("b" * 127)).display_name == "b" * 100


@given(st.text(st.characters(codec=None)))
def test_whatever_somebody_is_called_they_are_called_something(text: str) -> None:
    name = shown(text)
    assert 1 <= len(name) <= 100
    assert name == name.strip()
    assert shown(name) == name
    name.encode()


def test_whoever_keeps_their_room_enters_no_other() -> None:
    with pytest.raises(InvalidParticipant, match="bob: whoever keeps their room"):
        Participant(BOB, breakout=BreakoutId("red"), keeps_room=True)

from dataclasses import replace

import pytest

from signaling.core.changes import Banned, Departed, Held, Restricted, Revoked
from signaling.core.commands import AnyCommand
from signaling.core.decisions import Decision, decide
from signaling.core.references import people, person
from signaling.core.state import Came
from signaling.identifiers import ParticipantId
from signaling.messages import livekit, moderation
from tests.core.meetings import ALICE, AT, BOB, CAROL, COMMAND, MAIN, MEETING, MICROPHONE, changed, present

UUID = ParticipantId("0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10")
LOUD = ParticipantId("0B1F9F6E-6A3C-4B8E-9C53-8D5F1F7F2A10")
FORMS = (UUID, LOUD, f"{{{UUID}}}", f"urn:uuid:{UUID}", UUID.replace("-", ""))
PHONE = ParticipantId("sip_+4930 #1")
ONLY = frozenset({LOUD})


@pytest.mark.parametrize("name", FORMS)
def test_who_is_called_nothing_else_is_known_by_any_form_of_a_uuid(name: str) -> None:
    assert person(name, MEETING) == UUID


def test_names_collapse_to_people() -> None:
    named = ["zoe", *FORMS, "bob", "zoe", "Bob", PHONE]
    assert people(named, MEETING) == {"0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10", "Bob", "bob", PHONE, "zoe"}


def test_whoever_is_called_just_that_comes_first() -> None:
    assert person(LOUD, MEETING, {LOUD: present(LOUD)}) == LOUD
    assert person(UUID, MEETING, {LOUD: present(LOUD)}) == UUID


@pytest.mark.parametrize(
    "change",
    [
        Departed(LOUD, AT, "kicked"),
        Banned(ONLY),
        Revoked(ONLY, MICROPHONE),
        Held(ONLY, frozenset({MICROPHONE}), AT + 5),
        Restricted(MICROPHONE, ONLY),
    ],
)
def test_also_when_they_have_been_here_and_are_gone(change: Departed) -> None:
    assert person(LOUD, changed(MEETING, change)) == LOUD
    assert person(LOUD.replace("A", "a"), changed(MEETING, change)) == UUID


def test_also_when_it_is_known_with_what_they_came() -> None:
    assert person(LOUD, replace(MEETING, came={MAIN: {LOUD: Came("PA_1", frozenset())}})) == LOUD


COMMANDS: list[AnyCommand] = [
    livekit.ForceMute(participants=(PHONE,)),
    moderation.Mute(participants=(PHONE,)),
    moderation.Mute(participants=(PHONE,), hold_s=5),
    moderation.Allow(source="microphone", participants=(PHONE,)),
    moderation.Disallow(source="microphone", participants=(PHONE,)),
    moderation.Stop(source="microphone", participants=(PHONE,)),
    moderation.Kick(participants=(PHONE,)),
    moderation.AskToUnmute(participants=(PHONE,)),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_whoever_is_told_of_can_be_named(command: AnyCommand) -> None:
    decision = decide(MEETING, ALICE, command, now=AT, command_id=COMMAND, strangers={PHONE: present(PHONE)})
    assert isinstance(decision, Decision)
    assert decision.targets == {PHONE}
    assert not decision.unknown
    without = decide(MEETING, ALICE, command, now=AT, command_id=COMMAND)
    assert isinstance(without, Decision)
    assert not without.targets
    assert without.unknown == {PHONE}


def test_whoever_is_told_of_can_be_spared_and_listed() -> None:
    everyone = moderation.Mute(everyone_except=(PHONE, BOB))
    here = {PHONE: present(PHONE), ParticipantId("eve"): present("eve")}
    decision = decide(MEETING, ALICE, everyone, now=AT, command_id=COMMAND, strangers=here)
    assert isinstance(decision, Decision)
    assert decision.targets == {CAROL, ParticipantId("eve")}
    assert decision.exempt == {ALICE, BOB, PHONE}
    for command in (
        moderation.Restrict(source="microphone", allowed=(PHONE,)),
        livekit.EnableMicrophoneRestrictions(unrestricted_participants=(PHONE,)),
    ):
        listing = decide(MEETING, ALICE, command, now=AT, command_id=COMMAND)
        assert isinstance(listing, Decision)
        assert listing.changes == (Restricted(MICROPHONE, frozenset({PHONE})),)

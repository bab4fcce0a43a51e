import pytest

from signaling.core.participants import ALL_SOURCES, Kind, Participant, Role
from signaling.errors import InvalidParticipant
from signaling.identifiers import ParticipantId

BOB = ParticipantId("bob")


@pytest.mark.parametrize("kind", [Kind.GUEST, Kind.SIP])
def test_nobody_of_kind_guest_or_sip_is_a_moderator(kind: Kind) -> None:
    with pytest.raises(InvalidParticipant, match=f"bob: nobody of kind {kind} is a moderator"):
        Participant(BOB, role=Role.MODERATOR, kind=kind)


@pytest.mark.parametrize("kind", [Kind.USER, Kind.RECORDER])
def test_others_may_be(kind: Kind) -> None:
    assert Participant(BOB, role=Role.MODERATOR, kind=kind).role is Role.MODERATOR


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("role", [Role.GUEST, Role.USER])
def test_everybody_may_be_something_else(kind: Kind, role: Role) -> None:
    assert Participant(BOB, role=role, kind=kind).kind is kind


def test_the_wire_has_these_names() -> None:
    assert [*Role] == ["guest", "user", "moderator"]
    assert [*Kind] == ["user", "guest", "sip", "recorder"]


def test_sources_are_in_livekits_order() -> None:
    assert ALL_SOURCES == ("camera", "microphone", "screen_share", "screen_share_audio")

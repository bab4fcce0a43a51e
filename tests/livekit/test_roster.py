"""A list of participants, read anew only where it says something new."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from livekit.protocol import models
from livekit.protocol.room import ListParticipantsResponse

from signaling.core.participants import Source
from signaling.identifiers import LiveKitRoom
from signaling.livekit.roster import LastList, Listed, presence_of

ROOM = LiveKitRoom("standup")
State = models.ParticipantInfo.State


def person(identity: str, state: int = State.ACTIVE, **fields: object) -> models.ParticipantInfo:
    return models.ParticipantInfo(sid=f"PA_{identity}", identity=identity, state=state, **fields)  # type: ignore[arg-type]  # a number of it


def answer(*people: models.ParticipantInfo) -> Listed:
    return Listed.FromString(ListParticipantsResponse(participants=people).SerializeToString())


def permissions() -> st.SearchStrategy[models.ParticipantPermission]:
    flags = dict.fromkeys(("can_publish", "can_subscribe", "hidden", "recorder"), st.booleans())
    sources = st.lists(st.integers(0, 7))
    return st.builds(models.ParticipantPermission, can_publish_sources=sources, **flags)


@st.composite
def people(draw: st.DrawFn) -> list[models.ParticipantInfo]:
    """Of a few, each in one of several ways."""
    tracks = st.builds(
        models.TrackInfo,
        sid=st.text(max_size=3),
        source=st.integers(0, 4),
        muted=st.booleans(),
        mime_type=st.sampled_from(["", "audio/red", "video/VP8"]),
        name=st.sampled_from(["", "synthesized-microphone"]),
    )
    identities = draw(st.lists(st.sampled_from("abcdé"), unique=True))
    return [
        person(
            identity,
            draw(st.sampled_from(State.values())),
            permission=draw(permissions()),
            kind=draw(st.sampled_from(models.ParticipantInfo.Kind.values())),
            tracks=draw(st.lists(tracks, max_size=2)),
            joined_at=draw(st.integers(0, 3)),
            joined_at_ms=draw(st.integers(0, 3)),
            metadata=draw(st.sampled_from(["", "x" * 200])),
        )
        for identity in identities
    ]


@given(lists=st.lists(people(), min_size=1, max_size=4))
def test_whatever_was_listed_before_all_is_read_as_if_it_were_new(lists: list[list[models.ParticipantInfo]]) -> None:
    last = LastList(ROOM)
    for listed in (*lists, *lists):
        here = tuple(presence_of(ROOM, info) for info in listed if info.state != State.DISCONNECTED)
        assert last.read(answer(*listed)) == here


def test_who_is_listed_again_is_the_same_object_and_who_is_listed_differently_is_another() -> None:
    last = LastList(ROOM)
    bob, carol = last.read(answer(person("bob"), person("carol")))
    (again, other) = last.read(answer(person("bob"), person("carol", is_publisher=True)))
    assert again is bob
    assert other is not carol
    assert other == carol


def test_only_the_last_list_is_known() -> None:
    last = LastList(ROOM)
    last.read(answer(person("bob"), person("carol"), person("dave", State.DISCONNECTED)))
    assert len(last._known) == 3
    last.read(answer(person("carol")))
    assert [presence and presence.identity for presence in last._known.values()] == ["carol"]
    assert last.read(answer()) == ()
    assert last._known == {}


def test_people_with_the_same_permission_share_it() -> None:
    permission = models.ParticipantPermission(can_publish=True, can_publish_sources=[models.MICROPHONE])
    bob, carol = LastList(ROOM).read(
        answer(person("bob", permission=permission), person("carol", permission=permission))
    )
    assert bob.permission is carol.permission
    assert bob.permission.allowed() == (Source.MICROPHONE,)


@pytest.mark.parametrize("written", [b"\xff", b"\x0a\x05ab", b"\x12\x01\xff"], ids=["tag", "end", "text"])
def test_somebody_who_cannot_be_read_spoils_the_list_and_not_what_was_known(written: bytes) -> None:
    last = LastList(ROOM)
    (bob,) = last.read(answer(person("bob")))
    with pytest.raises(DecodeError):
        last.read(Listed(participants=[person("carol").SerializeToString(), written]))
    assert last.read(answer(person("bob")))[0] is bob


def test_what_a_newer_livekit_adds_to_the_answer_is_passed_over() -> None:
    added = b"\x12\x03new" + ListParticipantsResponse(participants=[person("bob")]).SerializeToString() + b"\x18\x01"
    (bob,) = LastList(ROOM).read(Listed.FromString(added))
    assert bob.identity == "bob"

"""Records and audit entries as they are kept."""

import itertools
import json
import timeit
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticSerializationError

from signaling.core.announcements import Announcement, Everyone, Only
from signaling.core.applying import apply
from signaling.core.changes import (
    Asked,
    Banned,
    Change,
    ConnectionLost,
    Ended,
    Entered,
    Granted,
    Held,
    MutesNoted,
    PresenterSet,
    Restricted,
    Revoked,
    RoleGiven,
)
from signaling.core.commands import (
    AnyCommand,
    Bypass,
    ChangeRole,
    Depart,
    DepartUnlessBack,
    End,
    EndIfEmpty,
    Enter,
    Expire,
    Extend,
    LoseConnections,
    Move,
    NoteCame,
    NoteRoomDeleted,
    NoteUnmutedAgain,
    Reconnect,
)
from signaling.core.decisions import Decision, decide
from signaling.core.effects import Effect, Finding, Mute, Presence, Stop
from signaling.core.participants import Kind, Role, Source
from signaling.core.state import Block, BlockCause, Came, MeetingState, Member, Setting, UnmuteRequest
from signaling.errors import StoreError
from signaling.identifiers import CONTROLLER, BreakoutId, CommandId, ParticipantId, RoomId, SessionId, TrackSid
from signaling.messages import control, livekit, moderation
from signaling.messages.moderation import Outcome
from signaling.stores.contract import AuditEntry, Entry, Origin, Record, Staged, Unstaged
from signaling.stores.serialization import (
    _events,
    _kept_dataclass,
    _message,
    dump_audit_entry,
    dump_entry,
    dump_record,
    load_audit_entry,
    load_entry,
    load_record,
)
from tests.core.meetings import ALICE, AT, BOARD, BOB, CAROL, DAVE, MAIN, MEETING, conclude, present, somebody
from tests.core.test_rules import MEETINGS, STRANGER

# JSON has no other numbers, and all of ours are times.
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(
    Outcome,
    st.builds(Outcome, participant=st.sampled_from([ALICE, BOB, CAROL]), outcome=..., error=...),
)

GRANTED = Decision(CommandId("c-1"), "grant", ALICE, 1_000.0, (Granted(frozenset({BOB})),))


def kept(record: Record) -> Any:  # noqa: ANN401 - whatever JSON holds
    return json.loads(dump_record(record))


def refused(data: bytes) -> str:
    with pytest.raises(StoreError) as error:
        load_record(data)
    assert error.value.__cause__ is None, "the cause holds what people are called"
    assert error.value.__context__ is None
    return str(error.value)


@pytest.mark.parametrize("change", get_args(Change))
def test_every_change_comes_back(change: type[Change]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(st.from_type(change))
    def comes_back(value: Change) -> None:
        record = Record(1, MEETING, replace(GRANTED, changes=(value, value)))
        assert load_record(dump_record(record)) == record

    comes_back()


@pytest.mark.parametrize("effect", get_args(Effect))
def test_every_effect_comes_back(effect: type[Effect]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(st.from_type(effect))
    def comes_back(value: Effect) -> None:
        record = Record(1, MEETING, replace(GRANTED, effect=value))
        assert load_record(dump_record(record)) == record

    comes_back()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.builds(Record, revision=st.integers(0, 2**62), state=..., staged=...))
def test_every_record_comes_back(record: Record) -> None:
    assert load_record(dump_record(record)) == record


DECIDED: list[AnyCommand] = [
    Enter(somebody(DAVE)),
    Extend(BOB),
    Depart(BOB),
    DepartUnlessBack(frozenset({BOB}), AT),
    LoseConnections(frozenset({BOB}), AT + 10),
    Reconnect({BOB: SessionId("s-2")}),
    Move(BOB, BreakoutId("red")),
    ChangeRole(BOB, Role.MODERATOR),
    End(),
    EndIfEmpty(AT),
    NoteRoomDeleted(MAIN),
    Expire(AT),
    Bypass(BOB, Source.CAMERA, TrackSid("TR_1"), "audio"),
    NoteUnmutedAgain(frozenset({BOB})),
    NoteCame({MAIN: {STRANGER: Came("PA_1", frozenset({Source.CAMERA}))}}),
    livekit.ForceMute(participants=(BOB, STRANGER)),
    livekit.GrantScreenSharePermission(participants=(BOB, STRANGER)),
    livekit.RevokeScreenSharePermission(participants=(BOB, STRANGER)),
    livekit.EnableMicrophoneRestrictions(unrestricted_participants=(BOB,)),
    livekit.DisableMicrophoneRestrictions(),
    livekit.RequestPopoutStreamAccessToken(),
    control.GrantModeratorRole(target=BOB),
    control.RevokeModeratorRole(target=BOB),
    control.RaiseHand(),
    control.LowerHand(),
    moderation.Mute(participants=(BOB, STRANGER)),
    moderation.Mute(everyone_except=(BOB,)),
    moderation.Mute(everyone_except=(), hold_s=5),
    moderation.Restrict(source="microphone", allowed=(BOB,), expires_in_s=5),
    moderation.Unrestrict(source="camera"),
    moderation.Disallow(source="camera", participants=(BOB, STRANGER)),
    moderation.Allow(source="camera", participants=(BOB, STRANGER)),
    moderation.Stop(source="screen_share", participants=(BOB, STRANGER)),
    moderation.SetPresenter(participant=BOB),
    moderation.SetPresenter(),
    moderation.AskToUnmute(participants=(BOB, STRANGER)),
    moderation.AnswerUnmuteRequest(request_id="c-1", accept=True),
    moderation.Kick(participants=(BOB, STRANGER), ban=True),
    moderation.Unban(participants=(CAROL,)),
    moderation.Undo(command_id="c-1"),
]


SEEN = {Mute: Finding.MUTED, Stop: Finding.STOPPED}


@pytest.mark.parametrize("command", DECIDED, ids=repr)
@pytest.mark.parametrize("strangers", [{}, {STRANGER: present(STRANGER)}], ids=["", "a stranger"])
def test_whatever_is_decided_and_comes_of_it_comes_back(
    command: AnyCommand, strangers: dict[ParticipantId, Presence]
) -> None:
    microphone = frozenset({Source.MICROPHONE})
    until = AT - 1
    kept_from_bob = (Held(frozenset({BOB}), microphone, until), Restricted(Source.CAMERA, frozenset({BOB}), until))
    asked = Asked("c-1", UnmuteRequest(BOB, ALICE, AT + 60), until)
    busy = apply(MEETING, (Banned(frozenset({CAROL})), PresenterSet(BOB), MutesNoted({BOB: microphone}, until)))
    later = apply(apply(busy, kept_from_bob, command_id=CommandId("c-1")), (asked,))
    back = Entered(BOB, replace(later.members[BOB], session=SessionId("s-2")))
    away = apply(later, (back, ConnectionLost(frozenset({BOB}), AT), RoleGiven(BOB, Role.MODERATOR)))
    empty = replace(MEETING, members={}, empty_since=AT)
    is_decided = False
    for state, sender in itertools.product((MEETING, busy, later, away, empty), (CONTROLLER, ALICE, BOB)):
        decision = decide(state, sender, command, now=AT, command_id=CommandId("c"), strangers=strangers)
        if not isinstance(decision, Decision):
            continue
        is_decided = True
        finding = SEEN.get(type(decision.effect), Finding.CHANGED)
        concluded = conclude(state, decision, {BOB: finding})
        for record in (Record(1, state, decision), Record(2, concluded.state)):
            assert load_record(dump_record(record)) == record
        told = tuple(concluded.announcements)
        entry = Entry(BOARD, 2, AT, concluded.changes, staging=Staged(decision), announcements=told)
        assert load_entry(dump_entry(entry)) == entry
    assert is_decided


def test_every_command_is_among_them() -> None:
    assert {type(command) for command in DECIDED} == set(get_args(AnyCommand))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=MEETINGS)
def test_every_meeting_that_there_can_be_comes_back(state: MeetingState) -> None:
    assert load_record(dump_record(Record(1, state))) == Record(1, state)


def test_an_entry_is_kept_with_what_it_told() -> None:
    told = Announcement(Only(frozenset({BOB})), moderation.Muted(moderator=ALICE, sources=("microphone",)))
    entry = Entry(
        BOARD,
        7,
        5.0,
        GRANTED.changes,
        staging=Unstaged(),
        announcements=(told,),
        origin=Origin(SessionId("s"), 2**64 - 1),
    )
    data = json.loads(dump_entry(entry))
    assert load_entry(dump_entry(entry)) == entry
    assert data["format"] == 1
    assert data["changes"] == [{"change": "granted", "participants": ["bob"], "source": "screen_share"}]
    assert data["staging"] == {"staging": "unstaged"}
    assert data["announcements"] == [
        {
            "audience": {"audience": "only", "participants": ["bob"]},
            "event": {
                "event": "livekit_moderation/muted",
                "payload": {"message": "muted", "moderator": "alice", "sources": ["microphone"]},
            },
        }
    ]
    assert data["origin"] == {"session": "s", "transaction_id": 2**64 - 1}


@pytest.mark.parametrize("transaction_id", [None, 7, "7", "seven"])
def test_a_transaction_id_stays_a_number_or_a_string(transaction_id: int | str | None) -> None:
    entry = Entry(BOARD, 1, 5.0, origin=Origin(SessionId("s"), transaction_id))
    assert load_entry(dump_entry(entry)).origin == entry.origin


def test_every_event_has_a_name_of_its_own() -> None:
    names = [(event.namespace, _message(event)) for event in _events()]
    assert len(set(names)) == len(names) > 25


def test_a_class_that_is_no_event_of_the_protocol_is_not_kept() -> None:
    class Waved(control.ControlEvent):
        message: Literal["hand_waved"] = "hand_waved"

    with pytest.raises(PydanticSerializationError):
        dump_entry(Entry(BOARD, 1, 5.0, announcements=(Announcement(Everyone(), Waved()),)))


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (b"control/hand_raised", b"control/hand_waved", "announcements.0.event"),
        (b'"audience":"only"', b'"audience":"nobody"', "announcements.0.audience"),
        (b'"change":"granted"', b'"change":"promised"', "changes.0"),
        (b'"staging":"staged"', b'"staging":"planned"', "staging"),
        (b'"revision":7', b'"revision":"7 of Bob Secret"', "revision"),
    ],
)
def test_what_an_entry_says_that_nobody_knows_is_refused_by_its_place(old: bytes, new: bytes, where: str) -> None:
    told = Announcement(Only(frozenset({BOB})), control.HandRaised())
    data = dump_entry(Entry(BOARD, 7, 5.0, GRANTED.changes, staging=Staged(GRANTED), announcements=(told,)))
    assert old in data
    with pytest.raises(StoreError, match=f"^no Entry of ours: {where}") as error:
        load_entry(data.replace(old, new))
    assert "Secret" not in str(error.value)
    assert error.value.__cause__ is error.value.__context__ is None


def test_what_is_not_of_its_type_is_not_kept() -> None:
    people: Any = {BOB}
    with pytest.raises(PydanticSerializationError, match="Expected `frozenset"):
        dump_record(Record(1, MEETING, replace(GRANTED, targets=people)))


@settings(max_examples=50, deadline=None)
@given(st.from_type(AuditEntry))
def test_every_audit_entry_comes_back(entry: AuditEntry) -> None:
    assert load_audit_entry(dump_audit_entry(entry)) == entry


def test_changes_of_the_same_shape_keep_their_names() -> None:
    both = (Granted(frozenset({BOB})), Revoked(frozenset({BOB})), Ended())
    assert kept(Record(1, MEETING, replace(GRANTED, changes=both)))["staged"]["changes"] == [
        {"change": "granted", "participants": ["bob"], "source": "screen_share"},
        {"change": "revoked", "participants": ["bob"], "source": "screen_share"},
        {"change": "ended"},
    ]


def test_sets_are_kept_in_order() -> None:
    people = [ParticipantId(f"p{number:03}") for number in range(100)]
    state = MeetingState(
        BOARD,
        listed={Source.MICROPHONE: frozenset(people)},
        blocks=frozenset(Block(who, source) for who in people for source in Source),
        departed=frozenset(people),
    )
    dumped = kept(Record(1, state))["state"]
    assert dumped["departed"] == dumped["listed"]["microphone"] == people
    assert dumped["blocks"] == [
        {"participant": who, "source": source, "cause": "moderator"}
        for who in people
        for source in sorted(Source, key=str)
    ]


def test_the_format_is_kept_first() -> None:
    assert dump_record(Record(1, MEETING)).startswith(b'{"format":1,')
    entry = AuditEntry(CommandId("c-1"), 1.0, ALICE, "force_mute")
    assert dump_audit_entry(entry).startswith(b'{"format":1,')


def test_a_field_with_a_default_may_be_missing() -> None:
    data = b'{"format": 1, "revision": 3, "state": {"room": "board"}}'
    assert load_record(data) == Record(3, MeetingState(BOARD))


def test_a_block_from_before_there_were_causes_is_a_moderators() -> None:
    data = (
        b'{"format": 1, "revision": 3, "state": {"room": "board", "blocks": '
        b'[{"participant": "bob", "source": "camera"}]}}'
    )
    assert load_record(data).state.blocks == {Block(BOB, Source.CAMERA, BlockCause.MODERATOR)}


def test_a_member_from_before_hands_were_in_order_never_raised_theirs() -> None:
    member = b'{"role": "user", "kind": "user", "joined_at": 5.0, "hand_is_up": true}'
    data = b'{"format": 1, "revision": 3, "state": {"room": "board", "members": {"bob": ' + member + b"}}}"
    kept = load_record(data).state.members[BOB]
    assert (kept.hand_is_up, kept.hand_updated_at) == (True, None)


@pytest.mark.parametrize("setting", get_args(Setting))
def test_every_setting_that_can_be_undone_comes_back(setting: type[Setting]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(st.from_type(setting))
    def comes_back(value: Setting) -> None:
        record = Record(1, replace(MEETING, undoable={CommandId("c-1"): (value, value), CommandId("c-2"): ()}))
        assert load_record(dump_record(record)) == record
        assert [*load_record(dump_record(record)).state.undoable] == ["c-1", "c-2"], "the oldest are forgotten first"

    comes_back()


def test_an_unknown_format_is_named() -> None:
    newer = dump_record(Record(1, MEETING)).replace(b'"format":1', b'"format":2')
    assert refused(newer) == "Record of format 2, and this version knows 1 only"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no Record of ours: Invalid JSON"),
        (b"[]", "no Record of ours: Input should be an object"),
        (b"{}", "no Record of ours: format: Field required"),
        (b'{"format": 1}', "no Record of ours: revision: Field required"),
        (b'{"format": 1, "revision": 1, "state": {"version": 1}}', "no Record of ours: state.room: Field required"),
    ],
)
def test_what_is_no_record_is_refused(data: bytes, reason: str) -> None:
    assert refused(data).startswith(reason)


def test_an_unknown_change_is_refused() -> None:
    data = dump_record(Record(1, MEETING, GRANTED)).replace(b'"granted"', b'"promised"')
    assert "staged.changes.0" in refused(data)


def test_a_refusal_repeats_no_names() -> None:
    data = dump_record(Record(1, MEETING)).replace(b'"Bob"', b'["Bob Secret"]')
    assert "Secret" not in refused(data)


def test_a_field_that_hides_the_name_of_a_change_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Changed:
        change: str

    with pytest.raises(TypeError, match="Changed has a field called change"):
        _kept_dataclass(Changed, {"change": "changed"})


def test_a_meeting_of_300_is_dumped_in_well_under_a_millisecond() -> None:
    members = {
        ParticipantId(f"{number:08}-1111-4111-8111-111111111111"): Member(Role.USER, Kind.USER, 1e9 + 0.25, "Somebody")
        for number in range(300)
    }
    record = Record(1, MeetingState(RoomId("large"), members=members, departed=frozenset(members)))
    dump_record(record)
    # The fastest of many: the others waited for other programs.
    assert min(timeit.repeat(lambda: dump_record(record), number=1, repeat=50)) < 0.001

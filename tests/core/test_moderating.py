"""What section 4 of the protocol says of each command: who may, what is decided, what it came to, who is told."""

import pytest

from signaling.core.announcements import microphone_restrictions
from signaling.core.applying import apply
from signaling.core.changes import Banned, Departed, Held, PutBack
from signaling.core.commands import AnyCommand, Bypass, Depart, Enter, Expire, Extend, LoseConnections, NoteUnmutedAgain
from signaling.core.conclusions import presenters_of
from signaling.core.decisions import Decision, Refusal, decide
from signaling.core.effects import Agree, Expel, Finding, Mute, Stop
from signaling.core.participants import SCREEN_SOURCES, Kind
from signaling.core.policy import publishable
from signaling.core.state import Block, BlockCause, BlockWas, HoldWas, MeetingState, UnmuteRequest
from signaling.identifiers import CONTROLLER, CommandId, ParticipantId, TrackSid
from signaling.messages import livekit, moderation
from signaling.messages.base import rfc3339
from signaling.messages.moderation import (
    Allow,
    AnswerUnmuteRequest,
    AskToUnmute,
    Disallow,
    Kick,
    PermissionsChanged,
    Restrict,
    SetPresenter,
    Unban,
    Undo,
    Unrestrict,
)
from tests.core.meetings import (
    ALICE,
    ALL,
    AT,
    BOB,
    CAMERA,
    CAROL,
    COMMAND,
    DAVE,
    MEETING,
    MICROPHONE,
    RECORDER,
    SCREEN,
    WITHOUT_MICROPHONE,
    WITHOUT_SCREEN,
    actions,
    after,
    conclude,
    concluded,
    decided,
    demote,
    joined,
    left,
    mute,
    noticed,
    outcomes,
    present,
    promote,
    refused,
    somebody,
    told,
)

FORBIDDEN = ("insufficient_permissions", None)
NOTHING = ("nothing_to_do", None)
MIC = frozenset({MICROPHONE})
EVE = ParticipantId("eve")
FEED = ParticipantId("feed")
WITH_RECORDER = joined(MEETING, somebody(RECORDER, kind=Kind.RECORDER))
BEFORE = CommandId("c-before")

FOR_MODERATORS: list[AnyCommand] = [
    moderation.Mute(participants=(BOB,)),
    moderation.Mute(everyone_except=()),
    Restrict(source="camera"),
    Unrestrict(source="camera"),
    Disallow(source="camera", participants=(BOB,)),
    Allow(source="camera", participants=(BOB,)),
    moderation.Stop(source="camera", participants=(BOB,)),
    SetPresenter(participant=DAVE),
    AskToUnmute(participants=(BOB,)),
    Kick(participants=(BOB,)),
    Unban(participants=(BOB,)),
    Undo(command_id="c-1"),
]


def rights(event: object) -> tuple[tuple[str, ...], str, str | None]:
    """What somebody is told of their rights."""
    assert isinstance(event, PermissionsChanged), event
    return event.may_publish, event.cause, event.moderator


@pytest.mark.parametrize("command", FOR_MODERATORS, ids=lambda command: command.action)
def test_whoever_is_no_moderator_may_nothing_of_it(command: AnyCommand) -> None:
    for sender in (BOB, DAVE):
        assert refused(MEETING, sender, command) == FORBIDDEN


@pytest.mark.parametrize("sender", [ALICE, CONTROLLER])
@pytest.mark.parametrize(
    "command", [each for each in FOR_MODERATORS if not isinstance(each, Undo | SetPresenter)], ids=lambda c: c.action
)
def test_moderators_and_the_controller_may_and_every_moderator_is_told(
    sender: ParticipantId, command: AnyCommand
) -> None:
    state = after(MEETING, (ALICE, promote(CAROL)))
    conclusion = concluded(state, sender, command)
    for moderator in (ALICE, CAROL):
        (action,) = actions(conclusion, moderator)
        assert (action.moderator, action.command_id, action.at) == (sender, COMMAND, rfc3339(AT))
        assert action.outcomes == conclusion.outcomes
    assert not actions(conclusion, BOB)


# --- Mutes -------------------------------------------------------------------------------------------------------


def test_mute_names_people_or_everyone() -> None:
    named = decided(MEETING, ALICE, moderation.Mute(participants=(BOB, DAVE), sources=("camera", "microphone")))
    assert named.effect == Mute(frozenset({BOB}), frozenset({CAMERA, MICROPHONE}))
    assert named.unknown == {DAVE}
    assert not named.changes + tuple(named.exempt)


def test_everyone_is_nobody_who_moderates_is_listed_serves_or_sends() -> None:
    state = after(joined(WITH_RECORDER, somebody(DAVE)), (ALICE, promote(CAROL)))
    decision = decided(state, ALICE, moderation.Mute(everyone_except=(BOB, EVE)))
    assert decision.effect == Mute(frozenset({DAVE}), MIC, strangers_but=frozenset({ALICE, BOB, EVE}))
    assert decision.exempt == {ALICE, BOB, CAROL, RECORDER}
    assert outcomes(conclude(state, decision, {DAVE: Finding.MUTED})) == {
        **dict.fromkeys((ALICE, BOB, CAROL, RECORDER), "exempt"),
        DAVE: "muted",
    }
    assert decided(MEETING, CONTROLLER, moderation.Mute(everyone_except=())).targets == {BOB, CAROL}


def test_a_mute_that_holds_keeps_the_source_away() -> None:
    conclusion = concluded(
        MEETING,
        ALICE,
        moderation.Mute(participants=(ALICE, BOB, DAVE), hold_s=60),
        {BOB: Finding.MUTED, ALICE: Finding.NO_TRACK},
    )
    assert decided(MEETING, ALICE, moderation.Mute(participants=(BOB,), hold_s=60)).changes == (
        Held(frozenset({BOB}), MIC, AT + 60),
    )
    assert conclusion.state.holds == {who: {MICROPHONE: AT + 60} for who in (ALICE, BOB)}
    assert publishable(ALICE, conclusion.state) == WITHOUT_MICROPHONE
    assert outcomes(conclusion) == {ALICE: "no_track", BOB: "muted", DAVE: "unknown"}
    assert told(conclusion, BOB) == [livekit.ForceMuted(moderator=ALICE)]
    muted, permissions = noticed(conclusion, BOB)
    assert muted == moderation.Muted(moderator=ALICE, sources=("microphone",))
    assert rights(permissions) == (WITHOUT_MICROPHONE, "hold", ALICE)


def test_a_held_mute_that_failed_is_repaired_later_and_a_mere_one_is_not() -> None:
    for hold_s, repaired in ((None, ()), (60, (BOB,))):
        command = moderation.Mute(participants=(BOB,), hold_s=hold_s)
        conclusion = concluded(MEETING, ALICE, command, {BOB: Finding.UNANSWERED})
        assert (conclusion.error, conclusion.repaired_later) == ("livekit_unavailable", repaired)


def test_only_what_was_silenced_is_told_as_muted() -> None:
    decision = decided(MEETING, ALICE, moderation.Mute(participants=(BOB, CAROL), sources=("camera", "microphone")))
    seen = {BOB: Finding.MUTED, CAROL: Finding.MUTED}
    conclusion = conclude(MEETING, decision, seen, silenced={BOB: frozenset({CAMERA})})
    assert told(conclusion, BOB) == []
    assert noticed(conclusion, BOB) == [moderation.Muted(moderator=ALICE, sources=("camera",))]
    assert noticed(conclusion, CAROL) == [moderation.Muted(moderator=ALICE, sources=())]


def test_both_mutes_tell_both() -> None:
    for command in (mute(BOB), moderation.Mute(participants=(BOB,))):
        conclusion = concluded(MEETING, ALICE, command, {BOB: Finding.MUTED})
        assert told(conclusion, BOB) == [livekit.ForceMuted(moderator=ALICE)]
        assert noticed(conclusion, BOB) == [moderation.Muted(moderator=ALICE, sources=("microphone",))]


def test_whoever_unmutes_themselves_again_is_told_to_moderators_once() -> None:
    state = concluded(MEETING, ALICE, mute(BOB), {BOB: Finding.MUTED}).state
    assert state.mutes[BOB].at == AT
    conclusion = concluded(state, CONTROLLER, NoteUnmutedAgain(frozenset({BOB, CAROL})))
    assert noticed(conclusion, ALICE) == [moderation.UnmutedAgain(participant=BOB)]
    assert noticed(conclusion, BOB) == []
    assert refused(conclusion.state, CONTROLLER, NoteUnmutedAgain(frozenset({BOB}))) == NOTHING


# --- Restrictions ------------------------------------------------------------------------------------------------


def test_a_restriction_of_any_source_may_end_by_itself() -> None:
    decision = decided(MEETING, ALICE, Restrict(source="screen_share", allowed=(BOB, DAVE), expires_in_s=60))
    assert decision.effect == Agree(None, SCREEN_SOURCES)
    state = conclude(MEETING, decision).state
    assert state.restricted == {SCREEN}
    assert state.listed == {SCREEN: {BOB, DAVE}}
    assert state.restricted_until == {SCREEN: AT + 60}


def test_a_restricted_microphone_is_the_one_that_livekit_shows() -> None:
    conclusion = concluded(MEETING, ALICE, Restrict(source="microphone", allowed=(CAROL,)))
    event = livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=(CAROL,))
    assert [told(conclusion, who) for who in (ALICE, BOB, CAROL)] == [[event]] * 3
    assert microphone_restrictions(conclusion.state) == event
    lifted = concluded(conclusion.state, ALICE, Unrestrict(source="microphone"))
    assert told(lifted, BOB) == [livekit.MicrophoneRestrictionsDisabled()]
    assert microphone_restrictions(lifted.state) == livekit.MicrophoneRestrictionsDisabled()


def test_only_those_whose_rights_changed_are_told_and_together_if_alike() -> None:
    conclusion = concluded(WITH_RECORDER, ALICE, Restrict(source="camera", allowed=(CAROL,)))
    assert [rights(event) for event in noticed(conclusion, BOB)] == [(ALL[1:], "restriction", ALICE)]
    assert not [who for who in (ALICE, CAROL, RECORDER) if noticed(conclusion, who)]
    crowd = joined(MEETING, *(somebody(ParticipantId(f"p{number}")) for number in range(20)))
    events = concluded(crowd, ALICE, Restrict(source="camera")).announcements
    assert len([each for each in events if isinstance(each.event, PermissionsChanged)]) == 1


# --- By name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["camera", "microphone"])
def test_who_is_disallowed_by_name_is_blocked_and_told(source: moderation.RestrictableName) -> None:
    conclusion = concluded(MEETING, ALICE, Disallow(source=source, participants=(ALICE, BOB, DAVE)))
    assert outcomes(conclusion) == {ALICE: "revoked", BOB: "revoked", DAVE: "unknown"}
    assert {block.participant for block in conclusion.state.blocks} == {ALICE, BOB}
    assert rights(noticed(conclusion, BOB)[0])[1:] == ("permission", ALICE)
    assert told(conclusion, ALICE) == []
    again = concluded(conclusion.state, ALICE, Disallow(source=source, participants=(BOB,)))
    assert (outcomes(again), noticed(again, BOB)) == ({BOB: "unchanged"}, [])


def test_for_the_screen_it_is_the_command_of_livekit() -> None:
    for ours, theirs in (
        (Allow(source="screen_share", participants=(BOB,)), livekit.GrantScreenSharePermission(participants=(BOB,))),
        (
            Disallow(source="screen_share", participants=(BOB,)),
            livekit.RevokeScreenSharePermission(participants=(BOB,)),
        ),
    ):
        one, other = concluded(MEETING, ALICE, ours), concluded(MEETING, ALICE, theirs)
        assert one.state == other.state
        assert told(one, ALICE) == told(other, ALICE) != []
        assert one.outcomes == other.outcomes


def test_an_allowance_adds_to_the_list_of_a_restricted_microphone_and_everybody_is_told() -> None:
    state = after(MEETING, (ALICE, Restrict(source="microphone")))
    conclusion = concluded(state, ALICE, Allow(source="microphone", participants=(BOB,)))
    assert told(conclusion, CAROL) == [livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=(BOB,))]
    assert outcomes(conclusion) == {BOB: "granted"}
    assert rights(noticed(conclusion, BOB)[0]) == (ALL, "permission", ALICE)
    again = concluded(conclusion.state, ALICE, Allow(source="microphone", participants=(BOB,)))
    assert (told(again, CAROL), outcomes(again)) == ([], {BOB: "unchanged"})


def test_an_allowance_lifts_holds_and_what_a_bypass_blocked() -> None:
    state = after(
        MEETING,
        (ALICE, moderation.Mute(participants=(BOB,), hold_s=60)),
        (CONTROLLER, Bypass(BOB, MICROPHONE, TrackSid("TR_1"), "video")),
    )
    conclusion = concluded(state, ALICE, Allow(source="microphone", participants=(BOB,)))
    assert publishable(BOB, conclusion.state) == ALL
    assert outcomes(conclusion) == {BOB: "granted"}


def test_whoever_is_in_livekit_without_having_joined_may_be_named() -> None:
    commands: list[AnyCommand] = [
        moderation.Mute(participants=(FEED,)),
        Allow(source="camera", participants=(FEED,)),
        Disallow(source="camera", participants=(FEED,)),
        moderation.Stop(source="camera", participants=(FEED,)),
        Kick(participants=(FEED,)),
    ]
    for command in commands:
        for strangers, known in (({FEED: present(FEED)}, {FEED}), ({}, set())):
            decision = decide(MEETING, ALICE, command, now=AT, command_id=COMMAND, strangers=strangers)
            assert not isinstance(decision, Refusal)
            assert decision.targets == known


# --- Stopping ----------------------------------------------------------------------------------------------------


def test_stopping_changes_nothing_of_the_state() -> None:
    decision = decided(MEETING, ALICE, moderation.Stop(source="screen_share", participants=(BOB, CAROL, DAVE)))
    assert decision.effect == Stop(frozenset({BOB, CAROL}), SCREEN_SOURCES)
    conclusion = conclude(MEETING, decision, {BOB: Finding.STOPPED, CAROL: Finding.NO_TRACK})
    assert conclusion.state is MEETING
    assert outcomes(conclusion) == {BOB: "stopped", CAROL: "no_track", DAVE: "unknown"}
    assert outcomes(conclude(MEETING, decision)) == {BOB: "not_connected", CAROL: "not_connected", DAVE: "unknown"}
    failed = conclude(MEETING, decision, {BOB: Finding.REJECTED})
    assert (failed.error, failed.repaired_later) == ("livekit_unavailable", ())


# --- The presenter -----------------------------------------------------------------------------------------------


def test_set_presenter_takes_the_screen_from_everybody_else() -> None:
    conclusion = concluded(WITH_RECORDER, ALICE, SetPresenter(participant=BOB))
    assert outcomes(conclusion) == {ALICE: "restricted", BOB: "granted", CAROL: "restricted", RECORDER: "exempt"}
    assert [rights(event) for event in noticed(conclusion, CAROL)] == [(WITHOUT_SCREEN, "presenter", ALICE)]
    assert noticed(conclusion, BOB) == []
    assert outcomes(concluded(conclusion.state, ALICE, SetPresenter(participant=BOB))) == {
        **dict.fromkeys((ALICE, BOB, CAROL), "unchanged"),
        RECORDER: "exempt",
    }


def test_handing_over_is_one_step() -> None:
    state = after(MEETING, (ALICE, SetPresenter(participant=BOB)))
    conclusion = concluded(state, ALICE, SetPresenter(participant=CAROL))
    assert outcomes(conclusion) == {ALICE: "unchanged", BOB: "restricted", CAROL: "granted"}
    ended = concluded(conclusion.state, ALICE, SetPresenter())
    assert outcomes(ended) == {ALICE: "unrestricted", BOB: "unrestricted", CAROL: "unchanged"}


def test_a_presenter_who_is_blocked_by_name_is_told_so_by_the_outcome() -> None:
    state = after(MEETING, (ALICE, Disallow(source="screen_share", participants=(BOB,))))
    assert outcomes(concluded(state, ALICE, SetPresenter(participant=BOB)))[BOB] == "unchanged"


def test_a_presenter_who_left_while_they_were_being_set_is_none() -> None:
    appointed = decided(MEETING, ALICE, SetPresenter(participant=BOB))
    conclusion = conclude(left(MEETING, BOB), appointed)
    assert conclusion.state.presenter is None
    assert outcomes(conclusion) == {ALICE: "unchanged", BOB: "not_connected", CAROL: "unchanged"}
    still_in_livekit = {BOB: present(BOB)}
    assert outcomes(conclude(left(MEETING, BOB), appointed, present=still_in_livekit))[BOB] == "unchanged"
    assert presenters_of(appointed) == {BOB}
    ended = concluded(after(MEETING, (ALICE, SetPresenter(participant=BOB))), ALICE, SetPresenter())
    undone = decided(ended.state, ALICE, Undo(command_id="c-1"))
    assert presenters_of(undone) == {BOB}
    for makes_nobody in (SetPresenter(), Restrict(source="camera")):
        assert presenters_of(decided(MEETING, ALICE, makes_nobody)) == frozenset()


def test_a_presenter_must_be_here() -> None:
    assert refused(MEETING, ALICE, SetPresenter(participant=DAVE)) == (
        "invalid_command",
        "participant: is not in this meeting",
    )


def test_when_the_presenter_leaves_the_others_are_told_and_nobody_did_it() -> None:
    state = after(MEETING, (ALICE, SetPresenter(participant=BOB)))
    conclusion = concluded(state, BOB, Depart(BOB))
    assert conclusion.state.presenter is None
    assert rights(noticed(conclusion, CAROL)[0]) == (ALL, "presenter", None)


# --- People who are not here -------------------------------------------------------------------------------------


def test_what_is_decided_by_name_about_who_has_left_holds_when_they_come_back() -> None:
    state = after(left(MEETING, BOB), (ALICE, Disallow(source="camera", participants=(BOB, EVE))))
    assert CAMERA not in publishable(BOB, joined(state, somebody(BOB)))
    lifted = concluded(state, ALICE, moderation.Allow(source="camera", participants=(BOB, EVE)))
    assert outcomes(lifted) == {BOB: "granted", EVE: "unknown"}
    assert publishable(BOB, joined(lifted.state, somebody(BOB))) == ALL


# --- Asking to unmute --------------------------------------------------------------------------------------------

ASKED = after(MEETING, (ALICE, Restrict(source="microphone")), (ALICE, AskToUnmute(participants=(BOB,))))


def test_each_is_asked_by_a_request_of_their_own() -> None:
    state = after(joined(MEETING, somebody(DAVE)), (CONTROLLER, LoseConnections(frozenset({DAVE}), AT + 10)))
    conclusion = concluded(state, ALICE, AskToUnmute(participants=(CAROL, BOB, DAVE, EVE)))
    assert outcomes(conclusion) == {BOB: "asked", CAROL: "asked", DAVE: "not_connected", EVE: "unknown"}
    assert noticed(conclusion, BOB) == [moderation.UnmuteRequested(request_id="c-1-1", moderator=ALICE)]
    assert noticed(conclusion, CAROL) == [moderation.UnmuteRequested(request_id="c-1-2", moderator=ALICE)]
    assert noticed(conclusion, DAVE) == []
    assert conclusion.state.unmute_requests["c-1-1"] == UnmuteRequest(BOB, ALICE, AT + 60)
    assert decided(state, ALICE, AskToUnmute(participants=(BOB,))).effect is None, "it needs no LiveKit"


def test_nobody_is_asked_twice_within_ten_seconds_whoever_asks() -> None:
    state = after(ASKED, (ALICE, promote(CAROL)))
    again = AskToUnmute(participants=(BOB,))
    for sender in (ALICE, CAROL, CONTROLLER):
        refusal = decide(state, sender, again, now=AT + 4, command_id=COMMAND)
        assert refusal == Refusal("rate_limit_exceeded", retry_after_s=6)
    assert isinstance(decide(state, CAROL, again, now=AT + 10, command_id=COMMAND), Decision)


def test_whoever_was_asked_just_before_does_not_keep_others_from_being_asked() -> None:
    conclusion = concluded(ASKED, ALICE, AskToUnmute(participants=(BOB, CAROL)))
    assert outcomes(conclusion) == {BOB: "failed", CAROL: "asked"}
    assert [outcome.error for outcome in conclusion.outcomes] == ["rate_limit_exceeded", None]
    assert noticed(conclusion, BOB) == []


YES = AnswerUnmuteRequest(request_id="c-1-1", accept=True)
NO = AnswerUnmuteRequest(request_id="c-1-1", accept=False)


@pytest.mark.parametrize(
    "unreached",
    [
        Enter(somebody(BOB), knows_moderation=False),
        Enter(somebody(BOB, kind=Kind.RECORDER)),
        LoseConnections(frozenset({BOB}), AT + 10),
    ],
)
def test_nobody_counts_as_asked_whom_no_question_reaches(unreached: AnyCommand) -> None:
    conclusion = concluded(after(MEETING, (CONTROLLER, unreached)), ALICE, AskToUnmute(participants=(BOB,)))
    assert outcomes(conclusion) == {BOB: "not_connected"}
    assert (noticed(conclusion, BOB), conclusion.state.unmute_requests) == ([], {})


def test_whose_client_learns_the_namespace_later_may_be_asked_then() -> None:
    deaf = after(MEETING, (CONTROLLER, Enter(somebody(BOB), knows_moderation=False)))
    hears = after(deaf, (CONTROLLER, Extend(BOB)))
    assert outcomes(concluded(hears, ALICE, AskToUnmute(participants=(BOB,)))) == {BOB: "asked"}
    assert decide(MEETING, CONTROLLER, Extend(DAVE), now=AT, command_id=COMMAND) == Refusal("nothing_to_do")


@pytest.mark.parametrize(
    "later",
    [Disallow(source="microphone", participants=(BOB,)), moderation.Mute(participants=(BOB,), hold_s=600)],
)
def test_a_yes_does_not_lift_what_was_decided_after_the_question(later: AnyCommand) -> None:
    state = after(ASKED, (ALICE, later))
    assert decide(state, BOB, YES, now=AT, command_id=COMMAND) == Refusal("unknown_request_id")


def test_a_yes_lifts_no_bypass_and_nothing_that_was_put_back() -> None:
    noted = concluded(ASKED, CONTROLLER, Bypass(BOB, MICROPHONE, TrackSid("TR_1"), "video")).state
    back = apply(ASKED, [PutBack((BlockWas(Block(BOB, MICROPHONE), was_set=True),))])
    held = apply(ASKED, [PutBack((HoldWas(MICROPHONE, BOB, AT + 100),))])
    for state in (noted, back, held):
        assert refused(state, BOB, YES) == ("unknown_request_id", None)


def test_the_questions_of_who_comes_back_without_the_role_are_forgotten() -> None:
    assert after(ASKED, (CONTROLLER, Enter(somebody(ALICE)))).unmute_requests == {}


def test_accepting_is_an_allowance_by_the_moderators_wish() -> None:
    conclusion = concluded(ASKED, BOB, YES)
    assert publishable(BOB, conclusion.state) == ALL
    assert conclusion.state.unmute_requests == {}
    assert outcomes(conclusion) == {BOB: "granted"}
    assert noticed(conclusion, ALICE) == [
        moderation.UnmuteRequestAnswered(request_id="c-1-1", participant=BOB, accepted=True)
    ]
    assert rights(noticed(conclusion, BOB)[0]) == (ALL, "permission", ALICE)
    assert told(conclusion, CAROL) == [livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=(BOB,))]
    (action,) = actions(conclusion, ALICE)
    assert (action.moderator, action.action, action.targets) == (ALICE, "answer_unmute_request", (BOB,))


def test_declining_only_tells_the_moderator() -> None:
    decision = decided(ASKED, BOB, NO)
    assert (decision.effect, decision.holds) == (None, True)
    conclusion = conclude(ASKED, decision)
    assert noticed(conclusion, ALICE) == [
        moderation.UnmuteRequestAnswered(request_id="c-1-1", participant=BOB, accepted=False)
    ]
    assert (conclusion.outcomes, noticed(conclusion, BOB), actions(conclusion, ALICE)) == ((), [], [])
    assert publishable(BOB, conclusion.state) == WITHOUT_MICROPHONE


@pytest.mark.parametrize(
    ("state", "sender", "command", "at"),
    [
        (ASKED, CAROL, YES, AT),
        (ASKED, ALICE, YES, AT),
        (ASKED, BOB, AnswerUnmuteRequest(request_id="c-1-2", accept=True), AT),
        (ASKED, BOB, YES, AT + 60),
        (after(ASKED, (BOB, NO)), BOB, YES, AT),
        (left(ASKED, ALICE), BOB, YES, AT),
        (after(ASKED, (ALICE, promote(CAROL)), (CAROL, demote(ALICE))), BOB, YES, AT),
        (joined(left(ASKED, BOB), somebody(BOB)), BOB, YES, AT),
    ],
)
def test_whoever_was_not_asked_or_no_longer_is_cannot_answer(
    state: MeetingState, sender: ParticipantId, command: AnyCommand, at: float
) -> None:
    assert decide(state, sender, command, now=at, command_id=COMMAND) == Refusal("unknown_request_id")


def test_whoever_has_not_joined_cannot_answer_at_all() -> None:
    assert refused(ASKED, DAVE, YES) == FORBIDDEN


def test_a_request_that_lapsed_while_it_was_answered_is_told_to_nobody() -> None:
    conclusion = conclude(left(ASKED, ALICE), decided(ASKED, BOB, YES))
    assert not [each for each in conclusion.announcements if isinstance(each.event, moderation.UnmuteRequestAnswered)]


# --- Kicks and bans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ban", "reason", "outcome"), [(False, "kicked", "removed"), (True, "banned", "banned")])
def test_a_kick_removes_from_signaling_and_livekit(ban: bool, reason: str, outcome: str) -> None:  # noqa: FBT001 - of the table
    state = left(joined(MEETING, somebody(DAVE)), DAVE)
    command = Kick(participants=(ALICE, BOB, DAVE, EVE), ban=ban, reason="shouting")
    decision = decided(state, ALICE, command)
    assert decision.effect == Expel(frozenset({BOB, DAVE}))
    assert decision.holds
    assert decision.changes == (
        Departed(BOB, AT, "banned" if ban else "kicked"),
        Departed(DAVE, AT, "banned" if ban else "kicked"),
        *((Banned(frozenset({BOB, DAVE})),) if ban else ()),
    )
    conclusion = conclude(state, decision, {BOB: Finding.CHANGED})
    assert outcomes(conclusion) == {
        ALICE: "exempt",
        BOB: outcome,
        DAVE: "banned" if ban else "not_connected",
        EVE: "unknown",
    }
    assert noticed(conclusion, BOB) == [moderation.Kicked(moderator=ALICE, reason="shouting")]
    assert [event.model_dump()["reason"] for event in told(conclusion, CAROL)] == [reason]
    assert BOB in conclusion.state.departed
    assert conclusion.state.bans == ({BOB, DAVE} if ban else set())
    (action,) = actions(conclusion, ALICE)
    assert (action.targets, action.reason) == ((BOB, DAVE, EVE), "shouting")


def test_who_is_kicked_again_is_banned_already() -> None:
    state = after(MEETING, (ALICE, Kick(participants=(BOB,), ban=True)))
    assert outcomes(concluded(state, ALICE, Kick(participants=(BOB,), ban=True))) == {BOB: "unchanged"}
    found = concluded(state, ALICE, Kick(participants=(BOB,)), {BOB: Finding.CHANGED})
    assert outcomes(found) == {BOB: "removed"}


def test_a_kick_that_livekit_did_not_answer_stands_and_is_repaired() -> None:
    conclusion = concluded(MEETING, ALICE, Kick(participants=(BOB,)), {BOB: Finding.UNANSWERED})
    assert BOB not in conclusion.state.members
    assert (outcomes(conclusion), conclusion.repaired_later) == ({BOB: "failed"}, (BOB,))


def test_the_banned_do_not_come_in_until_they_may_again() -> None:
    state = after(MEETING, (ALICE, Kick(participants=(BOB,), ban=True)))
    assert refused(state, BOB, Enter(somebody(BOB))) == ("banned", None)
    conclusion = concluded(state, ALICE, Unban(participants=(ALICE, BOB, EVE)))
    assert outcomes(conclusion) == {ALICE: "unchanged", BOB: "unrestricted", EVE: "unknown"}
    assert BOB in joined(conclusion.state, somebody(BOB)).members


def test_somebody_kicked_may_join_anew() -> None:
    state = joined(after(MEETING, (ALICE, Kick(participants=(BOB,)))), somebody(BOB))
    assert BOB in state.members
    assert BOB not in state.departed


# --- What ends by itself -----------------------------------------------------------------------------------------

ENDING = after(
    joined(MEETING, somebody(DAVE)),
    (ALICE, Restrict(source="microphone", allowed=(CAROL,), expires_in_s=10)),
    (ALICE, Restrict(source="screen_share", expires_in_s=20)),
    (ALICE, moderation.Mute(participants=(BOB,), sources=("camera",), hold_s=20)),
    (ALICE, moderation.Mute(participants=(DAVE,), sources=("screen_share",), hold_s=30)),
    (ALICE, AskToUnmute(participants=(BOB,))),
)


def test_nothing_ends_too_early() -> None:
    assert refused(ENDING, CONTROLLER, Expire(AT + 9.9)) == NOTHING
    assert refused(MEETING, CONTROLLER, Expire(AT + 1_000)) == NOTHING


def test_restrictions_lift_themselves_for_everybody() -> None:
    decision = decided(ENDING, CONTROLLER, Expire(AT + 10))
    assert decision.effect == Agree(None, MIC)
    assert (decision.holds, decision.is_action) == (True, False)
    conclusion = conclude(ENDING, decision)
    assert conclusion.state.restricted == {SCREEN}
    assert told(conclusion, BOB) == [livekit.MicrophoneRestrictionsDisabled()]
    assert rights(noticed(conclusion, BOB)[0])[1:] == ("expiry", None)
    assert not actions(conclusion, ALICE)


def test_holds_and_requests_end_for_whom_they_concern() -> None:
    state = after(ENDING, (CONTROLLER, Expire(AT + 20)))
    assert (state.restricted, state.holds) == (frozenset(), {DAVE: {SCREEN: AT + 30}})
    decision = decided(state, CONTROLLER, Expire(AT + 30))
    assert decision.effect == Agree(frozenset({DAVE}), SCREEN_SOURCES)
    state = conclude(state, decision).state
    decision = decided(state, CONTROLLER, Expire(AT + 60))
    assert (decision.effect, conclude(state, decision).state.unmute_requests) == (None, {})


# --- Bypasses ----------------------------------------------------------------------------------------------------

RESTRICTED = after(MEETING, (ALICE, Restrict(source="microphone")))


def bypass(number: int) -> Bypass:
    return Bypass(BOB, CAMERA, TrackSid(f"TR_{number}"), "audio")


def test_a_bypass_takes_the_named_source_away_and_moderators_are_told() -> None:
    decision = decided(RESTRICTED, CONTROLLER, bypass(1))
    assert decision.effect == Agree(frozenset({BOB}), frozenset({CAMERA}))
    assert decision.holds
    conclusion = conclude(RESTRICTED, decision, {BOB: Finding.CHANGED})
    assert conclusion.state.blocks == {Block(BOB, CAMERA, BlockCause.BYPASS)}
    assert noticed(conclusion, ALICE) == [
        moderation.BypassStopped(participant=BOB, track_sid="TR_1", declared="camera", media="audio")
    ]
    assert rights(noticed(conclusion, BOB)[0]) == (WITHOUT_MICROPHONE[1:], "bypass", None)
    assert refused(conclusion.state, CONTROLLER, bypass(1)) == NOTHING


def test_the_second_within_a_meeting_removes_even_after_an_allowance() -> None:
    state = after(
        RESTRICTED,
        (CONTROLLER, bypass(1)),
        (ALICE, Allow(source="camera", participants=(BOB,))),
    )
    decision = decided(state, CONTROLLER, bypass(2))
    assert decision.effect == Expel(frozenset({BOB}))
    conclusion = conclude(state, decision, {BOB: Finding.CHANGED})
    assert BOB not in conclusion.state.members
    assert noticed(conclusion, BOB) == [moderation.Kicked(moderator=CONTROLLER, reason="bypass")]
    assert len(noticed(conclusion, ALICE)) == 1
    again = joined(conclusion.state, somebody(BOB))
    assert publishable(BOB, again) == WITHOUT_MICROPHONE[1:], "what was blocked stays blocked"


# --- Undoing -----------------------------------------------------------------------------------------------------


def done(state: MeetingState, *commands: AnyCommand, command_id: CommandId = BEFORE) -> MeetingState:
    """The state after commands of Alice by this id."""
    for command in commands:
        decision = decide(state, ALICE, command, now=AT, command_id=command_id)
        assert not isinstance(decision, Refusal)
        state = conclude(state, decision).state
    return state


UNDO = Undo(command_id=BEFORE)


@pytest.mark.parametrize(
    ("command", "concerns", "sources"),
    [
        (Restrict(source="microphone", allowed=(CAROL,)), None, {MICROPHONE}),
        (Restrict(source="screen_share"), None, SCREEN_SOURCES),
        (SetPresenter(participant=BOB), None, SCREEN_SOURCES),
        (Disallow(source="camera", participants=(BOB,)), {BOB}, {CAMERA}),
        (Allow(source="screen_share", participants=(BOB,)), {BOB}, SCREEN_SOURCES),
        (moderation.Mute(participants=(BOB, CAROL), hold_s=60), {BOB, CAROL}, {MICROPHONE}),
    ],
)
def test_a_command_is_undone(
    command: AnyCommand, concerns: set[ParticipantId] | None, sources: frozenset[object]
) -> None:
    state = done(MEETING, command)
    decision = decided(state, ALICE, UNDO)
    assert decision.effect == Agree(None if concerns is None else frozenset(concerns), frozenset(sources))  # type: ignore[arg-type] # of sources
    conclusion = conclude(state, decision)
    for who in (ALICE, BOB, CAROL):
        assert publishable(who, conclusion.state) == publishable(who, MEETING)
    causes = {rights(event)[1] for who in (ALICE, BOB, CAROL) for event in noticed(conclusion, who)}
    assert causes <= {"undo"}
    assert set(outcomes(conclusion).values()) <= {"unrestricted", "unchanged"}


def test_undoing_a_restriction_tells_livekits_clients() -> None:
    conclusion = concluded(done(MEETING, Restrict(source="microphone")), ALICE, UNDO)
    assert told(conclusion, BOB) == [livekit.MicrophoneRestrictionsDisabled()]
    lifted = done(done(MEETING, Restrict(source="microphone")), Unrestrict(source="microphone"), command_id=COMMAND)
    conclusion = concluded(lifted, ALICE, Undo(command_id=COMMAND))
    assert told(conclusion, BOB) == [livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=())]
    assert outcomes(conclusion)[BOB] == "restricted"


def test_undoing_a_ban_asks_nothing_of_livekit() -> None:
    state = done(MEETING, Kick(participants=(BOB,), ban=True))
    decision = decided(state, ALICE, UNDO)
    assert decision.effect is None
    conclusion = conclude(state, decision)
    assert outcomes(conclusion) == {BOB: "unrestricted"}
    back = done(conclusion.state, Undo(command_id=COMMAND), command_id=CommandId("c-3"))
    assert back.bans == {BOB}
    redo = decided(conclusion.state, ALICE, Undo(command_id=COMMAND))
    assert outcomes(conclude(conclusion.state, redo)) == {BOB: "banned"}


def test_undoing_can_be_undone() -> None:
    state = done(done(MEETING, Restrict(source="camera")), UNDO, command_id=COMMAND)
    assert CAMERA in publishable(BOB, state)
    assert CAMERA not in publishable(BOB, concluded(state, ALICE, Undo(command_id=COMMAND)).state)


@pytest.mark.parametrize(
    ("state", "at"),
    [
        (done(done(MEETING, Restrict(source="camera")), Unrestrict(source="camera"), command_id=COMMAND), AT),
        (left(done(MEETING, SetPresenter(participant=BOB)), BOB), AT),
        (
            left(done(done(MEETING, SetPresenter(participant=BOB)), SetPresenter(participant=CAROL)), BOB),
            AT,
        ),
        (
            done(
                done(MEETING, Restrict(source="camera", expires_in_s=10), command_id=COMMAND),
                Unrestrict(source="camera"),
            ),
            AT + 10,
        ),
        (
            done(
                done(MEETING, moderation.Mute(participants=(BOB,), hold_s=10), command_id=COMMAND),
                Allow(source="microphone", participants=(BOB,)),
            ),
            AT + 10,
        ),
        (
            joined(
                done(
                    done(MEETING, Kick(participants=(BOB,), ban=True), command_id=COMMAND), Unban(participants=(BOB,))
                ),
                somebody(BOB),
            ),
            AT,
        ),
    ],
    ids=["changed since", "gone", "would be gone", "restriction over", "hold over", "came in again"],
)
def test_what_cannot_be_put_back_is_refused(state: MeetingState, at: float) -> None:
    assert BEFORE in state.undoable
    assert decide(state, ALICE, UNDO, now=at, command_id=CommandId("c-9")) == Refusal("not_undoable")


def test_only_the_part_that_was_not_changed_since_goes_back() -> None:
    state = done(MEETING, Disallow(source="camera", participants=(BOB, CAROL)))
    state = done(state, Allow(source="camera", participants=(BOB,)), command_id=COMMAND)
    state = done(state, Disallow(source="camera", participants=(BOB,)), command_id=COMMAND)
    conclusion = concluded(state, ALICE, UNDO)
    assert outcomes(conclusion) == {CAROL: "unrestricted"}
    assert CAMERA not in publishable(BOB, conclusion.state)


def test_what_was_never_done_is_unknown() -> None:
    assert refused(MEETING, ALICE, UNDO) == ("unknown_command_id", None)
    assert refused(done(MEETING, moderation.Mute(participants=(BOB,))), ALICE, UNDO) == ("unknown_command_id", None)


def test_a_role_changes_rights_too() -> None:
    conclusion = concluded(after(MEETING, (ALICE, Restrict(source="microphone"))), ALICE, promote(BOB))
    assert rights(noticed(conclusion, BOB)[0]) == (ALL, "role", ALICE)

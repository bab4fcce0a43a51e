"""What was decided holds whatever people do, in any order: random meetings, against a model of the wire's rules."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from signaling.core.applying import apply
from signaling.core.commands import (
    AnyCommand,
    Bypass,
    ChangeRole,
    Depart,
    DepartUnlessBack,
    End,
    Enter,
    Expire,
    LoseConnections,
    Move,
    NoteRoomDeleted,
    NoteUnmutedAgain,
)
from signaling.core.decisions import Decision, Refusal, decide
from signaling.core.effects import Finding, Mute, Permission, Presence, Stop
from signaling.core.enforcement import call_for, owner_of, plan
from signaling.core.participants import Kind, LiveKitKind, Participant, Role, Source
from signaling.core.policy import publishable, stricter
from signaling.core.state import MeetingState, new_meeting
from signaling.identifiers import CONTROLLER, CommandId, Identity, LiveKitRoom, ParticipantId, TrackSid
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Namespace
from tests.core.meetings import (
    ALICE,
    ALL,
    AT,
    BOARD,
    BOB,
    CAROL,
    DISABLE,
    LEFT,
    LEFT_ROOM,
    LOWER,
    MAIN,
    MICROPHONE,
    PHONE,
    POPOUT,
    RAISE,
    RECORDER,
    RIGHT,
    SCREEN,
    SCREEN_AUDIO,
    Concluded,
    carried_out,
    conclude,
    demote,
    enable,
    grant,
    lower,
    mute,
    promote,
    revoke,
    somebody,
    track,
)

STRANGER = ParticipantId("eve")
PEOPLE = [ALICE, BOB, CAROL, PHONE, RECORDER]
ANYBODY = st.sampled_from(PEOPLE)
SENDERS = st.sampled_from([*PEOPLE, ALICE, ALICE, ALICE, STRANGER, CONTROLLER])
NAMED = st.lists(st.sampled_from([*PEOPLE, STRANGER]), max_size=4).map(tuple)
BREAKOUTS = st.sampled_from([None, LEFT, RIGHT])
RESTRICTABLE: st.SearchStrategy[moderation.RestrictableName] = st.sampled_from(["camera", "microphone", "screen_share"])

Step = tuple[ParticipantId, AnyCommand]

# Who comes: as a rule as what they are, but anybody may come back as a guest or by telephone, or with another ticket.
COMERS = st.one_of(
    st.sampled_from(
        [
            somebody(ALICE, Role.MODERATOR),
            somebody(BOB),
            somebody(CAROL),
            somebody(PHONE, Role.GUEST, Kind.SIP),
            somebody(RECORDER, kind=Kind.RECORDER),
        ]
    ),
    st.builds(
        Participant,
        id=ANYBODY,
        role=st.sampled_from([Role.GUEST, Role.USER]),
        kind=st.sampled_from(Kind),
        breakout=BREAKOUTS,
    ),
    st.builds(Participant, id=ANYBODY, role=st.just(Role.MODERATOR), breakout=BREAKOUTS),
)
ASKED: st.SearchStrategy[AnyCommand] = st.one_of(
    NAMED.map(lambda named: enable(*named)),
    st.just(DISABLE),
    NAMED.map(lambda named: grant(*named)),
    NAMED.map(lambda named: revoke(*named)),
    NAMED.map(lambda named: mute(*named)),
    ANYBODY.map(promote),
    ANYBODY.map(demote),
    ANYBODY.map(lower),
    st.sampled_from([RAISE, LOWER, POPOUT]),
    st.builds(moderation.Restrict, source=RESTRICTABLE, allowed=NAMED, expires_in_s=st.sampled_from([5, 50])),
    st.builds(moderation.Unrestrict, source=RESTRICTABLE),
    st.builds(moderation.Disallow, source=RESTRICTABLE, participants=NAMED),
    st.builds(moderation.Allow, source=RESTRICTABLE, participants=NAMED),
    st.builds(
        moderation.Mute,
        participants=NAMED,
        sources=st.lists(st.sampled_from([source.value for source in ALL]), min_size=1, unique=True).map(tuple),
        hold_s=st.sampled_from([5, 50]),
    ),
    NAMED.map(lambda named: moderation.Mute(everyone_except=named, hold_s=5)),
    st.builds(moderation.Stop, source=RESTRICTABLE, participants=NAMED),
    st.builds(moderation.SetPresenter, participant=st.sampled_from([*PEOPLE, STRANGER])),
    st.just(moderation.SetPresenter()),
    st.builds(moderation.AskToUnmute, participants=NAMED),
    st.builds(moderation.AnswerUnmuteRequest, request_id=st.sampled_from(["c-1", "c-2"]), accept=st.booleans()),
    st.builds(moderation.Kick, participants=NAMED, ban=st.booleans()),
    st.builds(moderation.Unban, participants=NAMED),
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(SENDERS, ASKED),
    st.tuples(
        st.just(CONTROLLER),
        st.one_of(
            COMERS.map(Enter),
            st.builds(Depart, ANYBODY),
            st.builds(Move, ANYBODY, BREAKOUTS),
            st.builds(ChangeRole, ANYBODY, st.sampled_from(Role)),
            st.builds(LoseConnections, st.frozensets(ANYBODY, max_size=2), st.sampled_from([AT + 5, AT + 50])),
            st.builds(DepartUnlessBack, st.frozensets(ANYBODY, max_size=2), st.just(AT + 10)),
            st.just(Expire(AT + 10)),
            st.builds(
                Bypass, ANYBODY, st.sampled_from(ALL), st.sampled_from(["TR_1", "TR_2"]).map(TrackSid), st.just("audio")
            ),
            st.builds(NoteUnmutedAgain, st.frozensets(ANYBODY, max_size=2)),
        ),
    ),
    st.sampled_from([(CONTROLLER, End()), (CONTROLLER, NoteRoomDeleted(MAIN))]),
)
HISTORIES = st.lists(STEPS, max_size=30)
SEEN_OF_A_MUTE = st.sampled_from(
    [Finding.MUTED, Finding.ALREADY_MUTED, Finding.NO_TRACK, Finding.ABSENT, Finding.UNANSWERED, Finding.REJECTED]
)
SEEN_OF_A_STOP = st.sampled_from(
    [Finding.STOPPED, Finding.NO_TRACK, Finding.ABSENT, Finding.UNANSWERED, Finding.REJECTED]
)
SEEN_OF_RIGHTS = st.sampled_from(
    [Finding.CHANGED, Finding.AGREED, Finding.SETTLING, Finding.ABSENT, Finding.UNANSWERED, Finding.REJECTED]
)

OPENING: list[Step] = [
    (CONTROLLER, Enter(somebody(ALICE, Role.MODERATOR))),
    (CONTROLLER, Enter(somebody(BOB))),
    (CONTROLLER, Enter(somebody(CAROL))),
]
BEGUN = new_meeting(BOARD, screen_share_requires_permission=False)
BEGUN_BY_PERMISSION = new_meeting(BOARD, screen_share_requires_permission=True)


# --- The model ---------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """The rules of the wire once more, as simply as they are written there."""

    screens_by_permission: bool
    tickets: dict[ParticipantId, tuple[Role, Kind]] = field(default_factory=dict)
    given: dict[ParticipantId, Role] = field(default_factory=dict)
    away_until: dict[ParticipantId, float] = field(default_factory=dict)
    hands: set[ParticipantId] = field(default_factory=set)
    lists: dict[Source, set[ParticipantId]] = field(default_factory=dict)
    restricted: dict[Source, float] = field(default_factory=dict)
    disallowed: set[tuple[ParticipantId, Source]] = field(default_factory=set)
    bypassed: set[tuple[ParticipantId, Source]] = field(default_factory=set)
    bypasses: dict[ParticipantId, set[str]] = field(default_factory=dict)
    held: dict[tuple[ParticipantId, Source], float] = field(default_factory=dict)
    presenter: ParticipantId | None = None
    banned: set[ParticipantId] = field(default_factory=set)
    seen: set[ParticipantId] = field(default_factory=set)
    requests: dict[tuple[ParticipantId, ParticipantId], str] = field(default_factory=dict)
    asked: set[ParticipantId] = field(default_factory=set)
    has_begun: bool = False

    def __post_init__(self) -> None:
        if self.screens_by_permission:
            self.restricted[SCREEN] = math.inf

    def role(self, who: ParticipantId) -> Role:
        ticket, kind = self.tickets[who]
        role = self.given.get(who, ticket)
        return ticket if role is Role.MODERATOR and kind in {Kind.GUEST, Kind.SIP} else role

    def moderates(self, who: ParticipantId) -> bool:
        return who in self.tickets and self.role(who) is Role.MODERATOR

    def commands(self, sender: ParticipantId) -> bool:
        return self.has_begun if sender == CONTROLLER else self.moderates(sender)

    def _askable(self, named: Collection[ParticipantId]) -> set[ParticipantId]:
        people = set(named) & self.tickets.keys() - self.away_until.keys()
        return {who for who in people if self.tickets[who][1] is not Kind.RECORDER}

    def may(self, who: ParticipantId, source: Source) -> bool:
        rule = SCREEN if source is SCREEN_AUDIO else source
        if who in self.banned:
            return False
        for kept_away in (self.bypassed, self.held, self.disallowed):
            if (who, source) in kept_away or (who, rule) in kept_away:
                return False
        if who in self.tickets and self.tickets[who][1] is Kind.RECORDER:
            return True
        if rule is SCREEN and self.presenter is not None:
            return who == self.presenter
        return rule not in self.restricted or self.moderates(who) or who in self.lists.get(rule, set())

    def refuses(self, sender: ParticipantId, command: AnyCommand) -> str | None:
        match command:
            case Depart(participant) | Move(participant):
                return None if participant in self.tickets else "nothing_to_do"
            case DepartUnlessBack(people, now):
                return None if any(self.away_until.get(who, now + 1) <= now for who in people) else "nothing_to_do"
            case ChangeRole(participant, role):
                return self._refuses_role(participant, role)
            case control.RaiseHand():
                return None if sender in self.tickets else "insufficient_permissions"
            case control.LowerHand(target=target):
                if not (sender in self.tickets if target in {None, sender} else self.commands(sender)):
                    return "insufficient_permissions"
                return "invalid_command" if target is not None and target not in self.tickets else None
            case livekit.RequestPopoutStreamAccessToken():
                return None if sender in self.tickets else "insufficient_permissions"
            case LoseConnections(people):
                return None if people & self.tickets.keys() else "nothing_to_do"
            case Enter(participant):
                return "banned" if participant.id in self.banned else None
            case End() | NoteRoomDeleted():
                return None
            case Expire(now):
                ends = [*self.restricted.values(), *self.held.values()]
                return None if any(end <= now for end in ends) else "nothing_to_do"
            case Bypass(who, _, track):
                return "nothing_to_do" if track in self.bypasses.get(who, set()) else None
            case NoteUnmutedAgain():
                return "nothing_to_do"  # LiveKit confirms no mute here
            case moderation.AnswerUnmuteRequest(request_id=id_):
                if sender not in self.tickets:
                    return "insufficient_permissions"
                asked = [who for (_, who), request in self.requests.items() if request == id_]
                return None if sender in asked else "unknown_request_id"
            case _ if not self.commands(sender):
                return "insufficient_permissions"
            case moderation.AskToUnmute(participants=named):
                connected = self._askable(named)
                return "rate_limit_exceeded" if connected and connected <= self.asked else None
            case control.GrantModeratorRole(target=target):
                return self._refuses_role(target, Role.MODERATOR)
            case control.RevokeModeratorRole(target=target):
                if target not in self.tickets:
                    return "invalid_command"
                if not self.moderates(target):
                    return "nothing_to_do"
                others = [who for who in self.tickets if who != target and self.moderates(who)]
                return None if others or sender == CONTROLLER else "insufficient_permissions"
            case moderation.SetPresenter(participant=who):
                return None if who is None or who in self.tickets else "invalid_command"
            case _:
                return None

    def _refuses_role(self, who: ParticipantId, role: Role) -> str | None:
        if who not in self.tickets:
            return "invalid_command"
        if role is Role.MODERATOR and self.tickets[who][1] in {Kind.GUEST, Kind.SIP}:
            return "insufficient_permissions"
        return "nothing_to_do" if self.role(who) is role else None

    def carry_out(self, sender: ParticipantId, command: AnyCommand, by_default: bool) -> None:  # noqa: FBT001 - a fact of the meeting
        match command:
            case Enter(participant):
                if participant.id not in self.tickets:
                    self.hands.discard(participant.id)
                self.tickets[participant.id] = (participant.role, participant.kind)
                self.seen.add(participant.id)
                self.has_begun = True
                self.away_until.pop(participant.id, None)
            case Depart(participant):
                self._leave(participant)
            case DepartUnlessBack(people, now):
                for who in sorted(people):
                    if self.away_until.get(who, now + 1) <= now:
                        self._leave(who)
            case LoseConnections(participants, until):
                self.away_until.update({who: until for who in participants if who in self.tickets})
            case ChangeRole(participant, role):
                self._give(participant, role)
            case control.GrantModeratorRole(target=target):
                self._give(target, Role.MODERATOR)
            case control.RevokeModeratorRole(target=target):
                ticket = self.tickets[target][0]
                self._give(target, Role.USER if ticket is Role.MODERATOR else ticket)
            case livekit.EnableMicrophoneRestrictions(unrestricted_participants=named):
                self._restrict(MICROPHONE, named)
            case livekit.DisableMicrophoneRestrictions():
                self._lift(MICROPHONE)
            case livekit.GrantScreenSharePermission(participants=named):
                self._allow(set(named) & self.seen, SCREEN)
            case livekit.RevokeScreenSharePermission(participants=named):
                self._disallow(set(named) & self.seen, SCREEN)
            case control.RaiseHand():
                self.hands.add(sender)
            case control.LowerHand(target=target):
                self.hands.discard(target or sender)
            case End():
                self.__init__(by_default)  # type: ignore[misc]
            case _:
                self._moderate(sender, command)

    def _moderate(self, sender: ParticipantId, command: AnyCommand) -> None:
        match command:
            case moderation.Restrict(source=source, allowed=named, expires_in_s=lasts_s):
                self._restrict(Source(source), named, math.inf if lasts_s is None else AT + lasts_s)
            case moderation.Unrestrict(source=source):
                self._lift(Source(source))
            case moderation.Allow(source=source, participants=named):
                self._allow(set(named) & self.seen, Source(source))
            case moderation.Disallow(source=source, participants=named):
                self._disallow(set(named) & self.seen, Source(source))
            case moderation.Mute(sources=sources, hold_s=hold_s) if hold_s is not None:
                for who in self._muted(sender, command):
                    self.held.update({(who, Source(source)): AT + hold_s for source in sources})
                    for held in sources:
                        self._forget_requests({who}, Source(held))
            case moderation.SetPresenter(participant=who):
                self.presenter = who
            case moderation.AskToUnmute(participants=named):
                for number, who in enumerate(sorted(self._askable(named) - self.asked), 1):
                    self.requests = {key: id_ for key, id_ in self.requests.items() if id_ != f"c-{number}"}
                    self.requests[sender, who] = f"c-{number}"
                    self.asked.add(who)  # and no time passes until nobody would be asked again
            case moderation.AnswerUnmuteRequest(request_id=request_id, accept=accept):
                self.requests = {key: id_ for key, id_ in self.requests.items() if id_ != request_id}
                if accept:
                    self._allow({sender}, MICROPHONE)
            case moderation.Kick(participants=named, ban=ban):
                for who in set(named) & self.seen - {sender}:
                    self._leave(who)
                    self.banned |= {who} if ban else set()
            case moderation.Unban(participants=named):
                self.banned -= set(named)
            case Expire(now):
                for source in [source for source, end in self.restricted.items() if end <= now]:
                    self._lift(source)
                self.held = {key: end for key, end in self.held.items() if end > now}
            case Bypass(who, source, track):
                self.bypasses.setdefault(who, set()).add(track)
                self.bypassed.add((who, source))
                if len(self.bypasses[who]) == 2:
                    self._leave(who)
                    self.seen.add(who)
            case _:
                pass

    def _leave(self, who: ParticipantId) -> None:
        self.tickets.pop(who, None)
        self.away_until.pop(who, None)
        self.hands.discard(who)
        self.requests = {pair: id_ for pair, id_ in self.requests.items() if who not in pair}
        if self.presenter == who:
            self.presenter = None

    def _muted(self, sender: ParticipantId, command: moderation.Mute) -> set[ParticipantId]:
        if command.participants is not None:
            return set(command.participants) & set(self.tickets)
        spared = {sender, *(command.everyone_except or ())}
        return {
            who
            for who, (_, kind) in self.tickets.items()
            if who not in spared and not self.moderates(who) and kind is not Kind.RECORDER
        }

    def _restrict(self, source: Source, named: Iterable[ParticipantId], until: float = math.inf) -> None:
        self.restricted[source] = until
        self.lists[source] = set(named)

    def _lift(self, source: Source) -> None:
        self.restricted.pop(source, None)
        if source is not SCREEN:
            self.lists.pop(source, None)
        elif self.screens_by_permission:
            self.restricted[SCREEN] = math.inf

    def _allow(self, people: set[ParticipantId], source: Source) -> None:
        lifted = {source, SCREEN_AUDIO} if source is SCREEN else {source}
        for who in people:
            for each in lifted:
                self.disallowed.discard((who, each))
                self.bypassed.discard((who, each))
                self.held.pop((who, each), None)
            if source is SCREEN or source in self.restricted:
                self.lists.setdefault(source, set()).add(who)

    def _disallow(self, people: set[ParticipantId], source: Source) -> None:
        self.lists.get(source, set()).difference_update(people)
        self.disallowed |= {(who, source) for who in people}
        self._forget_requests(people, source)

    def _forget_requests(self, people: Collection[ParticipantId], source: Source) -> None:
        if source is MICROPHONE:
            self.requests = {pair: id_ for pair, id_ in self.requests.items() if pair[1] not in people}

    def _give(self, who: ParticipantId, role: Role) -> None:
        self.given[who] = role
        self.lists.get(SCREEN, set()).discard(who)
        self.disallowed.discard((who, SCREEN))
        if role is not Role.MODERATOR:
            self.requests = {pair: id_ for pair, id_ in self.requests.items() if pair[0] != who}


# --- Random meetings ---------------------------------------------------------------------------------------------


def carry_out(state: MeetingState, history: list[Step]) -> MeetingState:
    """The state after a history, whatever of it was refused."""
    for sender, command in history:
        decision = decide(state, sender, command, now=AT, command_id=CommandId("c"))
        if isinstance(decision, Decision):
            state = conclude(state, decision).state
    return state


def concluded_with(data: st.DataObject, state: MeetingState, decision: Decision) -> Concluded:
    """The conclusion of a decision, whatever LiveKit answered about whomever."""
    match decision.effect:
        case Mute():
            seen = SEEN_OF_A_MUTE
        case Stop():
            seen = SEEN_OF_A_STOP
        case _:
            seen = SEEN_OF_RIGHTS
    findings = data.draw(st.dictionaries(st.sampled_from(sorted(state.members) or [STRANGER]), seen))
    return conclude(state, decision, findings)


def decision_in(data: st.DataObject, state: MeetingState) -> Decision | None:
    """The decision of some command that is not refused in this state, if the one drawn is not."""
    sender, command = data.draw(STEPS)
    decision = decide(state, sender, command, now=AT, command_id=CommandId("c"))
    return decision if isinstance(decision, Decision) else None


MEETINGS = st.builds(
    lambda begun, history: carry_out(begun, OPENING + history), st.sampled_from([BEGUN, BEGUN_BY_PERMISSION]), HISTORIES
)


@settings(deadline=None, max_examples=250)
@given(history=HISTORIES, by_default=st.booleans())
@example(
    history=[(ALICE, promote(BOB)), (CONTROLLER, Enter(somebody(BOB, kind=Kind.GUEST))), (ALICE, enable())],
    by_default=False,
)
def test_no_order_of_commands_lets_a_restricted_person_publish(history: list[Step], by_default: bool) -> None:  # noqa: FBT001 - drawn
    state = BEGUN_BY_PERMISSION if by_default else BEGUN
    model = Model(by_default)
    for sender, command in OPENING + history:
        decision = decide(state, sender, command, now=AT, command_id=CommandId("c"))
        refusal = decision.error if isinstance(decision, Refusal) else None
        assert refusal == model.refuses(sender, command), (sender, command)
        if isinstance(decision, Decision):
            state = conclude(state, decision).state
            model.carry_out(sender, command, by_default)
        for who in (*PEOPLE, STRANGER):
            allowed = publishable(who, state)
            assert list(allowed) == [source for source in ALL if model.may(who, source)], who
        assert state.presenter == model.presenter
        assert {*state.moderators()} == {who for who in model.tickets if model.moderates(who)}


@settings(deadline=None, max_examples=100)
@given(state=MEETINGS)
def test_nobody_of_kind_guest_or_sip_moderates(state: MeetingState) -> None:
    assert not [who for who in state.moderators() if state.members[who].kind in {Kind.GUEST, Kind.SIP}]


@settings(deadline=None, max_examples=150)
@given(history=st.lists(st.tuples(ANYBODY, ASKED), max_size=30))
def test_moderators_never_end_up_without_one(history: list[Step]) -> None:
    assert [*carry_out(BEGUN, OPENING + history).moderators()]


@settings(deadline=None, max_examples=150)
@given(state=MEETINGS, data=st.data())
def test_concluding_twice_changes_nothing_more(state: MeetingState, data: st.DataObject) -> None:
    decision = decision_in(data, state)
    if decision is not None:
        once = concluded_with(data, state, decision)
        assert conclude(once.state, decision).state is once.state
        assert apply(once.state, decision.changes) is once.state


@settings(deadline=None, max_examples=150)
@given(state=MEETINGS, others=st.lists(STEPS, max_size=5), data=st.data())
def test_a_decision_is_concluded_whatever_happened_meanwhile(
    state: MeetingState, others: list[Step], data: st.DataObject
) -> None:
    decision = decision_in(data, state)
    if decision is not None:
        later = carry_out(state, others)
        conclusion = concluded_with(data, later, decision)
        command_id = decision.command_id if decision.is_action else None
        then = apply(later, decision.changes, command_id=command_id)
        assert replace(conclusion.state, mutes={}, version=0) == replace(then, mutes={}, version=0)
        assert conclude(conclusion.state, decision).state is conclusion.state


@settings(deadline=None, max_examples=150)
@given(state=MEETINGS, data=st.data())
def test_all_lists_of_ids_leave_sorted_and_once(state: MeetingState, data: st.DataObject) -> None:
    decision = decision_in(data, state)
    if decision is not None:
        conclusion = concluded_with(data, state, decision)
        lists = [
            [outcome.participant for outcome in conclusion.outcomes],
            list(conclusion.repaired_later),
            *(
                list(value)
                for announcement in conclusion.announcements
                for value in dict(announcement.event).values()
                if isinstance(value, tuple) and announcement.event.namespace is not Namespace.MODERATION
            ),
        ]
        for ids in lists:
            assert ids == sorted(set(ids))


@settings(deadline=None, max_examples=150)
@given(state=MEETINGS, data=st.data())
def test_the_sender_is_told_of_a_failure_exactly_when_there_was_one(state: MeetingState, data: st.DataObject) -> None:
    decision = decision_in(data, state)
    if decision is not None:
        conclusion = concluded_with(data, state, decision)
        failed = {outcome.participant for outcome in conclusion.outcomes if outcome.outcome == "failed"}
        assert all(outcome.error is not None for outcome in conclusion.outcomes if outcome.outcome == "failed")
        assert not failed or conclusion.error == "livekit_unavailable"
        assert failed.isdisjoint(decision.unknown)


@settings(deadline=None, max_examples=150)
@given(state=MEETINGS, step=STEPS)
def test_whoever_is_refused_changes_nothing(state: MeetingState, step: Step) -> None:
    before = repr(state)
    decision = decide(state, *step, now=AT, command_id=CommandId("c"))
    assert repr(state) == before
    if isinstance(decision, Refusal):
        assert decision == decide(state, *step, now=AT, command_id=CommandId("d"))
        assert carry_out(state, [step]) is state


@settings(deadline=None, max_examples=100)
@given(state=MEETINGS, command=ASKED)
def test_nobody_outside_the_meeting_is_obeyed(state: MeetingState, command: AnyCommand) -> None:
    decision = decide(state, STRANGER, command, now=AT, command_id=CommandId("c"))
    assert decision == Refusal("insufficient_permissions")


@settings(deadline=None, max_examples=150)
@given(state=MEETINGS, data=st.data())
def test_a_token_minted_while_a_command_is_carried_out_allows_no_more_than_before_and_after(
    state: MeetingState, data: st.DataObject
) -> None:
    decision = decision_in(data, state)
    if decision is not None:
        then = apply(state, decision.changes)
        for who in (*PEOPLE, STRANGER):
            token = stricter(who, state, then)
            both = set(publishable(who, state)) & set(publishable(who, then))
            assert token == tuple(source for source in ALL if source in both)


SOURCES = st.lists(st.sampled_from([None, *ALL]), max_size=5).map(tuple)
PRESENCES = st.builds(
    Presence,
    room=st.sampled_from([MAIN, LEFT_ROOM, LiveKitRoom("board:right")]),
    identity=st.sampled_from(
        [*PEOPLE, STRANGER, "alice#x", "bob#1", "bob-popout1", "bob-popout2", "bob-popout17", "eve-popout1", "EG_1"]
    ).map(Identity),
    permission=st.builds(Permission, can_publish=st.booleans(), sources=SOURCES),
    tracks=st.lists(st.builds(track, st.sampled_from([None, *ALL]), muted=st.booleans()), max_size=2).map(tuple),
    kind=st.sampled_from(LiveKitKind),
    is_hidden=st.booleans(),
)
ROSTERS = st.lists(PRESENCES, max_size=12, unique_by=lambda presence: (presence.room, presence.identity))


@settings(deadline=None, max_examples=200)
@given(state=MEETINGS, roster=ROSTERS, remove_unknown=st.booleans())
def test_when_the_calls_are_carried_out_livekit_agrees(
    state: MeetingState,
    roster: list[Presence],
    remove_unknown: bool,  # noqa: FBT001 - drawn
) -> None:
    calls = plan(state, roster, remove_unknown=remove_unknown, sources=frozenset({MICROPHONE}))
    assert [call.priority for call in calls] == sorted(call.priority for call in calls)
    assert len({(call.room, call.identity) for call in calls}) == len(calls)
    agreed = carried_out(roster, calls)
    # A presenter gets the screen when nobody else has it any more.
    then = plan(state, agreed, remove_unknown=remove_unknown)
    assert {call.identity for call in then} <= {state.presenter}
    agreed = carried_out(agreed, then)
    assert plan(state, agreed, remove_unknown=remove_unknown) == []
    before = {(presence.room, presence.identity): presence for presence in roster}
    for presence in agreed:
        who = ParticipantId(presence.identity)
        had = before[presence.room, presence.identity].permission
        if presence.room not in state.rooms:
            assert presence.permission == had
            continue
        if who not in state.members:
            assert set(presence.permission.allowed()) <= set(had.allowed())
        if who in state.members:
            assert presence.room == state.room_of(who)
            if state.members[who].kind is not Kind.RECORDER:
                assert presence.permission.allows_exactly(publishable(who, state))
        assert owner_of(presence.identity, state) == who or "-popout" in presence.identity
        assert who not in state.departed


@settings(deadline=None, max_examples=200)
@given(state=MEETINGS, presenters=st.permutations([ALICE, BOB, CAROL]), data=st.data())
def test_in_whatever_order_people_are_dealt_with_no_presenter_gets_the_screen_while_another_has_it(
    state: MeetingState, presenters: list[ParticipantId], data: st.DataObject
) -> None:
    state = carry_out(state, [*OPENING, (CONTROLLER, moderation.SetPresenter(participant=presenters[0]))])
    assume(state.presenter == presenters[0])  # not if they were banned: then everybody has the screen at first
    room = {who: state.room_of(who) or MAIN for who in presenters}
    roster = [Presence(room[who], Identity(who), Permission(can_publish=True, sources=())) for who in presenters]
    while calls := plan(state, roster):
        roster = carried_out(roster, calls)
    state = carry_out(state, [(CONTROLLER, moderation.SetPresenter(participant=presenters[1]))])
    for _ in range(8):
        presence = data.draw(st.sampled_from(roster))
        call = call_for(state, presence, roster=roster)
        roster = carried_out(roster, [] if call is None else [call])
        assert len([each for each in roster if SCREEN in each.permission.allowed()]) <= 1


@settings(deadline=None, max_examples=100)
@given(state=MEETINGS, roster=ROSTERS, about=st.frozensets(ANYBODY, max_size=2))
def test_a_plan_about_some_people_is_a_part_of_the_whole(
    state: MeetingState, roster: list[Presence], about: frozenset[ParticipantId]
) -> None:
    whole = plan(state, roster)
    part = plan(state, roster, about=about)
    assert part == [call for call in whole if owner_of(call.identity, state) in about]
    named = [call for call in whole if ParticipantId(call.identity) in about]
    assert [call for call in part if ParticipantId(call.identity) in about] == named

"""The meeting as it is shown: to a moderator, to a joiner, and to the person concerned."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

from signaling.core.announcements import control_data
from signaling.core.effects import Presence
from signaling.core.enforcement import allowable, is_unknown, strangers
from signaling.core.participants import ALL_SOURCES, SERVICES, Role, Source
from signaling.core.policy import publishable
from signaling.core.state import BlockCause, MeetingState, Member
from signaling.identifiers import Identity, ParticipantId
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.roster import Roster
from signaling.messages import control, livekit, moderation
from signaling.messages.base import rfc3339
from signaling.stores.contract import AuditEntry, Record

SHOWN_AFTER_S: Final = 0.05
"""How long changes are gathered before watchers are told."""


class Attendance:
    """
    Who is in a meeting, as joiners are told.

    Each joiner is told of everybody, so what is said of somebody is made once, and anew only when it changes.
    """

    def __init__(self) -> None:
        self._members: Mapping[ParticipantId, Member] = {}
        self._roles: Mapping[ParticipantId, Role] = {}
        self._entries: list[control.ParticipantEntry] = []

    def entries(self, state: MeetingState) -> list[control.ParticipantEntry]:
        """Everybody by id; services are not seen."""
        for participant in self._changed(state):
            at = bisect_left(self._entries, participant, key=attrgetter("id"))
            is_listed = at < len(self._entries) and self._entries[at].id == participant
            member, now = state.members.get(participant), []
            if member is not None and member.kind not in SERVICES:
                data = control_data(state, participant)
                assert data is not None  # noqa: S101 - they are a member
                now = [control.ParticipantEntry(id=participant, control=data)]
            self._entries[at : at + is_listed] = now
        self._members, self._roles = state.members, state.roles
        return list(self._entries)

    def _changed(self, state: MeetingState) -> set[ParticipantId]:
        """Who came, went, or is another than the last time; what did not change is the same object."""
        before, after = self._members, state.members
        changed: set[ParticipantId] = set()
        if after is not before:
            changed.update(who for who, member in after.items() if before.get(who) is not member)
            changed.update(before.keys() - after.keys())
        if state.roles is not self._roles:
            given = self._roles.keys() | state.roles.keys()
            changed.update(who for who in given if self._roles.get(who) is not state.roles.get(who))
        return changed


def join_data(record: Record, credentials: livekit.Credentials) -> livekit.JoinData:
    """What a joiner is told under the key `livekit`."""
    state = record.state
    restriction: livekit.MicrophoneRestrictionsOn | livekit.MicrophoneRestrictionsOff = (
        livekit.MicrophoneRestrictionsOn(
            unrestricted_participants=tuple(sorted(state.listed.get(Source.MICROPHONE, frozenset())))
        )
        if Source.MICROPHONE in state.restricted
        else livekit.MicrophoneRestrictionsOff()
    )
    return livekit.JoinData(
        room=credentials.room,
        token=credentials.token,
        public_url=credentials.public_url,
        service_url=credentials.service_url,
        microphone_restriction_state=restriction,
    )


def join_success(
    record: Record,
    participant: ParticipantId,
    *,
    attendance: Attendance,
    data: livekit.JoinData | None,
    view: moderation.JoinView | None,
) -> control.JoinSuccess:
    """
    The whole answer to `control/join`.

    Args:
        view: What the joiner sees of the meeting, if they asked for the extension.
    """
    state = record.state
    member = state.members[participant]
    return control.JoinSuccess(
        id=participant,
        display_name=member.display_name,
        role=state.role_of(participant).value,
        hand_is_up=member.hand_is_up,
        hand_updated_at=_told_time(member.hand_updated_at),
        participants=tuple(entry for entry in attendance.entries(state) if entry.id != participant),
        livekit=data,
        livekit_moderation=view,
        room_info=control.RoomInfo(id=state.room),
    )


class View:
    """
    The meeting as moderators were last shown it.

    Its version goes up with every difference, so that a copy that was kept up to date is known to be whole.

    Args:
        on_changed: Called with what watchers are to be told.

    Attributes:
        watchers: Whoever watches; while somebody does, `on_changed` is called.
    """

    def __init__(
        self, journal: Journal, roster: Roster, due: Due, on_changed: Callable[[moderation.StateChanged], None]
    ) -> None:
        self.watchers: set[object] = set()
        self._journal = journal
        self._roster = roster
        self._due = due
        self._on_changed = on_changed
        self._view = moderation.StateView(version=0, restrictions=(), blocks=(), bans=(), participants=())
        self._showing: asyncio.TimerHandle | None = None
        roster.on_change = due.on_change = self._show_soon
        journal.listen(lambda _before, _record, _entry: self._show_soon())

    def show(self, record: Record) -> moderation.StateView:
        """The meeting as a moderator sees it as of `record` or later; whoever watches has been told of all of it."""
        newest = self._journal.newest
        return self._show(record if newest is None or record.revision > newest.revision else newest)

    def _show(self, record: Record) -> moderation.StateView:
        before = self._view
        view = _state_view(record.state, self._roster, self._due, before.version + 1)
        changed = difference(before, view)
        if changed is None:
            return before
        self._view = view
        if self.watchers:
            self._on_changed(moderation.StateChanged(version=view.version, changed=changed))
        return view

    def _show_soon(self) -> None:
        if self.watchers and self._showing is None:
            self._showing = asyncio.get_running_loop().call_later(SHOWN_AFTER_S, self._show_newest)

    def _show_newest(self) -> None:
        self._showing = None
        if self._journal.newest is not None:
            self._show(self._journal.newest)

    def stop(self) -> None:
        """Nobody is shown anything any more."""
        if self._showing is not None:
            self._showing.cancel()
        self.watchers.clear()


def difference(before: moderation.StateView, after: moderation.StateView) -> moderation.Changed | None:
    """What a copy of `before` needs to become one of `after`, but for the version; `None` if they are the same."""
    changed: dict[str, Any] = {
        name: getattr(after, name)
        for name in ("restrictions", "blocks", "bans", "presenter", "strangers")
        if getattr(after, name) != getattr(before, name)
    }
    if "presenter" in changed and after.presenter is None:
        changed["gone"] = ("presenter",)
    known = {person.participant: person for person in before.participants}
    present = {person.participant for person in after.participants}
    people = [
        *(person for person in after.participants if known.get(person.participant) != person),
        *(moderation.ParticipantGone(participant=who) for who in sorted(known.keys() - present)),
    ]
    if people:
        changed["participants"] = tuple(people)
    return moderation.Changed(**changed) if changed else None


def _state_view(state: MeetingState, roster: Roster, due: Due, version: int) -> moderation.StateView:
    return moderation.StateView(
        version=version,
        restrictions=tuple(
            moderation.RestrictionView(
                source=source.value,
                allowed=tuple(state.listed.get(source, frozenset())),
                expires_at=_told_time(state.restricted_until.get(source)),
            )
            for source in ALL_SOURCES
            if source in state.restricted
        ),
        blocks=tuple(sorted(_blocks(state), key=lambda block: (block.participant, block.source, block.cause))),
        bans=tuple(state.bans),
        presenter=state.presenter,
        participants=tuple(
            _participant_view(state, roster, due, participant, state.members[participant])
            for participant in sorted(state.members)
        ),
        strangers=tuple(_stranger_views(state, roster, due)),
    )


def _blocks(state: MeetingState) -> Iterator[moderation.BlockView]:
    for block in state.blocks:
        by_bypass = block.cause is BlockCause.BYPASS
        yield moderation.BlockView(
            participant=block.participant,
            source=block.source.value,
            cause=block.cause.value,
            count=len(state.bypasses.get(block.participant, ())) if by_bypass else None,
        )
    for who, held in state.holds.items():
        for source, until in held.items():
            yield moderation.BlockView(participant=who, source=source.value, cause="hold", until=rfc3339(until))


def may_publish(record: Record, participant: ParticipantId) -> moderation.MayPublish:
    """What somebody may publish now."""
    return moderation.MayPublish(may_publish=tuple(source.value for source in publishable(participant, record.state)))


def _participant_view(
    state: MeetingState, roster: Roster, due: Due, participant: ParticipantId, member: Member
) -> moderation.ParticipantView:
    room = state.room_of(participant)
    presence = None if room is None else roster.presence(room, Identity(participant))
    return moderation.ParticipantView(
        participant=participant,
        role=state.role_of(participant).value,
        kind=member.kind.value,
        connected=member.returns_until is None,
        in_livekit=presence is not None,
        may_publish=tuple(source.value for source in publishable(participant, state)),
        publishing=() if presence is None else _track_views(presence),
        hand_is_up=member.hand_is_up,
        hand_updated_at=_told_time(member.hand_updated_at),
        settling=due.is_settling(participant),
    )


def _told_time(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)


def _track_views(presence: Presence) -> tuple[moderation.TrackView, ...]:
    return tuple(
        moderation.TrackView(
            source="unknown" if track.source is None else track.source.value, track_sid=track.sid, muted=track.muted
        )
        for track in presence.tracks
    )


def _stranger_views(state: MeetingState, roster: Roster, due: Due) -> Iterator[moderation.StrangerView]:
    present = roster.presences
    for identity, presence in sorted(strangers(state, present).items()):
        if is_unknown(state, presence):
            yield moderation.StrangerView(
                identity=identity,
                kind=presence.kind.value,
                may_publish=tuple(source.value for source in allowable(state, presence, present)),
                publishing=_track_views(presence),
                settling=due.is_settling(identity),
            )


def audit_view(entry: AuditEntry) -> moderation.AuditView:
    """An entry of the audit as moderators see it."""
    return moderation.AuditView(
        command_id=entry.command_id,
        at=rfc3339(entry.at),
        moderator=entry.moderator,
        action=entry.action,
        targets=entry.targets,
        outcomes=entry.outcomes,
        reason=entry.reason,
    )

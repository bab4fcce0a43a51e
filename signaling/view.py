"""The meeting as it is shown: to a moderator, to a joiner, and to the person concerned."""

from signaling.core.decisions import control_data
from signaling.core.participants import SERVICES, Role, Source
from signaling.core.policy import publishable
from signaling.core.state import MeetingState, Member
from signaling.identifiers import Identity, ParticipantId
from signaling.messages import control, livekit, moderation
from signaling.reconciler import Reconciler
from signaling.stores.contract import Record


class Attendance:
    """
    Who is in a meeting, as joiners are told.

    Each joiner is told of everybody, so what is said of somebody is made once, and anew only when it changes.
    """

    def __init__(self) -> None:
        self._entries: dict[ParticipantId, tuple[Member, Role, control.ParticipantEntry]] = {}

    def entries(self, state: MeetingState) -> list[control.ParticipantEntry]:
        """Everybody by id; services are not seen."""
        known, self._entries = self._entries, {}
        for participant in sorted(state.members):
            member, role = state.members[participant], state.role_of(participant)
            if member.kind in SERVICES:
                continue
            entry = known.get(participant)
            if entry is None or entry[0] is not member or entry[1] is not role:
                data = control_data(state, participant)
                assert data is not None  # noqa: S101 - they are a member
                entry = member, role, control.ParticipantEntry(id=participant, control=data)
            self._entries[participant] = entry
        return [entry for _, _, entry in self._entries.values()]


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
    reconciler: Reconciler | None,
) -> control.JoinSuccess:
    """
    The whole answer to `control/join`.

    Args:
        reconciler: Of the meeting, if the joiner asked for the extension; `None` leaves its part out.
    """
    state = record.state
    view: moderation.JoinView | None = None
    if reconciler is not None:
        is_moderator = state.is_moderator(participant)
        view = state_view(record, reconciler) if is_moderator else may_publish(record, participant)
    return control.JoinSuccess(
        id=participant,
        display_name=state.members[participant].display_name,
        role=state.role_of(participant).value,
        participants=tuple(entry for entry in attendance.entries(state) if entry.id != participant),
        livekit=data,
        livekit_moderation=view,
    )


def state_view(record: Record, reconciler: Reconciler) -> moderation.StateView:
    """Everything a moderator may see; what is in LiveKit is as of the last look."""
    state = record.state
    return moderation.StateView(
        version=state.version,
        restrictions=tuple(
            moderation.RestrictionView(
                source=source.value, allowed=tuple(sorted(state.listed.get(source, frozenset())))
            )
            for source in Source
            if source in state.restricted
        ),
        blocks=tuple(
            moderation.BlockView(participant=block.participant, source=block.source.value, cause="moderator")
            for block in sorted(state.blocks, key=lambda block: (block.participant, block.source))
        ),
        bans=(),
        participants=tuple(
            _participant_view(record, reconciler, participant, state.members[participant])
            for participant in sorted(state.members)
        ),
    )


def may_publish(record: Record, participant: ParticipantId) -> moderation.MayPublish:
    """What somebody may publish now."""
    return moderation.MayPublish(may_publish=tuple(source.value for source in publishable(participant, record.state)))


def _participant_view(
    record: Record, reconciler: Reconciler, participant: ParticipantId, member: Member
) -> moderation.ParticipantView:
    state = record.state
    room = state.room_of(participant)
    presence = None if room is None else reconciler.presence(room, Identity(participant))
    return moderation.ParticipantView(
        participant=participant,
        role=state.role_of(participant).value,
        kind=member.kind.value,
        connected=member.returns_until is None,
        in_livekit=presence is not None,
        may_publish=tuple(source.value for source in publishable(participant, state)),
        publishing=()
        if presence is None
        else tuple(
            moderation.TrackView(source=track.source.value, track_sid=track.sid, muted=track.muted)
            for track in presence.tracks
            if track.source is not None
        ),
        hand_is_up=member.hand_is_up,
        settling=reconciler.is_settling(participant),
    )

"""Histories that are right: core carries out one thing after another, and clients see that as if it took a while."""

from typing import Any

from signaling.answers import asks_for_result, result
from signaling.core.announcements import Everyone
from signaling.core.commands import AnyCommand, Enter
from signaling.core.conclusions import Conclusion, conclude
from signaling.core.decisions import Decision, Refusal, decide
from signaling.core.participants import Participant, Role
from signaling.core.state import new_meeting
from signaling.identifiers import CommandId, ParticipantId, RoomId, SessionId
from signaling.meeting.journal import draft_of
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, Namespace, parse_payload
from signaling.stores.contract import Entry, Origin, Record, fold
from tests.histories.recording import History

ROOM = RoomId("standup")


class Simulated:
    """A meeting that is one value, and what its clients see of it."""

    def __init__(self) -> None:
        self.history = History()
        self.record = Record(0, new_meeting(ROOM, screen_share_requires_permission=False))
        self.now = 1_000.0
        self.command_ids: list[str] = []
        self.sessions: dict[int, str] = {}

    def join(self, who: str, role: Role = Role.USER, *, before_s: float = 0.2, after_s: float = 0.2) -> int:
        """Somebody joins; the number of the session."""
        self.now += 1
        number = self.history.joining(ROOM, who, at=self.now - before_s)
        key = SessionId(f"session-{number}")
        participant = Participant(ParticipantId(who), role=role, display_name=who.title())
        self._carry_out(ParticipantId(who), Enter(participant, session=key), CommandId(f"join-{number}"), None)
        self.history.joined(number, at=self.now + after_s, key=key, revision=self.record.revision)
        self.sessions[number] = who
        return number

    def ask(
        self, session: int, namespace: str, payload: dict[str, Any], *, before_s: float = 0.2, after_s: float = 0.2
    ) -> int:
        """
        A command that has its effect a second after the last one; the number of its frame.

        Args:
            before_s: How long before its effect it was sent.
            after_s: How long after that it is answered.
        """
        self.now += 1
        transaction_id = len(self.history.frames) + 1
        sent_at = self.now - before_s
        number = self.history.asked(session, namespace, payload, transaction_id=transaction_id, at=sent_at)
        command_id = CommandId(f"c-{number}")
        commands: dict[str, Any] = {"livekit": livekit.COMMANDS, "livekit_moderation": moderation.COMMANDS}
        command = parse_payload(payload, commands.get(namespace, control.COMMANDS))
        sender = ParticipantId(self.sessions[session])
        origin = Origin(SessionId(f"session-{session}"), transaction_id)
        answer = self._carry_out(sender, command, command_id, origin)
        is_hand = isinstance(command, control.RaiseHand | control.LowerHand | livekit.RequestPopoutStreamAccessToken)
        if asks_for_result(Namespace(namespace), payload, transaction_id):
            came_to = None if is_hand and isinstance(answer, Conclusion) else answer
            told = result(str(payload["action"]), command_id, came_to)
            self._tell(session, told, transaction_id, self.now + after_s)
            self.command_ids.append(command_id)
        elif isinstance(answer, Refusal):
            error: Any = answer.error
            self._tell(session, control.ControlError(error=error), transaction_id, self.now + after_s)
        return number

    def _carry_out(
        self, sender: ParticipantId, command: AnyCommand, command_id: CommandId, origin: Origin | None
    ) -> Conclusion | Refusal:
        decision = decide(self.record.state, sender, command, now=self.now, command_id=command_id)
        if not isinstance(decision, Decision):
            return decision
        conclusion = conclude(self.record.state, decision)
        draft = draft_of(decision, conclusion, origin=origin)
        before = self.record
        entry = Entry(
            ROOM,
            before.revision + 1,
            self.now,
            draft.changes,
            begins_as=None if before.revision else before.state,
            command_id=command_id,
            is_undoable=draft.is_undoable,
            announcements=draft.announcements,
            audit=draft.audit,
            origin=origin,
        )
        self.record = fold(before, entry)
        self.history.committed(entry)
        if entry.audit is not None:
            self.history.audit.setdefault(ROOM, []).append(entry.audit)
        for announcement in entry.announcements:
            audience = announcement.audience
            for number, who in self.sessions.items():
                is_meant = who not in audience.but if isinstance(audience, Everyone) else who in audience.participants
                if is_meant:
                    own = origin is not None and origin.session == f"session-{number}"
                    transaction_id = origin.transaction_id if own and origin is not None else None
                    self._tell(number, announcement.event, transaction_id, self.now + 0.1)
        return conclusion

    def _tell(self, session: int, event: Event, transaction_id: int | str | None, at: float) -> None:
        payload = event.model_dump(mode="json", exclude_none=True)
        self.history.delivered(session, event.namespace.value, payload, transaction_id, at=at)

"""
Participants for tests: with real media in child processes, or with nothing but signaling.

Nothing here loads LiveKit's native library into this process; the children do.
"""

from signaling.testing.participants.errors import JoinRefused, PublishRefused, WaitedInVain
from signaling.testing.participants.media import Event, EventName, MediaParticipant, ParticipantProcess
from signaling.testing.participants.signal_only import SignalOnlyParticipant
from signaling.testing.participants.tokens import participant_token, room_service_answers

__all__ = [
    "Event",
    "EventName",
    "JoinRefused",
    "MediaParticipant",
    "ParticipantProcess",
    "PublishRefused",
    "SignalOnlyParticipant",
    "WaitedInVain",
    "participant_token",
    "room_service_answers",
]

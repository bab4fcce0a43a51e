"""What tests of a controller need: a media server to fail at will, people with real sound, and a client."""

from typing import TYPE_CHECKING

from signaling.lazily import names_of

if TYPE_CHECKING:
    from signaling.testing.child import ParticipantError, ParticipantProcessDied
    from signaling.testing.client import NotTold, Received, SignalingClient, SignalingRefused
    from signaling.testing.fake_room_service import FakeRoomService
    from signaling.testing.hosting import RunningServer
    from signaling.testing.meeting import Meeting, Person
    from signaling.testing.participants import (
        JoinRefused,
        MediaParticipant,
        ParticipantProcess,
        PublishRefused,
        SignalOnlyParticipant,
        WaitedInVain,
        participant_token,
        room_service_answers,
    )

__all__ = [
    "FakeRoomService",
    "JoinRefused",
    "MediaParticipant",
    "Meeting",
    "NotTold",
    "ParticipantError",
    "ParticipantProcess",
    "ParticipantProcessDied",
    "Person",
    "PublishRefused",
    "Received",
    "RunningServer",
    "SignalOnlyParticipant",
    "SignalingClient",
    "SignalingRefused",
    "WaitedInVain",
    "participant_token",
    "room_service_answers",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(
        __name__, __all__, ["child", "client", "participants", "fake_room_service", "hosting", "meeting"]
    )

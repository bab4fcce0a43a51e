"""What participants are refused, and what they waited for in vain."""

from signaling.testing.child import ParticipantError


class JoinRefused(ParticipantError):
    """LiveKit did not let the participant in; the message has its words."""


class PublishRefused(ParticipantError):
    """The participant may not publish this source."""


class WaitedInVain(ParticipantError):
    """What was waited for did not come in time; the message says what was there instead."""

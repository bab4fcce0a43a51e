"""Participants for tests: with real media, in child processes, or with signaling only."""

from signaling.errors import SignalingError


class ParticipantError(SignalingError):
    """A participant did not do what it was asked."""


class JoinRefused(ParticipantError):
    """The media server did not let the participant in; the message has its status and words."""


class PublishRefused(ParticipantError):
    """The participant may not publish this source."""

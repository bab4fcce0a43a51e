"""The error tree. Refusals are values and bugs are whatever they are; everything else is a `SignalingError`."""

from typing import Final, Literal


class SignalingError(Exception):
    """Anything that goes wrong here without being a bug."""


class ConfigurationError(SignalingError):
    """A setting is wrong or missing; the message names it. Raised before anything starts."""


class NoSuchMeeting(SignalingError):
    """There is no meeting of that id, or it is over."""


class NotInMeeting(SignalingError):
    """Nobody of that id is in the meeting."""


class InvalidParticipant(SignalingError):
    """The host asked for a participant that cannot be, such as a moderator of kind `guest`."""


class ParticipantBanned(SignalingError):
    """A moderator banned the participant from the meeting."""


class SessionEnded(SignalingError):
    """The session was used after it had ended."""


class MessageError(SignalingError):
    """Input that is no message; the text names the field and the reason, and never repeats the input."""


class MediaServerError(SignalingError):
    """LiveKit did not do what it was asked."""


class MediaServerUnavailable(MediaServerError):
    """No answer in time, or no connection. The call may still take effect."""


class MediaServerRejected(MediaServerError):
    """LiveKit answered, and the answer was no."""


class ParticipantGone(MediaServerRejected):
    """LiveKit does not know the participant (any more)."""


class RoomGone(MediaServerRejected):
    """LiveKit does not know the room (any more)."""


class TrackGone(MediaServerRejected):
    """LiveKit does not know the track (any more)."""


class MediaServerMissing(SignalingError):
    """There is no `livekit-server` to start; the message names the ways out."""


class MediaServerFailed(SignalingError):
    """The embedded `livekit-server` could not be built or did not start; the message holds its last words."""


class WebhookRefused(SignalingError):
    """
    Not something that LiveKit has just reported; nothing follows from it.

    Attributes:
        reason: Why, in a word.
    """

    def __init__(self, reason: Literal["forged", "replayed", "stale", "unparsable"]) -> None:
        """Put it into words."""
        super().__init__(f"the webhook is {reason}")
        self.reason: Final = reason


class StoreError(SignalingError):
    """The store did not answer."""


class TurnLost(StoreError):
    """A meeting's turn is over, or somebody else's by now: what is committed with it comes too late."""


class UnknownFormat(StoreError):
    """What is kept was written by a newer version: whoever cannot read it must not go on."""


class StoreLocked(StoreError):
    """Another process holds the store; the message names the file."""

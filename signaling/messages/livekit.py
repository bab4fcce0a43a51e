"""Namespace `livekit`: the commands and events of OpenTalk's LiveKit signaling module, field for field."""

from typing import ClassVar, Final, Literal

from pydantic import computed_field
from pydantic.config import JsonDict

from signaling.messages.base import Command, Event, Everybody, Message, Names, Namespace, Participant, by_action


class CreateNewAccessToken(Command):
    """Mint a new token from the meeting's state."""

    action: Literal["create_new_access_token"] = "create_new_access_token"


class ForceMute(Command):
    """Mute the microphone tracks of these participants, once."""

    action: Literal["force_mute"] = "force_mute"
    participants: Names


class GrantScreenSharePermission(Command):
    """Allow these participants by name to share their screen."""

    action: Literal["grant_screen_share_permission"] = "grant_screen_share_permission"
    participants: Names


class RevokeScreenSharePermission(Command):
    """Forbid these participants by name to share their screen, moderators too; a running share ends."""

    action: Literal["revoke_screen_share_permission"] = "revoke_screen_share_permission"
    participants: Names


class EnableMicrophoneRestrictions(Command):
    """Let only these participants, and moderators, publish a microphone."""

    action: Literal["enable_microphone_restrictions"] = "enable_microphone_restrictions"
    unrestricted_participants: Names


class DisableMicrophoneRestrictions(Command):
    """Let everybody publish a microphone again."""

    action: Literal["disable_microphone_restrictions"] = "disable_microphone_restrictions"


class RequestPopoutStreamAccessToken(Command):
    """Mint a token for a hidden viewer that can only subscribe."""

    action: Literal["request_popout_stream_access_token"] = "request_popout_stream_access_token"


LiveKitCommand = (
    CreateNewAccessToken
    | ForceMute
    | GrantScreenSharePermission
    | RevokeScreenSharePermission
    | EnableMicrophoneRestrictions
    | DisableMicrophoneRestrictions
    | RequestPopoutStreamAccessToken
)

COMMANDS: Final[dict[str, type[LiveKitCommand]]] = by_action(
    CreateNewAccessToken,
    ForceMute,
    GrantScreenSharePermission,
    RevokeScreenSharePermission,
    EnableMicrophoneRestrictions,
    DisableMicrophoneRestrictions,
    RequestPopoutStreamAccessToken,
)


class LiveKitEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = Namespace.LIVEKIT


class MicrophoneRestrictionsOn(Message):
    """Only those listed, and moderators, may publish a microphone."""

    type: Literal["enabled"] = "enabled"
    unrestricted_participants: Everybody


class MicrophoneRestrictionsOff(Message):
    """Everybody may publish a microphone."""

    type: Literal["disabled"] = "disabled"


class MediaCredentials(Message):
    """What a client needs to enter a LiveKit room; `service_url` only for kinds that run beside the server."""

    room: str
    token: str
    public_url: str
    service_url: str | None = None


def _on_the_wire(schema: JsonDict) -> None:
    """For whoever reads it, what is computed is a field like any other."""
    schema.pop("readOnly")


class JoinData(MediaCredentials):
    """What the host tells a joiner under the key `livekit`; known clients read it flat, the description nests it."""

    microphone_restriction_state: MicrophoneRestrictionsOn | MicrophoneRestrictionsOff

    @computed_field(json_schema_extra=_on_the_wire)  # type: ignore[prop-decorator]
    @property
    def credentials(self) -> MediaCredentials:
        """The same once more."""
        return MediaCredentials(
            room=self.room, token=self.token, public_url=self.public_url, service_url=self.service_url
        )


class Credentials(MediaCredentials, LiveKitEvent):
    """A new token, for the connection that asked or that was moved."""

    message: Literal["credentials"] = "credentials"


class PopoutStreamAccessToken(LiveKitEvent):
    """A popout's token, for the connection that asked."""

    message: Literal["popout_stream_access_token"] = "popout_stream_access_token"
    token: str


class ForceMuted(LiveKitEvent):
    """LiveKit confirmed that your microphone was muted."""

    message: Literal["force_muted"] = "force_muted"
    moderator: Participant | Literal["controller"]


class MicrophoneRestrictionsEnabled(LiveKitEvent):
    """From now on only those listed, and moderators, may publish a microphone."""

    message: Literal["microphone_restrictions_enabled"] = "microphone_restrictions_enabled"
    unrestricted_participants: Everybody


class MicrophoneRestrictionsDisabled(LiveKitEvent):
    """From now on everybody may publish a microphone."""

    message: Literal["microphone_restrictions_disabled"] = "microphone_restrictions_disabled"


class ScreenSharePermissionsUpdated(LiveKitEvent):
    """What your grant or revocation came to: those for whom it now holds."""

    message: Literal["screen_share_permissions_updated"] = "screen_share_permissions_updated"
    grant: bool
    participants: Everybody


LiveKitErrorCode = Literal[
    "livekit_unavailable", "insufficient_permissions", "rate_limit_exceeded", "invalid_command", "internal"
]


class LiveKitError(LiveKitEvent):
    """Your command was refused, or did not reach everybody; `detail` names the field of one that cannot be parsed."""

    message: Literal["error"] = "error"
    error: LiveKitErrorCode
    detail: str | None = None

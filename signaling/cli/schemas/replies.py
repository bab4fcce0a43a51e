"""What a command may be answered."""

from collections.abc import Mapping
from typing import Final

from signaling.messages import control, echo, livekit, moderation
from signaling.messages.base import Command, Event

_Kinds = tuple[type[Event], ...]
_OF_LIVEKIT: Final[_Kinds] = (livekit.LiveKitError, moderation.Result, control.ControlError)
_OF_CONTROL: Final[_Kinds] = (control.ControlError,)
_OF_READING: Final[_Kinds] = (moderation.Result, moderation.ModerationError)
# What moderators do is told to all of them, and may change their own rights.
_OF_ACTIONS: Final[_Kinds] = (moderation.ActionTaken, moderation.PermissionsChanged)
# That LiveKit did not do its part of a command is told in `livekit`, whatever the command's own namespace.
_OF_MODERATION: Final[_Kinds] = (*_OF_ACTIONS, *_OF_READING, livekit.LiveKitError)
_OF_ROLES: Final[_Kinds] = (control.Update, *_OF_ACTIONS, control.ControlError, livekit.LiveKitError)
_OF_MICROPHONES: Final[_Kinds] = (
    livekit.MicrophoneRestrictionsEnabled,
    livekit.MicrophoneRestrictionsDisabled,
    *_OF_MODERATION,
)
REPLIES: Final[Mapping[type[Command], _Kinds]] = {
    control.Join: (control.JoinSuccess, control.ControlError),
    control.RaiseHand: (control.HandRaised, *_OF_CONTROL),
    control.LowerHand: (control.HandLowered, control.Update, *_OF_CONTROL),
    control.GrantModeratorRole: (control.ModeratorRoleGranted, *_OF_ROLES),
    control.RevokeModeratorRole: (control.RoleUpdated, control.ModeratorRoleRevoked, *_OF_ROLES),
    echo.Ping: (echo.Pong, echo.EchoError),
    livekit.CreateNewAccessToken: (livekit.Credentials, *_OF_LIVEKIT),
    livekit.ForceMute: (livekit.ForceMuted, moderation.Muted, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.GrantScreenSharePermission: (livekit.ScreenSharePermissionsUpdated, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.RevokeScreenSharePermission: (livekit.ScreenSharePermissionsUpdated, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.EnableMicrophoneRestrictions: (livekit.MicrophoneRestrictionsEnabled, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.DisableMicrophoneRestrictions: (livekit.MicrophoneRestrictionsDisabled, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.RequestPopoutStreamAccessToken: (livekit.PopoutStreamAccessToken, *_OF_LIVEKIT),
    moderation.Mute: (livekit.ForceMuted, moderation.Muted, *_OF_MODERATION),
    moderation.Restrict: _OF_MICROPHONES,
    moderation.Unrestrict: _OF_MICROPHONES,
    moderation.Disallow: (*_OF_MICROPHONES, livekit.ScreenSharePermissionsUpdated),
    moderation.Allow: (*_OF_MICROPHONES, livekit.ScreenSharePermissionsUpdated),
    moderation.Stop: _OF_MODERATION,
    moderation.SetPresenter: _OF_MODERATION,
    moderation.AskToUnmute: (moderation.UnmuteRequested, *_OF_MODERATION),
    moderation.AnswerUnmuteRequest: (moderation.UnmuteRequestAnswered, *_OF_MICROPHONES),
    moderation.Kick: (control.Left, *_OF_MODERATION),
    moderation.Unban: _OF_MODERATION,
    moderation.Undo: _OF_MICROPHONES,
    moderation.GetState: (moderation.State, *_OF_READING),
    moderation.Watch: (moderation.State, *_OF_READING),
    moderation.GetAudit: (moderation.Audit, *_OF_READING),
    moderation.Preview: (moderation.Result,),
}
"""What the sender of a command may be answered; each of these carries the command's `transaction_id`."""

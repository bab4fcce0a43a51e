"""What moderators decide: each command has its line here, and its family decides."""

from collections.abc import Mapping
from typing import assert_never

from signaling.core.commands import ModeratorCommand
from signaling.core.decisions import muting, questions, removal, rights, roles, undoing
from signaling.core.decisions.decision import Decision, Refusal
from signaling.core.effects import Presence
from signaling.core.participants import Role, Source
from signaling.core.state import MeetingState
from signaling.identifiers import CommandId, ParticipantId
from signaling.messages import control, livekit, moderation


def decide_for_moderator(
    state: MeetingState,
    sender: ParticipantId,
    command: ModeratorCommand,
    now: float,
    command_id: CommandId,
    strangers: Mapping[ParticipantId, Presence],
) -> Decision | Refusal:
    """What a command comes to that only moderators, and the host in their place, may give."""
    action = Decision(command_id, command.action, sender, now, is_action=True)
    match command:
        case livekit.ForceMute():
            return muting.force_mute(state, action, command, strangers)
        case moderation.Mute():
            return muting.mute(state, action, command, strangers)
        case moderation.Stop():
            return muting.stop(state, action, command, strangers)
        case livekit.EnableMicrophoneRestrictions():
            return rights.restrict_microphones(state, action, command, strangers)
        case livekit.DisableMicrophoneRestrictions():
            return rights.lift(action, Source.MICROPHONE)
        case moderation.Restrict():
            return rights.restrict(state, action, command, strangers)
        case moderation.Unrestrict():
            return rights.lift(action, Source(command.source))
        case livekit.GrantScreenSharePermission():
            return rights.allow(state, action, command.participants, Source.SCREEN_SHARE)
        case livekit.RevokeScreenSharePermission():
            return rights.disallow(state, action, command.participants, Source.SCREEN_SHARE)
        case moderation.Allow():
            return rights.allow(state, action, command.participants, Source(command.source), strangers)
        case moderation.Disallow():
            return rights.disallow(state, action, command.participants, Source(command.source), strangers)
        case moderation.SetPresenter():
            return rights.set_presenter(state, action, command)
        case moderation.AskToUnmute():
            return questions.ask(state, action, command, strangers)
        case control.GrantModeratorRole():
            return roles.give_role(state, sender, command.target, Role.MODERATOR, command.action, now, command_id)
        case control.RevokeModeratorRole():
            return roles.take_role(state, sender, command, now, command_id)
        case moderation.Kick():
            return removal.kick(state, action, command, strangers)
        case moderation.Unban():
            return removal.unban(state, action, command, strangers)
        case moderation.Undo():
            return undoing.undo(state, action, CommandId(command.command_id))
        case _:
            assert_never(command)

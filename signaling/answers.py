"""What the sender of a command is told beyond what was announced."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from signaling.core.decisions import Conclusion, Refusal, RefusalCode
from signaling.identifiers import CommandId
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, Namespace

_IN_LIVEKIT: Final[Mapping[RefusalCode, livekit.LiveKitErrorCode]] = MappingProxyType(
    {
        "insufficient_permissions": "insufficient_permissions",
        "internal": "internal",
        "invalid_command": "invalid_command",
        "livekit_unavailable": "livekit_unavailable",
        "rate_limit_exceeded": "rate_limit_exceeded",
        "unavailable": "internal",  # the namespace has no word for the store
    }
)
_IN_CONTROL: Final[Mapping[RefusalCode, control.ControlErrorCode]] = MappingProxyType(
    {
        "already_joined": "already_joined",
        "insufficient_permissions": "insufficient_permissions",
        "internal": "internal",
        "invalid_command": "invalid_command",
        "nothing_to_do": "nothing_to_do",
        "rate_limit_exceeded": "rate_limit_exceeded",
        "unavailable": "internal",
    }
)
_IN_MODERATION: Final[Mapping[RefusalCode, moderation.ResultErrorCode]] = MappingProxyType(
    {
        "insufficient_permissions": "insufficient_permissions",
        "internal": "internal",
        "invalid_command": "invalid_command",
        "livekit_unavailable": "livekit_unavailable",
        "not_undoable": "not_undoable",
        "rate_limit_exceeded": "rate_limit_exceeded",
        "unavailable": "unavailable",
        "unknown_command_id": "unknown_command_id",
        "unknown_request_id": "unknown_request_id",
    }
)


def answers(
    namespace: Namespace,
    action: str | None,
    command_id: CommandId,
    answer: Conclusion | Refusal | None,
    *,
    with_result: bool,
) -> Iterator[Event]:
    """
    The events for the sender alone.

    Args:
        action: What was asked, `None` if that cannot be told.
        answer: `None` for a command that was carried out and has no outcomes.
        with_result: Whether the sender asked for a `result`.
    """
    error = None if answer is None else answer.error
    detail = retry_after_s = None
    if isinstance(answer, Refusal):
        detail, retry_after_s = answer.detail, answer.retry_after_s
    if with_result:
        concluded = answer if isinstance(answer, Conclusion) else None
        yield moderation.Result(
            command_id=command_id,
            action=action,
            error=None if error is None else _IN_MODERATION[error],
            detail=detail,
            retry_after_s=retry_after_s,
            outcomes=() if concluded is None else concluded.outcomes,
            repaired_later=() if concluded is None else concluded.repaired_later,
        )
    if error is None:
        return
    if isinstance(answer, Conclusion) or namespace is Namespace.LIVEKIT:
        # That LiveKit did not do its part of a command is told in this namespace, whatever the command's own.
        yield livekit.LiveKitError(error=_IN_LIVEKIT[error], detail=detail)
    elif namespace is Namespace.CONTROL:
        yield control.ControlError(error=_IN_CONTROL[error], detail=detail)
    elif not with_result:
        yield moderation.ModerationError(error=_IN_MODERATION[error], detail=detail, retry_after_s=retry_after_s)

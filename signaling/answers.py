"""What the sender of a command is told beyond what was announced."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, assert_never

from signaling.core.conclusions import Conclusion
from signaling.core.decisions import Refusal, RefusalCode
from signaling.identifiers import CommandId
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event, Namespace
from signaling.messages.envelope import TransactionId

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


_COMMANDS: Final[Mapping[Namespace, Mapping[str, object]]] = MappingProxyType(
    {
        Namespace.LIVEKIT: livekit.COMMANDS,
        Namespace.MODERATION: moderation.COMMANDS,
        Namespace.CONTROL: control.COMMANDS,
    }
)


def is_preview(namespace: Namespace, payload: object) -> bool:
    """Whether a command, readable or not, only asks what another would do."""
    return namespace is Namespace.MODERATION and isinstance(payload, dict) and payload.get("action") == "preview"


def named_action(namespace: Namespace, payload: object) -> str | None:
    """What a command, readable or not, asks for, or asks about; `None` if that is no action of the namespace."""
    named = payload
    if isinstance(payload, dict) and is_preview(namespace, payload):
        named = payload.get("command")
    action = named.get("action") if isinstance(named, dict) else None
    return action if isinstance(action, str) and action in _COMMANDS[namespace] else None


def asks_for_result(namespace: Namespace, payload: object, transaction_id: TransactionId | None) -> bool:
    """Whether a command, readable or not, is to be answered by a `result` where its sender knows of those."""
    return is_preview(namespace, payload) or (transaction_id is not None and namespace is not Namespace.CONTROL)


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
    if with_result:
        yield result(action, command_id, answer)
    error = None if answer is None else answer.error
    if error is None:
        return
    detail = retry_after_s = None
    if isinstance(answer, Refusal):
        detail, retry_after_s = answer.detail, answer.retry_after_s
    if isinstance(answer, Conclusion) or namespace is Namespace.LIVEKIT:
        # That LiveKit did not do its part of a command is told in this namespace, whatever the command's own.
        yield livekit.LiveKitError(error=_IN_LIVEKIT[error], detail=detail)
    elif namespace is Namespace.CONTROL:
        yield control.ControlError(error=_IN_CONTROL[error], detail=detail)
    elif not with_result:
        yield moderation.ModerationError(error=_IN_MODERATION[error], detail=detail, retry_after_s=retry_after_s)


def result(action: str | None, command_id: CommandId, answer: Conclusion | Refusal | None) -> moderation.Result:
    """The whole answer to a command in one; see `answers`."""
    match answer:
        case None:
            return moderation.Result(command_id=command_id, action=action)
        case Refusal(error, detail, retry_after_s):
            return moderation.Result(
                command_id=command_id,
                action=action,
                error=_IN_MODERATION[error],
                detail=detail,
                retry_after_s=retry_after_s,
            )
        case Conclusion():
            return moderation.Result(
                command_id=command_id,
                action=action,
                error=answer.error,
                outcomes=answer.outcomes,
                repaired_later=answer.repaired_later,
            )
        case _:
            assert_never(answer)

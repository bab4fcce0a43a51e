"""What all messages share: frozen models, ids that are checked, and errors that repeat no input."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum, StrEnum
from functools import lru_cache
from math import modf
from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    WithJsonSchema,
)

from signaling.errors import MessageError
from signaling.identifiers import ParticipantId, parse_participant_id

MAX_IDS: Final = 5_000
"""Ids that one command may name."""
MAX_NAME_LENGTH: Final = 256
"""Characters of an identity that a command may name."""

_REASONS: Final = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "too_short": "must not be empty",
}


class Namespace(StrEnum):
    """Which part of the protocol a message belongs to."""

    LIVEKIT = "livekit"
    MODERATION = "livekit_moderation"
    CONTROL = "control"
    ECHO = "echo"


class ServerNamespace(StrEnum):
    """A part of the protocol in which clients are told something and send nothing."""

    REMOVAL = "moderation"


class Message(BaseModel):
    """Any payload. Values of the wrong JSON type are refused, never converted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class Command(Message):
    """A client asks. `action` names the command."""

    action: str


class Event(Message):
    """We announce. `message` names the event."""

    namespace: ClassVar[Namespace | ServerNamespace]
    message: str

    def to_json(self) -> str:
        """The payload as it is sent."""
        return self.model_dump_json(exclude_none=True)


def in_order(ids: Iterable[ParticipantId]) -> tuple[ParticipantId, ...]:
    """Ids as they leave: each once, sorted."""
    return tuple(sorted(set(ids)))


def rfc3339(at: float) -> str:
    """Seconds since the epoch as `2026-03-01T09:30:00.123Z`."""
    fraction, whole = modf(at)
    more, microseconds = divmod(round(fraction * 1e6), 1_000_000)  # as `datetime` rounds
    return f"{_second(int(whole) + more)}.{microseconds // 1_000:03}Z"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    """A whole second: an event is rarely the only one of its second."""
    return datetime.fromtimestamp(at, UTC).isoformat().removesuffix("+00:00")


def as_timestamp(at: object) -> object:
    """A time as `rfc3339` has it: of seconds, or of any form of RFC 3339; whatever else is left to be refused."""
    match at:
        case str():
            return rfc3339(datetime.fromisoformat(at).timestamp())
        case int() | float() if not isinstance(at, bool):
            return rfc3339(at)
        case _:
            return at


Participant = Annotated[ParticipantId, AfterValidator(parse_participant_id)]
"""One id, checked and normalised."""

Name = Annotated[ParticipantId, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
"""Whom a command names: any identity that LiveKit takes. Who that is says `signaling.core.references`."""

Names = Annotated[
    # JSON has lists only; everything inside them stays strict.
    # The first that is wrong ends it: a frame of 1 MiB has room for 340,000 of them, which take seconds.
    tuple[Name, ...], Strict(strict=False), Field(fail_fast=True, max_length=MAX_IDS), AfterValidator(in_order)
]
"""Whom a command names, sorted and unique, 5,000 at most."""

Somebody = ParticipantId
"""Whoever is told of: by their id, or, if they are in LiveKit alone, by any identity that LiveKit took."""

Everybody = Annotated[tuple[Somebody, ...], Strict(strict=False), AfterValidator(in_order)]
"""Whoever is told of, sorted and unique, however many there are."""

Timestamp = Annotated[str, BeforeValidator(as_timestamp)]
"""RFC 3339 in UTC, also made of seconds since the epoch: once, however often it is sent."""


class Nothing(Enum):
    """A value that leaves as `null`. It is not `None`, since fields of that value are left out."""

    NULL = None


NULL: Final = Nothing.NULL
Null = Annotated[Nothing, WithJsonSchema({"type": "null"})]
"""Always there, and always `null`: for the few fields that clients compare with that."""


MessageType = TypeVar("MessageType", bound=Message)
CommandType = TypeVar("CommandType", bound=Command)


def by_action(*commands: type[CommandType]) -> dict[str, type[CommandType]]:
    """The commands of a namespace by the name that the wire has for them."""
    return {command.model_fields["action"].default: command for command in commands}


def parse_payload(payload: object, commands: Mapping[str, type[CommandType]]) -> CommandType:
    """
    The command that a payload holds.

    Raises:
        MessageError: Naming the first field that is wrong, and why, without repeating what was sent.
    """
    if not isinstance(payload, dict):
        raise MessageError("payload: must be an object")
    action = payload.get("action")
    if not isinstance(action, str):
        raise MessageError("action: is required" if action is None else "action: must be a string")
    command = commands.get(action)
    if command is None:
        raise MessageError("action: not a command of this namespace")
    for name, field in command.model_fields.items():
        if not field.is_required() and name in payload and payload[name] is None:
            raise MessageError(f"{name}: must be left out, never null")
    return validated(command, payload)


def validated(model: type[MessageType], value: object) -> MessageType:
    """
    The message that `value` is.

    Raises:
        MessageError: Naming the first field that is wrong, and why, without repeating what was sent.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise MessageError(_describe(error)) from None  # the cause would hold the input


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=True, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        # The location of an unknown field is its name, which is input.
        return "unknown field"
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    if first["type"] == "too_long":
        return f"{where}: must not name more than {first['ctx']['max_length']:,}"
    reason = _REASONS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason  # what is wrong between fields names them itself

"""The frame around every payload."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import jiter

from signaling.errors import MessageError
from signaling.messages.base import Event, Namespace, rfc3339

TransactionId = int | str
MAX_FRAME_BYTES: Final = 1024 * 1024
MAX_TRANSACTION_ID: Final = 2**64 - 1
MAX_TRANSACTION_ID_LENGTH: Final = 64
_MAX_CONTAINERS: Final = 10_000
_MAX_QUOTES: Final = 20_000
"""Twice the strings of any command; a key costs ten times what other values do, for being compared with others."""
_MAX_MENDED: Final = 16 * 1024
_ESCAPE: Final = re.compile(
    r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?!u[dD][89a-fA-F]).)|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
"""An escape in JSON; its group, unless it is half of a surrogate pair."""

EnvelopeErrorCode = Literal["invalid_json", "invalid_namespace", "invalid_command"]


class EnvelopeError(MessageError):
    """The frame itself is wrong. `namespace` is the one to answer in."""

    def __init__(
        self,
        code: EnvelopeErrorCode,
        detail: str | None = None,
        *,
        namespace: Namespace = Namespace.CONTROL,
        transaction_id: TransactionId | None = None,
    ) -> None:
        super().__init__(detail or code)
        self.code = code
        self.detail = detail
        self.namespace = namespace
        self.transaction_id = transaction_id


@dataclass(frozen=True, slots=True)
class Frame:
    """What a client sent, as far as every namespace has it."""

    namespace: Namespace
    payload: object
    transaction_id: TransactionId | None


def parse_frame(text: str) -> Frame:
    """
    Take a text frame apart, without looking into its payload.

    Costs at most some 25 ms for the worst of 1 MiB: containers are counted before they are built, nesting is bounded.

    Raises:
        EnvelopeError: Not JSON, a key twice, no object, an unknown namespace or a `transaction_id` that is none.
    """
    frame = parse_object(text)
    transaction_id = frame.get("transaction_id")
    is_valid = "transaction_id" not in frame or is_transaction_id(transaction_id)
    name = frame.get("namespace")
    try:
        namespace = Namespace(name if isinstance(name, str) else "")  # it would write out whatever else it is given
    except ValueError:
        raise EnvelopeError("invalid_namespace", transaction_id=transaction_id if is_valid else None) from None
    if not is_valid:
        detail = f"transaction_id: must be a number up to 2^64-1 or a string of 1 to {MAX_TRANSACTION_ID_LENGTH}"
        raise EnvelopeError("invalid_command", detail, namespace=namespace)
    return Frame(namespace, frame.get("payload"), transaction_id)


def parse_object(text: str) -> dict[str, Any]:
    """
    The JSON object that `text` is.

    Raises:
        EnvelopeError: Not JSON, a key twice, no object, or more values than any command has.
    """
    if text.count("{") + text.count("[") > _MAX_CONTAINERS or text.count('"') > _MAX_QUOTES:
        raise EnvelopeError("invalid_json", "more values than any command has")
    try:
        value = _from_json(text)
    except ValueError:  # also lone surrogates, which UTF-8 does not have; the cause would repeat input
        try:
            value = _from_json(mend_names(text, "display_name"))
        except ValueError:
            raise EnvelopeError("invalid_json") from None
    if not isinstance(value, dict):
        raise EnvelopeError("invalid_json", "must be an object")
    return value


def _from_json(text: str) -> object:
    return jiter.from_json(
        text.encode(), allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="none", float_mode="float"
    )


def mend_names(text: str, key: str) -> str:
    """
    JSON with whole characters in what this key holds.

    Whoever cuts a name at so many UTF-16 units may leave half of a pair, which is JSON by its grammar and no text. It
    is taken out of names only: anywhere else it would make one id of two.
    """
    if len(text) > _MAX_MENDED:
        return text
    named = re.compile(rf'("{key}"\s*:\s*")((?:[^"\\]|\\.)*)')
    return named.sub(lambda found: found[1] + _ESCAPE.sub(lambda escape: escape[1] or "", found[2]), text)


def is_transaction_id(value: object) -> bool:
    """Whether `value` is an unsigned 64-bit number or a string of 1 to 64 characters."""
    match value:
        case bool():
            return False
        case int():
            return 0 <= value <= MAX_TRANSACTION_ID
        case str():
            return 1 <= len(value) <= MAX_TRANSACTION_ID_LENGTH
        case _:
            return False


class Delivery:
    """
    One event on its way to one or many connections; its JSON is made once.

    Attributes:
        event: The event itself.
        transaction_id: Of the command that caused it, for the sender's own copy; `None` for everybody else's.
        timestamp: Seconds since the epoch; never goes backwards on one connection.
    """

    __slots__ = ("__dict__", "_text", "event", "timestamp", "transaction_id")

    def __init__(self, event: Event, timestamp: float, transaction_id: TransactionId | None = None) -> None:
        self.event = event
        self.timestamp = timestamp
        self.transaction_id = transaction_id
        self._text: str | None = None

    def __repr__(self) -> str:
        return f"Delivery({self.namespace}/{self.event.message})"  # events hold tokens

    @property
    def namespace(self) -> str:
        """The event's namespace, as the wire has it."""
        return self.event.namespace.value

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The event as a JSON object, for hosts with an envelope of their own."""
        return self.event.model_dump(mode="json", exclude_none=True)

    @property
    def text(self) -> str:
        """The whole frame as JSON."""
        if self._text is None:
            transaction = "" if self.transaction_id is None else f',"transaction_id":{json.dumps(self.transaction_id)}'
            self._text = (
                f'{{"namespace":"{self.namespace}","timestamp":"{rfc3339(self.timestamp)}",'
                f'"payload":{self.event.to_json()}{transaction}}}'
            )
        return self._text

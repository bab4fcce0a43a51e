"""
What is kept, as JSON such as `{"format": 1, "revision": 7, "changes": [{"change": …}], "announcements": […], …}`.

The shapes are derived from the dataclasses themselves, so a field or a change that is added needs nothing here. A field
with a default may be missing in what an earlier version wrote; `FORMAT` goes up when that is not enough.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from operator import attrgetter
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    Discriminator,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    WrapSerializer,
)

from signaling.core.announcements import Audience
from signaling.core.changes import Change
from signaling.core.effects import Effect
from signaling.core.state import Setting
from signaling.errors import StoreError, UnknownFormat
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Event
from signaling.stores.contract import AuditEntry, Entry, Record, Staged, Unstaged

FORMAT: Final = 1

_Kept = TypeVar("_Kept")


def dump_record(record: Record) -> bytes:
    """A meeting as it is kept; equal records give equal bytes, but for the order in which their mappings were made."""
    return _RECORD.dump(record)


def load_record(data: bytes) -> Record:
    """
    The meeting that was kept.

    Raises:
        StoreError: It is none, or of a format that this version does not know.
    """
    return _RECORD.load(data)


def dump_entry(entry: Entry) -> bytes:
    """A commit as it is kept."""
    return _ENTRY.dump(entry)


def load_entry(data: bytes) -> Entry:
    """
    The commit that was kept.

    Raises:
        StoreError: It is none, or of a format that this version does not know.
    """
    return _ENTRY.load(data)


def dump_audit_entry(entry: AuditEntry) -> bytes:
    """An audit entry as it is kept."""
    return _AUDIT_ENTRY.dump(entry)


def load_audit_entry(data: bytes) -> AuditEntry:
    """
    The audit entry that was kept.

    Raises:
        StoreError: It is none, or of a format that this version does not know.
    """
    return _AUDIT_ENTRY.load(data)


class _Format(Generic[_Kept]):
    """How values of one dataclass are kept."""

    def __init__(self, kept: type[_Kept]) -> None:
        self._name = kept.__name__
        self._adapter: TypeAdapter[_Kept] = TypeAdapter(_kept_dataclass(kept, {"format": FORMAT}))

    def dump(self, value: _Kept) -> bytes:
        # What is not of its type could perhaps not be read again: that is a bug, and not only a warning.
        return self._adapter.dump_json(value, warnings="error")

    def load(self, data: bytes) -> _Kept:
        try:
            return self._adapter.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
        # Without a cause: that would hold the people's names.
        if first["loc"] == ("format",) and first["type"] != "missing":
            raise UnknownFormat(f"{self._name} of format {first['input']!r}, and this version knows {FORMAT} only")
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"no {self._name} of ours: {where}{': ' if where else ''}{first['msg']}")


# --- Shapes ------------------------------------------------------------------------------------------------------
# Types are rewritten until pydantic writes what can be read again: sets in order, members of a union with their name.
# What needs no rewriting is left to pydantic as it is, which is fast: all members of a meeting are of that kind.

_UNIONS: Final[Mapping[frozenset[Any], str]] = {
    frozenset(get_args(Audience)): "audience",
    frozenset(get_args(Change)): "change",
    frozenset(get_args(Effect)): "effect",
    frozenset(get_args(Setting)): "setting",
    frozenset({Staged, Unstaged}): "staging",
}
"""By their members, the unions whose members may have the same shape, and the key that tells them apart."""


def _kept(hint: Any) -> Any:  # noqa: ANN401 - types are values here
    """The type that is kept in the place of this one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is frozenset:
        return Annotated[GenericAlias(frozenset, (_kept(arguments[0]),)), WrapSerializer(_in_order)]
    if origin in {Union, UnionType}:
        return _kept_union(arguments)
    if origin is Mapping:
        kept: Any = GenericAlias(dict, tuple(map(_kept, arguments)))
        return Annotated[kept, PlainSerializer(dict, return_type=kept)]
    if origin is tuple:
        return GenericAlias(tuple, tuple(map(_kept, arguments)))
    if hint is Event:
        return _kept_event()
    return _kept_dataclass(hint, {}) if is_dataclass(hint) else hint


def _in_order(values: Iterable[Any], write: SerializerFunctionWrapHandler) -> list[Any]:
    return sorted(write(values), key=str)


def _kept_union(members: Iterable[Any]) -> Any:  # noqa: ANN401 - types are values here
    members = frozenset(members)
    key = _UNIONS.get(members - {NoneType})
    if key is None:
        return Union[tuple(map(_kept, members))]  # noqa: UP007 - there is no other way to make one of many

    def tag(value: object) -> object:
        return value.get(key) if isinstance(value, dict) else _snake_case(type(value).__name__)

    kept = {_snake_case(member.__name__): member for member in members - {NoneType}}
    choices = [Annotated[_kept_dataclass(member, {key: name}), Tag(name)] for name, member in kept.items()]
    tagged: Any = Annotated[Union[tuple(choices)], Discriminator(tag)]  # noqa: UP007 - as above
    return tagged | None if NoneType in members else tagged


def _kept_event() -> Any:  # noqa: ANN401 - types are values here
    """Any event, with its name: as the wire has it, but for what is left out there."""

    def tag(value: object) -> object:
        return _name_of(value) if isinstance(value, Event) else value.get("event") if isinstance(value, dict) else None

    def write(value: Event) -> object:
        return shapes[type(value)](event=_name_of(value), payload=value)

    shapes: dict[type[Event], Any] = {}
    choices = []
    for event in _events():
        name = f"{event.namespace}/{_message(event)}"
        shape = make_dataclass(event.__name__, [("event", Literal[name]), ("payload", event)], slots=True)
        shapes[event] = shape
        read = AfterValidator(attrgetter("payload"))
        choices.append(Annotated[shape, read, PlainSerializer(write, return_type=shape), Tag(name)])
    return Annotated[Union[tuple(choices)], Discriminator(tag)]  # noqa: UP007 - as above


def _events() -> Iterator[type[Event]]:
    """Every event that there is."""
    for module in (control, livekit, moderation):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Event) and isinstance(_message(value), str):
                yield value


def _message(event: type[Event]) -> object:
    """What an event is called; classes of several events are called nothing."""
    return event.model_fields["message"].default


def _name_of(event: Event) -> str:
    return f"{event.namespace}/{event.message}"


def _kept_dataclass(kept: Any, tags: Mapping[str, str | int]) -> Any:  # noqa: ANN401 - types are values here
    """A dataclass whose kept form has these keys and values in addition; its own class if it can be kept as it is."""
    hints = get_type_hints(kept, include_extras=True)
    shapes = {name: _kept(hint) for name, hint in hints.items()}
    if not tags and shapes == hints:
        return kept
    if clashing := tags.keys() & shapes.keys():
        raise TypeError(f"{kept.__name__} has a field called {clashing.pop()}")
    declared: list[tuple[str, Any, Any]] = [(key, Literal[value], field()) for key, value in tags.items()]
    for each in fields(kept):
        default = field(default=each.default, default_factory=each.default_factory)
        declared.append((each.name, shapes[each.name], default))
    shape = make_dataclass(kept.__name__, declared, kw_only=True, slots=True)

    def write(value: object) -> object:
        return shape(**tags, **{name: getattr(value, name) for name in hints})

    def read(value: object) -> object:
        return kept(**{name: getattr(value, name) for name in hints})

    return Annotated[shape, AfterValidator(read), PlainSerializer(write, return_type=shape)]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


_RECORD: Final = _Format(Record)
_ENTRY: Final = _Format(Entry)
_AUDIT_ENTRY: Final = _Format(AuditEntry)

"""JSON Schema for every message, and for the frames of both sides."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from signaling.cli.schemas.example_messages import AT, examples
from signaling.cli.schemas.kinds import CLIENT_FRAME, SERVER_FRAME, AnyNamespace, commands, events, path
from signaling.messages import livekit, moderation
from signaling.messages.base import Command, Message, rfc3339
from signaling.messages.envelope import MAX_TRANSACTION_ID, MAX_TRANSACTION_ID_LENGTH
from signaling.messages.json_schema import NAMED, TIMESTAMP, TOLD, Json, SchemaGenerator

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_KEYWORDS: Final = (
    *("$schema", "$id", "$ref", "title", "description", "const", "enum", "type", "format"),
    *("properties", "required", "additionalProperties", "items", "minItems", "maxItems", "uniqueItems"),
    *(
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "not",
        "oneOf",
        "anyOf",
        "default",
        "$defs",
        "examples",
    ),
)
"""In the order in which people read them."""

_TRANSACTION_ID: Final[Json] = {
    "description": "Chosen by the client; the sender's own copies of what a command caused carry it back.",
    "oneOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_TRANSACTION_ID},
        {"type": "string", "minLength": 1, "maxLength": MAX_TRANSACTION_ID_LENGTH},
    ],
}
_SHARED: Final[Mapping[str, tuple[Json, ...]]] = {"ParticipantId": (NAMED, TOLD), "Timestamp": (TIMESTAMP,)}


def message_schema(namespace: AnyNamespace, kind: type[Message]) -> Json:
    """The schema of a message's payload; complete in itself."""
    mode: Literal["validation", "serialization"] = "validation" if issubclass(kind, Command) else "serialization"
    described = kind.model_json_schema(schema_generator=SchemaGenerator, mode=mode)
    shared: Json = {}
    own = _share(described.pop("$defs", {}), shared)
    schema = _share(described, shared)
    definitions = {"$defs": dict(sorted((own | shared).items()))} if own or shared else {}
    head = {"$schema": _DIALECT, "$id": path(namespace, kind)}
    ordered: Json = _ordered({**head, **schema, **definitions, "examples": examples(kind)})
    return ordered


def client_frame_schema() -> Json:
    """The schema of a text frame from a client."""
    return _frame_schema(
        CLIENT_FRAME,
        "ClientFrame",
        "A text frame from a client: a command. Unknown keys are ignored; the order of keys is free.",
        {},
        tuple(commands()),
    )


def server_frame_schema() -> Json:
    """The schema of a text frame from the server."""
    return _frame_schema(
        SERVER_FRAME,
        "ServerFrame",
        "A text frame from the server: an event. `timestamp` never goes backwards on one connection.",
        {"timestamp": {"$ref": "#/$defs/Timestamp"}},
        tuple(events()),
    )


def client_frame(namespace: AnyNamespace, payload: Json, transaction_id: int | None = None) -> Json:
    """A command in its envelope."""
    frame = {"namespace": namespace.value, "payload": payload}
    return frame if transaction_id is None else {**frame, "transaction_id": transaction_id}


def server_frame(namespace: AnyNamespace, payload: Json, transaction_id: int | None = None) -> Json:
    """An event in its envelope."""
    frame = {"namespace": namespace.value, "timestamp": rfc3339(AT), "payload": payload}
    return frame if transaction_id is None else {**frame, "transaction_id": transaction_id}


def _frame_schema(
    name: str,
    title: str,
    description: str,
    more: Json,
    kinds: Sequence[tuple[AnyNamespace, type[Message]]],
) -> Json:
    by_namespace: dict[AnyNamespace, list[type[Message]]] = {}
    for namespace, kind in kinds:
        by_namespace.setdefault(namespace, []).append(kind)
    frame = server_frame if more else client_frame
    shared = {"Timestamp": TIMESTAMP} if more else {}
    schema: Json = _ordered(
        {
            "$schema": _DIALECT,
            "$id": name,
            "title": title,
            "description": description,
            "type": "object",
            "properties": {
                "namespace": {"enum": [namespace.value for namespace in by_namespace]},
                **more,
                "payload": {"type": "object"},
                "transaction_id": {"$ref": "#/$defs/TransactionId"},
            },
            "required": ["namespace", *more, "payload"],
            "oneOf": [
                {
                    "properties": {
                        "namespace": {"const": namespace.value},
                        "payload": {"oneOf": [{"$ref": path(namespace, kind)} for kind in of_namespace]},
                    }
                }
                for namespace, of_namespace in by_namespace.items()
            ],
            "$defs": {**shared, "TransactionId": _TRANSACTION_ID},
            "examples": [
                frame(namespace, examples(kind)[0], 7 if transaction else None)
                for transaction, namespace, kind in _chosen(kinds)
            ],
        }
    )
    return schema


def _chosen(kinds: Sequence[tuple[AnyNamespace, type[Message]]]) -> Iterator[tuple[bool, AnyNamespace, type[Message]]]:
    """A few that show an envelope with and without `transaction_id`."""
    for namespace, kind in kinds:
        if kind in {livekit.ForceMute, livekit.ForceMuted}:
            yield False, namespace, kind
        if kind in {livekit.ForceMute, moderation.Result}:
            yield True, namespace, kind


def _share(part: Any, definitions: Json) -> Any:  # noqa: ANN401 - any JSON
    """The same schema, with what several have in common by reference into `definitions`."""
    if isinstance(part, list):
        return [_share(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    for name, shared in _SHARED.items():
        if part in shared:
            definitions[name] = part
            return {"$ref": f"#/$defs/{name}"}
    return {key: _share(value, definitions) for key, value in part.items()}


def _ordered(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same schema, with its keywords in order."""
    if isinstance(schema, list):
        return [_ordered(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    ordered = {}
    for keyword in sorted(schema, key=lambda each: _KEYWORDS.index(each) if each in _KEYWORDS else len(_KEYWORDS)):
        value = schema[keyword]
        match keyword:
            case "properties" | "$defs":
                ordered[keyword] = {name: _ordered(part) for name, part in value.items()}
            case "const" | "default" | "enum" | "examples":
                ordered[keyword] = value
            case _:
                ordered[keyword] = _ordered(value)
    return ordered

"""JSON Schema for messages, as they are on the wire: what pydantic alone cannot say of them."""

from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from signaling.identifiers import CONTROLLER, MAX_LENGTH, parse_participant_id
from signaling.messages.base import MAX_NAME_LENGTH, as_timestamp, in_order

Json = dict[str, Any]

_IN_PATHS: Final[Json] = {"enum": [".", ".."], "description": "Which no URL reaches."}
_NO_PARTICIPANT: Final[Json] = {
    "anyOf": [
        _IN_PATHS,
        {"const": CONTROLLER, "description": "Reserved: it stands for the controller in events."},
        {"pattern": "-popout[0-9]+$", "description": "Reserved for the popouts of participants."},
        {"pattern": "\n", "description": "Before which `$` matches, too, in some implementations of patterns."},
    ]
}
_UUID: Final = "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
NAMED: Final[Json] = {
    "description": "A participant's id. One that reads as a UUID in any textual form is normalised.",
    "type": "string",
    "pattern": rf"^([A-Za-z0-9._@:-]{{1,{MAX_LENGTH}}}|\{{{_UUID}\}})$",
    "not": _NO_PARTICIPANT,
}
ANYBODY: Final[Json] = {
    "description": "Any identity that LiveKit takes: looked up as it stands, and else as a UUID if it reads as one.",
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_NAME_LENGTH,
}
TOLD: Final[Json] = {
    "description": "A participant's id; a UUID in lower case and with hyphens.",
    "type": "string",
    "pattern": rf"^[A-Za-z0-9._@:-]{{1,{MAX_LENGTH}}}$",
    "not": _NO_PARTICIPANT,
}
PLAIN_ID: Final[Json] = {
    "description": "The id of a room or breakout. One that reads as a UUID in any textual form is normalised.",
    "type": "string",
    "pattern": rf"^([A-Za-z0-9._@-]{{1,{MAX_LENGTH}}}|[Uu][Rr][Nn]:[Uu][Uu][Ii][Dd]:{_UUID}|\{{{_UUID}\}})$",
    "not": _IN_PATHS,
}
TIMESTAMP: Final[Json] = {
    "description": "RFC 3339, in UTC, to the millisecond.",
    "type": "string",
    "format": "date-time",
    "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z$",
}


class SchemaGenerator(GenerateJsonSchema):
    """
    Says what pydantic cannot know: how ids look, that lists leave sorted, that what has no value is left out.

    Validation mode is for commands, serialization mode for events.
    """

    def field_title_should_be_set(self, _schema: object) -> bool:
        """A property's name is title enough."""
        return False

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,  # noqa: FBT001 - as pydantic calls it
    ) -> bool:
        """The tag is what a message is known by; and an event is written out with all that has a value."""
        schema = field["schema"]
        if schema["type"] != "default":
            return super().field_is_required(field, total)
        is_tag = schema["schema"]["type"] == "literal" and len(schema["schema"]["expected"]) == 1
        return is_tag or (self.mode == "serialization" and schema.get("default", ...) is not None)

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """What has no value is left out, never `null`."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Defaults are for those who write a message."""
        inner = self.generate_inner(schema["schema"])
        if self.mode == "serialization" or schema.get("default") is None or "const" in inner:
            return inner
        return {**inner, "default": self.encode_default(schema["default"])}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Keys that nobody knows are ignored in a command, unless its model forbids them."""
        model = super().model_schema(schema)
        return {"additionalProperties": True, **model} if self.mode == "validation" else model

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        """What is stripped must leave something."""
        text = super().str_schema(schema)
        return {**text, "pattern": r"\S"} if schema.get("strip_whitespace") else text

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """How ids look, and in which order they come."""
        function: object = schema["function"]["function"]
        if function is parse_participant_id:
            return dict(NAMED if self.mode == "validation" else TOLD)
        inner = super().function_after_schema(schema)
        if function is not in_order:
            return inner
        if self.mode == "validation":
            return {**inner, "description": "In any order; who is named twice counts once."}
        return {**inner, "description": "Sorted.", "uniqueItems": True}

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """A time is a string of a certain form."""
        is_time = schema["function"]["function"] is as_timestamp
        return dict(TIMESTAMP) if is_time else super().function_before_schema(schema)

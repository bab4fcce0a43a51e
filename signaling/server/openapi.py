"""The controller API in OpenAPI, from its routes and models."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

import signaling
from signaling.answers import NeedsSession
from signaling.messages import control, livekit, moderation
from signaling.messages.base import Command, Namespace
from signaling.messages.json_schema import ANYBODY, NAMED, PLAIN_ID, Json, SchemaGenerator
from signaling.server.controller_api import PREFIX, ROUTES, STATUS, CommandRequest, Error, ErrorCode, Route

_INTRODUCTION: Final = """\
Meetings over HTTP, on the internal address of the stand-alone server, for controllers in any language.
Bodies are JSON; an optional field without a value is left out.
"""
_ALWAYS: Final[tuple[ErrorCode, ...]] = (
    *("bad_request", "invalid_request", "unauthorized", "host", "not_found", "unknown_room", "internal", "unavailable"),
)
_WITH_A_BODY: Final[tuple[ErrorCode, ...]] = ("invalid_json", "timeout", "oversized", "unsupported_media_type")
_IN_PATH: Final[Mapping[str, Json]] = {"room": PLAIN_ID, "id": NAMED}
_COMMANDS: Final[Mapping[Namespace, Mapping[str, type[Command]]]] = {
    Namespace.LIVEKIT: livekit.COMMANDS,
    Namespace.MODERATION: moderation.COMMANDS,
    Namespace.CONTROL: control.COMMANDS,
}

_Kind = tuple[type[BaseModel], JsonSchemaMode]
_References = Mapping[Any, Json]
"""By kind; pydantic's keys are wider."""


@cache
def openapi() -> Json:
    """The OpenAPI document; not to be changed."""
    references, generated = models_json_schema(
        sorted(set(_kinds()), key=lambda kind: (kind[0].__name__, kind[1])),
        ref_template="#/components/schemas/{model}",
        schema_generator=SchemaGenerator,
    )
    schemas = generated["$defs"]
    schemas[CommandRequest.__name__]["oneOf"] = list(_commands(references))
    paths: dict[str, Json] = {}
    for route in ROUTES:
        paths.setdefault(f"{PREFIX}{route.path}", {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LiveKit moderation: controller API",
            "version": signaling.__version__,
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The setting `MODERATION_INTERNAL_TOKEN`.",
                }
            },
        },
    }


def _kinds() -> Iterator[_Kind]:
    yield Error, "serialization"
    for _, kind in commands():
        yield kind, "validation"
    for route in ROUTES:
        if route.body is not None:
            yield route.body, "validation"
        if route.answer is not None:
            yield route.answer, "serialization"


def commands() -> Iterator[tuple[Namespace, type[Command]]]:
    """The commands that need no session."""
    for namespace, by_action in _COMMANDS.items():
        for kind in by_action.values():
            if kind not in get_args(NeedsSession):
                yield namespace, kind


def _commands(references: _References) -> Iterator[Json]:
    for namespace in _COMMANDS:
        payloads = [references[kind, "validation"] for spoken, kind in commands() if spoken is namespace]
        yield {"properties": {"namespace": {"const": namespace.value}, "payload": {"oneOf": payloads}}}


def _operation(route: Route, references: _References) -> Json:
    operation: Json = {
        "operationId": route.handler.__name__,
        "summary": (route.handler.__doc__ or "").strip(),
        "parameters": list(_parameters(route)),
    }
    codes = {*_ALWAYS, *route.errors}
    if route.body is not None:
        codes |= set(_WITH_A_BODY)
        operation["requestBody"] = {"required": True, "content": _json(references[route.body, "validation"])}
    if route.answer is None:
        done: Json = {"204": {"description": "Done, or so already."}}
    else:
        summary = (route.answer.__doc__ or "").strip()
        done = {"200": {"description": summary, "content": _json(references[route.answer, "serialization"])}}
    operation["responses"] = done | dict(_refusals(codes, references[Error, "serialization"]))
    return operation


def _parameters(route: Route) -> Iterator[Json]:
    for name, known in _IN_PATH.items():
        schema = ANYBODY if route.names_anybody and known is NAMED else known
        if f"{{{name}}}" in route.path:
            yield {"name": name, "in": "path", "required": True, "schema": schema}
    if route.query is not None:
        schema = route.query.model_json_schema(schema_generator=SchemaGenerator)
        for name, described in schema["properties"].items():
            yield {"name": name, "in": "query", "schema": described}


def _refusals(codes: set[ErrorCode], error: Json) -> Iterator[tuple[str, Json]]:
    for status in sorted({STATUS[code] for code in codes}):
        named = sorted(code for code in codes if STATUS[code] is status)
        schema = {"allOf": [error, {"properties": {"error": {"enum": named}}}]}
        yield str(status.value), {"description": ", ".join(f"`{code}`" for code in named), "content": _json(schema)}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}

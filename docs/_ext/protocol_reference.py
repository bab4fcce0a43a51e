"""The reference of the wire, made of `schemas/` whenever the documentation is built."""  # noqa: INP001 - Sphinx loads it

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from sphinx.application import Sphinx

from signaling.cli import schemas
from signaling.core.commands import ModeratorCommand
from signaling.messages import moderation

Json = dict[str, Any]

PAGE: Final = "protocol"
MARKER: Final = "<!-- All messages, made of the schemas when the documentation is built. -->"
ModeratorQuery = moderation.GetState | moderation.Watch | moderation.GetAudit | moderation.Preview
"""What moderators ask that changes nothing, so that nothing is decided."""
SCHEMAS: Final = Path(__file__).parents[2] / "schemas"

_WIDTH: Final = 88
_TAGS: Final = {"command": "action", "event": "message"}
_OF_OBJECTS: Final = frozenset(
    {"$schema", "$id", "$defs", "title", "description", "examples", "type", "properties", "required"}
    | {"additionalProperties", "oneOf"}
)
_OF_VALUES: Final = frozenset(
    {"$ref", "title", "description", "type", "format", "const", "enum", "items", "anyOf", "oneOf", "discriminator"}
    | {"additionalProperties", "default", "pattern", "uniqueItems", "exclusiveMinimum", "exclusiveMaximum"}
    | {"minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"}
)
"""Keywords that there are words for; another one stops the build, since the page would leave it out."""


def setup(app: Sphinx) -> Mapping[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _insert)
    return {"parallel_read_safe": True}


def _insert(app: Sphinx, page: str, source: list[str]) -> None:
    if page != PAGE:
        return
    if MARKER not in source[0]:
        raise LookupError(f"{page}.md does not say where the messages belong: {MARKER}")
    for file in SCHEMAS.rglob("*.*"):
        app.env.note_dependency(file)
    source[0] = source[0].replace(MARKER, Reference(SCHEMAS).markdown())


class Reference:
    """
    All messages, as Markdown.

    Args:
        folder: The schemas, as `make schemas` writes them.

    Attributes:
        for_moderators: The schemas of commands that only moderators may give.

    Raises:
        LookupError: A schema says something that would be missing here.
    """

    def __init__(self, folder: Path) -> None:
        self._api: Json = yaml.safe_load((folder / schemas.ASYNCAPI).read_text(encoding="utf-8"))
        self._schemas: dict[str, Json] = {
            file.relative_to(folder).as_posix(): json.loads(file.read_text(encoding="utf-8"))
            for file in sorted(folder.rglob("*.json"))
        }
        self._answered_by: dict[str, list[str]] = {
            name: [_named(message) for message in operation["reply"]["messages"]]
            for name, operation in self._api["operations"].items()
            if "reply" in operation
        }
        self.for_moderators = {
            schemas.path(namespace, kind)
            for namespace, kind in schemas.commands()
            if kind in get_args(ModeratorCommand | ModeratorQuery)
        }
        self._types: dict[str, dict[str, set[str]]] = {}

    def markdown(self) -> str:
        """The part of the page that is made."""
        return "\n\n".join([*self._frames(), *self._namespaces(), *self._shared_types()])

    # --- Sections ------------------------------------------------------------------------------------------------

    def _frames(self) -> Iterator[str]:
        yield "## Frames"
        for name in (schemas.CLIENT_FRAME, schemas.SERVER_FRAME):
            schema = {keyword: part for keyword, part in self._schemas[name].items() if keyword != "oneOf"}
            yield f"### {'What clients send' if name == schemas.CLIENT_FRAME else 'What the server sends'}"
            yield from self._body(schema, "frame")

    def _namespaces(self) -> Iterator[str]:
        described = {tag["name"]: tag["description"] for tag in self._api["info"]["tags"]}
        for namespace in sorted({name.partition("/")[0] for name in self._schemas if "/" in name}):
            yield f"(namespace-{namespace})=\n## Namespace {namespace}"
            yield described[namespace]
            for kind in ("command", "event"):
                for name, schema in self._schemas.items():
                    if name.startswith(f"{namespace}/") and name.endswith(f".{kind}.json"):
                        yield from self._message(name, schema, kind)

    def _message(self, name: str, schema: Json, kind: str) -> Iterator[str]:
        own = _name(name)
        yield f"({own})=\n### {kind.title()} {_tag(name)}"
        yield schema["description"]
        if kind == "command":
            who = "moderators" if name in self.for_moderators else "anyone"
            yield f"Who: {who}. Answered by: {self._links(own, self._answered_by[own])}."
        else:
            causes = {command for command, answers in self._answered_by.items() if own in answers}
            if causes:
                yield f"Answers: {self._causes(own, causes)}."
        if schema.get("additionalProperties") is False:
            yield "Unknown fields are refused."
        yield from self._body(schema, kind)

    def _body(self, schema: Json, kind: str) -> Iterator[str]:
        for name, part in schema.get("$defs", {}).items():
            self._types.setdefault(name, {}).setdefault(json.dumps(part), set()).add(f"{kind}s")
        yield from _fields(schema, but=_TAGS.get(kind))
        yield from (f"```json\n{pretty(example)}\n```" for example in schema["examples"])

    def _shared_types(self) -> Iterator[str]:
        yield "## Types"
        for name, variants in sorted(self._types.items()):
            yield f"(type-{name.lower()})=\n### {name}"
            for text, places in variants.items():
                schema = json.loads(text)
                prefix = f"In {' and '.join(sorted(places))}: " if len(variants) > 1 else ""
                yield f"{prefix}{schema.get('description', '')}".strip()
                if "properties" in schema:
                    yield from _fields(schema)
                else:
                    yield "\n".join(_facts(schema))

    # --- Parts ---------------------------------------------------------------------------------------------------

    def _causes(self, own: str, causes: set[str]) -> str:
        """The commands by name; where they are all of a namespace, by that."""
        described = []
        for namespace, names in groupby(self._answered_by, key=lambda name: name.partition(".")[0]):
            of_namespace = list(names)
            found = [name for name in of_namespace if name in causes]
            is_all = len(found) == len(of_namespace) > 1
            described += [f"every command of [{namespace}](#namespace-{namespace})"] if is_all else []
            described += [self._links(own, found)] if found and not is_all else []
        return ", ".join(described)

    def _links(self, own: str, names: Sequence[str]) -> str:
        """The messages by name; with their namespace when it is another one."""
        namespace = own.partition(".")[0]
        return ", ".join(
            f"[{name.rsplit('.', 1)[0].removeprefix(f'{namespace}.').replace('.', '/')}](#{name})" for name in names
        )


def _name(path: str) -> str:
    """A message as `asyncapi.yaml` calls it, by the path of its schema."""
    return path.removesuffix(".json").replace("/", ".")


def _tag(path: str) -> str:
    return path.partition("/")[2].partition(".")[0]


def _named(reference: Json) -> str:
    name: str = reference["$ref"].rpartition("/")[2]
    return name


def _fields(schema: Json, but: str | None = None) -> Iterator[str]:
    """The fields of an object as a table; columns that would be empty are left out."""
    _check(schema, _OF_OBJECTS)
    required = schema.get("required", [])
    rows = [
        (
            f"`{name}`",
            type_of(part),
            "yes" if name in required else "no",
            ", ".join(bounds_of(part)),
            part.get("description", ""),
        )
        for name, part in schema.get("properties", {}).items()
        if name != but
    ]
    if not rows:
        yield "It has no fields."
        return
    head = ("field", "type", "required", "bounds", "description")
    shown = [number for number in range(len(head)) if any(row[number] for row in rows)]
    lines = [head, tuple("---" for _ in head), *rows]
    cells = ([line[number].replace("|", "\\|") for number in shown] for line in lines)
    yield "\n".join(f"| {' | '.join(line)} |" for line in cells)
    if "oneOf" in schema:
        choices = [f"`{field}`" for choice in schema["oneOf"] for field in choice["required"]]
        yield f"Exactly one of {' and '.join(choices)} is required."


def _check(schema: Json, understood: frozenset[str]) -> None:
    if unknown := schema.keys() - understood:
        raise LookupError(f"{schema.get('$id', json.dumps(schema))}: no words for {', '.join(sorted(unknown))}")


def _facts(schema: Json) -> Iterator[str]:
    """What there is to say of a type without fields."""
    allowed = {keyword: part for keyword, part in schema.items() if keyword != "not"}
    for alternative in allowed.get("anyOf") or allowed.get("oneOf") or [allowed]:
        yield f"- {', '.join([type_of(alternative), *bounds_of(alternative)])}"
    for forbidden in schema["not"]["anyOf"] if "not" in schema else []:
        what = f"`{json.dumps(forbidden.get('const', forbidden.get('pattern')))}`"
        yield f"- not {'' if 'const' in forbidden else 'matching '}{what}: {forbidden['description']}"


# --- Schemas in words --------------------------------------------------------------------------------------------


def type_of(schema: Json) -> str:
    """The type of a value, as Markdown."""
    _check(schema, _OF_VALUES)
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#type-{name.lower()})"
        case {"anyOf": list(alternatives)} | {"oneOf": list(alternatives)}:
            return " or ".join(_nested(alternative) for alternative in alternatives)
        case {"const": value}:
            return f"`{json.dumps(value)}`"
        case {"enum": list(values)}:
            return " · ".join(f"`{value}`" for value in values)
        case {"type": "array", "items": dict(inner)}:
            return f"list of {_nested(inner)}"
        case {"type": "array"}:
            return "list"
        case {"type": "object", "additionalProperties": dict(inner)}:
            return f"object of {_nested(inner)}"
        case {"type": str(name)}:
            return name
    raise LookupError(f"no words for {json.dumps(schema)}")


def _nested(schema: Json) -> str:
    bounds = ", ".join(bounds_of(schema))
    return f"{type_of(schema)} ({bounds})" if bounds else type_of(schema)


def bounds_of(schema: Json) -> Iterator[str]:
    """What else holds for a value, as Markdown."""
    for least, most, unit in (
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minimum", "maximum", ""),
    ):
        if least in schema and most in schema and schema[least] != schema[most]:
            yield f"{schema[least]:,} to {schema[most]:,}{unit}"
        elif most in schema:
            yield f"at most {schema[most]:,}{unit}"
        elif least in schema:
            yield f"at least {schema[least]:,}{unit}"
    if "exclusiveMinimum" in schema:
        yield f"above {schema['exclusiveMinimum']:,}"
    if "exclusiveMaximum" in schema:
        yield f"below {schema['exclusiveMaximum']:,}"
    if schema.get("uniqueItems"):
        yield "each once"
    if "format" in schema:
        yield f"format {schema['format']}"
    if "pattern" in schema:
        yield f"matches `{schema['pattern']}`"
    if "default" in schema:
        yield f"default `{json.dumps(schema['default'])}`"


def pretty(value: object, indent: int = 0, taken: int = 0) -> str:
    """JSON on one line where it fits, else a line for each member; `taken` characters stand before and after it."""
    line = json.dumps(value, ensure_ascii=False)
    if indent + taken + len(line) <= _WIDTH or not isinstance(value, dict | list) or not value:
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        members = [f"{inner}{json.dumps(key)}: {pretty(part, indent + 2, len(key) + 5)}" for key, part in value.items()]
        return "\n".join(["{", ",\n".join(members), f"{' ' * indent}}}"])
    members = [f"{inner}{pretty(part, indent + 2, 1)}" for part in value]
    return "\n".join(["[", ",\n".join(members), f"{' ' * indent}]"])

"""What a JSON schema allows, what it nearly allows, and bytes that were like it once, by dice that fall alike."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final

NAMES: Final = (
    *("alice", "mona", "bob", "gina"),
    *("stranger", "sip_+49301234", "wumpus#1234", "bob#x", "bob-popout1", "controller", "..", ".", "Alice", "a b", ""),
    *(
        "6F9619FF-8B86-D011-B42D-00C04FC964FF",
        "{6f9619ff-8b86-d011-b42d-00c04fc964ff}",
        "6f9619ff8b86d011b42d00c04fc964ff",
    ),
    *("x" * 127, "x" * 128, "x" * 300, "ünï", "\u202ebob", "bob\n", "bob\0"),
)
"""Ids of who is there, of who may be, and of nobody. The first four take part."""
_PLAIN: Final = NAMES[:5]

ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**40, 0.5, -0.0, 1e308, 5e-324),
    *(
        "",
        " ",
        "0",
        "null",
        "\0",
        "\ud800",
        "\u202e",
        "\u200b",
        "\ufeff",
        "é" * 50,
        "x" * 5_000,
        "%s%n{0}",
        "eyJ.eyJ.x",
    ),
    *([], {}, [[]], [{}], {"": None}, [None] * 100, {"__proto__": {}, "$ref": "#"}),
)


def dice_of(seed: int, target: str, number: int) -> Random:
    """The dice of one case, which are the same each time."""
    return Random(f"{seed}/{target}/{number}")  # noqa: S311 - no secret


class Grammar:
    """
    Throws values that a schema allows, as far as its keywords say; a `not` is no concern of it.

    Args:
        document: Where `$ref` leads.
        names: What a string with a pattern is, mostly: it is an id.
    """

    def __init__(self, document: Mapping[str, Any], names: Sequence[str] = _PLAIN) -> None:
        self._document = document
        self._names = names

    def throw(self, dice: Random, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        """One value."""
        if "$ref" in schema:
            found: Any = self._document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            return self.throw(dice, found)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return dice.choice(schema["enum"])
        if "properties" in schema:
            return self._object(dice, schema)
        for keyword in ("oneOf", "anyOf", "allOf"):
            if keyword in schema:
                return self.throw(dice, dice.choice(schema[keyword]))
        kind = schema.get("type")
        return self._of[dice.choice(kind) if isinstance(kind, list) else kind](self, dice, schema)

    def _object(self, dice: Random, schema: Mapping[str, Any]) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        either = [set(branch["required"]) for branch in schema.get("oneOf", ()) if branch.keys() == {"required"}]
        if either:
            chosen = dice.choice(either)
            left_out = set().union(*either) - chosen
            required |= chosen
        else:
            left_out = set()
        members = [
            (name, self.throw(dice, below))
            for name, below in schema["properties"].items()
            if name in required or (name not in left_out and dice.random() < 0.5)
        ]
        dice.shuffle(members)
        return dict(members)

    def _any_object(self, dice: Random, _schema: Mapping[str, Any]) -> dict[str, Any]:
        return {dice.choice(["a", "action", ""]): dice.choice(ODD) for _ in range(dice.randrange(3))}

    def _array(self, dice: Random, schema: Mapping[str, Any]) -> list[Any]:
        least = schema.get("minItems", 0)
        count = min(schema.get("maxItems", 5_000), max(least, dice.choice([0, 1, 1, 2, 3, 5, 40])))
        return [self.throw(dice, schema.get("items", {"type": "string"})) for _ in range(count)]

    def _string(self, dice: Random, schema: Mapping[str, Any]) -> str:
        if dice.random() < 0.8:
            return dice.choice(self._names)
        text = "".join(
            chr(dice.choice([dice.randrange(32, 127), dice.randrange(0xD800)])) for _ in range(dice.randrange(1, 70))
        )
        return text[: schema.get("maxLength", 70)]

    def _integer(self, dice: Random, schema: Mapping[str, Any]) -> int:
        least, most = int(schema.get("minimum", -(2**31))), int(schema.get("maximum", 2**31))
        return dice.choice([least, most, dice.randint(least, most)])

    _of: Final[Mapping[object, Callable[["Grammar", Random, Mapping[str, Any]], Any]]] = {
        "object": _any_object,
        "array": _array,
        "string": _string,
        "integer": _integer,
        "number": _integer,
        "boolean": lambda _self, dice, _schema: dice.random() < 0.5,
        "null": lambda _self, _dice, _schema: None,
        None: lambda _self, dice, _schema: dice.choice(ODD),
    }


def nearly(dice: Random, value: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same value but for something small, anywhere in it."""
    root = [copy.deepcopy(value)]
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        container, key = dice.choice(list(_places(root)))
        match dice.randrange(6):
            case 0 if isinstance(container, dict):
                del container[key]
            case 1 if isinstance(container, dict):
                container[dice.choice(["x", "", "reason", "as", "transaction_id", "\0"])] = dice.choice(ODD)
            case 2 if isinstance(container, dict):
                container[str(key).upper()] = container.pop(key)
            case 3:
                container[key] = [container[key]]
            case 4:
                container[key] = dice.choice(NAMES)
            case _:
                container[key] = copy.deepcopy(dice.choice(ODD))
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - any JSON
    below = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, part in below:
        yield value, key
        yield from _places(part)


def mangled(dice: Random, data: bytes) -> bytes:
    """The same bytes but for some."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(changed) + 1)
        until = min(len(changed), at + dice.choice([1, 1, 4, 30]))
        match dice.randrange(5):
            case 0:
                changed[at:until] = dice.randbytes(until - at)
            case 1:
                del changed[at:until]
            case 2:
                changed[at:at] = changed[at:until] * dice.choice([1, 3, 200])
            case 3:
                changed[at:at] = dice.choice(
                    [b"\0", b"\r\n", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"{", b"]", b": ", b"\\u0000"]
                )
            case _:
                del changed[at:]
    return bytes(changed)


def text_of(dice: Random, value: object) -> str:
    """A value as JSON, by one of the ways to write it."""
    return json.dumps(
        value, ensure_ascii=dice.random() < 0.5 or "\\ud" in json.dumps(value), indent=dice.choice([None, None, 1])
    )

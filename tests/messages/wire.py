"""What the tests of messages share: both directions of the wire, for literal JSON."""

import json
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

from signaling.messages.base import Event, Message

AnyMessage = TypeVar("AnyMessage", bound=Message)


def row(message: Message, text: str) -> ParameterSet:
    """One row of a table: a message and its literal JSON, called by the tag."""
    tag = getattr(message, "action", None) or getattr(message, "message", "")
    return pytest.param(message, text, id=tag)


def text_of(param: ParameterSet) -> str:
    """The literal JSON of a row."""
    text = param.values[1]
    assert isinstance(text, str)
    return text


def event_of(param: ParameterSet) -> Event:
    """The event of a row."""
    event = param.values[0]
    assert isinstance(event, Event)
    return event


def dumped(message: Message) -> str:
    """The message as it leaves."""
    return message.model_dump_json(exclude_none=True)


def parsed(kind: type[AnyMessage], text: str) -> AnyMessage:
    """The message as a client of ours would read it."""
    return kind.model_validate_json(text)


def reversed_keys(text: str) -> str:
    """The same JSON with the keys of every object the other way round."""
    return json.dumps(json.loads(text, object_pairs_hook=lambda pairs: dict(reversed(pairs))))


def with_unknown_keys(text: str) -> str:
    """The same JSON with a key more in the outermost object."""
    return json.dumps({"unheard_of": [{"x": None}], **json.loads(text), "zz": 1})


def concrete(kind: type[Message]) -> set[type[Message]]:
    """The messages of a kind: the classes below it that have a tag of their own."""
    below = set(kind.__subclasses__())
    for subclass in tuple(below):
        below |= concrete(subclass)
    return {subclass for subclass in below if "message" in subclass.__annotations__}

"""Every kind of message, and where it is described."""

from collections.abc import Iterator, Mapping
from typing import Final

from signaling import messages
from signaling.messages import control, echo, livekit, moderation
from signaling.messages.base import Command, Event, Message, Namespace, ServerNamespace

CLIENT_FRAME: Final = "client_frame.json"
SERVER_FRAME: Final = "server_frame.json"
ASYNCAPI: Final = "asyncapi.yaml"

AnyNamespace = Namespace | ServerNamespace

_COMMANDS: Final[Mapping[Namespace, Mapping[str, type[Command]]]] = {
    Namespace.CONTROL: control.COMMANDS,
    Namespace.ECHO: echo.COMMANDS,
    Namespace.LIVEKIT: livekit.COMMANDS,
    Namespace.MODERATION: moderation.COMMANDS,
}


def commands() -> Iterator[tuple[Namespace, type[Command]]]:
    """All commands, in the order of their namespaces and names."""
    for namespace, by_name in _COMMANDS.items():
        for action in sorted(by_name):
            yield namespace, by_name[action]


def events() -> Iterator[tuple[AnyNamespace, type[Event]]]:
    """All events, in the order of their namespaces and names."""
    ours = (kind for kind in _below(Event) if kind.__module__.startswith(f"{messages.__name__}."))
    found = [kind for kind in ours if "message" in kind.__annotations__]
    yield from sorted(((kind.namespace, kind) for kind in found), key=lambda pair: (pair[0].value, tag(pair[1])))


def tag(kind: type[Message]) -> str:
    """What `action` or `message` is for a kind of message."""
    name: str = kind.model_fields["action" if issubclass(kind, Command) else "message"].default
    return name


def path(namespace: AnyNamespace, kind: type[Message]) -> str:
    """The file of a message's schema, which is also its `$id`."""
    return f"{namespace.value}/{tag(kind)}.{'command' if issubclass(kind, Command) else 'event'}.json"


def _below(kind: type[Event]) -> Iterator[type[Event]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _below(subclass)

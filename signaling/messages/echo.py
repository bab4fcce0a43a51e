"""Namespace `echo`: a sign of life for clients."""

from typing import ClassVar, Final, Literal

from signaling.messages.base import Command, Event, Namespace, by_action


class Ping(Command):
    """Are you there?"""

    action: Literal["ping"] = "ping"


COMMANDS: Final[dict[str, type[Ping]]] = by_action(Ping)


class EchoEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = Namespace.ECHO


class Pong(EchoEvent):
    """Yes."""

    message: Literal["pong"] = "pong"


class EchoError(EchoEvent):
    """What was sent is no ping."""

    message: Literal["error"] = "error"
    error: Literal["invalid_command"]
    detail: str | None = None

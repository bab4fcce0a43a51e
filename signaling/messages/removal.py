"""Namespace `moderation`: what known clients are told before they are closed, and hang up on."""

from typing import ClassVar, Literal

from signaling.messages.base import Event, ServerNamespace


class RemovalEvent(Event):
    """Any event of this namespace."""

    namespace: ClassVar = ServerNamespace.REMOVAL


class Kicked(RemovalEvent):
    """You were removed from the meeting; the connection is about to be closed with 1000."""

    message: Literal["kicked"] = "kicked"


class Banned(RemovalEvent):
    """You were removed from the meeting for good; the connection is about to be closed with 1000."""

    message: Literal["banned"] = "banned"

"""Moderation for LiveKit meetings: what a moderator decides holds, and the moderator is told the truth."""

from typing import TYPE_CHECKING

from signaling.lazily import names_of

if TYPE_CHECKING:
    from signaling.core.participants import Kind, Participant, Role, Source
    from signaling.errors import (
        ConfigurationError,
        InvalidParticipant,
        MediaServerFailed,
        MediaServerMissing,
        NoSuchMeeting,
        NotInMeeting,
        ParticipantBanned,
        SessionEnded,
        SignalingError,
        StoreError,
        StoreLocked,
        WebhookRefused,
    )
    from signaling.identifiers import (
        BreakoutId,
        ParticipantId,
        RoomId,
        parse_breakout_id,
        parse_participant_id,
        parse_room_id,
    )
    from signaling.messages.envelope import Delivery
    from signaling.module import ModerationModule
    from signaling.session import Session
    from signaling.settings import Settings
    from signaling.stores.contract import AuditEntry

__version__ = "0.1.0"
__all__ = [
    "AuditEntry",
    "BreakoutId",
    "ConfigurationError",
    "Delivery",
    "InvalidParticipant",
    "Kind",
    "MediaServerFailed",
    "MediaServerMissing",
    "ModerationModule",
    "NoSuchMeeting",
    "NotInMeeting",
    "Participant",
    "ParticipantBanned",
    "ParticipantId",
    "Role",
    "RoomId",
    "Session",
    "SessionEnded",
    "Settings",
    "SignalingError",
    "Source",
    "StoreError",
    "StoreLocked",
    "WebhookRefused",
    "parse_breakout_id",
    "parse_participant_id",
    "parse_room_id",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(
        __name__,
        __all__,
        [
            "identifiers",
            "errors",
            "core.participants",
            "settings",
            "messages.envelope",
            "stores.contract",
            "session",
            "module",
        ],
    )

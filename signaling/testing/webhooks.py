"""Webhooks as LiveKit sends them, for tests that have no LiveKit to send any."""

import base64
import hashlib
import time
from uuid import uuid4

from google.protobuf.json_format import MessageToJson
from livekit.api import AccessToken
from livekit.protocol import models
from livekit.protocol.webhook import WebhookEvent

from signaling.testing.fake_room_service import Change

_REPORTED = frozenset(
    {"room_started", "room_finished", "participant_joined", "participant_left", "track_published", "track_unpublished"}
)


def webhook_of(change: Change) -> bytes | None:
    """
    The body of LiveKit's webhook about something that changed in a `FakeRoomService`; see its `observe`.

    `None` for what LiveKit never reports: mutes, and changes of a permission.
    """
    if change.happening not in _REPORTED:
        return None
    room, participant = change.room, change.participant
    if change.track is not None and participant is not None:  # with a track, LiveKit says no more than this
        room = models.Room(sid=room.sid, name=room.name)
        participant = models.ParticipantInfo(sid=participant.sid, identity=participant.identity)
    event = WebhookEvent(
        event=change.happening,
        room=room,
        participant=participant,
        track=change.track,
        id=f"EV_{uuid4().hex[:12]}",
        created_at=int(time.time()),
    )
    return MessageToJson(event).encode()


def sign_webhook(body: bytes, api_key: str, api_secret: str) -> str:
    """The header `Authorization` that LiveKit sends with this body."""
    checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
    return AccessToken(api_key, api_secret).with_sha256(checksum).to_jwt()

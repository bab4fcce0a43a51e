"""The tokens that participants join with, and what else LiveKit lets them do with one."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from livekit.api import AccessToken, LiveKitAPI, ServerError, VideoGrants
from livekit.protocol import models
from livekit.protocol import room as room_service

from signaling.testing.child import ParticipantError

_CALLS_S: Final = 20.0


def participant_token(
    api_key: str,
    api_secret: str,
    room: str,
    identity: str,
    *,
    can_publish: bool = True,
    can_publish_sources: Sequence[str] | None = None,
    can_subscribe: bool = True,
    hidden: bool = False,
    kind: AccessToken.ParticipantKind = "standard",
    ttl_s: float = 600,
) -> str:
    """
    Mint a token with which a participant may join.

    Args:
        can_publish_sources: As they are to stand in the token; as in LiveKit, none of them allows every source.
        ttl_s: How long it is valid; LiveKit allows a minute more.

    """
    grants = VideoGrants(
        room_join=True,
        room=room,
        can_publish=can_publish,
        can_publish_sources=None if can_publish_sources is None else list(can_publish_sources),
        can_publish_data=False,
        can_subscribe=can_subscribe,
        hidden=hidden,
    )
    token = AccessToken(api_key, api_secret).with_identity(identity).with_name(identity).with_kind(kind)
    return token.with_ttl(timedelta(seconds=ttl_s)).with_grants(grants).to_jwt()


async def room_service_answers(url: str, token: str, room: str, identity: str) -> dict[str, int]:
    """
    Try each call of LiveKit's RoomService with the token of a participant, as one that cheats would.

    What is allowed takes effect: on the participant and its room.

    Args:
        url: Of LiveKit, in any form.
        identity: The participant's own.

    Returns:
        The HTTP status that each call was answered with, by its name; 401 for all of them if the token is a good one.

    Raises:
        ParticipantError: LiveKit did not answer.

    """
    everything = models.ParticipantPermission(can_publish=True, can_subscribe=True, can_publish_data=True)
    one: dict[str, Any] = {"room": room, "identity": identity}
    requests = {
        "create_room": room_service.CreateRoomRequest(name=f"{room}-of-{identity}"),
        "list_rooms": room_service.ListRoomsRequest(),
        "list_participants": room_service.ListParticipantsRequest(room=room),
        "get_participant": room_service.RoomParticipantIdentity(**one),
        "update_participant": room_service.UpdateParticipantRequest(**one, permission=everything),
        "mute_published_track": room_service.MuteRoomTrackRequest(**one, track_sid="TR_none", muted=False),
        "update_subscriptions": room_service.UpdateSubscriptionsRequest(**one),
        "send_data": room_service.SendDataRequest(room=room, data=b"none"),
        "update_room_metadata": room_service.UpdateRoomMetadataRequest(room=room, metadata="none"),
        "forward_participant": room_service.ForwardParticipantRequest(**one, destination_room=room),
        "move_participant": room_service.MoveParticipantRequest(**one, destination_room=room),
        "remove_participant": room_service.RoomParticipantIdentity(**one),
        "delete_room": room_service.DeleteRoomRequest(room=room),
    }
    answers: dict[str, int] = {}
    try:
        async with asyncio.timeout(_CALLS_S), aiohttp.ClientSession() as http:
            service = LiveKitAPI.with_token(token, url.replace("ws", "http", 1), session=http, failover=False).room
            for name, request in requests.items():
                try:
                    await getattr(service, name)(request)
                    answers[name] = HTTPStatus.OK
                except ServerError as refused:
                    answers[name] = refused.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ParticipantError("LiveKit's RoomService does not answer") from error
    return answers

"""What a module is made of while it is entered."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from signaling.answers import Answers
from signaling.audience import Audience
from signaling.controls import Controls
from signaling.credentials import Credentials
from signaling.entrance import Entrance
from signaling.faults import Faults
from signaling.identifiers import new_node_id
from signaling.joining import Joining
from signaling.livekit.room_service import RoomService
from signaling.livekit.tokens import TokenMint
from signaling.livekit.webhooks import Webhooks
from signaling.meeting.meeting import Rules
from signaling.meetings import Meetings
from signaling.reports import Reports
from signaling.settings import Settings, websocket_form
from signaling.stores.contract import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """Each does one thing for all meetings of a process; see `signaling.meeting` for those of one."""

    media: RoomService
    meetings: Meetings
    credentials: Credentials
    answers: Answers
    joining: Joining
    controls: Controls
    reports: Reports
    faults: Faults


def assemble(
    url: str,
    key: str,
    secret: str,
    *,
    settings: Settings,
    store: Store,
    media: RoomService,
    audience: Audience,
    entrance: Entrance,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
) -> Parts:
    """
    The parts of a process that has begun.

    Args:
        url: LiveKit's, for those who run beside us.
        clock: Seconds since the epoch, for what is ours.
        wall_clock: The same, for what others have signed.
    """
    node = new_node_id()
    rules = Rules(
        screen_share_requires_permission=settings.moderation_screen_share_requires_permission,
        remove_unknown=settings.moderation_unknown_participants == "remove",
        sweep_s=settings.moderation_sweep_s,
        empty_s=settings.moderation_empty_room_s,
        grace_s=settings.moderation_disconnect_grace_s,
    )
    meetings = Meetings(store, media, rules, audience, entrance, clock=clock, node=node)
    credentials = Credentials(
        TokenMint(key, secret),
        public_url=settings.public_url or websocket_form(url),
        service_url=websocket_form(url),
    )
    answers = Answers(store, audience, credentials)
    joining = Joining(meetings, audience, credentials, answers, entrance, clock=clock, node=node)
    controls = Controls(meetings, audience, joining)
    webhooks = Webhooks(key, secret, clock=wall_clock)
    reports = Reports(webhooks, store, meetings, partial(earliest_now, clock, wall_clock))
    faults = Faults(meetings, audience)
    return Parts(media, meetings, credentials, answers, joining, controls, reports, faults)


def earliest_now(clock: Callable[[], float], wall_clock: Callable[[], float]) -> float:
    """
    The time at which nothing that others have signed is over before it is.

    That is checked by the system's clock, which may be stepped: what was used must stay known for as long as it
    might be valid again.
    """
    return min(clock(), wall_clock())

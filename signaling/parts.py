"""What a module is made of while it is entered."""

from dataclasses import dataclass

from signaling.answers import Answers
from signaling.audience import Audience
from signaling.clock import NodeClock
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
    clock: NodeClock

    @property
    def troubles(self) -> dict[str, object]:
        """What went wrong with the store and with the clock, as far as is known, by what it is called."""
        found = {"rolled_back": self.faults.rolled_back, "clock_differs_s": self.clock.differs_s}
        return {name: what for name, what in found.items() if what is not None}


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
    clock: NodeClock,
) -> Parts:
    """
    The parts of a process that has begun.

    Args:
        url: LiveKit's, for those who run beside us.
        clock: Seconds since the epoch.
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
    webhooks = Webhooks(key, secret, clock=clock.wall)
    reports = Reports(webhooks, store, meetings, clock.earliest)
    faults = Faults(meetings, audience, clock=clock)
    return Parts(media, meetings, credentials, answers, joining, controls, reports, faults, clock)

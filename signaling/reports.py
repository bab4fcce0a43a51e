"""What LiveKit reports by webhooks: each that is genuine, once."""

from collections.abc import Callable

import structlog

from signaling import metrics
from signaling.errors import StoreError, WebhookRefused
from signaling.livekit.webhooks import Webhook, Webhooks
from signaling.meetings import Meetings
from signaling.stores.contract import Kept, Store

log = structlog.get_logger(__name__)


class Reports:
    """
    Takes in webhooks, on whichever node they arrive.

    Args:
        earliest_now: The time at which nothing that others have signed is over before it is.
    """

    def __init__(self, webhooks: Webhooks, store: Store, meetings: Meetings, earliest_now: Callable[[], float]) -> None:
        self._webhooks = webhooks
        self._store = store
        self._meetings = meetings
        self._earliest_now = earliest_now

    async def receive(self, body: bytes, authorization: str) -> None:
        """Take note of what LiveKit reports; see `ModerationModule.receive_webhook`."""
        try:
            webhook = self._webhooks.open(body, authorization)
            if not self._meetings.is_open:
                raise StoreError("this process ends: what LiveKit reports is for the next one")
            await self._check_is_first(webhook)
        except WebhookRefused as error:
            metrics.WEBHOOKS.labels(error.reason).inc()
            log.warning("webhook_refused", reason=error.reason)
            raise
        metrics.WEBHOOKS.labels("accepted").inc()
        self._meetings.react(webhook)

    async def _check_is_first(self, webhook: Webhook) -> None:
        if webhook.notice is None:
            return  # once or twice, nothing follows from it
        try:
            now = self._earliest_now()
            is_first = await self._store.keep_once(Kept.WEBHOOK, webhook.id, until=webhook.until, now=now)
        except StoreError as error:  # what LiveKit reports is looked at all the same: that protects more
            log.warning("webhook_not_kept", error=str(error))
            return
        if not is_first:
            raise WebhookRefused("replayed")

"""What a host embeds: `ModerationModule` for the process, which hands out a `Session` for each participant."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog

from signaling.audience import Audience
from signaling.clock import NodeClock, SteadyClock
from signaling.core.participants import Participant, Role
from signaling.entrance import Entrance
from signaling.errors import ConfigurationError, StoreError
from signaling.identifiers import BreakoutId, CommandId, ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.livekit.room_service import RoomService, Trouble
from signaling.messages import moderation
from signaling.messages.base import Namespace
from signaling.parts import Parts, assemble
from signaling.session import Deliver, Session
from signaling.settings import Settings
from signaling.stores import open_store
from signaling.stores.contract import AuditEntry, Commit, Fault, Kept, Store

log = structlog.get_logger(__name__)


class NotEntered(RuntimeError):
    """What is done only within `async with` was asked for before, or after it."""


class ModerationModule:
    """
    Moderation of all meetings of one process; an asynchronous context manager.

    Without `LIVEKIT_URL` it runs a `livekit-server` of its own.

    Args:
        settings: From the environment if left out.
        store: Used instead of the one that the settings name; opened and closed by the module.
        clock: Seconds since the epoch; if left out, as the system's clock says now, and from then on evenly, so that
            nothing lasts longer or shorter when that is set. Several nodes go by the store's from their first beat on.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self, settings: Settings | None = None, *, store: Store | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self.settings = Settings() if settings is None else settings
        self._store = store or open_store(
            self.settings.moderation_store_url, audit_entries=self.settings.moderation_audit_entries
        )
        _check_deadline(self.settings, self._store)
        self._clock = NodeClock(clock or SteadyClock(), clock or time.time)
        self._entrance = Entrance(self._clock)
        self._audience = Audience(self._clock)
        self._parts: Parts | None = None
        self._stack = AsyncExitStack()
        self._is_entered = self._listens = False
        self._embedded: EmbeddedServer | None = None
        self._webhook_url = self.settings.moderation_webhook_url

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise RuntimeError("ModerationModule is entered already: one `async with` at a time")
        async with AsyncExitStack() as stack:
            self._is_entered = True
            stack.callback(setattr, self, "_is_entered", False)  # noqa: FBT003 - the value
            stack.push_async_callback(self._store.close)
            await self._store.open()
            url, key, secret, self._embedded = await _find_livekit(
                self.settings, self._webhook_url, self._on_restart, stack
            )
            settings = self.settings
            media = await stack.enter_async_context(_room_service(url, key, secret, settings))
            await media.check()  # whatever comes of it: what is wrong is in the log then, and tried again
            self._parts = parts = assemble(
                url,
                key,
                secret,
                settings=settings,
                store=self._store,
                media=media,
                audience=self._audience,
                entrance=self._entrance,
                clock=self._clock,
            )
            media.on_return(parts.meetings.restore_rooms)
            await parts.meetings.closed.load()
            if not self._listens:  # or it was entered and left before
                self._store.listen(self._on_commit)
                self._store.listen_to_faults(self._on_fault)
                self._listens = True
            stack.push_async_callback(parts.meetings.close)
            await parts.meetings.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        closing = asyncio.create_task(self._stack.aclose())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing})  # half of it would leave tasks behind that nobody ends any more
            raise

    def _on_commit(self, commit: Commit) -> None:
        if self._parts is not None:
            self._parts.meetings.note(commit)

    def _on_fault(self, fault: Fault) -> None:
        if self._parts is not None:
            self._parts.faults.note(fault)

    @property
    def _entered(self) -> Parts:
        if self._parts is None or not self._is_entered:
            raise NotEntered("ModerationModule is used outside its `async with`")
        return self._parts

    async def join(
        self,
        room: RoomId,
        participant: Participant,
        *,
        deliver: Deliver,
        extensions: frozenset[str] = frozenset(),
    ) -> Session:
        """
        Let somebody into a meeting; an older session of theirs ends as `taken_over`.

        Args:
            deliver: Called in the event loop with each event, in order, never awaited. The host sends its own welcome
                with `session.join_data` first, then what was delivered.
            extensions: `livekit_moderation` for that namespace, `control` for hosts that speak it too.

        Raises:
            ParticipantBanned: A moderator has banned them from the meeting.
            StoreError: They have not joined.
        """
        return await self._entered.joining.join(room, participant, deliver, extensions)

    async def close_room(self, room: RoomId) -> None:
        """
        End a meeting: every session ends, the state is cleared, LiveKit's rooms are deleted, now or when it answers.

        Raises:
            StoreError: The meeting goes on.
        """
        meetings = self._entered.meetings
        meeting = meetings[room]
        with meetings.engaged(room):
            deleting = await meeting.tasks.see_through(meeting.timer.end())
        log.info("meeting_ended", room=room)
        await asyncio.wait({deleting}, timeout=self.settings.moderation_livekit_timeout_s)

    async def has_meeting(self, room: RoomId) -> bool:
        """
        Whether there is such a meeting, and it goes on.

        Raises:
            StoreError: The store does not answer.
        """
        record = await self._store.read(room)
        return record is not None and record.state.goes_on

    async def state(self, room: RoomId) -> moderation.State:
        """
        The whole meeting as its moderators see it.

        Raises:
            NoSuchMeeting: There is none.
            StoreError: The store does not answer.
        """
        meeting = await self._entered.meetings.that_goes_on(room)
        return moderation.State(**dict(meeting.view.show(await meeting.journal.record())))

    async def command(
        self, room: RoomId, namespace: str, payload: object, *, as_: ParticipantId | None = None
    ) -> moderation.Result:
        """
        Carry out a command of moderators; what is refused is told by the result.

        Args:
            namespace: `livekit`, `livekit_moderation` or `control`.
            payload: The command as parsed JSON. What answers with events alone (tokens, queries, joining) is
                `invalid_command`; `preview` is not among it.
            as_: Who asks, with their rights; the host if left out, who may do what moderators may.

        Raises:
            ValueError: A namespace that is not the module's.
            NoSuchMeeting: There is none.
            StoreError: The store does not answer.
        """
        spoken = Namespace(namespace)
        if spoken is Namespace.ECHO:
            raise ValueError(f"{namespace} is not the module's")
        parts = self._entered
        meeting = await parts.meetings.that_goes_on(room)
        with parts.meetings.engaged(room):
            return await meeting.tasks.see_through(parts.answers.command(meeting, spoken, payload, as_))

    async def change_role(self, room: RoomId, participant: ParticipantId, role: Role) -> None:
        """
        Give or take a role until the meeting ends, whoever's connection it is; see `Session.change_role`.

        Raises:
            InvalidParticipant: Nobody of kind `guest` or `sip` becomes a moderator.
            NoSuchMeeting: There is none.
            NotInMeeting: Nobody of that id is in it.
            StoreError: Nothing changed.
        """
        await self._entered.controls.change_role(room, participant, role)

    async def move(self, room: RoomId, participant: ParticipantId, breakout: BreakoutId | None) -> None:
        """
        Move somebody to a breakout, or back to the main room (`None`), by their session; see `Session.move`.

        Raises:
            NoSuchMeeting: There is none.
            NotInMeeting: Nobody of that id is in it.
            StoreError: Nothing changed.
        """
        await self._entered.controls.move(room, participant, breakout)

    async def audit(self, room: RoomId, *, limit: int = 100, before: CommandId | None = None) -> tuple[AuditEntry, ...]:
        """
        What moderators did in a meeting that goes on, newest first.

        Args:
            before: Continue after the entry of this command.

        Raises:
            StoreError: The store does not answer.
        """
        return await self._store.audit(room, limit=limit, before=before)

    async def is_banned(self, room: RoomId, participant: ParticipantId) -> bool:
        """Whether a moderator has banned somebody; while the store does not answer, joining finds out."""
        known = self._store.known(room)  # joining finds out, if that has changed
        try:
            record = known if known and not known.state.is_banned(participant) else await self._store.read(room)
        except StoreError:
            return False
        return record is not None and record.state.is_banned(participant)

    async def use_ticket(self, ticket: str, *, until: float) -> bool:
        """
        Use up what lets somebody in once, on whichever node and whether or not this one was restarted since.

        Args:
            ticket: What tells it from any other, such as the `jti` of a JWT.
            until: When it lets nobody in any more anyway; seconds since the epoch.

        Returns:
            Whether it was not used before.

        Raises:
            StoreError: The store does not answer, and nobody may be let in.
        """
        return await self._store.keep_once(Kept.TICKET, ticket, until=until, now=self._clock.earliest())

    async def hand_over(self, *, within_s: float = 3) -> None:
        """Let nobody in any more, finish what was begun, keep everybody's place: before a host closes connections."""
        await self._entered.meetings.hand_over(within_s=within_s)

    async def check_store(self) -> None:
        """Return if the store can be written; raises `StoreError` if not."""
        await self._store.check()

    @property
    def troubles(self) -> dict[str, object]:
        """What went wrong with the store and with the clock, as far as is known; a field of `/readyz` for each."""
        return {} if self._parts is None else self._parts.troubles

    @property
    def livekit_answers(self) -> bool:
        """Whether LiveKit did what it was asked the last time that anything was."""
        return self._parts is not None and self._parts.media.trouble is None

    def timestamp(self) -> float:
        """Now, in seconds since the epoch; never before what it was the last time."""
        return self._audience.timestamp()

    def look_at_livekit(self) -> Trouble | None:
        """
        Why LiveKit does nothing of what it is asked, as far as is known; `None` if it does.

        If nothing was heard of it for some seconds, it is asked; whoever looks again knows more.
        """
        if self._parts is None:
            return "unreachable"
        self._parts.media.check_if_long_unheard()
        return self._parts.media.trouble

    @property
    def public_url(self) -> str:
        """What clients are told to connect to."""
        return "" if self._parts is None else self._parts.credentials.public_url

    @property
    def embedded(self) -> EmbeddedServer | None:
        """The `livekit-server` that the module runs; `None` with `LIVEKIT_URL`, and before it was started."""
        return self._embedded

    def take_webhooks_at(self, url: str) -> None:
        """Have an embedded LiveKit report to `url`, unless a setting names another; before entering the module."""
        self._webhook_url = self._webhook_url or url

    async def receive_webhook(self, body: bytes, authorization: str) -> None:
        """
        Take note of what LiveKit reports. To be answered with 200 when this returns; what follows from it goes on.

        Args:
            body: Of the HTTP request, byte for byte.
            authorization: Its header of that name.

        Raises:
            WebhookRefused: It is forged, too old, was here before, or cannot be read; to be answered with 401, or 400.
            StoreError: This process ends; to be answered with 503, so that LiveKit tries again.
        """
        await self._entered.reports.receive(body, authorization)

    def _on_restart(self) -> None:
        if self._parts is not None:
            self._parts.media.forget_rooms()
            self._parts.meetings.restore_rooms()


def _check_deadline(settings: Settings, store: Store) -> None:
    """A call is begun only while its turn outlasts it: one that nobody could ever begin is no deadline."""
    longest_s = store.lease_s / 2
    if settings.moderation_livekit_timeout_s > longest_s:
        raise ConfigurationError(
            f"MODERATION_LIVEKIT_TIMEOUT_S: must be {longest_s:g} at most where several nodes share a store, since "
            f"another one takes over a turn of which nothing was heard for {store.lease_s:g} s"
        )


def _room_service(url: str, key: str, secret: str, settings: Settings) -> RoomService:
    timeout_s, calls_per_room = settings.moderation_livekit_timeout_s, settings.moderation_livekit_calls_per_room
    return RoomService(url, key, secret, timeout_s=timeout_s, calls_per_room=calls_per_room)


async def _find_livekit(
    settings: Settings, webhook_url: str | None, on_restart: Callable[[], None], stack: AsyncExitStack
) -> tuple[str, str, str, EmbeddedServer | None]:
    """Where LiveKit is, with key and secret; if no setting says so, one that runs until `stack` is left."""
    if settings.livekit_url and settings.livekit_api_key and settings.livekit_api_secret:
        return settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret.get_secret_value(), None
    server = EmbeddedServer(
        path=require(settings.livekit_server_path),
        webhook_urls=() if webhook_url is None else (webhook_url,),
        on_restart=on_restart,
    )
    await stack.enter_async_context(server)
    return server.url, server.api_key, server.api_secret, server

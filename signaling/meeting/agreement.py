"""What makes LiveKit agree about people, one call at a time for each of them."""

import asyncio
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from signaling.core.effects import Allow, Finding, Permission, Presence, Priority, Remove
from signaling.core.enforcement import call_for, is_plain, must_wait, owner_of, plan
from signaling.core.state import MeetingState, Popouts
from signaling.errors import MediaServerRejected, MediaServerUnavailable, ParticipantGone, StoreError
from signaling.identifiers import Identity, LiveKitRoom, ParticipantId
from signaling.livekit.contract import MediaServer
from signaling.meeting.due import Due
from signaling.meeting.journal import Journal
from signaling.meeting.muted import JustMuted
from signaling.meeting.roster import Place, Roster

log = structlog.get_logger(__name__)

_ROUNDS: Final = 3
"""Calls for one identity before LiveKit counts as contradicting itself."""


@dataclass(frozen=True, slots=True)
class Told:
    """
    What a look has shown of one identity about which LiveKit did not agree, and what came of telling it.

    Attributes:
        was_due: Whether it was known that LiveKit had to be told.
    """

    found: Presence
    owner: ParticipantId
    finding: Finding
    was_due: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """
    What a look at people has shown.

    Attributes:
        people: Only these were looked at; `None` for everybody.
        silent: The rooms about which LiveKit said nothing.
        error: Why it came to nothing for some of them.
    """

    state: MeetingState
    people: frozenset[ParticipantId] | None
    told: tuple[Told, ...]
    silent: frozenset[LiveKitRoom]
    error: BaseException | None = None

    def concerns(self, identity: Identity) -> bool:
        """Whether an identity was looked at, if LiveKit said anything of its room."""
        return self.people is None or owner_of(identity, self.state) in self.people


class Agreement:
    """
    Makes LiveKit agree with one meeting, whatever made them differ.

    It holds sets of people, never permissions: right before each call the newest state is read, and after it once more,
    so that an old plan cannot overwrite a new decision. Calls about one identity never overlap.

    Args:
        remove_unknown: Whether people who never joined are removed, instead of being restricted like anyone.
    """

    def __init__(
        self,
        journal: Journal,
        media: MediaServer,
        roster: Roster,
        due: Due,
        just_muted: JustMuted,
        *,
        remove_unknown: bool,
    ) -> None:
        self._journal = journal
        self._media = media
        self._roster = roster
        self._due = due
        self._just_muted = just_muted
        self._remove_unknown = remove_unknown
        self._settling: dict[Place, asyncio.Task[Finding]] = {}
        self._tasks: set[asyncio.Task[Finding]] = set()
        self._right: tuple[MeetingState | None, Mapping[Place, Presence]] = None, {}
        """Whom the last look at everybody found as they should be, and by what state."""

    # --- One identity --------------------------------------------------------------------------------------------

    async def agree(self, place: Place, priority: Priority) -> Finding:
        """
        Make LiveKit agree about one identity in one room, as of the newest state.

        Whoever could not be dealt with is tried again later; cancelling leaves them to the sweep.
        """
        room, identity = place
        try:
            # The place among the calls first, then the identity: the other way round, a call that waits long for its
            # place would keep an urgent one about the same person waiting too.
            async with self._media.slot(room, priority), self._roster.lock(identity):
                finding = await self._agree_now(place)
        except MediaServerUnavailable:
            finding = Finding.UNANSWERED
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=room, participant=identity, error=str(error))
            finding = Finding.REJECTED
        except StoreError:
            self._due.retry_later({ParticipantId(identity)})
            raise
        if finding.is_failure:
            owner = await self.owner_of(identity)
            if finding is Finding.UNANSWERED:
                self._due.doubt({owner})
            else:
                self._due.retry_later({owner})
        return finding

    async def owner_of(self, identity: Identity) -> ParticipantId:
        """Whose identity it is."""
        try:
            return owner_of(identity, await self._journal.effective_state())
        except StoreError:
            return ParticipantId(identity)  # what is a popout is left to the sweep

    async def _agree_now(self, place: Place) -> Finding:
        finding = Finding.AGREED
        looked_again = False
        for _ in range(_ROUNDS):
            presence = self._roster.presence(*place)
            if presence is None:
                return Finding.ABSENT if finding is Finding.AGREED else finding
            state, roster = await self._journal.effective_state(), self._roster.presences
            call = call_for(state, presence, remove_unknown=self._remove_unknown, roster=roster)
            try:
                match call:
                    case None if must_wait(state, presence, roster):
                        self._due.retry_later({owner_of(place[1], state)})
                        return Finding.SETTLING
                    case None:
                        return finding
                    case Remove():
                        await self._media.remove(*place)
                        self._roster.note_removed(place)
                    case Allow(sources=sources):
                        follows = is_plain(state, presence)
                        if not follows:
                            await self._roster.note_before_change([presence])
                        told = await self._media.allow(presence, sources)
                        self._roster.note(told)
                        if self._just_muted.mutings:
                            given = frozenset(sources).difference(presence.permission.allowed())
                            self._just_muted.note_given(place, given)
                        if told.sid != presence.sid:
                            continue  # it was another session that was known: how this one was, nobody can tell
                        is_exact = follows and told.permission.allows_exactly(sources)
                        if is_exact and await self._journal.effective_state() is state:
                            return Finding.CHANGED  # as asking once more would show
                finding = Finding.CHANGED
            except ParticipantGone:
                if looked_again:
                    raise
                looked_again = True
                await self._roster.look_for(place)
        raise MediaServerRejected("LiveKit answers with another permission than it was told")

    def settle(self, place: Place, priority: Priority) -> asyncio.Task[Finding]:
        """Begin to agree about one identity, and go on whether or not anybody waits for it."""
        task = self._settling.get(place)
        if task is None or priority < Priority.SETTLING:
            if task is None:
                self._due.being_told(ParticipantId(place[1]), begins=True)
            task = asyncio.create_task(self.agree(place, priority), name=f"agree-{place[1]}")
            self._settling[place] = task
            self._tasks.add(task)  # also while a more urgent one has taken its place
            task.add_done_callback(lambda done: self._settled(place, done))
        return task

    def _settled(self, place: Place, task: asyncio.Task[Finding]) -> None:
        self._tasks.discard(task)
        if self._settling.get(place) is task:
            del self._settling[place]
            self._due.being_told(ParticipantId(place[1]), begins=False)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StoreError):
            log.warning("agreeing_failed", room=self._journal.room, participant=place[1], error=str(error))
        else:
            log.error("agreeing_failed", room=self._journal.room, participant=place[1], exc_info=error)

    # --- Removing ------------------------------------------------------------------------------------------------

    async def remove(self, place: Place, owner: ParticipantId) -> None:
        """Remove an identity that has no business in a room any more, without looking whether it is there."""
        unseen = Presence(*place, Permission(can_publish=False, sources=()))
        try:
            async with self._media.slot(place[0], Priority.REPAIR), self._roster.lock(place[1]):
                if isinstance(call_for(await self._journal.effective_state(), unseen), Remove):  # or they are back
                    await self._media.remove(*place)
                    self._roster.note_removed(place)
        except MediaServerUnavailable:
            self._due.doubt({owner})
        except MediaServerRejected as error:
            log.warning("media_server_rejected", room=place[0], participant=place[1], error=str(error))
            self._due.retry_later({owner})
        except StoreError as error:
            log.warning("removal_put_off", room=place[0], participant=place[1], error=str(error))
            self._due.retry_later({owner})

    def remove_identities(self, participant: ParticipantId, state: MeetingState) -> Awaitable[object]:
        """Remove from LiveKit what `state`, which holds no more, had there of somebody; what fails is tried again."""
        room = state.room_of(participant)
        places = {(popout.room, popout.identity) for popout in state.popouts.get(participant, Popouts()).open}
        if room is not None:
            places.add((room, Identity(participant)))
        return asyncio.gather(*(self.remove(place, participant) for place in sorted(places)))

    # --- Many ----------------------------------------------------------------------------------------------------

    async def go_over(self, people: frozenset[ParticipantId] | None) -> Looked:
        """
        Compare LiveKit with the state and tell it what differs.

        Args:
            people: Only these; `None` for everybody.

        Raises:
            MediaServerUnavailable: LiveKit did not answer.
        """
        self._due.begin_look()
        state = await self._journal.effective_state()
        if people is None and self._roster.presences:
            rooms = state.rooms_in_use() | self._roster.rooms()
        else:
            # People who left or were moved may be in any room that was ever used, known of or not.
            rooms = state.rooms
        silent = await self._roster.look(rooms)
        found, due = self._roster.copy(), self._due.people()
        if people is None:
            calls = plan(state, self._perhaps_wrong(state, found), remove_unknown=self._remove_unknown)
            wrong = {(call.room, call.identity) for call in calls}
            self._right = state, {place: presence for place, presence in found.items() if place not in wrong}
        else:
            calls = plan(state, found.values(), remove_unknown=self._remove_unknown, about=people)
        waiting = {
            owner_of(presence.identity, state)
            for presence in (() if state.presenter is None else found.values())
            if must_wait(state, presence, found.values())
        }
        priority = Priority.SWEEP if people is None else Priority.REPAIR
        await self._roster.note_before_change(
            found[call.room, call.identity] for call in calls if isinstance(call, Allow)
        )
        findings = await asyncio.gather(
            *(self.agree((call.room, call.identity), priority) for call in calls), return_exceptions=True
        )
        told: list[Told] = []
        failed = set[ParticipantId]()
        for call, finding in zip(calls, findings, strict=True):
            owner = owner_of(call.identity, state)
            if isinstance(finding, BaseException):  # only now, when all the others have ended
                return Looked(state, people, tuple(told), silent, finding)
            told.append(Told(found[call.room, call.identity], owner, finding, owner in due))
            if finding.is_failure:
                failed.add(owner)
            elif finding is Finding.CHANGED:
                self._due.note_changed(owner)
        self._due.retry_later(waiting)  # until nobody else has the screen any more
        if not silent:
            # Whoever became due meanwhile is due for another look.
            self._due.note_agreed((self._due.people() if people is None else people) - failed)
        return Looked(state, people, tuple(told), silent)

    def _perhaps_wrong(self, state: MeetingState, found: Mapping[Place, Presence]) -> Collection[Presence]:
        """
        All but those who were found right by this very state, and are as they were then.

        What a presenter is allowed depends on everybody else.
        """
        by, right = self._right
        if by is not state or state.presenter is not None:
            return found.values()
        return [presence for place, presence in found.items() if right.get(place) is not presence]

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

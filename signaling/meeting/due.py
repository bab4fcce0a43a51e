"""Who is to be looked at, and when: one structure, whatever the reason."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from signaling import metrics
from signaling.identifiers import ParticipantId

FIRST_RETRY_S: Final = 0.1

_ALL: Final = WeakSet["Due"]()
metrics.SETTLING.set_function(lambda: sum(due.count() for due in tuple(_ALL)))


@dataclass(slots=True)
class _Look:
    """
    When somebody is to be looked at, by the clock of the event loop, and how long to wait if that comes to nothing.

    Each has a pause of their own: whom LiveKit keeps refusing must not keep anybody else waiting.
    """

    at: float
    pause_s: float


class Due:
    """
    People whom LiveKit is still to be told about, or does perhaps not agree about.

    Args:
        longest_pause_s: Between two looks at somebody.
        doubt_s: How long calls that went unanswered may still take effect.

    Attributes:
        on_change: Called when it changes who is settling.
    """

    def __init__(self, *, longest_pause_s: float, doubt_s: float) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._longest_pause_s = longest_pause_s
        self._doubt_s = doubt_s
        self._looks: dict[ParticipantId, _Look] = {}
        self._since_look: set[ParticipantId] = set()
        self._in_doubt: dict[ParticipantId, float | None] = {}
        self._being_told: dict[ParticipantId, int] = {}
        self._wake = asyncio.Event()
        _ALL.add(self)

    def __contains__(self, participant: ParticipantId) -> bool:
        return participant in self._looks

    def is_settling(self, participant: ParticipantId) -> bool:
        """Whether LiveKit is still to be told about them."""
        return participant in self._looks or participant in self._being_told

    def is_in_doubt(self, participant: ParticipantId) -> bool:
        """Whether calls about them may still take effect."""
        return participant in self._in_doubt

    def count(self) -> int:
        """How many people LiveKit is still to be told about; may be asked from any thread."""
        return len({*tuple(self._looks), *tuple(self._being_told)})

    def people(self) -> frozenset[ParticipantId]:
        """Everybody who is due, now or later."""
        return frozenset(self._looks)

    # --- Becoming due --------------------------------------------------------------------------------------------

    def repair(self, participants: Iterable[ParticipantId]) -> None:
        """Look at these people, at once, and again until LiveKit agrees."""
        now = asyncio.get_running_loop().time()
        people = frozenset(participants)
        self._looks |= {who: _Look(now, FIRST_RETRY_S) for who in people}
        self._note(people)

    def doubt(self, participants: Collection[ParticipantId]) -> None:
        """
        Calls about these people went unanswered, and may still take effect.

        LiveKit counts as agreeing about them only when two looks, one deadline apart, have found it so.
        """
        if participants:
            self._in_doubt.update(dict.fromkeys(participants))
            self.retry_later(participants)

    def retry_later(self, participants: Iterable[ParticipantId]) -> None:
        """Look at these people after their pause."""
        people = frozenset(participants)
        self._postpone(people)
        self._note(people)

    def _postpone(self, participants: Iterable[ParticipantId]) -> None:
        """Look at these people after their pause, and after a longer one next time; not at once."""
        now = asyncio.get_running_loop().time()
        for who in participants:
            look = self._looks.setdefault(who, _Look(now, FIRST_RETRY_S))
            if look.at <= now:
                look.at = now + look.pause_s
                look.pause_s = min(look.pause_s * 2, self._longest_pause_s)

    def _note(self, participants: frozenset[ParticipantId]) -> None:
        self._since_look |= participants
        self._wake.set()
        self.on_change()

    def being_told(self, participant: ParticipantId, *, begins: bool) -> None:
        """A call about somebody that nobody need wait for begins, or has ended."""
        count = self._being_told.get(participant, 0) + (1 if begins else -1)
        if count:
            self._being_told[participant] = count
        else:
            del self._being_told[participant]
        self.on_change()

    # --- Being looked at -----------------------------------------------------------------------------------------

    async def wait(self, until: float) -> None:
        """Wait until then, or until somebody is due, or may be: by the clock of the event loop."""
        next_look = min((look.at for look in self._looks.values()), default=math.inf)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(min(until, next_look) - asyncio.get_running_loop().time(), 0)):
                await self._wake.wait()
        self._wake.clear()

    def take(self, now: float) -> frozenset[ParticipantId]:
        """Who is due by now; unless they agree by then, or become due at once meanwhile, again after their pause."""
        people = frozenset(who for who, look in self._looks.items() if look.at <= now)
        self._postpone(people)
        return people

    def begin_look(self) -> None:
        """Whoever becomes due from now on is due for another look."""
        self._since_look.clear()

    def note_changed(self, participant: ParticipantId) -> None:
        """LiveKit had to be told of somebody: if they were in doubt, they are so as before."""
        if participant in self._in_doubt:
            self._in_doubt[participant] = None

    def note_agreed(self, participants: Iterable[ParticipantId]) -> None:
        """LiveKit was found to agree about these people at the look that was begun last."""
        now = asyncio.get_running_loop().time()
        for person in tuple(participants):
            if person in self._since_look:
                continue
            if person in self._in_doubt:
                sure_at = self._in_doubt[person]
                if sure_at is None:
                    self._in_doubt[person] = now + self._doubt_s
                if sure_at is None or now < sure_at:
                    continue
                del self._in_doubt[person]
            if self._looks.pop(person, None) is not None:
                self.on_change()

    def close(self) -> None:
        """Nobody is due any more, as far as metrics count it."""
        _ALL.discard(self)

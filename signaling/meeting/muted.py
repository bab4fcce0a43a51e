"""Who was muted in this moment: what they are just about to publish is meant too."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from signaling.core.participants import Source
from signaling.meeting.roster import LAG_S, Place


@dataclass(frozen=True, slots=True)
class Muting:
    """Somebody was muted, and what they publish in this very moment is meant too."""

    sources: frozenset[Source]
    until: float
    on_muted: Callable[[frozenset[Source]], None]


class JustMuted:
    """
    The mutes of the last second.

    Attributes:
        mutings: By place; some are over already.
    """

    def __init__(self) -> None:
        self.mutings: dict[Place, Muting] = {}

    def begin(self, places: Mapping[Place, Callable[[frozenset[Source]], None]], sources: frozenset[Source]) -> None:
        """
        Mute too what these people publish within a second: who is just about to be heard is meant.

        Args:
            places: What is called for each, with the sources of which LiveKit has confirmed it.
        """
        now = asyncio.get_running_loop().time()
        self.mutings = {place: muting for place, muting in self.mutings.items() if muting.until > now}
        self.mutings |= {place: Muting(sources, now + LAG_S, on_muted) for place, on_muted in places.items()}

    def note_given(self, place: Place, given: frozenset[Source]) -> None:
        """What somebody publishes since they were given a source is not what a mute of before meant."""
        muting = self.mutings.get(place)
        if muting is not None:
            self.mutings[place] = replace(muting, sources=muting.sources - given)

"""What is drafted by a record that others have gone on from meanwhile."""

import pytest

from signaling.core.changes import HandSet
from signaling.core.decisions import Refusal
from signaling.identifiers import RoomId
from signaling.meeting.journal import Committed, Draft, Journal
from signaling.stores.contract import Record
from signaling.stores.memory import MemoryStore
from tests.core.meetings import BOARD, BOB


class LateStore(MemoryStore):
    """A store of which nothing is heard after the first commit."""

    first: Record | None = None

    def known(self, room: RoomId) -> Record | None:
        self.first = self.first or super().known(room)
        return self.first


@pytest.mark.parametrize("is_refused", [True, False])
async def test_what_is_drafted_by_an_outdated_record_is_drafted_anew(*, is_refused: bool) -> None:
    journal = Journal(BOARD, LateStore(), clock=lambda: 1.0)
    for is_up in (True, False):
        await journal.commit(lambda _, is_up=is_up: Draft((HandSet(BOB, up=is_up, at=1.0),)))  # type: ignore[misc]
    drafted: list[int] = []

    def draft(record: Record) -> Draft | Refusal:
        drafted.append(record.revision)
        is_outdated = record.revision == 1
        return Refusal("nothing_to_do") if is_outdated and is_refused else Draft((HandSet(BOB, up=True, at=2.0),))

    committed = await journal.commit(draft)
    assert isinstance(committed, Committed)
    assert drafted == [1, 2]
    assert committed.record.revision == 3


async def test_what_is_refused_is_refused_by_the_newest_record() -> None:
    journal = Journal(BOARD, LateStore(), clock=lambda: 1.0)
    for is_up in (True, False):
        await journal.commit(lambda _, is_up=is_up: Draft((HandSet(BOB, up=is_up, at=1.0),)))  # type: ignore[misc]
    refused = await journal.commit(lambda record: Refusal("nothing_to_do", str(record.revision)))
    assert refused == Refusal("nothing_to_do", "2")

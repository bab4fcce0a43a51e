"""What a meeting's audit weighs in memory."""

import tracemalloc

from signaling.identifiers import CommandId, ParticipantId
from signaling.messages.moderation import Outcome
from signaling.stores.contract import AuditEntry
from signaling.stores.memory import MemoryStore
from tests.stores.logs import begun, following

KIB = 1024


async def test_entries_about_a_thousand_people_weigh_little() -> None:
    store = MemoryStore(audit_entries=100)
    people = [ParticipantId(f"participant-{number}") for number in range(1_000)]
    kept = begun()

    async def command(revision: int) -> None:
        outcomes = tuple(Outcome(participant=who, outcome="restricted") for who in people)
        entry = AuditEntry(CommandId(f"c-{revision}"), 1.0, people[0], "restrict", outcomes=outcomes)
        nonlocal kept
        made = following(kept, audit=entry)
        assert await store.append(made)
        kept = made.record

    await command(1)  # whatever is made once
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for revision in range(2, 12):
            await command(revision)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 10 < 32 * KIB

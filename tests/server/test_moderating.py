"""What the stand-alone server adds to moderation: refused handshakes and closed connections."""

import asyncio

import pytest

from signaling import Role
from signaling.testing.client import SignalingClient
from tests.server.hosting import ROOM, Hosted

MODERATION = "livekit_moderation"


async def joined(host: Hosted, name: str, role: Role = Role.USER) -> SignalingClient:
    client = host.client(name, role)
    await client.__aenter__()
    await client.join()
    return client


async def test_whoever_is_kicked_is_told_and_closed_with_1000_and_may_come_again(host: Hosted) -> None:
    alice, bob = await joined(host, "alice", Role.MODERATOR), await joined(host, "bob")
    result = await alice.command("kick", namespace=MODERATION, participants=["bob"], reason="shouting")
    assert result["outcomes"] == [{"participant": "bob", "outcome": "removed"}]
    assert await bob.closed() == 1000
    told, last = bob.inbox[-2:]
    assert told.payload == {"message": "kicked", "moderator": "alice", "reason": "shouting"}
    assert (last.namespace, last.payload) == ("moderation", {"message": "kicked"})
    left = await alice.wait_for("left", namespace="control")
    assert left.payload == {"message": "left", "id": "bob", "reason": "kicked"}
    again = await joined(host, "bob")
    await asyncio.gather(alice.close(), again.close())


async def test_the_banned_are_refused_by_the_handshake_until_they_may_come_again(host: Hosted) -> None:
    alice, bob = await joined(host, "alice", Role.MODERATOR), await joined(host, "bob")
    ticket = host.ticket()
    await alice.command("kick", namespace=MODERATION, participants=["bob"], ban=True)
    assert await bob.closed() == 1000
    for _ in range(2):
        assert await host.refusal(host.dial(bearer=ticket)) == (403, "banned")
    await alice.command("unban", namespace=MODERATION, participants=["bob"])
    assert await host.refusal(host.dial(bearer=ticket)) == (101, "connected"), "the ticket was not used up"
    await alice.close()


async def test_whoever_is_banned_between_handshake_and_joining_is_closed_with_1000(host: Hosted) -> None:
    alice = await joined(host, "alice", Role.MODERATOR)
    early = await joined(host, "bob")
    async with host.client("bob") as late:
        await alice.command("kick", namespace=MODERATION, participants=["bob"], ban=True)
        await late.send("join", namespace="control")
        assert await late.closed() == 1000
        assert late.told("error", "control") == [{"message": "error", "error": "insufficient_permissions"}]
        assert (late.inbox[-1].namespace, late.inbox[-1].payload) == ("moderation", {"message": "banned"})
    assert await early.closed() == 1000
    await alice.close()


@pytest.mark.parametrize("extensions", [(), (MODERATION,)])
@pytest.mark.parametrize(("ban", "word"), [(False, "kicked"), (True, "banned")])
async def test_known_clients_are_told_in_one_word_that_they_have_to_go(
    host: Hosted, extensions: tuple[str, ...], word: str, *, ban: bool
) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join()
        await bob.join(extensions=extensions)
        await alice.command("kick", namespace=MODERATION, participants=["bob"], ban=ban)
        assert await bob.closed() == 1000
        assert (bob.inbox[-1].namespace, bob.inbox[-1].payload) == ("moderation", {"message": word})
        assert alice.told(word, "moderation") == []


@pytest.mark.parametrize("extensions", [(), (MODERATION,)])
async def test_the_end_of_the_meeting_is_told_before_the_close(host: Hosted, extensions: tuple[str, ...]) -> None:
    async with host.client("alice", Role.MODERATOR) as alice, host.client("bob") as bob:
        await alice.join(extensions=extensions)
        await bob.join(extensions=extensions)
        await host.module.close_room(ROOM)
        for client in (alice, bob):
            assert await client.closed() == 1000
            assert (client.inbox[-1].namespace, client.inbox[-1].payload) == ("control", {"message": "room_deleted"})


async def test_who_is_taken_over_hears_none_of_these_words(host: Hosted) -> None:
    async with host.client("bob") as older, host.client("bob") as newer:
        await older.join()
        await newer.join()
        assert await older.closed() == 1000
        assert {frame.message for frame in older.inbox}.isdisjoint({"kicked", "banned", "room_deleted"})


async def test_nothing_is_sent_in_the_namespace_of_these_words(host: Hosted) -> None:
    async with host.client("alice", Role.MODERATOR) as alice:
        await alice.join()
        await alice.send("kick", namespace="moderation", target="bob", transaction_id=1)
        answer = await alice.wait_for("error", namespace="control")
        assert (answer.payload["error"], answer.transaction_id) == ("invalid_namespace", 1)

"""What the stand-alone server adds to moderation: refused handshakes and closed connections."""

import asyncio

from signaling import Role
from signaling.testing.client import SignalingClient
from tests.server.hosting import Hosted

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
    assert bob.inbox[-1].payload == {"message": "kicked", "moderator": "alice", "reason": "shouting"}
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
    assert await early.closed() == 1000
    await alice.close()

"""A node of the demo is killed: who was connected to it comes back to another, with what was decided."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from signaling.cli.nodes import Node, Nodes
from signaling.cli.tour import Cast, Guest, Line, check, lift, may_publish_microphone, ms_between

_CLOSED_S: Final = 10


@dataclass(slots=True)
class Survivors:
    """
    Everybody, on nodes of which one will be killed.

    Attributes:
        node: The one that will be: Bob's.
        stack: Closes the connections of those who came back.
    """

    cast: Cast
    nodes: Nodes
    node: Node
    stack: AsyncExitStack

    async def come_back(self, guest: Guest) -> dict[str, object]:
        """Let somebody notice that their connection is gone, and connect to another node; what they are told there."""
        await guest.client.closed(_CLOSED_S)
        guest.client = await self.stack.enter_async_context(self.cast.client(guest.name))
        welcome: dict[str, object] = (await guest.client.join())["livekit"]
        guest.token = str(welcome["token"])
        return welcome


@asynccontextmanager
async def survivors(cast: Cast, nodes: Nodes) -> AsyncIterator[Survivors]:
    """Everybody, before the node is killed."""
    async with AsyncExitStack() as stack:
        yield Survivors(cast, nodes, nodes.of("bob"), stack)


async def kill(stage: Survivors) -> Line:
    """What Alice decided holds for Bob on the node to which he comes back."""
    cast, bob = stage.cast, stage.cast.bob
    await cast.alice.client.command("enable_microphone_restrictions", unrestricted_participants=["carol"])
    await cast.listener.silent("bob")
    theirs = [guest for guest in (bob, cast.carol) if stage.nodes.of(guest.name) is stage.node]
    began_at = time.monotonic()
    await stage.node.kill()
    told, *_ = await asyncio.gather(*map(stage.come_back, theirs))
    state = told["microphone_restriction_state"]
    check(state == {"type": "enabled", "unrestricted_participants": ["carol"]}, "Bob was not told of the restriction")
    await bob.media.reconnect(bob.url, bob.token)
    back_at = time.monotonic()
    check(not may_publish_microphone(bob), "the new token lets Bob publish a microphone")
    for guest in (cast.alice, cast.carol):
        await cast.listener.heard(guest.name, since=back_at)
    await bob.media.publish_camera()
    await cast.listener.seen("bob", since=back_at)
    where = stage.nodes.of("bob").name
    return Line(f"Bob is back on {where}, still restricted, after", ms_between(began_at, back_at), ", Carol is heard")


async def go_on(stage: Survivors) -> Line:
    """Alice moderates as before, and Bob is told where he is now."""
    return await lift(stage.cast)


Step = Callable[[Survivors], Awaitable[Line]]


def steps(nodes: Nodes) -> tuple[tuple[str, Step], ...]:
    """What is shown, with its titles."""
    return (f"{nodes.of('bob').name} killed", kill), ("disable_microphone_restrictions", go_on)

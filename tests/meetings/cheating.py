"""A meeting with a real client that cheats, and a hidden listener who measures what comes of it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Unpack

import pytest
from livekit.api import AccessToken

from signaling import Role
from signaling.testing.participants import MediaParticipant, WaitedInVain, participant_token
from tests.crowd.crowd import Behaviour, Crowd, Member
from tests.meetings.stage import LISTEN_S, ROOM, Actor, Stage, stage

HEARD_S = 0.5
"""How long a cheat may be heard on a loaded machine; figures are the benchmarks'."""
SILENT = ["camera", "screen_share", "screen_share_audio"]
"""What everybody may publish who may not speak."""


@dataclass
class Scene:
    """
    A meeting that Alice moderates, where Bob is heard.

    Attributes:
        bob: In LiveKit, with his own client.
        signaling: Bob in the signaling.
        old_token: The one that Bob came with, when nothing was restricted.
    """

    stage: Stage
    crowd: Crowd
    listener: MediaParticipant
    alice: Actor
    bob: Member
    signaling: Actor
    old_token: str

    @property
    def url(self) -> str:
        return self.stage.server.url

    async def restrict(self) -> None:
        """Nobody may speak but moderators, from now on."""
        await self.alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
        await self.listener.silent("bob")

    async def come_back(self, token: str = "", **behaviour: Unpack[Behaviour]) -> None:
        """As Bob, with this token or the old one, to speak, and never to give up."""
        stubborn: Behaviour = {"publish": ["microphone"], "republish_always": True, **behaviour}
        await self.bob.rejoin(token or self.old_token, **stubborn)

    async def open_second_session(self) -> None:
        """As `bob#x`, with the old token, to speak."""
        await self.enter(self.old_token, path_query="publish=x")

    async def intrude(self, source: str = "microphone") -> None:
        """As somebody who never joined, to be heard by this source."""
        await self.enter(self.forge("stranger"), publish=[{"source": source, "sound": True}])

    async def enter(self, token: str, **behaviour: Unpack[Behaviour]) -> Member:
        """Somebody else comes with this token, to speak, and never to give up."""
        stubborn: Behaviour = {"publish": ["microphone"], "republish_always": True, **behaviour}
        return await self.crowd.join(self.url, token, **stubborn)

    def forge(self, identity: str, kind: AccessToken.ParticipantKind = "standard", *, hidden: bool = False) -> str:
        """A token that is not the module's, and allows everything."""
        server = self.stage.server
        return participant_token(server.api_key, server.api_secret, ROOM, identity, kind=kind, hidden=hidden)

    async def heard_for(
        self,
        identity: str,
        cheat: Callable[[], Awaitable[object]],
        source: str = "microphone",
        *,
        listener: MediaParticipant | None = None,
    ) -> float:
        """How long somebody is heard from the moment of the cheat; those it is refused are not heard."""
        return await self.stage.heard_for(identity, cheat, source, listener=listener) or 0.0

    async def stays_silent(self, identity: str) -> None:
        """Listen for a while, in which nothing may be heard of them."""
        with pytest.raises(WaitedInVain):
            await self.listener.heard(identity, since=time.monotonic(), timeout_s=LISTEN_S)

    async def repaired(self, identity: str) -> set[str]:
        """What somebody was found to be able to do beyond what holds, as moderators were told."""
        told = await self.alice.until_told("drift_repaired", "livekit_moderation")
        assert told["participant"] == identity
        return set(told["found"]) - set(told["expected"])

    async def may_publish(self, identity: str) -> list[str]:
        return (await self.stage.may_publish()).get(identity, [])


@asynccontextmanager
async def scene(*, reports: bool = True, **settings: object) -> AsyncIterator[Scene]:
    """
    A scene where nothing is restricted yet.

    Args:
        reports: Whether LiveKit reports by webhooks.
        settings: Of the module; without `moderation_sweep_s` no sweep helps.
    """

    async with stage(reports=reports, **{"moderation_sweep_s": 60, **settings}) as meeting, Crowd() as crowd:
        alice = await meeting.join("alice", Role.MODERATOR, enters_livekit=False)
        signaling = await meeting.join("bob", enters_livekit=False)
        listener = await meeting.listener()
        bob = await crowd.join(meeting.server.url, signaling.token, publish=["microphone"])
        await listener.heard("bob")
        yield Scene(meeting, crowd, listener, alice, bob, signaling, signaling.token)

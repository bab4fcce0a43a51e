"""LiveKit is away, or comes back without its rooms, while two nodes on one Redis have people in one meeting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest

from signaling import Kind, metrics
from signaling.errors import MediaServerError
from signaling.livekit.embedded import EmbeddedServer
from tests.meeting_on_fake import until
from tests.meetings.cheating import HEARD_S
from tests.meetings.several import DEADLINE_S, Several, several

ANSWERED_S = 2 * DEADLINE_S + 1
"""Each may find out by itself that nothing is answered, one after the other; the rest is for a loaded machine."""
Results = list[dict[str, Any]]


@asynccontextmanager
async def fault(kind: str, meeting: Several) -> AsyncIterator[None]:
    """What is between the nodes and LiveKit is wrong, or LiveKit is."""
    proxy = meeting.proxy
    match kind:
        case "refused":
            proxy.refuse()
            proxy.drop()
            yield
        case "hung":
            with meeting.servers[0].paused():
                yield
        case "slow":
            proxy.delay(answers_s=0.2)
            yield
        case _:
            status = HTTPStatus(int(kind))
            head = f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            proxy.reply(head.encode())
            yield
    await proxy.heal()


async def commanded(meeting: Several, action: str, **fields: object) -> Results:
    """What a command comes to that is given on each node at once."""
    async with asyncio.timeout(ANSWERED_S):
        return await asyncio.gather(*(each.moderated(action, **fields) for each in meeting.moderators))


async def livekit_is_back(meeting: Several) -> None:
    """Return when each node knows."""
    for node in meeting.nodes:
        await until(lambda node=node: node.module.livekit_answers, 20)  # type: ignore[misc]


async def comes_to_restrict(meeting: Several) -> None:
    """Return when nobody but moderators may speak, by the last node's moderator, and Bob is not heard any more."""
    async with asyncio.timeout(20):
        while "error" in (result := await meeting.moderators[-1].moderated("restrict", source="microphone")):
            assert result["error"] == "livekit_unavailable", "a call of before was cut off with its connection"
            await livekit_is_back(meeting)
    await meeting.listener.silent("bob")


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("kind", ["refused", "hung", "slow", "500", "503"])
async def test_each_node_answers_in_time_and_goes_on_afterwards(kind: str, servers: int) -> None:
    async with several(servers=servers) as meeting:
        async with fault(kind, meeting):
            results = await commanded(meeting, "mute", sources=["microphone"], participants=["bob"])
        errors = {result.get("error") for result in results}
        assert errors == ({None} if kind == "slow" else {"livekit_unavailable"})
        await livekit_is_back(meeting)
        await comes_to_restrict(meeting)
        assert not await meeting.may_speak()


@pytest.mark.parametrize("nodes", [1, 2])
async def test_rooms_are_made_again_once_and_who_returns_is_heard_no_longer_than_with_one_node(nodes: int) -> None:
    async with several(servers=1, nodes=nodes) as meeting:
        [server] = meeting.servers
        unused_token = await new_token(meeting)
        await comes_to_restrict(meeting)
        meeting.proxy.refuse()
        meeting.proxy.drop()
        for result in await commanded(meeting, "restrict", source="camera"):
            assert result["error"] == "livekit_unavailable"
        pid = server.pid
        server.kill()
        await until(lambda: is_another(server, pid))
        made = metrics.LIVEKIT_CALLS.labels("CreateRoom", "ok")
        before = made._value.get()
        await meeting.proxy.accept()
        await livekit_is_back(meeting)
        await until(lambda: made._value.get() > before)
        listener = await meeting.nodes[0].enter(unused_token)
        heard_s = await meeting.nodes[0].heard_for(
            "bob", lambda: meeting.come_back(meeting.old_token), listener=listener
        )
        assert (heard_s or 0) < HEARD_S
        assert not await meeting.may_speak()
        assert made._value.get() == before + 1


async def test_the_media_server_that_is_asked_dies_while_the_room_lives_on_the_other() -> None:
    async with several(servers=2) as meeting:
        asked = await meeting.server_without_the_room()
        meeting.ask(asked)
        pid = asked.pid
        asked.kill()
        results = await commanded(meeting, "restrict", source="screen_share")
        assert {result.get("error") for result in results} <= {None, "livekit_unavailable"}
        await until(lambda: is_another(asked, pid), 20)
        await livekit_is_back(meeting)
        await comes_to_restrict(meeting)
        listener = await meeting.nodes[0].enter(await new_token(meeting))
        heard_s = await meeting.nodes[0].heard_for(
            "bob", lambda: meeting.come_back(meeting.old_token), listener=listener
        )
        assert (heard_s or 0) < HEARD_S
        assert not await meeting.may_speak()


def is_another(server: EmbeddedServer, pid: int) -> bool:
    """Whether it was started again."""
    try:
        return server.pid != pid
    except MediaServerError:
        return False


async def new_token(meeting: Several) -> str:
    """With which the recorder comes back."""
    recorder = await meeting.nodes[0].join("recorder-again", enters_livekit=False, kind=Kind.RECORDER)
    return recorder.token

"""The client of the stand-alone server, where it is no friendly one."""

import pytest
from aiohttp import web

from signaling.testing import SignalingClient, SignalingRefused
from tests.server.hosting import hosted


async def test_who_is_not_let_in_learns_why() -> None:
    async with hosted() as door:
        ticket = door.ticket()
        async with SignalingClient(door.url, ticket):
            pass
        with pytest.raises(SignalingRefused, match="refused the connection: 401 invalid_ticket") as refused:
            await SignalingClient(door.url, ticket).__aenter__()
        assert (refused.value.status, refused.value.error) == (401, "invalid_ticket")


@pytest.mark.parametrize("body", ["Bad Gateway", "", "[]", "{}", "null"])
async def test_whoever_else_refuses_need_not_say_why(body: str) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=502, text=body)

    app = web.Application()
    app.router.add_get("/signaling", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with pytest.raises(SignalingRefused, match=r"connection: 502$") as refused:
        await SignalingClient(f"ws://127.0.0.1:{runner.addresses[0][1]}/signaling", "ticket").__aenter__()
    assert (refused.value.status, refused.value.error) == (502, "")
    await runner.cleanup()

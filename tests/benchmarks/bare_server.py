"""
What the stand-alone server is compared with: `websockets` and nothing else, in a process of its own.

It echoes; `token` is answered by one signed as LiveKit's library signs, anything that begins with `all ` goes to
everybody else. It prints its address, and ends when its standard input does.
"""

import asyncio
import json
import sys
from datetime import timedelta
from typing import Final

from livekit.api import AccessToken, VideoGrants
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve

_GRANTS: Final = VideoGrants(
    room_join=True,
    room="meeting",
    can_subscribe=True,
    can_publish=True,
    can_publish_sources=["camera", "microphone", "screen_share", "screen_share_audio"],
    can_publish_data=False,
)


async def main() -> None:
    """Serve until nobody holds the other end of standard input."""
    running: list[Server] = []

    async def answer(connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, str)
            if message.startswith("all "):
                broadcast(running[0].connections - {connection}, message)
            elif message == "token":
                token = AccessToken("key", "a secret of thirty-two bytes or more").with_identity("p0").with_name("p0")
                signed = token.with_ttl(timedelta(seconds=32)).with_grants(_GRANTS).to_jwt()
                await connection.send(json.dumps({"token": signed}))
            else:
                await connection.send(message)

    async with serve(answer, "127.0.0.1", 0, compression=None, backlog=1_024) as server:
        running.append(server)
        sys.stdout.write(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())

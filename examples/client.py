"""
A moderator's client in 40 lines: one command, what it came to for each person, and the events meanwhile.

Needs `websockets`, and the stand-alone server (`livekit-moderation serve`, of `livekit-moderation[server]`):

    livekit-moderation ticket --room standup --participant alice --role moderator |
        python examples/client.py ws://127.0.0.1:8700/signaling force_mute bob carol

The ticket comes from standard input, or from `MODERATION_TICKET`. Ends with status 0 if all of it was done.
WebSocket pings are answered by the library; pings of the namespace `echo` are for browsers, which cannot see those.
"""
# ruff: noqa: INP001, T201 - a program, not a package

import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

NAMES = {"enable_microphone_restrictions": "unrestricted_participants"}


async def moderate(url: str, ticket: str, action: str, *names: str) -> str:
    """Carry out one command of the namespace `livekit`; what went wrong, or nothing."""
    protocols = [Subprotocol("opentalk-signaling-json-v1.0"), Subprotocol(f"ticket#{ticket}")]
    async with connect(url, subprotocols=protocols, compression=None) as connection:
        join = {"action": "join", "extensions": ["livekit_moderation"]}
        await connection.send(json.dumps({"namespace": "control", "payload": join}))
        async for text in connection:
            frame = json.loads(text)
            match frame["payload"]:
                case {"message": "join_success"}:
                    command = {"action": action, NAMES.get(action, "participants"): names}
                    await connection.send(json.dumps({"namespace": "livekit", "payload": command, "transaction_id": 1}))
                case {"message": "result"}:
                    for each in frame["payload"]["outcomes"]:
                        print(each["participant"], each["outcome"], each.get("error", ""))
                    return ": ".join(frame["payload"][key] for key in ("error", "detail") if key in frame["payload"])
                case event:
                    print(frame["namespace"], json.dumps(event))
    return "the server closed the connection"


if __name__ == "__main__":
    if len(sys.argv) < 3:  # noqa: PLR2004
        sys.exit(__doc__)
    try:
        ticket = os.environ.get("MODERATION_TICKET") or sys.stdin.readline().strip()
        sys.exit(asyncio.run(moderate(sys.argv[1], ticket, *sys.argv[2:])) or None)
    except (OSError, WebSocketException) as error:
        sys.exit(str(error))

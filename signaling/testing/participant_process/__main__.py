"""Requests in, answers and events out: the child itself."""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from signaling.testing.participant_process.participant import Participant
from signaling.testing.participant_process.replies import Refused, Reply

_LINE_BYTES: Final = 2**20


class Service:
    """Answers the parent's requests, each as soon as it can be."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._participants: dict[int, Participant] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, requests: asyncio.StreamReader) -> None:
        """Serve until the input ends, then leave every room."""
        while line := await requests.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(participant.disconnect() for participant in self._participants.values()))

    async def _answer(self, request: Reply) -> None:
        try:
            answer = await self._carry_out(request.pop("op"), request.pop("participant"), request.pop("arguments"))
        except Refused as refused:
            answer = {"error": refused.kind, "message": str(refused)}
        except Exception:  # noqa: BLE001  the parent raises it, with its traceback
            answer = {"error": "ParticipantError", "message": traceback.format_exc()}
        self._tell({"request": request["request"]} | answer)

    def _carry_out(self, operation: str, number: int, arguments: Reply) -> Awaitable[Reply]:
        if operation == "connect":
            self._participants[number] = Participant(number, self._tell, listens=arguments.pop("listens"))
        participant = self._participants[number]
        operations: Mapping[str, Callable[..., Awaitable[Reply]]] = {
            "connect": participant.connect,
            "disconnect": participant.disconnect,
            "ended": participant.perception.ended,
            "heard_for": participant.perception.heard_for,
            "level": participant.perception.level,
            "mute": participant.publishing.mute,
            "perceived": participant.perception.perceived,
            "publish": participant.publishing.publish,
            "reconnect": participant.connect,
            "unmute": participant.publishing.unmute,
            "unpublish": participant.publishing.unpublish,
        }
        return operations[operation](**arguments)

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._write(json.dumps(message).encode() + b"\n")


async def _serve() -> None:
    # What native code prints must not come between the lines for the parent.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    answers.write(b'{"ready": true}\n')
    await Service(answers.write).run(requests)


if __name__ == "__main__":
    asyncio.run(_serve())
    sys.stderr.flush()
    os._exit(0)  # everybody has left; the native library's own way out may take long, or crash

"""`make schemas`: JSON Schema for every message, and AsyncAPI for the whole WebSocket, out of `signaling.messages`."""

from signaling.cli.schemas.async_api import asyncapi
from signaling.cli.schemas.example_messages import ALICE, BOB, CAROL, examples
from signaling.cli.schemas.folder import files, generated, main
from signaling.cli.schemas.kinds import ASYNCAPI, CLIENT_FRAME, SERVER_FRAME, commands, events, path, tag
from signaling.cli.schemas.replies import REPLIES

__all__ = [
    "ALICE",
    "ASYNCAPI",
    "BOB",
    "CAROL",
    "CLIENT_FRAME",
    "REPLIES",
    "SERVER_FRAME",
    "asyncapi",
    "commands",
    "events",
    "examples",
    "files",
    "generated",
    "main",
    "path",
    "tag",
]

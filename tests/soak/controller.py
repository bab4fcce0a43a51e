"""The controller of the soak: it moves people into breakouts and back, by whichever node is up."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import aiohttp

from tests.soak.node import Node
from tests.soak.people import Person

TOKEN: Final = "a token of the soak's controller"
_ANSWERS_S: Final = 8


async def control(
    people: Sequence[Person], nodes: Sequence[Node], chance: random.Random, every_s: float, quiet: asyncio.Event
) -> int:
    """Move people until it is to be quiet; how often somebody was."""
    moves = 0
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {TOKEN}"}, timeout=aiohttp.ClientTimeout(total=_ANSWERS_S)
    ) as http:
        while not quiet.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.expovariate(1 / every_s)):
                    await quiet.wait()
            up = [node for node in nodes if node.is_up]
            person = chance.choice(people)
            if quiet.is_set() or not up or not person.is_in:
                continue
            where = chance.choice([{"breakout": "aside"}, {}])
            url = f"{chance.choice(up).internal_url}/v1/rooms/{person.room}/participants/{person.name}/breakout"
            with suppress(aiohttp.ClientError, TimeoutError):  # the node was stopped meanwhile
                async with http.put(url, json=where) as answer:
                    moves += answer.status == HTTPStatus.NO_CONTENT
    return moves

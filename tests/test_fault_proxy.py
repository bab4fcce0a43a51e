"""The proxy does what it is told to, and nothing else; what is by chance is the same again with the same seed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.fault_proxy import FaultProxy

LIMIT_S = 10


@dataclass
class Echo:
    """Answers each line with the same; what it was asked is kept."""

    port: int = 0
    asked: list[bytes] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        try:
            while (line := await reading.readuntil(b"\n")).endswith(b"\n"):
                self.asked.append(line)
                writing.write(line)
                async with self.news:
                    self.news.notify_all()
        except asyncio.IncompleteReadError as cut:
            self.ended.append(cut.partial)
        except ConnectionError:
            self.ended.append(b"")
        finally:
            writing.close()
            async with self.news:
                self.news.notify_all()

    async def until_asked(self, line: bytes) -> None:
        async with asyncio.timeout(LIMIT_S), self.news:
            await self.news.wait_for(lambda: line in self.asked)

    async def until_ended(self) -> bytes:
        async with asyncio.timeout(LIMIT_S), self.news:
            await self.news.wait_for(lambda: bool(self.ended))
        return self.ended[0]


class Client:
    def __init__(self, reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        self.reading, self.writing = reading, writing

    async def ask(self, line: bytes) -> bytes:
        """The answer, as far as it came."""
        self.writing.write(line)
        return await self.rest_of_line()

    async def rest_of_line(self) -> bytes:
        try:
            async with asyncio.timeout(LIMIT_S):
                return await self.reading.readuntil(b"\n")
        except asyncio.IncompleteReadError as cut:
            return cut.partial
        except ConnectionError:
            return b""


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reading, writing = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reading, writing)
    finally:
        writing.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo.port) as proxy:
        yield proxy


async def test_what_is_said_gets_there_and_back(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        long = b"x" * 60_000 + b"\n"
        assert [await client.ask(line) for line in (b"one\n", long)] == [b"one\n", long]
    assert (proxy.cut, proxy.lost) == (0, 0)


async def test_connections_are_dropped_and_new_ones_taken(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"one\n")
        proxy.drop()
        assert await client.rest_of_line() == b""
        assert proxy.cut == 1
    async with connected(proxy) as client:
        assert await client.ask(b"two\n") == b"two\n"


async def test_new_ones_are_refused_and_who_is_there_stays(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"one\n")
        port = proxy.port
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert await client.ask(b"two\n") == b"two\n"
        await proxy.heal()
        assert proxy.port == port
        async with connected(proxy) as other:
            assert await other.ask(b"three\n") == b"three\n"


async def test_what_is_swallowed_never_gets_there(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        await client.ask(b"one\n")
        proxy.stall()
        asking = asyncio.create_task(client.ask(b"two\n"))
        async with asyncio.timeout(LIMIT_S):
            while not any(wire.is_spoiled for wire in proxy._wires):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
        await proxy.heal()
        assert await asking == b""
        assert echo.asked == [b"one\n"]


async def test_the_answer_alone_is_swallowed(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        await client.ask(b"one\n")
        proxy.swallow_answers()
        asking = asyncio.create_task(client.ask(b"two\n"))
        await echo.until_asked(b"two\n")
        async with asyncio.timeout(LIMIT_S):
            while not any(wire.is_spoiled for wire in proxy._wires):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
        await proxy.heal()
        assert await asking == b""


async def test_one_answer_is_lost_to_a_request_that_is_chosen(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        proxy.lose_answer(lambda request: b"two" in request)
        assert await client.ask(b"one\n") == b"one\n"
        assert await client.ask(b"two\n") == b""
        assert echo.asked == [b"one\n", b"two\n"]
        assert proxy.lost == 1
    async with connected(proxy) as client:
        assert await client.ask(b"two\n") == b"two\n"


async def test_an_answer_of_its_own_is_all_that_comes(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        proxy.reply(b"busy\n")
        assert await client.ask(b"one\n") == b"busy\n"
        assert await client.rest_of_line() == b""
    await proxy.heal()
    async with connected(proxy) as client:
        assert await client.ask(b"two\n") == b"two\n"
    assert echo.asked == [b"two\n"]


async def test_a_request_can_be_waited_for(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        proxy.delay(answers_s=0.05)
        waiting = asyncio.create_task(proxy.until_asked(lambda request: b"two" in request))
        assert await client.ask(b"one\n") == b"one\n"
        assert not waiting.done()
        asking = asyncio.create_task(client.ask(b"two\n"))
        await waiting
        assert not asking.done()
        assert await asking == b"two\n"


async def test_a_request_is_cut_in_its_middle(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        proxy.halve()
        assert await client.ask(b"123456789\n") == b""
        part = await echo.until_ended()
        assert part
        assert b"123456789".startswith(part)


async def test_where_an_answer_is_cut_follows_from_the_seed(echo: Echo) -> None:
    parts = []
    for _ in range(2):
        async with FaultProxy(echo.port, seed=7) as proxy, connected(proxy) as client:
            proxy.halve(answers=True)
            parts.append(await client.ask(b"123456789\n"))
    assert parts[0] == parts[1]
    assert b"123456789".startswith(parts[0])


@pytest.mark.parametrize("delays_s", [(0.03, 0.0), (0.0, 0.03)])
async def test_each_direction_waits(proxy: FaultProxy, delays_s: tuple[float, float]) -> None:
    async with connected(proxy) as client:
        proxy.delay(*delays_s)
        began = asyncio.get_running_loop().time()
        assert await client.ask(b"one\n") == b"one\n"
        assert asyncio.get_running_loop().time() - began >= max(delays_s)


async def test_who_is_behind_it_may_be_gone(echo: Echo) -> None:
    async with FaultProxy(echo.port) as proxy:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        proxy.target = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with connected(proxy) as client:
            assert await client.ask(b"one\n") == b""
        proxy.target = echo.port
        async with connected(proxy) as client:
            assert await client.ask(b"two\n") == b"two\n"

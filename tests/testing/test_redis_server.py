"""A Redis of our own: it answers, keeps what it was told over a crash, and ends with whoever started it."""

import asyncio
import sys
from pathlib import Path

import pytest

from signaling.testing import redis_server
from signaling.testing.redis_server import RedisFailed, RedisMissing, RedisServer

ROOT = Path(__file__).parents[2]
LIMIT_S = 20
PARENT = """
import asyncio, os, sys
from signaling.testing.redis_server import RedisServer

async def main():
    server = await RedisServer().__aenter__()
    print(server.pid, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    os._exit(0)

asyncio.run(main())
"""


async def ask(port: int, *words: str) -> str:
    """One command, by hand; the first line of the answer, or what it says."""
    reading, writing = await asyncio.open_connection("127.0.0.1", port)
    writing.write(f"{' '.join(words)}\r\n".encode())
    answer = (await reading.readline()).decode().strip()
    if answer.startswith("$"):
        answer = (await reading.readline()).decode().strip()
    writing.close()
    await writing.wait_closed()
    return answer


def program_of(pid: int) -> str:
    """What a process runs; nothing when it has ended, whether or not anybody took note."""
    command = Path(f"/proc/{pid}/cmdline")
    return command.read_text() if command.exists() else ""


async def test_it_answers_only_here_and_is_gone_afterwards() -> None:
    async with RedisServer() as redis:
        assert redis.url == f"redis://127.0.0.1:{redis.port}/0"
        assert await ask(redis.port, "PING") == "+PONG"
        directory = redis.directory
        assert directory.is_dir()
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        await ask(redis.port, "PING")


async def test_what_it_was_told_outlives_a_crash() -> None:
    async with RedisServer(appendfsync="always") as redis:
        first = redis.pid
        assert await ask(redis.port, "SET", "word", "kept") == "+OK"
        await redis.kill()
        await redis.start()
        assert redis.pid != first
        assert await ask(redis.port, "GET", "word") == "kept"


async def test_it_can_be_stalled() -> None:
    async with RedisServer() as redis:
        redis.pause()
        asking = asyncio.create_task(ask(redis.port, "PING"))
        assert not (await asyncio.wait({asking}, timeout=0.05))[0]
        redis.resume()
        assert await asyncio.wait_for(asking, LIMIT_S) == "+PONG"


async def test_a_port_that_somebody_else_took_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RedisServer() as one:
        ports = iter([one.port, redis_server.free_port()])
        monkeypatch.setattr(redis_server, "free_port", lambda: next(ports))
        async with RedisServer() as other:
            assert other.port != one.port
            assert await ask(other.port, "PING") == "+PONG"


async def test_last_words_say_what_is_wrong() -> None:
    with pytest.raises(RedisFailed, match="maxmemory-policy"):
        await RedisServer(maxmemory_policy="nonsense").__aenter__()


def test_without_one_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisMissing, match="apt-get install redis-server"):
        RedisServer()


async def test_it_ends_with_whoever_started_it() -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        pid = int(await parent.stdout.readline())
        assert "redis-server" in program_of(pid)
        await parent.communicate(b"")
        while program_of(pid):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)

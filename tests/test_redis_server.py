"""Redis as operators run it: each of the forms answers, and does what it is there for."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.redis_server import Certificate, RedisRefused, RedisServer, clustered, watched

LIMIT_S = 20


async def test_it_keeps_its_port_and_what_it_was_told(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, appendfsync="always") as redis:
        port, pid = redis.port, redis.pid
        await redis.ask("SET", "word", "kept")
        await redis.kill()
        await redis.start()
        assert (redis.port, await redis.ask("GET", "word")) == (port, "kept")
        assert redis.pid != pid
        await redis.flush()
        assert await redis.ask("GET", "word") is None
    async with RedisServer(tmp_path, port=port) as again:
        assert again.port == port
    assert "Ready to accept connections" in (tmp_path / "redis.log").read_text()


async def test_without_its_file_it_forgets(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, appendonly=False) as redis:
        await redis.ask("SET", "word", "lost")
        await redis.kill()
        await redis.start()
        assert await redis.ask("GET", "word") is None


async def test_who_has_no_password_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password="of-a-test") as redis:
        assert await redis.ask("PING") == "PONG"
        async with Redis.from_url(redis.url) as client:
            assert await client.get("nothing") is None
        redis.password = None
        with pytest.raises(RedisRefused, match="NOAUTH"):
            await redis.ask("PING")


async def test_it_speaks_tls(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, tls=Certificate.make(tmp_path)) as redis:
        assert redis.url.startswith("rediss://")
        assert await redis.ask("PING") == "PONG"
        async with Redis.from_url(redis.url) as client:
            assert await client.get("nothing") is None


async def test_a_sentinel_makes_the_replica_the_master(tmp_path: Path) -> None:
    async with watched(tmp_path) as several:
        with pytest.raises(RedisRefused, match="READONLY"):
            await several.replica.ask("SET", "word", "there")
        assert await several.sentinel.master_port() == several.master.port
        await several.master.kill()
        async with asyncio.timeout(LIMIT_S):
            while await several.sentinel.master_port() != several.replica.port:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
            while "role:master" not in str(await several.replica.ask("INFO", "replication")):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await several.replica.ask("SET", "word", "there") == "OK"


async def test_a_cluster_has_a_node_for_each_slot(tmp_path: Path) -> None:
    async with clustered(tmp_path) as cluster:
        refusals = 0
        for node in cluster.nodes:
            try:
                await node.ask("SET", "word", "there")
            except RedisRefused as refused:
                assert "MOVED" in str(refused)  # noqa: PT017 - each but one
                refusals += 1
        assert refusals == len(cluster.nodes) - 1
        assert cluster.url.count(",") == refusals

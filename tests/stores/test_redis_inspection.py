"""Getting to Redis in each of the ways that a URL can name, and refusing what is not fit, by the name of the fault."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from signaling.errors import ConfigurationError, StoreError
from signaling.identifiers import NodeId, RoomId, new_command_id
from signaling.stores.contract import Commit, Kept
from signaling.stores.redis import RedisStore, news, scripts
from signaling.stores.redis.address import FORMS, Address
from signaling.stores.redis.link import Link
from signaling.stores.redis.scripts import Script
from signaling.testing.redis_server import free_port
from tests.core.meetings import BOARD
from tests.docs.pages import blocks
from tests.fault_proxy import FaultProxy
from tests.redis_server import Certificate, RedisServer, Watched, clustered, watched
from tests.stores.logs import commit, record

LIMIT_S = 20
SECRET = "secret-of-a-test"
ROOMS = tuple(RoomId(f"room-{number}") for number in range(8))


@asynccontextmanager
async def two_nodes(url: str) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two stores on the same Redis."""
    async with AsyncExitStack() as stack:
        stores = (RedisStore(url), RedisStore(url))
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        yield stores


async def exchange(one: RedisStore, other: RedisStore, *rooms: RoomId) -> None:
    """What one commits, the other is told of and reads; then the other way round."""
    told: asyncio.Queue[Commit] = asyncio.Queue()
    other.listen(told.put_nowait)
    for room in rooms:
        other.follow(room)
        assert await other.read(room) is None
        async with one.turn(room) as turn:
            assert await one.append(commit(1, room), fence=turn.fence)
        async with asyncio.timeout(LIMIT_S):
            assert await told.get() == commit(1, room)
        assert await other.read(room) == record(1, room)
        async with other.turn(room) as turn:
            assert await other.append(commit(2, room), fence=turn.fence)
        assert await told.get() == commit(2, room)
        assert await one.read(room) == record(2, room)
    assert await one.rooms() == tuple(sorted(rooms))
    assert await one.keep_once(Kept.TICKET, "t", until=2.0, now=1.0)
    assert not await other.keep_once(Kept.TICKET, "t", until=2.0, now=1.0)
    assert await other.beat(NodeId("n-1"), until=2.0, now=1.0) == {NodeId("n-1")}
    await one.check()


async def refusal(url: str, kind: type[Exception] = ConfigurationError) -> str:
    """Why a store does not open."""
    store = RedisStore(url)
    with pytest.raises(kind) as error:
        async with asyncio.timeout(LIMIT_S):
            await store.open()
    await store.close()
    assert str(error.value).startswith("MODERATION_STORE_URL: ")
    assert SECRET not in str(error.value)
    return str(error.value)


# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", Address("single", (("cache", 6379),))),
        ("redis://cache/", Address("single", (("cache", 6379),))),
        ("redis://cache:7000/3", Address("single", (("cache", 7000),), 3)),
        ("redis://[::1]:7000", Address("single", (("::1", 7000),))),
        ("redis://:p@cache", Address("single", (("cache", 6379),), password="p")),
        ("redis://u:p%40%2F:q@cache", Address("single", (("cache", 6379),), username="u", password="p@/:q")),
        ("rediss://cache", Address("single", (("cache", 6379),), has_tls=True)),
        (
            "rediss://cache/1?ssl_ca_certs=/etc/our%20ca.pem",
            Address("single", (("cache", 6379),), 1, has_tls=True, ca_certs="/etc/our ca.pem"),
        ),
        ("redis+sentinel://a/ours", Address("sentinel", (("a", 26379),), service="ours")),
        (
            "rediss+sentinel://:p@a,b:7,[::1]/ours/2",
            Address("sentinel", (("a", 26379), ("b", 7), ("::1", 26379)), 2, "ours", has_tls=True, password="p"),
        ),
        (
            "redis+sentinel://a/ours?sentinel_password=p%2Bq&sentinel_username=u",
            Address("sentinel", (("a", 26379),), service="ours", sentinel_username="u", sentinel_password="p+q"),
        ),
        ("redis+cluster://a,b:7000", Address("cluster", (("a", 6379), ("b", 7000)))),
        ("rediss+cluster://a", Address("cluster", (("a", 6379),), has_tls=True)),
    ],
)
def test_a_url_names_where_it_is_and_how_to_get_in(url: str, address: Address) -> None:
    assert Address.of(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "redis:",
        "redis://",
        "redis:///0",
        f"redis://:{SECRET}@",
        f"redis://:{SECRET}@cache:port",
        f"redis://:{SECRET}@cache:65536",
        f"redis://:{SECRET}@cache/ours",
        f"redis://:{SECRET}@cache/-1",
        f"redis://:{SECRET}@cache/0/1",
        f"redis://:{SECRET}@cache#0",
        f"redis://:{SECRET}@cache?db=1",
        f"redis://:{SECRET}@cache?{SECRET}",
        f"redis://:{SECRET}/@cache",
        f"redis://:{SECRET}@[::1",
        f"redis://:{SECRET}@a,b",
        f"redis://:{SECRET}@cache?ssl_ca_certs=ca.pem",
        f"rediss://:{SECRET}@cache?ssl_ca_certs=",
        f"rediss://:{SECRET}@cache?ssl_cert_reqs=none",
        f"redis+sentinel://:{SECRET}@a,b",
        f"redis+sentinel://:{SECRET}@a,/ours",
        f"redis+sentinel://:{SECRET}@a/ours/first",
        f"redis+sentinel://:{SECRET}@a/ours/0/1",
        f"redis+sentinel://:{SECRET}@a/ours?sentinel_username=u",
        f"redis+sentinel://:{SECRET}@a/ours?sentinel_password=",
        f"redis://cache?sentinel_password={SECRET}",
        f"redis+cluster://:{SECRET}@a,b/1",
        f"redis+unix://:{SECRET}@a",
        f"valkey://:{SECRET}@a",
    ],
)
def test_any_other_url_is_refused_with_the_forms_and_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Address.of(url)
    assert str(error.value).startswith("MODERATION_STORE_URL: ")
    assert str(error.value).endswith(FORMS)
    assert SECRET not in str(error.value)


def test_an_address_is_told_without_the_password() -> None:
    address = Address.of(f"redis+sentinel://u:{SECRET}@a,[::1]:7/ours?sentinel_password={SECRET}-too")
    assert str(address) == "Redis at a:26379,[::1]:7 by the name ours"
    assert SECRET not in repr(address)
    assert SECRET not in address.without_passwords(f"ERR unknown command AUTH {SECRET} {SECRET}-too")


# --- What is not fit ---------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password="another") as redis:
        where = f"127.0.0.1:{redis.port}"
        for login in (f":{SECRET}@", f"nobody:{SECRET}@", ""):
            assert f"{where} refuses the user name or password" in await refusal(f"redis://{login}{where}")


async def test_a_password_where_none_is_asked_for_is_refused(redis_url: str) -> None:
    assert "refuses the user name or password" in await refusal(redis_url.replace("//", f"//:{SECRET}@"))


async def test_a_user_who_may_not_do_enough_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        await redis.ask("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~*", "&*", "+@read", "+info")
        text = await refusal(f"redis://reader:{SECRET}@127.0.0.1:{redis.port}")
    assert "does not permit this user enough" in text


async def test_a_database_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password=SECRET, databases="4") as redis:
        assert "has no database 4" in await refusal(redis.url.removesuffix("/0") + "/4")


async def test_tls_where_there_is_none_fails(redis_url: str) -> None:
    text = await refusal(redis_url.replace("redis://", f"rediss://:{SECRET}@"), StoreError)
    assert "no answer from Redis at 127.0.0.1:" in text
    assert "with TLS: " in text


async def test_no_tls_where_there_is_fails(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, tls=Certificate.make(tmp_path)) as redis:
        text = await refusal(f"redis://:{SECRET}@127.0.0.1:{redis.port}", StoreError)
    assert "no answer from Redis at 127.0.0.1:" in text
    assert "without TLS: " in text


async def test_a_certificate_that_nobody_vouches_for_fails(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password=SECRET, tls=Certificate.make(tmp_path)) as redis:
        text = await refusal(redis.url.partition("?")[0], StoreError)
    assert "CERTIFICATE_VERIFY_FAILED" in text


@pytest.mark.parametrize(
    "url_of",
    [
        lambda where: f"redis://:{SECRET}@{where}",
        lambda where: f"redis+sentinel://:{SECRET}@{where}/meetings",
        lambda where: f"redis+cluster://:{SECRET}@{where}",
    ],
    ids=["single", "sentinel", "cluster"],
)
async def test_nobody_listening_is_told_with_the_place(url_of: Callable[[str], str]) -> None:
    where = f"127.0.0.1:{free_port()}"
    assert f"no answer from Redis at {where}" in await refusal(url_of(where), StoreError)


async def test_a_server_that_repeats_what_it_was_told_gives_away_no_password() -> None:
    async def repeat(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        while said := await reading.read(1000):
            writing.write(b"-ERR unknown: %b\r\n" % said.replace(b"\r\n", b" "))
        writing.close()

    async with await asyncio.start_server(repeat, "127.0.0.1", 0) as server:
        assert "AUTH" in await refusal(f"redis://:{SECRET}@127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize("ca_certs", ["/nowhere/ca.pem", __file__])
async def test_a_file_without_certificates_is_refused_by_its_name(ca_certs: str) -> None:
    assert f"ssl_ca_certs, {ca_certs}: " in await refusal(f"rediss://:{SECRET}@cache?ssl_ca_certs={ca_certs}")


async def test_a_form_that_it_has_not_is_refused_with_the_one_that_it_has(tmp_path: Path) -> None:
    async with watched(tmp_path / "watched") as several:
        where, sentinel = f"127.0.0.1:{several.master.port}", f"127.0.0.1:{several.sentinel.port}"
        assert "is no cluster; name it by redis://" in await refusal(f"redis+cluster://{where}")
        assert "is no Sentinel; name it by redis://" in await refusal(f"redis+sentinel://{where}/meetings")
        assert "is a Sentinel; name it by redis+sentinel://" in await refusal(f"redis://{sentinel}")
        assert "knows nothing by that name" in await refusal(f"redis+sentinel://{sentinel}/another")
    async with clustered(tmp_path / "clustered") as cluster:
        url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
        assert "is one of a cluster; name it by redis+cluster://" in await refusal(url)


async def test_a_wrong_password_is_refused_whatever_the_form(tmp_path: Path) -> None:
    async with watched(tmp_path, password="another", sentinel_password="third") as several:
        sentinel = f"127.0.0.1:{several.sentinel.port}/meetings"
        for own in ("", f"?sentinel_password={SECRET}"):
            text = await refusal(f"redis+sentinel://:another@{sentinel}{own}")
            assert "the Sentinel refuses sentinel_username or sentinel_password" in text
        text = await refusal(f"redis+sentinel://:{SECRET}@{sentinel}?sentinel_password=third")
        assert "refuses the user name or password" in text
        text = await refusal(f"redis+cluster://:{SECRET}@127.0.0.1:{several.master.port}")
        assert "refuses the user name or password" in text


async def test_a_subscription_that_is_not_answered_ends_the_start(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "STARTS_S", 0.1)
    async with FaultProxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        link = Link(
            Address.of(f"redis://127.0.0.1:{proxy.port}"), on_back=nothing, on_long_away=nothing, long_s=LIMIT_S
        )
        link.open()
        proxy.stall()
        heard = news.News(link, on_commit=lambda *_: None, on_turn=lambda _: None, on_subscribed=nothing)
        with pytest.raises(StoreError, match=r"^MODERATION_STORE_URL: Redis at .* has not taken a subscription"):
            await heard.start()
        await heard.close()
        await link.close()


def nothing() -> None:
    """Whoever is told this does nothing about it."""


async def test_a_replica_is_refused(tmp_path: Path) -> None:
    async with watched(tmp_path) as several:
        assert "read-only replica" in await refusal(several.replica.url)


async def test_one_that_drops_what_is_kept_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, maxmemory_policy="allkeys-lru") as redis:
        assert "maxmemory-policy is allkeys-lru, and must be noeviction" in await refusal(redis.url)


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        await redis.ask("HSET", "moderation:about", "format", 2)
        assert "has meetings of format 2, and this version knows 1 only" in await refusal(redis.url)
        assert await redis.ask("HGETALL", "moderation:about") == ["format", "2"]


@pytest.mark.parametrize("name", ["about", "{all}:nodes", "{all}:rooms", "{all}:alone", "kept:ticket"])
async def test_what_somebody_else_keeps_by_a_name_of_ours_is_refused(name: str, tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        await redis.ask("SET", f"moderation:{name}", "theirs")
        assert f"a string of somebody else's by the name moderation:{name}" in await refusal(redis.url)
        assert await redis.ask("KEYS", "*") == [f"moderation:{name}"]


@pytest.mark.parametrize("is_on", [True, False])
async def test_without_its_file_a_warning_is_logged(is_on: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    async with RedisServer(tmp_path, appendonly=is_on) as redis:
        with capture_logs() as logs:
            async with two_nodes(redis.url):
                pass
    warnings = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert warnings == ([] if is_on else ["store_without_append_only_file"] * 2)


# --- There and back ----------------------------------------------------------------------------------------------


async def test_two_nodes_share_meetings_on_one_server(redis_url: str) -> None:
    async with two_nodes(redis_url) as nodes:
        await exchange(*nodes, *ROOMS)


async def test_databases_are_apart(redis_url: str) -> None:
    async with two_nodes(redis_url) as nodes, two_nodes(redis_url.removesuffix("0") + "1") as others:
        await exchange(*nodes, BOARD)
        await exchange(*others, BOARD)


async def test_a_user_gets_in_with_a_password(tmp_path: Path) -> None:
    password = f"{SECRET}@/:?%#"
    async with RedisServer(tmp_path) as redis:
        await redis.ask("ACL", "SETUSER", "our@node", "on", f">{password}", "~moderation:*", "&moderation:*", "+@all")
        url = f"redis://our%40node:{quote(password, safe='')}@127.0.0.1:{redis.port}/0"
        async with two_nodes(url) as nodes:
            await exchange(*nodes, BOARD)


def listed_rights() -> list[str]:
    """What the documentation says that a user needs."""
    [found] = [block.text for block in blocks() if block.text.startswith("ACL SETUSER")]
    return found.split()[2:]


async def test_a_user_needs_each_of_the_rights_that_are_listed_and_no_more(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as redis:
        user, *listed = listed_rights()
        words = [f">{SECRET}" if word == ">PASSWORD" else word for word in listed]
        await redis.ask("ACL", "SETUSER", user, *words)
        url = f"redis://{user}:{SECRET}@127.0.0.1:{redis.port}/0"
        async with two_nodes(url) as nodes:
            await exchange(*nodes, *ROOMS)
            assert await nodes[0].audit(ROOMS[0], limit=1) is not None
            assert await nodes[1].entries(ROOMS[0], 1) is not None
            assert await nodes[1].audited(ROOMS[0], new_command_id()) is None
            assert await nodes[0].look_after(ROOMS[0], NodeId("n-1"), now=1.0)
            await nodes[0].keep_no_longer(Kept.TICKET, "t")
            assert await nodes[0].kept(Kept.TICKET, now=1.0) == {}
            assert await nodes[0].time() is not None
            assert await nodes[0].forget(ROOMS[0], 2)
        assert await redis.ask("ACL", "LOG") == []
        for right in [word for word in words if word[0] in "+~&"]:
            without = {"+": f"-{right[1:]}", "~": "resetkeys", "&": "resetchannels"}[right[0]]
            await redis.ask("ACL", "SETUSER", user, without)
            assert "does not permit this user enough" in await refusal(url), right
            await redis.ask("ACL", "SETUSER", user, right)
        async with two_nodes(url):
            pass


def test_every_command_of_a_script_is_among_the_rights_that_are_listed() -> None:
    texts = [script.text for script in vars(scripts).values() if isinstance(script, Script)]
    used = {command for text in texts for command in re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", text)}
    assert used
    assert used <= {right[1:].upper() for right in listed_rights()}


async def test_a_server_with_tls_is_trusted_by_its_authority(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password=SECRET, tls=Certificate.make(tmp_path)) as redis:
        assert redis.url.startswith("rediss://")
        async with two_nodes(redis.url) as nodes:
            await exchange(*nodes, BOARD)


async def test_two_nodes_share_meetings_in_a_cluster(tmp_path: Path) -> None:
    async with clustered(tmp_path) as cluster, two_nodes(cluster.url) as nodes:
        await exchange(*nodes, *ROOMS)
        for server in cluster.nodes:
            assert await server.ask("KEYS", "moderation:{*") != [], "each has some of the meetings"


async def test_two_nodes_share_meetings_where_a_sentinel_says(tmp_path: Path) -> None:
    async with (
        watched(tmp_path, password=SECRET) as several,
        two_nodes(several.url.replace("//", f"//:{SECRET}@")) as nodes,
    ):
        await exchange(*nodes, BOARD)


async def test_sentinels_may_have_a_password_of_their_own(tmp_path: Path) -> None:
    async with watched(tmp_path, password="of-redis", sentinel_password=f"{SECRET}+&") as several:
        url = several.url.replace("//", "//:of-redis@") + f"?sentinel_password={quote(f'{SECRET}+&')}"
        async with two_nodes(url) as nodes:
            await exchange(*nodes, BOARD)


async def test_they_go_on_where_the_sentinel_says_when_the_master_is_gone(tmp_path: Path) -> None:
    async with watched(tmp_path) as several, two_nodes(several.url) as nodes:
        await exchange(*nodes, BOARD)
        told: asyncio.Queue[Commit] = asyncio.Queue()
        nodes[1].listen(told.put_nowait)
        async with asyncio.timeout(LIMIT_S):
            await until_it_has(several, revision=2)
            await several.master.kill()
            while not await appended(nodes[0], commit(3)):
                await nodes[0]._link.wait()
            assert await told.get() == commit(3)
        assert await several.replica.ask("HGET", f"moderation:{{{BOARD}}}:head", "revision") == "3"


async def until_it_has(several: Watched, *, revision: int) -> None:
    """Return when the replica has repeated it."""
    while await several.replica.ask("HGET", f"moderation:{{{BOARD}}}:head", "revision") != str(revision):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def appended(store: RedisStore, made: Commit) -> bool:
    """Whether it could be."""
    try:
        return await store.append(made)
    except StoreError:
        return False

import asyncio
import resource
from collections.abc import Collection
from ipaddress import ip_network

import pytest
import structlog

from signaling.server import admission as server_admission
from signaling.server.admission import Admission
from signaling.settings import Network, ServerSettings
from tests.server.hosting import FREE, PING, Hosted, ask, hosted
from tests.server.test_allowance import Clock

FAR, OTHER, PROXY = "203.0.113.7", "203.0.113.8", "10.0.0.1"


class Somebody:
    """A connection that may be ended."""

    def __init__(self) -> None:
        self.is_over = False

    def abort(self) -> None:
        self.is_over = True


def admitting(
    *,
    places: int = 1_000,
    per_address: int = 1_000,
    per_address_per_s: float = 1_000,
    proxies: Collection[Network] = (),
    clock: Clock | None = None,
) -> Admission:
    return Admission(
        places=places,
        per_address=per_address,
        per_address_per_s=per_address_per_s,
        proxies=proxies,
        now=clock or Clock(),
    )


def crowd(admission: Admission, size: int, peer: str = FAR) -> list[Somebody]:
    """So many who have come, one after another, and have said nothing."""
    people = [Somebody() for _ in range(size)]
    assert all(admission.enter(each, peer) for each in people)
    return people


# --- Who says nothing ------------------------------------------------------------------------------------------------


def test_of_those_who_say_nothing_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_admission, "MAX_WAITING", 3)
    admission = admitting()
    first, second, third = crowd(admission, 3)
    admission.hear(first)
    (fourth,) = crowd(admission, 1)
    (fifth,) = crowd(admission, 1, OTHER)
    assert [each.is_over for each in (first, second, third, fourth, fifth)] == [False, True, False, False, False]


def test_an_address_that_has_many_gives_way_to_itself_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_admission, "MAX_WAITING_PER_ADDRESS", 2)
    admission = admitting()
    (other,) = crowd(admission, 1, OTHER)
    people = crowd(admission, 5)
    assert [each.is_over for each in people] == [True, True, True, False, False]
    assert not other.is_over


def test_who_has_been_refused_gives_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_admission, "MAX_WAITING", 1)
    admission = admitting()
    (refused,) = crowd(admission, 1)
    admission.hear(refused)
    admission.wait(refused, FAR)
    crowd(admission, 1)
    assert refused.is_over


def test_who_is_gone_is_not_noted_again() -> None:
    admission = admitting(places=1)
    (gone,) = crowd(admission, 1)
    admission.leave(gone)
    admission.wait(gone, FAR)
    assert admission.count(gone, FAR, ())
    crowd(admission, 1)
    assert not gone.is_over


# --- Places ----------------------------------------------------------------------------------------------------------


def test_when_all_places_are_taken_who_says_nothing_gives_way_and_nobody_else() -> None:
    admission = admitting(places=3)
    first, second, silent = crowd(admission, 3)
    admission.hear(first)
    admission.hear(second)
    (third,) = crowd(admission, 1)
    admission.hear(third)
    assert (first.is_over, second.is_over, silent.is_over) == (False, False, True)
    with structlog.testing.capture_logs() as logged:
        assert not admission.enter(Somebody(), FAR)
        assert not admission.enter(Somebody(), FAR)
    assert [(entry["event"], entry["connections"]) for entry in logged] == [("connections_full", 3)]
    admission.leave(first)
    assert admission.enter(Somebody(), FAR)


def test_a_reserve_of_descriptors_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(soft: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
        return server_admission._places()

    assert [limited(soft) for soft in (20_000, 1_024, 256)] == [20_000 - 256, 1_024 - 256, 128]
    assert limited(resource.RLIM_INFINITY) > 1_000_000


async def test_a_crowd_that_says_nothing_keeps_nobody_out_and_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_admission, "_places", lambda: 20)
    async with hosted() as door, asyncio.timeout(20):
        host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
        async with door.dial(bearer=door.ticket("alice")) as alice:
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
            assert (await ask(alice, PING))["payload"] == {"message": "pong"}
            async with door.dial(bearer=door.ticket("bob")) as bob:
                assert (await ask(bob, PING))["payload"] == {"message": "pong"}
            assert await silent[0][0].read() == b""
            for _, writer in silent:
                writer.close()
                await writer.wait_closed()


async def test_whoever_has_no_place_is_ended_and_who_has_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_admission, "_places", lambda: 1)
    async with hosted() as door, door.dial(bearer=door.ticket("alice")) as alice, asyncio.timeout(20):
        host, port = door.url.removeprefix("ws://").partition("/")[0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert (await ask(alice, PING))["payload"] == {"message": "pong"}
        assert len(door.server._websocket._open) == 1


# --- Addresses -------------------------------------------------------------------------------------------------------


def test_an_address_has_so_many_connections() -> None:
    admission = admitting(per_address=2)
    first, second, third, other = (*crowd(admission, 3), *crowd(admission, 1, OTHER))
    assert [admission.count(each, FAR, ()) for each in (first, second, third)] == [True, True, False]
    assert admission.count(other, OTHER, ())
    admission.leave(third)
    admission.leave(first)
    (fourth,) = crowd(admission, 1)
    assert admission.count(fourth, FAR, ())


def test_an_address_may_try_so_often() -> None:
    clock = Clock()
    admission = admitting(per_address_per_s=0.5, clock=clock)
    assert [admission.count(Somebody(), FAR, ()) for _ in range(6)] == [True] * 5 + [False]
    assert admission.count(Somebody(), OTHER, ())
    clock.now += 2
    assert [admission.count(Somebody(), FAR, ()) for _ in range(2)] == [True, False]


def test_a_class_behind_one_router_gets_in_at_once() -> None:
    admission = admitting(per_address=2_000, per_address_per_s=100)
    assert all(admission.count(each, FAR, ()) for each in crowd(admission, 250))
    assert all(admission.count(Somebody(), FAR, ()) for _ in range(750))


def test_addresses_that_were_quiet_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_admission, "_MAX_REMEMBERED", 3)
    clock = Clock()
    admission = admitting(per_address_per_s=0.1, clock=clock)
    for number in range(10):
        clock.now += 100
        assert admission.count(Somebody(), f"203.0.113.{number}", ())
        assert not admission.count(Somebody(), f"203.0.113.{number}", ())
    assert len(admission._allowances) <= 3


@pytest.mark.parametrize("here", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_not_counted(here: str) -> None:
    admission = admitting(per_address=1)
    assert all(admission.count(each, here, ()) for each in crowd(admission, 5, here))


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("fe80::1%eth0", "fe80::2%eth0"),
    ],
)
def test_what_one_subscriber_has_counts_as_one(one: str, same: str) -> None:
    admission = admitting(per_address=1)
    first, second = crowd(admission, 2)
    assert [admission.count(first, one, ()), admission.count(second, same, ())] == [True, False]


@pytest.mark.parametrize(
    ("peer", "forwarded", "counts_as"),
    [
        (FAR, [OTHER], FAR),  # whoever is no proxy may write what they like
        (PROXY, [], PROXY),
        (PROXY, [FAR], FAR),
        (PROXY, [f"{OTHER}, {FAR}"], FAR),
        (PROXY, [OTHER, FAR], FAR),
        (PROXY, [f"{FAR}, 10.0.0.2"], FAR),
        ("10.0.0.9", ["nonsense"], "unknown"),
        ("", [], "unknown"),
    ],
)
def test_behind_a_trusted_proxy_the_address_is_what_it_forwards(
    peer: str, forwarded: list[str], counts_as: str
) -> None:
    admission = admitting(per_address=1, proxies=[ip_network("10.0.0.0/8")])
    first, second = crowd(admission, 2)
    admission.count(first, counts_as, ())
    assert not admission.count(second, peer, forwarded)


async def test_too_many_of_one_address_are_answered_with_429_before_their_ticket_is_looked_at() -> None:
    async with hosted(moderation_trusted_proxies="127.0.0.0/8", moderation_connections_per_address=1) as door:
        ticket = door.ticket("bob")
        async with door.dial(bearer=door.ticket("alice"), headers=[("X-Forwarded-For", FAR)]):
            refused = door.dial(bearer=ticket, headers=[("X-Forwarded-For", FAR)])
            assert await door.refusal(refused) == (429, "too_many_connections")
            async with door.dial(bearer=door.ticket("carol"), headers=[("X-Forwarded-For", OTHER)]):
                pass
        await until_empty(door)
        async with door.dial(bearer=ticket, headers=[("X-Forwarded-For", FAR)]) as bob:
            assert (await ask(bob, PING))["payload"] == {"message": "pong"}


async def until_empty(door: Hosted) -> None:
    """Wait until the server has no connection."""
    async with asyncio.timeout(10):
        while door.server._websocket._open:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


def test_by_the_defaults_all_that_an_address_had_may_come_back_at_once() -> None:
    clock = Clock()
    settings = ServerSettings(**FREE)
    size = settings.moderation_connections_per_address
    admission = admitting(
        places=2 * size, per_address=size, per_address_per_s=settings.moderation_handshakes_per_s, clock=clock
    )
    people = [Somebody() for _ in range(size)]
    for each in people:
        admission.enter(each, FAR)
        assert admission.count(each, FAR, ())
        clock.now += 0.01
    clock.now += 20
    for each in people:
        admission.leave(each)
    assert sum(admission.count(each, FAR, ()) for each in people if admission.enter(each, FAR)) == size
    assert not admission.count(Somebody(), FAR, ())


@pytest.mark.parametrize("written", [f"{FAR}:51234", f"{FAR}", "[2001:db8::7]:51234", "[2001:db8::7]", "2001:db8::7"])
def test_an_address_may_be_written_with_its_port(written: str) -> None:
    admission = admitting(per_address=1, proxies=[ip_network(PROXY)])
    for forwarded, is_counted in ((written, True), (written, False), (OTHER, True)):
        somebody = Somebody()
        admission.enter(somebody, PROXY)
        assert admission.count(somebody, PROXY, [forwarded]) is is_counted

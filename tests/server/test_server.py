import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from signaling import ConfigurationError, ModerationModule
from signaling.server import ModerationServer
from signaling.server.addresses import cannot_listen, url_of
from signaling.settings import HostPort, ServerSettings
from tests.server.hosting import FREE, Hosted
from tests.server.keys import SECRET


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_it_runs_a_media_server_of_its_own_and_names_real_ports() -> None:
    async with ModerationServer(ServerSettings(**FREE)) as server:
        host = Hosted(server)
        addresses = [urlsplit(url) for url in (server.signaling_url, server.internal_url, server.livekit_url)]
        assert [(url.scheme, url.hostname, url.path) for url in addresses] == [
            ("ws", "127.0.0.1", "/signaling"),
            ("http", "127.0.0.1", ""),
            ("ws", "127.0.0.1", ""),
        ]
        assert len({url.port for url in addresses} - {0, None}) == 3
        async with host.client("bob") as bob:
            assert (await bob.join())["livekit"]["public_url"] == server.livekit_url
        assert server.module.embedded is not None
        assert server.module.embedded.url == server.livekit_url


async def test_a_module_that_it_was_given_outlives_it() -> None:
    settings = ServerSettings(livekit_url="ws://127.0.0.1:9", livekit_api_key="key", livekit_api_secret=SECRET, **FREE)
    async with ModerationModule(settings) as module:
        for _ in range(2):
            async with ModerationServer(settings, module=module) as server:
                assert server.module is module
        assert module.embedded is None
        await module.check_store()


@pytest.mark.parametrize("setting", ["MODERATION_LISTEN", "MODERATION_INTERNAL_LISTEN"])
async def test_a_port_that_is_taken_stops_the_start(setting: str, taken: str) -> None:
    settings = ServerSettings(**FREE | {setting.lower(): taken})
    with pytest.raises(ConfigurationError, match=f"^{setting}: cannot listen on {taken}: Address already in use$"):
        async with ModerationServer(settings):
            pass


async def test_a_host_that_is_not_ours_stops_the_start() -> None:
    for address, reason in (("192.0.2.1:0", "Cannot assign"), ("no.such.host.invalid:0", "")):
        with pytest.raises(ConfigurationError, match=f"^MODERATION_LISTEN: cannot listen on {address}: {reason}"):
            async with ModerationServer(ServerSettings(**FREE | {"moderation_listen": address})):
                pass


def test_a_key_that_does_not_suit_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"^MODERATION_TICKET_KEY: "):
        ModerationServer(ServerSettings(**FREE | {"moderation_ticket_algorithm": "RS256"}))


async def test_nothing_is_known_before_it_runs() -> None:
    server = ModerationServer(ServerSettings(**FREE))
    for name in ("signaling_url", "internal_url"):
        with pytest.raises(RuntimeError, match="outside"):
            getattr(server, name)
    async with server._internal:
        assert not server._websocket.is_listening


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "ws://127.0.0.1:7"),
        ("localhost", "ws://localhost:7"),
        ("::1", "ws://[::1]:7"),
        ("0.0.0.0", "ws://127.0.0.1:7"),  # noqa: S104 - nothing listens
        ("::", "ws://[::1]:7"),
    ],
)
def test_urls_can_be_dialled(host: str, url: str) -> None:
    assert url_of("ws", HostPort(host, 0), (host, 7)) == url


def test_an_error_without_a_number_is_told_as_it_is() -> None:
    assert str(cannot_listen("MODERATION_LISTEN", HostPort("a", 1), OSError("no"))).endswith(": no")

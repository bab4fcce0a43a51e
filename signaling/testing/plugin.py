"""
The pytest plugin: a real LiveKit, a stand-alone server, and meetings with real sound, as fixtures.

It is loaded by every pytest of whoever has this package installed, so nothing is imported before a fixture is used.
"""

import contextlib
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.from_thread import BlockingPortal

    from signaling.livekit.embedded import EmbeddedServer
    from signaling.testing.hosting import RunningServer
    from signaling.testing.meeting import Meeting
    from signaling.testing.participants import ParticipantProcess

_OPTION = "moderation_livekit"
_CHOICES = ("require", "skip", "install")
_HELP = "without a livekit-server: fail the tests that need one (require), skip them (skip), or build it (install)"
_CHOOSE = """\
These fixtures start and stall a server of their own, so LIVEKIT_URL does not count here.
With --moderation-livekit=install they build one, with --moderation-livekit=skip such tests are skipped."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the user choose what happens without a media server."""
    parser.getgroup("livekit-moderation").addoption("--moderation-livekit", choices=_CHOICES, help=_HELP)
    parser.addini(_OPTION, _HELP, default=_CHOICES[0])


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a choice that is none, before any test runs."""
    if config.getini(_OPTION) not in _CHOICES:
        raise pytest.UsageError(f"{_OPTION}: must be one of {', '.join(_CHOICES)}")


@pytest.fixture(scope="session")
def _moderation_portal() -> "Iterator[BlockingPortal]":
    """An event loop in a thread of its own, so that servers run for tests of any kind, and over many of them."""
    try:
        from anyio.from_thread import start_blocking_portal  # noqa: PLC0415 - see the module

        import signaling.testing.hosting  # noqa: F401, PLC0415 - see the module
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("signaling"):
            raise
        pytest.fail(f"{error.name} is missing: pip install 'livekit-moderation[testing]'", pytrace=False)
    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.fixture(scope="session")
def moderation_livekit(pytestconfig: pytest.Config, _moderation_portal: "BlockingPortal") -> "Iterator[EmbeddedServer]":
    """A real `livekit-server` on loopback, one for the session (and one for each worker of pytest-xdist)."""
    from signaling.errors import SignalingError  # noqa: PLC0415 - see the module
    from signaling.testing.hosting import running_livekit  # noqa: PLC0415 - see the module

    choice = pytestconfig.getoption(_OPTION) or pytestconfig.getini(_OPTION)
    running = running_livekit(may_install=choice == "install")
    server, reason = None, ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_moderation_portal.wrap_async_context_manager(running))
        except SignalingError as error:
            reason = str(error)
        if server is not None:
            yield server
        elif choice == "skip":
            pytest.skip(reason)
        else:
            pytest.fail(f"{reason}\n{_CHOOSE}", pytrace=False)


@pytest.fixture
def moderation_settings() -> dict[str, Any]:
    """Override this: settings of `moderation_server` that are to be different, by their names in lower case."""
    return {}


@pytest.fixture
def moderation_server(
    _moderation_portal: "BlockingPortal", moderation_livekit: "EmbeddedServer", moderation_settings: dict[str, Any]
) -> "Iterator[RunningServer]":
    """A stand-alone server on free ports, with a store in memory, for one test."""
    from signaling.testing.hosting import running_server  # noqa: PLC0415 - see the module

    running = running_server(moderation_livekit, moderation_settings)
    with _moderation_portal.wrap_async_context_manager(running) as server:
        yield server


@pytest.fixture
def moderation_room() -> str:
    """The id of a room that no other test uses."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def moderation_meeting(
    moderation_livekit: "EmbeddedServer", moderation_server: "RunningServer", moderation_room: str
) -> "Meeting":
    """A meeting on `moderation_server`: `async with moderation_meeting as meeting`."""
    from signaling.testing.meeting import Meeting  # noqa: PLC0415 - see the module

    return Meeting(moderation_livekit, moderation_server, moderation_room)


@pytest.fixture
def moderation_participants(_moderation_portal: "BlockingPortal") -> "ParticipantProcess":
    """Participants for tokens of your own: `async with moderation_participants as participants`."""
    from signaling.testing.participants import ParticipantProcess  # noqa: PLC0415 - see the module

    return ParticipantProcess()

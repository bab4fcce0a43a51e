"""What tests of the JavaScript part share."""

import asyncio

import pytest

from tests.console import npm


@pytest.fixture(scope="session")
def built() -> None:
    """The packages are there, and built."""
    asyncio.run(npm.run("npm", "run", "build"))

import subprocess
import sys

import pytest

import signaling
import signaling.testing


@pytest.mark.parametrize("package", [signaling, signaling.testing], ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_no_other(package: object) -> None:
    names: list[str] = package.__all__  # type: ignore[attr-defined] # of either package
    assert names == sorted(names)
    assert [getattr(package, name).__name__ for name in names] == names
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        package.Nonsense  # type: ignore[attr-defined] # noqa: B018 - it is looked for


def test_nothing_is_loaded_before_it_is_used() -> None:
    heavy = {"aiohttp", "livekit", "numpy", "pydantic", "structlog", "websockets"}
    code = f"import sys, signaling, signaling.testing; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout == "[]\n"

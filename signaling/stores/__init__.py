"""Where meetings are kept: one contract, several stores."""

import os
from pathlib import Path
from typing import Final

from signaling.errors import ConfigurationError
from signaling.stores.contract import Store
from signaling.stores.memory import MemoryStore
from signaling.stores.sqlite import SQLiteStore

_FORMS: Final = (
    "memory:, sqlite: (a file in your state directory), sqlite:///PATH (sqlite:////PATH from the root) or redis://HOST"
)


def open_store(url: str, *, audit_entries: int) -> Store:
    """
    The store that `MODERATION_STORE_URL` names, not opened yet.

    Args:
        url: `memory:`; `sqlite:`, a file in the user's state directory; `sqlite:///meetings.sqlite`, relative to the
            working directory; or `sqlite:////var/lib/meetings.sqlite`, absolute. A path is taken as it stands.
            `redis://`, `redis+sentinel://` and `redis+cluster://`, and those with `rediss`, are for several nodes.
        audit_entries: How many are kept of each meeting.

    Raises:
        ConfigurationError: It names none.
    """
    if url == "memory:":
        return MemoryStore(audit_entries=audit_entries)
    if url.partition(":")[0].partition("+")[0] in {"redis", "rediss"}:
        return _redis_store(url, audit_entries)
    if url == "sqlite:":
        return SQLiteStore(_default_path(), audit_entries=audit_entries)
    path = url.removeprefix("sqlite:///")
    if path not in {"", url} and "\0" not in path:
        return SQLiteStore(Path(path), audit_entries=audit_entries)
    scheme, separator, _ = url.partition("://")  # what follows may hold a password
    reason = f"{scheme}:// is not supported; " if separator and scheme.isalnum() and scheme != "sqlite" else ""
    raise ConfigurationError(f"MODERATION_STORE_URL: {reason}must be {_FORMS}")


def _redis_store(url: str, audit_entries: int) -> Store:
    try:
        from signaling.stores.redis import RedisStore  # noqa: PLC0415 - only who uses it needs the extra
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "MODERATION_STORE_URL: Redis needs the extra `redis`: pip install 'livekit-moderation[redis]'"
        ) from error
    return RedisStore(url, audit_entries=audit_entries)


def _default_path() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # those are to be ignored, says the specification
        try:
            state = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise ConfigurationError(
                "MODERATION_STORE_URL: sqlite: needs a home; name a file: sqlite:///PATH"
            ) from error
    return state / "livekit-moderation" / "meetings.sqlite"

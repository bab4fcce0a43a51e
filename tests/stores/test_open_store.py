"""The forms of `MODERATION_STORE_URL`."""

from pathlib import Path

import pytest

from signaling import ModerationModule, Settings
from signaling.errors import ConfigurationError
from signaling.stores import open_store
from signaling.stores.memory import MemoryStore
from signaling.stores.redis import RedisStore, turns
from signaling.stores.sqlite import SQLiteStore


def path_of(url: str) -> Path:
    store = open_store(url, audit_entries=10)
    assert isinstance(store, SQLiteStore)
    return store._path


@pytest.mark.parametrize("form", ["redis", "redis+sentinel", "rediss+cluster"])
def test_a_call_to_livekit_may_take_half_a_lease_at_most(form: str) -> None:
    url = f"{form}://cache/{'ours' if 'sentinel' in form else ''}"
    longest_s = turns.LEASE_S / 2
    ModerationModule(Settings(moderation_store_url=url, moderation_livekit_timeout_s=longest_s))
    with pytest.raises(ConfigurationError, match=r"^MODERATION_LIVEKIT_TIMEOUT_S: must be 5 at most .* for 10 s$"):
        ModerationModule(Settings(moderation_store_url=url, moderation_livekit_timeout_s=longest_s + 0.1))


def test_where_nobody_can_take_over_a_turn_a_call_may_take_as_long_as_it_likes() -> None:
    for url in ("memory:", "sqlite:///never-opened.sqlite"):
        ModerationModule(Settings(moderation_store_url=url, moderation_livekit_timeout_s=86_400))


def test_memory_is_memory() -> None:
    assert isinstance(open_store("memory:", audit_entries=10), MemoryStore)


def test_sqlite_is_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert path_of("sqlite:") == tmp_path / "livekit-moderation" / "meetings.sqlite"
    assert not list(tmp_path.iterdir()), "nothing is made before it is opened"


@pytest.mark.parametrize("ignored", ["", "relative/state"])
def test_the_state_directory_is_in_the_home_otherwise(
    ignored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", ignored)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("sqlite:") == tmp_path / ".local" / "state" / "livekit-moderation" / "meetings.sqlite"


def test_without_a_home_a_file_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigurationError, match=r"^MODERATION_STORE_URL: .*sqlite:///PATH"):
        open_store("sqlite:", audit_entries=10)


def test_three_slashes_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of("sqlite:///kept/our meetings.sqlite") == tmp_path / "kept" / "our meetings.sqlite"


def test_four_slashes_are_absolute(tmp_path: Path) -> None:
    assert path_of(f"sqlite:///{tmp_path}/meetings.sqlite") == tmp_path / "meetings.sqlite"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory://",
        "sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite://meetings.sqlite",
        "sqlite:meetings.sqlite",
        "sqlite:///meetings\0.sqlite",
        "/var/lib/meetings.sqlite",
        "secret@host",
    ],
)
def test_anything_else_names_the_setting_and_the_forms(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        open_store(url, audit_entries=10)
    assert str(error.value).startswith("MODERATION_STORE_URL: ")
    for form in ("memory:", "sqlite:", "sqlite:///PATH"):
        assert form in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_redis_is_redis_and_not_asked_before_it_is_opened(scheme: str, kind: str) -> None:
    path = "/ours" if kind == "+sentinel" else ""
    assert isinstance(open_store(f"{scheme}{kind}://:secret@host{path}", audit_entries=10), RedisStore)


@pytest.mark.parametrize("scheme", ["mysql", "postgresql"])
def test_a_scheme_that_is_not_there_is_named_without_the_password(scheme: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        open_store(f"{scheme}://somebody:secret@host/0", audit_entries=10)
    assert f"{scheme}:// is not supported" in str(error.value)
    assert "secret" not in str(error.value)

"""Every setting: what it is by default, where it may come from, and what is said of a wrong one."""

import json
import os
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from signaling.errors import ConfigurationError
from signaling.settings import HostPort, ServerSettings, Settings

SECRET = "a-secret-that-nobody-may-read-anywhere"
KEY = "a-ticket-key-of-thirty-two-bytes-or-more"
LIVEKIT: dict[str, Any] = {
    "livekit_url": "wss://lk.example.org",
    "livekit_api_key": "key",
    "livekit_api_secret": SECRET,
}
WithFile = Callable[..., ServerSettings]

# Of each setting: its default, another value as the environment, TOML and an argument say it, and what that means.
MODULE: dict[str, tuple[Any, str, Any, Any, Any]] = {
    "livekit_public_url": (None, "wss://a.example.org", "wss://b.example.org", "ws://c.example.org", None),
    "livekit_server_path": (None, "/opt/a", "/opt/b", Path("/opt/c"), Path),
    "moderation_screen_share_requires_permission": (False, "true", True, True, lambda value: value in {True, "true"}),
    "moderation_unknown_participants": ("restrict", "remove", "remove", "remove", None),
    "moderation_disconnect_grace_s": (10, "1.5", 2, 3, float),
    "moderation_empty_room_s": (60, "1.5", 2, 3, float),
    "moderation_sweep_s": (5, "1.5", 2, 3, float),
    "moderation_livekit_timeout_s": (2, "1.5", 2.5, 3, float),
    "moderation_livekit_calls_per_room": (8, "1", 2, 3, int),
    "moderation_audit_entries": (10_000, "1", 2, 3, int),
    "moderation_webhook_url": (None, "http://a.example.org/x", "https://b.example.org/x", "http://[::1]:1/x", None),
    "moderation_store_url": ("memory:", "sqlite:///a", "sqlite:///b", "sqlite:///c", None),
}
SERVER: dict[str, tuple[Any, str, Any, Any, Any]] = {
    **MODULE,
    "moderation_store_url": ("sqlite:", "sqlite:///a", "sqlite:///b", "memory:", None),
    "moderation_listen": (
        HostPort("127.0.0.1", 8700),
        "0.0.0.0:0",
        "[::1]:1",
        "localhost:65535",
        {"0.0.0.0:0": ("0.0.0.0", 0), "[::1]:1": ("::1", 1), "localhost:65535": ("localhost", 65_535)}.get,  # noqa: S104
    ),
    "moderation_internal_listen": (
        HostPort("127.0.0.1", 8701),
        "a.example.org:1",
        "b.example.org:2",
        "c.example.org:3",
        lambda value: (value[:-2], int(value[-1])),
    ),
    "moderation_internal_hosts": (
        None,
        "moderation, moderation.internal",
        ["*"],
        frozenset({"a_b"}),
        lambda value: frozenset(part.strip() for part in value.split(",")) if isinstance(value, str) else set(value),
    ),
    "moderation_internal_token": (None, "a" * 16, "b" * 17, "c" * 1_000, SecretStr),
    "moderation_ticket_algorithm": ("HS256", "RS256", "ES256", "EdDSA", None),
    "moderation_allowed_origins": (
        None,
        "https://a.example.org, http://localhost:8000",
        ["https://b.example.org"],
        frozenset({"https://c.example.org"}),
        lambda value: frozenset(part.strip() for part in value.split(",")) if isinstance(value, str) else set(value),
    ),
    "moderation_rate_per_s": (10, "0.5", 2, 3, float),
    "moderation_rate_burst": (30, "1", 2, 3, int),
    "moderation_rate_bytes_per_s": (131_072, "1024", 2_000, 3_000, int),
    "moderation_connections_per_address": (2_000, "1", 2, 3, int),
    "moderation_handshakes_per_s": (200, "0.5", 2, 3, float),
    "moderation_trusted_proxies": (
        frozenset(),
        "10.0.0.7, 10.1.0.0/16",
        ["2001:db8::/32"],
        frozenset({ip_network("192.0.2.0/24")}),
        lambda value: frozenset(
            ip_network(part.strip() if isinstance(part, str) else part)
            for part in (value.split(",") if isinstance(value, str) else value)
        ),
    ),
    "moderation_log_format": (None, "json", "console", "json", None),
    "moderation_log_level": ("info", "debug", "warning", "error", None),
}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("LIVEKIT_", "MODERATION_")):
            monkeypatch.delenv(name)


@pytest.fixture
def with_file(tmp_path: Path) -> WithFile:
    """Settings of the server from a file with these, and from arguments."""

    def load(in_file: dict[str, Any], **arguments: object) -> ServerSettings:
        path = tmp_path / "settings.toml"
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in in_file.items()))
        return ServerSettings.load(path, **arguments)

    return load


def meant(value: Any, means: Callable[[Any], Any] | None) -> Any:  # noqa: ANN401 - whatever the setting is
    return value if means is None else means(value)


# --- Defaults and where settings come from -----------------------------------------------------------------------


def test_these_are_all_settings() -> None:
    assert set(Settings.model_fields) == {*MODULE, *LIVEKIT}
    assert set(ServerSettings.model_fields) == {*SERVER, *LIVEKIT, "moderation_ticket_key"}


def test_without_anything_set_the_module_has_its_defaults_and_an_embedded_livekit() -> None:
    assert Settings().model_dump() == {**{name: row[0] for name, row in MODULE.items()}, **dict.fromkeys(LIVEKIT)}
    assert Settings().public_url is None
    assert Settings.load() == Settings()


def test_the_server_needs_a_ticket_key_and_has_defaults_for_all_else() -> None:
    with pytest.raises(ConfigurationError, match=r"^MODERATION_TICKET_KEY: must be set$"):
        ServerSettings()
    settings = ServerSettings(moderation_ticket_key=KEY).model_dump(exclude={"moderation_ticket_key"})
    assert settings == {**{name: row[0] for name, row in SERVER.items()}, **dict.fromkeys(LIVEKIT)}


@pytest.mark.parametrize("name", SERVER)
def test_a_setting_comes_from_the_file_the_environment_wins_over_it_and_an_argument_over_both(
    name: str, with_file: WithFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, in_environment, in_file, argument, means = SERVER[name]
    key: dict[str, Any] = {"moderation_ticket_key": KEY}
    assert getattr(with_file({}, **key), name) == default
    assert getattr(with_file({name: in_file}, **key), name) == meant(in_file, means)
    monkeypatch.setenv(name.upper(), in_environment)
    assert getattr(ServerSettings(**key), name) == meant(in_environment, means)
    assert getattr(with_file({name: in_file}, **key), name) == meant(in_environment, means)
    assert getattr(with_file({name: in_file}, **key, **{name: argument}), name) == meant(argument, means)


@pytest.mark.parametrize("name", MODULE)
def test_a_setting_of_the_module_comes_from_the_environment_and_an_argument_wins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, in_environment, _, argument, means = MODULE[name]
    monkeypatch.setenv(name.upper(), in_environment)
    assert getattr(Settings(), name) == meant(in_environment, means)
    assert getattr(Settings(**{name: argument}), name) == meant(argument, means)


@pytest.mark.parametrize("where", ["environment", "file", "argument"])
def test_livekit_and_the_ticket_key_are_set_the_same_ways(
    where: str, with_file: WithFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**LIVEKIT, "moderation_ticket_key": KEY}
    if where == "environment":
        for name, value in values.items():
            monkeypatch.setenv(name.upper(), value)
    settings = with_file(values if where == "file" else {}, **(values if where == "argument" else {}))
    assert (settings.livekit_url, settings.livekit_api_key) == ("wss://lk.example.org", "key")
    assert settings.livekit_api_secret is not None
    assert settings.livekit_api_secret.get_secret_value() == SECRET
    assert settings.moderation_ticket_key.get_secret_value() == KEY


def test_the_three_of_livekit_may_come_from_different_places(
    with_file: WithFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVEKIT_API_SECRET", SECRET)
    settings = with_file({"livekit_url": "http://localhost:7880", "moderation_ticket_key": KEY}, livekit_api_key="key")
    assert settings.public_url == "ws://localhost:7880"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*MODULE, *LIVEKIT):
        monkeypatch.setenv(name.upper(), "")
    assert Settings().model_dump() == {**{name: row[0] for name, row in MODULE.items()}, **dict.fromkeys(LIVEKIT)}


def test_variables_of_others_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODERATION_OF_SOMETHING_ELSE", "1")
    assert Settings().moderation_sweep_s == 5


def test_a_dotenv_file_in_the_working_directory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MODERATION_SWEEP_S=1\n")
    monkeypatch.chdir(tmp_path)
    assert Settings().moderation_sweep_s == 5


@pytest.mark.parametrize(
    ("url", "public_url"),
    [
        ("http://lk:7880", "ws://lk:7880"),
        ("https://lk/", "wss://lk"),
        ("ws://lk:7880", "ws://lk:7880"),
        ("wss://lk/base/", "wss://lk/base"),
    ],
)
def test_clients_are_told_livekits_url_in_ws_form_unless_another_is_set(url: str, public_url: str) -> None:
    given = {**LIVEKIT, "livekit_url": url}
    assert Settings(**given).public_url == public_url
    assert Settings(**given, livekit_public_url="wss://public.example.org").public_url == "wss://public.example.org"


# --- Wrong settings ----------------------------------------------------------------------------------------------

WRONG: list[tuple[str, str]] = [
    ("livekit_url", f"ftp://{SECRET}"),
    ("livekit_url", SECRET),
    ("livekit_url", f"http://[{SECRET}"),
    ("livekit_url", f"http://user:{SECRET}\u2100@host"),
    ("livekit_url", f"http://host:{SECRET}"),
    ("livekit_url", "https://"),
    ("livekit_public_url", "https://lk.example.org"),
    ("moderation_screen_share_requires_permission", SECRET),
    ("moderation_unknown_participants", SECRET),
    *(
        (f"moderation_{name}_s", value)
        for name in ("disconnect_grace", "empty_room", "sweep", "livekit_timeout")
        for value in ("0", "-1", "86401", "inf", "nan", SECRET)
    ),
    *(("moderation_livekit_calls_per_room", value) for value in ("0", "65", "1.5", SECRET)),
    *(("moderation_audit_entries", value) for value in ("0", "1000001", SECRET)),
    *(
        (f"moderation_{name}listen", value)
        for name in ("", "internal_")
        for value in ("8700", "localhost", ":8700", "host:65536", "host:-1", "host:1/path", "a@host:1", f"[{SECRET}:1")
    ),
    ("moderation_internal_token", SECRET[:15]),
    ("moderation_ticket_algorithm", "none"),
    ("moderation_ticket_algorithm", "hs256"),
    *(
        ("moderation_allowed_origins", value)
        for value in (
            *("example.org", "https://example.org/", "https://example.org?a", "https://a@example.org", "https://"),
            *("wss://example.org", "https://*.example.org", "app://*", "**", f"https://[{SECRET}", "file:///", "app:x"),
            *("Null", "app://a b", "://x"),
        )
    ),
    *(
        ("moderation_internal_hosts", value)
        for value in ("https://example.org", "example.org:8701", "*.example.org", "[::1]", f"a {SECRET}")
    ),
    *(("moderation_rate_per_s", value) for value in ("0", "10001", "nan", SECRET)),
    *(("moderation_rate_burst", value) for value in ("0", "100001", SECRET)),
    *(("moderation_rate_bytes_per_s", value) for value in ("1023", "1000000001", SECRET)),
    *(("moderation_connections_per_address", value) for value in ("0", "10000001", SECRET)),
    *(("moderation_handshakes_per_s", value) for value in ("0", "1000001", "nan", SECRET)),
    *(("moderation_trusted_proxies", value) for value in ("proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", SECRET)),
    ("moderation_log_format", SECRET),
    ("moderation_log_level", "DEBUG"),
]


@pytest.mark.parametrize("where", ["environment", "file", "argument"])
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_is_named_with_the_reason_and_nothing_of_what_it_was(
    name: str, value: str, where: str, with_file: WithFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {**LIVEKIT, "moderation_ticket_key": KEY}
    good.pop(name, None)
    if where == "environment":
        monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigurationError, match=f"^{name.upper()}: ") as raised:
        with_file({name: value} if where == "file" else {}, **good, **({name: value} if where == "argument" else {}))
    assert SECRET not in everything_said(raised.value)


def everything_said(error: BaseException | None) -> str:
    """What a traceback would show: the error and its causes."""
    said = ""
    while error is not None:
        said += f"{error} {error!r} {error.__notes__ if hasattr(error, '__notes__') else ''}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return said


@pytest.mark.parametrize("value", [7, ["https://a", 7], True, {"a": 1}])
def test_a_value_of_another_type_is_named_too(value: object, with_file: WithFile) -> None:
    for name in (
        "livekit_url",
        "moderation_listen",
        "moderation_allowed_origins",
        "moderation_internal_hosts",
        "moderation_ticket_key",
    ):
        with pytest.raises(ConfigurationError, match=f"^{name.upper()}: "):
            with_file({}, **{"moderation_ticket_key": KEY, name: value})
    with pytest.raises(ConfigurationError, match=r"^MODERATION_STORE_URL: "):
        with_file({}, moderation_ticket_key=KEY, moderation_store_url=value)


@pytest.mark.parametrize("left_out", LIVEKIT)
def test_livekit_is_set_whole_or_not_at_all(left_out: str) -> None:
    given = {name: value for name, value in LIVEKIT.items() if name != left_out}
    with pytest.raises(ConfigurationError, match=f"^{left_out.upper()}: must be set with the other two") as raised:
        Settings(**given)
    assert SECRET not in everything_said(raised.value)
    (only, value), *_ = given.items()
    with pytest.raises(ConfigurationError, match="must be set with the other two"):
        Settings(**{only: value})


@pytest.mark.parametrize(
    "value",
    ["capacitor://localhost", "app://x", "tauri://localhost", "file://", "null", "*", "App://X", "http://[::1]:1"],
)
def test_shells_of_apps_have_origins_of_their_own(value: str) -> None:
    settings = ServerSettings(moderation_ticket_key=KEY, moderation_allowed_origins=value)
    assert settings.moderation_allowed_origins == frozenset({value})


def test_a_pattern_of_origins_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^MODERATION_ALLOWED_ORIGINS: must be origins in full; \* stands alone"
    ):
        ServerSettings(moderation_ticket_key=KEY, moderation_allowed_origins="https://*.example.org")


def test_an_address_may_be_given_in_parts() -> None:
    settings = ServerSettings(moderation_ticket_key=KEY, moderation_listen=HostPort("::1", 0))
    assert (settings.moderation_listen.host, settings.moderation_listen.port) == ("::1", 0)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^MODERATION_SWEEPS: there is no such setting$"):
        Settings(moderation_sweeps=SECRET)


def test_secrets_are_not_shown_by_the_settings_themselves() -> None:
    settings = ServerSettings(**LIVEKIT, moderation_ticket_key=KEY, moderation_internal_token=SECRET)
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in shown
        assert KEY not in shown


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().moderation_sweep_s = 1  # type: ignore[misc]  # the very point


# --- The file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["moderation_sweeps", "livekit", "LIVEKIT_URL_"])
def test_an_unknown_key_in_the_file_is_named(key: str, with_file: WithFile) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key.upper()}: there is no such setting$") as raised:
        with_file({"moderation_ticket_key": KEY, key: SECRET})
    assert SECRET not in everything_said(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"moderation_sweep_s = ", b"no toml", b"\xff\xfe", b'livekit_api_secret = "unterminated', b"a = 1\na = 2\n"],
)
def test_a_file_that_is_no_toml_is_named_and_not_repeated(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"settings\.toml") as raised:
        Settings.load(path)
    assert "unterminated" not in everything_said(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml.*No such file"):
        Settings.load(tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="directory"):
        Settings.load(tmp_path)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.touch()
    assert Settings.load(path).model_dump() == Settings().model_dump()


def test_settings_from_a_file_are_settings_like_any(with_file: WithFile) -> None:
    settings = with_file({"moderation_ticket_key": KEY, "moderation_sweep_s": 1})
    assert isinstance(settings, ServerSettings)
    assert settings.moderation_sweep_s == 1

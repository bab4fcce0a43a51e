"""Every setting, validated before anything starts."""

import re
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, cast
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from signaling.errors import ConfigurationError

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
"""A duration above 0 and up to a day."""


def _split(url: str) -> SplitResult | None:
    """Its parts; `None` if it is no URL, since the standard library's error would repeat it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _url_with(*schemes: str) -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = _split(value)
        if parts is None or parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value.rstrip("/")

    return BeforeValidator(check)


class Settings(BaseSettings):
    """
    Settings of the module, from the environment or as arguments, which win.

    Names are those of the environment in lower case.

    Raises:
        ConfigurationError: A setting is wrong; the message names it.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True, validate_default=False
    )

    livekit_url: Annotated[str, _url_with("ws", "wss", "http", "https")] | None = None
    livekit_api_key: str | None = None
    livekit_api_secret: SecretStr | None = None
    livekit_public_url: Annotated[str, _url_with("ws", "wss")] | None = None
    livekit_server_path: Path | None = None
    moderation_webhook_url: Annotated[str, _url_with("http", "https")] | None = None
    moderation_store_url: str = "memory:"
    moderation_screen_share_requires_permission: bool = False
    moderation_unknown_participants: Literal["restrict", "remove"] = "restrict"
    moderation_disconnect_grace_s: Seconds = 10
    moderation_empty_room_s: Seconds = 60
    moderation_sweep_s: Seconds = 5
    moderation_livekit_timeout_s: Seconds = 2
    moderation_livekit_calls_per_room: Annotated[int, Field(ge=1, le=64)] = 8
    moderation_audit_entries: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - whatever the settings are
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_describe(error)) from None  # the cause would hold secrets

    @classmethod
    def load(cls, path: Path | None = None, **overrides: object) -> Self:
        """
        Settings from a TOML file and the environment, which wins over the file; `overrides` win over both.

        Raises:
            ConfigurationError: The file cannot be read, or a setting is wrong; the message names it.
        """
        if path is None:
            return cls(**overrides)

        class FromFile(cls):  # type: ignore[valid-type, misc]  # the path is known only now
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not one of ours
                file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not one of ours
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

        try:
            path.read_bytes()  # a missing file would count as an empty one
            return cast("Self", FromFile(**overrides))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--config {path}: {error}") from error

    @property
    def public_url(self) -> str | None:
        """What clients are told to connect to, in ws form; `None` while LiveKit is an embedded one not yet started."""
        return self.livekit_public_url or (None if self.livekit_url is None else websocket_form(self.livekit_url))

    @model_validator(mode="after")
    def _check_livekit(self) -> Self:
        given = {
            "LIVEKIT_URL": self.livekit_url,
            "LIVEKIT_API_KEY": self.livekit_api_key,
            "LIVEKIT_API_SECRET": self.livekit_api_secret,
        }
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"{missing[0]}: must be set with the other two of {', '.join(given)}")
        return self


class HostPort(NamedTuple):
    """Where to listen; port 0 picks a free one."""

    host: str
    port: int


def _host_port(value: object) -> object:
    if isinstance(value, HostPort):
        return value
    parts = _split(f"//{value}") if isinstance(value, str) else None
    if parts is None or not parts.hostname or parts.port is None or parts.path or parts.username is not None:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8700 or [::1]:0")
    return HostPort(parts.hostname, parts.port)


def _listed(value: object, what: str) -> list[str]:
    listed = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple | frozenset) or not all(isinstance(part, str) for part in listed):
        raise ValueError(f"must be a list of {what}")
    return list(listed)


def _origins(value: object) -> object:
    listed = _listed(value, "origins")
    for origin in listed:
        if "*" in origin and origin != "*":
            raise ValueError("must be origins in full; * stands alone, for all of them")
        if origin not in {"*", "null"} and not _is_origin(origin):
            raise ValueError(
                "must be origins such as https://meet.example.org or capacitor://localhost, without a path"
            )
    return frozenset(listed)


def _is_origin(text: str) -> bool:
    """Whether browsers, or the shells of apps, send such a thing."""
    parts = _split(text)
    if parts is None or not _ORIGIN.fullmatch(text) or parts.scheme in {"ws", "wss"}:
        return False
    return parts.scheme not in {"http", "https"} or bool(parts.hostname and "@" not in parts.netloc)


def _hosts(value: object) -> object:
    listed = _listed(value, "names of hosts")
    if not all(host == "*" or _HOST.fullmatch(host) for host in listed):
        raise ValueError("must be names of hosts such as moderation.internal, without a port, or *")
    return frozenset(listed)


_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]*")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")

Network = IPv4Network | IPv6Network


def _networks(value: object) -> object:
    if isinstance(value, frozenset) and all(isinstance(each, Network) for each in value):
        return value
    try:
        return frozenset(map(ip_network, _listed(value, "addresses and networks")))
    except ValueError:
        raise ValueError("must be addresses and networks such as 10.0.0.7 or 10.0.0.0/8") from None


TicketAlgorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]


class ServerSettings(Settings):
    """Settings of the stand-alone server: those of the module, and its own."""

    moderation_store_url: str = "sqlite:"
    moderation_listen: Annotated[HostPort, NoDecode, BeforeValidator(_host_port)] = HostPort("127.0.0.1", 8700)
    moderation_internal_listen: Annotated[HostPort, NoDecode, BeforeValidator(_host_port)] = HostPort("127.0.0.1", 8701)
    moderation_internal_hosts: Annotated[frozenset[str], NoDecode, BeforeValidator(_hosts)] | None = None
    moderation_internal_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    moderation_ticket_key: SecretStr
    moderation_ticket_algorithm: TicketAlgorithm = "HS256"
    moderation_allowed_origins: Annotated[frozenset[str], NoDecode, BeforeValidator(_origins)] | None = None
    moderation_rate_per_s: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = 10
    moderation_rate_burst: Annotated[int, Field(ge=1, le=100_000)] = 30
    moderation_rate_bytes_per_s: Annotated[int, Field(ge=1_024, le=1_000_000_000)] = 128 * 1024
    moderation_connections_per_address: Annotated[int, Field(ge=1, le=10_000_000)] = 2_000
    moderation_handshakes_per_s: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 200
    moderation_trusted_proxies: Annotated[frozenset[Network], NoDecode, BeforeValidator(_networks)] = frozenset()
    moderation_log_format: Literal["console", "json"] | None = None
    moderation_log_level: Literal["debug", "info", "warning", "error"] = "info"


def websocket_form(url: str) -> str:
    """A URL of LiveKit as clients dial it: `ws://` or `wss://`."""
    return f"ws{url.removeprefix('http')}" if url.startswith("http") else url


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0]).upper() if first["loc"] else ""
    reason = {"missing": "must be set", "extra_forbidden": "there is no such setting"}.get(
        first["type"], first["msg"].removeprefix("Value error, ")
    )
    return f"{name}: {reason}" if name else reason

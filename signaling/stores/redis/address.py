"""Which Redis a URL names: one, a cluster, or whichever a Sentinel says."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import Redis, Sentinel
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from signaling.errors import ConfigurationError

FORMS: Final = (
    "redis://[user:password@]host[:port][/database], redis+sentinel://host[:port],…/service[/database] or "
    "redis+cluster://host[:port],…; with TLS rediss, rediss+sentinel or rediss+cluster, and ?ssl_ca_certs=FILE; "
    "of Sentinels that have users of their own ?sentinel_username=USER&sentinel_password=PASSWORD"
)
Form = Literal["single", "sentinel", "cluster"]
_FORMS: Final[Mapping[str, Form]] = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
_SENTINEL_LOGIN: Final = frozenset({"sentinel_username", "sentinel_password"})
_PORTS: Final[Mapping[Form, int]] = {"single": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where Redis is, and how to get in.

    Attributes:
        hosts: Of Redis, of a cluster's nodes, or of Sentinels.
        service: What a Sentinel calls it.
        sentinel_username: With which a Sentinel itself is asked; `username` is for what it names.
    """

    form: Form
    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    service: str = ""
    has_tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    ca_certs: str | None = None
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"Redis at {hosts}" + (f" by the name {self.service}" if self.service else "")

    def without_passwords(self, text: str) -> str:
        """What a server said; some repeat what they were asked, also when that was to let somebody in."""
        for secret in filter(None, (self.password, self.sentinel_password)):
            text = text.replace(secret, "…")
        return text

    @classmethod
    def of(cls, url: str) -> "Address":
        """
        What a URL names.

        Raises:
            ConfigurationError: Nothing; the message repeats nothing of it, since it may hold a password.
        """
        try:
            parts = urlsplit(url)
            scheme, _, kind = parts.scheme.partition("+")
            form = _FORMS[kind]
            login, _, listed = parts.netloc.rpartition("@")
            username, _, password = login.partition(":")
            hosts = tuple(_host(host, _PORTS[form]) for host in listed.split(","))
            path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
            service = path.pop(0) if form == "sentinel" else ""
            database = int(path.pop(0)) if path and form != "cluster" else 0
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            ca_certs = options.pop("ssl_ca_certs", None)
            sentinel = {name: options.pop(name) for name in _SENTINEL_LOGIN & options.keys() if form == "sentinel"}
        except (ValueError, KeyError, IndexError):
            raise _malformed("must be") from None
        if scheme not in {"redis", "rediss"} or path or options or parts.fragment or database < 0:
            raise _malformed("has what is not known here; it must be")
        if form == "single" and len(hosts) > 1:
            raise _malformed("names several hosts; it must be")
        if "" in sentinel.values() or ("sentinel_username" in sentinel) > ("sentinel_password" in sentinel):
            raise _malformed("has a sentinel_username or sentinel_password that lacks its other half; it must be")
        if ca_certs == "" or (ca_certs and scheme == "redis"):
            raise _malformed("has ssl_ca_certs without TLS, or without a file; it must be")
        return cls(
            form,
            hosts,
            database,
            service,
            has_tls=scheme == "rediss",
            username=unquote(username) or None,
            password=unquote(password) or None,
            ca_certs=ca_certs,
            **sentinel,
        )

    def client(self, timeout_s: float) -> "Redis | RedisCluster":
        """
        A client that gives up after so many seconds, and repeats nothing by itself.

        Raises:
            ConfigurationError: The file of `ssl_ca_certs` holds no certificates, or cannot be read.
        """
        options: dict[str, Any] = {
            "username": self.username,
            "password": self.password,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": self.ca_certs} if self.has_tls else {}
        self._check_ca_certs()
        match self.form:
            case "single":
                [(host, port)] = self.hosts
                return Redis(host=host, port=port, db=self.database, **options, **tls)
            case "sentinel":
                own = {
                    "username": self.sentinel_username,
                    "password": self.sentinel_password,
                    "retry": Retry(NoBackoff(), 0),
                    "socket_timeout": timeout_s,
                    "socket_connect_timeout": timeout_s,
                    **tls,
                }
                sentinel = Sentinel(  # type: ignore[no-untyped-call]
                    list(self.hosts), sentinel_kwargs=own, **options, **tls
                )
                master: Redis = sentinel.master_for(self.service, db=self.database)
                return master
            case "cluster":
                nodes = [ClusterNode(host, port) for host, port in self.hosts]
                return RedisCluster(startup_nodes=nodes, **options, **tls)

    def _check_ca_certs(self) -> None:
        if self.ca_certs is not None:
            try:
                ssl.create_default_context(cafile=self.ca_certs)
            except OSError as error:
                raise ConfigurationError(
                    f"MODERATION_STORE_URL: ssl_ca_certs, {self.ca_certs}: {error.strerror or error}"
                ) from error


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError
    return parts.hostname, parts.port or port


def _malformed(what: str) -> ConfigurationError:
    return ConfigurationError(f"MODERATION_STORE_URL: {what} {FORMS}")

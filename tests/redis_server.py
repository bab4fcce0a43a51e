"""
Redis as operators run it, as child processes on loopback: with a password or TLS, a replica, a Sentinel, a cluster.

    async with RedisServer(tmp_path) as redis: ...                       # one, `redis.url`
    async with RedisServer(tmp_path, replica_of=redis) as replica: ...
    async with watched(tmp_path) as (url, master, replica, sentinel): ...
    async with clustered(tmp_path) as (url, nodes): ...
"""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from signaling.errors import SignalingError
from signaling.livekit.child_process import ChildProcess
from signaling.testing import redis_server

_HOST: Final = "127.0.0.1"
_READY_S: Final = 20
_POLL_S: Final = 0.02
_SLOTS: Final = 16384
_SERVICE: Final = "meetings"

Answer = str | int | list["Answer"] | None


class RedisRefused(SignalingError):
    """It answered a command with an error."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of this host, which vouches for itself, and its key, as files."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        """A fresh one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _HOST)])
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(_HOST))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        files = cls(directory / "redis.crt", directory / "redis.key")
        files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


class RedisServer(redis_server.RedisServer):
    """
    A real `redis-server`; an asynchronous context manager. What it logs is in `redis.log` of its directory.

    Args:
        directory: Where its files are; made if it is not there.
        port: A free one if it is not said.
        replica_of: Whose commands it repeats.
        config: More of its configuration, by name; `appendfsync="always"` keeps what was acknowledged over `kill`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        appendonly: bool = True,
        password: str | None = None,
        tls: Certificate | None = None,
        replica_of: "RedisServer | None" = None,
        **config: str,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        options = {"appendonly": "yes" if appendonly else "no", **config}
        if password is not None:
            options["requirepass"] = password
        if replica_of is not None:
            options["replicaof"] = f"{_HOST} {replica_of.port}"
            if replica_of.password is not None:
                options["masterauth"] = replica_of.password
        super().__init__(directory, **options)
        self.password: str | None = password
        self._fixed_port = port
        self._tls = tls

    async def __aenter__(self) -> Self:
        if self._fixed_port is None:
            return await super().__aenter__()
        self.port = self._fixed_port
        await self.start()
        return self

    @property
    def url(self) -> str:
        """For `MODERATION_STORE_URL`."""
        login = "" if self.password is None else f":{self.password}@"
        if self._tls is None:
            return f"redis://{login}{_HOST}:{self.port}/0"
        return f"rediss://{login}{_HOST}:{self.port}/0?ssl_ca_certs={self._tls.certificate}"

    async def ask(self, *words: str | int) -> Answer:
        """
        One command, by hand, on a connection of its own.

        Raises:
            RedisRefused: It is answered with an error.
        """
        context = None if self._tls is None else ssl.create_default_context(cafile=str(self._tls.certificate))
        return await _ask(self.port, words, password=self.password, context=context)

    async def flush(self) -> None:
        """Let it forget everything."""
        await self.ask("FLUSHALL")

    def _command(self) -> list[str]:
        command = super()._command()
        if self._tls is None:
            return command
        tls = {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(self._tls.certificate),
            "tls-key-file": str(self._tls.key),
            "tls-ca-cert-file": str(self._tls.certificate),
            "tls-auth-clients": "no",
        }
        return [*command, *(word for name, value in tls.items() for word in (f"--{name}", value))]

    def _note(self, line: str) -> None:
        with (self.directory / "redis.log").open("a") as log:
            log.write(f"{line}\n")


class Sentinel:
    """A `redis-server --sentinel` that watches a master, alone; an asynchronous context manager."""

    def __init__(
        self, directory: Path, master: RedisServer, *, down_after_s: float = 0.5, password: str | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "sentinel.conf"
        self.port = redis_server.free_port()
        self._password = password
        self._file.write_text(
            f"bind {_HOST}\nport {self.port}\ndir {directory}\n"
            f"sentinel monitor {_SERVICE} {_HOST} {master.port} 1\n"
            f"sentinel down-after-milliseconds {_SERVICE} {round(down_after_s * 1000)}\n"
            f"sentinel failover-timeout {_SERVICE} 3000\n"
            + (f"sentinel auth-pass {_SERVICE} {master.password}\n" if master.password else "")
            + (f"requirepass {password}\n" if password else "")
        )

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        command = (redis_server.find_redis(), self._file, "--sentinel")
        self._child = await ChildProcess.start(
            command, {}, on_line=lambda line: ready.set() if "+monitor master" in line else None
        )
        if not await self._child.until(ready, _READY_S):
            raise redis_server.RedisFailed("\n".join(self._child.last_words))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._child.end((2.0,))

    async def ask(self, *words: str | int) -> Answer:
        """One command, by hand."""
        return await _ask(self.port, words, password=self._password)

    async def master_port(self) -> int:
        """Of whom it takes for the master."""
        address = await self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _SERVICE)
        assert isinstance(address, list)
        return int(str(address[1]))

    async def until_it_knows_the_replica(self) -> None:
        """Return when it could make the replica the master."""
        async with asyncio.timeout(_READY_S):
            while not await self.ask("SENTINEL", "REPLICAS", _SERVICE):  # noqa: ASYNC110 - another process
                await asyncio.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class Watched:
    """A master, its replica, and the Sentinel that makes the replica the master when the master is gone."""

    url: str
    master: RedisServer
    replica: RedisServer
    sentinel: Sentinel


@asynccontextmanager
async def watched(
    directory: Path, *, password: str | None = None, sentinel_password: str | None = None
) -> AsyncIterator[Watched]:
    """One master, one replica, one Sentinel."""
    async with (
        RedisServer(directory / "master", password=password) as master,
        RedisServer(directory / "replica", replica_of=master, password=password) as replica,
    ):
        async with asyncio.timeout(_READY_S):
            while "master_link_status:up" not in str(await replica.ask("INFO", "replication")):  # noqa: ASYNC110 - another process
                await asyncio.sleep(_POLL_S)
        async with Sentinel(directory / "sentinel", master, password=sentinel_password) as sentinel:
            await sentinel.until_it_knows_the_replica()
            yield Watched(f"redis+sentinel://{_HOST}:{sentinel.port}/{_SERVICE}/0", master, replica, sentinel)


@dataclass(frozen=True, slots=True)
class Clustered:
    """Nodes that share the slots."""

    url: str
    nodes: tuple[RedisServer, ...]


@asynccontextmanager
async def clustered(directory: Path, size: int = 3) -> AsyncIterator[Clustered]:
    """A cluster without replicas, in which each node has its part of the slots."""
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(size):
            node = RedisServer(
                directory / f"node-{number}",
                cluster_enabled="yes",
                cluster_node_timeout="2000",
                cluster_port=str(redis_server.free_port()),
            )
            nodes.append(await stack.enter_async_context(node))
            await node.ask("CLUSTER", "ADDSLOTSRANGE", _SLOTS * number // size, _SLOTS * (number + 1) // size - 1)
            if number:
                bus_port = nodes[0].config["cluster-port"]
                await node.ask("CLUSTER", "MEET", _HOST, nodes[0].port, bus_port)
        async with asyncio.timeout(_READY_S):
            for node in nodes:
                while not _is_whole(str(await node.ask("CLUSTER", "INFO")), size):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(_POLL_S)
        hosts = ",".join(f"{_HOST}:{node.port}" for node in nodes)
        yield Clustered(f"redis+cluster://{hosts}", tuple(nodes))


def _is_whole(info: str, size: int) -> bool:
    return "cluster_state:ok" in info and f"cluster_known_nodes:{size}" in info and f"cluster_size:{size}" in info


async def _ask(
    port: int, words: tuple[str | int, ...], *, password: str | None = None, context: ssl.SSLContext | None = None
) -> Answer:
    reading, writing = await asyncio.open_connection(_HOST, port, ssl=context)
    try:
        if password is not None:
            writing.write(_request("AUTH", password))
            await _answer(reading)
        writing.write(_request(*words))
        async with asyncio.timeout(_READY_S):
            return await _answer(reading)
    finally:
        writing.close()
        await writing.wait_closed()


def _request(*words: str | int) -> bytes:
    encoded = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


async def _answer(reading: asyncio.StreamReader) -> Answer:
    line = (await reading.readuntil(b"\r\n"))[:-2].decode()
    kind, rest = line[0], line[1:]
    match kind:
        case "+":
            return rest
        case "-":
            raise RedisRefused(rest)
        case ":":
            return int(rest)
        case "$":
            return None if rest == "-1" else (await reading.readexactly(int(rest) + 2))[:-2].decode()
        case "*":
            return [await _answer(reading) for _ in range(int(rest))]
        case _:
            raise RedisRefused(f"an answer of no known kind: {line}")

"""Key sets: public keys at a URL, so that a controller may change them without anybody restarting the server."""

import asyncio
import contextlib
import json
import math
import time
import zlib
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from signaling.errors import ConfigurationError
from signaling.settings import TicketAlgorithm

log = structlog.get_logger(__name__)

SETTING: Final = "MODERATION_TICKET_KEY"
FRESH_S: Final = 300
"""How long keys are used before the set is fetched anew: nobody uses one for longer that is no longer in it."""
KEPT_S: Final = 3_600
"""How long they are used if it cannot be."""
PAUSE_S: Final = 5
"""What lies between two fetches at least, whatever tickets come."""
TIMEOUT_S: Final = 3
MAX_BYTES: Final = 256 * 1_024
ACCEPT: Final = "application/jwk-set+json, application/json;q=0.9, */*;q=0.8"
"""An API server of Kubernetes refuses whoever does not name the first, others whoever names the first alone."""
RSA_BITS: Final = 2_048

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey


class KeySet:
    """
    The keys of a set that suit an algorithm, as far as they are known.

    PyJWT's own client of key sets would block the event loop, and has neither a deadline for the whole answer nor a
    limit to its size.

    Args:
        url: `https://`, or `http://` on this machine.
        algorithm: The one that tickets are signed by; a set is asked for keys only.
        clock: Seconds that never go back.

    Raises:
        ConfigurationError: Nobody could trust what is fetched from there.
    """

    def __init__(self, url: str, algorithm: TicketAlgorithm, *, clock: Callable[[], float] = time.monotonic) -> None:
        if algorithm == "HS256":
            raise ConfigurationError(
                f"{SETTING}: a key set is public, and HS256 needs a secret; "
                "set MODERATION_TICKET_ALGORITHM to RS256, ES256 or EdDSA"
            )
        _check_url(url)
        self._url = url
        self._algorithm: TicketAlgorithm = algorithm
        self._clock = clock
        self._keys: list[tuple[str | None, PublicKey]] = []
        self._fetched_at = -math.inf
        self._paused_until = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Fetch the set, and wait for nothing: a server starts without it, and lets nobody in until it is there."""
        self._paused_until = -math.inf
        self._fetch()

    async def close(self) -> None:
        """Fetch nothing any more; whoever waits goes on with what is known."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
        self._paused_until = math.inf

    def find(self, key_id: str | None) -> PublicKey | None:
        """The one key with this id, or the only one if a ticket names none."""
        if self._age_s > KEPT_S:
            return None
        found = [key for name, key in self._keys if key_id is None or name == key_id]
        return found[0] if len(found) == 1 else None

    async def refresh(self, key_id: str | None) -> None:
        """Fetch the set if this key is unknown or what is known is old; all who need that wait for the same answer."""
        if self._age_s > FRESH_S or self.find(key_id) is None:
            self._fetch()
            if self._fetching is not None:
                await asyncio.wait({self._fetching})

    @property
    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _fetch(self) -> None:
        if self._fetching is None and self._clock() >= self._paused_until:
            self._fetching = asyncio.create_task(self._replace_keys())
            self._fetching.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        self._paused_until = max(self._paused_until, self._clock() + PAUSE_S)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed", exc_info=error)

    async def _replace_keys(self) -> None:
        asked_at = self._clock()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                keys = _parse(await self._download(), self._algorithm)
        except TimeoutError:
            reason = f"no answer within {TIMEOUT_S} s"
        except _Unusable as error:
            reason = str(error)
        except aiohttp.ClientConnectorError as error:
            reason = str(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = type(error).__name__  # what it says may repeat the URL, and that may hold a secret
        else:
            self._keys, self._fetched_at = keys, asked_at
            log.info("key_set_fetched", keys=len(keys))
            return
        log.warning("key_set_failed", error=reason, keys=len(self._keys) if self._age_s <= KEPT_S else 0)

    async def _download(self) -> bytes:
        async with (
            aiohttp.ClientSession(
                auto_decompress=False,  # what is short when compressed may be of any length
                headers={"Accept": ACCEPT, "Accept-Encoding": "identity"},
            ) as http,
            http.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:  # noqa: PLR2004 - OK
                raise _Unusable(f"status {response.status}")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise _Unusable(f"more than {MAX_BYTES} bytes")
            return _unpack(body, response.headers.get("Content-Encoding", "identity").lower())


class _Unusable(Exception):
    """The answer is no key set with keys for us; the message says why."""


def suitable(key: object, algorithm: TicketAlgorithm) -> PublicKey | None:
    """The key, if it is a public one that verifies what is signed by the algorithm."""
    match algorithm, key:
        case "RS256", rsa.RSAPublicKey() if key.key_size >= RSA_BITS:
            return key
        case "ES256", ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return key
        case "EdDSA", ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return key
    return None


def _unpack(body: bytes, encoding: str) -> bytes:
    """What was packed although nobody asked for it, as some servers do."""
    if encoding == "identity":
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise _Unusable("encoded in a way that is not known")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the header says which of them it is
    try:
        unpacked = unpacker.decompress(body, MAX_BYTES + 1)
    except zlib.error:
        raise _Unusable("encoded otherwise than it says") from None
    if len(unpacked) > MAX_BYTES:
        raise _Unusable(f"more than {MAX_BYTES} bytes")
    if not unpacker.eof:
        raise _Unusable("cut off")
    return unpacked


def _parse(body: bytes, algorithm: TicketAlgorithm) -> list[tuple[str | None, PublicKey]]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise _Unusable("no JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise _Unusable("no key set")
    keys = [(entry.get("kid"), key) for entry in listed if (key := _key_of(entry, algorithm)) is not None]
    if not keys:
        raise _Unusable(f"no key for {algorithm} among {len(listed)}")
    return keys


def _key_of(entry: object, algorithm: TicketAlgorithm) -> PublicKey | None:
    if (
        not isinstance(entry, dict)
        or "d" in entry  # no secret any more; and one that is made up would keep the library busy for hours
        or not isinstance(entry.get("kid"), str | None)
        or entry.get("use") not in (None, "sig")
        or entry.get("alg") not in (None, algorithm)
    ):
        return None
    try:
        # The algorithm is named, so that the entry has no say in it.
        return suitable(jwt.PyJWK(entry, algorithm).key, algorithm)
    except (jwt.PyJWTError, TypeError, ValueError, UnsupportedAlgorithm):  # a set may well hold keys for others
        return None


def _check_url(url: str) -> None:
    host = None
    with contextlib.suppress(ValueError):  # told below: the standard library's message would repeat the URL
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    if not host:
        raise ConfigurationError(f"{SETTING}: must be a complete URL if it is the one of a key set")
    if not url.lower().startswith("https:") and not _is_loopback(host):
        raise ConfigurationError(f"{SETTING}: a key set of another host must be had by https://")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

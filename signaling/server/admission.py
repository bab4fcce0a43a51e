"""Who may take up a connection: so many in all, so many that have not said anything, and so many from one address."""

import resource
from collections import Counter
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Protocol

import structlog

from signaling import metrics
from signaling.server.allowance import Allowance
from signaling.settings import Network

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 1_024
"""Connections without a whole request, or refused and not closed yet; of more the oldest gives way."""
MAX_WAITING_PER_ADDRESS: Final = 256
BURST_S: Final = 10
"""An address that was quiet may open as many connections at once as otherwise in so many seconds."""
_RESERVE: Final = 256
"""Descriptors that are kept for the internal port, LiveKit and the store."""
_MAX_REMEMBERED: Final = 10_000
_OWN_BITS: Final = 64
"""Whoever has one address of version 6 has all that begin with the same bits."""


class Guest(Protocol):
    """A connection, as far as it takes up a place."""

    def abort(self) -> None:
        """End it now."""


class Admission:
    """
    Counts connections, from the first byte to the last.

    Whoever has not said what they want gives way to newer ones, first those from their own address: so neither silent
    connections nor refused ones that stay keep anybody out. Places are what descriptors there are, less a reserve.

    Args:
        per_address: Connections that one address may have.
        per_address_per_s: Handshakes that it may begin each second.
        proxies: Whose `X-Forwarded-For` counts.
        places: Connections in all; as many as the process may have descriptors if `None`.
    """

    def __init__(
        self,
        *,
        per_address: int,
        per_address_per_s: float,
        proxies: Collection[Network],
        now: Callable[[], float],
        places: int | None = None,
    ) -> None:
        self._per_address = per_address
        self._per_address_per_s = per_address_per_s
        self._proxies = proxies
        self._now = now
        self._places = places or _places()
        self._is_full = False
        self._present: set[Guest] = set()
        self._waiting: dict[Guest, str] = {}
        self._waiting_of: dict[str, dict[Guest, None]] = {}
        self._counted: dict[Guest, str] = {}
        self._count_of: Counter[str] = Counter()
        self._allowances: dict[str, Allowance] = {}

    def enter(self, guest: Guest, peer: str) -> bool:
        """Take a place, before anything was said; false if there is none."""
        if len(self._present) >= self._places and not self._waiting:
            self._refuse("full")
            if not self._is_full:
                self._is_full = True
                log.error("connections_full", connections=self._places)
            return False
        if len(self._present) >= self._places:
            self._give_way(self._waiting)
        self._present.add(guest)
        self.wait(guest, peer)
        return True

    def wait(self, guest: Guest, peer: str) -> None:
        """Note somebody who has not said what they want, or has been told no: they give way to others."""
        if guest not in self._present:
            return
        own = self._waiting_of.setdefault(peer, {})
        if len(own) >= MAX_WAITING_PER_ADDRESS:
            self._give_way(own)
        elif len(self._waiting) >= MAX_WAITING:
            self._give_way(self._waiting)
        self._waiting[guest] = peer
        self._waiting_of.setdefault(peer, {})[guest] = None

    def hear(self, guest: Guest) -> None:
        """Note that somebody has said what they want: they give way to nobody any more."""
        peer = self._waiting.pop(guest, None)
        if peer is not None and (own := self._waiting_of.get(peer)) is not None:
            own.pop(guest, None)
            if not own:
                del self._waiting_of[peer]

    def count(self, guest: Guest, peer: str, forwarded: Collection[str]) -> bool:
        """
        Count somebody for the address that they come from; false if too many came from there.

        This machine's own address is not counted: what comes from there, a proxy has let in.

        Args:
            forwarded: The headers `X-Forwarded-For`.
        """
        address = self._origin(peer, forwarded)
        if address is None:
            return True
        allowance = self._allowances.get(address)
        if allowance is None:
            if len(self._allowances) >= _MAX_REMEMBERED:
                self._allowances = {key: each for key, each in self._allowances.items() if not each.is_full}
            allowance = Allowance(self._per_address_per_s, max(1, self._per_address_per_s * BURST_S), self._now)
            self._allowances[address] = allowance
        if self._count_of[address] >= self._per_address or not allowance.take():
            self._refuse("address")
            return False
        if guest in self._present:
            self._counted[guest] = address
            self._count_of[address] += 1
        return True

    def expire(self, guest: Guest) -> None:
        """End somebody who has said nothing for too long."""
        self._refuse("silent")
        self.leave(guest)
        guest.abort()

    def leave(self, guest: Guest) -> None:
        """Give the place back."""
        self._present.discard(guest)
        self.hear(guest)
        address = self._counted.pop(guest, None)
        if address is not None:
            self._count_of[address] -= 1
            if not self._count_of[address]:
                del self._count_of[address]
        if self._is_full and len(self._present) < self._places * 0.9:
            self._is_full = False

    def _give_way(self, waiting: dict[Guest, None] | dict[Guest, str]) -> None:
        self.expire(next(iter(waiting)))

    def _origin(self, peer: str, forwarded: Collection[str]) -> str | None:
        """The last address of the way here that is no proxy's; `None` for this machine's own."""
        hops = [hop.strip() for header in forwarded for hop in header.split(",")]
        address = _parse(peer)
        while hops and address is not None and any(address in network for network in self._proxies):
            address = _parse(hops.pop())
        if address is None:
            return ""  # a proxy that writes no addresses: all whom it lets in so count as one
        if address.is_loopback:
            return None
        return str(address) if address.version == 4 else str(ip_network((address, _OWN_BITS), strict=False))  # noqa: PLR2004

    @staticmethod
    def _refuse(reason: str) -> None:
        metrics.CONNECTIONS_REFUSED.labels(reason).inc()


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, which some proxies write with its port; `None` if it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _places() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**31
    return max(soft - _RESERVE, soft // 2)

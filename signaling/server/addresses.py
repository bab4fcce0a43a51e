"""Where a server listens, as settings, errors and URLs have it."""

import os
import socket
from typing import Final

from signaling.errors import ConfigurationError
from signaling.settings import HostPort

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to be replaced by what can be dialled


def url_of(scheme: str, address: HostPort, bound: tuple[object, ...]) -> str:
    """The URL without a path: the host that was asked for, and the port of the socket that is `bound`."""
    host = _ANY.get(address.host, address.host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{bound[1]}"


def cannot_listen(setting: str, address: HostPort, error: OSError) -> ConfigurationError:
    """The error of a server that cannot listen where `setting` says."""
    if error.errno is None or isinstance(error, socket.gaierror):  # a name that nobody has is no error of the system
        reason = error.strerror or str(error)
    else:
        reason = os.strerror(error.errno)
    return ConfigurationError(f"{setting}: cannot listen on {address.host}:{address.port}: {reason}")

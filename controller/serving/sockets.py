"""The socket on which a server listens, bound before anything heavy is loaded."""

from __future__ import annotations

import errno
import socket

from ...errors import OptionError

LOCAL = ("127.0.0.1", "localhost", "::1")
"""By which names a server that listens to its own machine alone is called."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address; raises OptionError where that cannot be."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise OptionError(
            f"cannot listen on {host!r}: {getattr(error, 'strerror', error)}; accepted: an address of this machine"
        ) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise bind_error(host, port, error) from None
    return bound


def bind_error(host: str, port: int, error: OSError) -> OptionError:
    """What to say where an address cannot be had."""
    if error.errno == errno.EADDRINUSE:
        return OptionError(f"port {port} on {host} is in use; choose another with --port, or 0 for any that is free")
    return OptionError(f"cannot listen on {host}:{port}: {error.strerror}; choose others with --host and --port")


def base_url(host: str, port: int) -> str:
    """The address as clients are given it."""
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def exposure_warning(host: str, api_key: str | None) -> str:
    """A line for who lets others in, or nothing."""
    if host in LOCAL or api_key is not None:
        return ""
    return "\nanybody who reaches this address may use it; a key (--api-key) keeps others out"

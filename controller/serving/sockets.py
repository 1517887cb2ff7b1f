"""The socket that a server listens on, bound before anything heavy is loaded."""

from __future__ import annotations

import errno
import socket

from ...errors import OptionError

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Names of a server that only this machine can reach."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address; raises OptionError if that is impossible."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = addresses[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise OptionError(
            f"cannot listen on {host!r}: {reason}; accepted: an address of this machine", code="cannot_listen"
        ) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise bind_error(host, port, error) from None
    return bound


def bind_error(host: str, port: int, error: OSError) -> OptionError:
    """The error for an address that cannot be used."""
    if error.errno == errno.EADDRINUSE:
        message = f"port {port} on {host} is in use; choose another with --port, or 0 for any free port"
        return OptionError(message, code="port_in_use")
    message = f"cannot listen on {host}:{port}: {error.strerror}; choose others with --host and --port"
    return OptionError(message, code="cannot_listen")


def base_url(host: str, port: int) -> str:
    """The URL for clients."""
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def exposure_warning(host: str, api_key: str | None) -> str:
    """A line for servers that anyone may use, or ""."""
    if host in LOCAL or api_key is not None:
        return ""
    return "\nwarning: this address is public and unauthenticated; set --api-key"

"""The HTTP port: bound before anything heavy starts, and held as long as the server lives."""

import errno
import ipaddress
import logging
import socket

from shared.errors import EXIT_CONFIGURATION, EXIT_PORT_IN_USE, FatalError

logger = logging.getLogger(__name__)

BACKLOG = 1024
UNREAD_MILLISECONDS = 60_000  # how long the kernel keeps bytes that a client does not take


def open_listener(host: str, port: int) -> socket.socket:
    """Binds the HTTP port before anything heavy starts, or raises FatalError."""
    listener = socket.socket(_family(host), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: one whose client stops reading ends, with all that it was sent.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        is_taken = error.errno == errno.EADDRINUSE
        reason = f"cannot listen on {host}:{port}: {error.strerror}; set another --host or --port"
        raise FatalError(reason, EXIT_PORT_IN_USE if is_taken else EXIT_CONFIGURATION) from error
    listener.listen(BACKLOG)
    return listener


def is_own_address(host: str) -> bool:
    """True for `localhost` and for an IP address on which this machine can listen."""
    try:
        ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def is_open_to_others(listener: socket.socket) -> bool:
    """True when other machines may reach it: it is bound to more than this one's loopback."""
    host: str = listener.getsockname()[0]
    return not ipaddress.ip_address(host.partition("%")[0]).is_loopback


def warn_when_open(listener: socket.socket, *, has_keys: bool) -> None:
    """Says in the log that everybody may call, where that is so."""
    if is_open_to_others(listener) and not has_keys:
        logger.warning(
            "listening on %s without an API key: whoever reaches the port may call; "
            "set --api-key, or --host 127.0.0.1", listener.getsockname()[0],
        )  # fmt: skip


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

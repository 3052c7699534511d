"""Where a page is: an address of this machine, and a port."""

import ipaddress
import socket

from ..errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: A name or address of this machine, or the one that stands for all of them, 0.0.0.0.
        port: The port, 0 for any that is free.

    Raises:
        UserError: It is taken, or there is no such address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f'the page cannot be at {host}, port {port} ({error}): take another --host or --port'
        ) from error


def is_loopback(host: str) -> bool:
    """Whether an address or name is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'

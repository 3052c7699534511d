"""Network addresses of the page."""

import ipaddress
import socket

from ..errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; host 0.0.0.0 stands for all addresses, and port 0 for a free port.

    Raises:
        UserError: The port is in use, or this machine does not have the address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f'cannot listen at {host}, port {port} ({error}): choose another --host or --port'
        ) from error


def is_loopback(host: str) -> bool:
    """Test whether an address or name is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'

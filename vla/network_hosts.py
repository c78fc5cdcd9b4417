"""Host names and ports of local servers, and the check of a request's `Host` header.

With DNS rebinding a web page's name resolves to this machine, and the page could read a local
server's answers. Such a request carries the page's name. Servers therefore accept IP addresses,
`localhost`, the machine's own name, and no other.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Collection

LOOPBACK = "127.0.0.1"
"""The address of servers that only this machine can reach."""


def is_local_host(header: str, more: Collection[str] = ()) -> bool:
    """True where a `Host` header ("name", "name:port", "[address]:port") names this machine.

    `more` are further accepted names.
    """
    name = parse_host_name(header)
    return is_ip_address(name) or name in {
        "localhost",
        socket.gethostname().lower(),
        *(other.lower() for other in more),
    }


def parse_host_name(header: str) -> str:
    """The name or address of a `Host` header, without its port, in lower case."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def is_ip_address(name: str) -> bool:
    """True for an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """True where only this machine can reach a server bound to `host`."""
    return host == "localhost" or (is_ip_address(host) and ipaddress.ip_address(host).is_loopback)


def parse_port(text: str) -> int:
    """A port from the command line, 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: give a whole number from 0 to 65535")
    return int(text)

"""The flags of `vla-serve`: access to the server and its limits."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vla.network_hosts import LOOPBACK, parse_port
from vla.serve.limits import ServerLimits

if TYPE_CHECKING:
    from vla.serve.access import AccessPolicy

MIN_MESSAGE_MB = 4.0


def add_access_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the address, the token, TLS, host names and web origins."""
    group = parser.add_argument_group("access")
    group.add_argument(
        "--host",
        default=LOOPBACK,
        help="the address to listen at: 127.0.0.1 is reached from this machine only, 0.0.0.0 from "
        "every network of this machine, which needs a token (default %(default)s)",
    )
    group.add_argument(
        "--port", type=parse_port, default=8000, help="0 takes a free one (default %(default)s)"
    )
    group.add_argument(
        "--token", help="what clients must send; other users of this machine can read it here"
    )
    group.add_argument(
        "--token-file", type=Path, help="the token in a file (or in the variable VLA_SERVE_TOKEN)"
    )
    group.add_argument(
        "--no-token", action="store_true", help="admit every client that reaches --host"
    )
    group.add_argument("--tls-certificate", type=Path, help="PEM; clients then connect to wss://")
    group.add_argument("--tls-key", type=Path, help="PEM, without a password")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        help="one more name of this machine (repeatable)",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        help="a web page that may connect (repeatable)",
    )


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the limits of the server."""
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-batch", type=int, default=16, help="requests a call (default %(default)s)"
    )
    group.add_argument(
        "--wait-ms", type=float, default=3.0, help="a batch waits to fill (default %(default)s)"
    )
    group.add_argument(
        "--max-waiting", type=int, default=64, help="more are refused (default %(default)s)"
    )
    group.add_argument(
        "--max-clients", type=int, default=64, help="more are refused (default %(default)s)"
    )
    group.add_argument(
        "--max-per-address",
        type=int,
        default=ServerLimits.max_per_address,
        help="clients of one address; a proxy counts as one (default %(default)s)",
    )
    group.add_argument(
        "--max-rate",
        type=float,
        default=ServerLimits.max_rate,
        help="messages a second of one client; it waits beyond that (default %(default)s)",
    )
    group.add_argument(
        "--max-message-mb",
        type=float,
        help="of a message (default: 4, or twice an observation where that is more)",
    )
    group.add_argument(
        "--idle-seconds",
        type=float,
        default=ServerLimits.idle_seconds,
        help="a client that is idle for longer is closed when a newcomer finds no room "
        "(default %(default)s)",
    )
    group.add_argument(
        "--drain-seconds",
        type=float,
        default=ServerLimits.drain_seconds,
        help="for requests in flight after a signal (default %(default)s)",
    )


def read_access(options: argparse.Namespace) -> AccessPolicy:
    """Read the access flags and print their warnings.

    Raises:
        ValueError: The token, the TLS files or the address are wrong, or contradict each other.
    """
    from vla.serve.access import AccessPolicy, check_exposure, find_token, tls_context

    token = find_token(options.token, options.token_file)
    if options.no_token and token is not None:
        raise ValueError("--no-token goes with no token: take away one of the two")
    tls = tls_context(options.tls_certificate, options.tls_key)
    access = AccessPolicy(token, tuple(options.allow_host), tuple(options.allow_origin), tls)
    for warning in check_exposure(options.host, access, options.no_token):
        print(f"warning: {warning}", file=sys.stderr)
    return access


def read_limits(options: argparse.Namespace, observation_bytes: int) -> ServerLimits:
    """Read the limit flags.

    Raises:
        ValueError: A limit is out of range, or no observation fits into --max-message-mb.
    """
    megabytes = options.max_message_mb
    if megabytes is None:
        megabytes = max(MIN_MESSAGE_MB, 2 * observation_bytes / 2**20)
    elif not observation_bytes <= megabytes * 2**20 < math.inf:
        raise ValueError(
            f"--max-message-mb {megabytes} holds no observation of this policy, or has no end: "
            f"give at least {observation_bytes / 2**20:.2f}"
        )
    return ServerLimits(
        max_clients=options.max_clients,
        max_batch=options.max_batch,
        max_waiting=options.max_waiting,
        max_message_bytes=round(megabytes * 2**20),
        wait_seconds=options.wait_ms / 1000,
        max_per_address=options.max_per_address,
        max_rate=options.max_rate,
        idle_seconds=options.idle_seconds,
        drain_seconds=options.drain_seconds,
    )

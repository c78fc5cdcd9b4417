"""Who may talk to a policy server: those with its token, programs rather than web pages, by one of
its names."""

from __future__ import annotations

import hmac
import os
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from vla.network_hosts import is_local_host, is_loopback

if TYPE_CHECKING:
    from websockets.http11 import Request

TOKEN_VARIABLE = "VLA_SERVE_TOKEN"
"""The environment variable that holds a server's token, for the server and for its clients."""
SCHEMES = ("bearer", "api-key")
"""How a client may send the token in its `Authorization` header: the usual way, and that of
openpi's client."""


@dataclass(frozen=True)
class AccessPolicy:
    """`token` None lets everybody in. `hosts` are names of this machine besides its own, `origins`
    the web pages that may connect, `tls` what encrypts connections.
    """

    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """Why a request is turned away; None where it is not."""
        host, origin, authorization = (
            request.headers.get_all(n) for n in ("Host", "Origin", "Authorization")
        )
        if max(len(host), len(origin), len(authorization)) > 1:
            return HTTPStatus.BAD_REQUEST, "Host, Origin and Authorization may be given once"
        if not (host and is_local_host(host[0], self.hosts)):
            return (
                HTTPStatus.FORBIDDEN,
                "this server has no such name: call it by its address, or serve with --allow-host",
            )
        if origin and origin[0] not in self.origins:
            return (
                HTTPStatus.FORBIDDEN,
                "web pages of this origin may not connect: serve with --allow-origin",
            )
        if self.token is not None and not (authorization and self._knows_token(authorization[0])):
            return (
                HTTPStatus.UNAUTHORIZED,
                "a token is asked for, in a header 'Authorization: Bearer TOKEN'",
            )
        return None

    def _knows_token(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        # In time that does not depend on how much of it is right.
        same = hmac.compare_digest(given.strip().encode(), (self.token or "").encode())
        return same and scheme.lower() in SCHEMES


def find_token(given: str | None, path: Path | None = None) -> str | None:
    """A token from a flag, from a file, or from the environment, in this order. Raises ValueError
    for one that no header can carry.
    """
    if given is not None:
        source, token = "--token", given
    elif path is not None:
        source = f"--token-file {path}"
        try:
            token = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{source} cannot be read ({error}): give a file with one line of text"
            ) from None
    elif TOKEN_VARIABLE in os.environ:
        source, token = TOKEN_VARIABLE, os.environ[TOKEN_VARIABLE].strip()
    else:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{source} holds no token: give letters, digits and signs, as `openssl rand -hex 32` writes"
        )
    return token


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What encrypts connections, from two PEM files; None without them. Raises ValueError for files
    that are wrong."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("--tls-certificate and --tls-key go together: give both, or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def no_password() -> str:
        raise ValueError(f"--tls-key {key} is encrypted: give a key without a password")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(
            f"--tls-certificate {certificate} and --tls-key {key} are no pair of PEM files ({error})"
        ) from None
    return context


def check_reach(host: str, access: AccessPolicy, allow_anyone: bool) -> list[str]:
    """What to warn of when a server binds to `host`. Raises ValueError where every machine of the
    network could move the robot.
    """
    if is_loopback(host):
        return []
    if access.token is None and not allow_anyone:
        raise ValueError(
            f"--host {host} lets other machines in, and no token is asked of them: set {TOKEN_VARIABLE} or "
            "--token-file, or say --no-token where the network is trusted"
        )
    warnings = []
    if access.token is None:
        warnings.append(f"whoever reaches {host} may use this policy: no token is asked for")
    if access.tls is None:
        warnings.append(
            "messages and tokens are not encrypted: give --tls-certificate and --tls-key, or use a tunnel"
        )
    return warnings

"""Access control of a policy server: host names, web origins, a bearer token and TLS."""

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
"""Schemes of the `Authorization` header that carry the token; openpi's client has `api-key`."""


@dataclass(frozen=True)
class AccessPolicy:
    """The rules by which a server admits requests.

    `token` None admits every client. `hosts` are names of this machine besides its own, `origins`
    the web pages that may connect; `tls` encrypts connections.
    """

    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """The status and reason of a refusal; None admits the request."""
        host = request.headers.get_all("Host")
        origin = request.headers.get_all("Origin")
        authorization = request.headers.get_all("Authorization")
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
        if self.token is not None and not (authorization and self._has_token(authorization[0])):
            return (
                HTTPStatus.UNAUTHORIZED,
                "a token is needed, in a header 'Authorization: Bearer TOKEN'",
            )
        return None

    def _has_token(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        # The time of this comparison does not depend on how many characters are right.
        same = hmac.compare_digest(token.strip().encode(), (self.token or "").encode())
        return same and scheme.lower() in SCHEMES


def find_token(flag: str | None, path: Path | None = None) -> str | None:
    """Read the token from a flag, a file or the environment, in this order; None without any.

    Raises:
        ValueError: The file cannot be read, or no header can carry the token.
    """
    if flag is not None:
        source = "--token"
        token = flag
    elif path is not None:
        source = f"--token-file {path}"
        try:
            token = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{source} cannot be read ({error}): give a file with one line of text"
            ) from None
    elif TOKEN_VARIABLE in os.environ:
        source = TOKEN_VARIABLE
        token = os.environ[TOKEN_VARIABLE].strip()
    else:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{source} holds no token: give letters, digits and signs, "
            "as `openssl rand -hex 32` writes"
        )
    return token


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Load TLS from two PEM files; None without them.

    Raises:
        ValueError: One file is missing, the key has a password, or the two are no pair.
    """
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
            f"--tls-certificate {certificate} and --tls-key {key} are no pair of PEM files "
            f"({error})"
        ) from None
    return context


def check_exposure(host: str, access: AccessPolicy, allow_anyone: bool) -> list[str]:
    """List the warnings about a server that binds to `host`.

    Raises:
        ValueError: Every machine of the network could move the robot, and `allow_anyone` is unset.
    """
    if is_loopback(host):
        return []
    if access.token is None and not allow_anyone:
        raise ValueError(
            f"--host {host} admits other machines without a token: set {TOKEN_VARIABLE} or "
            "--token-file, or give --no-token where the network is trusted"
        )
    warnings = []
    if access.token is None:
        warnings.append(f"any machine that reaches {host} may use this policy: no token is needed")
    if access.tls is None:
        warnings.append(
            "messages and tokens are not encrypted: give --tls-certificate and --tls-key, "
            "or use a tunnel"
        )
    return warnings

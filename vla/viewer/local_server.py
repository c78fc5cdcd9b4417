"""An HTTP server for pages on this machine, one thread a connection."""

from __future__ import annotations

import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket

from vla.network_hosts import LOOPBACK, is_local_host

Request = socket | tuple[bytes, socket]
SILENT_SECONDS = 20.0
"""Idle time after which a connection is closed."""
MAX_CONNECTIONS = 64


class LocalHandler(BaseHTTPRequestHandler):
    """A handler for requests with a local host name (`vla.network_hosts`); others get 403."""

    timeout = SILENT_SECONDS

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        # Browsers send the host name of the page's address. A client without one is no browser,
        # so no foreign page can read the answer.
        if is_local_host(self.headers.get("Host", LOOPBACK)):
            return True
        self.answer(
            HTTPStatus.FORBIDDEN, "text/plain", f"this page is at {LOOPBACK} or localhost only"
        )
        return False

    def answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


class LocalServer(ThreadingHTTPServer):
    """A server that only this machine can reach; port 0 takes a free one.

    Start it by `serve_forever()`.
    """

    def __init__(self, port: int, handler: type[LocalHandler]):
        super().__init__((LOOPBACK, port), handler)
        self.room = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def process_request(self, request: Request, client_address: object) -> None:
        if self.room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Request, client_address: object) -> None:
        """Print errors except closed connections: a browser tab may close during an answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

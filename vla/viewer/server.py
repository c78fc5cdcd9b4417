"""Shows a library of episodes on this machine. One request at a time: drawing belongs to the thread that began it."""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import unquote

from vla.viewer.library import Library
from vla.viewer.page import viewer_page

LOCAL = "127.0.0.1"


def make_server(library: Library, port: int = 0) -> HTTPServer:
    """A server on this machine only; port 0 takes a free one. Call `serve_forever()`."""
    title = library.run.name

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0])
            if path == "/":
                self.answer(HTTPStatus.OK, "text/html; charset=utf-8", viewer_page(title, None))
            elif path == "/api/episodes":
                self.answer_json(library.lines())
            elif path.startswith(("/api/episode/", "/api/why/")):
                kind, _, identity = path.removeprefix("/api/").partition("/")
                try:
                    self.answer_json(library.episode(identity) if kind == "episode" else library.why(identity))
                except KeyError as error:
                    self.answer(HTTPStatus.NOT_FOUND, "text/plain", f"there is no episode {error}")
                except ValueError as error:
                    self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error))
            else:
                self.answer(HTTPStatus.NOT_FOUND, "text/plain", f"there is no {path}")

        def answer_json(self, value: Any) -> None:
            self.answer(HTTPStatus.OK, "application/json", json.dumps(value, separators=(",", ":")))

        def answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not news."""

    return HTTPServer((LOCAL, port), Handler)

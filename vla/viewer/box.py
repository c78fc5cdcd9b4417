"""A text box for instructions beside MuJoCo's own viewer, which has none: a page on this machine, and the terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from string import Template

from vla.report.page import COLOURS

LOCAL = "127.0.0.1"
MAX_BYTES = 2000
PAGE = Template((Path(__file__).parent / "static" / "box.html").read_text())


class InstructionBox:
    """Lines that were typed into the page at `address`, or into `terminal`, in the order of time."""

    def __init__(self, terminal: Iterable[str] = sys.stdin) -> None:
        self.typed: SimpleQueue[str] = SimpleQueue()
        box = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(HTTPStatus.OK, PAGE.substitute(colours=COLOURS))

            def do_POST(self) -> None:
                # Only a page from this address may type: another site's would come with another origin.
                origin, length = self.headers.get("Origin"), int(self.headers.get("Content-Length", 0))
                if length > MAX_BYTES or origin not in (None, box.address.rstrip("/")):
                    self.answer(HTTPStatus.FORBIDDEN, "no")
                    return
                box.typed.put(" ".join(self.rfile.read(length).decode(errors="replace").split()))
                self.answer(HTTPStatus.OK, "said")

            def answer(self, status: HTTPStatus, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are not news."""

        self.server = ThreadingHTTPServer((LOCAL, 0), Handler)
        self.address = f"http://{LOCAL}:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        threading.Thread(target=self._read, args=(terminal,), daemon=True).start()

    def open(self) -> None:
        """Say where the page is, and show it."""
        import webbrowser

        print(f"instructions: {self.address}, or typed here", flush=True)
        webbrowser.open(self.address)

    def _read(self, terminal: Iterable[str]) -> None:
        for line in terminal:
            self.typed.put(line.strip())

    def __iter__(self) -> Iterator[str]:
        while True:
            yield self.typed.get()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

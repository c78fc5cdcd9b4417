"""A text box for instructions beside MuJoCo's viewer, which has none: a local page, and the
terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from queue import SimpleQueue
from string import Template

from vla.report.page import COLOURS
from vla.viewer.local_server import LocalHandler, LocalServer

MAX_BYTES = 2000
PAGE = Template((Path(__file__).parent / "static" / "box.html").read_text())


class InstructionBox:
    """A stream of instructions from the page at `address` and from `terminal`, in the order of
    time."""

    def __init__(self, terminal: Iterable[str] = sys.stdin) -> None:
        self.typed: SimpleQueue[str] = SimpleQueue()
        box = self

        class Handler(LocalHandler):
            def do_GET(self) -> None:
                self.answer(HTTPStatus.OK, "text/html", PAGE.substitute(colours=COLOURS))

            def do_POST(self) -> None:
                # Only this page may send instructions; another site's page has another origin.
                origin = self.headers.get("Origin")
                length = self.headers.get("Content-Length", "0")
                is_ours = origin in (None, box.server.address.rstrip("/"))
                if (
                    not is_ours
                    or not length.isdecimal()
                    or len(length) > 9
                    or int(length) > MAX_BYTES
                ):
                    self.answer(HTTPStatus.FORBIDDEN, "text/plain", "refused")
                    return
                box.typed.put(
                    " ".join(self.rfile.read(int(length)).decode(errors="replace").split())
                )
                self.answer(HTTPStatus.OK, "text/plain", "accepted")

        self.server = LocalServer(0, Handler)
        self.address = self.server.address
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        threading.Thread(target=self._read, args=(terminal,), daemon=True).start()

    def open(self) -> None:
        """Print the page's address and open it in a browser."""
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

"""Shows a library of episodes on this machine. Requests come in threads; one other thread reads and
draws episodes, because drawing belongs to the thread that began it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import unquote

from vla.viewer.library import EpisodeLibrary
from vla.viewer.local_server import LocalHandler, LocalServer
from vla.viewer.page import to_script_json, viewer_page


def make_server(library: EpisodeLibrary, port: int = 0) -> LocalServer:
    """A server on this machine only; port 0 takes a free one. Call `serve_forever()`."""
    title = library.run.name
    drawing = ThreadPoolExecutor(1, thread_name_prefix="drawing")

    class Handler(LocalHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0])
            if path == "/":
                self.answer(HTTPStatus.OK, "text/html", viewer_page(title, None))
                return
            try:
                found = drawing.submit(ask, path).result()
            except KeyError as error:
                self.answer(HTTPStatus.NOT_FOUND, "text/plain", f"there is no {error}")
            except ValueError as error:
                self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error))
            else:
                self.answer(HTTPStatus.OK, "application/json", to_script_json(found))

    def ask(path: str) -> object:
        kind, _, identity = path.removeprefix("/api/").partition("/")
        match kind:
            case "episodes":
                return library.list_episodes()
            case "episode":
                return library.episode(identity)
            case "why":
                return library.failure(identity)
        raise KeyError(path)

    return LocalServer(port, Handler)

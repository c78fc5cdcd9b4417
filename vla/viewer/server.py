"""A local server for a library of episodes.

Requests come in threads. One other thread reads and renders episodes, because a renderer belongs to
the thread that created it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import unquote

from vla.viewer.library import EpisodeLibrary
from vla.viewer.local_server import LocalHandler, LocalServer
from vla.viewer.page import to_script_json, viewer_page


def make_server(library: EpisodeLibrary, port: int = 0) -> LocalServer:
    """A server that only this machine can reach; port 0 takes a free one.

    Start it by `serve_forever()`.
    """
    title = library.run.name
    drawing = ThreadPoolExecutor(1, thread_name_prefix="drawing")

    class Handler(LocalHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0])
            if path == "/":
                self.answer(HTTPStatus.OK, "text/html", viewer_page(title, None))
                return
            try:
                answer = drawing.submit(answer_request, path).result()
            except KeyError as error:
                self.answer(HTTPStatus.NOT_FOUND, "text/plain", f"there is no {error}")
            except ValueError as error:
                self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error))
            else:
                self.answer(HTTPStatus.OK, "application/json", to_script_json(answer))

    def answer_request(path: str) -> object:
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

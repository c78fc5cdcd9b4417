"""What is served to a browser on this machine: silent and closed connections, other names, and
texts in the page."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla.viewer import local_server as local
from vla.viewer.library import EpisodeLibrary
from vla.viewer.local_server import LocalHandler, LocalServer
from vla.viewer.page import to_script_json, viewer_page
from vla.viewer.server import make_server


class Episodes(EpisodeLibrary):
    """A library of no run; `threads` collects who asked it."""

    def __init__(self):
        super().__init__(Path("nowhere"), lambda settings, seeds, actions, render=True: [], {})
        self.threads = []

    def summaries(self):
        self.threads.append(threading.current_thread().name)
        return [{"id": "recordings/a/0", "return": float("nan")}]

    def episode(self, identity):
        self.threads.append(threading.current_thread().name)
        if identity == "broken":
            raise ValueError("the recording is damaged")
        raise KeyError(identity)


@contextmanager
def serving(server: LocalServer) -> Iterator[SimpleNamespace]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield SimpleNamespace(address=server.address, port=server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers=headers), timeout=20
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_it_answers_while_a_silent_connection_is_open_and_draws_in_one_thread():
    library = Episodes()
    with serving(make_server(library)) as at:
        silent, half = (socket.create_connection(("127.0.0.1", at.port)) for _ in range(2))
        half.sendall(b"GET / HTTP/1.1\r\nHo")
        status, page = ask(at.address)
        assert (status, "<title>nowhere</title>" in page) == (200, True)
        assert json.loads(ask(f"{at.address}api/episodes")[1])["list"] == [
            {"id": "recordings/a/0", "return": None}
        ]
        assert ask(f"{at.address}api/episode/x") == (404, "there is no 'x'")
        assert ask(f"{at.address}api/episode/broken") == (500, "the recording is damaged")
        assert ask(f"{at.address}else/where")[0] == 404
        silent.close()
        half.close()
    assert set(library.threads) == {"drawing_0"}


def test_silent_connections_are_closed_and_too_many_are_not_taken(monkeypatch):
    monkeypatch.setattr(LocalHandler, "timeout", 0.2)
    monkeypatch.setattr(local, "MAX_CONNECTIONS", 2)
    with serving(make_server(Episodes())) as at:
        silent = [socket.create_connection(("127.0.0.1", at.port)) for _ in range(3)]
        for one in silent:
            one.settimeout(20)
            assert one.recv(1) == b""
            one.close()
        assert ask(at.address)[0] == 200


def test_a_tab_that_is_closed_while_an_answer_comes_prints_nothing(capfd):
    begun, closed = threading.Event(), threading.Event()

    class Handler(LocalHandler):
        def do_GET(self) -> None:
            begun.set()
            closed.wait(20)
            self.answer(HTTPStatus.OK, "text/plain", "x" * 10_000_000)

    server = LocalServer(0, Handler)
    with serving(server) as at:
        tab = socket.create_connection(("127.0.0.1", at.port))
        tab.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert begun.wait(20)
        tab.close()
        closed.set()
        for _ in range(
            local.MAX_CONNECTIONS
        ):  # the place of the closed tab is free when its thread has ended
            assert server.room.acquire(timeout=20)
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_is_printed(capfd):
    class Handler(LocalHandler):
        def do_GET(self) -> None:
            raise RuntimeError("a fault")

    with serving(LocalServer(0, Handler)) as at, pytest.raises((ConnectionError, OSError)):
        ask(at.address)
    assert "a fault" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("localhost", 200),
        ("127.0.0.1:9", 200),
        ("[::1]", 200),
    ],
)
def test_a_name_that_is_not_this_machines_is_turned_away(host, status):
    with serving(make_server(Episodes())) as at:
        assert ask(f"{at.address}api/episodes", Host=host)[0] == status


@pytest.mark.parametrize(
    "text", ["</script>", "<!--<script", "<!-- <script>", "<script>", "]]>", "\u2028"]
)
def test_no_text_of_an_episode_ends_or_swallows_the_pages_scripts(text):
    page = viewer_page("run", {"list": [], "details": {"a": {"instruction": text}}})
    data = page.split('<script type="application/json" id="episodes">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["details"]["a"]["instruction"] == text
    assert page.count("<script") == viewer_page("run", None).count("<script")


def test_numbers_that_are_not_finite_become_null():
    assert (
        to_script_json({"a": [float("nan"), (1.5, -float("inf"))], "b": True})
        == '{"a":[null,[1.5,null]],"b":true}'
    )

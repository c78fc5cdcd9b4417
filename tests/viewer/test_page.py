"""The viewer from recordings to a browser: an episode lived again is the one recorded, and the page
plays it."""

import base64
import json
import shutil
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import vla.runtime
from tests.viewer.chromium import PROGRAM, browser
from tests.viewer.expert_run import make_run
from vla.commands import view as view_rollouts
from vla.data.demonstrations import open_demonstrations
from vla.viewer.episodes import open_library, write_html
from vla.viewer.server import make_server

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_html(open_library(run), path, 24)
    return path


def test_an_episode_lived_again_is_the_one_that_was_recorded(run):
    library = open_library(run)
    lines = library.summaries()
    assert [line["success"] for line in lines] == [True, False, True, False]
    good, bad = (library.episode(line["id"]) for line in lines[:2])
    assert good["faithful"]
    assert bad["faithful"]
    assert good["instruction"] == bad["instruction"]
    assert good["terms"]["success"][-1] == 1
    assert bad["terms"]["success"][-1] == 0
    steps = len(good["reward"])
    assert len(good["hand"]) == len(good["opening"]) == steps + 1
    assert good["decision"] == [t // 4 for t in range(steps)]
    assert good["decisions"][2]["step"] == 8
    # The plan begins where the hand was told to be, and one step of it is what was executed.
    assert good["decisions"][2]["path"][0] == good["commanded"][8][:3]
    assert good["decisions"][2]["path"][1] == pytest.approx(good["commanded"][9][:3], abs=2e-4)
    # e^.1 for what did well, e^-.1 for what did not
    assert good["decisions"][0]["ratio"][0] == pytest.approx(1.1052, abs=1e-4)
    assert bad["decisions"][0]["ratio"][0] == pytest.approx(0.9048, abs=1e-4)
    assert library.failure(lines[0]["id"]) is None
    assert library.failure(lines[1]["id"]) == bad["why"]
    assert bad["why"]["kind"] == "never closed the fingers"
    with pytest.raises(KeyError):
        library.failure("recordings/rl-000010/4")
    with pytest.raises(KeyError):
        library.episode("recordings/rl-000010/4")
    with pytest.raises(KeyError):
        library.episode("../policy/0")


def test_bodies_are_where_the_objects_are_at_every_moment(run):
    library = open_library(run)
    good = library.episode(library.summaries()[0]["id"])
    poses = np.frombuffer(base64.b64decode(good["poses"]), "<f4").reshape(-1, good["num_bodies"], 7)
    assert len(poses) == len(good["hand"])
    for places in good["targets"].values():
        distance = np.linalg.norm(poses[:, :, :3] - np.array(places)[:, None], axis=2)
        assert distance.min(axis=1).max() < 1e-3
    np.testing.assert_allclose(np.linalg.norm(poses[:, :, 3:], axis=2), 1.0, atol=1e-4)
    # The order of the task's terms is the task's, not the alphabet's.
    assert list(good["reached"]) == ["reach", "grasp", "lift", "place", "success"]


def test_a_simulator_that_has_changed_is_told(run):
    library = open_library(run)
    library.summaries()
    path = next(iter(library.recordings))
    library.recordings[path].action[0] += 0.02
    assert not library.episode("recordings/rl-000010/0")["faithful"]


def test_rollouts_become_a_dataset_that_lerobot_reads(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
    folder = tmp_path / "dataset"
    assert view_rollouts.main([str(run), "--dataset", str(folder), "--successes"]) == 0
    assert "2 episodes, one of each start" in capsys.readouterr().out
    library = open_library(run)
    found = open_demonstrations(folder, action_spec=library.spec)
    assert found.num_episodes == 2
    assert found.columns.success.all()
    wins = [line for line in library.summaries() if line["success"]]
    assert sorted(set(found.columns.seed.tolist())) == sorted(line["seed"] for line in wins)
    lived = library.episode(min(wins, key=lambda line: line["seed"])["id"])
    # The first frame shows the start, and the hand is told to be where it is.
    np.testing.assert_allclose(found.columns.proprio[0, :3], lived["commanded"][0][:3], atol=1e-4)
    assert len(lived["reward"]) == int((found.columns.episode_index == 0).sum())
    assert found.instructions[found.columns.task_index[0]] == lived["instruction"]


def test_a_served_episode_is_drawn_by_the_servers_own_thread(run):
    library = open_library(run)
    server = make_server(library)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        with urllib.request.urlopen(f"{server.address}api/episodes") as answer:
            listed = json.load(answer)
            first = listed["list"][0]
        with urllib.request.urlopen(f"{server.address}api/episode/{first['id']}") as answer:
            shown = json.load(answer)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert listed["left_out"] == []
    assert shown["faithful"]
    assert shown["films"]["front"]["data"].startswith("data:image/webp")


@needs_chromium
def test_the_page_opens_from_disk_and_plays(page, tmp_path):
    with browser(tmp_path) as chrome:
        chrome.open(page.as_uri())
        assert chrome.run("document.querySelectorAll('.row').length") == 4
        assert chrome.run("document.querySelector('.diagnosis').textContent").startswith(
            ("Got as far", "Never")
        )
        assert chrome.run("document.querySelector('.verdict').textContent") == "failure"
        # The failures are counted by their reason; a click lists them, another click all.
        chrome.wait("document.querySelector('#reasons em')?.textContent === '2'")
        reason = chrome.run("document.querySelector('#reasons b').textContent")
        assert reason in chrome.run("document.querySelector('.row.shown .how').textContent")
        for rows in (2, 4):
            chrome.run("document.querySelector('#reasons button').click()")
            assert chrome.run("document.querySelectorAll('.row').length") == rows
        # Filter: only successes, then a click opens one.
        chrome.run("document.querySelector('[data-verdict=success]').click()")
        assert chrome.run("document.querySelectorAll('.row').length") == 2
        chrome.run("document.querySelector('.row').click()")
        chrome.wait("document.querySelector('.verdict').textContent === 'success'")
        # Play moves time on, and stops at the end.
        chrome.run("state.speed = 4; document.getElementById('play').click()")
        chrome.wait("Number(document.getElementById('time').value) > 4")
        chrome.wait("!state.playing")
        last = chrome.run("Number(document.getElementById('time').max)")
        assert chrome.run("Number(document.getElementById('time').value)") == last
        assert chrome.errors == []


@needs_chromium
def test_scrubbing_shows_that_moment_in_every_view(page, tmp_path):
    sum_of = "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].reduce((a, b) => a + b, 0))"
    scene = "document.querySelector('.scene').toDataURL().length"
    with browser(tmp_path) as chrome:
        chrome.open(page.as_uri())
        moments = []
        for t in (0, 40):
            chrome.run(
                f"t = document.getElementById('time'), t.value = {t}, t.dispatchEvent(new "
                "Event('input')), 0"
            )
            camera = chrome.run(f"{sum_of}(document.querySelector('.camera canvas'))")
            shown = chrome.run("document.querySelector('.readout b').textContent")
            moments.append((camera, chrome.run(scene), shown))
        assert moments[0][2].startswith("0 of")
        assert moments[1][2].startswith("40 of")
        assert moments[0][0] != moments[1][0]
        assert min(moments[0][1], moments[1][1]) > 5000, "the 3-D view is empty"
        assert moments[0][1] != moments[1][1]
        # Turning the scene draws it anew; a second episode stands beside the first.
        chrome.run("state.views[0].scene.eye.azimuth += 1, state.views[0].scene.redraw(), 0")
        assert chrome.run(scene) != moments[1][1]
        chrome.run("document.querySelector('.sibling').click()")
        chrome.wait("document.querySelectorAll('.episode').length === 2")
        assert chrome.run("document.querySelectorAll('.scene').length") == 2
        assert chrome.errors == []


@needs_chromium
def test_a_served_page_follows_a_run_from_its_beginning(run, tmp_path):
    live = tmp_path / "live"
    (live / "recordings").mkdir(parents=True)
    shutil.copy(run / "policy.json", live)
    recorded = (run / "recordings" / "rl-000010.safetensors").read_bytes()
    server = make_server(open_library(live))
    results = {}

    def look() -> None:
        try:
            with browser(tmp_path) as chrome:
                chrome.open(server.address)
                results["before"] = chrome.run(
                    "document.getElementById('episodes-shown').textContent"
                )
                for name, rows in (("rl-000010", 4), ("rl-000020", 8)):
                    (live / "recordings" / f"{name}.safetensors").write_bytes(recorded)
                    chrome.wait(f"document.querySelectorAll('.row').length === {rows}")
                    chrome.wait(
                        f"document.querySelector('#reasons em')?.textContent === '{rows // 2}'"
                    )
                results["verdict"] = chrome.run("document.querySelector('.verdict').textContent")
                results["errors"] = chrome.errors
        finally:
            server.shutdown()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        server.serve_forever()
    finally:
        watcher.join()
        server.server_close()
    assert results == {
        "before": "No episode has been recorded yet; the first appears here.",
        "verdict": "failure",
        "errors": [],
    }

"""An episode becomes a file that Rerun reads; without Rerun the remedy is named."""

import base64
import builtins

import numpy as np
import pytest

from vla.viewer.payload import encode_film
from vla.viewer.rerun_file import decode_film, write_rerun


def test_a_film_is_taken_apart_again():
    pictures = np.stack([np.full((4, 6, 3), 40 * i, np.uint8) for i in range(5)])
    back = decode_film(encode_film(pictures), 5)
    assert back.shape == pictures.shape
    assert np.abs(back.astype(int) - pictures).max() <= 4


def episode() -> dict:
    kinds = ("plane", "box", "sphere", "capsule", "cylinder", "ellipsoid")
    shapes = [
        {
            "kind": kind,
            "size": [0.1, 0.1, 0.1],
            "rgba": [1, 0, 0, 1],
            "body": 0,
            "position": [0, 0, 0],
            "quaternion": [1, 0, 0, 0],
        }
        for kind in kinds
    ]
    poses = np.tile(np.array([0, 0, 0, 1, 0, 0, 0], "<f4"), (2, 1, 1))
    decision = {
        "step": 0,
        "path": [[0, 0, 0], [0, 0, 1]],
        "logprobs": [-1.0],
        "value": 0.5,
        "advantage": None,
    }
    return {
        "id": "a/0",
        "instruction": "go",
        "success": True,
        "return": 1.0,
        "hand": [[0, 0, 0]] * 2,
        "num_bodies": 1,
        "poses": base64.b64encode(poses.tobytes()).decode(),
        "shapes": shapes,
        "terms": {"reach": [0.0, 1.0]},
        "films": {"front": encode_film(np.zeros((2, 4, 4, 3), np.uint8))},
        "decisions": [decision],
    }


def test_an_episode_is_written_for_rerun(tmp_path):
    pytest.importorskip("rerun")
    path = tmp_path / "e.rrd"
    write_rerun(path, "a run", [episode()])
    assert path.read_bytes()[:3] == b"RRF"


def test_without_rerun_the_remedy_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **settings):
        if name == "rerun":
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="--rrd needs Rerun: pip install rerun-sdk"):
        write_rerun(tmp_path / "e.rrd", "a run", [])

"""Export of episodes for Rerun (`.rrd`): scene, cameras and the policy's numbers on one timeline.

Rerun is an optional dependency: `pip install rerun-sdk`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vla.files.reading import JsonMapping

SCALARS = ("value", "advantage")


def write_rerun(path: Path, title: str, episodes: Sequence[JsonMapping]) -> None:
    """Write episodes (`vla.viewer.payload.episode_payload`) one after another on the timeline
    "control step".

    Raises ImportError with the remedy where Rerun is not installed.
    """
    try:
        import rerun
    except ImportError:
        raise ImportError(
            "--rrd needs Rerun: pip install rerun-sdk, or look at the page (--html)"
        ) from None
    with rerun.RecordingStream(title) as stream:
        stream.save(path)
        begin = 0
        for episode in episodes:
            _write_episode(rerun, stream, episode, begin)
            begin += len(episode["hand"]) + 1
        stream.flush()
        stream.disconnect()


def _write_episode(rerun: ModuleType, stream: Any, episode: JsonMapping, begin: int) -> None:
    name = f"episodes/{episode['id']}"
    poses = np.frombuffer(base64.b64decode(episode["poses"]), "<f4").reshape(
        -1, episode["num_bodies"], 7
    )
    stream.set_time("control step", sequence=begin)
    verdict = "success" if episode["success"] else "failure"
    stream.log(
        name,
        rerun.TextDocument(f"{episode['instruction']}: {verdict}, return {episode['return']:.3f}"),
    )
    for i, shape in enumerate(episode["shapes"]):
        stream.log(f"{name}/scene/body_{shape['body']}/{i}", _primitive(rerun, shape))
    pictures = {camera: decode_film(film, len(poses)) for camera, film in episode["films"].items()}
    for t in range(len(poses)):
        stream.set_time("control step", sequence=begin + t)
        for body, pose in enumerate(poses[t]):
            x, y, z, w = (float(v) for v in (*pose[4:7], pose[3]))
            transform = rerun.Transform3D(
                translation=pose[:3], quaternion=rerun.Quaternion(xyzw=[x, y, z, w])
            )
            stream.log(f"{name}/scene/body_{body}", transform)
        for camera, images in pictures.items():
            stream.log(f"{name}/camera/{camera}", rerun.Image(images[t]))
        for term, values in episode["terms"].items():
            stream.log(f"{name}/task/{term}", rerun.Scalars(values[t]))
        _write_decision(rerun, stream, name, episode, t)


def _write_decision(
    rerun: ModuleType, stream: Any, name: str, episode: JsonMapping, t: int
) -> None:
    """Log the numbers of a decision that begins at this step."""
    for decision in episode["decisions"]:
        if decision["step"] != t:
            continue
        stream.log(f"{name}/scene/plan", rerun.LineStrips3D([decision["path"]], radii=0.002))
        stream.log(f"{name}/policy/logprob", rerun.Scalars(sum(decision["logprobs"])))
        for key in SCALARS:
            if decision[key] is not None:
                stream.log(f"{name}/policy/{key}", rerun.Scalars(float(np.mean(decision[key]))))


def _primitive(rerun: ModuleType, shape: JsonMapping) -> object:
    """A shape in its body's frame."""
    w, x, y, z = shape["quaternion"]
    place = list(shape["position"])
    size = list(shape["size"])
    looks = {
        "colors": [[round(255 * v) for v in shape["rgba"]]],
        "quaternions": [rerun.Quaternion(xyzw=[x, y, z, w])],
    }
    looks |= {"fill_mode": rerun.components.FillMode.Solid}
    match shape["kind"]:
        case "box":
            return rerun.Boxes3D(half_sizes=[size], centers=[place], **looks)
        case "plane":
            return rerun.Boxes3D(
                half_sizes=[[size[0] or 5, size[1] or 5, 0.001]], centers=[place], **looks
            )
        case "cylinder":
            return rerun.Cylinders3D(
                lengths=[2 * size[1]], radii=[size[0]], centers=[place], **looks
            )
        case "capsule":
            # Rerun's capsule begins at its origin and runs along z; MuJoCo's is centred.
            down = [
                -2 * size[1] * 0.5 * v
                for v in (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
            ]
            start = [p + d for p, d in zip(place, down, strict=True)]
            return rerun.Capsules3D(
                lengths=[2 * size[1]], radii=[size[0]], translations=[start], **looks
            )
        case _:
            radii = size if shape["kind"] == "ellipsoid" else [size[0]] * 3
            return rerun.Ellipsoids3D(half_sizes=[radii], centers=[place], **looks)


def decode_film(film: JsonMapping, count: int) -> np.ndarray:
    """The images of a film (`vla.viewer.payload.encode_film`), uint8 [count, h, w, 3]."""
    from PIL import Image

    data = base64.b64decode(film["data"].partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    height = film["height"]
    width = film["width"]
    columns = film["columns"]
    tiles = (
        sheet.reshape(-1, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    )
    return tiles[:count]

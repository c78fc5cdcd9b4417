"""Random access to demonstrations: samples per second of our loader and of LeRobot's, on one
dataset.

A sample is one frame of every camera and the action chunk that begins there. LeRobot gives float
images. Ours is timed as training uses it (uint8, converted on the device), and with the conversion.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vla.data.lerobot_format import Storage


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py data", description=__doc__)
    parser.add_argument(
        "--dataset", type=Path, help="a LeRobotDataset v3 folder; without it one is generated"
    )
    parser.add_argument(
        "--format", choices=["video", "images"], default="video", help="of the generated dataset"
    )
    parser.add_argument("--chunk", type=int, default=16, help="actions a sample")
    parser.add_argument(
        "--backend", default="pyav", help="LeRobot's video decoder: pyav or torchcodec"
    )
    parser.add_argument("--samples", type=int, default=64, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        compare(options.dataset or make_dataset(Path(temporary) / "demos", options.format), options)
    return 0


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Time both loaders on the same random samples, and print the ratios."""
    import warnings

    import numpy as np
    import torch
    from benchmarks.clock import print_rates, time_candidates

    from vla.data.demonstrations import open_demonstrations

    warnings.simplefilter("ignore")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ours = open_demonstrations(folder)
    chunk = {"action": [step / ours.fps for step in range(options.chunk)]}
    lerobot = LeRobotDataset(
        "local/x", root=folder, delta_timestamps=chunk, video_backend=options.backend
    )
    indices = np.random.default_rng(0).integers(0, ours.num_frames, options.samples)

    def batch_as_float() -> list[torch.Tensor]:
        images = ours.batch(indices, options.chunk).images
        return [
            torch.from_numpy(image).permute(0, 3, 1, 2).float().div_(255)
            for image in images.values()
        ]

    timings = time_candidates(
        {
            f"LeRobot ({options.backend})": lambda: [lerobot[int(index)] for index in indices],
            "ours": lambda: ours.batch(indices, options.chunk),
            "ours, as float": batch_as_float,
        },
        options.rounds,
    )
    print_rates(timings, options.samples, "samples")
    peer, uint8, floats = timings.values()
    print(
        f"ours / LeRobot: {peer.wall / uint8.wall:.0f} times as many a second, "
        f"{peer.wall / floats.wall:.0f} as float"
    )


def make_dataset(folder: Path, storage: Storage) -> Path:
    """Generate twenty episodes of 80 frames, two 96 px cameras: a block that moves over a plain."""
    import numpy as np

    from vla.data.lerobot_format import DatasetSpec
    from vla.data.lerobot_writer import Episode, LeRobotWriter

    spec = DatasetSpec(
        20,
        "none",
        ("front", "wrist"),
        (96, 96),
        tuple("abcdefg"),
        tuple("abcdefg"),
        {},
        {},
        storage,
    )
    writer = LeRobotWriter(folder, spec)
    rng = np.random.default_rng(0)
    steps = np.arange(80)
    for seed in range(20):
        image = np.full((80, 96, 96, 3), 150, np.uint8)
        for step in steps:
            image[step, 10 + step // 2 : 30 + step // 2, seed : seed + 20] = (200, 30, 10 * seed)
        vectors = rng.normal(size=(2, 80, 7)).astype(np.float32)
        writer.add(
            Episode(
                {"front": image, "wrist": image},
                vectors[0],
                vectors[1],
                np.zeros(80, bool),
                "put it there",
                seed,
                True,
            )
        )
    return writer.finish()

"""The writer: nothing lost on interruption or a full disk, and LeRobot reads exactly what was
written."""

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from vla.data import lerobot_format as form
from vla.data.lerobot_writer import Episode, LeRobotWriter, partial_folder

SPEC = form.DatasetSpec(
    fps=20,
    robot="panda",
    cameras=("front", "wrist"),
    image_size=(32, 48),
    proprio_names=("x", "y", "z"),
    action_names=("dx", "gripper"),
    action_spec={"names": ["dx", "gripper"], "control_hz": 20.0},
    source={"task": "pick_place"},
    storage="video",
)


def make_episode(seed, length=5, instruction="put the red cube on the blue pad"):
    rng = np.random.default_rng(seed)
    return Episode(
        images={
            camera: rng.integers(0, 256, (length, 32, 48, 3), dtype=np.uint8)
            for camera in SPEC.cameras
        },
        proprio=rng.normal(size=(length, 3)).astype(np.float32),
        actions=rng.normal(size=(length, 2)).astype(np.float32),
        perturbed=np.arange(length) == 1,
        instruction=instruction,
        seed=seed,
        success=True,
    )


def write(folder, seeds, storage="video"):
    writer = LeRobotWriter(folder, replace(SPEC, storage=storage))
    for seed in seeds:
        writer.add(make_episode(seed, 4 + seed, f"task {seed % 2}"))
    return writer


def test_the_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "data"
    writer = write(folder, [0, 1])
    assert not folder.exists()
    assert writer.finish() == folder
    assert json.loads((folder / form.INFO_PATH).read_text())["total_episodes"] == 2
    assert not partial_folder(folder).exists()
    with pytest.raises(ValueError, match="exists already"):
        LeRobotWriter(folder, SPEC)


def test_an_interrupted_run_continues_and_episodes_stand_in_the_order_of_seeds(tmp_path):
    folder = tmp_path / "data"
    write(folder, [7, 2]).record_failure(3)
    (
        partial_folder(folder) / "episodes" / ".5"
    ).mkdir()  # an episode that was being written when the power went
    writer = LeRobotWriter(folder, SPEC)
    assert writer.finished_seeds == {2, 7}
    assert writer.failed_seeds == {3}
    assert writer.num_frames == 6 + 11
    writer.add(make_episode(4, 3))
    with pytest.raises(ValueError, match="seed 4 is already"):
        writer.add(make_episode(4, 3))
    writer.finish()
    rows = pq.read_table(folder / form.DATA_PATH.format(chunk_index=0, file_index=0))
    assert rows["seed"].to_pylist() == [2] * 6 + [4] * 3 + [7] * 11
    assert rows["index"].to_pylist() == list(range(20))
    assert rows["episode_index"].to_pylist() == [0] * 6 + [1] * 3 + [2] * 11


def test_other_settings_do_not_continue_an_unfinished_dataset(tmp_path):
    write(tmp_path / "data", [0])
    with pytest.raises(ValueError, match="robot = 'panda', not 'gantry'"):
        LeRobotWriter(tmp_path / "data", replace(SPEC, robot="gantry"))


def test_an_episode_that_does_not_fit_is_refused(tmp_path):
    writer = LeRobotWriter(tmp_path / "data", SPEC)
    good = make_episode(0)
    with pytest.raises(ValueError, match=r"actions has shape \(5, 3\).*\(5, 2\)"):
        writer.add(replace(good, actions=np.zeros((5, 3), np.float32)))
    with pytest.raises(ValueError, match=r"cameras \['front'\]"):
        writer.add(replace(good, images={"front": good.images["front"]}))
    with pytest.raises(ValueError, match="no episode was written"):
        writer.finish()


def test_a_disk_that_fills_up_names_the_place_and_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    writer = write(folder, [0, 1])

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", no_space)
        with pytest.raises(
            OSError, match=r"disk full: writing to .*\.data\.partial needs about [\d,]+ bytes"
        ) as caught:
            writer.add(make_episode(2))
    assert caught.value.errno == errno.ENOSPC
    assert writer.finished_seeds == {0, 1}
    writer.add(make_episode(3))  # there is room again

    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(OSError, match="10 are free.*run the same command again"):
            writer.finish()
    assert not folder.exists()
    again = LeRobotWriter(folder, SPEC)
    again.add(make_episode(2))
    assert again.finish() == folder
    assert json.loads((folder / form.INFO_PATH).read_text())["total_episodes"] == 4


def test_large_datasets_are_cut_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr(form, "MAX_DATA_BYTES", 1)
    monkeypatch.setattr(form, "MAX_VIDEO_BYTES", 1)
    folder = write(tmp_path / "data", [0, 1, 2]).finish()
    assert len(list(folder.glob("data/chunk-000/*.parquet"))) == 3
    assert len(list(folder.glob("videos/observation.images.front/chunk-000/*.mp4"))) == 3
    episodes = pq.read_table(folder / form.EPISODES_PATH).to_pylist()
    assert [e["data/file_index"] for e in episodes] == [0, 1, 2]
    assert [e["videos/observation.images.front/from_timestamp"] for e in episodes] == [
        0.0,
        0.0,
        0.0,
    ]


def test_image_statistics_of_a_histogram_worked_by_hand():
    """Red: three pixels of 0 and one of 255 (shown at every second row and column of a 4x4
    image)."""
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 2, 2, 0] = 255
    statistics = form.image_statistics(form.channel_histogram(image), 1)
    assert statistics["mean"].shape == (3, 1, 1)
    # mean 1/4; std sqrt(1/4 - 1/16) = sqrt(3)/4; half of the pixels are <= 0, 90 % of them are <=
    # 1.
    np.testing.assert_allclose(statistics["mean"].ravel(), [0.25, 0, 0])
    np.testing.assert_allclose(statistics["std"].ravel(), [3**0.5 / 4, 0, 0])
    np.testing.assert_allclose(
        [statistics[q].ravel()[0] for q in ("min", "q50", "q90", "max")], [0, 0, 1, 1]
    )


@pytest.mark.filterwarnings("ignore")  # LeRobot and what it loads
def test_lerobot_reads_ours_and_we_read_lerobots(tmp_path, monkeypatch):
    """One test, because importing LeRobot costs 15 seconds."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from vla.data.demonstrations import open_demonstrations

    for storage in ("video", "images"):
        folder = write(tmp_path / storage, [0, 1, 2], storage).finish()
        dataset = LeRobotDataset("local/ours", root=folder, video_backend="pyav")
        assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 4 + 5 + 6, 20)
        assert list(dataset.meta.tasks.index) == ["task 0", "task 1"]
        for index, seed, step in ((0, 0, 0), (4, 1, 0), (14, 2, 5)):
            expected, item = make_episode(seed, 4 + seed), dataset[index]
            for camera in SPEC.cameras:
                pixels = (
                    (item[f"observation.images.{camera}"].permute(1, 2, 0) * 255)
                    .round()
                    .byte()
                    .numpy()
                )
                np.testing.assert_array_equal(pixels, expected.images[camera][step])
            np.testing.assert_array_equal(item["action"].numpy(), expected.actions[step])
            np.testing.assert_array_equal(item["observation.state"].numpy(), expected.proprio[step])
            assert item["task"] == f"task {seed % 2}"
            assert item["timestamp"].item() == pytest.approx(step / 20)
            assert (item["perturbed"].item(), item["seed"].item(), item["success"].item()) == (
                step == 1,
                seed,
                True,
            )

    theirs = LeRobotDataset.create(
        "local/theirs",
        fps=20,
        features=_visible_features(form.describe_features(replace(SPEC, storage="images"))),
        root=tmp_path / "theirs",
        robot_type="panda",
        use_videos=False,
    )
    for seed in (0, 1, 2):
        episode = make_episode(seed, 4 + seed)
        for step in range(len(episode)):
            frame = {f"observation.images.{c}": image[step] for c, image in episode.images.items()}
            frame |= {"observation.state": episode.proprio[step], "action": episode.actions[step]}
            theirs.add_frame(frame | {"task": f"task {seed % 2}"})
        theirs.save_episode()
    theirs.finalize()
    ours, read = open_demonstrations(tmp_path / "images"), open_demonstrations(tmp_path / "theirs")
    for camera in SPEC.cameras:
        np.testing.assert_array_equal(read.frames[camera], ours.frames[camera])
    np.testing.assert_array_equal(read.columns.actions, ours.columns.actions)
    assert read.instructions == ours.instructions
    for key in ("action", "observation.state", "observation.images.front"):
        assert set(ours.statistics[key]) == set(read.statistics[key])
        for name in (
            "min",
            "max",
            "mean",
            "std",
            "count",
        ):  # LeRobot averages its episodes' quantiles; ours are exact
            wanted = read.statistics[key][name]
            tolerance = 0.02 if "images" in key else 1e-5  # we look at every fourth pixel
            np.testing.assert_allclose(
                ours.statistics[key][name], wanted, atol=tolerance, err_msg=f"{key} {name}"
            )


def _visible_features(features):
    hidden = {
        "timestamp",
        "frame_index",
        "episode_index",
        "index",
        "task_index",
        "perturbed",
        "seed",
        "success",
    }
    return {
        key: {**feature, "shape": tuple(feature["shape"])}
        for key, feature in features.items()
        if key not in hidden
    }

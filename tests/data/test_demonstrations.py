"""The loader: chunks, masks, splits, and clear errors for datasets that do not fit."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla.data import frame_cache
from vla.data import lerobot_format as form
from vla.data.demonstrations import check_action_spec, open_demonstrations
from vla.data.lerobot_writer import Episode, LeRobotWriter
from vla.files.reading import DamagedFile

SPEC = form.DatasetSpec(
    fps=20,
    robot="panda",
    cameras=("front", "wrist"),
    image_size=(16, 16),
    proprio_names=("x", "y"),
    action_names=("dx", "gripper"),
    action_spec={"names": ["dx", "gripper"], "control_hz": 20.0, "frame": "robot base"},
    source={},
    storage="video",
)
LENGTHS = (3, 5, 4, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frame t of episode e: action (10 e + t, 1), and images filled with 20 e + t; control step 1
    was perturbed."""
    folder = tmp_path_factory.mktemp("datasets") / "demos"
    writer = LeRobotWriter(folder, SPEC)
    for seed, length in enumerate(LENGTHS):
        steps = np.arange(length)
        image = np.broadcast_to(
            (20 * seed + steps)[:, None, None, None], (length, 16, 16, 3)
        ).astype(np.uint8)
        writer.add(
            Episode(
                images={"front": image, "wrist": image + 100},
                proprio=np.stack([steps, steps], 1).astype(np.float32),
                actions=np.stack([10 * seed + steps, np.ones(length)], 1).astype(np.float32),
                perturbed=steps == 1,
                instruction=f"task {seed % 2}",
                seed=seed,
                success=True,
            )
        )
    return writer.finish()


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "demos", ignore=shutil.ignore_patterns(".frames"))
    return tmp_path / "demos"


def edit_info(folder, **changes):
    path = folder / form.INFO_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_dataset_says_about_itself(folder):
    demos = open_demonstrations(folder)
    assert (demos.num_episodes, demos.num_frames, demos.fps, demos.robot) == (4, 18, 20, "panda")
    assert (demos.cameras, demos.action_names, demos.proprio_names) == (
        ("front", "wrist"),
        ("dx", "gripper"),
        ("x", "y"),
    )
    assert demos.action_spec == {
        "names": ["dx", "gripper"],
        "control_hz": 20.0,
        "frame": "robot base",
    }
    assert demos.episode_index.tolist() == [0] * 3 + [1] * 5 + [2] * 4 + [3] * 6
    assert demos.statistics["action"]["max"].tolist() == [35.0, 1.0]


def test_chunks_stop_at_their_episodes_end(folder):
    """Row 5 is step 2 of episode 1 (5 steps), row 0 is step 0 of episode 0 (3 steps, step 1
    perturbed)."""
    batch = open_demonstrations(folder).batch([5, 0], horizon=4)
    np.testing.assert_array_equal(batch.actions[:, :, 0], [[12, 13, 14, 14], [0, 1, 2, 2]])
    np.testing.assert_array_equal(
        batch.action_mask, [[True, True, True, False], [True, False, True, False]]
    )
    np.testing.assert_array_equal(batch.proprio[:, 0], [2, 0])
    assert batch.instruction == ["task 1", "task 0"]
    assert batch.images["front"].shape == (2, 16, 16, 3)
    assert batch.images["front"][:, 0, 0, 0].tolist() == [22, 0]
    assert batch.images["wrist"][:, 5, 5, 2].tolist() == [122, 100]


def test_splits_are_disjoint_whole_episodes_and_repeat(folder):
    demos = open_demonstrations(folder)
    train, held = demos.split(0.25, seed=3)
    assert (train.num_episodes, held.num_episodes) == (3, 1)
    assert set(train.episodes) | set(held.episodes) == {0, 1, 2, 3}
    assert held.num_frames == LENGTHS[held.episodes[0]]
    assert (demos.split(0.25, seed=3)[1].episodes == held.episodes).all()
    batch = held.batch(np.arange(held.num_frames), horizon=1)
    np.testing.assert_array_equal(
        batch.actions[:, 0, 0] // 10, np.full(held.num_frames, held.episodes[0])
    )
    with pytest.raises(ValueError, match="holdout"):
        demos.choose([1]).split(0.5, seed=0)
    with pytest.raises(ValueError, match=r"no episodes \[9\]"):
        demos.choose([1, 9])


def test_cameras_are_chosen_and_resized(folder):
    demos = open_demonstrations(folder, cameras=["wrist"], image_size=8)
    assert demos.cameras == ("wrist",)
    images = demos.batch([4], horizon=1).images
    assert images["wrist"].shape == (1, 8, 8, 3)
    assert (
        np.abs(images["wrist"].astype(int) - 121).max() <= 1
    )  # episode 1, step 1; the scaler may round


def test_images_are_decoded_once(copy, monkeypatch):
    first = open_demonstrations(copy)
    monkeypatch.setattr(frame_cache, "_decode", lambda *args: pytest.fail("decoded again"))
    second = open_demonstrations(copy)
    np.testing.assert_array_equal(first.frames["front"], second.frames["front"])


def test_a_changed_dataset_is_decoded_again(copy):
    open_demonstrations(copy)
    for camera in ("front", "wrist"):
        video = copy / form.VIDEO_PATH.format(
            video_key=form.image_key(camera), chunk_index=0, file_index=0
        )
        other = copy / form.VIDEO_PATH.format(
            video_key=form.image_key("wrist"), chunk_index=0, file_index=0
        )
        shutil.copy(other, video) if video != other else None
    assert open_demonstrations(copy).frames["front"][0, 0, 0, 0] == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cameras": ["front", "side"]}, "cameras: side wanted.*front, wrist"),
        (
            {"action_spec": SPEC.action_spec | {"control_hz": 10.0}},
            "control_hz is 20.0 in the dataset.*10.0 is expected",
        ),
        ({"action_spec": SPEC.action_spec | {"frame": "world"}}, "frame is 'robot base'.*'world'"),
    ],
)
def test_what_the_caller_expects_is_held_against_the_dataset(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_demonstrations(folder, **arguments)


def test_a_dataset_without_an_action_spec_is_checked_by_names_and_rate(copy):
    (copy / form.ACTION_SPEC_PATH).unlink()
    assert (
        open_demonstrations(
            copy, action_spec={"names": ("dx", "gripper"), "frame": "world"}
        ).action_spec
        is None
    )
    with pytest.raises(ValueError, match="names is"):
        open_demonstrations(copy, action_spec={"names": ("dx", "dy")})


def test_equal_action_specs_pass_whatever_holds_their_values():
    check_action_spec(
        {"low": [0.0, 1.0], "frame": "base"}, {"low": (0.0, 1.0), "frame": "base"}, "here"
    )


def test_other_versions_name_the_converter(copy):
    edit_info(copy, codebase_version="v2.1")
    with pytest.raises(ValueError, match=r"v2\.1.*lerobot\.scripts\.convert_dataset_v21_to_v30"):
        open_demonstrations(copy)
    edit_info(copy, codebase_version="v7.0")
    with pytest.raises(ValueError, match="'v7.0'"):
        open_demonstrations(copy)


def test_what_is_no_dataset_or_a_damaged_one(copy, tmp_path):
    with pytest.raises(ValueError, match="no LeRobotDataset"):
        open_demonstrations(tmp_path / "nothing")
    edit_info(copy, total_frames=17)
    with pytest.raises(ValueError, match="rows are not 0 to 16"):
        open_demonstrations(copy)
    (copy / form.INFO_PATH).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        open_demonstrations(copy)


FRONT = form.image_key("front")
PLACE = f"videos/{FRONT}"


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"shape": []}, "has shape \\[\\], not three sizes"),
        ({"shape": [-16, 16, 3]}, "shape.0 is -16, it must be greater than 0"),
        ({"info": 5}, "info is 5, it must be a mapping"),
        ({"names": 7}, "names.* is 7"),
    ],
)
def test_a_feature_that_cannot_be_is_named(copy, feature, said):
    features = json.loads((copy / form.INFO_PATH).read_text())["features"]
    edit_info(copy, features=features | {FRONT: features[FRONT] | feature})
    with pytest.raises(DamagedFile, match=f"info.json cannot be read: .*{said}"):
        open_demonstrations(copy)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fps", 0, "fps is 0, it must be greater than 0"),
        ("total_frames", -1, "total_frames is -1"),
        ("total_frames", 10**15, "rows are not 0 to 999999999999999"),
        ("video_path", None, "cannot be read"),
        ("video_path", "videos/{other}.mp4", "'other' is missing"),
    ],
)
def test_a_count_or_path_that_cannot_be_is_named(copy, name, value, said):
    edit_info(copy, **{name: value})
    with pytest.raises(DamagedFile, match=said):
        open_demonstrations(copy)


@pytest.mark.parametrize(
    ("part", "column", "change", "said"),
    [
        ("meta/episodes", "length", lambda v: [None, *v[1:]], "0.length is empty"),
        ("meta/episodes", "length", None, "0.length is missing"),
        ("meta/episodes", f"{PLACE}/from_timestamp", None, "from_timestamp' is missing"),
        ("meta/episodes", f"{PLACE}/from_timestamp", lambda v: [float("nan"), *v[1:]], "NaN"),
        (
            "meta/episodes",
            f"{PLACE}/from_timestamp",
            lambda v: [*v[:1], v[1] + 0.05, *v[2:]],
            "not those of rows 0 to 17",
        ),
        ("meta/episodes", f"{PLACE}/chunk_index", lambda v: ["a"] * len(v), "invalid literal"),
        ("data", "action", lambda v: [v[0][:1], *v[1:]], "column action, cannot be read"),
        ("data", "action", lambda v: [None, *v[1:]], "column action, cannot be read"),
        (
            "data",
            "episode_index",
            lambda v: [None, *v[1:]],
            "column episode_index, .* other than whole numbers",
        ),
        ("data", "episode_index", lambda v: [1, *v[1:]], "do not follow each other"),
    ],
)
def test_a_table_that_cannot_be_is_named(copy, part, column, change, said):
    (path,) = (copy / part).glob("*/*.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    table = table.remove_column(place)
    pq.write_table(
        table if change is None else table.append_column(column, pa.array(change(values))), path
    )
    with pytest.raises(DamagedFile, match=said):
        open_demonstrations(copy)


def test_statistics_of_numbers_are_those_of_the_frames(copy):
    path = copy / form.STATS_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | {"action": {"q01": [float("nan")]}}))
    demos = open_demonstrations(copy)
    np.testing.assert_allclose(demos.statistics["action"]["max"], demos.columns.actions.max(0))


def test_a_video_that_lost_a_frame_is_noticed(tmp_path):
    from vla.data.lerobot_writer import encode_video

    writer = LeRobotWriter(tmp_path / "short", replace(SPEC, cameras=("front",)))
    image = np.zeros((5, 16, 16, 3), np.uint8)
    zeros = np.zeros((5, 2), np.float32)
    writer.add(Episode({"front": image}, zeros, zeros, np.zeros(5, bool), "task", 0, True))
    short = writer.finish()
    encode_video(next(short.glob("videos/*/*/*.mp4")), image[:4], fps=20)
    with pytest.raises(ValueError, match="holds 4 frames.*5 rows"):
        open_demonstrations(short)


def test_no_room_for_decoded_frames(copy, monkeypatch):
    usage = shutil.disk_usage(copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7))
    # 18 frames of 16 x 16 x 3 bytes from 2 cameras: 27,648 bytes
    with pytest.raises(OSError, match="27,648 bytes.*7 are free.*sim.image_size"):
        open_demonstrations(copy)


def test_a_damaged_cache_is_told_and_decoded_anew(copy, capsys):
    whole = open_demonstrations(copy).frames["front"].copy()
    (array,) = copy.glob(".frames/*/observation.images.front.npy")
    for harm in (
        lambda: array.write_bytes(array.read_bytes()[:-1] + b"\xff"),
        lambda: array.write_bytes(b""),
        lambda: array.write_bytes(b"garbage" * 99),
        lambda: array.with_suffix(".json").write_text("[]"),
        lambda: array.with_suffix(".json").unlink(),
    ):
        harm()
        np.testing.assert_array_equal(open_demonstrations(copy).frames["front"], whole)
        assert f"{array} is decoded again: " in capsys.readouterr().err
    np.testing.assert_array_equal(open_demonstrations(copy).frames["front"], whole)
    assert capsys.readouterr().err == ""


def test_the_cache_knows_its_dataset_by_content_not_by_time(copy, tmp_path):
    open_demonstrations(copy)
    moved = shutil.copytree(copy, tmp_path / "moved", copy_function=shutil.copyfile)  # other times
    before = list((moved / ".frames").glob("*/*.npy"))
    open_demonstrations(moved)
    assert list((moved / ".frames").glob("*/*.npy")) == before
    info = moved / form.INFO_PATH
    about = info.stat()
    info.write_text(
        info.read_text().replace("panda", "pandb")
    )  # of the same size, and made to look as old
    os.utime(info, ns=(about.st_atime_ns, about.st_mtime_ns))
    open_demonstrations(moved)
    assert len(list((moved / ".frames").glob("*/*.npy"))) == 2 * len(before)


def test_processes_that_open_a_dataset_at_once_all_live(copy):
    script = "import sys; from vla.data.demonstrations import open_demonstrations; open_demonstrations(sys.argv[1])"
    children = [subprocess.Popen([sys.executable, "-c", script, str(copy)]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert not list(copy.glob(".frames/*/.unfinished-*"))

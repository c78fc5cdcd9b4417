"""Datasets that others recorded: what must not be learned is refused by name, what they leave open
is said."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim.spec import DEFAULT_ACTION_SPEC
from tests.data.foreign import OURS, STATE, foreign, put
from vla.data.demonstrations import open_demonstrations

pytestmark = pytest.mark.filterwarnings("ignore")  # LeRobot's own
SPEC = DEFAULT_ACTION_SPEC.to_dict()


def opened(folder, **options):
    known = {
        "cameras": ("front", "wrist"),
        "action_spec": SPEC,
        "proprio_names": STATE,
        "image_size": 8,
    }
    return open_demonstrations(folder, **{**known, **options})


def told(demos, part):
    return [note for note in demos.notes if part in note]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return foreign(tmp_path_factory.mktemp("foreign") / "plain")


@pytest.fixture
def copy(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "copy", ignore=shutil.ignore_patterns(".frames"))


def edit_info(folder, change):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def edit_data(folder, **columns):
    (path,) = folder.glob("data/*/*.parquet")
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, path)


def test_what_a_dataset_leaves_open_is_said_in_one_line(plain):
    demos = opened(plain)
    (note,) = demos.notes
    assert "does not state the units, kinds, frame, gripper sign of its actions" in note
    assert (demos.num_episodes, demos.num_failures) == (2, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("key", "name"), [("action", "dy"), ("observation.state", "y")])
def test_one_number_that_is_not_finite_is_named_with_its_frame(tmp_path, key, name, value):
    folder = foreign(tmp_path / "odd", cameras=("front",), change=put(key, 1, value, 1, 2))
    with pytest.raises(
        ValueError,
        match=rf"{key}: {name} \(dimension 1\) is {value} in frame 2 of episode 1.*\[1\]",
    ):
        opened(folder, cameras=("front",))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64"])
def test_numbers_of_every_kind_are_read_right(tmp_path, dtype):
    written = []

    def change(frame, episode, step):
        frame["action"] = np.array([0, 1, -1, 0, 2, 0, 1]).astype(dtype)
        frame["action"][0] = len(written)
        written.append(frame["action"])

    folder = foreign(tmp_path / "odd", dtype=dtype, cameras=("front",), change=change)
    demos = opened(folder, cameras=("front",), action_spec=None)
    assert demos.columns.actions.dtype == np.float32
    np.testing.assert_array_equal(demos.columns.actions, np.stack(written))


def test_a_number_too_large_for_float32_is_infinite(tmp_path):
    folder = foreign(
        tmp_path / "odd", dtype="float64", cameras=("front",), change=put("action", 0, 1e300, 0, 1)
    )
    with pytest.raises(ValueError, match="action: dx .dimension 0. is inf in frame 1 of episode 0"):
        opened(folder, cameras=("front",))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (("opening",), r"observation.state: 1 numbers \['opening'\].*but 7"),
        (
            tuple(f"joint_{i}" for i in range(7)),
            r"observation.state: 7 numbers \['joint_0'.*but 7 \['x'",
        ),
        ((), "no feature 'observation.state'"),
    ],
)
def test_a_state_with_another_meaning_is_refused(tmp_path, state, message):
    folder = foreign(tmp_path / "odd", state=state, cameras=("front",))
    with pytest.raises(ValueError, match=message):
        opened(folder, cameras=("front",))


def test_names_that_say_nothing_are_held_by_their_number(tmp_path):
    silent = {"motors": [f"motor_{i}" for i in range(7)]}
    folder = foreign(tmp_path / "odd", state=silent, actions=silent, cameras=("front",))
    demos = opened(folder, cameras=("front",))
    assert demos.action_names[0] == "motor_0"
    assert told(demos, "does not state the names, units")
    with pytest.raises(ValueError, match="action spec: names is"):
        opened(folder, cameras=("front",), action_spec={"names": list(OURS[:6])})


def test_actions_outside_the_limits_are_refused_or_said(tmp_path):
    def normalised(frame, episode, step):
        frame["action"] = np.full(7, -0.97 if step % 2 else 0.95, np.float32)

    folder = foreign(tmp_path / "unit", cameras=("front",), change=normalised)
    with pytest.raises(
        ValueError,
        match=r"100 % of the frames.*dx: 100 % of frames outside -0.05 to 0.05, it spans -0.97 to 0.95.*"
        r"data.max_outside_limits \(0.1\).*looks normalised to \[-1, 1\]",
    ):
        opened(folder, cameras=("front",))
    assert told(
        opened(folder, cameras=("front",), max_outside_limits=1.0),
        "the environment clips them",
    )
    one = foreign(
        tmp_path / "one", cameras=("front",), lengths=(20,), change=put("action", 2, 0.06, 0, 3)
    )
    assert told(opened(one, cameras=("front",)), "5 % of the frames")


def degrees(frame, episode, step):
    frame["action"][3] = 30.0


def millimetres(frame, episode, step):
    frame["action"][:3] *= 1000


@pytest.mark.parametrize(
    ("change", "hint"), [(degrees, "angles look like degrees"), (millimetres, "like millimetres")]
)
def test_a_guess_at_the_unit_is_given(tmp_path, change, hint):
    with pytest.raises(ValueError, match=hint):
        opened(foreign(tmp_path / "odd", cameras=("front",), change=change), cameras=("front",))


@pytest.mark.parametrize(("column", "marks"), [("success", [1, 1, 1]), ("next.success", [0, 0, 1])])
def test_failures_are_counted_and_can_be_left_out(tmp_path, column, marks):
    """Episode 0 failed; episode 1 succeeded, as ours are marked or as LeRobot marks them, in the
    last frame."""

    def change(frame, episode, step):
        frame[column] = np.array([bool(episode and marks[step])])

    extra = {column: {"dtype": "bool", "shape": (1,), "names": None}}
    folder = foreign(
        tmp_path / "odd", lengths=(3, 3), cameras=("front",), extra=extra, change=change
    )
    kept = opened(folder, cameras=("front",))
    assert (kept.num_episodes, kept.num_failures) == (2, 1)
    assert told(
        kept,
        "1 of 2 episodes of the dataset .* are marked as failures".replace(".* ", f"{folder} "),
    )
    dropped = opened(folder, cameras=("front",), failures="drop")
    assert (dropped.episodes.tolist(), dropped.num_failures) == ([1], 0)
    assert told(dropped, "are left out (data.failures=drop)")


def test_a_number_in_an_episode_that_is_left_out_is_not_used(tmp_path):
    def change(frame, episode, step):
        frame["success"] = np.array([episode == 1])
        put("action", 0, np.nan, 0, 0)(frame, episode, step)

    extra = {"success": {"dtype": "bool", "shape": (1,), "names": None}}
    folder = foreign(tmp_path / "odd", cameras=("front",), extra=extra, change=change)
    assert opened(folder, cameras=("front",), failures="drop").num_episodes == 1
    with pytest.raises(ValueError, match="dx .* is nan in frame 0 of episode 0"):
        opened(folder, cameras=("front",))


def test_nothing_but_failures_cannot_be_left_out(tmp_path):
    extra = {"success": {"dtype": "bool", "shape": (1,), "names": None}}

    def change(frame, episode, step):
        frame["success"] = np.array([False])

    folder = foreign(tmp_path / "odd", cameras=("front",), extra=extra, change=change)
    with pytest.raises(
        ValueError, match="2 of 2 episodes.*data.failures=drop leaves nothing to imitate"
    ):
        opened(folder, cameras=("front",), failures="drop")


def test_pictures_of_any_shape_are_shown_whole(tmp_path):
    demos = opened(foreign(tmp_path / "wide", size=(6, 16), cameras=("front",)), cameras=("front",))
    picture = demos.frames["front"][0]
    assert picture.shape == (8, 8, 3)
    assert picture[:2].max() == picture[5:].max() == 0  # padded above and below: 3 rows of 8 remain
    assert (picture[2:5, :2] == 255).all()
    assert picture[2:5, 2:].max() == 0
    assert told(demos, "front 6 x 16")
    assert demos.picture_sizes == {"front": (6, 16)}


def test_cameras_that_are_not_there_have_a_remedy_that_works(tmp_path, plain):
    with pytest.raises(
        ValueError, match=r"side wanted.*has front, wrist; set sim.cameras=\[front,wrist\]"
    ):
        opened(plain, cameras=("side",))
    foreign_eyes = foreign(tmp_path / "eyes", cameras=("cam_high",))
    with pytest.raises(
        ValueError,
        match="has cam_high; the simulator draws front, wrist and no others; lerobot-train",
    ):
        opened(foreign_eyes, drawable=("front", "wrist"))
    with pytest.raises(ValueError, match="has none; record it again with cameras"):
        opened(foreign(tmp_path / "blind", cameras=()))


def test_depth_by_either_mark_is_no_camera(copy):
    def change(info):
        info["features"]["observation.images.wrist"]["info"] = {"video.is_depth_map": True}

    edit_info(copy, change)
    assert open_demonstrations(copy).cameras == ("front",)


def test_a_missing_task_is_named(copy):
    edit_data(copy, task_index=pa.array([0, 0, 0, 7, 7, 7, 7]))
    with pytest.raises(
        ValueError, match=r"tasks.parquet has no instruction for task 7, which 4 frames name"
    ):
        opened(copy)
    (copy / "meta/tasks.parquet").unlink()
    with pytest.raises(ValueError, match=r"tasks.parquet.* copy or download it again"):
        opened(copy)


def test_tasks_need_not_begin_at_0(copy):
    table = pq.read_table(copy / "meta/tasks.parquet")
    at = table.schema.get_field_index("task_index")
    pq.write_table(
        table.set_column(at, "task_index", pa.array([5, 3])), copy / "meta/tasks.parquet"
    )
    edit_data(copy, task_index=pa.array([5] * 3 + [3] * 4))
    assert opened(copy).batch([0, 6], 2).instruction == ["lift the cube", "push the cube"]


def test_an_empty_instruction_is_said(tmp_path):
    demos = opened(
        foreign(tmp_path / "odd", tasks=("", "push"), cameras=("front",)), cameras=("front",)
    )
    assert told(demos, "3 of 7 frames have an empty instruction")


def test_a_recording_without_episodes(copy):
    edit_info(copy, lambda info: info.update(total_frames=0, total_episodes=0))
    with pytest.raises(
        ValueError, match="holds no episodes: the recording stopped before the first was saved"
    ):
        opened(copy)


@pytest.mark.parametrize("part", ["data", "meta/episodes", "meta/tasks.parquet", "meta/info.json"])
def test_a_part_that_is_missing_is_named(copy, part):
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    with pytest.raises(ValueError, match=part):
        opened(copy)


def test_other_shapes_of_actions_are_refused(copy):
    edit_info(copy, lambda info: info["features"]["action"].update(shape=[1, 7]))
    with pytest.raises(
        ValueError, match=r"action has shape \[1, 7\]; record it as one row of numbers"
    ):
        opened(copy)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"left": ["a", "b"], "right": ["c"]}, ("a", "b", "c")),
        ({"c": 2, "a": 0, "b": 1}, ("a", "b", "c")),
        (None, ("action_0", "action_1", "action_2")),
        (["motors"], ("action_0", "action_1", "action_2")),
    ],
)
def test_names_in_every_form(names, expected):
    from vla.data.lerobot_reader import dimension_names

    assert (
        dimension_names({"features": {"action": {"shape": [3], "names": names}}}, "action")
        == expected
    )

"""Recordings keep what happened, choose what is worth a look, and read back as they were."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from vla.data.episode_recording import list_recordings, load_recording, save_recording
from vla.pipelines.robot.recordings import choose_trajectories, record_trajectories, trajectory_rows
from vla.types import Observation, Rollout
from vla.viewer.payload import episode_actions, episode_summaries, planned_path

SPEC = {
    "names": ["dx", "dy", "dz", "gripper"],
    "kinds": ["delta"] * 3 + ["absolute"],
    "control_hz": 20.0,
    "low": [-0.05] * 3 + [-1.0],
    "high": [0.05] * 3 + [1.0],
}


def rollout(success: list[float], group: list[int], trajectory: list[int]) -> Rollout:
    """Trajectories of as many rows as `trajectory` says; row r has reward r, action r, log-probs
    -r."""
    rows, count = len(trajectory), len(success)
    number = torch.arange(rows).float()
    tokens, seeds = torch.zeros(rows, 1, dtype=torch.long), 100 + torch.arange(count)
    measures = {
        "seed": seeds,
        "control_steps": torch.full((count,), 4.0),
        "reach": torch.tensor(success).float(),
    }
    return Rollout(
        observation=Observation({}, number[:, None], tokens, tokens == 0),
        trace={},
        logprobs=-number[:, None].expand(rows, 2),
        mask=torch.ones(rows, 2, dtype=torch.bool),
        rewards=number,
        trajectory=torch.tensor(trajectory),
        terminated=torch.ones(count, dtype=torch.bool),
        truncated=torch.zeros(count, dtype=torch.bool),
        group=torch.tensor(group),
        version=torch.zeros(rows, dtype=torch.long),
        success=torch.tensor(success).float(),
        values=number / 2,
        action=number[:, None, None].expand(rows, 2, 4),
        episodes=measures,
    )


def test_an_episodes_rows_stand_together_in_the_order_of_time():
    # rows of trajectory 2 are 1 and 3, of trajectory 0 are 0 and 4
    found = record_trajectories(
        rollout([1, 0, 1], [0, 0, 1], [0, 2, 1, 2, 0]),
        torch.tensor([2, 0]),
        "rl",
        7,
        {"task": "x"},
        "greedy",
    )
    assert found.seed.tolist() == [102, 100]
    assert found.episode.tolist() == [0, 0, 1, 1]
    assert found.reward.tolist() == [1, 3, 0, 4]
    assert found.values is not None
    assert found.values.tolist() == [0.5, 1.5, 0, 2]
    assert [a[:, 0, 0].tolist() for a in episode_actions(found)] == [[1, 3], [0, 4]]
    lines = episode_summaries(found, "recordings/rl-000007")
    assert [line["return"] for line in lines] == [4, 4]
    assert lines[0]["id"] == "recordings/rl-000007/0"
    assert lines[0]["reached"] == {"reach": 1.0}


def test_a_recording_reads_back_bit_for_bit(tmp_path: Path):
    rows = trajectory_rows(rollout([1, 0], [0, 0], [0, 1, 0]), torch.tensor([1, 0]))
    found = record_trajectories(
        rollout([1, 0], [0, 0], [0, 1, 0]),
        torch.tensor([1, 0]),
        "rl",
        7,
        {"task": "x", "image_size": 64},
        "sampled",
        advantages=torch.tensor([[1.0], [2.0], [3.0]]),
        logprobs_after=torch.zeros(len(rows), 2),
        chain=torch.rand(len(rows), 3, 2, 4),
    )
    path = save_recording(tmp_path / "recordings", found)
    assert path.name == "rl-000007.safetensors"
    back = load_recording(path)
    for field in fields(found):
        one, other = getattr(found, field.name), getattr(back, field.name)
        same = np.array_equal(one, other) if isinstance(one, np.ndarray) else None
        assert same is not False, field.name
        if same is None and field.name != "measures":
            assert one == other, field.name
    assert back.measures["reach"].tolist() == [0, 1]
    assert list_recordings(tmp_path) == [path]


def test_a_recording_of_another_format_is_refused(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"seed": torch.zeros(1)}, tmp_path / "x.safetensors", {"format": "0"})
    with pytest.raises(ValueError, match="recording of format 0, this version reads 1"):
        load_recording(tmp_path / "x.safetensors")


def test_groups_that_disagree_come_first_and_come_whole():
    # group 0: both fail; group 1: one of two succeeds
    two = rollout([0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 2, 3])
    two = Rollout(**{**vars(two), "rewards": torch.tensor([0.0, 0.0, 1.0, 0.0])})
    assert choose_trajectories(two, 2).tolist() == [2, 3]
    assert choose_trajectories(two, 3).tolist() == [2, 3]
    assert choose_trajectories(two, 4).tolist() == [2, 3, 0, 1]
    assert choose_trajectories(two, 1).tolist() == [2, 3]


def test_without_groups_half_are_wins_and_the_rest_failures():
    alone = rollout([1, 1, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5], list(range(6)))
    assert choose_trajectories(alone, 4).tolist() == [0, 1, 3, 4]
    assert choose_trajectories(alone, 5).tolist() == [0, 1, 2, 3, 4]  # there are but two failures
    assert choose_trajectories(alone, 100).tolist() == [0, 1, 2, 5, 3, 4]


def test_a_plan_adds_up_moves_within_their_limits():
    action = np.array([[0.01, 0, 0, 1], [0.2, -0.02, 0, 1]])
    path = planned_path(action, np.array([0.5, 0.0, 0.1, 0, 0, 0]), SPEC)
    # the second move is cut to .05
    np.testing.assert_allclose(path, [[0.5, 0, 0.1], [0.51, 0, 0.1], [0.56, -0.02, 0.1]])


def test_damaged_recordings_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from vla.viewer.library import EpisodeLibrary

    rows = rollout([1, 0], [0, 0], [0, 1, 0])
    for number in range(6):
        save_recording(
            tmp_path / "recordings",
            record_trajectories(rows, torch.tensor([1, 0]), "rl", number, {"task": "x"}, "s"),
        )
    files = list_recordings(tmp_path)
    for file, change in zip(
        files[1:],
        (
            lambda b: b[:-9],
            lambda b: b"",
            lambda b: bytes(300),
            lambda b: b[:-3] + b"abc",
            lambda b: b[:200],
        ),
        strict=True,
    ):
        file.write_bytes(change(file.read_bytes()))
    library = EpisodeLibrary(tmp_path, lambda *_: [], {})
    assert len(library.summaries()) == 2
    assert len(library.left_out) == 5
    assert all(
        str(file) in reason
        for file, reason in zip(files[1:], library.list_episodes()["left_out"], strict=True)
    )
    said = capsys.readouterr().err
    assert said.count("left out, ") == 5
    assert "left out, 5 of 6 recordings so far: " in said
    library.summaries()
    assert capsys.readouterr().err == ""

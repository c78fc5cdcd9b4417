"""Collecting: the first seeds that succeed, whatever the number of environments and wherever it was
interrupted."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from vla.data.collection import collect, dataset_spec
from vla.data.demonstrations import open_demonstrations
from vla.data.lerobot_writer import LeRobotWriter


@dataclass(frozen=True)
class Spec:
    names: tuple[str, ...] = ("dx",)
    control_hz: float = 20.0

    def to_dict(self):
        return {"names": list(self.names), "control_hz": self.control_hz}


class Counter:
    """An episode of seed s lasts 2 + s % 4 control steps and fails where 5 divides s; images show s
    and the step."""

    cameras, image_size, action_spec = ("front",), 16, Spec()

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.seed, self.time = np.zeros(num_envs, int), np.zeros(num_envs, int)
        self.rendered = 0

    def reset(self, seeds, ids, *, render):
        assert not render
        self.seed[ids], self.time[ids] = seeds, 0

    def observe(self, ids):
        self.rendered += len(ids)
        image = np.zeros((len(ids), 16, 16, 3), np.uint8)
        image[..., 0], image[..., 1] = self.seed[ids, None, None], self.time[ids, None, None]
        proprio = np.repeat(self.time[ids, None], 7, axis=1).astype(np.float32)
        return SimpleNamespace(
            images={"front": image},
            proprio=proprio,
            instruction=[f"task {s}" for s in self.seed[ids]],
        )

    def step(self, actions, ids, *, render):
        np.testing.assert_array_equal(actions[:, 0, 0], 100 * self.seed[ids] + self.time[ids])
        self.time[ids] += 1
        ended = self.time[ids] == 2 + self.seed[ids] % 4
        return SimpleNamespace(
            terminated=ended,
            truncated=np.zeros_like(ended),
            success=ended & (self.seed[ids] % 5 > 0),
        )


class Expert:
    """The action is 100 s + t; its second is always disturbed."""

    def __init__(self, env):
        self.env, self.perturbed = env, np.zeros(env.num_envs, bool)

    def reset(self, ids):
        self.perturbed[ids] = False

    def act(self, ids):
        self.perturbed[ids] = self.env.time[ids] == 1
        return (100 * self.env.seed[ids] + self.env.time[ids])[:, None].astype(np.float32)


def run(folder, num_envs, num_episodes, **options):
    env = Counter(num_envs)
    writer = LeRobotWriter(folder, dataset_spec(env, "counter", "video", {"task": "count"}))
    report = collect(env, Expert(env), writer, num_episodes=num_episodes, first_seed=4, **options)
    return env, writer, report


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_the_first_successful_seeds_are_kept(tmp_path, num_envs):
    env, writer, report = run(tmp_path / "demos", num_envs, 6)
    # Seeds 4, 6, 7, 8, 9 and 11 succeed; 5 and 10 fail. Lengths 2 + s % 4: 2, 4, 5, 2, 3, 5; the
    # failures 3 and 4.
    assert writer.finished_seeds == {4, 6, 7, 8, 9, 11}
    assert (report.num_episodes, report.num_frames, report.num_failures) == (6, 21, 2)
    assert env.rendered == 21 + 3 + 4  # one look a control step, none after the last
    demos = open_demonstrations(writer.finish())
    assert demos.num_frames == 21
    # Row 2 is step 0 of seed 6.
    batch = demos.batch([2], horizon=3)
    assert batch.images["front"][0, 0, 0].tolist() == [6, 0, 0]
    assert batch.actions[0, :, 0].tolist() == [600, 601, 602]
    assert batch.action_mask[0].tolist() == [True, False, True]
    assert batch.instruction == ["task 6"]


def test_an_interrupted_collection_ends_with_the_same_episodes(tmp_path):
    class Stop(Exception):
        pass

    def stop(successes, failures):
        if successes == 3:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "demos", 4, 6, on_episode=stop)
    seen = []
    _, writer, report = run(
        tmp_path / "demos", 2, 6, on_episode=lambda successes, failures: seen.append(successes)
    )
    assert seen[0] == 3
    assert writer.finished_seeds == {4, 6, 7, 8, 9, 11}
    assert report.num_failures == 2


def test_an_expert_that_only_fails_is_given_up(tmp_path):
    env = Counter(8)
    env.step = lambda actions, ids, render: SimpleNamespace(
        terminated=np.zeros(len(ids), bool),
        truncated=np.ones(len(ids), bool),
        success=np.zeros(len(ids), bool),
    )
    writer = LeRobotWriter(tmp_path / "demos", dataset_spec(env, "counter", "video", {}))
    with pytest.raises(ValueError, match="expert failed on .* raise sim.max_steps"):
        collect(env, Expert(env), writer, num_episodes=10, first_seed=0)

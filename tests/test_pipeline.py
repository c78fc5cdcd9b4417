"""The whole command on a task of seconds: what a run leaves, and that stopping it anywhere changes
nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import vla.runtime
from sim.simulator import TabletopSimulator
from sim.vector import VectorEnvironment
from tests.settings_read import Reads, recorded_reads, without_effect
from vla.commands.train import main
from vla.config import load
from vla.evaluation.evaluate import evaluate_policy
from vla.evaluation.starts import StartManifest
from vla.pipelines.robot.policy import load_policy
from vla.policies.vla_policy import VlaPolicy
from vla.simulator import SceneSource, Simulator
from vla.training.checkpoint import last_checkpoint, load_checkpoint
from vla.training.metrics import read_metrics
from vla.training.progress import Progress
from vla.training.resumable_work import ResumableWork
from vla.training.run_folder import RunFolder

TINY = [
    "preset=smoke",
    "sim.robot=gantry",
    "sim.num_envs=4",
    "sim.image_size=32",
    "sim.num_threads=1",
    "sim.reward.reach=0.5",  # so that nobody has to succeed for there to be something to learn
    "model.checkpoint=null",
    "model.vision.width=16",
    "model.vision.depth=1",
    "model.vision.num_heads=2",
    "model.vision.stem_channels=[8,16,16]",
    "model.backbone.width=32",
    "model.backbone.depth=2",
    "model.backbone.num_heads=2",
    "model.backbone.intermediate=32",
    "policy.num_bins=16",
    "data.num_demonstrations=3",
    "data.expert_perturbation_probability=0.0",
    "data.num_question_scenes=8",
    "data.question_batch_size=4",
    "data.questions_per_scene=2",
    "grounding.num_steps=6",
    "grounding.batch_size=4",
    "grounding.pool_size=16",
    "grounding.num_new_scenes_per_step=1",
    "grounding.max_seconds=null",
    "sft.head_steps=5",
    "sft.head_only=false",
    "sft.num_steps=8",
    "sft.batch_size=8",
    "sft.evaluate_every=4",
    "sft.log_every=1",
    "sft.max_seconds=null",
    "sft.augment.shift_pixels=1",
    "sft.optimizer=muon",
    "algorithm=ppo",
    "algorithm.kl_coefficient=0.05",
    "rl.num_iterations=4",
    "rl.max_seconds=null",
    "rl.num_start_states=2",
    "rl.group_size=2",
    "rl.evaluate_every=2",
    "rl.schedule=cosine",
    "rl.warmup_iterations=1",
    "rl.num_critic_warmup_iterations=1",
    "rl.greedy_branching_every=2",
    "train.checkpoint_every=3",
    "evaluation.num_starts=4",
    "evaluation.num_validation_starts=2",
    "evaluation.num_videos=1",
    "train.tensorboard=false",
    "train.seed=3",
]


@pytest.fixture(scope="module", autouse=True)
def torch_may_be_loaded():
    """A script prepares its process before torch is loaded; here it is loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vla.runtime, "prepare", lambda num_threads, offline: None)
        yield


@pytest.fixture(scope="module")
def reads() -> Reads:
    return Reads()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, reads: Reads) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    with recorded_reads(reads):
        assert main([*TINY, f"run_dir={folder}"]) == 0
    return folder


def test_the_run_says_what_ended_its_iterations(finished: Path):
    assert results(finished)["rl"]["ended_by"] == "num_iterations"
    assert "RL ended by rl.num_iterations (4)" in (finished / "report.html").read_text()


def test_what_a_run_does_not_read_is_refused_by_name(finished: Path, reads: Reads):
    assert (
        without_effect(reads, TINY, {"mode", "run_dir", "resume", "train.checkpoint_seconds"})
        == set()
    )


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint of a stage, by its path."""
    return dict(tensors(load_checkpoint(last_checkpoint(folder / "checkpoints" / stage))))


def tensors(value, path=""):
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from tensors(inner, f"{path}/{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from tensors(inner, f"{path}/{i}")


def timeless(records: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in record.items() if "seconds" not in name}
        for record in records
    ]


def test_a_run_leaves_all_that_a_person_looks_at(finished):
    found = results(finished)
    stages = found["stages"]
    assert stages["demonstrations"]["num_episodes"] == 3
    assert stages["sft"]["num_steps"] == 8
    for when in ("before", "after"):
        for decoding in ("greedy", "sampled"):
            values = stages[f"evaluation_{when}"][decoding]
            assert len(values["items"]["value"]) == values["n"] == 4
            assert "95 % Wilson interval" in values["text"]
            assert ("greedy" if decoding == "greedy" else "temperature") in values["text"]
        videos = stages[f"videos_{when}"]["files"]
        assert videos
        assert all((finished / "videos" / name).stat().st_size > 1000 for name in videos)
    starts = json.loads((finished / "starts.json").read_text())
    assert (
        stages["evaluation_before"]["starts_sha256"]
        == stages["evaluation_after"]["starts_sha256"]
        == starts["sha256"]
    )
    assert set(found["comparison"]) == {"greedy", "sampled"}
    assert "p" in found["comparison"]["greedy"]["text"]
    seconds = found["seconds"]
    named = (
        "demonstrations",
        "model",
        "sft",
        "evaluation_before",
        "rl",
        "evaluation_after",
        "videos",
        "other",
    )
    assert sum(seconds[name] for name in named) == pytest.approx(seconds["total"], rel=1e-3)
    assert {"rl/rollout", "rl/update", "model/grounding"} <= set(seconds)
    assert 1e8 < found["peak_memory_bytes"] < 6e9
    assert found["model"]["num_draws"] % 4 == 0
    assert {p.name for p in (finished / "plots").glob("*.png")} >= {
        "success.png",
        "sft_loss.png",
        "time.png",
    }
    for name in ("config.yaml", "run.json", "policy.json", "tokenizer/tokenizer.json"):
        assert (finished / name).exists()


def test_a_run_writes_what_happened(finished):
    records = read_metrics(finished)
    assert [r["step"] for r in records if r["stage"] == "sft"] == list(range(1, 9))
    assert [r["step"] for r in records if "held_out_loss" in r] == [4, 8]
    rl = [r for r in records if r["stage"] == "rl"]
    assert [r["step"] for r in rl] == [1, 2, 3, 4]
    assert [r["step"] for r in rl if "validation_success" in r] == [2, 4]
    assert [("greedy_success" in r, "success" in r) for r in rl] == [
        (True, False),
        (False, True),
    ] * 2
    assert all(
        r["num_episodes"] == 4 < r["num_trajectories"] for r in rl
    )  # branches are trajectories too
    assert all(r["logprob_gap_max"] < 1e-4 for r in rl)
    assert all(r["num_optimizer_steps"] == 4 * 2 for r in rl)  # rl.epochs x rl.num_minibatches
    before, after = weights(finished, "sft"), weights(finished, "rl")
    moved = {
        name
        for name in before
        if name.startswith("/policy") and not torch.equal(before[name], after[name])
    }
    assert any("value_head" in name for name in moved)
    assert any("reader" in name for name in moved)
    assert not any("/model." in name for name in moved)  # rl.adapt=head


def test_a_finished_run_does_nothing_twice(finished, monkeypatch, capsys):
    def files():
        anew = (".png", ".json", ".html")
        return {
            p: p.stat().st_mtime_ns
            for p in finished.rglob("*")
            if p.is_file() and p.suffix not in anew
        }

    monkeypatch.setattr("vla.pipelines.robot.evaluation_stages.evaluate_policy", None)
    monkeypatch.setattr("vla.pipelines.robot.rl.evaluate_policy", None)
    before, stages, records = files(), results(finished)["stages"], read_metrics(finished)
    assert main([f"resume={finished}"]) == 0
    after = files()
    for path in (finished / "config.yaml", finished / "metrics.jsonl", finished / ".process"):
        after[path] = before.get(path)
    assert after == before
    assert results(finished)["stages"] == stages
    assert read_metrics(finished) == records
    assert "SFT" not in capsys.readouterr().out


class Interrupting:
    """Shows what it is told, and presses Ctrl-C when a stage has made so many steps."""

    def __init__(self, inner, name, done, at):
        self.inner, self.name, self.done, self.at = inner, name, done, at

    def advance(self, num_steps=1, **numbers):
        self.inner.advance(num_steps, **numbers)
        self.done += num_steps
        if self.at and self.name.startswith(self.at[0]) and self.done >= self.at[1]:
            self.at.clear()
            os.kill(os.getpid(), signal.SIGINT)

    def advance_to(self, done, **numbers):
        if done > self.done:
            self.advance(done - self.done, **numbers)

    def set_total(self, total):
        self.inner.set_total(total)


def press_control_c(monkeypatch, *at) -> list:
    """`at` is the name of a stage and a number of its steps, or "rollout" and a number of decisions
    in RL; the list is empty once it was pressed.
    """
    pending, original = list(at), Progress.bar

    @contextmanager
    def stage(self, name, total, done=0):
        with original(self, name, total, done) as inner:
            yield Interrupting(inner, name, done, pending)

    def save_if_due(self, state):
        if pending[:1] == ["rollout"] and self.folder.parent.name == "rl":
            pending[1] -= 1
            if pending[1] == 0:
                pending.clear()
                os.kill(os.getpid(), signal.SIGINT)
        original_save_if_due(self, state)

    original_save_if_due = ResumableWork.save_if_due
    monkeypatch.setattr(ResumableWork, "save_if_due", save_if_due)
    monkeypatch.setattr(Progress, "bar", stage)
    return pending


STOPS = [
    ("demonstrations", 1),
    ("grounding", 2),
    ("head pretraining", 3),
    ("SFT", 3),
    ("SFT", 7),
    ("evaluation before", 1),
    ("evaluation before", 5),
    ("rollout", 2),
    ("RL", 1),
    ("rollout", 3),
    ("RL", 3),
    ("evaluation after", 5),
]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The run of `finished`, stopped by Ctrl-C in every stage and continued each time."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    command = [*TINY, f"run_dir={folder}"]
    for stop in STOPS:
        with pytest.MonkeyPatch.context() as patch:
            pending = press_control_c(patch, *stop)
            assert main(command) == 130
            assert pending == [], stop
            assert "evaluation_after" not in results(folder).get("stages", {}), stop
        command = [f"resume={folder}"]
    assert main(command) == 0
    return folder


def test_stopping_anywhere_ends_with_the_same_weights(finished, interrupted):
    for stage in ("sft", "rl"):
        one, other = weights(finished, stage), weights(interrupted, stage)
        assert one.keys() == other.keys()
        different = [name for name in one if not torch.equal(one[name], other[name])]
        assert different == [], (stage, different)


def test_stopping_anywhere_ends_with_the_same_results(finished, interrupted):
    one, other = results(finished)["stages"], results(interrupted)["stages"]
    assert one == other
    assert results(finished)["comparison"] == results(interrupted)["comparison"]
    ours, theirs = (timeless(read_metrics(folder)) for folder in (finished, interrupted))
    assert ours == theirs
    assert len(json.loads((interrupted / "run.json").read_text())) == len(STOPS) + 1
    # Time adds up over the sessions.
    assert results(interrupted)["seconds"]["total"] > results(interrupted)["seconds"]["rl"] > 0
    frames = [
        np.sort([p.name for p in (folder / "videos").iterdir()]).tolist()
        for folder in (finished, interrupted)
    ]
    assert frames[0] == frames[1]


def continued(run: Path, folder: Path) -> Path:
    """A copy of an interrupted run to go on with."""
    shutil.copytree(run, folder)
    (folder / ".process").unlink()
    return folder


@pytest.fixture(scope="module")
def halfway(tmp_path_factory, finished) -> Path:
    """The run of `finished` on its demonstrations, stopped after the first of four iterations of
    RL."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    with pytest.MonkeyPatch.context() as patch:
        pending = press_control_c(patch, "RL", 1)
        assert main([*TINY, f"run_dir={folder}", f"data.path={finished / 'demonstrations'}"]) == 130
        assert pending == []
    return folder


def assert_goes_on(folder: Path, finished: Path) -> None:
    """After the trouble: it ends with the very weights of a run that had none."""
    assert main([f"resume={folder}"]) == 0
    one, other = weights(finished, "rl"), weights(folder, "rl")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert timeless(read_metrics(folder)) == timeless(read_metrics(finished))


def test_a_full_disk_is_said_and_nothing_is_lost(halfway, finished, tmp_path, monkeypatch, capsys):
    folder = continued(halfway, tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vla.training.checkpoint.write_state", full)
        patch.setattr(
            "vla.training.run_folder.write_atomically", full
        )  # whatever else is to be written fails as well
        patch.setattr(
            "vla.pipelines.robot.pipeline.open_run", lambda config, processes: RunFolder(folder)
        )
        with pytest.raises(SystemExit):
            main([f"resume={folder}"])
    error = capsys.readouterr().err
    assert "error: the disk is full, checkpoint" in error
    assert "step-000001 is intact: make room, then resume" in error
    assert_goes_on(folder, finished)


def test_a_corrupt_checkpoint_is_named_with_the_remedy(halfway, finished, tmp_path, capsys):
    folder = continued(halfway, tmp_path / "run")
    newest = last_checkpoint(folder / "checkpoints" / "rl")
    shutil.copytree(newest, newest.with_name("step-000002"))
    file = newest.with_name("step-000002") / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    with pytest.raises(SystemExit):
        main([f"resume={folder}"])
    error = capsys.readouterr().err
    assert "step-000002 is corrupt: policy.safetensors does not have the checksum" in error
    assert "the last good one is" in error
    assert "delete step-000002 and resume again" in error
    shutil.rmtree(file.parent)
    assert_goes_on(folder, finished)


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_numbers_that_are_none_are_said_and_nothing_is_lost(
    halfway, tmp_path, monkeypatch, capsys, where
):
    folder = continued(halfway, tmp_path / "run")
    kept = {
        path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()
    }
    stages = results(folder)["stages"]

    def broken_step(self, *arguments, **options):
        result = step(self, *arguments, **options)
        return dataclasses.replace(
            result, reward=np.where(np.arange(len(result.reward)) == 1, np.nan, result.reward)
        )

    def broken_score(self, *arguments):
        scores = score(self, *arguments)
        return dataclasses.replace(scores, logprobs=scores.logprobs * float("nan"))

    step, score = VectorEnvironment.step, VlaPolicy.score
    with monkeypatch.context() as patch:
        if where == "reward":
            patch.setattr(VectorEnvironment, "step", broken_step)
        else:
            patch.setattr(VlaPolicy, "score", broken_score)
        with pytest.raises(SystemExit):
            main([f"resume={folder}"])
    error = capsys.readouterr().err
    if where == "reward":
        assert re.search(
            r"error: iteration 1: the reward of 1 of 4 trajectories is not a number", error
        )
        assert "look at sim.reward" in error
        assert "checkpoint is intact" in error
    else:
        assert "error: loss is not finite: rollout rows" in error
        assert "lower the learning rate" in error
    assert {
        path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()
    } == kept
    assert results(folder)["stages"] == stages


def test_a_run_ends_with_a_policy_that_others_can_load(finished):
    config = load([f"resume={finished}"])
    world = TabletopSimulator(config.sim)
    policy, observer = load_policy(finished, config, world)
    seeds = StartManifest.load(finished / "starts.json").evaluation_seeds.tolist()
    result = evaluate_policy(policy, world.environment(), seeds, observer, temperature=None)
    reported = results(finished)["stages"]["evaluation_after"]["greedy"]
    assert result.to_dict()["items"]["value"] == reported["items"]["value"]
    assert result.mean_measure("return") == pytest.approx(reported["measures"]["return"])
    with pytest.raises(ValueError, match="holds no policy"):
        load_policy(finished / "videos", config, world)
    other = json.loads((finished / "policy.json").read_text())
    other["action_spec"]["control_hz"] = 10.0
    (finished / "policy.json").rename(finished / "policy.kept")
    (finished / "policy.json").write_text(json.dumps(other))
    try:
        with pytest.raises(
            ValueError, match=r"control_hz is 10.0 in the policy in .* but 20.0 is expected"
        ):
            load_policy(finished, config, world)
    finally:
        (finished / "policy.kept").replace(finished / "policy.json")


def test_the_simulator_is_a_world():
    world = TabletopSimulator(load(TINY).sim)
    assert isinstance(world, Simulator)
    assert isinstance(world.scenes(), SceneSource)
    assert world.environment() is world.environment()
    assert world.environment().observe().proprio.shape == (4, world.proprio_size)
    assert world.recorder(2).render_every_step
    assert world.recorder(2).num_envs == 2

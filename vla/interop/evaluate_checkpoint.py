"""The implementation of `vla-eval`: a checkpoint from its folder to results, page,
videos and recordings, or two checkpoints compared.

evaluation.json holds {"checkpoint", "starts", "conditions": [EvaluationResult], "changes":
[ResultComparison], "seconds_per_query", ...}; comparison.json holds {"a", "b", "starts",
"b_against_a": [ResultComparison]}. `vla.evaluation.result` documents the shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vla.build import resolve_device
from vla.config import load
from vla.config.robot import RobotConfig
from vla.config.simulation import Simulation
from vla.evaluation.checkpoint_settings import UNCHANGED, check_held_out, checkpoint_settings
from vla.evaluation.films import film_examples
from vla.evaluation.perturbation_sweep import (
    compare_with_nominal,
    evaluate_conditions,
    measure_query_seconds,
)
from vla.evaluation.result import EvaluationResult, ResultComparison, compare_results
from vla.evaluation.starts import StartManifest
from vla.files.writing import write_atomically, write_json
from vla.interop.hub.pretrained import local_folder
from vla.interop.lerobot.checkpoints import (
    DETERMINISTIC,
    lerobot_folder,
    open_policy,
    read_checkpoint_spec,
)
from vla.interop.lerobot.episode_tracking import make_tracking_simulators
from vla.pipelines.robot.pipeline import load_policy, start_manifest
from vla.pipelines.robot.recordings import record_evaluation
from vla.report.evaluation import comparison_page, evaluation_page
from vla.rl.protocols import Observe
from vla.simulator import MakeSimulator, Simulator
from vla.training.progress import Progress
from vla.training.run_folder import describe_environment, make_numbered_folder, to_plain
from vla.types import Rollout


@dataclass(frozen=True)
class EvaluationRequest:
    """The options of the command line: `settings` are key=value strings, `perturbations` names of
    the simulator's, `decoding` greedy, sampled or both."""

    settings: Sequence[str]
    perturbations: Sequence[str]
    decoding: str
    num_videos: int
    output: Path | None


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A policy with its settings and simulator, and the temperatures to evaluate it at (None:
    greedy)."""

    path: Path
    config: RobotConfig
    policy: Any
    observe: Observe
    world: Simulator
    make_world: MakeSimulator
    temperatures: Sequence[float | None]

    def held_out_starts(self) -> StartManifest:
        """The starts of the evaluation. Raises ValueError where training used one of them."""
        return check_held_out(start_manifest(self.config), self.path, self.config)


def load_checkpoint(
    path: Path, request: EvaluationRequest, make_world: MakeSimulator
) -> LoadedCheckpoint:
    """The final policy of a run, an exported policy (a folder or on the hub), or a checkpoint of
    LeRobot, in the simulator of its settings."""
    folder = local_folder(str(path))
    lerobot = lerobot_folder(folder)
    if lerobot is not None:
        return load_lerobot_checkpoint(lerobot, request, make_world)
    config = checkpoint_settings(folder, request.settings)
    world = make_world(config.sim)
    policy, observe = load_policy(folder, config, world)
    sampled = policy.temperature
    temperatures = {"greedy": [None], "sampled": [sampled], "both": [None, sampled]}
    return LoadedCheckpoint(
        folder, config, policy, observe, world, make_world, temperatures[request.decoding]
    )


def load_lerobot_checkpoint(
    folder: Path, request: EvaluationRequest, make_world: MakeSimulator
) -> LoadedCheckpoint:
    """A checkpoint of LeRobot.

    Raises ValueError where it was made for other cameras, states or actions than the simulator has,
    or does not have the requested decoding.
    """
    declaration = read_checkpoint_spec(folder)
    config = load([*declaration.settings(), *request.settings])
    assert isinstance(config, RobotConfig)
    placed = make_tracking_simulators(make_world)
    world: Any = placed(config.sim)
    declaration.check(world.action_spec, world.proprio_size)
    if declaration.dataset is None:
        Progress().print_line(
            f"  {folder} does not name its training starts, or its dataset is gone: cannot verify "
            "that the evaluation starts are held out"
        )
    policy, observe = open_policy(
        folder, config.sim.max_steps, str(resolve_device(config.train.device))
    )
    sampled = declaration.kind not in DETERMINISTIC
    if request.decoding == ("greedy" if sampled else "sampled"):
        raise ValueError(
            f"--decoding {request.decoding}: a {declaration.kind} policy of LeRobot has only one "
            "way to act"
        )
    temperatures = [policy.temperature if sampled else None]
    return LoadedCheckpoint(folder, config, policy, observe, world, placed, temperatures)


def run_evaluation(path: Path, request: EvaluationRequest, make_world: MakeSimulator) -> Path:
    """Evaluate one checkpoint; the folder of its files."""
    checkpoint = load_checkpoint(path, request, make_world)
    folder = new_folder(request.output or (path if path.exists() else Path()) / "evaluations")
    starts = checkpoint.held_out_starts()
    evaluation = evaluate_checkpoint(checkpoint, starts, request, folder)
    nominal = evaluation.results[0]
    films = film_examples(
        checkpoint.policy,
        checkpoint.world.recorder,
        checkpoint.observe,
        nominal,
        starts.evaluation_seeds,
        request.num_videos,
        folder / "videos",
    )
    captions = {
        f"{'win' if episode.success else 'failure'}, start {episode.seed}: {episode.instruction}": file
        for episode, file in films
    }
    page = evaluation_page(
        evaluation.results,
        evaluation.changes,
        evaluation.circumstances,
        {nominal.condition: captions},
        folder,
    )
    write_atomically(folder / "evaluation.html", page)
    return folder


def compare_checkpoints(
    first: Path, second: Path, request: EvaluationRequest, make_world: MakeSimulator
) -> Path:
    """Evaluate two checkpoints on the same starts, and compare the second with the first; the
    folder of the files.

    Raises ValueError when one was trained on a start that the other is evaluated on.
    """
    checkpoints = [load_checkpoint(path, request, make_world) for path in (first, second)]
    manifests = [checkpoint.held_out_starts() for checkpoint in checkpoints]
    check_same_starts(*manifests)
    folder = new_folder(request.output or (second if second.exists() else Path()) / "evaluations")
    one, two = (
        evaluate_checkpoint(checkpoint, manifests[0], request, folder / name)
        for name, checkpoint in zip("ab", checkpoints, strict=True)
    )
    tests = [compare_results(*pair) for pair in pair_results(one.results, two.results)]
    for test in tests:
        Progress().print_line(
            f"  {second} against {first}, {test.condition} ({test.decoding}): {test}"
        )
    comparison = {
        "a": str(first),
        "b": str(second),
        "b_against_a": tests,
        "starts": manifests[0].to_dict(),
    }
    write_json(folder / "comparison.json", to_plain(comparison))
    page = comparison_page(one.results, two.results, tests, one.circumstances, two.circumstances)
    write_atomically(folder / "comparison.html", page)
    return folder


def pair_results(
    first: Sequence[EvaluationResult], second: Sequence[EvaluationResult]
) -> list[tuple[EvaluationResult, EvaluationResult]]:
    """Results under the same condition and decoding; of any decoding where the two have none in
    common."""
    common = {result.decoding for result in first} & {result.decoding for result in second}
    return [
        (one, two)
        for one in first
        for two in second
        if one.condition == two.condition and (one.decoding == two.decoding or not common)
    ]


def check_same_starts(first: StartManifest, second: StartManifest) -> None:
    """Refuse two sets of starts that differ."""
    if first.sha256 == second.sha256:
        return
    wrong = [name for name in first.scene if first.scene[name] != second.scene.get(name)]
    named = (
        ", ".join(f"sim.{n} ({first.scene[n]} and {second.scene.get(n)})" for n in wrong)
        or "evaluation.eval_seeds"
    )
    raise ValueError(
        f"the two runs ask for different starts: {named} differ; give it once, beside --compare, for both"
    )


@dataclass(frozen=True)
class CheckpointEvaluation:
    """The results of a checkpoint by condition and decoding, every change against the nominal
    condition, and the facts that repeat them."""

    results: Sequence[EvaluationResult]
    changes: Sequence[ResultComparison]
    circumstances: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"conditions": self.results, "changes": self.changes, **self.circumstances}


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint, starts: StartManifest, request: EvaluationRequest, folder: Path
) -> CheckpointEvaluation:
    """The results of one checkpoint, written to `folder` with starts, recordings and what the
    viewer needs to know of the actions."""
    progress = Progress()
    progress.print_line(
        f"{checkpoint.path}: {starts.num_starts} starts of {checkpoint.config.sim.label}, "
        f"sha256 {starts.sha256[:12]}"
    )

    def record(result: EvaluationResult, rollout: Rollout, sim: Simulation) -> None:
        name = f"{result.condition.replace(' ', '_')}_{result.decoding}"
        record_evaluation(
            folder / "recordings", sim, checkpoint.policy, rollout, name, result.decoding
        )

    possible = (UNCHANGED, *checkpoint.config.sim.kind.perturbations)
    results = evaluate_conditions(
        checkpoint.policy,
        checkpoint.observe,
        checkpoint.config.sim,
        checkpoint.make_world,
        starts,
        [name for name in request.perturbations if name in possible],
        checkpoint.temperatures,
        progress,
        record,
    )
    seconds = measure_query_seconds(
        checkpoint.policy,
        checkpoint.observe,
        checkpoint.world,
        int(starts.evaluation_seeds[0]),
    )
    facts = {
        "checkpoint": str(checkpoint.path),
        "starts": starts.to_dict(),
        "seconds_per_query": seconds,
        **describe_environment(),
    }
    evaluation = CheckpointEvaluation(results, compare_with_nominal(results), facts)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "policy.json", to_plain({"action_spec": checkpoint.world.action_spec}))
    starts.save(folder / "starts.json")
    write_json(folder / "evaluation.json", to_plain(evaluation))
    return evaluation


def new_folder(parent: Path) -> Path:
    """A folder named by the time under `evaluations`, or the requested one."""
    parent.mkdir(parents=True, exist_ok=True)
    if parent.name != "evaluations":
        return parent
    return make_numbered_folder(parent, f"{datetime.now():%Y%m%d-%H%M%S}")

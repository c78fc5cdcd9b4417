"""Evaluation of a checkpoint, or of two on the same starts: the implementation of `vla-eval`.

`run_evaluation` writes results, page, videos and recordings of one checkpoint;
`compare_checkpoints` writes those of two, and their paired comparison.

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

from vla.config import load
from vla.config.robot import RobotConfig
from vla.config.simulation import Simulation
from vla.devices import choose_device
from vla.evaluation.checkpoint_settings import (
    check_held_out,
    checkpoint_settings,
    select_perturbations,
)
from vla.evaluation.example_videos import write_example_videos
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
from vla.interop.lerobot.episode_tracking import with_episode_tracking
from vla.pipelines.robot.pipeline import start_manifest
from vla.pipelines.robot.policy import load_policy
from vla.pipelines.robot.recordings import record_evaluation
from vla.report.evaluation import comparison_page, evaluation_page
from vla.rl.protocols import Observe, Policy
from vla.simulator import MakeSimulator, Simulator
from vla.training.progress import Progress
from vla.training.run_folder import describe_environment, make_numbered_folder, to_plain
from vla.types import Rollout


@dataclass(frozen=True)
class EvaluationRequest:
    """The options of the command line.

    Attributes:
        settings: key=value strings that replace settings of the run.
        perturb: "all", "none", or names of perturbations with commas.
        decoding: "greedy", "sampled" or "both".
        num_videos: films of successes, and as many of failures.
        output: folder to write to; None: `evaluations/TIME` in the folder of the run.
    """

    settings: Sequence[str]
    perturb: str
    decoding: str
    num_videos: int
    output: Path | None


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A policy with its settings, its simulator, and the conditions to evaluate it under.

    Attributes:
        perturbations: names of the simulator's perturbations; the first is "none".
        temperatures: a sampling temperature for each decoding; None is greedy decoding.
    """

    path: Path
    config: RobotConfig
    policy: Policy
    observe: Observe
    simulator: Simulator
    make_simulator: MakeSimulator
    perturbations: Sequence[str]
    temperatures: Sequence[float | None]

    def held_out_starts(self) -> StartManifest:
        """The starts of the evaluation.

        Raises:
            ValueError: training used one of them.
        """
        return check_held_out(start_manifest(self.config), self.path, self.config)


def load_checkpoint(
    path: Path, request: EvaluationRequest, make_simulator: MakeSimulator
) -> LoadedCheckpoint:
    """A checkpoint in the simulator of its settings.

    `path` is a run, an exported policy (a folder, or `user/name` on the hub), or a checkpoint of
    LeRobot.

    Raises:
        ValueError: there is no policy, a setting cannot be, or the simulator lacks a perturbation.
    """
    folder = local_folder(str(path))
    lerobot = lerobot_folder(folder)
    if lerobot is not None:
        return load_lerobot_checkpoint(lerobot, request, make_simulator)
    config = checkpoint_settings(folder, request.settings)
    perturbations = requested_perturbations(request, config)
    simulator = make_simulator(config.sim)
    policy, observe = load_policy(folder, config, simulator)
    sampled = policy.temperature
    temperatures: dict[str, list[float | None]] = {
        "greedy": [None],
        "sampled": [sampled],
        "both": [None, sampled],
    }
    return LoadedCheckpoint(
        folder,
        config,
        policy,
        observe,
        simulator,
        make_simulator,
        perturbations,
        temperatures[request.decoding],
    )


def requested_perturbations(request: EvaluationRequest, config: RobotConfig) -> list[str]:
    """The requested perturbations of the run's simulator; "none" comes first.

    Raises:
        ConfigError: the simulator has no perturbation of that name.
    """
    return select_perturbations(
        request.perturb, config.sim.kind.perturbations, config.sim.simulator
    )


def load_lerobot_checkpoint(
    folder: Path, request: EvaluationRequest, make_simulator: MakeSimulator
) -> LoadedCheckpoint:
    """A checkpoint of LeRobot in the simulator of the requested settings.

    Raises:
        ValueError: cameras, state or action differ from the simulator's; the requested decoding or
            perturbation does not exist.
    """
    declaration = read_checkpoint_spec(folder)
    config = load([*declaration.settings(), *request.settings])
    assert isinstance(config, RobotConfig)
    perturbations = requested_perturbations(request, config)
    make_tracking_simulator = with_episode_tracking(make_simulator)
    simulator = make_tracking_simulator(config.sim)
    declaration.check(simulator.action_spec, simulator.proprio_size)
    if declaration.dataset is None:
        Progress().print_line(
            f"  {folder} does not name its training starts, or its dataset is gone: cannot verify "
            "that the evaluation starts are held out"
        )
    policy, observe = open_policy(
        folder, config.sim.max_steps, str(choose_device(config.train.device))
    )
    sampled = declaration.kind not in DETERMINISTIC
    if request.decoding == ("greedy" if sampled else "sampled"):
        raise ValueError(
            f"--decoding {request.decoding}: a {declaration.kind} policy of LeRobot has only one "
            "way to act"
        )
    temperatures = [policy.temperature if sampled else None]
    return LoadedCheckpoint(
        folder,
        config,
        policy,
        observe,
        simulator,
        make_tracking_simulator,
        perturbations,
        temperatures,
    )


def run_evaluation(path: Path, request: EvaluationRequest, make_simulator: MakeSimulator) -> Path:
    """Evaluate one checkpoint and return the folder of its files."""
    checkpoint = load_checkpoint(path, request, make_simulator)
    folder = new_folder(request.output or (path if path.exists() else Path()) / "evaluations")
    starts = checkpoint.held_out_starts()
    evaluation = evaluate_checkpoint(checkpoint, starts, folder)
    nominal = evaluation.results[0]
    films = write_example_videos(
        checkpoint.policy,
        checkpoint.simulator.recorder,
        checkpoint.observe,
        nominal,
        starts.evaluation_seeds,
        request.num_videos,
        folder / "videos",
    )
    captions = {
        f"{'win' if episode.success else 'failure'}, "
        f"start {episode.seed}: {episode.instruction}": file
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
    first: Path, second: Path, request: EvaluationRequest, make_simulator: MakeSimulator
) -> Path:
    """Evaluate two checkpoints on the same starts, compare the second with the first, and return
    the folder of the files.

    Raises:
        ValueError: the starts of the two runs differ, or training of one used a start.
    """
    checkpoints = [load_checkpoint(path, request, make_simulator) for path in (first, second)]
    manifests = [checkpoint.held_out_starts() for checkpoint in checkpoints]
    check_same_starts(manifests[0], manifests[1])
    folder = new_folder(request.output or (second if second.exists() else Path()) / "evaluations")
    one, two = (
        evaluate_checkpoint(checkpoint, manifests[0], folder / name)
        for name, checkpoint in zip("ab", checkpoints, strict=True)
    )
    tests = [compare_results(a, b) for a, b in pair_results(one.results, two.results)]
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
    """Pairs of results under the same condition and decoding.

    Where the two checkpoints share no decoding, results of any decoding are paired.
    """
    common = {result.decoding for result in first} & {result.decoding for result in second}
    return [
        (one, two)
        for one in first
        for two in second
        if one.condition == two.condition and (one.decoding == two.decoding or not common)
    ]


def check_same_starts(first: StartManifest, second: StartManifest) -> None:
    """Refuse two sets of starts that differ.

    Raises:
        ValueError: names the settings that differ.
    """
    if first.sha256 == second.sha256:
        return
    differing = [name for name in first.scene if first.scene[name] != second.scene.get(name)]
    settings = (
        ", ".join(f"sim.{n} ({first.scene[n]} and {second.scene.get(n)})" for n in differing)
        or "evaluation.eval_seeds"
    )
    raise ValueError(
        f"the two runs have different starts: {settings} differ; give one value for both runs "
        "beside --compare"
    )


@dataclass(frozen=True)
class CheckpointEvaluation:
    """The evaluation of one checkpoint.

    Attributes:
        results: one for each condition and decoding; the first is the nominal condition.
        changes: paired comparisons of each perturbed condition with the nominal one.
        circumstances: checkpoint, starts, seconds per query, machine and libraries.
    """

    results: Sequence[EvaluationResult]
    changes: Sequence[ResultComparison]
    circumstances: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"conditions": self.results, "changes": self.changes, **self.circumstances}


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint, starts: StartManifest, folder: Path
) -> CheckpointEvaluation:
    """Evaluate one checkpoint under every requested condition, and write the files to `folder`.

    The files are evaluation.json, starts.json, recordings/, and policy.json, which holds the action
    spec for the viewer.
    """
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

    results = evaluate_conditions(
        checkpoint.policy,
        checkpoint.observe,
        checkpoint.config.sim,
        checkpoint.make_simulator,
        starts,
        checkpoint.perturbations,
        checkpoint.temperatures,
        progress,
        record,
    )
    seconds = measure_query_seconds(
        checkpoint.policy,
        checkpoint.observe,
        checkpoint.simulator,
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
    write_json(folder / "policy.json", to_plain({"action_spec": checkpoint.simulator.action_spec}))
    starts.save(folder / "starts.json")
    write_json(folder / "evaluation.json", to_plain(evaluation))
    return evaluation


def new_folder(parent: Path) -> Path:
    """Make a folder named by the time in a folder `evaluations`; any other `parent` is used
    itself."""
    parent.mkdir(parents=True, exist_ok=True)
    if parent.name != "evaluations":
        return parent
    return make_numbered_folder(parent, f"{datetime.now():%Y%m%d-%H%M%S}")

"""`vla-eval`: a checkpoint from its folder to results, page, videos and recordings; two
of them compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vla.build import resolve_device
from vla.config import load
from vla.config.robot import RobotConfig
from vla.config.simulation import Simulation
from vla.evaluate.page import comparison_page, evaluation_page
from vla.evaluate.settings import UNCHANGED, apart_from_training, settings_of
from vla.evaluate.starts import StartManifest
from vla.evaluate.summary import Judged, against, by_task, changes, summarize
from vla.evaluate.video import write_video
from vla.files.write import write_atomically, write_json
from vla.hub.pretrained import local_folder
from vla.lerobot.checkpoints import DETERMINISTIC, declared, lerobot_folder, open_policy
from vla.lerobot.places import placed_worlds
from vla.rl.protocols import Observe
from vla.stages.evaluation import record as film
from vla.stages.judging import judge, seconds_per_query
from vla.stages.recordings import record_evaluation
from vla.stages.robot import load_policy, start_manifest
from vla.stages.world import World
from vla.train.progress import Progress
from vla.train.run_folder import circumstances, new_folder_of, plain
from vla.types import Rollout

MakeWorld = Callable[[Simulation], World]


@dataclass(frozen=True)
class Asked:
    """What the command line asked for; `settings` are key=value strings, `perturbations` names of
    the simulator's."""

    settings: Sequence[str]
    perturbations: Sequence[str]
    decoding: str
    num_videos: int
    output: Path | None


@dataclass(frozen=True)
class Trial:
    """A checkpoint ready to be judged, in worlds made by `make_world`; `temperatures` to judge it
    at (None: greedy)."""

    path: Path
    config: RobotConfig
    policy: Any
    observe: Observe
    world: World
    make_world: MakeWorld
    temperatures: Sequence[float | None]


def open_trial(path: Path, asked: Asked, make_world: MakeWorld) -> Trial:
    """The policy that a run ended with, or that was exported or put on the hub, or one of
    LeRobot's, and the world its settings ask for.
    """
    folder = local_folder(str(path))
    theirs = lerobot_folder(folder)
    if theirs is not None:
        return open_theirs(theirs, asked, make_world)
    config = settings_of(folder, asked.settings)
    world = make_world(config.sim)
    policy, observe = load_policy(folder, config, world)
    sampled = policy.temperature
    temperatures = {"greedy": [None], "sampled": [sampled], "both": [None, sampled]}[asked.decoding]
    return Trial(folder, config, policy, observe, world, make_world, temperatures)


def open_theirs(folder: Path, asked: Asked, make_world: MakeWorld) -> Trial:
    """A LeRobot checkpoint; ValueError where it is made for other cameras, states or actions than
    the simulation has, or is asked for a decoding that it does not have.
    """
    told = declared(folder)
    config = load([*told.settings(), *asked.settings])
    assert isinstance(config, RobotConfig)
    placed = placed_worlds(make_world)
    world: Any = placed(config.sim)
    told.check(world.action_spec, world.proprio_size)
    if told.dataset is None:
        Progress().say(
            f"  {folder} does not say which starts it was trained on, or its dataset is gone: believe it"
        )
    policy, observe = open_policy(
        folder, config.sim.max_steps, str(resolve_device(config.train.device))
    )
    sampled = told.kind not in DETERMINISTIC
    if asked.decoding == ("greedy" if sampled else "sampled"):
        raise ValueError(
            f"--decoding {asked.decoding}: a {told.kind} policy of LeRobot has only one way to act"
        )
    return Trial(
        folder, config, policy, observe, world, placed, [policy.temperature if sampled else None]
    )


def try_run(path: Path, asked: Asked, make_world: MakeWorld) -> Path:
    """Judge one checkpoint; the folder with what came of it."""
    trial = open_trial(path, asked, make_world)
    folder = new_folder(asked.output or (path if path.exists() else Path()) / "evaluations")
    starts = apart_from_training(start_manifest(trial.config), trial.path, trial.config)
    result, _ = tried(trial, starts, asked, folder)
    finish(folder, starts, result, trial)
    nominal = result["conditions"][0]["condition"]
    films = {
        nominal: make_films(
            folder, trial, starts, result["conditions"][0]["outcomes"], asked.num_videos
        )
    }
    write_atomically(folder / "evaluation.html", evaluation_page(result, films, folder))
    return folder


def compare_runs(first: Path, second: Path, asked: Asked, make_world: MakeWorld) -> Path:
    """Judge two checkpoints on the same starts, and the second against the first start by start.

    Raises ValueError when one was trained on starts of which the other is to be judged.
    """
    trials = [open_trial(path, asked, make_world) for path in (first, second)]
    manifests = [
        apart_from_training(start_manifest(trial.config), trial.path, trial.config)
        for trial in trials
    ]
    check_same_starts(*manifests)
    folder = new_folder(asked.output or (second if second.exists() else Path()) / "evaluations")
    found = []
    for name, trial in zip("ab", trials, strict=True):
        found.append(tried(trial, manifests[0], asked, folder / name))
        finish(folder / name, manifests[0], found[-1][0], trial)
    tests = [against(one, two) for one, two in pairs(found[0][1], found[1][1])]
    for test in tests:
        Progress().say(
            f"  {second} against {first}, {test['condition']} ({test['decoding']}): {test['text']}"
        )
    result = {
        "a": str(first),
        "b": str(second),
        "b_against_a": tests,
        "starts": manifests[0].to_dict(),
    }
    write_json(folder / "comparison.json", plain(result))
    write_atomically(folder / "comparison.html", comparison_page(found[0][0], found[1][0], tests))
    return folder


def pairs(first: Sequence[Judged], second: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    """What was judged under the same condition, by the same decoding where the two have one in
    common."""
    common = {judged.decoding for judged in first} & {judged.decoding for judged in second}
    return [
        (one, two)
        for one in first
        for two in second
        if one.condition == two.condition and (one.decoding == two.decoding or not common)
    ]


def check_same_starts(first: StartManifest, second: StartManifest) -> None:
    """Refuse two sets of starts that are not one."""
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


def tried(
    trial: Trial, starts: StartManifest, asked: Asked, folder: Path
) -> tuple[dict[str, Any], list[Judged]]:
    """The numbers of one checkpoint, and the outcomes behind them; recordings are written as they
    come."""
    progress = Progress()
    progress.say(
        f"{trial.path}: {starts.num_starts} starts of {trial.config.sim.label}, sha256 {starts.sha256[:12]}"
    )

    def keep(judged: Judged, rollout: Rollout, sim: Simulation) -> None:
        name = f"{judged.condition.replace(' ', '_')}_{judged.decoding}"
        record_evaluation(folder / "recordings", sim, trial.policy, rollout, name, judged.decoding)

    possible = (UNCHANGED, *trial.config.sim.kind.perturbations)
    perturbations = [name for name in asked.perturbations if name in possible]
    found = judge(
        trial.policy,
        trial.observe,
        trial.config.sim,
        trial.make_world,
        starts,
        perturbations,
        trial.temperatures,
        progress,
        keep,
    )
    result = {
        "checkpoint": str(trial.path),
        "starts": starts.to_dict(),
        "conditions": [
            {**summarize(j), "decoding": j.decoding, "temperature": j.temperature} for j in found
        ],
        "changes": changes(found),
        "tasks": [row for j in found if j.condition == found[0].condition for row in by_task(j)],
        "seconds_per_query": seconds_per_query(
            trial.policy, trial.observe, trial.world, int(starts.evaluation_seeds[0])
        ),
        **circumstances(),
    }
    return result, found


def new_folder(parent: Path) -> Path:
    """A folder named by the time under `evaluations`, or the one that was asked for."""
    parent.mkdir(parents=True, exist_ok=True)
    return (
        new_folder_of(parent, f"{datetime.now():%Y%m%d-%H%M%S}")
        if parent.name == "evaluations"
        else parent
    )


def finish(folder: Path, starts: StartManifest, result: Mapping[str, Any], trial: Trial) -> None:
    """Write the numbers, the starts they come from, and what the viewer must know of the actions
    that it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "policy.json", plain({"action_spec": trial.world.action_spec}))
    starts.save(folder / "starts.json")
    write_json(folder / "evaluation.json", plain(result))


def make_films(
    folder: Path, trial: Trial, starts: StartManifest, outcomes: str, count: int
) -> dict[str, Path]:
    """Videos of the first wins and failures: {caption: file}."""
    seeds = starts.evaluation_seeds.tolist()
    chosen = [
        s
        for wanted in "10"
        for s in [s for s, o in zip(seeds, outcomes, strict=True) if o == wanted][:count]
    ]
    films = {}
    for episode in (
        film(trial.policy, trial.world.recorder(len(chosen)), chosen, trial.observe)
        if chosen
        else []
    ):
        verdict = "win" if episode.success else "failure"
        path = folder / "videos" / f"{verdict}-{episode.seed}.mp4"
        write_video(path, episode.frames, episode.instruction, episode.success)
        films[f"{verdict}, start {episode.seed}: {episode.instruction}"] = path
    return films

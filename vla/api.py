"""The Python API: `load_policy`, `make_env`, `train` and `evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla.acting import LoadedPolicy
    from vla.evaluation.result import EvaluationResult
    from vla.gym_env import VectorEnv


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        folder: folder of the run.
        results: values of its results.json.
    """

    folder: Path
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: folder with evaluation.json, evaluation.html and recordings.
        conditions: a result for every perturbation and decoding; the first is unperturbed.
    """

    folder: Path
    conditions: list[EvaluationResult]

    def __str__(self) -> str:
        return "\n".join(f"{each.condition}: {each}" for each in self.conditions)


def load_policy(name: str | Path, greedy: bool = True) -> LoadedPolicy:
    """Load a policy that is ready to act; no simulator is needed.

    Args:
        name: the folder of a run, of an exported policy or of a checkpoint of LeRobot, or
            `user/name` on the hub.
        greedy: True takes the most likely decision, False samples one.

    Raises:
        ValueError: there is no policy, or its files are damaged.
    """
    from vla.runtime import is_hub_name

    prepare_process(offline=not is_hub_name(str(name)))
    from vla.acting import LoadedPolicy
    from vla.interop.hub.pretrained import local_folder
    from vla.interop.lerobot.bundle import load_bundle
    from vla.interop.lerobot.checkpoints import lerobot_folder, open_policy, read_checkpoint_spec

    foreign = lerobot_folder(local_folder(str(name)))
    if foreign is not None:
        checkpoint = read_checkpoint_spec(foreign)
        policy, observe = open_policy(foreign, max_steps=0, device="cpu")
        return LoadedPolicy(
            policy,
            observe,
            checkpoint.cameras,
            [f"state_{i}" for i in range(checkpoint.state_size)],
            [f"action_{i}" for i in range(checkpoint.action_size)],
            greedy,
        )
    bundle = load_bundle(str(name))
    spec = bundle.policy_spec
    size = spec["image_size"]
    return LoadedPolicy(
        bundle.policy,
        bundle.observer,
        dict.fromkeys(spec["cameras"], (size, size)),
        spec.get("proprio_names") or [f"state_{i}" for i in range(bundle.proprio_size)],
        spec["action_spec"]["names"],
        greedy,
    )


def make_env(sim: str = "pick_place", num_envs: int = 1, **settings: Any) -> VectorEnv:
    """Make N environments of a simulator.

    Args:
        sim: an option of the group `sim`, e.g. "pick_place" or "gym".
        num_envs: environments N.
        settings: other settings of the section `sim`, e.g. `image_size=96`, `max_steps=40`.

    Raises:
        ValueError: a setting does not exist, or has a value that cannot be.
    """
    from vla.config.compose import apply_overrides, check_groups, compose_with_hydra
    from vla.config.simulation import read_section
    from vla.gym_env import VectorEnv
    from vla.simulator import make_simulator

    check_groups({"sim": sim})
    values = compose_with_hydra({"sim": sim})
    given = to_overrides("sim", {"num_envs": num_envs, **settings})
    section = read_section(apply_overrides(values, given)["sim"])
    return VectorEnv(make_simulator(section), num_envs)


def train(*overrides: str, **settings: Any) -> TrainedRun:
    """Train a policy as `vla-train` does, in this process.

    Args:
        overrides: `key=value` as on the command line, e.g. "preset=smoke", "rl.num_iterations=5".
        settings: the same as keywords: `sim="reach"`, `rl={"num_iterations": 5}`.

    Raises:
        ValueError: a setting cannot be; the message names it, its value and the remedy.
    """
    from vla.config import load
    from vla.files.reading import read_json

    given = [f"{key}={value}" for key, value in to_overrides("", settings).items()]
    config = load([*overrides, *given], say=lambda line: print(f"note: {line}", file=sys.stderr))
    prepare_process(offline=not config.needs_hub)
    if config.mode == "text":
        from vla.pipelines.text.run import run_in_folder
        from vla.training.distributed import init_processes
        from vla.training.run_folder import open_run

        processes = init_processes(config.train.device)
        folder = open_run(config, processes)
        run_in_folder(config, folder, None, processes)
    else:
        from vla.simulator import make_simulator

        simulator = make_simulator(config.sim)
        from vla.pipelines.robot.pipeline import run_robot

        folder = run_robot(config, simulator)
    return TrainedRun(folder.path, read_json(folder.results))


def evaluate(
    run: str | Path,
    num_starts: int | None = None,
    perturb: str = "none",
    decoding: str = "greedy",
    output: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure the success rates of a policy on held-out starts, as `vla-eval` does.

    Args:
        run: folder or hub name, as for `load_policy`.
        num_starts: number of starts; None: that of the settings of the run.
        perturb: "none", "all", or names of perturbations with commas.
        decoding: "greedy", "sampled" or "both".
        output: folder to write to; None: RUN/evaluations/TIME.
        settings: settings of the run to replace, e.g. `sim={"max_steps": 80}`.

    Raises:
        ValueError: there is no policy, a setting cannot be, or the simulator lacks a perturbation.
    """
    from vla.runtime import is_hub_name

    prepare_process(offline=not is_hub_name(str(run)))
    from vla.commands.evaluate import evaluate_from_options, parse
    from vla.evaluation.result import EvaluationResult
    from vla.files.reading import read_json

    given = to_overrides("", settings)
    if num_starts is not None:
        given["evaluation.num_starts"] = str(num_starts)
    words = [f"{key}={value}" for key, value in given.items()]
    flags = ["--perturb", perturb, "--decoding", decoding, "--videos", "0"]
    if output is not None:
        flags += ["--output", str(output)]
    folder = evaluate_from_options(parse([str(run), *words, *flags]))
    values = read_json(folder / "evaluation.json")
    return Evaluation(folder, [EvaluationResult.from_dict(each) for each in values["conditions"]])


def prepare_process(offline: bool) -> None:
    """Configure the process (threads, offline mode) unless torch has loaded already."""
    from vla import runtime

    if "torch" not in sys.modules:
        runtime.prepare(offline=offline)


def to_overrides(prefix: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to {dotted key: value as the command line writes it}."""
    from vla.config.explain import format_setting

    flat: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping):
            flat |= to_overrides(key, value)
        else:
            flat[key] = format_setting(value)
    return flat

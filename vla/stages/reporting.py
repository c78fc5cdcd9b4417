"""What a person looks at after a run: success before and after with intervals, videos, curves,
where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla.config.robot import RobotConfig
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.evaluate.starts import StartManifest
from vla.evaluate.success import SuccessRate, compare
from vla.rl.protocols import VectorEnvironment
from vla.sft.protocols import ImitablePolicy
from vla.stages.evaluation import Episodes, evaluate_policy, record
from vla.stages.grounding import Answers
from vla.stages.pretrain import judge
from vla.stages.rl import RlState
from vla.stages.texts import Texts
from vla.stages.world import World
from vla.train.distributed import own_share
from vla.train.metrics import read_metrics
from vla.train.pieces import Pieces, forget_pieces
from vla.train.run import Run

ANSWERED = {"before": "before SFT", "after": "after SFT", "after_rl": "after RL"}
NUM_ANSWERS = 1024
"""Scenes that a model is asked about before and after SFT, and after RL."""


def evaluation_stage(
    run: Run,
    name: str,
    config: RobotConfig,
    policy: ImitablePolicy,
    environment: VectorEnvironment,
    observer: Observer,
    starts: StartManifest,
) -> None:
    """Greedy and sampled success on the held-out starts, written with every start's outcome."""
    seeds = starts.evaluation_seeds.tolist()
    kinds = (True, False) if config.evaluation.sampled else (True,)
    num_own = len(own_share(seeds, run.processes))
    values: dict[str, Any] = {"starts_sha256": starts.sha256}
    pieces = Pieces(run, f"evaluation_{name}", run.results.get("rl", {}).get("num_iterations", 0))
    with run.progress.stage(f"evaluation {name} RL", num_own * len(kinds)) as bar:
        for greedy in kinds:
            ended = 0

            def advance(count: int) -> None:
                nonlocal ended
                if count > ended:
                    bar.advance(count - ended)
                    ended = count

            with run.timer("greedy" if greedy else "sampled"):
                episodes = evaluate_policy(
                    policy,
                    environment,
                    seeds,
                    observer,
                    greedy=greedy,
                    on_decision=advance,
                    processes=run.processes,
                    pieces=pieces,
                )
            advance(num_own)  # those that a session before this one lived
            values |= _rates(episodes, policy.temperature)
            run.check_stop()
    run.finish(f"evaluation_{name}", values)
    forget_pieces(run, f"evaluation_{name}")
    for decoding in ("greedy", "sampled"):
        if decoding in values:
            run.progress.say(f"  success {name} RL: {values[decoding]['text']}")
            for task, rate in values[decoding]["tasks"].items():
                run.progress.say(f"    {task}: {rate['text']}")


def answers_stage(
    run: Run,
    name: str,
    config: RobotConfig,
    policy: ImitablePolicy,
    encoder: QuestionEncoder,
    world: World,
) -> None:
    """What the model answers in words about held-out scenes; asked wherever training moves it,
    whether or not it is trained on questions too.
    """
    if not config.sim.kind.has_scenes or not run.processes.is_main:
        return
    with run.timer("answers"):
        found = judge(policy.model, encoder, world, min(NUM_ANSWERS, config.data.question_scenes))
    before = (
        run.results.get("stages", {}).get("answers_before", {}).get("outcomes")
        if name != "before"
        else None
    )
    told = {"when": ANSWERED[name], **tell_answers(found, before)}
    run.finish(f"answers_{name}", told)
    run.progress.say(f"  answers in words {told['when']}: {told.get('text', 'none asked for')}")
    if "against_before" in told:
        run.progress.say(f"    against before SFT: {told['against_before']}")


def texts_stage(run: Run, name: str, texts: Texts) -> None:
    """How well the model predicts held-out texts, wherever training moves it."""
    if not run.processes.is_main:
        return
    with run.timer("texts"):
        found = texts.perplexity()
    shown = {
        source: f"{value:.2f}" if value < 10_000 else f"{value:.2g}"
        for source, value in found.items()
    }
    run.finish(
        f"texts_{name}",
        {"when": ANSWERED[name], "perplexity": found, "text": shown, **texts.reader.results()},
    )
    texts.reader.tell(run.progress.say)
    told = ", ".join(f"{source} {value}" for source, value in shown.items())
    run.progress.say(f"  perplexity of held-out texts {ANSWERED[name]}: {told}")


def tell_answers(found: Answers, before: Sequence[bool] | None) -> dict[str, Any]:
    """The share of right answers with its interval, and against `before` question by question;
    means by kind."""
    if not found.outcomes:  # a world may ask for numbers only
        return {**found.means()}
    rate = SuccessRate.of(found.outcomes, None)
    told: dict[str, Any] = {
        "text": str(rate),
        **rate.to_dict(),
        "outcomes": found.outcomes,
        **found.means(),
    }
    if before is not None:
        told["against_before"] = str(compare(before, found.outcomes)).replace("starts", "answers")
    return told


def by_task(episodes: Episodes, temperature: float | None) -> dict[str, SuccessRate]:
    """Success by task, where several take turns: the environment then measures "task/success", NaN
    elsewhere."""
    found = {}
    for name, values in episodes.measures.items():
        task, _, term = name.rpartition("/")
        if task and term == "success":
            found[task] = SuccessRate.of(values[~np.isnan(values)] > 0.5, temperature)
    return {task: rate for task, rate in found.items() if rate.num_starts}


def _rates(episodes: Episodes, temperature: float) -> dict[str, Any]:
    drawn = None if episodes.greedy else temperature
    rate = SuccessRate.of(episodes.success, drawn)
    name = "greedy" if episodes.greedy else "sampled"
    return {
        name: {
            "text": str(rate),
            **rate.to_dict(),
            "mean_return": float(episodes.returns.mean()),
            "mean_decisions": float(episodes.num_decisions.mean()),
            "outcomes": "".join("1" if s else "0" for s in episodes.success),
            "tasks": {
                task: {"text": str(one), **one.to_dict()}
                for task, one in by_task(episodes, drawn).items()
            },
        }
    }


def outcomes(run: Run, name: str, decoding: str) -> list[bool]:
    """Success of every held-out start in a finished evaluation."""
    return [c == "1" for c in run.results["stages"][f"evaluation_{name}"][decoding]["outcomes"]]


def compare_stage(run: Run) -> None:
    """Before against after on the same starts, by a paired test."""
    evaluations = run.results["stages"]
    for decoding in ("greedy", "sampled"):
        if (
            decoding in evaluations["evaluation_before"]
            and decoding in evaluations["evaluation_after"]
        ):
            test = compare(outcomes(run, "before", decoding), outcomes(run, "after", decoding))
            run.results.setdefault("comparison", {})[decoding] = {
                "text": str(test),
                **test.to_dict(),
            }
            run.progress.say(f"  after against before ({decoding}): {test}")
    run.write()


def video_stage(
    run: Run,
    name: str,
    config: RobotConfig,
    policy: ImitablePolicy,
    world: World,
    observer: Observer,
    starts: StartManifest,
) -> None:
    """Videos of the first wins and failures of an evaluation."""
    from vla.evaluate.video import write_video

    count = config.evaluation.num_videos
    if count == 0 or run.done(f"videos_{name}") or not run.processes.is_main:
        return
    greedy = run.results["stages"][f"evaluation_{name}"]["greedy"]["outcomes"]
    seeds = starts.evaluation_seeds
    chosen = [
        int(s)
        for wanted in "10"
        for s in [s for s, c in zip(seeds, greedy, strict=True) if c == wanted][:count]
    ]
    files = []
    for episode in record(policy, world.recorder(len(chosen)), chosen, observer):
        path = (
            run.folder.videos
            / f"{name}-{'win' if episode.success else 'failure'}-{episode.seed}.mp4"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, episode.frames, episode.instruction, episode.success)
        files.append(path.name)
    run.finish(f"videos_{name}", {"files": files})


def plot_stage(run: Run, state: RlState, title: str, offset: float | None) -> None:
    """Success over iterations, losses, entropy, and where the time went, as PNG."""
    from vla.evaluate.plots import plot_curves, plot_success, plot_time

    if not run.processes.is_main:
        return
    plots = run.folder.plots
    plots.mkdir(parents=True, exist_ok=True)
    curves = {"validation starts, greedy": state.curve()}
    if curves["validation starts, greedy"]:
        plot_success(plots / "success.png", curves, title, "RL iteration", target=offset)
    records = read_metrics(run.folder.path)
    sft = [r for r in records if r["stage"] == "sft"]
    rl = [r for r in records if r["stage"] == "rl"]
    if sft:
        labels = {"action_loss": "training", "held_out_loss": "held-out demonstrations"}
        plot_curves(
            plots / "sft_loss.png", sft, labels, "Supervised fine-tuning", "step", "action loss"
        )
    if rl:
        plot_curves(
            plots / "training_success.png",
            rl,
            {"success": "training starts, sampled"},
            title,
            "iteration",
            "rate",
        )
        plot_curves(
            plots / "entropy.png", rl, {"entropy": "entropy"}, title, "iteration", "nats per draw"
        )
    run.write()  # the time of all sessions up to now
    plot_time(plots / "time.png", run.results["seconds"], "Where the time went")

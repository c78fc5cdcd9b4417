"""What a person looks at after a run: success before and after with intervals, videos, curves,
where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla.config.robot import RobotConfig
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.evaluation.evaluate import evaluate_policy
from vla.evaluation.result import EvaluationResult, compare_results, result_of_stage, success_result
from vla.evaluation.starts import StartManifest
from vla.pipelines.robot.cotraining_text import TextCoTraining
from vla.pipelines.robot.grounding import QuestionAnswers
from vla.pipelines.robot.pretrain_vlm import evaluate_answers
from vla.rl.protocols import VectorEnvironment
from vla.sft.protocols import ImitablePolicy
from vla.simulator import Simulator
from vla.statistics import SuccessRate
from vla.training.distributed import shard_rows
from vla.training.metrics import read_metrics
from vla.training.resumable_work import ResumableWork, remove_finished_work
from vla.training.run import Run

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
    num_own = len(shard_rows(seeds, run.processes))
    values: dict[str, Any] = {"starts_sha256": starts.sha256}
    pieces = ResumableWork(
        run, f"evaluation_{name}", run.results.get("rl", {}).get("num_iterations", 0)
    )
    with run.progress.bar(f"evaluation {name} RL", num_own * len(kinds)) as bar:
        for greedy in kinds:
            decoding, begun = ("greedy" if greedy else "sampled"), 0 if greedy else num_own
            with run.timer(decoding):
                result = evaluate_policy(
                    policy,
                    environment,
                    seeds,
                    observer,
                    temperature=None if greedy else policy.temperature,
                    on_decision=lambda ended, begun=begun: bar.advance_to(begun + ended),
                    processes=run.processes,
                    pieces=pieces,
                )
            bar.advance_to(begun + num_own)  # those that a session before this one ran
            values[decoding] = result.to_dict()
            run.check_stop()
    run.finish_stage(f"evaluation_{name}", values)
    remove_finished_work(run, f"evaluation_{name}")
    for decoding in ("greedy", "sampled"):
        if decoding in values:
            run.progress.print_line(f"  success {name} RL: {values[decoding]['text']}")
            for task, row in values[decoding]["groups"].items():
                run.progress.print_line(f"    {task}: {row['text']}")


def answers_stage(
    run: Run,
    name: str,
    config: RobotConfig,
    policy: ImitablePolicy,
    encoder: QuestionEncoder,
    world: Simulator,
) -> None:
    """What the model answers in words about held-out scenes; asked wherever training moves it,
    whether or not it is trained on questions too.
    """
    if not config.sim.kind.has_scenes or not run.processes.is_main:
        return
    with run.timer("answers"):
        num_scenes = min(NUM_ANSWERS, config.data.num_question_scenes)
        found = evaluate_answers(policy.model, encoder, world, num_scenes)
    stages = run.results.get("stages", {})
    before = None if name == "before" else stages.get("answers_before")
    told = {"when": ANSWERED[name], **tell_answers(found, before)}
    run.finish_stage(f"answers_{name}", told)
    run.progress.print_line(
        f"  answers in words {told['when']}: {told.get('text', 'none asked for')}"
    )
    if "against_before" in told:
        run.progress.print_line(f"    against before SFT: {told['against_before']}")


def texts_stage(run: Run, name: str, texts: TextCoTraining) -> None:
    """How well the model predicts held-out texts, wherever training moves it."""
    if not run.processes.is_main:
        return
    with run.timer("texts"):
        found = texts.perplexity()
    shown = {
        source: f"{value:.2f}" if value < 10_000 else f"{value:.2g}"
        for source, value in found.items()
    }
    run.finish_stage(
        f"texts_{name}",
        {"when": ANSWERED[name], "perplexity": found, "text": shown, **texts.reader.results()},
    )
    texts.reader.report_lines(run.progress.say)
    told = ", ".join(f"{source} {value}" for source, value in shown.items())
    run.progress.print_line(f"  perplexity of held-out texts {ANSWERED[name]}: {told}")


def tell_answers(found: QuestionAnswers, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The share of right answers with its interval, and means by kind. `before` is what the stage
    before SFT told: the result is compared with it question by question."""
    if not found.outcomes:  # a world may ask for numbers only
        return {**found.means()}
    kinds = [kind for kind in sorted(found.right) for _ in found.right[kind]]
    result = success_result(range(len(kinds)), found.outcomes, None, groups=tuple(kinds))
    told: dict[str, Any] = {"text": str(result), "result": result.to_dict(), **found.means()}
    if before is not None and "text" in before:
        first = EvaluationResult.from_dict(before.get("result", before))
        told["against_before"] = str(compare_results(first, result, noun="answers"))
    return told


def compare_stage(run: Run) -> None:
    """Before against after on the same starts, by a paired test."""
    stages = run.results["stages"]
    for decoding in ("greedy", "sampled"):
        before, after = (result_of_stage(stages, when, decoding) for when in ("before", "after"))
        if before is not None and after is not None:
            test = compare_results(before, after)
            run.results.setdefault("comparison", {})[decoding] = test.to_dict()
            run.progress.print_line(f"  after against before ({decoding}): {test}")
    run.write_results()


def video_stage(
    run: Run,
    name: str,
    config: RobotConfig,
    policy: ImitablePolicy,
    world: Simulator,
    observer: Observer,
    starts: StartManifest,
) -> None:
    """Videos of the first wins and failures of an evaluation."""
    from vla.evaluation.films import film_examples

    count = config.evaluation.num_videos
    if count == 0 or run.is_finished(f"videos_{name}") or not run.processes.is_main:
        return
    result = result_of_stage(run.results["stages"], name, "greedy")
    assert result is not None
    films = film_examples(
        policy,
        world.recorder,
        observer,
        result,
        starts.evaluation_seeds,
        count,
        run.folder.videos,
        f"{name}-",
    )
    run.finish_stage(f"videos_{name}", {"files": [path.name for _, path in films]})


def plot_stage(run: Run, validation: Sequence[tuple[float, SuccessRate]], title: str) -> None:
    """Success over iterations, losses, entropy, and where the time went, as PNG."""
    from vla.evaluation.plots import plot_curves, plot_success, plot_time

    if not run.processes.is_main:
        return
    plots = run.folder.plots
    plots.mkdir(parents=True, exist_ok=True)
    if validation:
        curves = {"validation starts, greedy": list(validation)}
        plot_success(plots / "success.png", curves, title, "RL iteration")
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
    run.write_results()  # the time of all sessions up to now
    plot_time(plots / "time.png", run.results["seconds"], "Where the time went")

"""Evaluation stages of a robot run: success, answers, perplexity, videos and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla.config.robot import RobotConfig
from vla.config.training import Evaluation
from vla.data.questions import QuestionEncoder
from vla.evaluation.evaluate import evaluate_policy
from vla.evaluation.example_videos import write_example_videos
from vla.evaluation.result import EvaluationResult, compare_results, stage_result, success_result
from vla.evaluation.starts import StartManifest
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.cotraining_text import TextCoTraining
from vla.pipelines.robot.grounding.answers import QuestionAnswers, evaluate_answers
from vla.policies.robot_policy import RobotPolicy
from vla.rl.protocols import Observe, VectorEnvironment
from vla.simulator import Simulator
from vla.statistics import SuccessRate
from vla.training.distributed import shard_rows
from vla.training.metrics import read_metrics
from vla.training.progress import ProgressBar
from vla.training.resumable_work import ResumableWork, remove_finished_work
from vla.training.run import Run

LANGUAGE_TIMES = {"before": "before SFT", "after": "after SFT", "after_rl": "after RL"}
"""Times of a language evaluation, and their names in text."""
MAX_ANSWERS = 1024
"""Most held-out scenes of a language evaluation, one question each."""


@dataclass(frozen=True)
class PolicyEvaluation:
    """A policy with the environments, starts and settings of its evaluation."""

    policy: RobotPolicy
    environment: VectorEnvironment
    observer: Observe
    starts: StartManifest
    settings: Evaluation


@dataclass(frozen=True)
class LanguageEvaluation:
    """A language model with the questions and texts of its evaluation."""

    model: VisionLanguageModel
    encoder: QuestionEncoder
    simulator: Simulator
    texts: TextCoTraining | None
    config: RobotConfig


def evaluation_stage(run: Run, name: str, evaluation: PolicyEvaluation) -> None:
    """Evaluate greedy (and sampled) decoding on the held-out starts; writes every outcome."""
    starts = evaluation.starts
    num_own_starts = len(shard_rows(starts.evaluation_seeds.tolist(), run.processes))
    decodings = ("greedy", "sampled") if evaluation.settings.sampled else ("greedy",)
    values: dict[str, Any] = {"starts_sha256": starts.sha256}
    pieces = ResumableWork(
        run, f"evaluation_{name}", run.results.get("rl", {}).get("num_iterations", 0)
    )
    with run.progress.bar(f"evaluation {name} RL", num_own_starts * len(decodings)) as bar:
        for number, decoding in enumerate(decodings):
            num_before = number * num_own_starts
            temperature = None if decoding == "greedy" else evaluation.policy.temperature
            with run.timer(decoding):
                result = _evaluate(run, evaluation, temperature, pieces, bar, num_before)
            # Counts the starts that an earlier session evaluated, too.
            bar.advance_to(num_before + num_own_starts)
            values[decoding] = result.to_dict()
            run.check_stop()
    run.finish_stage(f"evaluation_{name}", values)
    remove_finished_work(run, f"evaluation_{name}")
    for decoding in decodings:
        run.progress.print_line(f"  success {name} RL: {values[decoding]['text']}")
        for task, row in values[decoding]["groups"].items():
            run.progress.print_line(f"    {task}: {row['text']}")


def _evaluate(
    run: Run,
    evaluation: PolicyEvaluation,
    temperature: float | None,
    pieces: ResumableWork,
    bar: ProgressBar,
    num_before: int,
) -> EvaluationResult:
    """Evaluate one decoding; the bar stands at `num_before` when it begins."""

    def show_progress(num_ended: int) -> None:
        bar.advance_to(num_before + num_ended)

    return evaluate_policy(
        evaluation.policy,
        evaluation.environment,
        evaluation.starts.evaluation_seeds.tolist(),
        evaluation.observer,
        temperature=temperature,
        on_decision=show_progress,
        processes=run.processes,
        pieces=pieces,
    )


def language_stage(run: Run, name: str, language: LanguageEvaluation) -> None:
    """Evaluate the language model: answers about held-out scenes, and perplexity of texts."""
    answers_stage(run, name, language)
    if language.texts is not None:
        text_perplexity_stage(run, name, language.texts)


def answers_stage(run: Run, name: str, language: LanguageEvaluation) -> None:
    """Evaluate answers about held-out scenes, whether or not training includes questions."""
    config = language.config
    if not config.sim.kind.has_scenes or not run.processes.is_main:
        return
    with run.timer("answers"):
        num_scenes = min(MAX_ANSWERS, config.data.num_question_scenes)
        answers = evaluate_answers(language.model, language.encoder, language.simulator, num_scenes)
    stages = run.results.get("stages", {})
    before = None if name == "before" else stages.get("answers_before")
    values = {"when": LANGUAGE_TIMES[name], **summarize_answers(answers, before)}
    run.finish_stage(f"answers_{name}", values)
    run.progress.print_line(
        f"  answers in words {values['when']}: {values.get('text', 'no questions')}"
    )
    if "against_before" in values:
        run.progress.print_line(f"    against before SFT: {values['against_before']}")


def text_perplexity_stage(run: Run, name: str, texts: TextCoTraining) -> None:
    """Measure the perplexity of held-out texts by source."""
    if not run.processes.is_main:
        return
    with run.timer("texts"):
        perplexity = texts.perplexity()
    text = {
        source: f"{value:.2f}" if value < 10_000 else f"{value:.2g}"
        for source, value in perplexity.items()
    }
    time = LANGUAGE_TIMES[name]
    values = {"when": time, "perplexity": perplexity, "text": text}
    run.finish_stage(f"texts_{name}", {**values, **texts.reader.results()})
    texts.reader.report_lines(run.progress.print_line)
    line = ", ".join(f"{source} {value}" for source, value in text.items())
    run.progress.print_line(f"  perplexity of held-out texts {time}: {line}")


def summarize_answers(answers: QuestionAnswers, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The accuracy with its interval, and means by kind of question.

    `before` holds the values of the stage before SFT; the outcomes are compared with its, question
    by question.
    """
    if not answers.outcomes:  # a simulator may have questions about numbers only
        return dict(answers.means())
    kinds = tuple(kind for kind in sorted(answers.right) for _ in answers.right[kind])
    result = success_result(range(len(kinds)), answers.outcomes, None, groups=kinds)
    values: dict[str, Any] = {
        "text": str(result),
        "result": result.to_dict(),
        **answers.means(),
    }
    if before is not None and "text" in before:
        first = EvaluationResult.from_dict(before.get("result", before))
        values["against_before"] = str(compare_results(first, result, noun="answers"))
    return values


def compare_stage(run: Run) -> None:
    """Compare success before and after RL on the same starts by a paired test."""
    stages = run.results["stages"]
    for decoding in ("greedy", "sampled"):
        before = stage_result(stages, "before", decoding)
        after = stage_result(stages, "after", decoding)
        if before is not None and after is not None:
            test = compare_results(before, after)
            run.results.setdefault("comparison", {})[decoding] = test.to_dict()
            run.progress.print_line(f"  after against before ({decoding}): {test}")
    run.write_results()


def video_stage(run: Run, name: str, evaluation: PolicyEvaluation, simulator: Simulator) -> None:
    """Write videos of the first successes and failures of an evaluation."""
    count = evaluation.settings.num_videos
    if count == 0 or run.is_finished(f"videos_{name}") or not run.processes.is_main:
        return
    result = stage_result(run.results["stages"], name, "greedy")
    assert result is not None
    videos = write_example_videos(
        evaluation.policy,
        simulator.recorder,
        evaluation.observer,
        result,
        evaluation.starts.evaluation_seeds,
        count,
        run.folder.videos,
        f"{name}-",
    )
    run.finish_stage(f"videos_{name}", {"files": [path.name for _, path in videos]})


def plot_stage(run: Run, validation: Sequence[tuple[float, SuccessRate]], title: str) -> None:
    """Plot success over iterations, losses, entropy and seconds by stage as PNG files."""
    from vla.evaluation.plots import plot_curves, plot_success, plot_time

    if not run.processes.is_main:
        return
    plots = run.folder.plots
    plots.mkdir(parents=True, exist_ok=True)
    if validation:
        curves = {"validation starts, greedy": list(validation)}
        plot_success(plots / "success.png", curves, title, "RL iteration")
    records = read_metrics(run.folder.path)
    sft = [record for record in records if record["stage"] == "sft"]
    rl = [record for record in records if record["stage"] == "rl"]
    if sft:
        labels = {"action_loss": "training", "held_out_loss": "held-out demonstrations"}
        sft_title = "Supervised fine-tuning"
        plot_curves(plots / "sft_loss.png", sft, labels, sft_title, "step", "action loss")
    if rl:
        labels = {"success": "training starts, sampled"}
        plot_curves(plots / "training_success.png", rl, labels, title, "iteration", "rate")
        labels = {"entropy": "entropy"}
        plot_curves(plots / "entropy.png", rl, labels, title, "iteration", "nats per draw")
    run.write_results()  # brings the seconds of all sessions up to date
    plot_time(plots / "time.png", run.results["seconds"], "Seconds by stage")

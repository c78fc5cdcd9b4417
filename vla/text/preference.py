"""Preference optimization: comparisons from a file, or sampled from the policy and judged, in rounds
(iterative DPO).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from vla.config.text import JudgeSettings, TextConfig, TextPreference
from vla.data.preferences import Ranking, read_preferences
from vla.files.write import write_atomically
from vla.preference.objective import KTO, PlackettLuce, make_objective, needs_reference
from vla.text.fit_stage import FitStage, constant
from vla.text.fitting import in_pieces
from vla.text.labelling import Labels, compare_by_judge, keep_clearest, make_judge
from vla.text.open_mode import OpenMode
from vla.text.preferring import (
    Comparison,
    LikedExample,
    comparison_logprobs,
    encode_ranking,
    encode_thumb,
    fit_comparisons,
    fit_thumbs,
    preference_accuracy,
)
from vla.train.run import Run

HELD_OUT = 0.1
"""Share of the comparisons kept for the accuracy that is reported."""


def run_preference(config: TextConfig, run: Run) -> dict[str, Any]:
    """Judge, fit in rounds, judge again."""
    settings = config.text
    assert isinstance(settings, TextPreference)
    objective = make_objective(**config.preference.model_dump())
    mode = OpenMode.start(config, run, settings.generation, settings.prompts, settings.gold)
    before, rounds = mode.judge("before"), []
    for number in range(settings.rounds):
        comparisons: Sequence[Comparison] | Sequence[LikedExample]
        if settings.comparisons is not None:
            comparisons, undecided = read_encoded(mode, settings.comparisons), 0
        else:
            comparisons, undecided = sample_comparisons(
                mode, settings.judge, settings.samples_per_prompt, number, isinstance(objective, PlackettLuce)
            )
            comparisons = keep_clearest(comparisons, settings.keep_fraction)
        name = f"fit {number + 1}" if settings.rounds > 1 else "fit"
        with FitStage(run, name, settings.fit.num_steps) as stage:
            numbers = fit_round(mode, comparisons, objective, settings, number, stage)
        rounds.append({"undecided prompts": undecided, **numbers})
        run.progress.say(f"round {number + 1}: {', '.join(f'{k} {v}' for k, v in rounds[-1].items())}")
    title = f"Preferences: {config.preference.name}"
    return mode.finish(title, before, {f"round {i + 1}": numbers for i, numbers in enumerate(rounds)})


def read_encoded(mode: OpenMode, source: str) -> list[Comparison] | list[LikedExample]:
    """Comparisons or thumbs of a file as token ids."""
    rows = read_preferences(source)
    if isinstance(rows[0], Ranking):
        return [encode_ranking(mode.parts.chat, row) for row in rows if isinstance(row, Ranking)]
    return [encode_thumb(mode.parts.chat, row) for row in rows if not isinstance(row, Ranking)]


def sample_comparisons(
    mode: OpenMode, judge: JudgeSettings, per_prompt: int, number: int, whole: bool = False
) -> tuple[list[Comparison], int]:
    """Completions of the training prompts, compared by the judge; how many prompts gave no comparison. The rankings
    are kept in the run's folder, as a file that `text.comparisons` reads.

    Raises ValueError when none did.
    """
    judging = make_judge(judge, mode.gold, mode.parts, mode.run.seed("labels"))
    answers = mode.answers(f"answers {number + 1}", mode.prompts.train, per_prompt)

    def judged() -> Labels:
        with mode.run.timer("judge"):
            return compare_by_judge(judging, answers, whole)

    labels: Labels = mode.run.kept(f"labels {number + 1}", Labels, judged)
    if not labels.comparisons:
        raise ValueError(
            f"the judge found no difference between any of {len(answers)} x {per_prompt} completions: raise"
            " text.generation.sampling.temperature or text.samples_per_prompt, or choose another judge"
        )
    lines = "".join(json.dumps(row) + "\n" for row in labels.rows)
    write_atomically(mode.run.folder.path / f"comparisons_{number + 1}.jsonl", lines)
    return labels.comparisons, labels.num_undecided


def fit_round(
    mode: OpenMode,
    comparisons: Sequence[Comparison] | Sequence[LikedExample],
    objective: Any,
    settings: TextPreference,
    number: int,
    stage: FitStage,
) -> dict[str, Any]:
    """Fit one round; how many comparisons, and how many held-out ones the policy orders right before and after."""
    fit, seed = mode.fit_settings(settings.fit), mode.run.seed("fit", number)
    if isinstance(comparisons[0], LikedExample):
        if not isinstance(objective, KTO):
            raise ValueError("text.comparisons holds thumbs, which only preference=kto can learn from")
        fit_thumbs(mode.learner, comparisons, objective, fit, seed, stage)  # type: ignore[arg-type]
        return {"thumbs": len(comparisons)}
    count = max(1, int(HELD_OUT * len(comparisons)))
    held_out, train = list(comparisons[:count]), list(comparisons[count:]) or list(comparisons)
    width = max(len(c.completions) for c in held_out)  # type: ignore[union-attr]

    def scored(rows: Sequence[int]) -> torch.Tensor:
        logprobs = comparison_logprobs(mode.learner, [held_out[i] for i in rows])[0]  # type: ignore[misc]
        return torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[1]))

    reference = None
    if needs_reference(objective):
        reference = constant(
            stage, "held-out reference", lambda: in_pieces(len(held_out), fit.micro_batch_size, scored)
        )
    fit_comparisons(mode.learner, train, objective, fit, seed, stage)  # type: ignore[arg-type]
    accuracy = preference_accuracy(mode.learner, held_out, reference, fit.micro_batch_size)  # type: ignore[arg-type]
    return {"comparisons": len(train), "held-out comparisons": len(held_out), "accuracy": accuracy}

"""Preference optimization: comparisons from a file, or sampled from the policy and judged, in
rounds (iterative DPO).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from vla.config.text import JudgeSettings, TextConfig, TextPreference
from vla.data.messages import prompt_key
from vla.data.preferences import Ranking, Thumb
from vla.data.rows import RowReader
from vla.files.write import write_atomically
from vla.preference.objective import Objective, PlackettLuce, make_objective, needs_reference
from vla.text.comparison_rows import encode_comparisons, read_comparisons, split_by_prompt
from vla.text.fit_stage import FitStage, constant
from vla.text.fitting import FitSettings, in_pieces
from vla.text.labelling import Labels, clearest, compare_by_judge, make_judge
from vla.text.open_mode import OpenMode
from vla.text.preferring import (
    Comparison,
    LikedExample,
    comparison_logprobs,
    fit_comparisons,
    fit_thumbs,
    preference_accuracy,
)
from vla.train.pieces import Pieces, kept
from vla.train.run import Run

KEPT = 0.75
"""Share of the sampled comparisons that are learned, those with the largest margins, where nothing
else is said."""


def run_preference(config: TextConfig, run: Run) -> dict[str, Any]:
    """Judge, fit in rounds, judge again."""
    settings = config.text
    assert isinstance(settings, TextPreference)
    objective = make_objective(**config.preference.model_dump())
    reader, read = RowReader(settings.on_bad_row), None
    if settings.comparisons is not None:
        held_out = settings.prompts.holdout_fraction
        read = read_comparisons(
            settings.comparisons, objective, held_out, settings.keep_fraction, reader
        )
    mode = OpenMode.start(config, run, settings.generation, settings.prompts, settings.gold, reader)
    given = None if read is None else encode_read(mode, settings.comparisons, read)
    before, rounds = mode.judge("before"), []
    for number in range(settings.rounds):
        comparisons, undecided = given, 0
        if comparisons is None:
            share, whole = settings.keep_fraction or KEPT, isinstance(objective, PlackettLuce)
            comparisons, undecided = sample_comparisons(
                mode, settings.judge, settings.samples_per_prompt, number, share, whole
            )
        numbers = fit_round(mode, comparisons, objective, settings, number)
        rounds.append({"undecided prompts": undecided, **numbers})
        run.progress.say(
            f"round {number + 1}: {', '.join(f'{k} {v}' for k, v in rounds[-1].items())}"
        )
    title = f"Preferences: {config.preference.name}"
    return mode.finish(
        title, before, {f"round {i + 1}": numbers for i, numbers in enumerate(rounds)}
    )


def encode_read(
    mode: OpenMode, source: str, rows: Sequence[Ranking | Thumb]
) -> list[Comparison] | list[LikedExample]:
    """Token ids of the rows of `text.comparisons`; what was left out is said."""
    found = encode_comparisons(mode.parts.chat, source, rows, mode.parts.context, mode.reader)
    mode.reader.tell(mode.run.progress.say)
    return found


def sample_comparisons(
    mode: OpenMode,
    judge: JudgeSettings,
    per_prompt: int,
    number: int,
    keep_fraction: float = 1.0,
    whole: bool = False,
) -> tuple[list[Comparison], int]:
    """Completions of the training prompts, compared by the judge, those with the largest margins
    kept; how many prompts gave no comparison. The rankings are kept in the run's folder, as a file
    that `text.comparisons` reads.

    Raises ValueError when none did.
    """
    judging = make_judge(judge, mode.gold, mode.parts, mode.run.seed("labels"))
    answers = mode.answers(f"answers {number + 1}", mode.prompts.train, per_prompt)

    def judged(pieces: Pieces) -> Labels:
        with mode.run.timer("judge"):
            return compare_by_judge(judging, answers, whole, pieces)

    labels: Labels = kept(mode.run, f"labels {number + 1}", Labels, judged)
    if not labels.comparisons:
        raise ValueError(
            f"the judge found no difference between any of {len(answers)} x {per_prompt} completions: raise"
            " text.generation.sampling.temperature or text.samples_per_prompt, or choose another judge"
        )
    clear = clearest([comparison.margin or 0.0 for comparison in labels.comparisons], keep_fraction)
    asked = {i: mode.prompts.asked(labels.rows[i]["prompt"]) for i in clear}
    lines = "".join(json.dumps({**labels.rows[i], "prompt": list(asked[i])}) + "\n" for i in clear)
    write_atomically(mode.run.folder.path / f"comparisons_{number + 1}.jsonl", lines)
    return [
        replace(labels.comparisons[i], key=prompt_key(asked[i])) for i in clear
    ], labels.num_undecided


def fit_round(
    mode: OpenMode,
    comparisons: Sequence[Comparison] | Sequence[LikedExample],
    objective: Objective,
    settings: TextPreference,
    number: int,
) -> dict[str, Any]:
    """Fit one round; how many comparisons, and what share of the held-out ones the policy orders
    right."""
    name, seed = f"fit {number + 1}" if settings.rounds > 1 else "fit", mode.run.seed("fit", number)
    if isinstance(comparisons[0], LikedExample):
        fit = FitSettings.of(settings.fit, len(comparisons))
        with FitStage(mode.run, name, fit.num_steps) as stage:
            fit_thumbs(mode.learner, comparisons, objective, fit, seed, stage)  # type: ignore[arg-type]
        return {"thumbs": len(comparisons), "epochs": round(fit.epochs(len(comparisons)), 3)}
    train, held_out = split_by_prompt(comparisons, settings.prompts.holdout_fraction)  # type: ignore[type-var]
    fit = FitSettings.of(settings.fit, len(train))
    counts = {"comparisons": len(train), "epochs": round(fit.epochs(len(train)), 3)}
    with FitStage(mode.run, name, fit.num_steps) as stage:
        reference = held_out_reference(mode, held_out, objective, fit, stage)
        fit_comparisons(mode.learner, train, objective, fit, seed, stage)
    if not held_out:
        mode.run.progress.say(
            f"all {len(train)} comparisons have one prompt: none is held out, there is no accuracy"
        )
        return {**counts, "held-out comparisons": 0, "accuracy": None}
    accuracy = preference_accuracy(mode.learner, held_out, reference, fit.micro_batch_size)
    return {**counts, "held-out comparisons": len(held_out), "accuracy": accuracy}


def held_out_reference(
    mode: OpenMode,
    held_out: Sequence[Comparison],
    objective: Objective,
    fit: FitSettings,
    stage: FitStage,
) -> torch.Tensor | None:
    """Log-probabilities of the held-out completions before the fit, where the objective has a
    reference."""
    if not held_out or not needs_reference(objective):
        return None
    width = max(len(comparison.completions) for comparison in held_out)

    def scored(rows: Sequence[int]) -> torch.Tensor:
        logprobs = comparison_logprobs(mode.learner, [held_out[i] for i in rows])[0]
        return torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[1]))

    return constant(
        stage, "held-out reference", lambda: in_pieces(len(held_out), fit.micro_batch_size, scored)
    )

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
from vla.text.fitting import in_pieces
from vla.text.labelling import compare_by_judge, keep_clearest, make_judge
from vla.text.open_run import OpenRun, Steps
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
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder

HELD_OUT = 0.1
"""Share of the comparisons kept for the accuracy that is reported."""


def run_preference(config: TextConfig, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Judge, fit in rounds, judge again."""
    settings = config.text
    assert isinstance(settings, TextPreference)
    objective = make_objective(**config.preference.model_dump())
    run = OpenRun.start(config, settings.generation, settings.prompts, settings.gold, folder, progress)
    before, rounds = run.judge("before"), []
    for number in range(settings.rounds):
        comparisons: Sequence[Comparison] | Sequence[LikedExample]
        if settings.comparisons is not None:
            comparisons, undecided = read_encoded(run, settings.comparisons), 0
        else:
            comparisons, undecided = sample_comparisons(
                run, settings.judge, settings.samples_per_prompt, number, isinstance(objective, PlackettLuce)
            )
            comparisons = keep_clearest(comparisons, settings.keep_fraction)
        with Steps(run, f"fit {number + 1}" if settings.rounds > 1 else "fit", settings.fit.num_steps) as on_step:
            numbers = fit_round(run, comparisons, objective, settings, number, on_step)
        rounds.append({"undecided prompts": undecided, **numbers})
        progress.say(f"round {number + 1}: {', '.join(f'{k} {v}' for k, v in rounds[-1].items())}")
    title = f"Preferences: {config.preference.name}"
    return run.finish(title, before, {f"round {i + 1}": numbers for i, numbers in enumerate(rounds)})


def read_encoded(run: OpenRun, source: str) -> list[Comparison] | list[LikedExample]:
    """Comparisons or thumbs of a file as token ids."""
    rows = read_preferences(source)
    if isinstance(rows[0], Ranking):
        return [encode_ranking(run.parts.chat, row) for row in rows if isinstance(row, Ranking)]
    return [encode_thumb(run.parts.chat, row) for row in rows if not isinstance(row, Ranking)]


def sample_comparisons(
    run: OpenRun, judge: JudgeSettings, per_prompt: int, number: int, whole: bool = False
) -> tuple[list[Comparison], int]:
    """Completions of the training prompts, compared by the judge; how many prompts gave no comparison. The rankings
    are kept in the run's folder, as a file that `text.comparisons` reads.

    Raises ValueError when none did.
    """
    judging = make_judge(judge, run.gold, run.parts, run.seed("labels"))
    torch.manual_seed(run.seed("samples", number))
    answers = run.say(run.prompts.train, per_prompt)
    with run.timer("judge"):
        labels = compare_by_judge(judging, answers, whole)
    if not labels.comparisons:
        raise ValueError(
            f"the judge found no difference between any of {len(answers)} x {per_prompt} completions: raise"
            " text.generation.sampling.temperature or text.samples_per_prompt, or choose another judge"
        )
    lines = "".join(json.dumps(row) + "\n" for row in labels.rows)
    write_atomically(run.folder.path / f"comparisons_{number + 1}.jsonl", lines)
    return labels.comparisons, labels.num_undecided


def fit_round(
    run: OpenRun,
    comparisons: Sequence[Comparison] | Sequence[LikedExample],
    objective: Any,
    settings: TextPreference,
    number: int,
    on_step: Any,
) -> dict[str, Any]:
    """Fit one round; how many comparisons, and how many held-out ones the policy orders right before and after."""
    fit, seed = run.fit_settings(settings.fit), run.seed("fit", number)
    if isinstance(comparisons[0], LikedExample):
        if not isinstance(objective, KTO):
            raise ValueError("text.comparisons holds thumbs, which only preference=kto can learn from")
        fit_thumbs(run.learner, comparisons, objective, fit, seed, on_step)  # type: ignore[arg-type]
        return {"thumbs": len(comparisons)}
    count = max(1, int(HELD_OUT * len(comparisons)))
    held_out, train = list(comparisons[:count]), list(comparisons[count:]) or list(comparisons)
    width = max(len(c.completions) for c in held_out)  # type: ignore[union-attr]

    def scored(rows: Sequence[int]) -> torch.Tensor:
        logprobs = comparison_logprobs(run.learner, [held_out[i] for i in rows])[0]  # type: ignore[misc]
        return torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[1]))

    reference = in_pieces(len(held_out), fit.micro_batch_size, scored) if needs_reference(objective) else None
    fit_comparisons(run.learner, train, objective, fit, seed, on_step)  # type: ignore[arg-type]
    accuracy = preference_accuracy(run.learner, held_out, reference, fit.micro_batch_size)  # type: ignore[arg-type]
    return {"comparisons": len(train), "held-out comparisons": len(held_out), "accuracy": accuracy}

"""Preference optimization: comparisons from a file, or sampled from the policy and judged, in
rounds (iterative DPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from vla.config.text import TextConfig, TextPreference
from vla.data.rows import RowReader
from vla.preference.objective import KTO, Objective, PlackettLuce, make_objective
from vla.sft.examples import example_settings
from vla.sft.stage import TrainingStage
from vla.text.comparison_rows import read_comparisons, split_by_prompt
from vla.text.comparison_sources import encode_file_rows, sample_comparisons
from vla.text.open_ended_run import OpenEndedRun
from vla.text.preference_training import (
    BinaryExample,
    Comparison,
    fit_comparisons,
    fit_kto,
    held_out_reference,
    preference_accuracy,
)
from vla.training.run import Run

DEFAULT_KEEP_FRACTION = 0.75
"""Share of the sampled comparisons that are learned, those with the largest margins, where nothing
else is said."""


def run_preference(config: TextConfig, run: Run) -> dict[str, Any]:
    """Evaluate, train in rounds, evaluate again."""
    settings = config.text
    assert isinstance(settings, TextPreference)
    objective = make_objective(**config.preference.model_dump())
    reader = RowReader(settings.on_bad_row)
    rows = None
    if settings.comparisons is not None:
        held_out = settings.prompts.holdout_fraction
        rows = read_comparisons(
            settings.comparisons, objective, held_out, settings.keep_fraction, reader
        )
    mode = OpenEndedRun.start(
        config, run, settings.generation, settings.prompts, settings.gold, reader
    )
    given = None if rows is None else encode_file_rows(mode, settings.comparisons, rows)
    before = mode.evaluate("before")
    results = {}
    for number in range(settings.rounds):
        comparisons, num_undecided = given, 0
        if comparisons is None:
            comparisons, num_undecided = sample_comparisons(
                mode,
                settings.judge,
                settings.samples_per_prompt,
                number,
                settings.keep_fraction or DEFAULT_KEEP_FRACTION,
                whole=isinstance(objective, PlackettLuce),
            )
        values = train_round(mode, comparisons, objective, settings, number)
        results[f"round {number + 1}"] = {"undecided prompts": num_undecided, **values}
        shown = ", ".join(f"{k} {v}" for k, v in results[f"round {number + 1}"].items())
        run.progress.print_line(f"round {number + 1}: {shown}")
    return mode.finish(f"Preferences: {config.preference.name}", before, results)


def train_round(
    mode: OpenEndedRun,
    comparisons: Sequence[Comparison] | Sequence[BinaryExample],
    objective: Objective,
    settings: TextPreference,
    number: int,
) -> dict[str, Any]:
    """Train one round; how many comparisons, and what share of the held-out ones the policy orders
    right."""
    run = mode.run
    name = f"fit {number + 1}" if settings.rounds > 1 else "fit"
    seed = run.seed("fit", number)
    if is_binary_feedback(comparisons):
        assert isinstance(objective, KTO), "rows were checked"
        training = example_settings(settings.fit, len(comparisons), "text.fit")
        with TrainingStage(run, name, training.num_steps) as stage:
            fit_kto(mode.training_policy, comparisons, objective, training, seed, stage)
        epochs = round(training.num_epochs(len(comparisons)), 3)
        return {"thumbs": len(comparisons), "epochs": epochs}
    train, held_out = split_by_prompt(comparisons, settings.prompts.holdout_fraction)  # type: ignore[type-var]
    training = example_settings(settings.fit, len(train), "text.fit")
    with TrainingStage(run, name, training.num_steps) as stage:
        reference = held_out_reference(mode.training_policy, held_out, objective, training, stage)
        fit_comparisons(mode.training_policy, train, objective, training, seed, stage)
    accuracy = None
    if held_out:
        accuracy = preference_accuracy(
            mode.training_policy, held_out, reference, training.rows_per_pass
        )
    else:
        run.progress.print_line(
            f"all {len(train)} comparisons have one prompt: none is held out, there is no accuracy"
        )
    return {
        "comparisons": len(train),
        "epochs": round(training.num_epochs(len(train)), 3),
        "held-out comparisons": len(held_out),
        "accuracy": accuracy,
    }


def is_binary_feedback(
    rows: Sequence[Comparison] | Sequence[BinaryExample],
) -> TypeGuard[Sequence[BinaryExample]]:
    """Whether the rows are single completions, liked or not."""
    return isinstance(rows[0], BinaryExample)

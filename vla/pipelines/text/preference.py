"""Preference optimization on comparisons of a file, or on sampled comparisons labelled by a judge.

Sampled comparisons are drawn anew from the policy in every round (iterative DPO).
"""

from __future__ import annotations

from collections.abc import Sequence

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
"""Share of sampled comparisons used for training where `text.keep_fraction` is null: those with the
largest margins."""


def run_preference(config: TextConfig, run: Run) -> dict[str, object]:
    """Evaluate, train in rounds, evaluate again; returns the results."""
    settings = config.text
    assert isinstance(settings, TextPreference)
    objective = make_objective(**config.preference.model_dump())
    reader = RowReader(settings.on_bad_row)
    path = settings.comparisons
    rows = None
    if path is not None:  # faults of the file are reported before the model is loaded
        holdout = settings.prompts.holdout_fraction
        rows = read_comparisons(path, objective, holdout, settings.keep_fraction, reader)
    open_ended = OpenEndedRun.start(
        config, run, settings.generation, settings.prompts, settings.gold, reader
    )
    stored: Sequence[Comparison | BinaryExample] | None = None
    if path is not None and rows is not None:
        stored = encode_file_rows(open_ended, path, rows)
    before = open_ended.evaluate("before")
    results: dict[str, object] = {}
    for number in range(settings.rounds):
        comparisons = stored
        num_undecided = 0
        if comparisons is None:
            comparisons, num_undecided = sample_comparisons(
                open_ended,
                settings.judge,
                settings.samples_per_prompt,
                number,
                settings.keep_fraction or DEFAULT_KEEP_FRACTION,
                whole=isinstance(objective, PlackettLuce),
            )
        values = train_round(open_ended, comparisons, objective, settings, number)
        values = {"undecided prompts": num_undecided, **values}
        results[f"round {number + 1}"] = values
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        run.progress.print_line(f"round {number + 1}: {text}")
    return open_ended.finish(f"Preferences: {config.preference.name}", before, results)


def train_round(
    open_ended: OpenEndedRun,
    rows: Sequence[Comparison | BinaryExample],
    objective: Objective,
    settings: TextPreference,
    number: int,
) -> dict[str, object]:
    """Train one round; returns the numbers of comparisons and the accuracy on those held out."""
    run = open_ended.run
    policy = open_ended.training_policy
    name = f"fit {number + 1}" if settings.rounds > 1 else "fit"
    seed = run.seed("fit", number)
    feedback = [row for row in rows if isinstance(row, BinaryExample)]
    if feedback:
        assert isinstance(objective, KTO), "read_comparisons refuses other objectives"
        training = example_settings(settings.fit, len(feedback), "text.fit")
        with TrainingStage(run, name, training.num_steps) as stage:
            fit_kto(policy, feedback, objective, training, seed, stage)
        return {"thumbs": len(feedback), "epochs": round(training.num_epochs(len(feedback)), 3)}
    comparisons = [row for row in rows if isinstance(row, Comparison)]
    train, held_out = split_by_prompt(comparisons, settings.prompts.holdout_fraction)
    training = example_settings(settings.fit, len(train), "text.fit")
    with TrainingStage(run, name, training.num_steps) as stage:
        reference = held_out_reference(policy, held_out, objective, training, stage)
        fit_comparisons(policy, train, objective, training, seed, stage)
    accuracy = None
    if held_out:
        accuracy = preference_accuracy(policy, held_out, reference, training.rows_per_pass)
    else:
        run.progress.print_line(
            f"no accuracy: all {len(train)} comparisons share one prompt, so none is held out"
        )
    return {
        "comparisons": len(train),
        "epochs": round(training.num_epochs(len(train)), 3),
        "held-out comparisons": len(held_out),
        "accuracy": accuracy,
    }

"""Constitutional AI (Bai 2022): the model critiques and revises its own answers, then learns them.

SFT on the last revisions comes first, then preference training of revisions over first answers.
"""

from __future__ import annotations

from vla.config.text import Constitution, TextConfig
from vla.preference.objective import make_objective
from vla.sft.examples import example_settings
from vla.sft.stage import TrainingStage
from vla.text.critique import Revision, complete_revisions, read_constitution, revise
from vla.text.open_ended_run import OpenEndedRun
from vla.text.preference_training import Comparison, fit_comparisons
from vla.text.prompts import Completion
from vla.text.sft_losses import Example, fit_examples
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


def run_constitution(config: TextConfig, run: Run) -> dict[str, object]:
    """Sample answers, revise them, then train by SFT and by preferences; returns the results.

    Raises:
        ValueError: no revision differs from its answer.
    """
    settings = config.text
    assert isinstance(settings, Constitution)
    objective = make_objective(**config.preference.model_dump())
    principles = read_constitution(settings.constitution)
    open_ended = OpenEndedRun.start(
        config, run, settings.generation, settings.prompts, settings.gold
    )
    before = open_ended.evaluate("before")
    answers = [
        completions[0]
        for completions in open_ended.sample_answers("answers", open_ended.prompts.train, 1)
    ]

    def make(pieces: ResumableWork) -> list[Revision]:
        with run.stage("revise"):
            return revise(open_ended, answers, principles, settings.rounds, pieces)

    revisions: list[Revision] = load_or_compute(run, "revised", list[Revision], make)
    examples = [Example(r.first.prompt_ids, r.last.ids) for r in complete_revisions(revisions)]
    comparisons = [
        Comparison(r.first.prompt_ids, (r.last.ids, r.first.ids))
        for r in complete_revisions(revisions)
        if r.last.ids != r.first.ids
    ]
    if not comparisons:
        raise ValueError(
            "no revision differs from its answer: give other principles, or a model that can revise"
        )
    sft = example_settings(settings.sft, len(examples), "text.sft")
    with TrainingStage(run, "sft", sft.num_steps) as stage:
        fit_examples(open_ended.training_policy, examples, sft, run.seed("sft"), stage)
    fit = example_settings(settings.fit, len(comparisons), "text.fit")
    with TrainingStage(run, "fit", fit.num_steps) as stage:
        fit_comparisons(
            open_ended.training_policy, comparisons, objective, fit, run.seed("fit"), stage
        )
    gold = {
        "first": mean_gold(open_ended, [r.first for r in revisions]),
        "last": mean_gold(open_ended, [r.last for r in revisions]),
    }
    results = {"revised answers": len(examples), "gold reward of answers": gold}
    return open_ended.finish(
        "Constitution: critique, revision, SFT and preference", before, results
    )


def mean_gold(open_ended: OpenEndedRun, answers: list[Completion]) -> float:
    """Mean gold reward of answers."""
    return sum(open_ended.gold(answer.prompt, answer.text) for answer in answers) / len(answers)

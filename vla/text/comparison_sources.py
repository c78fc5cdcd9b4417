"""Comparisons of a run: encoded from the rows of a file, or sampled and labelled by a judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from vla.config.text import JudgeSettings
from vla.data.messages import prompt_key
from vla.data.preferences import BinaryFeedback, Ranking
from vla.files.writing import write_atomically
from vla.text.comparison_rows import encode_comparisons
from vla.text.comparisons import LabelledComparisons, compare_by_judge, make_judge, select_clearest
from vla.text.open_ended_run import OpenEndedRun
from vla.text.preference_training import BinaryExample, Comparison
from vla.training.resumable_work import ResumableWork, load_or_compute


@overload
def encode_file_rows(
    open_ended: OpenEndedRun, source: str, rows: Sequence[Ranking]
) -> list[Comparison]: ...
@overload
def encode_file_rows(
    open_ended: OpenEndedRun, source: str, rows: Sequence[BinaryFeedback]
) -> list[BinaryExample]: ...
def encode_file_rows(
    open_ended: OpenEndedRun, source: str, rows: Sequence[Ranking] | Sequence[BinaryFeedback]
) -> list[Comparison] | list[BinaryExample]:
    """Token ids of the rows of `text.comparisons`; prints which rows were left out."""
    parts = open_ended.parts
    encoded = encode_comparisons(parts.chat, source, rows, parts.context, open_ended.reader)
    open_ended.reader.report_lines(open_ended.run.progress.print_line)
    return encoded


def sample_comparisons(
    open_ended: OpenEndedRun,
    judge: JudgeSettings,
    per_prompt: int,
    number: int,
    keep_fraction: float = 1.0,
    whole: bool = False,
) -> tuple[list[Comparison], int]:
    """(comparisons, number of prompts without one) of sampled completions, labelled by the judge.

    Of the comparisons, `keep_fraction` with the largest margins are used. Their rankings are also
    written to `comparisons_N.jsonl` of the run folder, a file that `text.comparisons` reads.

    Raises:
        ValueError: the judge found no difference on any prompt.
    """
    run = open_ended.run
    labeller = make_judge(judge, open_ended.gold, open_ended.parts, run.seed("labels"))
    answers = open_ended.sample_answers(
        f"answers {number + 1}", open_ended.prompts.train, per_prompt
    )

    def label(pieces: ResumableWork) -> LabelledComparisons:
        with run.timer("judge"):
            return compare_by_judge(labeller, answers, whole, pieces)

    labels: LabelledComparisons = load_or_compute(
        run, f"labels {number + 1}", LabelledComparisons, label
    )
    if not labels.comparisons:
        raise ValueError(
            f"the judge found no difference between any of {len(answers)} x {per_prompt} "
            "completions: raise text.generation.sampling.temperature or text.samples_per_prompt, "
            "or choose another judge"
        )
    clear = select_clearest(
        [comparison.margin or 0.0 for comparison in labels.comparisons], keep_fraction
    )
    messages = {i: open_ended.prompts.messages_for(labels.rows[i]["prompt"]) for i in clear}
    lines = [json.dumps({**labels.rows[i], "prompt": list(messages[i])}) + "\n" for i in clear]
    write_atomically(run.folder.path / f"comparisons_{number + 1}.jsonl", "".join(lines))
    comparisons = [replace(labels.comparisons[i], key=prompt_key(messages[i])) for i in clear]
    return comparisons, labels.num_undecided

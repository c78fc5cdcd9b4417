"""Where the comparisons of a run come from: the rows of a file, or completions of the policy that a
judge compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from vla.config.text import JudgeSettings
from vla.data.messages import prompt_key
from vla.data.preferences import BinaryFeedback, Ranking
from vla.files.writing import write_atomically
from vla.text.comparison_rows import encode_comparisons
from vla.text.comparisons import LabelledComparisons, compare_by_judge, make_judge, select_clearest
from vla.text.open_ended_run import OpenEndedRun
from vla.text.preference_training import BinaryExample, Comparison
from vla.training.resumable_work import ResumableWork, load_or_compute


def encode_file_rows(
    mode: OpenEndedRun, source: str, rows: Sequence[Ranking | BinaryFeedback]
) -> list[Comparison] | list[BinaryExample]:
    """Token ids of the rows of `text.comparisons`; what was left out is said."""
    found = encode_comparisons(mode.parts.chat, source, rows, mode.parts.context, mode.reader)
    mode.reader.report_lines(mode.run.progress.print_line)
    return found


def sample_comparisons(
    mode: OpenEndedRun,
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
    answers = mode.sample_answers(f"answers {number + 1}", mode.prompts.train, per_prompt)

    def judged(pieces: ResumableWork) -> LabelledComparisons:
        with mode.run.timer("judge"):
            return compare_by_judge(judging, answers, whole, pieces)

    labels: LabelledComparisons = load_or_compute(
        mode.run, f"labels {number + 1}", LabelledComparisons, judged
    )
    if not labels.comparisons:
        raise ValueError(
            f"the judge found no difference between any of {len(answers)} x {per_prompt} completions: raise"
            " text.generation.sampling.temperature or text.samples_per_prompt, or choose another judge"
        )
    clear = select_clearest(
        [comparison.margin or 0.0 for comparison in labels.comparisons], keep_fraction
    )
    asked = {i: mode.prompts.messages_for(labels.rows[i]["prompt"]) for i in clear}
    lines = "".join(json.dumps({**labels.rows[i], "prompt": list(asked[i])}) + "\n" for i in clear)
    write_atomically(mode.run.folder.path / f"comparisons_{number + 1}.jsonl", lines)
    return [
        replace(labels.comparisons[i], key=prompt_key(asked[i])) for i in clear
    ], labels.num_undecided

"""From sampled completions to comparisons: who judges, who wins, and which comparisons are worth
learning from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import torch
import yaml

from vla.config.text import JudgeSettings
from vla.data.prefix_tree import pack_texts
from vla.files.reading import read_yaml
from vla.generation.hf_decoder import (
    evaluation_mode,
    hidden_states,
    output_head,
    uses_full_attention,
)
from vla.preference.listwise import best_and_worst_index
from vla.rewards.gold_rewards import GoldReward
from vla.rewards.judges import (
    BothOrders,
    GoldJudge,
    Judge,
    ModelJudge,
    Rubric,
    UrlJudge,
    rank_by_judge,
)
from vla.text.language_model import LanguageParts
from vla.text.preference_training import Comparison
from vla.text.prompts import Completion
from vla.training.resumable_work import ResumableWork

BUILT_IN_RUBRIC = Rubric(
    principles=(
        "A better answer does what the question asks.",
        "A better answer is kind and polite.",
        "A better answer is short, clear and complete, and does not repeat itself.",
    ),
    examples=(
        (
            "What is a cup for?",
            "A cup is for drinking, for example warm tea.",
            "cup cup cup cup",
            "A",
        ),
        ("Greet a friend.", "Go away.", "Hello! It is lovely to see you.", "B"),
    ),
)
JUDGE_ROW_TOKENS = 1024
"""Of the tree of a judge's questions: the attention mask of a row is square."""


@dataclass(frozen=True)
class LabelledComparisons:
    """Comparisons with how many prompts gave none: all completions alike, a tie, or a judge that
    could not say.

    `rows`: the whole ranking behind each comparison, a row of a preference file: texts, scores, the
    token ids that were drawn and whether each completion ended by itself.
    """

    comparisons: list[Comparison]
    num_undecided: int
    rows: list[dict[str, Any]]


def make_judge(settings: JudgeSettings, gold: GoldReward, parts: LanguageParts, seed: int) -> Judge:
    """The judge that the settings name; models and servers are asked in both orders.

    Raises ValueError for a server without url or model, or a rubric that cannot be read.
    """
    match settings.name:
        case "gold":
            return GoldJudge(gold, settings.noise, seed)
        case "model":
            return BothOrders(ModelJudge(read_rubric(settings.rubric), LetterScorer(parts)))
        case "url":
            if not settings.url or not settings.model:
                raise ValueError(
                    f"text.judge.url ({settings.url}) and model ({settings.model}) are needed for judge.name=url"
                )
            return BothOrders(UrlJudge(settings.url, settings.model, read_rubric(settings.rubric)))
        case other:
            assert_never(other)


def read_rubric(path: str | None) -> Rubric:
    """Principles and examples from YAML: {principles: [...], examples: [{prompt, first, second,
    better: A}]}."""
    if path is None:
        return BUILT_IN_RUBRIC
    try:
        values = read_yaml(Path(path), remedy="give a rubric with principles and examples")
        examples = [
            (e["prompt"], e["first"], e["second"], e["better"]) for e in values.get("examples", [])
        ]
        return Rubric(tuple(values["principles"]), tuple(examples))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"text.judge.rubric ({path}) must be YAML with principles and examples: {error}"
        ) from error


class LetterScorer:
    """Log-probabilities of "A" and "B" as the model's next token, behind questions put as a user's
    message.

    The questions of a call go through the model as trees: the rubric, a prompt and a first answer
    are read once.
    """

    def __init__(self, parts: LanguageParts) -> None:
        self.parts = parts
        # the space before a letter belongs to it in most vocabularies
        self.letters = [parts.chat.encode(f" {letter}")[-1] for letter in ("A", "B")]
        if self.letters[0] == self.letters[1]:
            raise ValueError(
                "judge.name=model: the vocabulary has no tokens for the letters A and B: choose another judge"
            )

    @torch.no_grad()
    def __call__(self, questions: Sequence[str]) -> list[tuple[float, float]]:
        chat, model = self.parts.chat, self.parts.model
        beginning, letter = chat.encode("The better answer is"), self.letters[0]
        texts = []
        for question in questions:
            ids = [*chat.prompt([{"role": "user", "content": question}]), *beginning, letter]
            texts.append((ids, [False] * (len(ids) - 1) + [True]))
        room = max(JUDGE_ROW_TOKENS, *(len(ids) for ids, _ in texts))
        packed = pack_texts(
            texts,
            room,
            uses_full_attention(model),
            self.parts.device,
            self.parts.tree_attention,
        )
        rows = packed.rows
        with evaluation_mode(model):
            hidden = hidden_states(model, rows.tokens, rows.positions, rows.attention).flatten(
                0, 1
            )[rows.slots]
            logprobs = output_head(model)(hidden).float().log_softmax(-1)[:, self.letters]
        found = torch.empty_like(logprobs).index_copy(0, packed.sequence, logprobs)
        return [(a, b) for a, b in found.tolist()]


def compare_by_judge(
    judge: Judge,
    answers: Sequence[Sequence[Completion]],
    whole: bool = False,
    pieces: ResumableWork | None = None,
) -> LabelledComparisons:
    """The best and the worst completion of every prompt, with the difference of their scores as
    margin.

    `whole`: the ranking of all completions, of equally good ones the first. The scores of a prompt
    are one of `pieces`.
    """
    comparisons, undecided, rows = [], 0, []
    for completions in answers:
        ranked = partial(
            rank_by_judge, judge, completions[0].prompt, [said.text for said in completions]
        )
        scores = torch.tensor(
            ranked() if pieces is None else pieces.next_value(list[float], ranked)
        )
        found = best_and_worst_index(scores)
        if found is None or completions[found[0]].ids == completions[found[1]].ids:
            undecided += 1
            continue
        best, worst = found
        margin = float(scores[best] - scores[worst])
        distinct = {
            float(score): i for i, score in reversed(list(enumerate(scores))) if score == score
        }
        order = [distinct[score] for score in sorted(distinct, reverse=True)]
        row: dict[str, Any] = {
            "prompt": completions[0].prompt,
            "completions": [completions[i].text for i in order],
        }
        row |= {
            "scores": sorted(distinct, reverse=True),
            "completion_ids": [completions[i].ids for i in order],
        }
        rows.append({**row, "finished": [completions[i].finished for i in order]})
        ids = tuple(completions[i].ids for i in (order if whole else (best, worst)))
        comparisons.append(Comparison(completions[0].prompt_ids, ids, margin))
    return LabelledComparisons(comparisons, undecided, rows)


def select_clearest(margins: Sequence[float], fraction: float) -> list[int]:
    """The numbers of the share of the comparisons with the largest margins, in their own order; at
    least one."""
    count = max(1, round(fraction * len(margins)))
    ranked = sorted(range(len(margins)), key=lambda i: -margins[i])
    return sorted(ranked[:count])

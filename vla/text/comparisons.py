"""Comparisons from sampled completions: judge with built-in rubric, labels, selection by margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

import torch
import yaml
from typing_extensions import TypedDict

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
    BUILT_IN_RUBRIC,
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

JUDGE_ROW_TOKENS = 1024
"""Tokens in a packed row of the judge's questions; the attention mask of a row is square."""


class RankingRow(TypedDict):
    """A ranking as a row of a preference file; lists run from best to worst."""

    prompt: str
    completions: list[str]
    scores: list[float]
    completion_ids: list[list[int]]
    finished: list[bool]


@dataclass(frozen=True)
class LabelledComparisons:
    """Comparisons labelled by a judge, and the number of prompts without one.

    A prompt gives no comparison where all completions are alike, on a tie, and where the judge gave
    no label. `rows` holds the whole ranking behind each comparison as a row of a preference file:
    texts, scores, drawn token ids, and `finished`, False for truncated completions.
    """

    comparisons: list[Comparison]
    num_undecided: int
    rows: list[RankingRow]


def make_judge(settings: JudgeSettings, gold: GoldReward, parts: LanguageParts, seed: int) -> Judge:
    """The judge of `text.judge`; models and servers compare every pair in both orders.

    Raises:
        ValueError: `url` or `model` of a server is missing, or the rubric cannot be read.
    """
    match settings.name:
        case "gold":
            return GoldJudge(gold, settings.noise, seed)
        case "model":
            return BothOrders(ModelJudge(read_rubric(settings.rubric), LetterScorer(parts)))
        case "url":
            if not settings.url or not settings.model:
                raise ValueError(
                    f"text.judge.url ({settings.url}) and model ({settings.model}) are needed "
                    "for judge.name=url"
                )
            return BothOrders(UrlJudge(settings.url, settings.model, read_rubric(settings.rubric)))
        case other:
            assert_never(other)


def read_rubric(path: str | None) -> Rubric:
    """Principles and examples of a YAML file; the built-in rubric where `path` is None.

    The form is {principles: [...], examples: [{prompt, first, second, better: A}]}.

    Raises:
        ValueError: the file cannot be read or has another form.
    """
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
    """Log-probabilities (nats) of the answers "A" and "B" to questions, by a language model.

    The questions of a call are packed as prefix trees: rubric, prompt and first answer are encoded
    once.

    Raises:
        ValueError: the vocabulary has no two tokens for the letters.
    """

    def __init__(self, parts: LanguageParts) -> None:
        self.parts = parts
        # most vocabularies hold a letter together with the space before it
        self.letters = [parts.chat.encode(f" {letter}")[-1] for letter in ("A", "B")]
        if self.letters[0] == self.letters[1]:
            raise ValueError(
                "judge.name=model: the vocabulary has no tokens for the letters A and B: "
                "choose another judge"
            )

    @torch.no_grad()
    def __call__(self, questions: Sequence[str]) -> list[tuple[float, float]]:
        chat = self.parts.chat
        model = self.parts.model
        beginning = chat.encode("The better answer is")
        letter = self.letters[0]  # a stand-in: only the distribution before it is read
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
        by_question = torch.empty_like(logprobs).index_copy(0, packed.sequence, logprobs)
        return [(a, b) for a, b in by_question.tolist()]


def compare_by_judge(
    judge: Judge,
    answers: Sequence[Sequence[Completion]],
    whole: bool = False,
    pieces: ResumableWork | None = None,
) -> LabelledComparisons:
    """Comparisons of the best and the worst completion of every prompt, labelled by the judge.

    The margin is the difference of their scores. With `whole` a comparison is the ranking of all
    completions, the first of equal scores. The scores of a prompt are one of `pieces`.
    """
    comparisons: list[Comparison] = []
    rows: list[RankingRow] = []
    num_undecided = 0
    for completions in answers:
        texts = [completion.text for completion in completions]
        ranked = partial(rank_by_judge, judge, completions[0].prompt, texts)
        scores = torch.tensor(
            ranked() if pieces is None else pieces.next_value(list[float], ranked)
        )
        extremes = best_and_worst_index(scores)
        if extremes is None or completions[extremes[0]].ids == completions[extremes[1]].ids:
            num_undecided += 1
            continue
        best, worst = extremes
        margin = float(scores[best] - scores[worst])
        # reversed, so that the first of equal scores stays; NaN is no score
        distinct = {
            float(score): i for i, score in reversed(list(enumerate(scores))) if score == score
        }
        order = [distinct[score] for score in sorted(distinct, reverse=True)]
        rows.append(
            {
                "prompt": completions[0].prompt,
                "completions": [completions[i].text for i in order],
                "scores": sorted(distinct, reverse=True),
                "completion_ids": [completions[i].ids for i in order],
                "finished": [completions[i].finished for i in order],
            }
        )
        ids = tuple(completions[i].ids for i in (order if whole else (best, worst)))
        comparisons.append(Comparison(completions[0].prompt_ids, ids, margin))
    return LabelledComparisons(comparisons, num_undecided, rows)


def select_clearest(margins: Sequence[float], fraction: float) -> list[int]:
    """Indices, ascending, of the share `fraction` with the largest margins; at least one."""
    count = max(1, round(fraction * len(margins)))
    ranked = sorted(range(len(margins)), key=lambda i: -margins[i])
    return sorted(ranked[:count])

"""Who prefers which of two answers: a gold reward with noise, a language model, or a server that
speaks OpenAI's protocol.

A language model leans towards the answer it reads first, so `both_orders` asks twice and averages.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vla.rewards.gold_rewards import GoldReward
from vla.rewards.sample import UNSCORABLE


@runtime_checkable
class Judge(Protocol):
    """Gives the probability that `first` is the better answer to `prompt`; NaN when it cannot
    say."""

    def prefer(self, prompt: str, first: str, second: str) -> float: ...


AnswerPair = tuple[str, str, str]
"""A prompt and two answers to it."""


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that is faster when it is asked many things at once."""

    def prefer_all(self, cases: Sequence[AnswerPair]) -> list[float]: ...


def prefer_all(judge: Judge, cases: Sequence[AnswerPair]) -> list[float]:
    """The judge's answer to every case."""
    return (
        judge.prefer_all(cases)
        if isinstance(judge, BatchJudge)
        else [judge.prefer(*case) for case in cases]
    )


@dataclass(frozen=True)
class GoldJudge:
    """Prefers the answer with the higher gold reward; a share of `noise` of the labels is flipped,
    the same ones every time.
    """

    gold: GoldReward
    noise: float = 0.0
    seed: int = 0

    def prefer(self, prompt: str, first: str, second: str) -> float:
        difference = self.gold(prompt, first) - self.gold(prompt, second)
        label = 0.5 if difference == 0 else float(difference > 0)
        draw = random.Random(json.dumps([self.seed, prompt, *sorted((first, second))])).random()
        return 1 - label if draw < self.noise else label


@dataclass(frozen=True)
class ScriptedJudge:
    """A judge that is a function, for tests and for rules of one's own."""

    function: Callable[[str, str, str], float]

    def prefer(self, prompt: str, first: str, second: str) -> float:
        return self.function(prompt, first, second)


@dataclass(frozen=True)
class Rubric:
    """What a language model is told to judge by: principles, and solved examples (prompt, first,
    second, "A" or "B").
    """

    principles: Sequence[str]
    examples: Sequence[tuple[str, str, str, str]] = ()

    def question(self, prompt: str, first: str, second: str) -> str:
        """The text that asks for one letter."""
        rules = "\n".join(f"- {principle}" for principle in self.principles)
        solved = "".join(f"{_case(p, a, b)}{letter}\n\n" for p, a, b, letter in self.examples)
        return f"Which answer is better? Judge by these principles:\n{rules}\n\n{solved}{_case(prompt, first, second)}"


def _case(prompt: str, first: str, second: str) -> str:
    return f"Question: {prompt}\nAnswer A: {first.strip()}\nAnswer B: {second.strip()}\nThe better answer is "


@dataclass(frozen=True)
class ModelJudge:
    """A language model asked for "A" or "B": `letter_logprobs(questions)` gives their
    log-probabilities as its next token behind each question.
    """

    rubric: Rubric
    letter_logprobs: Callable[[Sequence[str]], Sequence[tuple[float, float]]]

    def prefer(self, prompt: str, first: str, second: str) -> float:
        return self.prefer_all([(prompt, first, second)])[0]

    def prefer_all(self, cases: Sequence[AnswerPair]) -> list[float]:
        letters = self.letter_logprobs([self.rubric.question(*case) for case in cases])
        return [1 / (1 + math.exp(min(b - a, 700))) for a, b in letters]


@dataclass(frozen=True)
class UrlJudge:
    """A server that answers OpenAI's chat completions at `url`; the key, where one is needed,
    stands in `key_variable`.

    Answers without a single A or B, and servers that do not answer in `timeout_seconds`, are NaN:
    unscorable.
    """

    url: str
    model: str
    rubric: Rubric
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 60.0

    def prefer(self, prompt: str, first: str, second: str) -> float:
        question = self.rubric.question(prompt, first, second) + "(answer with A or B only)"
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 4,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as reply:
                text = json.load(reply)["choices"][0]["message"]["content"]
        except (
            urllib.error.URLError,
            TimeoutError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            OSError,
        ):
            return UNSCORABLE
        letters = re.findall(r"\b[AB]\b", text or "")
        return float(letters[0] == "A") if len(set(letters)) == 1 else UNSCORABLE


@dataclass(frozen=True)
class BothOrders:
    """Asks a judge in both orders and averages, which cancels a lean towards the first or the
    second answer."""

    judge: Judge

    def prefer(self, prompt: str, first: str, second: str) -> float:
        return self.prefer_all([(prompt, first, second)])[0]

    def prefer_all(self, cases: Sequence[AnswerPair]) -> list[float]:
        turned = [(prompt, second, first) for prompt, first, second in cases]
        answers, count = prefer_all(self.judge, [*cases, *turned]), len(cases)
        return [
            (there + 1 - back) / 2
            for there, back in zip(answers[:count], answers[count:], strict=True)
        ]


def rank_by_judge(judge: Judge, prompt: str, completions: Sequence[str]) -> list[float]:
    """A score for each completion: the mean probability of being preferred to each of the others;
    NaN where a judgement is.
    """
    count = len(completions)
    pairs = list(itertools.combinations(range(count), 2))
    answers = prefer_all(judge, [(prompt, completions[i], completions[j]) for i, j in pairs])
    wins = [[0.0] * count for _ in range(count)]
    for (i, j), preference in zip(pairs, answers, strict=True):
        wins[i][j], wins[j][i] = preference, 1 - preference
    return [sum(row) / max(count - 1, 1) for row in wins]

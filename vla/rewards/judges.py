"""Judges that compare two answers, and the prompt of a language-model judge.

A judge is a gold reward with noise, a language model, or a server with OpenAI's protocol.

A language model prefers the answer that comes first (position bias); `BothOrders` averages over
both orders.
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
    """A comparison of two answers to a prompt."""

    def prefer(self, prompt: str, first: str, second: str) -> float:
        """The probability that `first` is better than `second`; NaN where the judge has none."""
        ...


AnswerPair = tuple[str, str, str]
"""A prompt and two answers to it."""


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that compares many pairs in one call."""

    def prefer_all(self, pairs: Sequence[AnswerPair]) -> list[float]: ...


def prefer_all(judge: Judge, pairs: Sequence[AnswerPair]) -> list[float]:
    """The judge's preference for every pair, in one call where the judge allows it."""
    return (
        judge.prefer_all(pairs)
        if isinstance(judge, BatchJudge)
        else [judge.prefer(prompt, first, second) for prompt, first, second in pairs]
    )


@dataclass(frozen=True)
class GoldJudge:
    """A judge by gold reward; a share of `noise` of its labels is flipped.

    The pair and the seed decide which ones, so a label is the same at every call.
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
    """A judge that is a function, for tests and for rules of a user."""

    function: Callable[[str, str, str], float]

    def prefer(self, prompt: str, first: str, second: str) -> float:
        return self.function(prompt, first, second)


@dataclass(frozen=True)
class Rubric:
    """The instructions of a language-model judge: principles and solved examples.

    An example is (prompt, first, second, "A" or "B").
    """

    principles: Sequence[str]
    examples: Sequence[tuple[str, str, str, str]] = ()

    def question(self, prompt: str, first: str, second: str) -> str:
        """The prompt whose completion is the letter of the better answer."""
        rules = "\n".join(f"- {principle}" for principle in self.principles)
        solved = "".join(
            f"{_format_pair(p, a, b)}{letter}\n\n" for p, a, b, letter in self.examples
        )
        return (
            f"Which answer is better? Judge by these principles:\n{rules}\n\n"
            f"{solved}{_format_pair(prompt, first, second)}"
        )


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


def _format_pair(prompt: str, first: str, second: str) -> str:
    return (
        f"Question: {prompt}\nAnswer A: {first.strip()}\nAnswer B: {second.strip()}\n"
        "The better answer is "
    )


@dataclass(frozen=True)
class ModelJudge:
    """A language model that answers "A" or "B".

    `letter_logprobs(questions)` gives the log-probabilities of both letters as the next token after
    each question. The preference is their softmax.
    """

    rubric: Rubric
    letter_logprobs: Callable[[Sequence[str]], Sequence[tuple[float, float]]]

    def prefer(self, prompt: str, first: str, second: str) -> float:
        return self.prefer_all([(prompt, first, second)])[0]

    def prefer_all(self, pairs: Sequence[AnswerPair]) -> list[float]:
        questions = [self.rubric.question(prompt, first, second) for prompt, first, second in pairs]
        # The bound keeps exp from overflowing.
        return [1 / (1 + math.exp(min(b - a, 700))) for a, b in self.letter_logprobs(questions)]


@dataclass(frozen=True)
class UrlJudge:
    """A server with OpenAI's chat completions at `url`.

    The environment variable `key_variable` holds the key, where the server needs one. The
    preference is NaN (unscorable) where the reply has no single A or B, or the server does not
    answer within `timeout_seconds`.
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
    """A judge averaged over both orders of the answers, which cancels its position bias."""

    judge: Judge

    def prefer(self, prompt: str, first: str, second: str) -> float:
        return self.prefer_all([(prompt, first, second)])[0]

    def prefer_all(self, pairs: Sequence[AnswerPair]) -> list[float]:
        swapped = [(prompt, second, first) for prompt, first, second in pairs]
        preferences = prefer_all(self.judge, [*pairs, *swapped])
        forward = preferences[: len(pairs)]
        backward = preferences[len(pairs) :]
        return [(p + 1 - q) / 2 for p, q in zip(forward, backward, strict=True)]


def rank_by_judge(judge: Judge, prompt: str, completions: Sequence[str]) -> list[float]:
    """Score each completion by its mean probability of being preferred to each of the others.

    A score is NaN where one of its comparisons is.
    """
    count = len(completions)
    pairs = list(itertools.combinations(range(count), 2))
    answers = prefer_all(judge, [(prompt, completions[i], completions[j]) for i, j in pairs])
    wins = [[0.0] * count for _ in range(count)]
    for (i, j), preference in zip(pairs, answers, strict=True):
        wins[i][j] = preference
        wins[j][i] = 1 - preference
    return [sum(row) / max(count - 1, 1) for row in wins]

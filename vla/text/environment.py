"""Text as an environment: a prompt is a start state, a completion an action, a verifier the reward.

It implements `vla.rl.protocols.VectorEnvironment`, so text and robot episodes are collected by the
same function. A seed is the number of a problem. Rewards come when an episode ends; the reward of
an answer that cannot be scored is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter

from vla.data.chat import ChatFormat
from vla.rewards.compose import CORRECT, RewardScores
from vla.rewards.sample import Sample
from vla.text.calculator import evaluate_calls
from vla.text.problem import Problem

ENDED_ITSELF = "ended itself"
"""Metric of an episode: 1 where its last completion ended with a stop token, 0 where truncated."""
Tool = Callable[[str], str | None]
"""Maps a completion to the answer of the tool; None where the tool was not called."""


@dataclass(frozen=True)
class TextResult:
    """The result of a step, one row per environment that acted.

    `observation` holds the prompt ids of the next decision; they are empty where the episode ended.
    """

    observation: list[list[int]]
    reward: Float[np.ndarray, "n"]
    terminated: Bool[np.ndarray, "n"]
    truncated: Bool[np.ndarray, "n"]
    success: Bool[np.ndarray, "n"]
    num_steps: Int[np.ndarray, "n"]
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class TextEpisode:
    """A finished episode for metrics and reports: problem, transcript, reward and its parts."""

    problem: Problem
    transcript: str
    sample: Sample
    reward: float
    parts: Mapping[str, float]

    @property
    def success(self) -> bool:
        return self.parts.get(CORRECT, 0.0) >= 1.0


EPISODES = TypeAdapter(list[TextEpisode])


@dataclass
class _Chat:
    """An unfinished episode: all token ids so far, and the texts of its turns."""

    problem: Problem
    ids: list[int]
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0


class TextEnvironment:
    """Problems as episodes. With a `tool` an episode has up to `max_turns` turns, else one.

    A truncated completion terminates the episode like any other: the limit is part of the task.
    Success is the result of the problem's own verifier, whatever the rewards are. `episodes` holds
    the finished episodes until `take_episodes`.

    Raises:
        ValueError: there are no problems, or `max_turns` does not fit `tool`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        chat: ChatFormat,
        rewards: Callable[[Sequence[Sample]], RewardScores],
        stop_ids: Sequence[int],
        num_envs: int,
        tool: Tool | None = None,
        max_turns: int = 1,
    ) -> None:
        if not problems:
            raise ValueError("there are no problems to ask")
        if max_turns < 1 or (tool is None and max_turns != 1):
            raise ValueError(
                f"max_turns ({max_turns}) must be 1 without a tool, and at least 1 with one"
            )
        self.problems = list(problems)
        self.chat = chat
        self.rewards = rewards
        self.stop_ids = frozenset(stop_ids)
        self.num_envs = num_envs
        self.tool = tool
        self.max_turns = max_turns
        self.episodes: list[TextEpisode] = []
        self._chats: dict[int, _Chat] = {}
        self._prompts: dict[int, list[int]] = {}

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> list[list[int]]:
        """Start problem `seeds[i]` in environment `ids[i]`; returns the prompts' token ids."""
        for env, seed in zip(self._rows(ids), seeds, strict=True):
            if seed not in self._prompts:
                self._prompts[seed] = self.chat.prompt(self.problems[seed].prompt_messages)
            self._chats[env] = _Chat(self.problems[seed], list(self._prompts[seed]))
        return [self._chats[env].ids for env in self._rows(ids)]

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> TextResult:
        """Apply completions, token ids [n, L] right-padded; unfinished rows get a new prompt."""
        rows = self._rows(ids)
        ended = np.zeros(len(rows), dtype=bool)
        samples: dict[int, Sample] = {}
        for i, (env, action) in enumerate(zip(rows, actions, strict=True)):
            sample = self._read(self._chats[env], [int(token) for token in action])
            if sample is not None:
                ended[i] = True
                samples[i] = sample
        reward = np.zeros(len(rows), np.float32)
        success = np.zeros(len(rows), bool)
        parts: Mapping[str, np.ndarray] = {}
        finished = np.full(len(rows), np.nan, np.float32)
        if samples:
            scores = self.rewards(list(samples.values()))
            at = list(samples)
            reward[at] = scores.total
            parts = {name: _at(values, at, len(rows)) for name, values in scores.parts.items()}
            finished = _at(
                np.array([sample.finished for sample in samples.values()]), at, len(rows)
            )
            for i, sample in samples.items():
                episode = self._finish(
                    rows[i], sample, float(reward[i]), {n: float(v[i]) for n, v in parts.items()}
                )
                success[i] = episode.success
        observation = [
            [] if over else self._chats[env].ids for env, over in zip(rows, ended, strict=True)
        ]
        return TextResult(
            observation,
            reward,
            terminated=ended,
            truncated=np.zeros(len(rows), bool),
            success=success,
            num_steps=np.ones(len(rows), np.int64),
            metrics={**parts, ENDED_ITSELF: finished},
        )

    def state_dict(self) -> dict[str, Any]:
        """The finished episodes since `take_episodes`.

        Unfinished episodes are not part of it: their actions are replayed.
        """
        return {"episodes": EPISODES.dump_python(self.episodes, mode="json")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes = EPISODES.validate_python(state["episodes"])

    def shard_settings(self) -> dict[str, Any]:
        """Nothing: the problems decide alone."""
        return {}

    def start_shard(self, iteration: int, number: int, settings: dict[str, Any]) -> None:
        """Drop the finished episodes in a worker, before a shard of the rollout."""
        self.episodes = []

    def add_shards(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over the finished episodes of the workers."""
        for state in states:
            self.episodes += EPISODES.validate_python(state["episodes"])

    def take_episodes(self) -> list[TextEpisode]:
        """Return the finished episodes since the last call, and clear them."""
        episodes = self.episodes
        self.episodes = []
        return episodes

    def _read(self, chat: _Chat, action: list[int]) -> Sample | None:
        """Append a completion to the chat; returns its sample, or None when the tool answers."""
        stop = next((i for i, token in enumerate(action) if token in self.stop_ids), None)
        finished = stop is not None
        completion = action if stop is None else action[: stop + 1]
        prompt = chat.ids
        text = self.chat.completion_text(completion)
        chat.ids = [*prompt, *completion]
        chat.texts.append(text)
        chat.num_tokens += len(completion)
        answer = None
        # texts alternate between completions and tool answers, so len // 2 turns are over
        if self.tool is not None and len(chat.texts) // 2 + 1 < self.max_turns:
            answer = self.tool(text)
        if answer is None:
            sample = chat.problem.sample(text, finished, chat.num_tokens)
            return replace(sample, prompt_ids=prompt, completion_ids=completion)
        chat.ids = [*chat.ids, *self.chat.next_turn({"role": "tool", "content": answer}, finished)]
        chat.texts.append(answer)
        return None

    def _finish(
        self, env: int, sample: Sample, reward: float, parts: dict[str, float]
    ) -> TextEpisode:
        chat = self._chats[env]
        episode = TextEpisode(chat.problem, "\n".join(chat.texts), sample, reward, parts)
        self.episodes.append(episode)
        return episode

    def _rows(self, ids: np.ndarray | None) -> list[int]:
        return list(range(self.num_envs)) if ids is None else [int(i) for i in ids]


def calculator_tool(text: str) -> str | None:
    """The calculator as a `Tool`: the result of the last <calc>expression</calc> of a text."""
    return evaluate_calls(text)


def _at(values: np.ndarray, rows: list[int], count: int) -> np.ndarray:
    """Values of some rows as an array of `count` rows, NaN elsewhere."""
    full = np.full(count, np.nan, np.float32)
    full[rows] = values
    return full

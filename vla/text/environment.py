"""Text as an environment: a prompt is a start, a completion an action, a verifier the reward.

Both environments obey `vla.rl.protocols.VectorEnvironment`, so text is collected by the same
function as a robot's episodes. A seed is the number of a problem. Rewards come when an episode
ends; NaN is unscorable.
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
"""Among the metrics of an episode: 1 where its last completion stopped, 0 where the length limit
cut it."""
Tool = Callable[[str], str | None]
"""From what the model said to what the tool answers; None when it was not called."""


@dataclass(frozen=True)
class TextResult:
    """What a call of the policy led to; rows as asked for. `observation` holds the prompt ids of
    the next decision, none where the episode has ended.
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
    """One finished episode, for metrics and reports: what was asked and said, the reward and its
    parts."""

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
    """An episode under way: the ids seen and said so far, and the texts."""

    problem: Problem
    ids: list[int]
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0


class TextEnvironment:
    """Problems asked and verified. With a `tool` the model may call it up to `max_turns - 1` times;
    without one an episode is one decision.

    A completion that the length limit cut ends like any other: the limit is part of the task.
    Success is what the problem's own verifier says, whatever the rewards are. `episodes` grows with
    every episode that ends; `take_episodes` empties it.
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
        self.problems, self.chat, self.rewards = list(problems), chat, rewards
        self.stop_ids, self.num_envs = frozenset(stop_ids), num_envs
        self.tool, self.max_turns = tool, max_turns
        self.episodes: list[TextEpisode] = []
        self._chats: dict[int, _Chat] = {}
        self._prompts: dict[int, list[int]] = {}

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> list[list[int]]:
        """Ask problem number `seeds[i]` in environment `ids[i]`; the prompts' ids."""
        for env, seed in zip(self._rows(ids), seeds, strict=True):
            if seed not in self._prompts:
                self._prompts[seed] = self.chat.prompt(self.problems[seed].prompt_messages)
            self._chats[env] = _Chat(self.problems[seed], list(self._prompts[seed]))
        return [self._chats[env].ids for env in self._rows(ids)]

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> TextResult:
        """Take completions, token ids [n, L] right-padded; rows that have not ended get a new
        prompt."""
        rows = self._rows(ids)
        ended, samples = np.zeros(len(rows), dtype=bool), {}
        for i, (env, action) in enumerate(zip(rows, actions, strict=True)):
            sample = self._read(self._chats[env], [int(token) for token in action])
            if sample is not None:
                ended[i], samples[i] = True, sample
        reward, success = np.zeros(len(rows), np.float32), np.zeros(len(rows), bool)
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
        truncated, one = np.zeros(len(rows), bool), np.ones(len(rows), np.int64)
        return TextResult(
            observation, reward, ended, truncated, success, one, {**parts, ENDED_ITSELF: finished}
        )

    def state_dict(self) -> dict[str, Any]:
        """The episodes that ended since `take_episodes`; those under way are repeated by what was
        said in them."""
        return {"episodes": EPISODES.dump_python(self.episodes, mode="json")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes = EPISODES.validate_python(state["episodes"])

    def take_episodes(self) -> list[TextEpisode]:
        """The episodes that ended since the last call."""
        episodes, self.episodes = self.episodes, []
        return episodes

    def _read(self, chat: _Chat, action: list[int]) -> Sample | None:
        """Put a completion behind the chat; a sample when the episode ends with it, None when a
        tool answered."""
        stop = next((i for i, token in enumerate(action) if token in self.stop_ids), None)
        finished = stop is not None
        said = action if stop is None else action[: stop + 1]
        asked, text = chat.ids, self.chat.completion_text(said)
        chat.ids = [*chat.ids, *said]
        chat.texts.append(text)
        chat.num_tokens += len(said)
        answer = (
            self.tool(text)
            if self.tool is not None and len(chat.texts) // 2 + 1 < self.max_turns
            else None
        )
        if answer is None:
            sample = chat.problem.sample(text, finished, chat.num_tokens)
            return replace(sample, prompt_ids=asked, completion_ids=said)
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
    """Answers the last <calc>expression</calc> of a text."""
    return evaluate_calls(text)


def _at(values: np.ndarray, rows: list[int], count: int) -> np.ndarray:
    full = np.full(count, np.nan, np.float32)
    full[rows] = values
    return full

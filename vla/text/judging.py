"""How good a policy is on problems it was not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float

from vla.decoding.best_of import majority
from vla.evaluate.success import SuccessRate
from vla.rewards.libraries import final_answer
from vla.rl.protocols import Observe, Policy
from vla.rl.rollout import collect_rollout
from vla.text.environment import Episode, TextEnvironment
from vla.text.report import Pair
from vla.train.agreement import failing_together
from vla.train.distributed import ALONE, Processes, in_order, own_share
from vla.train.pieces import Pieces

JUDGING_TOKENS = 2**15
"""Of prompts and answers under way while a policy is judged, were all as long as they may be."""


def rows_at_once(max_prompt_tokens: int, max_new_tokens: int) -> int:
    """Problems that are asked at once when a policy is judged: products of few rows make little of
    a processor."""
    return max(1, JUDGING_TOKENS // (max_prompt_tokens + max_new_tokens))


ROLLOUT_TOKENS = 2**18
"""Of prompts and completions that are drawn at once in a rollout: between two such batches it can
be kept."""


def rows_of_rollout(
    num_rows: int, group_size: int, max_prompt_tokens: int, max_new_tokens: int
) -> int:
    """Completions of a rollout that are drawn at once: all, or as many whole groups as
    `ROLLOUT_TOKENS` allow."""
    groups = ROLLOUT_TOKENS // ((max_prompt_tokens + max_new_tokens) * group_size)
    return min(num_rows, max(1, groups) * group_size)


@dataclass(frozen=True)
class Judged:
    """Success and reward by problem, in the order of the problems, and the episodes behind them."""

    outcomes: tuple[bool, ...]
    returns: tuple[float, ...]
    episodes: tuple[Episode, ...]

    @property
    def success(self) -> Bool[np.ndarray, "n"]:
        return np.array(self.outcomes, bool)

    @property
    def rewards(self) -> Float[np.ndarray, "n"]:
        return np.array(self.returns, np.float32)

    @property
    def num_unscorable(self) -> int:
        """Problems on which the verifier failed; they count as not solved."""
        return int(np.isnan(self.rewards).sum())

    def mean_part(self, name: str) -> float:
        """Mean of one part of the reward, over the problems on which it could be scored."""
        values = [episode.parts[name] for episode in self.episodes]
        return (
            float(np.nanmean(values)) if any(value == value for value in values) else float("nan")
        )

    @property
    def mean_tokens(self) -> float:
        return float(np.mean([episode.sample.num_tokens for episode in self.episodes]))


def judge(
    policy: Policy,
    environment: TextEnvironment,
    observe: Observe,
    numbers: Sequence[int],
    *,
    greedy: bool,
    processes: Processes = ALONE,
    pieces: Pieces | None = None,
) -> Judged:
    """One episode of each problem in `numbers`; each process asks its share of them, and all know
    what was said. Of `pieces`, this is the first.
    """
    environment.take_episodes()
    if pieces is not None:
        pieces.parts["environment"] = environment
    share, own = own_share(numbers, processes), Judged((), (), ())

    def asked() -> Judged:
        rollout = collect_rollout(
            policy, environment, share, 1, observe, greedy=greedy, keeper=pieces
        )
        assert rollout.success is not None
        success, rewards = (rollout.success > 0.5).tolist(), rollout.returns.tolist()
        return Judged(tuple(success), tuple(rewards), tuple(environment.take_episodes()))

    with failing_together(processes), processes.own_draws("judge"):
        if len(share):
            own = asked() if pieces is None else pieces.take_plain(Judged, asked)
    shares = [(part.outcomes, part.returns, part.episodes) for part in processes.gather(own)]
    return Judged(*(tuple(in_order(parts)) for parts in zip(*shares, strict=True)))


def check_scorable(judged: Judged, failures: Mapping[str, int]) -> None:
    """Raises ValueError with the reasons where not one answer could be scored."""
    if judged.num_unscorable == len(judged.episodes):
        reasons = "; ".join(
            f"{reason} ({count} times)" for reason, count in Counter(failures).most_common(3)
        )
        raise ValueError(
            f"not one of {len(judged.episodes)} answers could be scored, so nothing could be learned: mend text.rewards"
            f" or the verifier that the problems name. {reasons}"
        )


def judge_samples(
    policy: Policy,
    environment: TextEnvironment,
    observe: Observe,
    numbers: Sequence[int],
    count: int,
    temperature: float,
    processes: Processes = ALONE,
    pieces: Pieces | None = None,
) -> dict[str, SuccessRate]:
    """`count` sampled answers to each problem: how many are right, whether any is (pass@k, Chen
    2021), and whether the answer given most often is (self-consistency, Wang 2022).
    """
    environment.take_episodes()
    if pieces is not None:
        pieces.parts["environment"] = environment
    share, own = own_share(numbers, processes), []

    def asked() -> list[Episode]:
        collect_rollout(policy, environment, share, count, observe, keeper=pieces)
        return environment.take_episodes()

    with failing_together(processes), processes.own_draws("samples"):
        if len(share):
            own = asked() if pieces is None else pieces.take_plain(list[Episode], asked)
    by_question: dict[str, list[Episode]] = {}
    for episode in chain(*processes.gather(own)):
        by_question.setdefault(episode.problem.question, []).append(episode)
    right, passed, elected = [], [], []
    for episodes in by_question.values():
        answers = [
            final_answer(episode.sample.completion, episode.problem.answer) for episode in episodes
        ]
        chosen = episodes[answers.index(majority(answers))]
        right += [episode.success for episode in episodes]
        passed.append(any(episode.success for episode in episodes))
        elected.append(chosen.success)
    return {
        "sampled": SuccessRate.of(right, temperature),
        f"any of {count}": SuccessRate.of(passed, temperature),
        f"majority of {count}": SuccessRate.of(elected, temperature),
    }


def pairs_of(before: Judged, after: Judged) -> list[Pair]:
    """Answers to the same problems, those that changed first."""
    earlier = {episode.problem.question: episode for episode in before.episodes}
    both = [
        (earlier[e.problem.question], e) for e in after.episodes if e.problem.question in earlier
    ]
    both.sort(key=lambda pair: pair[0].success == pair[1].success)
    return [
        Pair(
            a.problem.question,
            f"answer: {a.problem.answer}",
            a.transcript,
            b.transcript,
            a.success,
            b.success,
        )
        for a, b in both
    ]


def rate_of(judged: Judged) -> SuccessRate:
    """Greedy accuracy with its interval."""
    return SuccessRate.of(judged.success, temperature=None)

"""Weighted sums of verifiers as one reward; the metrics keep every part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla.rewards.code import score_code
from vla.rewards.sample import UNSCORABLE, Sample
from vla.rewards.sandbox.run_python import ProgramLimits, choose_jail
from vla.rewards.verifier_process import VerifierProcess

CORRECT = "correct"
"""The reward by the problem's own verifier, `facts["verifier"]`."""
CODE = "code"
"""The reward by the problem's tests (`vla.rewards.code`)."""
FINISHED = "finished"
"""1 when the completion ended by itself: a reward against running into the length limit."""


@dataclass(frozen=True)
class RewardScores:
    """One value per sample: the weighted sum and each part by name. NaN is unscorable."""

    total: NDArray[np.float32]
    parts: Mapping[str, NDArray[np.float32]]


class Rewards:
    """Weighted verifiers: `weights` maps `correct`, `code`, `finished` or a verifier's name to its
    weight.

    A sample is unscorable when any part with a weight other than 0 is, and when the sum is not
    finite.

    Raises:
        ValueError: There are no weights, or a weight is not finite.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        process: VerifierProcess | None = None,
        limits: ProgramLimits | None = None,
    ) -> None:
        if not weights:
            raise ValueError("rewards is empty: give at least one, e.g. rewards={correct: 1.0}")
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"rewards.{name} ({weight}) must be a finite weight")
        self.weights = dict(weights)
        self.process = process or VerifierProcess()
        self.limits = limits or ProgramLimits()

    def __call__(self, samples: Sequence[Sample]) -> RewardScores:
        parts = {
            name: np.array(self._part(name, samples), dtype=np.float32) for name in self.weights
        }
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.float32(
                sum(weight * parts[name] for name, weight in self.weights.items() if weight != 0)
            )
        finite = np.where(np.isfinite(total), total, np.float32(UNSCORABLE))
        return RewardScores(np.broadcast_to(finite, len(samples)).copy(), parts)

    def check(self) -> None:
        """Check every reward before the model loads.

        Raises:
            ValueError: A reward cannot be imported; the message names it.
        """
        for name in self.weights:
            try:
                self.check_verifier(name)
            except ValueError as error:
                raise ValueError(f"text.rewards.{name}: {error}") from None

    def check_verifier(self, name: str) -> None:
        """Check one verifier.

        Raises:
            ValueError: It is unknown, cannot be imported, or needs a sandbox that is not there.
        """
        if name == CODE:
            choose_jail()
        elif name not in (CORRECT, FINISHED):
            self.process.check(name)

    def _part(self, name: str, samples: Sequence[Sample]) -> list[float]:
        if name == FINISHED:
            return [float(sample.finished) for sample in samples]
        if name == CODE:
            return score_code(samples, self.limits, failures=self.process.failures)
        if name != CORRECT:
            return self.process.score(name, samples)
        scores = [UNSCORABLE] * len(samples)
        verifiers = [str(sample.facts.get("verifier", "exact")) for sample in samples]
        for verifier in dict.fromkeys(verifiers):
            rows = [i for i, own in enumerate(verifiers) if own == verifier]
            for row, score in zip(
                rows, self._part(verifier, [samples[i] for i in rows]), strict=True
            ):
                scores[row] = score
        return scores

    def close(self) -> None:
        """End the verifiers' process."""
        self.process.close()

"""Evaluation of a vision-language model's answers to questions about held-out scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vla.data.questions import QuestionEncoder
from vla.models.vlm import VisionLanguageModel
from vla.pipelines.robot.grounding.scene_pool import FIRST_SCENE_SEED, sample_questions
from vla.simulator import SceneSource, Simulator
from vla.types import Observation

NUM_HELD_OUT = 2048
"""Held-out scenes, one question each, behind the accuracy of a pretrained checkpoint."""
MAX_ANSWER_TOKENS = 6


@dataclass(frozen=True)
class QuestionAnswers:
    """Outcomes on held-out questions, by kind of question.

    `right` is True where the generated words equal the expected ones. `errors` are mean absolute
    errors of answers in numbers (m or rad).
    """

    right: Mapping[str, Sequence[bool]]
    errors: Mapping[str, Sequence[float]]

    @property
    def outcomes(self) -> list[bool]:
        """Outcomes of all questions answered in words, ordered by kind."""
        return [outcome for kind in sorted(self.right) for outcome in self.right[kind]]

    def means(self) -> dict[str, float]:
        """Accuracy and mean error of each kind."""
        accuracies = {
            f"accuracy/{kind}": float(np.mean(values))
            for kind, values in sorted(self.right.items())
        }
        errors = {
            f"error/{kind}": float(np.mean(values)) for kind, values in sorted(self.errors.items())
        }
        return accuracies | errors


@torch.no_grad()
def answer_questions(
    model: VisionLanguageModel,
    source: SceneSource,
    encoder: QuestionEncoder,
    seeds: Sequence[int],
    rng: np.random.Generator,
    question_kind: Callable[[str], str],
    rows_at_once: int = 128,
) -> QuestionAnswers:
    """Generate the answer to one question about each scene, and compare it with the true one."""
    model.eval()
    right: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    for start in range(0, len(seeds), rows_at_once):
        raw, facts = source.scenes(seeds[start : start + rows_at_once])
        questions = [sample_questions(source, fact, rng, 1)[0] for fact in facts]
        tokens, mask = encoder.pad([encoder.prompt(question) for question in questions])
        images = {name: torch.from_numpy(image) for name, image in raw.images.items()}
        generated = model.generate(
            Observation(images, torch.from_numpy(raw.proprio), tokens, mask),
            max_new_tokens=MAX_ANSWER_TOKENS,
            end_token=encoder.tokenizer.eos_token_id,
        )
        for question, answer in zip(questions, generated.tolist(), strict=True):
            kind = question_kind(question.text)
            if isinstance(question.answer, str):
                expected = encoder.answer(question)
                right.setdefault(kind, []).append(answer[: len(expected)] == expected)
            else:
                numbers = encoder.numbers(answer[: len(question.answer)], question.unit)
                error = np.abs(np.subtract(numbers, question.answer))
                # A generated token that is no location decodes to NaN and counts as 1 m (or rad).
                errors.setdefault(kind, []).append(float(np.nan_to_num(error, nan=1.0).mean()))
    return QuestionAnswers(right, errors)


def evaluate_answers(
    model: VisionLanguageModel,
    encoder: QuestionEncoder,
    simulator: Simulator,
    num_scenes: int = NUM_HELD_OUT,
) -> QuestionAnswers:
    """Evaluate the generated answers on `num_scenes` held-out scenes."""
    first = 2 * FIRST_SCENE_SEED + 7
    return answer_questions(
        model,
        simulator.scenes(),
        encoder,
        range(first, first + num_scenes),
        np.random.default_rng(num_scenes),
        simulator.question_kind,
    )

"""What the modes on open prompts share: model, prompts, sampling, and the evaluation before and after
by the gold reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla.config.text import Generation, Prompts, TextConfig
from vla.data.rows import RowReader
from vla.evaluation.result import EvaluationResult
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rewards.gold_rewards import GoldReward, find_gold_reward
from vla.text.language_model import LanguageParts, load_language_parts, required_context
from vla.text.open_ended_evaluation import (
    evaluate_open_answers,
    open_ended_results,
    pair_open_answers,
)
from vla.text.prompts import Completion, PromptSets, make_prompt_sets, sample_completions
from vla.text.text_report import finish_run
from vla.training.resumable_work import ResumableWork, load_or_compute
from vla.training.run import Run


@dataclass
class OpenEndedRun:
    """A run on open prompts. `speaker` draws as the settings say; `learner` is the same model at
    temperature 1, which is what supervised losses are about.
    """

    config: TextConfig
    run: Run
    generation: Generation
    parts: LanguageParts
    prompts: PromptSets
    gold: GoldReward
    sampling_policy: TextPolicy
    training_policy: TextPolicy
    reader: RowReader

    @classmethod
    def start(
        cls,
        config: TextConfig,
        run: Run,
        generation: Generation,
        prompts: Prompts,
        gold: str,
        reader: RowReader | None = None,
    ) -> OpenEndedRun:
        """Load everything; `reader` counts the rows of files."""
        reader = reader or RowReader(config.text.on_bad_row)
        sets, reward = make_prompt_sets(prompts, reader), find_gold_reward(gold)
        with run.timer("load"):
            parts = load_language_parts(
                config.language_model, config.train, generation.system, sets.train
            )
            parts.check_context(*required_context(generation))
            sets = sets.keep_usable(parts.chat, generation.max_prompt_tokens, reader)
            value_head = config.text.name == "rlhf" and config.algorithm.traits.needs_values
            sampling = Sampling(**generation.sampling.model_dump())
            sampling_policy = parts.policy(sampling, generation.max_new_tokens, value_head)
            training_policy = parts.policy(Sampling(), generation.max_new_tokens)
        reader.report_lines(run.progress.print_line)
        return cls(
            config, run, generation, parts, sets, reward, sampling_policy, training_policy, reader
        )

    def complete(
        self, prompts: Sequence[str], count: int, pieces: ResumableWork, greedy: bool = False
    ) -> list[list[Completion]]:
        """`count` completions of every prompt."""
        width, asked = self.generation.max_prompt_tokens, self.prompts.messages_for
        return sample_completions(
            self.sampling_policy,
            self.parts.chat,
            prompts,
            count,
            width,
            greedy=greedy,
            messages_for=asked,
            pieces=pieces,
        )

    def sample_answers(
        self, name: str, prompts: Sequence[str], count: int
    ) -> list[list[Completion]]:
        """`count` completions of every prompt, drawn in a stage of their own and kept under its
        name."""

        def drawn(pieces: ResumableWork) -> list[list[Completion]]:
            with self.run.stage(name):
                return self.complete(prompts, count, pieces)

        return load_or_compute(self.run, name, list[list[Completion]], drawn)

    def evaluate(self, name: str, of: Any = None) -> EvaluationResult:
        """The gold rewards of one greedy answer to every evaluation prompt, kept under the name."""

        def answer(pieces: ResumableWork) -> EvaluationResult:
            with self.run.timer("evaluation"):
                answers = self.complete(self.prompts.evaluation, 1, pieces, greedy=True)
                return evaluate_open_answers(answers, self.gold)

        result: EvaluationResult = load_or_compute(self.run, name, EvaluationResult, answer, of)
        self.run.progress.print_line(f"{name}: gold reward {result}, held-out prompts")
        return result

    def finish(
        self, title: str, before: EvaluationResult, more: dict[str, Any], of: Any = None
    ) -> dict[str, Any]:
        """Evaluate again, write results and report, and last the model: the largest, for which there
        may be no room."""
        after = self.evaluate("after", of)
        results = {**open_ended_results(before, after), **more, **self.reader.results()}
        change, wins = results["gold change"], results["wins among decided"]
        decided = (
            "no answer is better or worse" if wins is None else f"better among decided: {wins}"
        )
        self.run.progress.print_line(f"change: {change}; {decided}")
        return finish_run(self.run, title, results, pair_open_answers(before, after), self.parts)

"""The common part of runs on open prompts: model, prompts, sampling and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """A run on open prompts.

    `sampling_policy` samples with the settings of the run. `training_policy` is the same model at
    temperature 1, the distribution of supervised losses.
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
        """Read the prompts and load the model; `reader` counts the rows of files.

        Raises:
            ValueError: the prompts or the model do not fit the settings.
        """
        reader = reader or RowReader(config.text.on_bad_row)
        sets = make_prompt_sets(prompts, reader)
        gold_reward = find_gold_reward(gold)
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
            config,
            run,
            generation,
            parts,
            sets,
            gold_reward,
            sampling_policy,
            training_policy,
            reader,
        )

    def complete(
        self, prompts: Sequence[str], count: int, pieces: ResumableWork, greedy: bool = False
    ) -> list[list[Completion]]:
        """`count` completions of every prompt."""
        return sample_completions(
            self.sampling_policy,
            self.parts.chat,
            prompts,
            count,
            self.generation.max_prompt_tokens,
            greedy=greedy,
            messages_for=self.prompts.messages_for,
            pieces=pieces,
        )

    def sample_answers(
        self, name: str, prompts: Sequence[str], count: int
    ) -> list[list[Completion]]:
        """`count` completions of every prompt, in a stage of their own; stored under its name."""

        def sample(pieces: ResumableWork) -> list[list[Completion]]:
            with self.run.stage(name):
                return self.complete(prompts, count, pieces)

        return load_or_compute(self.run, name, list[list[Completion]], sample)

    def evaluate(self, name: str, of: object = None) -> EvaluationResult:
        """Gold rewards of greedy answers to the evaluation prompts, stored under `name`."""

        def answer(pieces: ResumableWork) -> EvaluationResult:
            with self.run.timer("evaluation"):
                answers = self.complete(self.prompts.evaluation, 1, pieces, greedy=True)
                return evaluate_open_answers(answers, self.gold)

        result: EvaluationResult = load_or_compute(self.run, name, EvaluationResult, answer, of)
        self.run.progress.print_line(f"{name}: gold reward {result}, held-out prompts")
        return result

    def finish(
        self, title: str, before: EvaluationResult, more: Mapping[str, object], of: object = None
    ) -> dict[str, object]:
        """Evaluate again; write results, report and model; returns the results."""
        after = self.evaluate("after", of)
        results = {**open_ended_results(before, after), **more, **self.reader.results()}
        change = results["gold change"]
        wins = results["wins among decided"]
        decided = (
            "no answer is better or worse" if wins is None else f"better among decided: {wins}"
        )
        self.run.progress.print_line(f"change: {change}; {decided}")
        return finish_run(self.run, title, results, pair_open_answers(before, after), self.parts)

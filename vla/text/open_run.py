"""What the modes on open prompts share: model, prompts, sampling, and judging before and after by the gold reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla.config.algorithm import needs_critic
from vla.config.text import Fit, Generation, Prompts, TextConfig
from vla.decoding.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rewards.gold import Gold, find_gold
from vla.text.fitting import FitSettings
from vla.text.language_model import LanguageParts, context_of, load_language_parts, save_language_model
from vla.text.open_judging import Mean, OpenJudged, open_pairs, open_results
from vla.text.report import spent, write_report
from vla.text.topics import PromptSets, Said, make_prompt_sets, say
from vla.train.metrics import MetricsLog
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder
from vla.train.seed import derive_seed
from vla.train.timing import Timer


@dataclass
class OpenRun:
    """A run on open prompts. `speaker` draws as the settings say; `learner` is the same model at temperature 1, which
    is what supervised losses are about.
    """

    config: TextConfig
    generation: Generation
    parts: LanguageParts
    prompts: PromptSets
    gold: Gold
    speaker: TextPolicy
    learner: TextPolicy
    folder: RunFolder
    progress: Progress
    log: MetricsLog
    timer: Timer

    @classmethod
    def start(
        cls,
        config: TextConfig,
        generation: Generation,
        prompts: Prompts,
        gold: str,
        folder: RunFolder,
        progress: Progress,
    ) -> OpenRun:
        """Load everything.

        Raises ValueError for a resumed run: these runs are short and start anew.
        """
        if config.resume:
            raise ValueError(f"resume ({config.resume}): text={config.text.name} cannot be resumed, start it anew")
        sets, reward, timer = make_prompt_sets(prompts), find_gold(gold), Timer()
        with timer("load"):
            parts = load_language_parts(config.language_model, config.train, generation.system, sets.train)
            parts.check_context(*context_of(generation))
            value_head = config.text.name == "rlhf" and needs_critic(config.algorithm)
            sampling = Sampling(**generation.sampling.model_dump())
            speaker = parts.policy(sampling, generation.max_new_tokens, value_head)
            learner = parts.policy(Sampling(), generation.max_new_tokens)
        log = MetricsLog(folder.path, 0, config.train.tensorboard, config.train.trackers)
        return cls(config, generation, parts, sets, reward, speaker, learner, folder, progress, log, timer)

    def say(self, prompts: Sequence[str], count: int, greedy: bool = False) -> list[list[Said]]:
        """`count` completions of every prompt."""
        with self.timer("rollout"):
            return say(self.speaker, self.parts.chat, prompts, count, self.generation.max_prompt_tokens, greedy=greedy)

    def judge(self, name: str) -> OpenJudged:
        """One greedy answer to every evaluation prompt."""
        judged = OpenJudged.of(self.say(self.prompts.evaluation, 1, greedy=True), self.gold)
        self.progress.say(f"{name}: gold reward {Mean.of(judged.gold)}, greedy, held-out prompts")
        return judged

    def fit_settings(self, fit: Fit) -> FitSettings:
        return FitSettings(**fit.model_dump())

    def seed(self, *names: str | int) -> int:
        """A seed for a named purpose."""
        return derive_seed(self.config.train.seed, *names)

    def finish(self, title: str, before: OpenJudged, more: dict[str, Any]) -> dict[str, Any]:
        """Judge again, write results and report, and last the model: the largest, for which there may be no room."""
        after = self.judge("after")
        results = {**open_results(before, after), **more}
        self.progress.say(f"change: {results['gold change']}; better among decided: {results['wins among decided']}")
        results |= spent(self.timer)
        self.folder.write_results(results)
        self.log.close()
        write_report(self.folder, title, results, open_pairs(before, after))
        save_language_model(self.parts, self.folder.path / "model")
        return results


@dataclass
class Steps:
    """Logs the steps of a supervised stage."""

    run: OpenRun
    name: str
    num_steps: int

    def __enter__(self) -> Any:
        self._stage = self.run.progress.stage(self.name, self.num_steps)
        self._timed = self.run.timer(self.name)
        self._timed.__enter__()
        stage = self._stage.__enter__()

        def on_step(step: int, loss: float) -> None:
            self.run.log.write(self.name, step, {"loss": loss})
            stage.advance(loss=loss)

        return on_step

    def __exit__(self, *error: Any) -> None:
        self._stage.__exit__(*error)
        self._timed.__exit__(*error)

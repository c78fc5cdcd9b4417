"""Reinforcement learning on verified rewards: problems, the shared loop, and what it did on unseen
problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from vla.config.text import Rlvr, TextConfig
from vla.data.chat import ChatFormat, observe_prompts
from vla.data.rows import RowReader
from vla.decoding.sampling import Sampling
from vla.evaluation.result import EvaluationResult, compare_results
from vla.files.write import write_json
from vla.policies.text import TextPolicy
from vla.rewards.compose import CORRECT, Rewards
from vla.rewards.pool import VerifierProcess
from vla.rl.critic import with_critic
from vla.rl.protocols import Observe
from vla.rl.rollout import collect_rollout
from vla.rl.sampling import collect_informative, mask_trajectories
from vla.sft.loop import SupervisedSettings
from vla.sft.stage import TrainingStage
from vla.text.calculator import INSTRUCTION, LONGEST_RESULT
from vla.text.curriculum import Curriculum
from vla.text.environment import ENDED_ITSELF, Episode, TextEnvironment, calculator_tool
from vla.text.language_model import LanguageParts, load_language_parts
from vla.text.oversampling import Oversampling
from vla.text.problem_evaluation import (
    PART,
    TOKENS,
    check_scorable,
    evaluate_problems,
    evaluate_samples,
    num_unscorable,
    pair_answers,
    rows_at_once,
    rows_of_rollout,
)
from vla.text.problem_sets import ProblemSets, make_problem_sets, shortfalls
from vla.text.problems import Problem, room_for_answers
from vla.text.refine import Refinement, algorithm_of
from vla.text.report import finish
from vla.text.supervised import fit_examples
from vla.text.warm_up import call_examples, check_room, tag_examples
from vla.train.distributed import ALONE, Processes, own_share, same_weights
from vla.train.pieces import Pieces, kept
from vla.train.run import Run
from vla.train.seed import derive_seed
from vla.types import Rollout

FORMAT_BATCH = 16
CALL_TOKENS = 8
"""What <calc> and </calc> take beside the expression."""


@dataclass(frozen=True)
class Wired:
    """The parts of a run."""

    policy: TextPolicy
    parts: LanguageParts
    observe: Observe
    train: TextEnvironment
    held_out: TextEnvironment
    curriculum: Curriculum
    processes: Processes = ALONE


def run_rlvr(config: TextConfig, run: Run) -> dict[str, Any]:
    """Judge, train, judge again on the same problems; results, report and the trained model go into
    the folder."""
    settings, processes = config.text, run.processes
    assert isinstance(settings, Rlvr)
    reader = RowReader(settings.on_bad_row)
    sets = sets_of(settings, reader)
    with VerifierProcess(settings.verifier_timeout_seconds) as process:
        rewards = Rewards({CORRECT: 0.0, **settings.rewards}, process)
        with run.timer("load"):
            sets.check_verifiers(rewards)
            parts = load_parts(config, settings, sets)
            sets = sets.fitting(
                parts.chat, settings.max_prompt_tokens, "text.max_prompt_tokens", reader
            )
            wired = wire(config, settings, sets, parts, rewards, processes)
        reader.tell(run.progress.say)
        asked = {
            "text.num_evaluation": (settings.num_evaluation, len(sets.evaluation)),
            "text.num_validation": (settings.num_validation, len(sets.validation)),
            "rl.starts_per_iteration": (config.rl.starts_per_iteration, len(sets.train)),
        }
        for line in shortfalls(asked):
            run.progress.say(line)
        if processes.is_main:
            write_json(run.folder.path / "problems.json", sets.manifest())

        def evaluate(pieces: Pieces) -> EvaluationResult:
            with run.stage("judge"):
                return evaluate_held_out(wired, sets, pieces)

        before: EvaluationResult = kept(run, "before", EvaluationResult, evaluate)
        check_scorable(before, failures_of(process, processes))
        run.progress.say(f"before: {before} on held-out problems")
        taught = teach_format(wired, settings, sets, run)
        ended = refine(wired, config, sets, run)
        of = ended["num_iterations"]
        after: EvaluationResult = kept(run, "after", EvaluationResult, evaluate, of=of)

        def evaluate_sampled(pieces: Pieces) -> dict[str, EvaluationResult]:
            with run.stage("judge"):
                return evaluate_held_out_samples(wired, sets, settings, pieces)

        sampled = kept(run, "sampled", dict[str, EvaluationResult], evaluate_sampled, of=of)
        results = {
            **results_of(before, after, sets, failures_of(process, processes)),
            **taught,
            **reader.results(),
            "rl": ended,
        }
        results |= {"after, sampled": sampled} if sampled else {}
        run.progress.say(f"after:  {after} on the same problems")
        run.progress.say(f"change: {results['comparison']}")
    title = "Verified rewards: " + ", ".join(settings.families)
    return finish(run, title, results, pair_answers(before, after, sets.evaluation), wired.parts)


def sets_of(settings: Rlvr, reader: RowReader) -> ProblemSets:
    """The problems that the settings ask for; `reader` counts the rows of files."""
    return make_problem_sets(
        settings.families,
        settings.num_problems,
        settings.holdout_fraction,
        settings.num_validation,
        settings.num_evaluation,
        reader,
    )


def room_of(settings: Rlvr) -> int:
    """Tokens that a completion may take; the tags of a call need some."""
    tags = 0 if settings.tool is None else CALL_TOKENS
    return settings.max_new_tokens or room_for_answers(settings.families) + tags


def width_of(settings: Rlvr, chat: ChatFormat) -> int:
    """Tokens that a prompt may take: with a tool, what was said and answered before stands in
    it."""
    if settings.tool is None:
        return settings.max_prompt_tokens
    answer = len(chat.next_turn({"role": "tool", "content": "0"}, finished=False)) + LONGEST_RESULT
    return settings.max_prompt_tokens + (settings.max_turns - 1) * (room_of(settings) + answer)


def failures_of(process: VerifierProcess, processes: Processes) -> dict[str, int]:
    """How often verifiers failed in all processes, by reason."""
    return dict(sum((Counter(found) for found in processes.gather(process.failures)), Counter()))


def load_parts(config: TextConfig, settings: Rlvr, sets: ProblemSets) -> LanguageParts:
    """The model and what belongs to it."""
    system = settings.system
    if settings.tool == "calculator":
        system = f"{system} {INSTRUCTION}" if system else INSTRUCTION
    texts = [problem.question for problem in sets.train]
    return load_language_parts(config.language_model, config.train, system, texts)


def wire(
    config: TextConfig,
    settings: Rlvr,
    sets: ProblemSets,
    parts: LanguageParts,
    rewards: Rewards,
    processes: Processes = ALONE,
) -> Wired:
    """Policy, environments and curriculum. Raises ValueError where the model has too few
    positions."""
    algorithm = algorithm_of(config)
    sampling = Sampling(**settings.sampling.model_dump())
    policy = parts.policy(sampling, room_of(settings), algorithm.needs_values, settings.num_beams)
    same_weights(policy, processes)
    width = width_of(settings, parts.chat)
    asking = f"text.max_prompt_tokens ({settings.max_prompt_tokens}) and text.max_new_tokens ({room_of(settings)})"
    if settings.tool is not None:
        asking += f" over text.max_turns ({settings.max_turns})"
    parts.check_context(width + room_of(settings), asking)
    observe = partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device)
    tool = calculator_tool if settings.tool == "calculator" else None

    def environment(problems: list[Problem], num_envs: int) -> TextEnvironment:
        return TextEnvironment(
            problems, parts.chat, rewards, parts.stop_ids, num_envs, tool, settings.max_turns
        )

    num_starts, group_size = (
        int(config.rl.starts_per_iteration * settings.max_oversampling),
        config.rl.group_size,
    )
    judged_at_once = rows_at_once(width, room_of(settings))
    numbers, start = [], 0
    for family in sets.families.values():
        numbers.append(range(start, start + len(family)))
        start += len(family)
    curriculum = Curriculum(
        numbers, settings.advance_at, derive_seed(config.train.seed, "problems")
    )
    return Wired(
        policy,
        parts,
        observe,
        environment(
            sets.train,
            rows_of_rollout(num_starts * group_size, group_size, width, room_of(settings)),
        ),
        environment([*sets.validation, *sets.evaluation], judged_at_once),
        curriculum,
        processes,
    )


def evaluate_held_out(wired: Wired, sets: ProblemSets, pieces: Pieces) -> EvaluationResult:
    """Greedy answers to the evaluation problems."""
    first = len(sets.validation)
    numbers = range(first, first + len(sets.evaluation))
    where = (wired.policy, wired.held_out, wired.observe)
    return evaluate_problems(*where, numbers, processes=wired.processes, pieces=pieces)


def evaluate_held_out_samples(
    wired: Wired, sets: ProblemSets, settings: Rlvr, pieces: Pieces
) -> dict[str, EvaluationResult]:
    """Several sampled answers to every evaluation problem, where they are asked for."""
    if settings.num_samples == 0:
        return {}
    first = len(sets.validation)
    numbers, temperature = range(first, first + len(sets.evaluation)), settings.sampling.temperature
    where = (wired.policy, wired.held_out, wired.observe)
    return evaluate_samples(
        *where, numbers, settings.num_samples, temperature, wired.processes, pieces
    )


def results_of(
    before: EvaluationResult,
    after: EvaluationResult,
    sets: ProblemSets,
    failures: dict[str, int],
) -> dict[str, Any]:
    """The numbers of the run, by family where there are several."""
    results: dict[str, Any] = {
        "before": before.without_outputs(),
        "after": after.without_outputs(),
        "comparison": compare_results(before, after, noun="problems"),
        "mean_tokens": {
            "before": before.mean_measure(TOKENS),
            "after": after.mean_measure(TOKENS),
        },
        "unscorable": {
            "before": num_unscorable(before),
            "after": num_unscorable(after),
            "reasons": failures,
        },
    }
    parts = [name for name in before.measures if name.startswith(PART)]
    for name in parts if len(parts) > 1 else ():
        results[f"reward {name.removeprefix(PART)}"] = {
            "before": before.mean_measure(name),
            "after": after.mean_measure(name),
        }
    if len(sets.families) > 1:
        one, two = before.without_outputs().by_group(), after.without_outputs().by_group()
        for family in sets.families:
            if family in one:
                results[f"family {family}"] = {"before": one[family], "after": two[family]}
    return results


def teach_format(
    wired: Wired, settings: Rlvr, sets: ProblemSets, run: Run
) -> dict[str, EvaluationResult]:
    """A short SFT on training problems answered between the tags, or by calls of the tool; what it
    alone does on held-out problems, since its examples hold right answers.

    Raises ValueError when an example is longer than RL lets a prompt or a completion be.
    """
    if settings.format_steps == 0:
        return {}
    examples = (tag_examples if settings.tool is None else call_examples)(
        sets.train, wired.parts.chat
    )
    check_room(examples, room_of(settings), width_of(settings, wired.parts.chat))
    batch = min(FORMAT_BATCH, len(examples))
    fitting = SupervisedSettings(
        num_steps=settings.format_steps,
        batch_size=batch,
        learning_rate=settings.format_learning_rate,
        max_grad_norm=1.0,
        warmup_steps=int(0.1 * settings.format_steps),
        learning_rate_name="text.format_learning_rate",
    )
    # As likely as the model itself finds them, whatever temperature RL draws at.
    policy = wired.parts.policy(Sampling(), room_of(settings))
    with TrainingStage(run, "format", settings.format_steps) as stage:
        fit_examples(policy, examples, fitting, run.seed("format"), stage, wired.processes)

    def evaluate(pieces: Pieces) -> EvaluationResult:
        with run.stage("judge"):
            return evaluate_held_out(wired, sets, pieces)

    taught: EvaluationResult = kept(run, "taught", EvaluationResult, evaluate)
    run.progress.say(f"after the format examples: {taught} on the same problems")
    return {"after the format examples": taught.without_outputs()}


def refine(wired: Wired, config: TextConfig, sets: ProblemSets, run: Run) -> dict[str, Any]:
    """The RL iterations; what ended them."""
    rl, processes = config.rl, wired.processes
    num_processes = processes.num_processes
    assert isinstance(config.text, Rlvr)
    learner = with_critic(wired.policy, rl.critic)
    oversampling = Oversampling(rl.starts_per_iteration, config.text.max_oversampling)
    mask_truncated = config.text.mask_truncated_completions

    def collect(iteration: int, pieces: Pieces) -> Rollout:
        attempt = 0

        def sample(count: int) -> Rollout:
            nonlocal attempt
            numbers = own_share(
                wired.curriculum.draw(iteration, attempt, count * num_processes), processes
            )
            attempt += 1
            drawn = pieces.take_rollout(
                lambda: collect_rollout(
                    learner,
                    wired.train,
                    numbers,
                    rl.group_size,
                    wired.observe,
                    version=iteration,
                    keeper=pieces,
                )
            )
            return (
                mask_trajectories(drawn, drawn.episodes[ENDED_ITSELF] > 0.5)
                if mask_truncated
                else drawn
            )

        with run.timer("rollout"):
            if rl.max_refills == 0 or rl.group_size == 1:  # a group of one is never informative
                return sample(oversampling.count // num_processes)
            return collect_informative(
                sample, rl.starts_per_iteration // num_processes, rl.max_refills
            )

    def watch(iteration: int, rollout: Rollout) -> dict[str, float]:
        episodes = list(chain(*processes.gather(wired.train.take_episodes())))
        if rl.max_refills == 0 or rl.group_size == 1:
            oversampling.learn(rollout, processes.reduce_sum)
        # over all that were asked: dynamic sampling keeps only the groups that say something
        success = sum(episode.success for episode in episodes) / len(episodes)
        wired.curriculum.learn(success)
        append_samples(run, iteration, episodes[: 2 * rl.group_size : rl.group_size])
        numbers = {"success": success, "episodes": float(len(episodes))}
        return {
            **episode_numbers(episodes),
            **numbers,
            "open_families": float(wired.curriculum.num_open),
        }

    def evaluate(iteration: int) -> dict[str, float]:
        with run.timer("validation"):
            numbers = range(len(sets.validation))
            result = evaluate_problems(
                wired.policy, wired.held_out, wired.observe, numbers, processes=processes
            )
        return {"validation_success": result.mean, "validation_starts": float(result.n)}

    with run.stage("rl"):
        return Refinement(
            learner,
            config,
            run,
            collect=collect,
            evaluate=evaluate,
            watch=watch,
            under_way={"environment": wired.train},
            keep={"curriculum": wired.curriculum, "oversampling": oversampling},
            has_adapter=config.language_model.lora is not None and not config.text.format_steps,
        ).train()


def episode_numbers(episodes: list[Episode]) -> dict[str, float]:
    """Means over the episodes of an iteration: every part of the reward, length, how many ended by
    themselves."""
    count = len(episodes)
    numbers = {
        "completion_tokens": sum(episode.sample.num_tokens for episode in episodes) / count,
        "finished": sum(episode.sample.finished for episode in episodes) / count,
        "distinct_completions": len({(e.problem.question, e.transcript) for e in episodes}) / count,
    }
    for name in episodes[0].parts:
        values = [
            episode.parts[name]
            for episode in episodes
            if episode.parts[name] == episode.parts[name]
        ]
        numbers[f"reward/{name}"] = sum(values) / len(values) if values else float("nan")
    return numbers


def append_samples(run: Run, iteration: int, episodes: list[Episode]) -> None:
    """Keep a few completions of every iteration for people to read."""
    rows = [
        {
            "iteration": iteration,
            "question": episode.problem.question,
            "said": episode.transcript,
            "answer": episode.problem.answer,
            "reward": None if episode.reward != episode.reward else episode.reward,
        }
        for episode in episodes
    ]
    run.append("samples.jsonl", rows)

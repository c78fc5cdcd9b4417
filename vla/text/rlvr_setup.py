"""The parts of an RLVR run: problems, model, environments and curriculum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vla.config.text import Rlvr, TextConfig
from vla.data.chat import ChatFormat, observe_prompts
from vla.data.rows import RowReader
from vla.files.writing import write_json
from vla.generation.sampling import Sampling
from vla.policies.text import TextPolicy
from vla.rewards.compose import Rewards
from vla.rl.protocols import Observe
from vla.text.calculator import INSTRUCTION, LONGEST_RESULT
from vla.text.curriculum import Curriculum
from vla.text.environment import TextEnvironment, calculator_tool
from vla.text.language_model import LanguageParts, load_language_parts
from vla.text.problem import Problem
from vla.text.problem_evaluation import evaluation_batch_size, rollout_batch_size
from vla.text.problem_families import max_answer_tokens
from vla.text.problem_sets import ProblemSets, describe_shortfalls, make_problem_sets
from vla.training.distributed import Processes, broadcast_weights, shard_rows
from vla.training.run import Run

CALL_TOKENS = 8
"""Tokens of <calc> and </calc> around the expression."""


@dataclass(frozen=True)
class RlvrSetup:
    """The parts of a run; `held_out` holds the validation, then the evaluation problems."""

    settings: Rlvr
    sets: ProblemSets
    policy: TextPolicy
    parts: LanguageParts
    observe: Observe
    training: TextEnvironment
    held_out: TextEnvironment
    curriculum: Curriculum
    processes: Processes

    @property
    def evaluation_numbers(self) -> range:
        """Numbers of the evaluation problems in `held_out`."""
        first = len(self.sets.validation)
        return range(first, first + len(self.sets.evaluation))

    def draw_problems(self, iteration: int, attempt: int, count: int) -> list[int]:
        """Numbers of `count` training problems for this process, as the curriculum draws them."""
        total = count * self.processes.num_processes
        return shard_rows(self.curriculum.draw(iteration, attempt, total), self.processes)


def set_up_rlvr(run: Run, config: TextConfig, reader: RowReader, rewards: Rewards) -> RlvrSetup:
    """Read the problems, load the model and build the rest; `reader` counts the rows of files.

    Raises:
        ValueError: a verifier cannot be imported, no problem fits the settings, or the model has
            too few positions.
    """
    settings = config.text
    assert isinstance(settings, Rlvr)
    sets = make_rlvr_problem_sets(settings, reader)
    with run.timer("load"):
        sets.check_verifiers(rewards)
        parts = load_parts(config, settings, sets)
        width = settings.max_prompt_tokens
        sets = sets.keep_usable(parts.chat, width, "text.max_prompt_tokens", reader)
        setup = make_setup(run, config, settings, sets, parts, rewards)
    reader.report_lines(run.progress.print_line)
    counts = {
        "text.num_evaluation": (settings.num_evaluation, len(sets.evaluation)),
        "text.num_validation": (settings.num_validation, len(sets.validation)),
        "rl.num_start_states": (config.rl.num_start_states, len(sets.train)),
    }
    for line in describe_shortfalls(counts):
        run.progress.print_line(line)
    if run.processes.is_main:
        write_json(run.folder.path / "problems.json", sets.manifest())
    return setup


def make_rlvr_problem_sets(settings: Rlvr, reader: RowReader) -> ProblemSets:
    """The problems of the settings; `reader` counts the rows of files."""
    return make_problem_sets(
        settings.families,
        settings.num_problems,
        settings.holdout_fraction,
        settings.num_validation,
        settings.num_evaluation,
        reader,
    )


def load_parts(config: TextConfig, settings: Rlvr, sets: ProblemSets) -> LanguageParts:
    """The language model; a tool adds its instruction to the system message."""
    system = settings.system
    if settings.tool == "calculator":
        system = f"{system} {INSTRUCTION}" if system else INSTRUCTION
    texts = [problem.question for problem in sets.train]
    return load_language_parts(config.language_model, config.train, system, texts)


def make_setup(
    run: Run,
    config: TextConfig,
    settings: Rlvr,
    sets: ProblemSets,
    parts: LanguageParts,
    rewards: Rewards,
) -> RlvrSetup:
    """Policy, environments and curriculum.

    Raises:
        ValueError: the model has too few positions.
    """
    max_new_tokens = max_completion_tokens(settings)
    width = max_prompt_tokens(settings, parts.chat)
    sampling = Sampling(**settings.sampling.model_dump())
    value_head = config.algorithm.traits.needs_values
    policy = parts.policy(sampling, max_new_tokens, value_head, settings.num_beams)
    broadcast_weights(policy, run.processes)
    names = (
        f"text.max_prompt_tokens ({settings.max_prompt_tokens}) and "
        f"text.max_new_tokens ({max_new_tokens})"
    )
    if settings.tool is not None:
        names += f" over text.max_turns ({settings.max_turns})"
    parts.check_context(width + max_new_tokens, names)
    tool = calculator_tool if settings.tool == "calculator" else None

    def environment(problems: Sequence[Problem], num_envs: int) -> TextEnvironment:
        return TextEnvironment(
            problems, parts.chat, rewards, parts.stop_ids, num_envs, tool, settings.max_turns
        )

    group_size = config.rl.group_size
    num_starts = int(config.rl.num_start_states * settings.max_batch_growth)
    num_rows = rollout_batch_size(num_starts * group_size, group_size, width, max_new_tokens)
    return RlvrSetup(
        settings=settings,
        sets=sets,
        policy=policy,
        parts=parts,
        observe=partial(observe_prompts, width=width, pad_id=parts.pad_id, device=parts.device),
        training=environment(sets.train, num_rows),
        held_out=environment(
            [*sets.validation, *sets.evaluation], evaluation_batch_size(width, max_new_tokens)
        ),
        curriculum=make_curriculum(sets, settings.curriculum_threshold, run.seed("problems")),
        processes=run.processes,
    )


def make_curriculum(sets: ProblemSets, curriculum_threshold: float | None, seed: int) -> Curriculum:
    """The curriculum over the families in their order."""
    numbers = []
    start = 0
    for family in sets.families.values():
        numbers.append(range(start, start + len(family)))
        start += len(family)
    return Curriculum(numbers, curriculum_threshold, seed)


def max_completion_tokens(settings: Rlvr) -> int:
    """Most tokens of a completion, including the tags of a tool call."""
    tags = 0 if settings.tool is None else CALL_TOKENS
    return settings.max_new_tokens or max_answer_tokens(settings.families) + tags


def max_prompt_tokens(settings: Rlvr, chat: ChatFormat) -> int:
    """Most tokens of a prompt. With a tool it includes the earlier turns."""
    if settings.tool is None:
        return settings.max_prompt_tokens
    answer = len(chat.next_turn({"role": "tool", "content": "0"}, finished=False)) + LONGEST_RESULT
    turn = max_completion_tokens(settings) + answer
    return settings.max_prompt_tokens + (settings.max_turns - 1) * turn

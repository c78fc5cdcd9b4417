"""Conflicts between settings that are each valid: a message for every conflict.

A message names the setting, its value and the remedy.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import combinations

from vla.config.engine_conflicts import engine_conflicts
from vla.config.explain import format_setting
from vla.config.model_conflicts import language_model_conflicts, model_conflicts
from vla.config.processes import process_conflicts
from vla.config.rl_conflicts import (
    adapt_conflicts,
    adapter_conflicts,
    branch_conflicts,
    rl_conflicts,
    text_rl_conflicts,
)
from vla.config.robot import RobotConfig
from vla.config.text import Constitution, TextConfig, TextPreference
from vla.config.training import Evaluation
from vla.config.workers import worker_conflicts
from vla.ranges import nearest_divisor
from vla.rewards.gold_rewards import GOLD_REWARDS
from vla.rewards.verifiers import ANSWER_PREFIX, verifier_table
from vla.spelling import suggestion


def find_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """Conflicts between the settings of a run, one message each: setting, value, remedy."""
    problems = (
        rl_conflicts(config.rl, config.algorithm)
        + adapter_conflicts(config)
        + process_conflicts(config)
        + worker_conflicts(config)
    )
    if isinstance(config, TextConfig):
        problems += text_rl_conflicts(config.rl) + language_model_conflicts(config.language_model)
        problems += engine_conflicts(config) + mixture_conflicts(config)
        problems += reward_conflicts(config) + gold_conflicts(config) + fit_conflicts(config)
        problems += turn_conflicts(config) + sampling_conflicts(config)
    if isinstance(config, RobotConfig):
        problems += branch_conflicts(config) + adapt_conflicts(config)
        problems += scene_conflicts(config) + chunk_conflicts(config)
        problems += (
            model_conflicts(config) + seed_conflicts(config.evaluation) + recap_conflicts(config)
        )
        problems += zero_conflicts("sim.reward", config.sim.reward)
    return problems


def zero_conflicts(setting: str, weights: dict[str, float]) -> list[str]:
    """Rewards whose weights are all 0."""
    if any(weights.values()):
        return []
    return [
        f"{setting} ({format_setting(weights)}) gives every reward the weight 0, so there is "
        "nothing to "
        "learn: give one of them another weight"
    ]


def reward_conflicts(config: TextConfig) -> list[str]:
    """Unknown verifiers, and rewards whose weights are all 0."""
    text = config.text
    if text.name not in ("rlvr", "rejection"):
        return []
    problems = zero_conflicts("text.rewards", text.rewards)
    return problems + [
        f"text.rewards.{name} ({format_setting(weight)}): verifier {name!r} is "
        f"unknown{suggestion(name, reward_names())}, or package.module:function of an installed "
        "package"
        for name, weight in text.rewards.items()
        if not is_verifier(name)
    ]


def reward_names() -> tuple[str, ...]:
    """Names of the text rewards: the built-in ones, and every verifier of the table."""
    return ("correct", "code", "finished", *verifier_table())


def gold_conflicts(config: TextConfig) -> list[str]:
    """An unknown gold reward."""
    name = getattr(config.text, "gold", None)
    if name is None or name in GOLD_REWARDS or names_function(name):
        return []
    return [
        f"text.gold ({name}): gold {name!r} is unknown{suggestion(name, tuple(GOLD_REWARDS))}, or "
        "package.module:function of an installed package"
    ]


def is_verifier(name: str) -> bool:
    """True for a name of `reward_names`, or a function of an installed package."""
    name = name.removeprefix(ANSWER_PREFIX)
    return name in reward_names() or names_function(name)


def names_function(name: str) -> bool:
    """True for `package.module:function` (or a dot) of an installed package; imports nothing."""
    package = re.match(r"([a-zA-Z]\w*)[.:].", name)
    return package is not None and find_spec(package[1]) is not None


def mixture_conflicts(config: TextConfig) -> list[str]:
    """Numbers of sources and of their weights that differ."""
    text = config.text
    if text.name != "sft" or text.weights is None or len(text.weights) == len(text.sources):
        return []
    return [
        f"text.weights={format_setting(text.weights)} must be as many as "
        f"text.sources={format_setting(text.sources)}: give one for each, or null"
    ]


def fit_conflicts(config: TextConfig) -> list[str]:
    """Fits with two lengths or none, and batches too small for the KL baseline of KTO."""
    text = config.text
    problems = []
    for name in ("sft", "reward_model", "fit"):
        fit = getattr(text, name, None)
        if fit is not None and (fit.num_steps is None) == (fit.num_epochs is None):
            problems.append(
                f"text.{name}.num_steps ({format_setting(fit.num_steps)}) and "
                f"text.{name}.num_epochs ({format_setting(fit.num_epochs)}) both set the length of "
                "the fit: give one of them, and set the other to null"
            )
    if (
        isinstance(text, TextPreference | Constitution)
        and config.preference.name == "kto"
        and text.fit.batch_size < 2
    ):
        problems.append(
            f"text.fit.batch_size ({text.fit.batch_size}) must be at least 2 under "
            "preference=kto: its "
            "baseline pairs each prompt with the completion of another one; raise it"
        )
    return problems


def turn_conflicts(config: TextConfig) -> list[str]:
    """A tool with a single turn, or several turns without a tool; a tool is called between
    turns."""
    text = config.text
    if text.name != "rlvr" or (text.tool is None) == (text.max_turns == 1):
        return []
    if text.tool is None:
        return [
            f"text.max_turns ({text.max_turns}) must be 1 without text.tool: set it to 1, or name "
            "a tool"
        ]
    return [
        f"text.max_turns (1) leaves no turn after a call of text.tool ({text.tool}): set it to 2 "
        "or more"
    ]


def sampling_conflicts(config: TextConfig) -> list[str]:
    """A sampling limit of one token, which makes all samples of a prompt identical."""
    text = config.text
    if text.name == "rlvr":
        path = "text.sampling"
        sampling = text.sampling
        learns = config.rl.num_iterations > 0
    elif text.name in ("rlhf", "preference", "rlaif"):
        path = "text.generation.sampling"
        sampling = text.generation.sampling
        learns = text.name == "rlhf" or text.comparisons is None
    else:
        return []
    if sampling.top_k != 1 or not learns:
        return []
    return [
        f"{path}.top_k (1) leaves one token to sample, so all samples of a prompt are identical "
        "and "
        "there is nothing to learn: set it to 0 (no limit)"
    ]


def chunk_conflicts(config: RobotConfig) -> list[str]:
    """A chunk length that does not divide the length of an episode."""
    chunk = config.policy.chunk
    max_steps = config.sim.max_steps
    if max_steps % chunk == 0:
        return []
    return [
        f"policy.chunk ({chunk}) must divide sim.max_steps ({max_steps}): "
        f"{nearest_divisor(chunk, max_steps)} does"
    ]


def scene_conflicts(config: RobotConfig) -> list[str]:
    """Settings that need scenes, under a simulator that has none.

    They are questions about scenes, and the embedded model, which was trained on them.
    """
    if config.sim.kind.has_scenes:
        return []
    problems = []
    name = f"sim.simulator={config.sim.simulator}"
    if config.model.checkpoint == "embedded":
        problems.append(
            "model.checkpoint (embedded) was trained on the two cameras of sim.simulator=tabletop, "
            f"not on those of {name}: set it to null"
        )
    if config.grounding.num_steps and config.model.checkpoint is None:
        problems.append(f"grounding.num_steps needs scenes, and {name} has none: set it to 0")
    if config.data.question_weight:
        problems.append(f"data.question_weight needs scenes, and {name} has none: set it to 0")
    return problems


def recap_conflicts(config: RobotConfig) -> list[str]:
    """Policies that lack a part which RECAP, token co-training, texts or data.sentence need."""
    policy = config.policy
    recap = config.recap
    problems = []
    in_one_pass = policy.traits.cache is not None
    token_weight = getattr(policy, "token_weight", 0)
    if token_weight and config.sft.head_steps and config.sft.head_only:
        problems.append(
            f"policy.token_weight ({token_weight}) trains the vision-language model, which "
            "sft.head_only (true) leaves as it is: set sft.head_only=false"
        )
    if config.data.texts and config.sft.head_steps and config.sft.head_only and in_one_pass:
        problems.append(
            f"data.texts={format_setting(config.data.texts)} train the language model, which "
            "sft.head_only (true) leaves as it is: set sft.head_only=false"
        )
    if recap.num_rounds and not in_one_pass:
        problems.append(
            f"recap.num_rounds ({recap.num_rounds}) trains a separate head on features of the "
            f"model, and policy={policy.name} has none: choose policy.decoding=parallel, or "
            "another "
            "policy"
        )
    sentence = config.data.sentence
    if sentence is not None and not in_one_pass:
        problems.append(
            f"data.sentence places images in the text, which policy={policy.name} does not "
            "support: choose policy.decoding=parallel, or another policy"
        )
    if sentence is not None and "{instruction}" not in sentence:
        problems.append(
            f"data.sentence ({sentence}) has no {{instruction}} in it: the policy would get no "
            "instruction; add it"
        )
    if recap.guidance != 1 and not policy.traits.can_guide:
        problems.append(
            f"recap.guidance ({recap.guidance}) combines predictions with and without a label, "
            f"which policy={policy.name} does not support: set it to 1"
        )
    return problems


def seed_conflicts(evaluation: Evaluation) -> list[str]:
    """Seed ranges that are empty, overlap, or hold fewer starts than an evaluation needs."""
    names = ("train_seeds", "validation_seeds", "eval_seeds")
    ranges = {name: getattr(evaluation, name) for name in names}
    problems = [
        f"evaluation.{name} ({seeds.first} to {seeds.last}) is empty: raise `last` to `first` or "
        "above"
        for name, seeds in ranges.items()
        if seeds.last < seeds.first
    ]
    for (name, seeds), (other, others) in combinations(ranges.items(), 2):
        if not problems and seeds.first <= others.last and others.first <= seeds.last:
            problems.append(
                f"evaluation.{other} ({others.first} to {others.last}) overlap "
                f"evaluation.{name} ({seeds.first} to {seeds.last}): evaluation needs unseen "
                "starts, keep the ranges apart"
            )
    for setting, name in (
        ("num_starts", "eval_seeds"),
        ("num_validation_starts", "validation_seeds"),
    ):
        number = getattr(evaluation, setting)
        capacity = ranges[name].last - ranges[name].first + 1
        if not problems and number > capacity:
            problems.append(
                f"evaluation.{setting} ({number}) is more than evaluation.{name} holds "
                f"({capacity}): widen the range"
            )
    return problems

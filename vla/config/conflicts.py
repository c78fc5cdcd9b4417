"""What is wrong between settings that are each right: every message names the setting, its value
and the remedy."""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import combinations

from vla.config.explain import format_setting
from vla.config.model_conflicts import language_model_conflicts, model_conflicts
from vla.config.processes import process_conflicts
from vla.config.rl_conflicts import (
    adapter_conflicts,
    branch_conflicts,
    rl_conflicts,
    text_rl_conflicts,
)
from vla.config.robot import RobotConfig
from vla.config.text import Constitution, TextConfig, TextPreference
from vla.config.training import Evaluation, Train
from vla.ranges import nearest_divisor
from vla.rewards.gold_rewards import GOLD_REWARDS
from vla.rewards.verifiers import ANSWER_PREFIX, verifier_table
from vla.spelling import suggestion


def find_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """What is wrong between settings that are each right, a line apiece: setting, value, remedy."""
    found = (
        rl_conflicts(config.rl, config.algorithm)
        + adapter_conflicts(config)
        + process_conflicts(config)
    )
    if isinstance(config, TextConfig):
        found += text_rl_conflicts(config.rl) + language_model_conflicts(config.language_model)
        found += engine_conflicts(config) + guidance_conflicts(config) + mixture_conflicts(config)
        found += reward_conflicts(config) + gold_conflicts(config) + fit_conflicts(config)
        found += turn_conflicts(config) + sampling_conflicts(config)
    if isinstance(config, RobotConfig):
        found += branch_conflicts(config) + device_conflicts(config.train)
        found += scene_conflicts(config) + chunk_conflicts(config)
        found += (
            model_conflicts(config) + seed_conflicts(config.evaluation) + recap_conflicts(config)
        )
        found += zero_conflicts("sim.reward", config.sim.reward)
    return found


def device_conflicts(train: Train) -> list[str]:
    """A robot policy trains on the CPU in float32; what asks for more would be ignored."""
    return [
        f"train.{setting} ({value}) is for mode=text: a robot policy trains on the CPU in float32, set it to {usual}"
        for setting, value, usual, ignored in (
            ("device", train.device, "auto or cpu", ("cuda",)),
            ("precision", train.precision, "auto or fp32", ("bf16",)),
        )
        if value in ignored
    ]


def zero_conflicts(setting: str, weights: dict[str, float]) -> list[str]:
    """Rewards that pay nothing."""
    if any(weights.values()):
        return []
    return [
        f"{setting} ({format_setting(weights)}) weighs every reward 0, so there is nothing to learn: give one a weight"
    ]


def reward_conflicts(config: TextConfig) -> list[str]:
    """Verifiers that do not exist, and rewards that pay nothing."""
    text = config.text
    if text.name not in ("rlvr", "rejection"):
        return []
    found = zero_conflicts("text.rewards", text.rewards)
    return found + [
        f"text.rewards.{name} ({format_setting(weight)}): verifier {name!r} is unknown{suggestion(name, reward_names())}, or "
        "package.module:function of an installed package"
        for name, weight in text.rewards.items()
        if not is_verifier(name)
    ]


def reward_names() -> tuple[str, ...]:
    """The rewards of text that have a name: the built-in ones, and every verifier of the table."""
    return ("correct", "code", "finished", *verifier_table())


def gold_conflicts(config: TextConfig) -> list[str]:
    """A gold reward that does not exist."""
    name = getattr(config.text, "gold", None)
    if name is None or name in GOLD_REWARDS or names_function(name):
        return []
    return [
        f"text.gold ({name}): gold {name!r} is unknown{suggestion(name, tuple(GOLD_REWARDS))}, or "
        "package.module:function of an installed package"
    ]


def is_verifier(name: str) -> bool:
    """Check that a reward has a name of `reward_names`, or names a function of a package."""
    name = name.removeprefix(ANSWER_PREFIX)
    return name in reward_names() or names_function(name)


def names_function(name: str) -> bool:
    """Whether `package.module:function` (or a dot there) begins with a package that can be
    imported; nothing is."""
    package = re.match(r"([a-zA-Z]\w*)[.:].", name)
    return package is not None and find_spec(package[1]) is not None


def mixture_conflicts(config: TextConfig) -> list[str]:
    text = config.text
    if text.name != "sft" or text.weights is None or len(text.weights) == len(text.sources):
        return []
    return [
        f"text.weights={format_setting(text.weights)} must be as many as text.sources={format_setting(text.sources)}: give one for "
        "each, or null"
    ]


def fit_conflicts(config: TextConfig) -> list[str]:
    """How long a fit is, said twice or not at all, and batches in which KTO has nothing to compare
    with."""
    text, found = config.text, []
    for name in ("sft", "reward_model", "fit"):
        fit = getattr(text, name, None)
        if fit is not None and (fit.num_steps is None) == (fit.num_epochs is None):
            found.append(
                f"text.{name}.num_steps ({format_setting(fit.num_steps)}) and text.{name}.num_epochs ({format_setting(fit.num_epochs)}) "
                "say the same thing: give one of them, and set the other to null"
            )
    if (
        isinstance(text, TextPreference | Constitution)
        and config.preference.name == "kto"
        and text.fit.batch_size < 2
    ):
        found.append(
            f"text.fit.batch_size ({text.fit.batch_size}) must be at least 2 under preference=kto, whose baseline "
            "puts the completion of another prompt behind each: raise it"
        )
    return found


def turn_conflicts(config: TextConfig) -> list[str]:
    """A tool is called between two turns."""
    text = config.text
    if text.name != "rlvr" or (text.tool is None) == (text.max_turns == 1):
        return []
    if text.tool is None:
        return [
            f"text.max_turns ({text.max_turns}) must be 1 without text.tool: set it to 1, or name a tool"
        ]
    return [
        f"text.max_turns (1) leaves no turn in which text.tool ({text.tool}) could be called: 2 or more"
    ]


def sampling_conflicts(config: TextConfig) -> list[str]:
    """Samples that are all alike, from which nothing can be learned."""
    text = config.text
    if text.name == "rlvr":
        path, sampling, learns = "text.sampling", text.sampling, config.rl.num_iterations > 0
    elif text.name in ("rlhf", "preference", "rlaif"):
        path, sampling = "text.generation.sampling", text.generation.sampling
        learns = text.name == "rlhf" or text.comparisons is None
    else:
        return []
    if sampling.top_k != 1 or not learns:
        return []
    return [
        f"{path}.top_k (1) leaves one token to draw, so all samples of a prompt are alike and nothing can be learned: "
        "0 is no limit"
    ]


def engine_conflicts(config: TextConfig) -> list[str]:
    model = config.language_model
    if model.name == "tiny" or model.engine == "own":
        return []
    found = []
    if config.rl.importance_cap is None:
        found.append(
            "rl.importance_cap (null) must be set under language_model.engine=vllm, whose log-probabilities are not "
            "exactly those of the update: 2 is usual"
        )
    if model.lora is not None:
        found.append(
            "language_model.lora does not go with language_model.engine=vllm: set one of them to null or own"
        )
    return found


def guidance_conflicts(config: TextConfig) -> list[str]:
    text = config.text
    if (
        text.name != "control"
        or text.guidance == 1
        or getattr(config.language_model, "engine", "own") == "own"
    ):
        return []
    return [
        f"text.guidance ({text.guidance}) weighs several prompts token by token, which language_model.engine=vllm does "
        "not: set it to 1, or language_model.engine=own"
    ]


def chunk_conflicts(config: RobotConfig) -> list[str]:
    chunk, max_steps = config.policy.chunk, config.sim.max_steps
    if max_steps % chunk == 0:
        return []
    return [
        f"policy.chunk ({chunk}) must divide sim.max_steps ({max_steps}): {nearest_divisor(chunk, max_steps)} does"
    ]


def scene_conflicts(config: RobotConfig) -> list[str]:
    """What a simulator without scenes cannot give: questions about them, and the pictures of the
    model that ships."""
    if config.sim.kind.has_scenes:
        return []
    found, name = [], f"sim.simulator={config.sim.simulator}"
    if config.model.checkpoint == "embedded":
        found.append(
            f"model.checkpoint (embedded) knows our two cameras and none of {name}: set it to null"
        )
    if config.grounding.num_steps and config.model.checkpoint is None:
        found.append(f"grounding.num_steps asks about scenes, and {name} has none: set it to 0")
    if config.data.question_weight:
        found.append(f"data.question_weight needs scenes, and {name} has none: set it to 0")
    return found


def recap_conflicts(config: RobotConfig) -> list[str]:
    """What advantage-conditioned training, tokens beside an expert, texts and multimodal sentences
    cannot do."""
    policy, recap, found = config.policy, config.recap, []
    in_one_pass = policy.traits.cache is not None
    token_weight = getattr(policy, "token_weight", 0)
    if token_weight and config.sft.head_steps and config.sft.head_only:
        found.append(
            f"policy.token_weight ({token_weight}) trains the vision-language model, which "
            "sft.head_only (true) leaves as it is: set sft.head_only=false"
        )
    if config.data.texts and config.sft.head_steps and config.sft.head_only and in_one_pass:
        found.append(
            f"data.texts={format_setting(config.data.texts)} train the language model, which sft.head_only (true) "
            "leaves as it is: set sft.head_only=false"
        )
    if recap.num_rounds and not in_one_pass:
        found.append(
            f"recap.num_rounds ({recap.num_rounds}) trains a head on what the model sees, and "
            f"policy={policy.name} has none apart: choose policy.decoding=parallel, or another policy"
        )
    sentence = config.data.sentence
    if sentence is not None and not in_one_pass:
        found.append(
            f"data.sentence puts images into the text, which policy={policy.name} does not read: choose "
            "policy.decoding=parallel, or another policy"
        )
    if sentence is not None and "{instruction}" not in sentence:
        found.append(
            f"data.sentence ({sentence}) has no {{instruction}} in it: the policy would not know what to do"
        )
    if recap.guidance != 1 and not policy.traits.can_guide:
        found.append(
            f"recap.guidance ({recap.guidance}) combines predictions with and without a label, which policy={policy.name} "
            "does not: set it to 1"
        )
    return found


def seed_conflicts(evaluation: Evaluation) -> list[str]:
    names = ("train_seeds", "validation_seeds", "eval_seeds")
    ranges = {name: getattr(evaluation, name) for name in names}
    found = [
        f"evaluation.{name} ({seeds.first} to {seeds.last}) is empty: raise `last` to `first` or above"
        for name, seeds in ranges.items()
        if seeds.last < seeds.first
    ]
    for (name, seeds), (other, others) in combinations(ranges.items(), 2):
        if not found and seeds.first <= others.last and others.first <= seeds.last:
            found.append(
                f"evaluation.{other} ({others.first} to {others.last}) overlap evaluation.{name} ({seeds.first} to "
                f"{seeds.last}): a start seen before proves nothing, keep the ranges apart"
            )
    for setting, name in (
        ("num_starts", "eval_seeds"),
        ("num_validation_starts", "validation_seeds"),
    ):
        number, room = getattr(evaluation, setting), ranges[name].last - ranges[name].first + 1
        if not found and number > room:
            found.append(
                f"evaluation.{setting} ({number}) is more than evaluation.{name} holds ({room}): widen the range"
            )
    return found

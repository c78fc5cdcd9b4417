"""Settings without effect in a run, and the reasons; one that the user gives is refused.

The rules follow the choices of a run: its mode, its algorithm, its policy, and the stages that are
switched off by a number. `tests/config/test_effects.py` compares them with the settings that runs
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vla.config.compose import ConfigError, compose, split_overrides, value_at
from vla.config.engine_conflicts import unused_engine_settings
from vla.config.robot import RobotConfig
from vla.config.text import Rlhf, Rlvr, TextConfig, TextPreference, TextSft
from vla.config.training import ADAPTERS

BRANCHES = "rl.num_branches"
NO_VALIDATION = "rl.evaluate_every is more than rl.num_iterations, so no validation runs"
BRANCH_SETTINGS = (
    "branch_fraction",
    "branch_discount",
    "num_branch_warmup_iterations",
    "greedy_branching_every",
)


SAMPLING_SETTINGS = (
    "temperature",
    "exploration",
    "num_stochastic_steps",
    "noise_level",
    "min_noise",
    "max_noise",
    "min_std",
)
"""Settings of a policy's own draws, which an adapter replaces."""


@dataclass(frozen=True)
class UnusedSetting:
    """A setting or a whole section without effect.

    Attributes:
        path: dotted name of the setting or section.
        why: the reason.
        switch: the setting that switches it off. A user who gives the switch too gets a note in
            place of an error, so that one launch script serves many runs.
    """

    path: str
    why: str
    switch: str | None = None

    def covers(self, path: str) -> bool:
        """True where `path` is the setting, or inside the section."""
        return path == self.path or path.startswith(f"{self.path}.")


def find_unused_settings(config: RobotConfig | TextConfig) -> list[UnusedSetting]:
    """List every setting without effect in this run."""
    unused = [*rl_rules(config)]
    unused += robot_rules(config) if isinstance(config, RobotConfig) else text_rules(config)
    return unused


def unused_settings(
    section: str, names: Iterable[str], why: str, switch: str | None = None
) -> Iterator[UnusedSetting]:
    """Several settings of a section, for one reason."""
    return (UnusedSetting(f"{section}.{name}", why, switch) for name in names)


def rl_rules(config: RobotConfig | TextConfig) -> Iterator[UnusedSetting]:
    """Settings of RL without effect, for robots and text."""
    rl = config.rl
    algorithm = config.algorithm
    if isinstance(config, TextConfig) and not isinstance(config.text, Rlvr | Rlhf):
        yield from (
            UnusedSetting(name, f"text={config.text.name} runs no reinforcement learning")
            for name in ("rl", "algorithm")
        )
        return
    if rl.num_iterations == 0:
        others = (name for name in type(rl).model_fields if name != "num_iterations")
        yield from unused_settings("rl", others, "rl.num_iterations is 0", "rl.num_iterations")
        yield UnusedSetting("algorithm", "rl.num_iterations is 0", "rl.num_iterations")
        return
    if not rl.num_branches:
        yield from unused_settings("rl", BRANCH_SETTINGS, "rl.num_branches is 0", BRANCHES)
    if rl.optimizer != "muon":
        yield UnusedSetting("rl.muon_learning_rate", f"rl.optimizer is {rl.optimizer}")
    for setting, adapt in (("residual_scale", "residual"), ("noise_bound", "noise")):
        if rl.adapt != adapt:
            yield UnusedSetting(f"rl.{setting}", f"rl.adapt is {rl.adapt}", "rl.adapt")
    if not rl.workers:
        names = ("worker_resources", "async_rollouts")
        yield from unused_settings("rl", names, "rl.workers is 0", "rl.workers")
    if not algorithm.traits.needs_values:
        yield UnusedSetting(
            "rl.critic_learning_rate", f"algorithm={algorithm.name} has no critic here"
        )
    if rl.importance_cap is None:
        yield UnusedSetting("rl.importance_level", "rl.importance_cap is null")
    if rl.epochs * rl.num_minibatches == 1:
        yield UnusedSetting(
            "rl.target_kl",
            "a rollout gives a single optimizer step (rl.epochs and rl.num_minibatches)",
        )
    if rl.evaluate_every > rl.num_iterations:
        yield UnusedSetting("rl.patience", NO_VALIDATION)
    yield from algorithm_rules(config)


def algorithm_rules(config: RobotConfig | TextConfig) -> Iterator[UnusedSetting]:
    """Settings of the algorithm that other settings switch off."""
    algorithm = config.algorithm
    names = type(algorithm).model_fields
    if not algorithm.traits.needs_reference:
        others = (n for n in names if n.startswith("kl_") and n != "kl_coefficient")
        yield from unused_settings("algorithm", others, "algorithm.kl_coefficient is 0")
    # An algorithm without a setting `along` assigns credit along the decisions of a robot.
    along_decisions = getattr(algorithm, "along", None) == "decision"
    if isinstance(config, RobotConfig):
        why = "a branch is one decision (rl.num_branches)" if config.rl.num_branches else None
        along_decisions = along_decisions or "along" not in names
    else:
        one_turn = not isinstance(config.text, Rlvr) or config.text.max_turns == 1
        why = "an answer is one decision" if one_turn else None
    if why is not None and along_decisions:
        yield from unused_settings("algorithm", ("gamma", "gae_lambda"), why)


def robot_rules(config: RobotConfig) -> Iterator[UnusedSetting]:
    """Settings without effect in a robot run."""
    yield from grounding_rules(config)
    yield from sft_rules(config)
    yield from data_rules(config)
    yield from policy_rules(config)
    recap = config.recap
    rl = config.rl
    if not recap.num_rounds:
        others = (name for name in type(recap).model_fields if name != "num_rounds")
        yield from unused_settings("recap", others, "recap.num_rounds is 0", "recap.num_rounds")
    if not rl.num_iterations and not recap.num_rounds:
        yield UnusedSetting(
            "evaluation.num_validation_starts", "rl.num_iterations is 0", "rl.num_iterations"
        )
    if not rl.num_iterations or not config.algorithm.traits.needs_values:
        yield UnusedSetting(
            "model.detach_critic", f"algorithm={config.algorithm.name} trains no critic here"
        )


def grounding_rules(config: RobotConfig) -> Iterator[UnusedSetting]:
    """Settings of grounding without effect."""
    grounding = config.grounding
    checkpoint = config.model.checkpoint
    if config.policy.path is not None:
        yield UnusedSetting("grounding", "the policy of policy.path has it behind it")
    elif checkpoint is not None:
        yield UnusedSetting(
            "grounding", f"model.checkpoint={checkpoint} is pretrained already", "model.checkpoint"
        )
    elif not grounding.num_steps:
        others = (name for name in type(grounding).model_fields if name != "num_steps")
        yield from unused_settings(
            "grounding", others, "grounding.num_steps is 0", "grounding.num_steps"
        )


WHOLE_SETTINGS = (
    "num_steps",
    "micro_batch_size",
    "learning_rate",
    "optimizer",
    "muon_learning_rate",
    "schedule",
    "ema_decay",
    "evaluate_every",
    "max_seconds",
)
"""Settings of the steps that train the whole policy, after the steps of the head."""


def has_separate_head(config: RobotConfig) -> bool:
    """True where the policy has a head that trains on cached features."""
    return config.policy.traits.cache is not None


def trains_whole_policy(config: RobotConfig) -> bool:
    """True where SFT trains more than the head."""
    head_alone = config.sft.head_only and config.sft.head_steps > 0 and has_separate_head(config)
    return not head_alone and config.sft.num_steps > 0


def sft_rules(config: RobotConfig) -> Iterator[UnusedSetting]:
    """Settings of SFT without effect."""
    sft = config.sft
    if sft.head_only and sft.head_steps and has_separate_head(config):
        yield from unused_settings(
            "sft", WHOLE_SETTINGS, "sft.head_only trains the head alone", "sft.head_only"
        )
    elif not sft.num_steps:
        yield from unused_settings("sft", WHOLE_SETTINGS[1:], "sft.num_steps is 0", "sft.num_steps")
    elif sft.optimizer != "muon":
        yield UnusedSetting("sft.muon_learning_rate", f"sft.optimizer is {sft.optimizer}")
    if not has_separate_head(config):
        yield from unused_settings(
            "sft",
            ("head_steps", "max_head_epochs", "head_only"),
            "this policy.decoding has no separate head",
        )
    elif not sft.head_steps:
        yield from unused_settings(
            "sft", ("max_head_epochs", "head_only"), "sft.head_steps is 0", "sft.head_steps"
        )
    if not config.recap.num_rounds and not (sft.head_steps and has_separate_head(config)):
        yield from unused_settings(
            "sft",
            ("head_batch_size", "head_learning_rate"),
            "nothing trains the head alone (sft.head_steps)",
        )


def data_rules(config: RobotConfig) -> Iterator[UnusedSetting]:
    """Settings of demonstrations, questions and texts without effect."""
    data = config.data
    if not config.needs_demonstrations:
        unread = (name for name in type(data).model_fields if name != "sentence")
        why = "RL starts from policy.path at once (sft.num_steps is 0)"
        yield from unused_settings("data", unread, why, "sft.num_steps")
        return
    if data.path is not None:
        own = ("num_demonstrations", "image_format", "expert_perturbation_probability")
        yield from unused_settings(
            "data", own, f"data.path={data.path} gives the demonstrations", "data.path"
        )
    questions = ("question_batch_size", "questions_per_scene")
    if not trains_whole_policy(config):
        why = "SFT trains the head alone (sft.head_only), questions train the model"
        yield from unused_settings("data", ("question_weight", *questions), why, "sft.head_only")
    elif not data.question_weight:
        yield from unused_settings(
            "data", questions, "data.question_weight is 0", "data.question_weight"
        )
    if not config.sim.kind.has_scenes:
        why = f"sim.simulator={config.sim.simulator} has no scenes to ask about"
        yield UnusedSetting("data.num_question_scenes", why)
    if not data.texts:
        names = ("text_weight", "text_batch_size", "text_tokens", "on_bad_row")
        yield from unused_settings("data", names, "data.texts is []", "data.texts")


def policy_rules(config: RobotConfig) -> Iterator[UnusedSetting]:
    """Settings that another setting of the policy leaves without effect."""
    policy = config.policy
    if policy.path is None:
        yield UnusedSetting("policy.statistics", "policy.path is null", "policy.path")
    adapt = config.rl.adapt
    if adapt in ADAPTERS:
        sampled = (name for name in SAMPLING_SETTINGS if name in type(policy).model_fields)
        why = f"the adapter samples the decisions (rl.adapt={adapt})"
        yield from unused_settings("policy", sampled, why, "rl.adapt")
        yield UnusedSetting("model.detach_critic", why, "rl.adapt")
    for cause, names in policy.traits.unused.items():
        value = getattr(policy, cause)
        shown = f"{value:g}" if isinstance(value, float) else value
        switch = None if isinstance(value, str) else f"policy.{cause}"
        yield from unused_settings("policy", names, f"policy.{cause} is {shown}", switch)


def text_rules(config: TextConfig) -> Iterator[UnusedSetting]:
    """Settings without effect in a text run."""
    text = config.text
    if text.name not in ("preference", "rlaif", "constitution"):
        yield UnusedSetting("preference", f"text={text.name} has no preference loss")
    for path, why in unused_engine_settings(config):
        yield UnusedSetting(path, why, "language_model.engine")
    match text:
        case Rlvr():
            yield from rlvr_rules(config, text)
        case Rlhf():
            yield from rlhf_rules(text)
            yield from judge_rules(text)
        case TextPreference():
            yield from judge_rules(text)
            if text.comparisons is not None:
                yield from unused_settings(
                    "text", ("samples_per_prompt",), "text.comparisons gives the completions"
                )
                if (
                    config.language_model.name != "tiny"
                ):  # its tokenizer is trained on these prompts
                    yield UnusedSetting(
                        "text.prompts.num_train", "text.comparisons gives the completions"
                    )
                yield UnusedSetting(
                    "text.generation.sampling", "text.comparisons gives the completions"
                )
        case TextSft() if text.weights is not None and len(text.sources) == 1:
            yield UnusedSetting("text.weights", "text.sources has one source")


def rlvr_rules(config: TextConfig, text: Rlvr) -> Iterator[UnusedSetting]:
    """Settings without effect in RL on verified rewards."""
    rl = config.rl
    if rl.evaluate_every > rl.num_iterations and not rl.load_best_at_end:
        yield UnusedSetting("rl.target_success", NO_VALIDATION)
    if rl.max_resamples:
        yield UnusedSetting(
            "text.max_batch_growth", "rl.max_resamples replaces groups of equal rewards already"
        )
    if len(text.families) == 1:
        yield UnusedSetting("text.curriculum_threshold", "text.families has one family")
    if not text.format_sft_steps:
        yield UnusedSetting(
            "text.format_sft_learning_rate", "text.format_sft_steps is 0", "text.format_sft_steps"
        )


def rlhf_rules(text: Rlhf) -> Iterator[UnusedSetting]:
    """Settings without effect in RLHF."""
    unused = ("max_resamples", "evaluate_every", "target_success", "patience", "load_best_at_end")
    yield from unused_settings(
        "rl",
        unused,
        "text=rlhf has no verified success, so neither validation nor resampling of groups",
    )
    if not text.demonstrations:
        yield UnusedSetting("text.sft", "text.demonstrations is 0", "text.demonstrations")
        if text.comparisons is not None:
            yield UnusedSetting("text.samples_per_prompt", "text.comparisons gives the completions")


def judge_rules(text: Rlhf | TextPreference) -> Iterator[UnusedSetting]:
    """Settings that the chosen judge does not use."""
    if text.comparisons is not None:
        yield UnusedSetting("text.judge", "text.comparisons holds judged pairs")
        return
    unused = {
        "gold": ("rubric", "url", "model"),
        "model": ("noise", "url", "model"),
        "url": ("noise",),
    }[text.judge.name]
    yield from unused_settings("text.judge", unused, f"text.judge.name is {text.judge.name}")


def check_unused_settings(
    config: RobotConfig | TextConfig, overrides: Sequence[str], without_branches: bool
) -> list[str]:
    """Refuse given settings without effect; return notes on those whose switch was given too.

    A setting that the fallback `without_branches` switches off gives a note as well. A value equal
    to the default passes.

    Raises:
        ConfigError: names each setting, its value and the setting it depends on.
    """
    given = split_overrides(overrides)
    unused = {
        key: one
        for key in given
        for one in find_unused_settings(config)
        if one.covers(key.lstrip("+~"))
    }
    if not unused:
        return []
    values = config.model_dump(mode="json")
    others = compose(
        [override for override in overrides if override.partition("=")[0] not in unused]
    )
    refused: list[str] = []
    notes: list[str] = []
    for key, one in unused.items():
        path = key.lstrip("+~")
        if value_at(values, path) == value_at(others, path):
            continue
        by_name = one.switch in given and one.switch != BRANCHES
        line = f"{key}={given[key]} has no effect: {one.why}"
        by_fallback = one.switch == BRANCHES and without_branches
        (notes if by_name or by_fallback else refused).append(line)
    if refused:
        raise ConfigError("\n".join(f"{line}; leave it out" for line in refused))
    return notes

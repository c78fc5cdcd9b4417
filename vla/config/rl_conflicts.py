"""Conflicts between the settings of reinforcement learning and of its algorithm."""

from __future__ import annotations

from vla.config.algorithm import AlgorithmSection
from vla.config.errors import ConfigError
from vla.config.explain import format_setting
from vla.config.robot import RobotConfig
from vla.config.text import TextConfig
from vla.config.training import Rl
from vla.config.whole_episodes import explain_missing_branches
from vla.ranges import nearest_divisor
from vla.rl.traits import AlgorithmTraits


def rl_conflicts(rl: Rl, algorithm: AlgorithmSection) -> list[str]:
    """Conflicts of the section `rl` with itself and with the algorithm, one message each."""
    try:
        traits = algorithm.traits
    except ConfigError as error:
        return [str(error)]
    problems = length_conflicts(rl)
    if traits.needs_groups and rl.group_size < 2 and not rl.num_branches:
        problems.append(
            f"rl.group_size ({rl.group_size}) must be at least 2 under "
            f"algorithm={algorithm.name}, which compares "
            "the trajectories of a group: raise it, or choose algorithm=ppo"
        )
    if rl.max_resamples and getattr(algorithm, "keep_equal_groups", False):
        problems.append(
            f"rl.max_resamples ({rl.max_resamples}) drops the groups that "
            "algorithm.keep_equal_groups (true) keeps: set it "
            "to 0, or algorithm.keep_equal_groups to false"
        )
    if rl.max_resamples and rl.group_size < 2 and not rl.num_branches:
        problems.append(
            f"rl.max_resamples ({rl.max_resamples}) replaces groups of equal rewards, and groups "
            "of "
            "rl.group_size (1) are always equal: set it to 0, or rl.group_size to 8"
        )
    if rl.num_critic_warmup_iterations and not traits.needs_values:
        problems.append(
            f"rl.num_critic_warmup_iterations ({rl.num_critic_warmup_iterations}) needs a critic, "
            "and "
            f"algorithm={algorithm.name} has none: set it to 0, or choose algorithm=ppo"
        )
    if not traits.uses_ratio and (rl.epochs > 1 or rl.num_minibatches > 1):
        problems.append(
            f"rl.epochs ({rl.epochs}) and rl.num_minibatches ({rl.num_minibatches}) must be 1 "
            "under "
            f"algorithm={algorithm.name}, which has no ratio to correct for steps already taken: "
            "set both to 1, or choose "
            "reinforce_plus_plus"
        )
    if (rl.kl_target is None) != (rl.kl_horizon is None):
        problems.append(
            f"rl.kl_target ({format_setting(rl.kl_target)}) and rl.kl_horizon "
            f"({format_setting(rl.kl_horizon)}) belong together: "
            "give both (6 and 10000 are usual) or neither"
        )
    num_trajectories = rl.num_start_states * rl.group_size
    if num_trajectories % rl.num_minibatches and not rl.num_branches:
        problems.append(
            f"rl.num_minibatches ({rl.num_minibatches}) must divide the trajectories of a rollout, "
            f"rl.num_start_states x rl.group_size ({num_trajectories}): "
            f"{nearest_divisor(rl.num_minibatches, num_trajectories)} does"
        )
    return (
        problems
        + missing_conflicts(rl, algorithm.name, traits)
        + reference_conflicts(rl, algorithm.name, traits)
    )


def length_conflicts(rl: Rl) -> list[str]:
    """Warm-ups longer than the run."""
    if not rl.num_iterations:
        return []
    problems = []
    if rl.warmup_iterations is not None and rl.warmup_iterations > rl.num_iterations:
        problems.append(
            f"rl.warmup_iterations ({rl.warmup_iterations}) is more than rl.num_iterations "
            f"({rl.num_iterations}): the "
            "learning rate would never be reached, give a hundredth of the iterations (null)"
        )
    if rl.num_critic_warmup_iterations > rl.num_iterations:
        problems.append(
            f"rl.num_critic_warmup_iterations ({rl.num_critic_warmup_iterations}) is more than "
            f"rl.num_iterations ({rl.num_iterations}): give fewer, or 0"
        )
    return problems


def branch_conflicts(config: RobotConfig) -> list[str]:
    """Settings that branches exclude, and reasons that rule out branches."""
    rl = config.rl
    if not rl.num_branches or not rl.num_iterations:
        return []
    problems = []
    if rl.num_branches < 2:
        problems.append(
            f"rl.num_branches ({rl.num_branches}) must be at least 2, or 0 for whole episodes: 8 "
            "is usual"
        )
    if rl.max_resamples:
        problems.append(
            f"rl.max_resamples ({rl.max_resamples}) must be 0 with rl.num_branches "
            f"({rl.num_branches})"
        )
    why = explain_missing_branches(config)
    if why:
        problems.append(
            f"rl.num_branches ({rl.num_branches}) is not possible: {why}. Learn from whole "
            "episodes: rl.num_branches=0 "
            "rl.group_size=8"
        )
    return problems


def text_rl_conflicts(rl: Rl) -> list[str]:
    """Settings of RL that only robots use."""
    return [
        f"rl.{setting} ({format_setting(value)}) is for robots: set it to {off} in mode=text"
        for setting, value, off in (
            ("num_branches", rl.num_branches, 0),
            ("greedy_branching_every", rl.greedy_branching_every, "null"),
            ("adapt", "" if rl.adapt == "weights" else rl.adapt, "weights"),
        )
        if value
    ]


def adapt_conflicts(config: RobotConfig) -> list[str]:
    """Weights to move that the model does not have, and noise that the policy does not start
    from."""
    adapt = config.rl.adapt
    policy = config.policy
    if not config.rl.num_iterations:
        return []
    if adapt == "lora" and config.model.lora is None:
        return [
            "rl.adapt (lora) moves an adapter, and model.lora is null: set model.lora, or "
            "rl.adapt=backbone"
        ]
    if adapt == "backbone" and config.model.lora is not None:
        return [
            "rl.adapt (backbone) moves weights that model.lora keeps frozen: choose rl.adapt=lora, "
            "which moves the adapter, or set model.lora to null"
        ]
    if adapt == "noise" and not getattr(policy.traits, "starts_from_noise", False):
        return [
            "rl.adapt (noise) steers the initial noise of a flow or diffusion policy, and "
            f"policy={policy.name} starts from none: choose rl.adapt=residual, policy=flow or "
            "policy=diffusion"
        ]
    return []


def missing_conflicts(rl: Rl, name: str, traits: AlgorithmTraits) -> list[str]:
    """Settings of a reference or critic that the algorithm lacks."""
    problems = []
    if not traits.needs_reference:
        problems = [
            f"rl.{setting} ({format_setting(value)}) is about the reference of a KL penalty, and "
            "algorithm.kl_coefficient is 0 "
            f"or no setting of algorithm={name}: start it above 0, or set rl.{setting} to null"
            for setting, value in (
                ("kl_target", rl.kl_target),
                ("reference_refresh_every", rl.reference_refresh_every),
            )
            if value is not None
        ]
    if rl.critic == "separate" and not traits.needs_values:
        problems.append(
            f"rl.critic (separate) needs an algorithm with a critic, and algorithm={name} has "
            "none: set it "
            "to shared, or choose algorithm=ppo"
        )
    return problems


def reference_conflicts(rl: Rl, name: str, traits: AlgorithmTraits) -> list[str]:
    """A reference without use, or whose KL would always be 0."""
    if rl.reference == "auto":
        return []
    if not traits.needs_reference:
        return [
            f"rl.reference ({rl.reference}) is about a KL penalty, and algorithm.kl_coefficient "
            "is 0 or no setting of "
            f"algorithm={name}: start it above 0, or set rl.reference to auto"
        ]
    if rl.reference != "rollout":
        return []
    problems = []
    if traits.kl_placement != "loss":
        problems.append(
            f"rl.reference (rollout) has no effect on the rewards of algorithm={name}: the policy "
            "that sampled "
            "is its own reference; choose a KL in the loss (algorithm=grpo, or ppo with "
            "algorithm.kl_placement=loss), "
            "or rl.reference=copy"
        )
    if rl.kl_target is not None:
        problems.append(
            f"rl.kl_target ({rl.kl_target}) controls the KL of a rollout, which is 0 under "
            "rl.reference=rollout: set it to null, or rl.reference=copy"
        )
    if rl.reference_refresh_every is not None:
        problems.append(
            f"rl.reference_refresh_every ({rl.reference_refresh_every}) must be null under "
            "rl.reference=rollout, which "
            "follows the policy anyway"
        )
    if rl.epochs * rl.num_minibatches == 1:
        problems.append(
            "rl.reference (rollout) has no effect in the first optimizer step after a rollout, "
            "and rl.epochs (1) x "
            "rl.num_minibatches (1) makes no other: set either to 2 or more, or rl.reference=copy"
        )
    return problems


def adapter_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """rl.reference=adapter_off in a run whose model without adapter is no reference."""
    if config.rl.reference != "adapter_off":
        return []
    if isinstance(config, RobotConfig):
        return [
            "rl.reference (adapter_off) is for text: a robot policy trains its head too; set "
            "rl.reference to copy, which shares all weights that do not train"
        ]
    warm = (config.text.name == "rlvr" and config.text.format_sft_steps) or (
        config.text.name == "rlhf" and config.text.demonstrations
    )
    if config.language_model.lora is None or warm:
        why = (
            "trains the adapter before RL"
            if warm
            else "has no adapter (language_model.lora is null)"
        )
        return [f"rl.reference (adapter_off): this run {why}; set rl.reference to copy"]
    return []

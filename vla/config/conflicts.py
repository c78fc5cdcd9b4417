"""What is wrong between settings that are each right: every message names the setting, its value and the remedy."""

from __future__ import annotations

from itertools import combinations

from vla.config.algorithm import Algorithm, Dapo, Ppo, Reinforce, needs_critic, needs_groups
from vla.config.explain import shown
from vla.config.processes import process_conflicts
from vla.config.robot import DiffusionPolicy, FastPolicy, FlowPolicy, GymSim, Policy, RobotConfig
from vla.config.text import TextConfig
from vla.config.training import Evaluation, Rl
from vla.rl import checks


def conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """What is wrong between settings that are each right, a line apiece: setting, value, remedy."""
    found = rl_conflicts(config.rl, config.algorithm) + adapter_conflicts(config) + process_conflicts(config)
    if isinstance(config, TextConfig):
        found += (
            engine_conflicts(config)
            + guidance_conflicts(config)
            + mixture_conflicts(config)
            + simulator_conflicts(config.rl)
        )
    if isinstance(config, RobotConfig):
        found += gym_conflicts(config) + chunk_conflicts(config) + policy_conflicts(config.policy)
        found += model_conflicts(config) + seed_conflicts(config.evaluation) + recap_conflicts(config)
    return found


def mixture_conflicts(config: TextConfig) -> list[str]:
    text = config.text
    if text.name != "sft" or text.weights is None or len(text.weights) == len(text.sources):
        return []
    return [
        f"text.weights={shown(text.weights)} must be as many as text.sources={shown(text.sources)}: give one for "
        "each, or null"
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
        found.append("language_model.lora does not go with language_model.engine=vllm: set one of them to null or own")
    return found


def guidance_conflicts(config: TextConfig) -> list[str]:
    text = config.text
    if text.name != "control" or text.guidance == 1 or getattr(config.language_model, "engine", "own") == "own":
        return []
    return [
        f"text.guidance ({text.guidance}) weighs several prompts token by token, which language_model.engine=vllm does "
        "not: set it to 1, or language_model.engine=own"
    ]


def rl_conflicts(rl: Rl, algorithm: Algorithm) -> list[str]:
    found = algorithm_conflicts(algorithm)
    found += branch_conflicts(rl)
    if needs_groups(algorithm) and rl.group_size < 2 and not rl.num_branches:
        found.append(
            f"rl.group_size ({rl.group_size}) must be at least 2 under algorithm={algorithm.name}, which compares "
            "the trajectories of a group: raise it, or choose algorithm=ppo"
        )
    if rl.critic_warmup_iterations and not needs_critic(algorithm):
        found.append(
            f"rl.critic_warmup_iterations ({rl.critic_warmup_iterations}) needs a critic, and "
            f"algorithm={algorithm.name} has none: set it to 0, or choose algorithm=ppo"
        )
    if algorithm.name == "reinforce" and (rl.epochs > 1 or rl.num_minibatches > 1):
        found.append(
            f"rl.epochs ({rl.epochs}) and rl.num_minibatches ({rl.num_minibatches}) must be 1 under "
            "algorithm=reinforce, which has no ratio to correct for steps already taken: set both to 1, or choose "
            "reinforce_plus_plus"
        )
    if (rl.kl_target is None) != (rl.kl_horizon is None):
        found.append(
            f"rl.kl_target ({shown(rl.kl_target)}) and rl.kl_horizon ({shown(rl.kl_horizon)}) belong together: "
            "give both (6 and 10000 are usual) or neither"
        )
    num_trajectories = rl.starts_per_iteration * rl.group_size
    if num_trajectories % rl.num_minibatches and not rl.num_branches:
        found.append(
            f"rl.num_minibatches ({rl.num_minibatches}) must divide the trajectories of a rollout, "
            f"rl.starts_per_iteration x rl.group_size ({num_trajectories}): "
            f"{nearest_divisor(rl.num_minibatches, num_trajectories)} does"
        )
    return found + missing_conflicts(rl, algorithm) + reference_conflicts(rl, algorithm)


def branch_conflicts(rl: Rl) -> list[str]:
    """Branches are groups of their own: what does not go with them."""
    if not rl.num_branches:
        return []
    found = []
    if rl.num_branches < 2:
        found.append(f"rl.num_branches ({rl.num_branches}) must be at least 2, or 0 for whole episodes: 8 is usual")
    if rl.max_refills:
        found.append(f"rl.max_refills ({rl.max_refills}) must be 0 with rl.num_branches ({rl.num_branches})")
    return found


def simulator_conflicts(rl: Rl) -> list[str]:
    """What only robots do."""
    return [
        f"rl.{setting} ({shown(value)}) is for robots: set it to {off} in mode=text"
        for setting, value, off in (("num_branches", rl.num_branches, 0), ("average_decay", rl.average_decay, "null"))
        if value
    ]


def missing_conflicts(rl: Rl, algorithm: Algorithm) -> list[str]:
    """What is asked of a reference or a critic that the algorithm does not have."""
    found = []
    if not getattr(algorithm, "kl_coefficient", 0):
        found = [
            f"rl.{setting} ({shown(value)}) is about the reference of a KL penalty, and algorithm.kl_coefficient is 0 "
            f"or no setting of algorithm={algorithm.name}: start it above 0, or set rl.{setting} to null"
            for setting, value in (("kl_target", rl.kl_target), ("reference_every", rl.reference_every))
            if value is not None
        ]
    if rl.critic == "separate" and not needs_critic(algorithm):
        found.append(
            f"rl.critic (separate) needs an algorithm with a critic, and algorithm={algorithm.name} has none: set it "
            "to shared, or choose algorithm=ppo"
        )
    return found


def reference_conflicts(rl: Rl, algorithm: Algorithm) -> list[str]:
    """A reference that nothing asks, or that could only answer 0."""
    if rl.reference == "auto":
        return []
    if not getattr(algorithm, "kl_coefficient", 0):
        return [
            f"rl.reference ({rl.reference}) is about a KL penalty, and algorithm.kl_coefficient is 0 or no setting of "
            f"algorithm={algorithm.name}: start it above 0, or set rl.reference to auto"
        ]
    if rl.reference != "rollout":
        return []
    found = []
    if not kl_in_loss(algorithm):
        found.append(
            f"rl.reference (rollout) takes nothing from the rewards of algorithm={algorithm.name}, for whoever sampled "
            "is its own reference: choose a KL in the loss (algorithm=grpo, or ppo with algorithm.kl_placement=loss), "
            "or rl.reference=copy"
        )
    if rl.kl_target is not None:
        found.append(
            f"rl.kl_target ({rl.kl_target}) steers by the KL that a rollout has come to, which is 0 under "
            "rl.reference=rollout: set it to null, or rl.reference=copy"
        )
    if rl.reference_every is not None:
        found.append(
            f"rl.reference_every ({rl.reference_every}) must be null under rl.reference=rollout, which follows the "
            "policy anyway"
        )
    if rl.epochs * rl.num_minibatches == 1:
        found.append(
            "rl.reference (rollout) says nothing in the first optimizer step after a rollout, and rl.epochs (1) x "
            "rl.num_minibatches (1) makes no other: set either to 2 or more, or rl.reference=copy"
        )
    return found


def kl_in_loss(algorithm: Algorithm) -> bool:
    """Whether the KL is a term of the loss; elsewhere it is taken from the rewards."""
    if isinstance(algorithm, Ppo):
        return algorithm.kl_placement == "loss"
    return algorithm.name in ("grpo", "gspo") or getattr(algorithm, "baseline", None) == "group"


def adapter_conflicts(config: RobotConfig | TextConfig) -> list[str]:
    """Only a language model that trains nothing but its adapter is its own reference without it."""
    if config.rl.reference != "adapter_off":
        return []
    if isinstance(config, RobotConfig):
        return [
            "rl.reference (adapter_off) is for text: a robot policy trains its head beside the adapter; set "
            "rl.reference to copy, which shares all weights that do not train"
        ]
    warm = (config.text.name == "rlvr" and config.text.format_steps) or (
        config.text.name == "rlhf" and config.text.demonstrations
    )
    if config.language_model.lora is None or warm:
        why = "trains the adapter before RL" if warm else "has no adapter (language_model.lora is null)"
        return [f"rl.reference (adapter_off): this run {why}; set rl.reference to copy"]
    return []


def algorithm_conflicts(algorithm: Algorithm) -> list[str]:
    found = []
    if hasattr(algorithm, "reduction"):
        try:
            checks.reduction(algorithm.reduction, algorithm.max_length)
        except ValueError as error:
            found.append(f"algorithm.{error}")
    if isinstance(algorithm, Ppo):
        try:
            checks.draw_by_draw(algorithm.ratio_level, algorithm.clip_first_draw, algorithm.draw_discount)
        except ValueError as error:
            found.append(f"algorithm.{error}")
    if isinstance(algorithm, Reinforce) and (algorithm.value_coefficient is None) == (algorithm.baseline == "critic"):
        found.append(
            f"algorithm.value_coefficient ({shown(algorithm.value_coefficient)}) belongs to algorithm.baseline=critic, "
            f"and that is {algorithm.baseline}: give both or neither"
        )
    if isinstance(algorithm, Dapo) and (algorithm.max_length or 0) < algorithm.overlong_buffer:
        found.append(
            f"algorithm.max_length ({shown(algorithm.max_length)}) must be at least algorithm.overlong_buffer "
            f"({algorithm.overlong_buffer}): it is the most draws a trajectory can have"
        )
    if isinstance(algorithm, Dapo) and algorithm.max_length is not None and not algorithm.overlong_buffer:
        found.append(f"algorithm.max_length ({algorithm.max_length}) has no meaning without algorithm.overlong_buffer")
    return found


def chunk_conflicts(config: RobotConfig) -> list[str]:
    chunk, max_steps = config.policy.chunk, config.sim.max_steps
    if max_steps % chunk == 0:
        return []
    return [f"policy.chunk ({chunk}) must divide sim.max_steps ({max_steps}): {nearest_divisor(chunk, max_steps)} does"]


def gym_conflicts(config: RobotConfig) -> list[str]:
    """What an environment of gymnasium cannot give: scenes to ask about, and the pictures of the model that ships."""
    if not isinstance(config.sim, GymSim):
        return []
    found = []
    if config.model.checkpoint == "embedded":
        found.append("model.checkpoint (embedded) knows our two cameras and none of sim=gym: set it to null")
    if config.grounding.num_steps and config.model.checkpoint is None:
        found.append("grounding.num_steps asks about scenes, and sim=gym has none: set it to 0")
    if config.data.question_weight:
        found.append("data.question_weight needs scenes, and sim=gym has none: set it to 0")
    return found


def policy_conflicts(policy: Policy) -> list[str]:
    found = []
    if isinstance(policy, FlowPolicy) and policy.min_noise > policy.max_noise:
        found.append(
            f"policy.min_noise ({policy.min_noise}) must not exceed policy.max_noise ({policy.max_noise}): swap them"
        )
    if isinstance(policy, DiffusionPolicy) and policy.num_train_steps % policy.num_steps:
        found.append(
            f"policy.num_steps ({policy.num_steps}) must divide policy.num_train_steps ({policy.num_train_steps}): "
            f"{nearest_divisor(policy.num_steps, policy.num_train_steps)} does"
        )
    return found


def recap_conflicts(config: RobotConfig) -> list[str]:
    """What advantage-conditioned training, tokens beside an expert, texts and multimodal sentences cannot do."""
    policy, recap, found = config.policy, config.recap, []
    in_one_pass = getattr(policy, "decoding", "parallel") == "parallel"
    if getattr(policy, "token_weight", 0) and config.sft.probe_steps and config.sft.probe_only:
        found.append(
            f"policy.token_weight ({policy.token_weight}) trains the vision-language model, which "  # type: ignore[union-attr]
            "sft.probe_only (true) leaves as it is: set sft.probe_only=false"
        )
    if config.data.texts and config.sft.probe_steps and config.sft.probe_only and in_one_pass:
        found.append(
            f"data.texts={shown(config.data.texts)} train the language model, which sft.probe_only (true) "
            "leaves as it is: set sft.probe_only=false"
        )
    if recap.num_rounds and not in_one_pass:
        found.append(
            f"recap.num_rounds ({recap.num_rounds}) trains a head on what the model sees, and "
            "policy.decoding=autoregressive has none apart: choose policy.decoding=parallel"
        )
    sentence = config.data.sentence
    if sentence is not None and not in_one_pass:
        found.append(
            "data.sentence puts images into the text, which policy.decoding=autoregressive does not read: choose "
            "policy.decoding=parallel"
        )
    if sentence is not None and "{instruction}" not in sentence:
        found.append(f"data.sentence ({sentence}) has no {{instruction}} in it: the policy would not know what to do")
    if recap.guidance != 1 and isinstance(policy, FastPolicy):
        found.append(
            f"recap.guidance ({recap.guidance}) combines predictions of policy=token, flow, diffusion or regression, "
            f"and policy is {policy.name}: set it to 1"
        )
    return found


def model_conflicts(config: RobotConfig) -> list[str]:
    found = []
    vision, backbone = config.model.vision, config.model.backbone
    if (vision.name == "own") != (backbone.name == "vlm"):
        found.append(
            f"model.vision.name ({vision.name}) and model.backbone.name ({backbone.name}) belong together where one of "
            "them is own or vlm: choose model=smolvlm, paligemma or qwen2_5_vl, or model=hub"
        )
    for path, part in (("vision", vision), ("backbone", backbone)):
        if part.name == "small" and part.width % part.num_heads:
            found.append(
                f"model.{path}.num_heads ({part.num_heads}) must divide model.{path}.width ({part.width}): "
                f"{nearest_divisor(part.num_heads, part.width)} does"
            )
    if vision.name == "small" and config.sim.image_size % 2 ** len(vision.stem_channels):
        patch = 2 ** len(vision.stem_channels)
        found.append(f"sim.image_size ({config.sim.image_size}) must be a multiple of the patch size ({patch})")
    bins = getattr(config.policy, "num_bins", 0)
    if backbone.name == "small" and bins >= backbone.vocabulary_size:
        found.append(
            f"policy.num_bins ({bins}) action ids do not fit beside words in "
            f"model.backbone.vocabulary_size ({backbone.vocabulary_size}): use fewer bins or a larger vocabulary"
        )
    if config.model.lora is not None and config.model.freeze_backbone:
        found.append(
            "model.freeze_backbone (true) leaves nothing for model.lora to train: set one of them to false or null"
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
    for setting, name in (("num_starts", "eval_seeds"), ("num_quick_starts", "validation_seeds")):
        number, room = getattr(evaluation, setting), ranges[name].last - ranges[name].first + 1
        if not found and number > room:
            found.append(
                f"evaluation.{setting} ({number}) is more than evaluation.{name} holds ({room}): widen the range"
            )
    return found


def nearest_divisor(wanted: int, number: int) -> int:
    """The divisor of `number` nearest to `wanted`; the larger of two that are equally near."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), -d))

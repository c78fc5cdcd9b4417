"""Former names of settings; using one is an error that gives the new name.

This covers the command line, YAML files and folders that a run resumes. The settings saved with a
finished policy are read under either name.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from vla.config.errors import ConfigError

RENAMED = {
    "rl.starts_per_iteration": "rl.num_start_states",
    "rl.max_refills": "rl.max_resamples",
    "rl.step_kl": "rl.target_step_kl",
    "rl.average_decay": "rl.ema_decay",
    "rl.greedy_every": "rl.greedy_branching_every",
    "rl.branch_share": "rl.branch_fraction",
    "rl.branch_warmup": "rl.num_branch_warmup_iterations",
    "rl.critic_warmup_iterations": "rl.num_critic_warmup_iterations",
    "rl.reference_every": "rl.reference_refresh_every",
    "sft.probe_steps": "sft.head_steps",
    "sft.probe_passes": "sft.max_head_epochs",
    "sft.probe_batch_size": "sft.head_batch_size",
    "sft.probe_learning_rate": "sft.head_learning_rate",
    "sft.probe_only": "sft.head_only",
    "data.burst_probability": "data.expert_perturbation_probability",
    "data.question_scenes": "data.num_question_scenes",
    "grounding.fresh_per_step": "grounding.num_new_scenes_per_step",
    "grounding.sighting_share": "grounding.detection_fraction",
    "grounding.sighting_weight": "grounding.detection_weight",
    "grounding.plan_share": "grounding.plan_fraction",
    "recap.positive_share": "recap.positive_fraction",
    "recap.positive": "recap.positive_label",
    "recap.negative": "recap.negative_label",
    "policy.drawn_steps": "policy.num_stochastic_steps",
    "policy.insulate": "policy.stop_gradient_to_vlm",
    "text.advance_at": "text.curriculum_threshold",
    "text.format_steps": "text.format_sft_steps",
    "text.format_learning_rate": "text.format_sft_learning_rate",
    "text.max_oversampling": "text.max_batch_growth",
    "text.centring": "text.reward_centering_weight",
    "text.unfinished_reward": "text.truncation_reward",
    "evaluation.num_quick_starts": "evaluation.num_validation_starts",
    "model.freeze_in_rl": "rl.adapt",
}
"""{old dotted key: new dotted key}; a section stands for all its settings."""
RENAMED_VALUES = {
    "model.freeze_in_rl": {"nothing": "weights", "prefix": "backbone", "all": "head"},
}
"""{old dotted key: {old value: new value}} of settings whose values have other names too."""

EARLIER_PARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("vision", "own"): {"image_size": None, "num_tokens": None},
    ("vision", "hub"): {"image_size": None, "num_tokens": None},
    ("backbone", "vlm"): {"native_layout": False},
}
"""Settings of parts of a model that earlier versions lacked, with the values they stood for."""


def new_name(key: str) -> str | None:
    """The present name of a renamed setting; None for any other name."""
    parts = key.split(".")
    for i in range(len(parts), 0, -1):
        section = RENAMED.get(".".join(parts[:i]))
        if section is not None:
            return ".".join([section, *parts[i:]])
    return None


def check_renamed(key: str, value: object) -> None:
    """Refuse the former name of a setting.

    Raises:
        ConfigError: gives the new name.
    """
    new = new_name(key)
    if new is not None:
        present = RENAMED_VALUES.get(key, {}).get(str(value))
        written = "" if present is None else f", write {new}={present}"
        raise ConfigError(f"{key}={value}: this setting is now called {new}{written}")


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings of a run under their present names, so that its policy still loads."""
    renamed = deepcopy(dict(values))
    for old, new in RENAMED.items():
        *sections, name = old.split(".")
        source: Any = renamed
        for section in sections:
            source = source.get(section) if isinstance(source, dict) else None
        if not isinstance(source, dict) or name not in source:
            continue
        *sections, target_name = new.split(".")
        target: Any = renamed
        for section in sections:
            target = target.setdefault(section, {})
        value = source.pop(name)
        target[target_name] = RENAMED_VALUES.get(old, {}).get(str(value), value)
    return with_model_parts(renamed)


def with_model_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings with those of the parts of a model that their version lacked."""
    model = values.get("model")
    if not isinstance(model, Mapping):
        return dict(values)
    parts = dict(model)
    for (part, kind), added in EARLIER_PARTS.items():
        saved = parts.get(part)
        if isinstance(saved, Mapping) and saved.get("name") == kind:
            parts[part] = {**added, **saved}
    return {**values, "model": parts}

"""Checkpoints of LeRobot's own policies with random weights, small, as its own training would have
written them."""

from __future__ import annotations

from pathlib import Path

import torch

CAMERAS, SIZE, CHUNK = ("front", "wrist"), 32, 4
SPREAD = {
    "mean": torch.zeros(7),
    "std": torch.full((7,), 0.02),
    "min": torch.full((7,), -0.05),
    "max": torch.ones(7),
}


def features() -> tuple[dict, dict]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    shown = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE))
        for c in CAMERAS
    }
    shown["observation.state"] = PolicyFeature(FeatureType.STATE, (7,))
    return shown, {"action": PolicyFeature(FeatureType.ACTION, (7,))}


def config_of(kind: str):
    shown, decided = features()
    common = {
        "input_features": shown,
        "output_features": decided,
        "device": "cpu",
        "pretrained_backbone_weights": None,
    }
    if kind == "act":
        from lerobot.policies.act.configuration_act import ACTConfig

        return ACTConfig(
            chunk_size=2 * CHUNK,
            n_action_steps=CHUNK,
            dim_model=16,
            n_heads=2,
            dim_feedforward=16,
            n_encoder_layers=1,
            use_vae=False,
            **common,
        )
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    return DiffusionConfig(
        horizon=8,
        n_action_steps=CHUNK,
        down_dims=(8, 8, 8),
        n_groups=4,
        use_group_norm=True,
        num_inference_steps=2,
        crop_shape=None,
        spatial_softmax_num_keypoints=4,
        diffusion_step_embed_dim=8,
        **common,
    )


def make_checkpoint(kind: str, folder: Path) -> Path:
    """A folder that `lerobot-eval --policy.path` takes."""
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    torch.manual_seed(0)
    config = config_of(kind)
    policy = get_policy_class(kind)(config)
    policy.save_pretrained(folder)
    ones = {
        "mean": torch.zeros(3, 1, 1),
        "std": torch.ones(3, 1, 1),
        "min": torch.zeros(3, 1, 1),
        "max": torch.ones(3, 1, 1),
    }
    stats = {f"observation.images.{c}": ones for c in CAMERAS} | {
        "observation.state": SPREAD,
        "action": SPREAD,
    }
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
    return folder

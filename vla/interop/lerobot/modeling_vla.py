"""`VlaPolicy`: our policies with the interface of LeRobot, for `lerobot-train` and `lerobot-eval`.

What it saves is a folder that our own commands read too (`vla-eval`, `vla-serve`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from vla.data.image_fitting import check_resize, fit_to_square
from vla.interop.lerobot.bundle import PolicyBundle, bundle_from_dataset, load_bundle, write_folder
from vla.interop.lerobot.configuration_vla import ACTION, IMAGES, STATE, VlaConfig
from vla.interop.lerobot.refusal import RefusedInput, refuse_value_errors
from vla.serve.requests import ObservationBatch
from vla.sft.losses import imitation_loss
from vla.types import Observation, map_rows

POLICY = "policy."


class VlaPolicy(PreTrainedPolicy):
    """LeRobot makes it from a dataset (`dataset_meta`), or from a folder or the hub
    (`from_pretrained`)."""

    config_class = VlaConfig
    name = "vla"

    def __init__(
        self,
        config: VlaConfig,
        dataset_stats: Any = None,
        dataset_meta: Any = None,
        bundle: PolicyBundle | None = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        with refuse_value_errors():
            self.bundle = bundle_from_dataset(config, dataset_meta) if bundle is None else bundle
        self.policy = self.bundle.policy
        self.reset()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_name_or_path: str | Path, *, config: VlaConfig | None = None, **_: Any
    ) -> VlaPolicy:
        """The policy of a folder or of `user/name` on the hub; ValueError where its policy spec
        does not fit."""
        with refuse_value_errors():
            bundle = load_bundle(str(pretrained_name_or_path))
            config = VlaConfig.from_pretrained(bundle.folder) if config is None else config
            bundle.check(config)
        return cls(config, bundle=bundle).to(config.device).eval()

    def _save_pretrained(
        self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        weights = self.state_dict() if state_dict is None else state_dict
        own = {
            name.removeprefix(POLICY): tensor
            for name, tensor in weights.items()
            if name.startswith(POLICY)
        }
        self.config.chunk = self.policy.chunk
        self.config._save_pretrained(save_directory)
        write_folder(save_directory, self.bundle, own)

    def get_optim_params(self) -> list[torch.nn.Parameter]:  # type: ignore[override]
        """Trainable parameters; those of the head alone under `sft.head_only`."""
        if self.bundle.settings.sft.head_only and self.policy.can_train_head:
            for parameter in self.policy.model_parameters():
                parameter.requires_grad_(False)
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Drop the rest of the current chunk."""
        self.left: deque[Tensor] = deque()

    def observe(self, batch: Mapping[str, Any]) -> Observation:
        """LeRobot's batch (images in [0, 1], channels first, any size) as our observation, on the
        policy's device."""
        policy_spec = self.bundle.policy_spec
        images = {
            camera: to_uint8_images(batch[IMAGES + camera]) for camera in policy_spec["cameras"]
        }
        with refuse_value_errors():
            for camera, rows in images.items():
                check_resize(policy_spec, rows.shape[1], rows.shape[2], IMAGES + camera)
        shown = ObservationBatch(
            {
                n: np.stack([fit_to_square(picture, policy_spec["image_size"]) for picture in rows])
                for n, rows in images.items()
            },
            check_finite_batch(batch[STATE].float(), STATE).cpu().numpy(),
            batch["task"],
        )
        device = next(self.parameters()).device
        return map_rows(self.bundle.observer(shown), lambda tensor: tensor.to(device))

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of imitation over the actions inside their episode."""
        actions = check_finite_batch(batch[ACTION].float(), ACTION)
        padding = batch.get(
            "action_is_pad", torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device)
        )
        loss = imitation_loss(self.policy, self.observe(batch), actions, ~padding)
        return loss, {"action_loss": float(loss.detach())}

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], **_: Any) -> Float[Tensor, "B H A"]:  # type: ignore[override]
        """Actions in physical units. Raises Refused where one is NaN or infinite: it must not
        become a command."""
        self.eval()
        return check_finite_batch(
            self.policy.act(self.observe(batch), greedy=self.config.greedy).action.float(),
            "the policy",
        )

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], **_: Any) -> Float[Tensor, "B A"]:  # type: ignore[override]
        """The next action of the chunk; a new chunk where it is used up."""
        if not self.left:
            self.left.extend(self.predict_action_chunk(batch).unbind(1))
        return self.left.popleft()


def to_uint8_images(
    images: Float[Tensor, "B 3 h w"] | UInt8[Tensor, "B 3 h w"],
) -> UInt8[np.ndarray, "B h w 3"]:
    """Convert images of LeRobot (in [0, 1] or uint8, channels first) to uint8, channels last."""
    if images.dtype != torch.uint8:
        images = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return images.movedim(1, -1).contiguous().cpu().numpy()


def check_finite_batch(values: Tensor, owner: str) -> Tensor:
    """The same values. Raises Refused where one is NaN or infinite, naming its row and
    dimension."""
    bad = ~values.isfinite()
    if bad.any():
        row, *_, dimension = bad.nonzero()[0].tolist()
        raise RefusedInput(
            f"{owner} holds {int(bad.sum())} numbers that are NaN or infinite (the first in row "
            f"{row} of the batch, "
            f"dimension {dimension}): a policy neither learns from them nor acts by them; repair "
            "the dataset or sensor"
        )
    return values

"""One of our policies behind LeRobot's interface: it trains in `lerobot-train`, acts in `lerobot-eval` and on robots.

What it saves is a folder that our own commands read too (`scripts/evaluate.py`, `scripts/serve_policy.py`).
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

from vla.lerobot.configuration_vla import ACTION, IMAGES, STATE, VlaConfig
from vla.lerobot.made import Made, from_dataset, from_folder, write_folder
from vla.serve.requests import Shown
from vla.sft.losses import imitation_loss
from vla.types import Observation, map_rows

POLICY = "policy."


class VlaPolicy(PreTrainedPolicy):
    """LeRobot makes it from a dataset (`dataset_meta`), or from a folder or the hub (`from_pretrained`)."""

    config_class = VlaConfig
    name = "vla"

    def __init__(
        self, config: VlaConfig, dataset_stats: Any = None, dataset_meta: Any = None, made: Made | None = None
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.made = from_dataset(config, dataset_meta) if made is None else made
        self.policy = self.made.policy
        self.reset()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_name_or_path: str | Path, *, config: VlaConfig | None = None, **_: Any
    ) -> VlaPolicy:
        """The policy of a folder or of `user/name` on the hub; ValueError where its passport does not fit."""
        made = from_folder(str(pretrained_name_or_path))
        config = VlaConfig.from_pretrained(made.folder) if config is None else config
        made.check(config)
        return cls(config, made=made).to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        weights = self.state_dict() if state_dict is None else state_dict
        own = {name.removeprefix(POLICY): tensor for name, tensor in weights.items() if name.startswith(POLICY)}
        self.config.chunk = self.policy.chunk
        self.config._save_pretrained(save_directory)
        write_folder(save_directory, self.made, own)

    def get_optim_params(self) -> list[torch.nn.Parameter]:  # type: ignore[override]
        """What learns: the head alone where the settings say so (`sft.probe_only`)."""
        if self.made.settings.sft.probe_only and getattr(self.policy, "can_probe", False):
            for parameter in self.policy.model_parameters():
                parameter.requires_grad_(False)
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the chunk that is being executed."""
        self.left: deque[Tensor] = deque()

    def observe(self, batch: Mapping[str, Any]) -> Observation:
        """LeRobot's batch (images in [0, 1], channels first) as our observation, on the policy's device."""
        shown = Shown(
            {camera: pixels(batch[IMAGES + camera]) for camera in self.made.passport["cameras"]},
            batch[STATE].float().cpu().numpy(),
            batch["task"],
        )
        device = next(self.parameters()).device
        return map_rows(self.made.observer(shown), lambda tensor: tensor.to(device))

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of imitation over the actions inside their episode."""
        actions: Tensor = batch[ACTION]
        padding = batch.get("action_is_pad", torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device))
        loss = imitation_loss(self.policy, self.observe(batch), actions.float(), ~padding)
        return loss, {"action_loss": float(loss.detach())}

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], **_: Any) -> Float[Tensor, "B H A"]:  # type: ignore[override]
        """Actions in physical units."""
        self.eval()
        return self.policy.act(self.observe(batch), greedy=self.config.greedy).action.float()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], **_: Any) -> Float[Tensor, "B A"]:  # type: ignore[override]
        """The next action of the chunk; a new chunk where it is used up."""
        if not self.left:
            self.left.extend(self.predict_action_chunk(batch).unbind(1))
        return self.left.popleft()


def pixels(images: Float[Tensor, "B 3 h w"]) -> UInt8[np.ndarray, "B h w 3"]:
    """Images of LeRobot as the bytes they were."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()

"""TRL's GRPO loss without its trainer."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vla.types import ActionScores

    Loss = Callable[[ActionScores, Tensor, Tensor, Tensor], Tensor]


def trl_loss(num_micro_batches: int) -> Loss:
    """`GRPOTrainer._compute_loss` as a function of given scores, by a stand-in for the trainer."""
    warnings.simplefilter("ignore")
    from trl import GRPOTrainer

    identity = {
        "gather": lambda x: x,
        "reduce": lambda x, reduction: x,
        "gather_for_metrics": lambda x: x,
    }
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, **identity),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        **{"loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.0},
        **{
            "epsilon_low": 0.2,
            "epsilon_high": 0.28,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
        },
        **{"use_vllm": False, "aux_loss_enabled": False, "_entropy_bonus_enabled": False},
        current_gradient_accumulation_steps=num_micro_batches,
        _metrics={"train": defaultdict(list)},
    )

    def loss(
        scores: ActionScores, mask: Tensor, old_logprobs: Tensor, advantages: Tensor
    ) -> Tensor:
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (
            scores.logprobs,
            scores.entropy,
            None,
        )
        inputs = dict.fromkeys(
            ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), mask
        )
        inputs |= {"advantages": advantages, "old_per_token_logps": old_logprobs}
        result: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
        return result

    return loss

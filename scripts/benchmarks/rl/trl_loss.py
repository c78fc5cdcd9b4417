"""TRL's loss without its trainer."""

import warnings
from collections import defaultdict
from types import SimpleNamespace


def trl_loss(num_micro_batches):
    """`GRPOTrainer._compute_loss` of scores already made; what it reads of a trainer is given by
    hand."""
    warnings.simplefilter("ignore")
    from trl import GRPOTrainer

    same = {
        "gather": lambda x: x,
        "reduce": lambda x, reduction: x,
        "gather_for_metrics": lambda x: x,
    }
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, **same),
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

    def loss(scores, mask, old_logprobs, advantages):
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (
            scores.logprobs,
            scores.entropy,
            None,
        )
        inputs = dict.fromkeys(
            ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), mask
        )
        inputs |= {"advantages": advantages, "old_per_token_logps": old_logprobs}
        return GRPOTrainer._compute_loss(trainer, None, inputs)

    return loss

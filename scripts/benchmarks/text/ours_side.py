"""Our GRPO steps for `text_grpo`: rollout and update by the shared core."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.text.questions import SEED, questions, reward

if TYPE_CHECKING:
    from vla.rewards.sample import Sample
    from vla.types import Observation


def measure_steps(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Seconds and tokens of every step; the first one warms up."""
    import numpy as np
    import torch

    from vla.data.chat import ChatFormat, observe_prompts, stop_ids
    from vla.generation.activation_cache import DEFAULT_BYTES
    from vla.generation.sampling import Sampling
    from vla.policies.text import TextPolicy
    from vla.rewards.compose import RewardScores
    from vla.rl.algorithm_factory import make_algorithm
    from vla.rl.rollout import collect_rollout
    from vla.rl.update import UpdateSettings, update
    from vla.text.environment import TextEnvironment
    from vla.text.language_model import load_from_folder
    from vla.text.problem import Problem
    from vla.threads import usable_threads
    from vla.training.optim import make_optimizer

    torch.manual_seed(SEED)
    model, tokenizer = load_from_folder(str(folder))
    pad = tokenizer.pad_token_id
    threads = usable_threads(torch.device("cpu"))
    autocast = torch.bfloat16 if options.precision == "bfloat16" else None
    ends = stop_ids(tokenizer, model)
    policy = TextPolicy(
        model, Sampling(), options.new_tokens, ends, pad, autocast=autocast, threads=threads
    )
    problems = [
        Problem(text, "", "exact", "") for text in questions(options.prompts * (options.steps + 1))
    ]

    def score(samples: Sequence[Sample]) -> RewardScores:
        return RewardScores(
            np.array([reward(sample.completion) for sample in samples], np.float32), {}
        )

    rows = options.prompts * options.group_size
    environment = TextEnvironment(problems, ChatFormat(tokenizer), score, policy.stop_ids, rows)
    algorithm = make_algorithm("grpo", clip_low=0.2, clip_high=0.2, reduction="token")
    settings = UpdateSettings(1, 1, rows, max_grad_norm=1.0)
    optimizer = make_optimizer(policy, "adamw", 1e-6, 0.0)
    generator = torch.Generator().manual_seed(SEED)

    def observe(prompts: Sequence[Sequence[int]]) -> Observation:
        return observe_prompts(prompts, 200, pad, torch.device("cpu"))

    steps = []
    for step in range(options.steps + 1):
        wall = time.perf_counter()
        cpu = time.process_time()
        numbers = range(step * options.prompts, (step + 1) * options.prompts)
        with policy.reuse_activations(DEFAULT_BYTES):
            rollout = collect_rollout(
                policy, environment, list(numbers), options.group_size, observe
            )
            update(
                policy,
                algorithm,
                rollout,
                optimizer,
                settings,
                generator=generator,
                threads=threads,
            )
        tokens = int(rollout.mask.sum())
        steps.append(
            {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": tokens}
        )
    return steps

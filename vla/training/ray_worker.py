"""The Ray actor of a rollout worker. Its process loads torch only after its settings are made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from vla.training.rollout_shards import Shard, ShardCollector


class RolloutActor:
    """Policy and environment in a process of their own."""

    def __init__(self, num_threads: int) -> None:
        if "torch" not in sys.modules:
            from vla import runtime

            runtime.prepare(num_threads)
        import torch

        torch.set_num_threads(num_threads)
        self.num_threads = num_threads
        self.version = 0
        self.collector: ShardCollector | None = None

    def build(self, plan: np.ndarray) -> None:
        """Build policy and environment from a pickled plan, on the GPU where Ray gives one."""
        import torch

        from vla.files.pickling import unpickle_object

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.collector = unpickle_object(plan, device).build(self.num_threads)

    def collect(self, shard: Shard, pushed: tuple[int, dict[str, Any]]) -> object:
        """Collect a shard by the pushed weights (their number, and arrays by name)."""
        from vla.training.rollout_shards import load_pushed_weights
        from vla.training.tensor_arrays import from_arrays, to_arrays

        assert self.collector is not None
        version, weights = pushed
        if version != self.version:
            load_pushed_weights(self.collector.learner, from_arrays(weights))
            self.version = version
        return to_arrays(self.collector.collect(shard).state_dict())

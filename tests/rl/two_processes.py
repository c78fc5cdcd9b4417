"""One of several processes that update the same policy from their share of one rollout. Run by
test_processes.py."""

import sys

import torch
import torch.distributed as dist
from toys import SETTINGS, Descent, GaussianPolicy, gaussian_rollout

from vla.collectives import single_process
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.algorithms import ALGORITHMS
from vla.rl.dynamic_sampling import keep_trajectories
from vla.rl.update import UpdateSettings, update


def reduce_sum(value: torch.Tensor) -> torch.Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total


def updated(name: str, share: int | None, reduce) -> dict[str, object]:
    """Parameters and metrics after two epochs; `share` is this process's group, None is all of
    them."""
    torch.manual_seed(0)
    policy = GaussianPolicy().double()
    rollout = gaussian_rollout(policy)
    if share is not None:
        rollout = keep_trajectories(rollout, torch.arange(8) // 4 == share)
    metrics = update(
        policy,
        make_algorithm(name, **SETTINGS[name]),
        rollout,
        Descent(policy.parameters(), 0.1),
        UpdateSettings(epochs=2, num_minibatches=1, micro_batch_rows=2, max_grad_norm=0.5),
        generator=torch.Generator().manual_seed(0),
        reduce_sum=reduce,
    )
    return {"parameters": policy.state_dict(), "metrics": metrics}


if __name__ == "__main__":
    rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    shared = {name: updated(name, rank, reduce_sum) for name in ALGORITHMS}
    dist.destroy_process_group()
    alone = {name: updated(name, None, single_process) for name in ALGORITHMS} if rank == 0 else {}
    torch.save({"shared": shared, "alone": alone}, out)

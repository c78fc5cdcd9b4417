"""Run by `test_distributed` in two processes: each takes its share of the rows and prints the
summed gradient."""

import json

import torch
from torch import nn

from vla.collectives import sum_gradients
from vla.training.distributed import broadcast_weights, init_processes, shard_rows


def main() -> None:
    processes = init_processes("cpu")
    torch.manual_seed(processes.rank)
    layer = nn.Linear(3, 1)
    broadcast_weights(layer, processes)
    rows = torch.arange(15.0).reshape(5, 3)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])
    mine = shard_rows(list(range(5)), processes)
    (layer(rows[mine]).tanh().squeeze(1) * weights[mine]).sum().backward()
    sum_gradients(layer.parameters(), processes.reduce_sum)
    total = processes.reduce_sum(torch.tensor(float(len(mine))))
    processes.wait()
    state = {"weight": layer.weight.tolist(), "bias": layer.bias.tolist()}
    gradient = {"weight": layer.weight.grad.tolist(), "bias": layer.bias.grad.tolist()}
    name = f"of-{processes.num_processes}-rank-{processes.rank}.json"
    with open(name, "w") as opened:
        json.dump(
            {"state": state, "gradient": gradient, "rows": float(total), "main": processes.is_main},
            opened,
        )


if __name__ == "__main__":
    main()

"""Two processes make the gradient of one, and one process is touched by nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from vla.collectives import single_process, sum_gradients
from vla.training.distributed import (
    SingleProcess,
    broadcast_weights,
    init_processes,
    shard_rows,
)

ROOT = Path(__file__).parents[2]
START = """
import runpy, sys, types
tests = types.ModuleType("tests")  # of the installed packages one is called so too
tests.__path__ = [sys.argv[1]]
sys.modules["tests"] = tests
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def run_in(num_processes: int, folder: Path, script: str) -> None:
    """Start the processes as a launcher does, and wait."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(num_processes),
    }
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    started = []
    for rank in range(num_processes):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [
            sys.executable,
            "-c",
            START,
            str(ROOT / "tests"),
            str(ROOT / "tests" / "training" / script),
        ]
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    failures = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * num_processes, failures


def test_two_processes_make_the_gradient_of_one(tmp_path: Path):
    run_in(2, tmp_path, "two_processes.py")
    first, second = (
        json.loads((tmp_path / f"of-2-rank-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first["state"] == second["state"]
    assert first["gradient"] == second["gradient"]
    assert (first["rows"], first["main"], second["main"]) == (5.0, True, False)
    layer = nn.Linear(3, 1)
    layer.load_state_dict({name: torch.tensor(value) for name, value in first["state"].items()})
    rows = torch.arange(15.0).reshape(5, 3)
    (layer(rows).tanh().squeeze(1) * torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])).sum().backward()
    assert torch.allclose(layer.weight.grad, torch.tensor(first["gradient"]["weight"]), atol=1e-7)
    assert torch.allclose(layer.bias.grad, torch.tensor(first["gradient"]["bias"]), atol=1e-7)


def test_a_single_process_adds_nothing():
    processes = init_processes("cpu")
    assert isinstance(processes, SingleProcess)
    assert processes.reduce_sum is single_process
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    weight, gradient = layer.weight, layer.weight.grad
    sum_gradients(layer.parameters(), processes.reduce_sum)
    broadcast_weights(layer, processes)
    assert layer.weight is weight
    assert layer.weight.grad is gradient
    assert shard_rows([1, 2, 3], processes) == [1, 2, 3]

"""Two processes make the gradient of one, and one process is touched by nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vla.collectives import single_process, sum_gradients
from vla.training.distributed import (
    SingleProcess,
    broadcast_weights,
    choose_device,
    init_processes,
    shard_rows,
    uses_bf16,
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
    processes = init_processes("cpu", "auto")
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


def test_bf16_is_the_precision_of_the_forward_pass_only():
    processes = SingleProcess(torch.device("cpu"), bf16=True)
    layer = nn.Linear(2, 2)
    with processes.autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(1, 2)).dtype == torch.float32


def test_precision_and_device_by_setting():
    cpu = torch.device("cpu")
    assert [uses_bf16(precision, cpu) for precision in ("auto", "fp32", "bf16")] == [
        False,
        False,
        True,
    ]
    assert choose_device("cpu") == cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is asked for")
def test_a_gpu_that_is_not_there_is_an_error_with_a_remedy():
    with pytest.raises(
        ValueError, match=r"train.device \(cuda\): no GPU is visible here; use train.device=cpu"
    ):
        choose_device("cuda")

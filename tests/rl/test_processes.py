"""Two processes with half the trajectories each take the same optimizer steps as one with all of
them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vla.rl.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[2]
LOCAL = {
    "ratio_min",
    "ratio_max",
    "logprob_gap_max",
    "logprob_gap_mean",
}  # said of one process's own rows
PER_GROUP = {"num_groups", "groups_singleton", "groups_without_variance", "trajectories_unscorable"}


def run_shares(folder: Path) -> list[dict]:
    """What two processes together came to, and the first of them alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    script, meeting = str(ROOT / "tests/rl/two_processes.py"), str(folder / "meeting")
    outs = {rank: folder / f"{rank}.pt" for rank in (0, 1)}
    commands = [
        [sys.executable, script, str(rank), meeting, str(out)] for rank, out in outs.items()
    ]
    started = [
        subprocess.Popen(c, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    errors = [process.communicate(timeout=200)[1] for process in started]
    for process, error in zip(started, errors):
        assert process.returncode == 0, error
    return [torch.load(out) for out in outs.values()]


def test_two_processes_are_one(tmp_path):
    first, second = run_shares(tmp_path)
    alone, first, second = first["alone"], first["shared"], second["shared"]
    for name in ALGORITHMS:
        for key, value in alone[name]["parameters"].items():
            assert torch.equal(first[name]["parameters"][key], second[name]["parameters"][key]), (
                name,
                key,
            )
            torch.testing.assert_close(first[name]["parameters"][key], value, rtol=1e-6, atol=1e-9)
        for key, value in alone[name]["metrics"].items():
            if key not in LOCAL | PER_GROUP:
                assert first[name]["metrics"][key] == pytest.approx(
                    value, rel=1e-5, abs=1e-9, nan_ok=True
                ), (name, key)

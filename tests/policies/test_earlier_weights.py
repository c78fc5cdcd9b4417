"""Checkpoints from before the head was a module of its own (weights without `head.`) still load."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.policies.kinds import KINDS, task_of
from vla.files.arrays import load_weights
from vla.policies.vla_policy import HEAD, rename_weights


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_names_load_as_a_file_and_as_a_saved_state(kind, tmp_path):
    policy = task_of(kind)[0].policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter))
    weights = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    earlier = {name.removeprefix(HEAD): tensor.contiguous() for name, tensor in weights.items()}
    assert len(earlier) == len(weights)
    assert earlier.keys() != weights.keys()

    path = tmp_path / "model.safetensors"
    save_file(earlier, path)
    from_file = copy.deepcopy(task_of(kind)[0].policy)
    load_weights(from_file, rename_weights(from_file.state_dict(), load_file(path)), path)
    from_state = copy.deepcopy(task_of(kind)[0].policy)
    from_state.load_state_dict(earlier)
    for loaded in (from_file, from_state):
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, weights[name]), name

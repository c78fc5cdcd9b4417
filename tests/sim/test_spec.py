"""The action spec can be written beside a dataset, and importing `sim` costs nothing."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from sim.spec import DEFAULT_ACTION_SPEC, ActionSpec


def test_round_trip_through_json():
    values = json.loads(json.dumps(DEFAULT_ACTION_SPEC.to_dict()))
    again = ActionSpec(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
    assert again == DEFAULT_ACTION_SPEC


def test_meaning():
    spec = DEFAULT_ACTION_SPEC
    assert spec.names == ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    assert spec.units == ("m", "m", "m", "rad", "rad", "rad", "sign")
    assert spec.high == (0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 1.0)
    assert spec.low == tuple(-value for value in spec.high)
    assert (spec.size, spec.control_hz, spec.gripper_sign) == (7, 20.0, "close")


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"equally long, got lengths \[6, 7\]"):
        replace(DEFAULT_ACTION_SPEC, units=("m",) * 6)


def test_importing_sim_loads_nothing_heavy():
    code = "import sim, sys; print(sorted({'mujoco', 'numpy', 'gymnasium'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

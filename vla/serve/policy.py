"""A policy of ours behind a server: rows of clients in, chunks of actions out, and the passport that goes before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vla.rl.protocols import Observe, Policy
from vla.serve.requests import Shown
from vla.serve.server import Act


def serve_rows(policy: Policy, observe: Observe, greedy: bool) -> Act:
    """What a server calls with the observations of several clients."""

    def act(shown: Shown) -> np.ndarray:
        return policy.act(observe(shown), greedy=greedy).action.float().cpu().numpy()

    return act


def passport_of(folder: Path) -> dict[str, Any]:
    """What a client must know to use the policy: what actions mean, cameras, pixels and chunk, without its weights."""
    values = json.loads((folder / "policy.json").read_text())
    told = ("policy", "action_spec", "cameras", "image_size", "chunk")
    return {name: values[name] for name in told if name in values} | {"checkpoint": folder.name, "protocol": "openpi"}

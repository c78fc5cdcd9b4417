"""Fine-tuning of vision-language-action and language models with one reinforcement-learning core.

    import vla

    policy = vla.load_policy("runs/NAME")       # or an exported folder, or user/name on the hub
    env = vla.make_env("pick_place", num_envs=4)
    observation, _ = env.reset(seed=2_000_000)
    action = policy.act(**observation)                 # the environment's units, float32 [4, 7]
    observation, reward, terminated, truncated, info = env.step(action)

    run = vla.train("preset=smoke", sim="reach")       # the folder and the results of a run
    result = vla.evaluate(run.folder, num_starts=16)   # success rates on held-out starts

`import vla` loads neither torch nor a simulator; the first use of a function does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla.acting import LoadedPolicy
    from vla.api import Evaluation, TrainedRun, evaluate, load_policy, make_env, train
    from vla.gym_env import VectorEnv

EXPORTS = {
    "LoadedPolicy": "vla.acting",
    "VectorEnv": "vla.gym_env",
    "Evaluation": "vla.api",
    "TrainedRun": "vla.api",
    "evaluate": "vla.api",
    "load_policy": "vla.api",
    "make_env": "vla.api",
    "train": "vla.api",
}
"""The module of every public name."""
__all__ = [
    "Evaluation",
    "LoadedPolicy",
    "TrainedRun",
    "VectorEnv",
    "evaluate",
    "load_policy",
    "make_env",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module at the first use."""
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})

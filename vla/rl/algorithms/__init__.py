"""The algorithms of reinforcement learning, one a file.

`ALGORITHMS` is the only list of them. An installed package adds one through an entry point of the
group `vla.algorithms`: a frozen dataclass that satisfies `vla.rl.protocols.Algorithm`.
"""

from __future__ import annotations

from vla.plugins import extend_table

GROUP = "vla.algorithms"
"""Entry points of users' algorithms."""
ALGORITHMS = {
    "ppo": "vla.rl.algorithms.ppo:PPO",
    "grpo": "vla.rl.algorithms.grpo:GRPO",
    "dr_grpo": "vla.rl.algorithms.dr_grpo:DrGRPO",
    "dapo": "vla.rl.algorithms.dapo:DAPO",
    "gspo": "vla.rl.algorithms.gspo:GSPO",
    "cispo": "vla.rl.algorithms.cispo:CISPO",
    "rloo": "vla.rl.algorithms.rloo:RLOO",
    "maxrl": "vla.rl.algorithms.maxrl:MaxRL",
    "reinforce": "vla.rl.algorithms.reinforce:REINFORCE",
    "reinforce_plus_plus": "vla.rl.algorithms.reinforce_plus_plus:REINFORCEPlusPlus",
}


def algorithm_table() -> dict[str, str]:
    """{name: "module:Class"} of our algorithms and of installed packages'."""
    return extend_table(ALGORITHMS, GROUP)

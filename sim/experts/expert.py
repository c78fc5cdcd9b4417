"""The expert of all environments at once: the tasks' controllers, with disturbances to recover
from.

Every phase of a controller is a proportional motion of the commanded pose: actions are a smooth
function of the observation.
"""

from __future__ import annotations

import numpy as np

from sim.controllers.controller import Controller, motion_toward
from sim.spec import CLOSE, DEFAULT_ACTION_SPEC, OPEN
from sim.vector import VectorEnvironment


class Expert:
    """The scripted expert of `env`, with one phase and one timer per environment.

    Args:
        env: the environments.
        seed: seed of the disturbances.
        noise: standard deviation of noise on every action, as a share of the action's limit.
        expert_perturbation_probability: chance per control step that a disturbance begins: a
            few steps of random
            motion, at times with the fingers moving the wrong way. `perturbed` marks these steps;
            a loss should leave them out.
        burst_steps: shortest and longest disturbance, control steps.
        burst_speed: largest motion of a disturbance, metres per control step along each axis.
    """

    def __init__(
        self,
        env: VectorEnvironment,
        seed: int = 0,
        noise: float = 0.0,
        expert_perturbation_probability: float = 0.0,
        burst_steps: tuple[int, int] = (2, 5),
        burst_speed: float = 0.03,
    ) -> None:
        self._env = env
        self._controllers = {task.name: task.controller() for task in env.tasks}
        n = env.num_envs
        self._rng = np.random.default_rng(seed)
        self._noise = noise
        self._burst_probability = expert_perturbation_probability
        self._burst_steps = burst_steps
        self._burst_speed = burst_speed
        self.phase = np.zeros(n, dtype=np.int64)
        self.perturbed = np.zeros(n, dtype=bool)
        self._timer = np.zeros(n, dtype=np.int64)
        self._burst_left = np.zeros(n, dtype=np.int64)
        self._burst = np.zeros((n, 7))

    def reset(self, ids: np.ndarray | None = None) -> None:
        """Restart the phases of the environments `ids` (None: all)."""
        chosen = slice(None) if ids is None else ids
        self.phase[chosen] = 0
        self.perturbed[chosen] = False
        self._timer[chosen] = 0
        self._burst_left[chosen] = 0

    def act(self, ids: np.ndarray | None = None) -> np.ndarray:
        """The next control step's action [n, 7] for the environments `ids` (None: all)."""
        ids = np.arange(len(self.phase)) if ids is None else np.asarray(ids, dtype=np.int64)
        action = np.zeros((len(ids), 7))
        for task, rows in self._env.by_task(ids):
            action[rows] = self._control(self._controllers[task.name], ids[rows])
        return self._disturb(ids, action).astype(np.float32)

    def _control(self, controller: Controller, ids: np.ndarray) -> np.ndarray:
        """Actions [n, 7] of one task's controller, after it has advanced every phase."""
        physics = self._env.physics
        phase = self.phase[ids]
        timer = self._timer[ids] + 1
        new = controller.advance(physics, ids, phase, timer)
        self._timer[ids] = np.where(new == phase, timer, 0)
        self.phase[ids] = new
        motion = motion_toward(physics, ids, controller.goal(physics, ids, new))
        return np.concatenate(
            [motion, np.where(controller.closed(new), CLOSE, OPEN)[:, None]], axis=1
        )

    def _disturb(self, ids: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The actions with noise and bursts; `perturbed` marks those that a burst replaced."""
        high = np.array(DEFAULT_ACTION_SPEC.high)
        if self._noise > 0:
            action[:, :6] += self._noise * high[:6] * self._rng.standard_normal((len(ids), 6))
        self.perturbed[ids] = False
        if self._burst_probability <= 0:
            return action
        starts = (self._rng.random(len(ids)) < self._burst_probability) & (
            self._burst_left[ids] == 0
        )
        low, longest = self._burst_steps
        lengths = self._rng.integers(low, longest + 1, len(ids))
        motion = np.zeros((len(ids), 7))
        motion[:, :3] = self._rng.uniform(-self._burst_speed, self._burst_speed, (len(ids), 3))
        motion[:, 5] = self._rng.uniform(-0.1, 0.1, len(ids))
        motion[:, 6] = np.where(self._rng.random(len(ids)) < 0.3, -action[:, 6], action[:, 6])
        self._burst_left[ids[starts]] = lengths[starts]
        self._burst[ids[starts]] = motion[starts]
        shaken = self._burst_left[ids] > 0
        self._burst_left[ids[shaken]] -= 1
        self.perturbed[ids] = shaken
        return np.where(shaken[:, None], self._burst[ids], action)

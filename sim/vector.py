"""Hundreds of environments in one process, stepped by chunks of actions and rendered on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.ground_truth import scene_facts
from sim.initial_states import start_anywhere
from sim.instructions import instruction_texts
from sim.physics import Physics
from sim.privileged import privileged_state
from sim.randomize import Randomization
from sim.rendering.backend import Backend
from sim.rendering.renderer import Renderer
from sim.spec import DEFAULT_ACTION_SPEC
from sim.task import SceneFacts, SimObservation, StepResult, Task


@dataclass(frozen=True)
class SimState:
    """The complete state of n environments, by name: it decides their future bit for bit."""

    rows: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rows["state"])

    def take(self, index: np.ndarray | Sequence[int] | slice) -> SimState:
        """The rows at `index`; repeat one to start several environments from one state."""
        return SimState({name: values[index] for name, values in self.rows.items()})


Initialise = Callable[[Task, list[np.random.Generator], np.ndarray], None]
"""Writes the starts of one task into simulations, from a generator each."""


class VectorEnvironment:
    """N environments of one robot and one scene, with one task or several.

    The seed of a start decides its task: tasks take turns, seed by seed. `ids` are distinct
    environment numbers in any order, and every result has its rows in that order. An environment
    that has ended ignores steps until it is reset.

    Args:
        physics: the simulations.
        tasks: they take turns by seed.
        ranges: of everything that differs between starts.
        paraphrased: use the paraphrases of instructions; the seed decides which one.
        cameras: those of the scene's cameras that observations hold.
        image_size: height and width, pixels.
        max_steps: control steps after which an episode is truncated.
        reward: weight per reward term; a missing term has weight 0.
        backend: the renderer's back end, chosen by `sim.rendering.backend.choose_backend`.
        num_threads: drawing threads (0: chosen by the renderer).
        render_every_step: also render after every control step, as `StepResult.frames`.
    """

    def __init__(
        self,
        *,
        physics: Physics,
        tasks: tuple[Task, ...],
        ranges: Randomization,
        paraphrased: bool,
        cameras: tuple[str, ...],
        image_size: int,
        max_steps: int,
        reward: Mapping[str, float],
        backend: Backend,
        num_threads: int,
        render_every_step: bool,
    ) -> None:
        self.physics = physics
        self.tasks = tasks
        self.ranges = ranges
        self._paraphrased = paraphrased
        self.cameras = cameras
        self.image_size = image_size
        self.max_steps = max_steps
        self.num_envs = physics.num_envs
        self.action_spec = DEFAULT_ACTION_SPEC
        self.reward_weights = dict(reward)
        self.render_every_step = render_every_step
        self._renderer = (
            Renderer(physics.model, physics.batch, cameras, image_size, backend, num_threads)
            if cameras
            else None
        )
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._terminated = np.zeros(self.num_envs, dtype=bool)
        self._truncated = np.ones(self.num_envs, dtype=bool)
        self._task = np.zeros(self.num_envs, dtype=np.int64)
        self._phrasing = np.zeros(self.num_envs, dtype=np.int64)
        names = dict.fromkeys(name for task in tasks for name in task.reward_names)
        self._best = {name: np.zeros(self.num_envs) for name in names}

    # -- the interface
    # ------------------------------------------------------------------------------

    @property
    def instructions(self) -> list[str]:
        """The instruction of every environment."""
        return self._instructions(np.arange(self.num_envs))

    def task_name(self, seed: int) -> str:
        """The name of the task that starts from `seed`."""
        return self.tasks[seed % len(self.tasks)].name

    def by_task(self, ids: np.ndarray) -> Iterator[tuple[Task, np.ndarray]]:
        """Every task that runs in the environments `ids` [n], with its rows in `ids`."""
        if len(self.tasks) == 1:
            yield self.tasks[0], np.arange(len(ids))
            return
        running = self._task[ids]
        for index in np.unique(running):
            yield self.tasks[index], np.flatnonzero(running == index)

    def reset(
        self,
        seeds: Sequence[int] | np.ndarray,
        ids: np.ndarray | None = None,
        *,
        render: bool = True,
    ) -> SimObservation:
        """Start the environments `ids` (None: the first len(seeds)) from `seeds`.

        A seed always gives the same start, in any environment.
        """
        ids = self._start(seeds, ids, lambda task, *start: task.initialise(self.physics, *start))
        return self.observe(ids, render=render)

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None, *, render: bool = True
    ) -> StepResult:
        """Execute a chunk of actions [n, H, 7] in the environments `ids` (None: all).

        Images are rendered once, at the end of the chunk.

        Raises:
            ValueError: an action is NaN or infinite, the shape is wrong, or H does not divide
                `max_steps`.
        """
        ids = self._checked_ids(ids)
        actions = self.action_spec.checked_chunks(actions, ids, self.max_steps)
        order = np.argsort(ids)  # the batch takes sorted ids
        inverse = np.argsort(order)
        ids_sorted = ids[order]
        actions = actions[order]
        n, horizon = actions.shape[:2]
        reward = np.zeros(n)
        num_steps = np.zeros(n, dtype=np.int64)
        frames: dict[str, list[np.ndarray]] = {camera: [] for camera in self.cameras}
        for h in range(horizon):
            running = ~(self._terminated[ids_sorted] | self._truncated[ids_sorted])
            if running.any():
                active = ids_sorted[running]
                reward[running] += self._control_step(active, actions[running, h])
                num_steps[running] += 1
            if self.render_every_step and render and self._renderer is not None:
                for camera, images in self._renderer.render(ids).items():
                    frames[camera].append(images)
        # The last frames are the images of the observation: do not render them twice.
        observation = self.observe(ids, render=render and not any(frames.values()))
        if any(frames.values()):
            observation = SimObservation(
                {c: f[-1] for c, f in frames.items()}, observation.proprio, observation.instruction
            )
        return StepResult(
            observation=observation,
            reward=reward[inverse].astype(np.float32),
            terminated=self._terminated[ids],
            truncated=self._truncated[ids],
            success=self._best["success"][ids] > 0.5,
            num_steps=num_steps[inverse],
            metrics=self._metrics(ids),
            frames={camera: np.stack(f, axis=1) for camera, f in frames.items() if f},
        )

    def get_state(self, ids: np.ndarray | None = None) -> SimState:
        """A copy of the complete state of the environments `ids` (None: all)."""
        ids = self._checked_ids(ids)
        return SimState({name: values[ids].copy() for name, values in self._state_arrays().items()})

    def set_state(self, state: SimState, ids: np.ndarray | None = None) -> None:
        """Continue the environments `ids` from `state`, one row each.

        The rows may come from other environments. Raises a ValueError for another number of rows.
        """
        ids = self._checked_ids(ids)
        if len(state) != len(ids):
            raise ValueError(
                f"the state has {len(state)} rows for {len(ids)} environments; pass one row per "
                "environment"
            )
        for name, values in self._state_arrays().items():
            values[ids] = state.rows[name]
        self.physics.refresh(np.sort(ids))

    def privileged(self, ids: np.ndarray | None = None) -> np.ndarray:
        """Ground truth of the environments `ids` as numbers [n, s], for critics.

        The scene, the elapsed share of the time, the best value so far of every reward term, and
        the task.
        """
        ids = self._checked_ids(ids)
        best = [values[ids] for values in self._best.values()]
        tasks = np.eye(len(self.tasks))[self._task[ids]][:, 1:]
        clock = self._steps[ids] / self.max_steps
        rest = np.concatenate([np.stack([clock, *best], axis=1), tasks], axis=1).astype(np.float32)
        return np.concatenate([privileged_state(self.physics, ids), rest], axis=1)

    def facts(self, ids: np.ndarray | None = None) -> list[SceneFacts]:
        """The ground truth of the environments `ids` now."""
        ids = self._checked_ids(ids)
        facts: dict[int, SceneFacts] = {}
        for task, rows in self.by_task(ids):
            found = scene_facts(
                self.physics, task, ids[rows], self._phrasing[ids[rows]], self.cameras
            )
            facts |= dict(zip(rows.tolist(), found, strict=True))
        return [facts[row] for row in range(len(ids))]

    def sample_scenes(
        self, seeds: Sequence[int] | np.ndarray, *, render: bool = True
    ) -> tuple[SimObservation, list[SceneFacts]]:
        """Random scenes for questions about pictures: the hand anywhere, at times with a block.

        They occupy the environments 0 to len(seeds) - 1, which can be stepped from there.
        """
        ids = self._start(
            seeds,
            None,
            lambda task, rngs, rows: start_anywhere(self.physics, rngs, rows, self.ranges),
        )
        return self.observe(ids, render=render), self.facts(ids)

    def observe(self, ids: np.ndarray | None = None, *, render: bool = True) -> SimObservation:
        """The observation of the environments `ids` now."""
        ids = self._checked_ids(ids)
        images = self._renderer.render(ids) if render and self._renderer is not None else {}
        proprio = np.concatenate(
            [self.physics.commanded[ids], self.physics.gripper_opening(ids)[:, None]], axis=1
        )
        return SimObservation(images, proprio.astype(np.float32), self._instructions(ids))

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # -- implementation
    # -----------------------------------------------------------------------------

    def _start(
        self, seeds: Sequence[int] | np.ndarray, ids: np.ndarray | None, initialise: Initialise
    ) -> np.ndarray:
        seeds = [int(seed) for seed in seeds]
        ids = self._checked_ids(np.arange(len(seeds)) if ids is None else ids)
        if len(seeds) != len(ids):
            raise ValueError(
                f"{len(seeds)} seeds for {len(ids)} environments; give one seed per environment"
            )
        for seed in seeds:
            if seed < 0:
                raise ValueError(f"seed {seed} is negative; seeds are integers from 0 upwards")
        order = np.argsort(ids)
        chosen = ids[order]
        self.physics.clear(chosen)
        # The seed alone decides the task, so that a start is the same in every run.
        self._task[ids] = np.array(seeds, dtype=np.int64) % len(self.tasks)
        for task, rows in self.by_task(chosen):
            rngs = [np.random.default_rng(seeds[i]) for i in order[rows]]
            initialise(task, rngs, chosen[rows])
            self._phrasing[chosen[rows]] = self._choose_phrasing(task, np.array(seeds)[order[rows]])
        self.physics.refresh(chosen)
        self._steps[ids] = 0
        self._terminated[ids] = False
        self._truncated[ids] = False
        for values in self._best.values():
            values[ids] = 0.0
        return ids

    def _control_step(self, ids: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """One control step of running environments, and its reward [n].

        A term is rewarded only where it exceeds its best value of the episode. That bounds the
        return by the sum of the weights, and waiting in a good state earns nothing.
        """
        self.physics.apply(actions, ids)
        self.physics.step(ids)
        self._steps[ids] += 1
        best = {name: values[ids] for name, values in self._best.items()}
        reward = np.zeros(len(ids))
        for task, rows in self.by_task(ids):
            some = ids[rows]
            before = {name: best[name][rows] for name in task.reward_names}
            for name, value in task.reward_terms(self.physics, some, before).items():
                reward[rows] += self.reward_weights.get(name, 0.0) * np.maximum(
                    value - before[name], 0.0
                )
                self._best[name][some] = np.maximum(before[name], value)
        self._terminated[ids] = self._best["success"][ids] > 0.5
        self._truncated[ids] = ~self._terminated[ids] & (self._steps[ids] >= self.max_steps)
        return reward

    def _instructions(self, ids: np.ndarray) -> list[str]:
        texts = np.empty(len(ids), dtype=object)
        for task, rows in self.by_task(ids):
            texts[rows] = instruction_texts(
                self.physics.looks, ids[rows], task.template, self._phrasing[ids[rows]]
            )
        return texts.tolist()

    def _choose_phrasing(self, task: Task, seeds: np.ndarray) -> np.ndarray:
        """The phrasing [n] of the starts `seeds`: the paraphrases take turns."""
        if not self._paraphrased:
            return np.zeros(len(seeds), dtype=np.int64)
        return 1 + seeds // len(self.tasks) % len(task.template.paraphrases)

    def _metrics(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        best = {name: values[ids].astype(np.float32) for name, values in self._best.items()}
        if len(self.tasks) == 1:
            return best
        metrics = {"success": best["success"]}
        for index, task in enumerate(self.tasks):
            elsewhere = self._task[ids] != index
            metrics |= {
                f"{task.name}/{n}": np.where(elsewhere, np.float32("nan"), best[n])
                for n in task.reward_names
            }
        return metrics

    def _state_arrays(self) -> dict[str, np.ndarray]:
        arrays = dict(
            self.physics.state_arrays(),
            steps=self._steps,
            terminated=self._terminated,
            truncated=self._truncated,
            task=self._task,
            phrasing=self._phrasing,
        )
        return arrays | {f"best_{name}": values for name, values in self._best.items()}

    def _checked_ids(self, ids: np.ndarray | Sequence[int] | None) -> np.ndarray:
        if ids is None:
            return np.arange(self.num_envs)
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_envs):
            raise ValueError(
                f"environment ids go from 0 to {self.num_envs - 1} (sim.num_envs - 1), got "
                f"{ids.tolist()}"
            )
        if len(np.unique(ids)) != len(ids):
            raise ValueError(f"environment ids must be distinct, got {ids.tolist()}")
        return ids

"""Control steps per second of the vector environment and of a bare loop of physics and rendering.

The bare loop calls `Batch.step` and `Renderer.render` without actions, task, reward or episodes: it
is the upper bound of the speed. Both take chunks and render every camera once a chunk; a third run
renders after every control step.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from sim import VectorEnvironment


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py rollout", description=__doc__)
    parser.add_argument("--task", nargs="+", default=["pick_place"], help="several take turns")
    parser.add_argument("--robot", default="panda")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=8, help="control steps a call")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--cameras", nargs="+", default=["front", "wrist"])
    parser.add_argument("--renderer", default="auto")
    parser.add_argument("--num-threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(argv)

    import numpy as np
    from benchmarks.clock import print_rates, time_candidates

    import sim

    shared = {
        "task": options.task,
        "robot": options.robot,
        "num_envs": options.num_envs,
        "cameras": options.cameras,
    }
    shared |= {
        "image_size": options.image_size,
        "renderer": options.renderer,
        "num_threads": options.num_threads,
    }
    endless = options.chunk * (options.rounds + 2)
    chunked = sim.make_vector(**shared, max_steps=endless)
    every_step = sim.make_vector(**shared, max_steps=endless, render_every_step=True)
    for environment in (chunked, every_step):
        environment.reset(range(options.num_envs))
    rng = np.random.default_rng(0)
    actions = rng.uniform(
        -0.002, 0.002, (options.num_envs, options.chunk, chunked.action_spec.size)
    ).astype(np.float32)
    timings = time_candidates(
        {
            "bare loop": bare_loop(chunked, options),
            "environment": lambda: chunked.step(actions),
            "environment, rendering every control step": lambda: every_step.step(actions),
        },
        options.rounds,
    )
    count = options.num_envs * options.chunk
    print_rates(timings, count, "control steps")
    bare, ours, all_steps = timings.values()
    print(
        f"environment / bare loop: {bare.wall / ours.wall:.2f} (CPU {bare.cpu / ours.cpu:.2f}); "
        "the goal is at least 0.80"
    )
    print(
        f"rendering once a chunk of {options.chunk} / every control step: "
        f"{all_steps.wall / ours.wall:.2f} times as fast"
    )
    return 0


def bare_loop(
    environment: VectorEnvironment, options: argparse.Namespace
) -> Callable[[], dict[str, np.ndarray]]:
    """A call of physics for a whole chunk and of every camera once, on the same scenes at rest."""
    import mujoco
    from mujoco.batch import Batch

    from sim.rendering.backend import choose_backend
    from sim.rendering.renderer import Renderer

    physics = environment.physics
    batch = Batch(physics.model, options.num_envs, options.num_threads)
    for name, values in physics.fields.items():
        batch.expand(name)[:] = values
    renderer = Renderer(
        physics.model,
        batch,
        tuple(options.cameras),
        options.image_size,
        choose_backend(options.renderer),
        options.num_threads,
    )
    batch.state[:] = physics.batch.state
    num_substeps = physics.num_substeps * options.chunk

    def advance() -> dict[str, np.ndarray]:
        batch.step(nstep=num_substeps, stage=mujoco.mjtStage.mjSTAGE_VEL)
        return renderer.render()

    return advance

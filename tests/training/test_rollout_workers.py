"""Rollouts by Ray actors on a local cluster of two: the same bits as without them, and no start is
lost with a worker."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
import torch

from tests.rl.test_rollout import Countdown, observe
from tests.rl.toys import GaussianPolicy
from tests.test_pipeline import TINY
from vla.build import build_vlm, make_policy, policy_settings
from vla.config import ConfigError, load
from vla.config.robot import RobotConfig
from vla.pipelines.robot.policy import make_observer
from vla.pipelines.robot.rl import make_branch_collector
from vla.pipelines.robot.rollout_worker import BRANCHES, RobotWorkerPlan
from vla.rl.rollout_state import encode_rollout
from vla.simulator import make_simulator
from vla.training.ray_pool import RayPool, WorkersLost, start_ray
from vla.training.rollout_shards import (
    InProcessPool,
    RolloutOrder,
    RolloutWorkers,
    Shard,
    ShardCollector,
    ShardPool,
    WorkerPlan,
)
from vla.training.tensor_arrays import from_arrays, to_arrays

HALF = {"CPU": 0.5}


class Saver:
    """Of an unfinished rollout; `saved` is what a session before left."""

    def __init__(self, saved=None):
        self.saved, self.states = saved, []

    def load(self):
        return self.saved

    def save_if_due(self, state):
        self.states.append(state())


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        handler = signal.getsignal(signal.SIGTERM)
        start_ray()
        assert signal.getsignal(signal.SIGTERM) is handler
        yield
        ray.shutdown()
        for process in [one for one in gc.get_objects() if type(one) is Popen]:
            process.wait(timeout=30)  # Ray ends its processes and does not wait for them


def same(first: object, second: object) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def workers_of(plan: WorkerPlan, pool: ShardPool, parts=None, seed: int = 5) -> RolloutWorkers:
    return RolloutWorkers(lambda: pool, plan.learner, parts or {}, 2, seed)


def robot_plan(config: RobotConfig) -> tuple[RobotWorkerPlan, object]:
    """A new policy, and the learner's branches with a critic that is fitted."""
    torch.manual_seed(0)
    simulator = make_simulator(config.sim)
    model, tokenizer = build_vlm(config, simulator.proprio_size, 6, simulator.texts())
    chunk = config.policy.chunk
    chunks = np.random.default_rng(0).normal(size=(60, chunk, 7)).astype(np.float32)
    policy = make_policy(config, model, policy_settings(config.policy).fit_code(chunks))
    policy.freeze_model()
    branches = make_branch_collector(config, policy, simulator.environment())
    size = simulator.environment().privileged(np.array([0])).shape[1]
    branches.critic.remember(torch.randn(40, size), torch.randn(40))
    branches.critic.fit(1)
    observer = make_observer(config, tokenizer, config.policy.instruction_length, policy)
    sim = config.sim.model_dump(mode="json")
    return (
        RobotWorkerPlan(sim, policy, observer, 2, (branches.settings, branches.seed)),
        branches,
    )


def test_robot_rollouts_are_the_same_to_the_bit_in_and_out_of_ray():
    """Pictures, draws, rewards and branches, before and after an update; drawn without a
    display."""
    config = load([*TINY, "rl.workers=2", "sim.max_steps=16"])
    plan, branches = robot_plan(config)
    # A pickled copy, as in an actor: the learner's own weights move below.
    from ray import cloudpickle

    local = InProcessPool(cloudpickle.loads(cloudpickle.dumps(plan)).build(1))
    collected = {}
    first = {name: weight.clone() for name, weight in plan.learner.state_dict().items()}
    pools = {"here": local, "ray": RayPool(2, HALF, plan)}
    for name, pool in pools.items():
        plan.learner.load_state_dict(first)
        workers = workers_of(plan, pool, {BRANCHES: branches})
        collected[name] = []
        for iteration in (0, 1):
            branches.start(iteration)
            order = RolloutOrder(iteration, 0, [3, 4, 5], iteration)
            rollout = workers.collect(order, Saver())
            found = branches.state_dict()
            collected[name] += [encode_rollout(rollout), {n: found[n] for n in ("states", "tried")}]
            with torch.no_grad():
                for weight in plan.learner.head.parameters():
                    weight.add_(0.1)
        workers.close()
    assert same(collected["here"], collected["ray"])
    rollout = collected["ray"][0]
    assert rollout["episodes"]["seed"].tolist() == [3, 3, 4, 4, 5, 5]
    assert rollout["group"].tolist() == [0, 0, 1, 1, 2, 2]
    assert all(
        len(torch.unique(picture)) > 10 for picture in rollout["observation"]["images"].values()
    )
    assert len(collected["ray"][1]["tried"]) > 0
    assert not same(rollout["logprobs"], collected["ray"][2]["logprobs"])


DEADLY = 99


class Waiting(Countdown):
    """Leaves a file named by its process in `folder` at every step, and waits there for `go`. The
    start `DEADLY` ends the process."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def step(self, actions, ids=None):
        if DEADLY in self.seed[ids]:
            os._exit(1)
        (self.folder / f"pid-{os.getpid()}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.02)
        return super().step(actions, ids)


class ToyPlan:
    """A Gaussian policy in environments that wait."""

    def __init__(self, folder: Path):
        torch.manual_seed(0)
        self.learner, self.folder = GaussianPolicy(2, 2), folder

    def build(self, num_threads: int) -> ShardCollector:
        return ShardCollector(self.learner, Waiting(self.folder), observe, 2)


class Killing(Saver):
    """Kills a worker once both are in the middle of their shards."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.killed = folder, None

    def save_if_due(self, state):
        found = sorted(self.folder.glob("pid-*"))
        if self.killed is None and len(found) == 2:
            self.killed = int(found[0].name.removeprefix("pid-"))
            os.kill(self.killed, signal.SIGKILL)
            (self.folder / "go").touch()


def test_starts_of_a_killed_worker_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ray import cloudpickle

    for module in (__name__, Countdown.__module__, GaussianPolicy.__module__):
        cloudpickle.register_pickle_by_value(sys.modules[module])
    plan, lines = ToyPlan(tmp_path), []
    pool = RayPool(2, HALF, plan, lines.append)
    workers = workers_of(plan, pool)
    order = RolloutOrder(0, 0, [1, 2, 3, 4], 0)
    saver = Killing(tmp_path)
    rollout = workers.collect(order, saver)
    assert saver.killed is not None
    metrics = dict(rollout.metrics)
    assert (metrics.pop("workers_lost"), metrics.pop("starts_taken_over")) == (1.0, 2.0)
    assert len(lines) == 1
    assert "a rollout worker was lost with 2 starts, another one takes over" in lines[0]
    alone = workers_of(plan, InProcessPool(plan.build(1))).collect(order, Saver())
    assert same({**encode_rollout(rollout), "metrics": 0}, {**encode_rollout(alone), "metrics": 0})
    assert metrics.items() <= alone.metrics.items()
    again = workers.collect(RolloutOrder(1, 0, [1, 2], 1), Saver())
    assert again.metrics["workers_lost"] == 0
    assert len(pool.actors) == 2
    # Starts that end every worker end the run.
    monkeypatch.setattr("vla.training.ray_pool.MAX_LOSSES", 1)
    with pytest.raises(WorkersLost, match="1 rollout workers were lost .* with 1 starts"):
        workers.collect(RolloutOrder(2, 0, [DEADLY], 2), Saver())
    workers.close()


def test_a_stopped_rollout_goes_on_with_its_finished_shards(tmp_path: Path):
    plan = ToyPlan(tmp_path)
    (tmp_path / "go").touch()
    order = RolloutOrder(2, 0, [1, 2, 3], 2)
    saver = Saver()
    whole = workers_of(plan, InProcessPool(plan.build(1))).collect(order, saver)
    assert [list(state) for state in saver.states] == [["0"]]
    again = workers_of(plan, InProcessPool(plan.build(1)))
    submitted: list[Shard] = []
    pool = again.start_pool()
    keep = pool.submit
    pool.submit = lambda shard: (submitted.append(shard), keep(shard))
    resumed = again.collect(order, Saver(saver.states[0]))
    assert [shard.number for shard in submitted] == [1]
    assert same(encode_rollout(resumed), encode_rollout(whole))


def test_tensors_keep_their_bits_as_arrays():
    tensors = [
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]),
        torch.randn(3).bfloat16(),
        torch.ones(1, 4).as_strided((1,), (4,)),
    ]
    value = {"a": tensors, "b": ({"c": 1, "d": None},)}
    assert same(from_arrays(to_arrays(value)), value)


def test_what_workers_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch):
    def refused(*settings: str) -> str:
        with pytest.raises(ConfigError) as error:
            load([*settings])
        return str(error.value)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert "rl.workers (3) x rl.worker_resources.CPU (1) is more than the 2" in refused(
        "rl.workers=3"
    )
    load(["rl.workers=3", "rl.worker_resources.CPU=0.5"])
    assert "rl.workers (2) is more than rl.num_start_states (1)" in refused(
        "rl.workers=2", "rl.num_start_states=1"
    )
    assert "rl.worker_resources" in refused("rl.worker_resources.CPU=2")
    assert "rl.workers (2) collect robot episodes" in refused("mode=text", "rl.workers=2")
    monkeypatch.setattr("vla.config.workers.find_spec", lambda name: None)
    assert "rl.workers (2) needs Ray" in refused("rl.workers=2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "rl.workers (2) collect for one process, and there are 2" in refused("rl.workers=2")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.undo()
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    load(["rl.workers=64"])

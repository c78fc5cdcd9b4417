"""Reinforcement learning as a stage of a run: resumable, choosing its best weights on validation starts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vla.config.robot import RobotConfig
from vla.data.observations import Observer
from vla.evaluate.starts import StartManifest
from vla.evaluate.success import SuccessRate
from vla.policies.token import TokenPolicy
from vla.rl.catalogue import make_algorithm
from vla.rl.loop import LoopSettings, LoopState, train
from vla.rl.protocols import VectorEnvironment
from vla.rl.reference import FrozenCopy
from vla.rl.update import UpdateSettings
from vla.stages.evaluation import evaluate_policy
from vla.stages.refinement import DynamicSampling, Starts, make_collector
from vla.stages.run import Run
from vla.train.optim import Together, make_optimizer, schedule_scale
from vla.train.seed import torch_generator
from vla.types import Rollout


@dataclass
class RlState:
    """What the stage remembers beside the loop: seconds spent, curves, and the best weights on validation starts."""

    seconds: float = 0.0
    validation: list[tuple[int, int, int]] = field(default_factory=list)
    training: list[tuple[int, float]] = field(default_factory=list)
    best_score: float = -1.0

    def curve(self) -> list[tuple[float, SuccessRate]]:
        """Greedy success on validation starts by iteration."""
        return [(i, SuccessRate(successes, n, None)) for i, successes, n in self.validation]


class RateSchedule:
    """Learning rates over the progress of the stage, in iterations or seconds, whichever is further on."""

    def __init__(self, optimizer: Together, config: RobotConfig, loop: LoopState, state: RlState):
        self.optimizer, self.config, self.loop, self.state = optimizer, config, loop, state
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def step(self) -> None:
        rl = self.config.rl
        progress = (self.loop.iteration + 1) / rl.num_iterations
        if rl.max_seconds is not None:
            progress = max(progress, self.state.seconds / rl.max_seconds)
        scale = schedule_scale(rl.schedule, progress, self.loop.iteration + 1, rl.warmup_iterations)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale


def reinforcement_stage(
    run: Run,
    config: RobotConfig,
    policy: TokenPolicy,
    environment: VectorEnvironment,
    observer: Observer,
    starts: StartManifest,
) -> RlState:
    """Train `policy` in place by the algorithm of the settings; it ends with the weights that did best on validation starts."""
    rl = config.rl
    if config.model.freeze_prefix_in_rl:
        policy.freeze_prefix()
    settings = config.algorithm.model_dump()
    algorithm = make_algorithm(settings.pop("name"), **settings)
    optimizer = make_optimizer(
        policy, rl.optimizer, rl.learning_rate, rl.weight_decay, rl.muon_learning_rate,
        {"value_head": rl.critic_learning_rate},
    )  # fmt: skip
    reference = FrozenCopy(policy, rl.micro_batch_rows) if algorithm.needs_reference else None
    loop, state = LoopState(torch_generator(config.train.seed, "rl")), RlState()
    best = _snapshot(policy)
    saved = run.load("rl")
    if saved is not None:
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        loop.load_state_dict(saved["loop"])
        state = RlState(**saved["state"])
        best = saved["best"]
        if reference is not None:
            reference.load_state_dict(saved["reference"])
    schedule = RateSchedule(optimizer, config, loop, state)
    before = run.timer.clock() - state.seconds

    def collect(iteration: int) -> Rollout:
        with run.timer("rollout"):
            return sample(iteration)

    def validate(iteration: int) -> float:
        nonlocal best
        with run.timer("validation"):
            seeds = starts.validation.take(config.evaluation.num_quick_starts)
            episodes = evaluate_policy(policy, environment, seeds.tolist(), observer, greedy=True)
        state.validation.append((iteration, int(episodes.success.sum()), len(seeds)))
        rate = float(episodes.success.mean())
        if rate >= state.best_score:
            state.best_score, best = rate, _snapshot(policy)
        return rate

    def save() -> None:
        whole = {
            "policy": policy.state_dict(), "optimizer": optimizer.state_dict(), "loop": loop.state_dict(),
            "state": vars(state), "best": best,
        }  # fmt: skip
        run.save("rl", loop.iteration, whole | ({} if reference is None else {"reference": reference.state_dict()}))

    def on_iteration(iteration: int, rollout: Rollout, metrics: dict[str, float]) -> bool:
        assert rollout.success is not None
        success = float(rollout.success.mean())
        state.seconds = run.timer.clock() - before
        state.training.append((iteration, success))
        over = rl.max_seconds is not None and state.seconds >= rl.max_seconds
        numbers = {"success": success, **metrics}
        if iteration % rl.evaluate_every == 0 or over or iteration == rl.num_iterations:
            numbers["validation_success"] = validate(iteration)
        run.log.write("rl", iteration, numbers | {"seconds": state.seconds})
        bar.advance(1, **{k: numbers[k] for k in ("success", "validation_success", "entropy") if k in numbers})
        if run.stop.requested or over or iteration % config.train.checkpoint_every == 0:
            save()
        return run.stop.requested or over

    with run.progress.stage(f"RL ({config.algorithm.name})", rl.num_iterations, loop.iteration) as bar:
        sample = make_collector(
            policy, environment, observer,
            Starts(starts.train.first, starts.train.last, config.train.seed),
            rl.starts_per_iteration, rl.group_size, _dynamic(config), lambda ended: None,
        )  # fmt: skip
        update = UpdateSettings(
            rl.epochs, rl.num_minibatches, rl.micro_batch_rows, rl.max_grad_norm, rl.target_kl, rl.importance_cap,
            rl.importance_level,
        )  # fmt: skip
        loop_settings = LoopSettings(
            rl.num_iterations, rl.critic_warmup_iterations, rl.reference_every, rl.kl_target, rl.kl_horizon,
            rl.normalize_rewards,
        )  # fmt: skip
        train(
            policy, algorithm, collect, optimizer, update, loop_settings, loop,
            reference=reference, scheduler=schedule, on_iteration=on_iteration,
        )  # fmt: skip
    run.check_stop()
    save()
    policy.load_state_dict(best)
    return state


def _snapshot(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}


def _dynamic(config: RobotConfig) -> DynamicSampling | None:
    return DynamicSampling(config.rl.max_refills, None, None) if config.rl.max_refills else None

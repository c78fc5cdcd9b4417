"""Run by `test_many_processes` in two processes: supervised steps, an RL iteration and an
evaluation, each process with its share; the main one then does all of it once more alone.
"""

from dataclasses import replace
from types import SimpleNamespace

import torch

from tests.policies.tiny import named_number
from tests.rl.test_rollout import Countdown, Counting, observe
from tests.sft.test_mixed_batch import questions
from vla.evaluation.evaluate import evaluate_policy
from vla.pipelines.robot.cotraining import AuxiliaryTask
from vla.pipelines.robot.grounding.trainer import GroundingTrainer
from vla.pipelines.robot.imitation import ImitationBatch, cotraining_loss
from vla.policies.vla_policy import VlaPolicy
from vla.rl.algorithm_factory import make_algorithm
from vla.rl.dynamic_sampling import keep_trajectories
from vla.rl.loop import LoopSettings, LoopState, train_rl
from vla.rl.reference import FrozenCopy
from vla.rl.rollout import collect_responses
from vla.rl.update import UpdateSettings
from vla.sft.detection import CellTargets
from vla.sft.examples import train_on_examples
from vla.sft.head_pretraining import extract_features, train_head
from vla.sft.loop import SupervisedSettings, SupervisedTrainer
from vla.training.distributed import (
    SINGLE_PROCESS,
    Processes,
    broadcast_weights,
    init_processes,
    shard_rows,
)
from vla.training.optim import make_optimizer
from vla.types import Observation, map_rows

ROWS = 15
"""Of a batch: one more in the first of two processes than in the second."""


class Asking(GroundingTrainer):
    """Questions beside the demonstrations, without scenes to draw them from."""

    def __init__(self, model: torch.nn.Module, processes: Processes):
        self.model, self.processes = model, processes
        self.settings = SimpleNamespace(detection_weight=0.0)

    def __call__(self, step: int):
        asked, none = questions(ROWS, seed=step), torch.zeros(ROWS, 4, dtype=torch.long)
        few = (
            torch.arange(ROWS)[:, None] % 3 > 0
        )  # so that shares of rows are not shares of answers
        packed = asked.questions.__class__(
            asked.questions.tokens,
            asked.questions.token_mask,
            asked.questions.answers & few,
            asked.questions.segments,
        )
        cells = CellTargets(none, torch.zeros(ROWS, 4, 3), torch.zeros(ROWS, 4, 2), none > 0)
        return self._own_rows(asked.__class__(asked.observation, packed, cells))


def imitate(
    policy: VlaPolicy, seen: Observation, actions: torch.Tensor, processes: Processes
) -> None:
    """All of the policy beside questions, then the head on stored features; some actions carry no
    loss.

    By plain SGD first: Muon makes much of gradients that are nothing but rounding.
    """
    asking = Asking(policy.model, processes)
    tasks = [AuxiliaryTask(0.5, asking, asking.loss)]

    def rows_of(rows: torch.Tensor) -> tuple[Observation, torch.Tensor, torch.Tensor]:
        mask = (rows[:, None] + torch.arange(2)) % 5 > 0
        return map_rows(seen, lambda t: t[rows % 4]), actions[rows % 4], mask

    sgd = SupervisedSettings(
        num_steps=4,
        batch_size=ROWS,
        schedule="constant",
        optimizer="sgd",
        learning_rate=0.05,
        max_grad_norm=1.0,
    )
    adamw = replace(sgd, batch_size=8, optimizer="adamw", learning_rate=1e-4)

    def batch_at(step: int) -> ImitationBatch:
        return ImitationBatch(
            *rows_of(shard_rows(torch.arange(ROWS) + step, processes)), (asking(step),)
        )

    def loss_of(batch: ImitationBatch):
        return cotraining_loss(policy, batch, tasks, processes.reduce_sum)

    SupervisedTrainer(policy, sgd, processes=processes).train(
        lambda step: [batch_at(step)], loss_of
    )
    features = extract_features(policy, iter([rows_of(shard_rows(torch.arange(40), processes))]))
    train_head(policy, features, adamw, lambda step, metrics: None, processes)


def reinforce(
    policy: VlaPolicy, seen: Observation, actions: torch.Tensor, processes: Processes
) -> dict[str, float]:
    """One iteration in a trust region, against a reference, on this process's groups of one
    rollout."""
    found: dict[str, float] = {}

    def reward(decision, rows):
        return (decision.action - actions[rows]).abs().lt(0.5).float().mean((1, 2))

    def collect(iteration: int):
        torch.manual_seed(7)
        rollout = collect_responses(policy, map_rows(seen, lambda t: t[:3]), 8, reward)
        return keep_trajectories(rollout, rollout.group % processes.num_processes == processes.rank)

    train_rl(
        policy,
        make_algorithm("grpo", clip_low=0.2, clip_high=0.2, kl_coefficient=0.1),
        collect,
        make_optimizer(policy, "sgd", 0.01, 0.0),
        UpdateSettings(2, 1, 4, 1.0, target_step_kl=0.05),
        LoopSettings(1),
        LoopState(),
        reference=FrozenCopy(policy, 8),
        reduce_sum=processes.reduce_sum,
        on_iteration=lambda iteration, rollout, metrics: found.update(metrics) or False,
    )
    return found


def all_of_it(processes: Processes) -> dict:
    policy, seen, actions = named_number("parallel", seed=processes.rank)
    broadcast_weights(policy, processes)
    torch.manual_seed(0)
    imitate(policy, seen, actions, processes)
    after_sft = {name: value.clone() for name, value in policy.state_dict().items()}
    metrics = reinforce(policy, seen, actions, processes)
    text = torch.nn.Linear(3, 1)
    broadcast_weights(text, processes)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    settings = SupervisedSettings(
        num_steps=5, batch_size=7, micro_batch_size=2, learning_rate=0.01, max_grad_norm=1.0
    )
    train_on_examples(
        text, 20, lambda rows: text(x[rows]).square().sum(), settings, 0, processes=processes
    )
    where = (Counting(), Countdown(), list(range(1, 8)), observe)
    evaluation = evaluate_policy(*where, temperature=None, processes=processes).to_dict()
    trained = {"sft": after_sft, "rl": policy.state_dict(), "text": text.state_dict()}
    return {**trained, "metrics": metrics, "evaluation": evaluation, "shared draw": torch.rand(1)}


def main() -> None:
    processes = init_processes("cpu")
    shared = all_of_it(processes)
    alone = all_of_it(SINGLE_PROCESS) if processes.is_main else {}
    torch.save({"shared": shared, "alone": alone}, f"rank-{processes.rank}.pt")
    processes.wait()


if __name__ == "__main__":
    main()

"""The few things the reinforcement-learning core asks of a policy, an environment, a reference and
an algorithm.

`B` rows of a call, `R` rows of a rollout, `L` draws a decision, `N` trajectories, `H` control steps
in a chunk, `A` action values, `n` environments asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from vla.collectives import ReduceSum, single_process
from vla.rl.batch import Batch, LossOutput
from vla.rl.traits import AlgorithmTraits
from vla.types import ActionScores, Decision, Observation, Rollout, Trace


@runtime_checkable
class Policy(Protocol):
    """Acts, and can say again how likely each of its draws was.

    Contract: `policy.score(o, d.trace).logprobs == d.logprobs` where `d.mask`, for the weights that
    made `d`, in training mode and in evaluation mode alike (so no dropout), whatever other rows
    share the call.
    """

    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Decide for every row, without gradient."""
        ...

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """Log-probabilities, entropy and values of stored draws from one forward pass, with
        gradient."""
        ...

    def parameters(self) -> Iterator[Parameter]: ...


@runtime_checkable
class Critic(Protocol):
    """A policy that also estimates returns: when `Decision.values` are not None, this is there and
    `Scores.values` too.

    `critic_parameters` are those that only the critic uses (the value head): all that moves during
    value warm-up, because a shared backbone trained on values alone forgets how to act.
    """

    def value(self, observation: Observation) -> Float[Tensor, "B"]: ...

    def critic_parameters(self) -> Iterator[Parameter]: ...


@runtime_checkable
class StepResult(Protocol):
    """What one chunk of actions did, a row per environment asked for; images are rendered once, at
    the end of the chunk.

    `reward` sums over the control steps executed, `num_steps` counts them: an environment that ends
    inside a chunk stops there.
    """

    @property
    def observation(self) -> Any: ...
    @property
    def reward(self) -> np.ndarray: ...
    @property
    def terminated(self) -> np.ndarray: ...
    @property
    def truncated(self) -> np.ndarray: ...
    @property
    def success(self) -> np.ndarray: ...
    @property
    def num_steps(self) -> np.ndarray: ...
    @property
    def metrics(self) -> Mapping[str, np.ndarray]: ...


@runtime_checkable
class VectorEnvironment(Protocol):
    """Many environments in one process. Rows of what goes in and comes out stand in the order of
    `ids` (None: all)."""

    @property
    def num_envs(self) -> int: ...

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> Any: ...

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> StepResult: ...


@runtime_checkable
class RolloutSaver(Protocol):
    """Where a rollout under way is kept, so that another process can go on with it."""

    def load(self) -> Any:
        """What was kept of the rollout that begins; None: it begins at its starts."""
        ...

    def save_if_due(self, state: Callable[[], Any]) -> None:
        """Between two decisions: maybe keep the state."""
        ...


@runtime_checkable
class Reference(Protocol):
    """The policy that the KL penalty holds ours to. `refresh` makes it the present policy
    (iterative GRPO)."""

    def logprobs(self, rollout: Rollout) -> Float[Tensor, "R L"]: ...

    def refresh(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Algorithm(AlgorithmTraits, Protocol):
    """A frozen dataclass of flat settings with two functions.

    `prepare` turns a rollout into a batch: advantages, returns, and the weights of the *global*
    batch. `loss` is a sum over whatever rows it is given; sums over disjoint rows add up to the
    loss of the batch.
    """

    def prepare(
        self,
        rollout: Rollout,
        ref_logprobs: Float[Tensor, "R L"] | None = None,
        reduce_sum: ReduceSum = single_process,
    ) -> Batch: ...

    def loss(self, batch: Batch, scores: ActionScores) -> LossOutput: ...


@runtime_checkable
class Optimizer(Protocol):
    """Any torch optimizer, or several behind one face."""

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...


@runtime_checkable
class Scheduler(Protocol):
    """A learning-rate schedule, stepped once an iteration."""

    def step(self) -> Any: ...


Observe = Callable[[Any], Observation]
"""Turns an environment's observation into a policy's; text must come out padded to one fixed
width."""

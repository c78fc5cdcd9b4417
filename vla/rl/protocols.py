"""Protocols of the RL core: policy, critic, environment, reference, algorithm and optimizer.

`B` rows of a call, `R` rows of a rollout, `L` draws a decision, `N` trajectories, `H` control steps
in a chunk, `A` action values, `n` environments of a call.
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
from vla.types import ActionScores, Decision, Observation, Rollout, StateDict, Trace


@runtime_checkable
class Policy(Protocol):
    """A policy that decides, and scores its stored draws again.

    Contract: `policy.score(o, d.trace).logprobs == d.logprobs` where `d.mask`, for the weights that
    made `d`, in training mode and in evaluation mode alike (so no dropout), whatever other rows
    share the call.
    """

    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Make one decision per row, without gradient."""
        ...

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """Log-probabilities, entropy and values of stored draws from one forward pass, with
        gradient."""
        ...

    def parameters(self) -> Iterator[Parameter]: ...


@runtime_checkable
class Critic(Protocol):
    """A policy that also estimates returns. `Decision.values` and `ActionScores.values` are not
    None.

    `critic_parameters` are those that only the critic uses (the value head). Value warm-up trains
    no others, because values alone would degrade the policy of a shared backbone.
    """

    def value(self, observation: Observation) -> Float[Tensor, "B"]: ...

    def critic_parameters(self) -> Iterator[Parameter]: ...


@runtime_checkable
class StepResult(Protocol):
    """Result of one chunk of actions, one row per environment; images are rendered once, at its
    end.

    `reward` sums over the executed control steps, `num_steps` counts them. An environment that ends
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
    """Several environments in one process. Rows of inputs and outputs are in the order of `ids`
    (None: all)."""

    @property
    def num_envs(self) -> int: ...

    def reset(self, seeds: Sequence[int], ids: np.ndarray | None = None) -> Any: ...

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> StepResult: ...


@runtime_checkable
class RolloutSaver(Protocol):
    """Storage of an unfinished rollout, for a later session."""

    def load(self) -> StateDict | None:
        """The saved state of the rollout; None where it starts from the beginning."""
        ...

    def save_if_due(self, state: Callable[[], StateDict]) -> None:
        """Save `state()` between two decisions if a checkpoint is due."""
        ...


@runtime_checkable
class Reference(Protocol):
    """Reference policy of the KL penalty. `refresh` copies the present policy (iterative GRPO)."""

    def logprobs(self, rollout: Rollout) -> Float[Tensor, "R L"]: ...

    def refresh(self) -> None: ...

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


@runtime_checkable
class Algorithm(AlgorithmTraits, Protocol):
    """An RL algorithm: a frozen dataclass of flat settings with two functions.

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
    """A torch optimizer, or several with the interface of one."""

    def step(self) -> object: ...

    def zero_grad(self) -> None: ...


@runtime_checkable
class Scheduler(Protocol):
    """A learning-rate schedule, stepped once per iteration."""

    def step(self) -> object: ...


Observe = Callable[[Any], Observation]
"""Converts an environment's observation to a policy's. Text must have one fixed padded width."""

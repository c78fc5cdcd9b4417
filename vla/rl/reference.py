"""Reference policies of the KL penalty: frozen copy, adapter switched off, cached log-probs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vla.rl.critic import copy_trained
from vla.rl.protocols import Policy
from vla.rl.scoring import score_logprobs
from vla.types import Rollout, StateDict

ReferenceKind = Literal["auto", "copy", "adapter_off", "rollout"]


class FrozenCopy:
    """A copy of the trainable weights. Frozen weights (e.g. the base of an adapter) are shared with
    the policy and take no memory.
    """

    def __init__(self, policy: Any, micro_batch_rows: int) -> None:
        self.policy = policy
        self.micro_batch_rows = micro_batch_rows
        self.frozen = copy_trained(policy).requires_grad_(False)

    def logprobs(self, rollout: Rollout) -> Float[Tensor, "R L"]:
        return score_logprobs(
            self.frozen,
            rollout.observation,
            rollout.trace,
            len(rollout.mask),
            self.micro_batch_rows,
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the policy's present weights (iterative GRPO, Shao 2024, algorithm 1)."""
        self.frozen.load_state_dict(self.policy.state_dict())

    def state_dict(self) -> StateDict:
        shared = {name for name, p in self.policy.named_parameters() if not p.requires_grad}
        return {
            "weights": {
                name: value
                for name, value in self.frozen.state_dict().items()
                if name not in shared
            }
        }

    def load_state_dict(self, state: StateDict) -> None:
        self.frozen.load_state_dict(state["weights"], strict=False)


class AdapterOff:
    """The policy with its adapter switched off, without a second copy in memory.

    `without_adapter` returns a context in which the policy is its base, e.g. peft's
    `model.disable_adapter`.
    """

    def __init__(
        self,
        policy: Policy,
        without_adapter: Callable[[], AbstractContextManager[object]],
        micro_batch_rows: int,
    ) -> None:
        self.policy = policy
        self.without_adapter = without_adapter
        self.micro_batch_rows = micro_batch_rows

    def logprobs(self, rollout: Rollout) -> Float[Tensor, "R L"]:
        with self.without_adapter():
            return score_logprobs(
                self.policy,
                rollout.observation,
                rollout.trace,
                len(rollout.mask),
                self.micro_batch_rows,
            )

    def refresh(self) -> None:
        raise ValueError(
            "reference_refresh_every cannot refresh a reference that is the policy without its "
            "adapter: merge the adapter and "
            "start a new one, or keep a frozen copy (rl.reference=copy)"
        )

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Do nothing: the base weights are the reference."""


class CachedReference:
    """Reference log-probs read from the rollout (`rollout_logprobs`), another process or a file."""

    def __init__(self, read: Callable[[Rollout], Float[Tensor, "R L"]]) -> None:
        self.read = read

    def logprobs(self, rollout: Rollout) -> Float[Tensor, "R L"]:
        logprobs = self.read(rollout)
        if logprobs.shape != rollout.logprobs.shape:
            raise ValueError(
                f"cached reference log-probs have shape {tuple(logprobs.shape)}, the rollout's "
                f"{tuple(rollout.logprobs.shape)}: they must belong to the same draws"
            )
        return logprobs

    def refresh(self) -> None:
        raise ValueError(
            "reference_refresh_every cannot refresh cached log-probs: keep a frozen copy "
            "(rl.reference=copy)"
        )

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Do nothing: there is no state."""


def rollout_logprobs(rollout: Rollout) -> Float[Tensor, "R L"]:
    """Log-probs of the acting policy: PPO's penalty on the KL of one update (Schulman 2017, section
    4), without a forward pass."""
    return rollout.logprobs


def make_reference(
    kind: ReferenceKind,
    policy: Any,
    micro_batch_rows: int,
    without_adapter: Callable[[], AbstractContextManager[object]] | None = None,
) -> FrozenCopy | AdapterOff | CachedReference:
    """Make the reference policy of a kind.

    "auto" switches the adapter off where `without_adapter` is given, else it makes a frozen copy.

    Raises:
        ValueError: for "adapter_off" without an adapter.
    """
    if kind == "rollout":
        return CachedReference(rollout_logprobs)
    if kind == "adapter_off" and without_adapter is None:
        raise ValueError(
            "rl.reference (adapter_off) needs a policy that is its base without the adapter, a "
            "language model with "
            "LoRA: set the model's lora, or rl.reference=copy"
        )
    if kind == "copy" or without_adapter is None:
        return FrozenCopy(policy, micro_batch_rows)
    return AdapterOff(policy, without_adapter, micro_batch_rows)

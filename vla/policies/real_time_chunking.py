"""Real-time chunking: a flow policy's next chunk continues the chunk under execution.

The robot executes the rest of the last chunk while the next is computed. The new chunk is guided
towards those actions: fully for the first `delay`, which will be over when it arrives, less and
less for the others, and not at all beyond the plan (Black, Galliker and Levine 2025, "Real-Time
Execution of Action Chunking Flow Policies", alg. 1). No training is needed. The guidance is the
gradient of the squared difference between the plan and the predicted end of the flow
(pseudoinverse guidance, Song et al. 2023).

Shapes: `B` rows, `H` control steps a chunk, `A` action dimensions, `a` of them active.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.actions.flow import FlowMatching
from vla.finite_checks import check_finite
from vla.models.action_expert import ExpertContext
from vla.policies.denoising import DenoisingHead
from vla.policies.head import HeadInput
from vla.policies.vla_policy import VlaPolicy
from vla.types import Observation

MAX_GUIDANCE = 5.0
"""The paper's beta, a bound on the guidance near noise; few steps would overshoot without it."""


def can_continue(policy: object) -> TypeGuard[VlaPolicy[ExpertContext]]:
    """True for policies of flow matching without an adapter, whose chunks can be guided."""
    head = policy.head if isinstance(policy, VlaPolicy) and policy.adapter is None else None
    return isinstance(head, DenoisingHead) and isinstance(head.process, FlowMatching)


def soft_mask(
    delay: Int[Tensor, "B"], num_planned: Int[Tensor, "B"], chunk: int
) -> Float[Tensor, "B H"]:
    """Weights of the plan for each action of a new chunk (eq. 5).

    1 for the first `delay`, then c (e^c - 1) / (e - 1), where c falls linearly to 0 at the end of
    the `num_planned` actions.
    """
    step = torch.arange(chunk, device=delay.device, dtype=torch.float32)[None]
    first = delay[:, None].float()
    last = num_planned[:, None].float()
    c = ((last - step) / (last - first + 1)).clamp(0, 1)
    falling = c * torch.expm1(c) / (torch.e - 1)
    return torch.where(
        step < torch.minimum(first, last), 1.0, torch.where(step < last, falling, 0.0)
    )


def continue_chunk(
    policy: VlaPolicy[ExpertContext],
    observation: Observation,
    plan: Float[Tensor, "B H A"],
    num_planned: Int[Tensor, "B"],
    delay: Int[Tensor, "B"],
    *,
    greedy: bool = False,
) -> Float[Tensor, "B H A"]:
    """Chunks of actions (physical units) that continue a plan.

    `plan` holds `num_planned` actions to execute from now on; the rest of it is ignored. The first
    `delay` of them will be over when the new chunk arrives. Without a plan these are the chunks
    that `act` draws.
    """
    head = policy.head
    assert isinstance(head, DenoisingHead)
    with torch.no_grad():
        inputs = policy.head_input(policy.perceive(observation), observation)
        target = head.normalizer.encode(plan)
        state = torch.zeros(len(plan), head.chunk, head.normalizer.num_active, device=plan.device)
        state = state if greedy else torch.randn_like(state)
    mask = soft_mask(delay, num_planned, head.chunk)[..., None]
    for step, time in enumerate(head.times.tolist()):
        velocity, pull = guided_velocity(head, inputs, state, target, mask, time)
        state = head.process.move(step, state, velocity + guidance_strength(time) * pull)
    check_finite("actions", state)
    return head.normalizer.decode(state.detach())


def guided_velocity(
    head: DenoisingHead,
    inputs: HeadInput[ExpertContext],
    state: Float[Tensor, "B H a"],
    target: Float[Tensor, "B H a"],
    mask: Float[Tensor, "B H 1"],
    time: float,
) -> tuple[Float[Tensor, "B H a"], Float[Tensor, "B H a"]]:
    """The flow's velocity, and the direction that moves its end towards the plan."""
    with torch.enable_grad():
        point = state.detach().requires_grad_()
        at = torch.full((len(state), 1), time, device=state.device)
        velocity = head.predict(inputs, point[:, None], at)[0][:, 0]
        # The end of a straight path from here. Guiding the end, not the present state, gives early
        # steps an effect.
        end = point + (1 - time) * velocity
        (pull,) = torch.autograd.grad(end, point, grad_outputs=(mask * (target - end)).detach())
    return velocity.detach(), pull


def guidance_strength(time: float) -> float:
    """The weight of the guidance at a time t: min(beta, (1 - t) / (t r^2)) with r^2 = (1 - t)^2 /
    (t^2 + (1 - t)^2)."""
    if time == 0:
        return MAX_GUIDANCE
    spread = (1 - time) ** 2 / (time**2 + (1 - time) ** 2)
    return min(MAX_GUIDANCE, (1 - time) / (time * spread))

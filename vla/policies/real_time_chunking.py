"""Real-time chunking: a flow policy's next chunk, drawn so that it goes on where the one under way
will have led.

While a chunk is computed the robot executes what is left of the last one. The new chunk is guided
towards those actions: fully for the `delay` first, which will have been executed when it arrives,
less and less for the others, not at all where nothing was planned (Black, Galliker and Levine 2025,
"Real-Time Execution of Action Chunking Flow Policies", alg. 1). No training is needed: the guidance
is the gradient of the squared difference between the plan and the chunk that the flow is heading
for (pseudoinverse guidance, Song et al. 2023).

Shapes: `H` control steps a chunk, `A` action dimensions, `a` of them active.
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
"""The paper's beta: bounds the guidance near noise, where few steps would otherwise overshoot."""


def can_continue(policy: object) -> TypeGuard[VlaPolicy[ExpertContext]]:
    """Whether chunks of this policy can be guided: those of flow matching."""
    head = policy.head if isinstance(policy, VlaPolicy) else None
    return isinstance(head, DenoisingHead) and isinstance(head.process, FlowMatching)


def soft_mask(
    delay: Int[Tensor, "B"], num_planned: Int[Tensor, "B"], chunk: int
) -> Float[Tensor, "B H"]:
    """How firmly each action of a new chunk is tied to the plan: 1 for the first `delay`, then c
    (e^c - 1) / (e - 1) with a c that falls to 0 at the end of the `num_planned` actions (eq. 5).
    """
    step = torch.arange(chunk, device=delay.device, dtype=torch.float32)[None]
    first, last = delay[:, None].float(), num_planned[:, None].float()
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
    """Chunks of actions (physical units). `plan` holds `num_planned` actions that were to be executed
    from now on (the rest of it is ignored), of which `delay` will have been. With nothing planned
    these are the chunks that `act` draws.
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
    """The flow's velocity, and the direction in which its end comes nearer to the plan."""
    with torch.enable_grad():
        point = state.detach().requires_grad_()
        at = torch.full((len(state), 1), time, device=state.device)
        velocity = head.predict(inputs, point[:, None], at)[0][:, 0]
        # The end of a straight path from here; pulling it towards the plan, not the present state,
        # is what makes early steps count.
        end = point + (1 - time) * velocity
        (pull,) = torch.autograd.grad(end, point, grad_outputs=(mask * (target - end)).detach())
    return velocity.detach(), pull


def guidance_strength(time: float) -> float:
    """min(beta, (1 - t) / (t r^2)) with r^2 = (1 - t)^2 / (t^2 + (1 - t)^2)."""
    if time == 0:
        return MAX_GUIDANCE
    spread = (1 - time) ** 2 / (time**2 + (1 - time) ** 2)
    return min(MAX_GUIDANCE, (1 - time) / (time * spread))

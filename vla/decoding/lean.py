"""Norms, rotations and gated activations of a decoder with gradients of their own, in float32 on a
processor.

Between its products a Llama-like decoder of transformers spends its time in memory: each of these
parts is a chain of small operations, and autograd keeps a tensor for every link. Written as one
operation a part keeps what its gradient cannot do without, and passes over it half as often. The
values are those of the library, to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from vla.decoding.causal import plain_model

ROTATION = "apply_rotary_pos_emb"
"""What modelling files of transformers call their rotation of queries and keys."""


class _Normed(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * w over the last dimension; keeps x and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        factor = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, factor = ctx.saved_tensors
        normed = x * factor
        of_scale = grads[0] * normed
        along = (of_scale @ weight).div_(-len(weight)).unsqueeze(-1)
        of_x = (grads[0] * weight).addcmul_(normed, along).mul_(factor)
        return of_x, of_scale.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


class _Rotated(torch.autograd.Function):
    """x cos + (the halves of x swapped, the first of them negative) sin; keeps cos and sin. Its
    gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        (first, second), (of_first, of_second) = x.chunk(2, -1), sin.chunk(2, -1)
        out = x * cos
        left, right = out.chunk(2, -1)
        left.sub_(second * of_first)
        right.add_(first * of_second)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (first, second), (of_first, of_second) = grads[0].chunk(2, -1), sin.chunk(2, -1)
        out = grads[0] * cos
        left, right = out.chunk(2, -1)
        left.addcmul_(second, of_second)
        right.addcmul_(first, of_first, value=-1)
        return out, None, None


class _Gated(torch.autograd.Function):
    """silu(gate) up; keeps the two of them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), silu(gate).mul_(grads[0])


class RMSNorm(nn.Module):
    """transformers' norm (`weight`, `variance_epsilon`); what does not fit is left to its `own`
    class."""

    own: type[nn.Module]
    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        if not _fits(x):
            return self.own.forward(self, x)
        return _Normed.apply(x, self.weight, self.variance_epsilon)


class GatedMLP(nn.Module):
    """transformers' MLP with a SiLU gate (`gate_proj`, `up_proj`, `down_proj`)."""

    own: type[nn.Module]
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(_Gated.apply(gate, up) if _fits(gate) else silu(gate) * up)


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


class Rotation:
    """`apply_rotary_pos_emb` of transformers; what does not fit is left to the library's `own`."""

    def __init__(self, own: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.own = own

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if (
            not all(_fits(tensor) for tensor in (q, k, cos))
            or cos.requires_grad
            or cos.shape[-1] != q.shape[-1]
        ):
            return self.own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)


@torch.no_grad()
def make_lean(model: nn.Module) -> list[str]:
    """Give the parts of a decoder on a processor their gradients; the names of the classes that
    have them now.

    A part is changed only if it computes on random numbers what its replacement does. Names of
    weights stay as they are. The rotation is a function of the model's modelling file, which all
    models of that file share.
    """
    changed = set()
    verdicts: dict[type, bool] = {}
    for part in plain_model(model).get_decoder().modules():
        kind = type(part)
        lean = _lean_class(part)
        if lean is None:
            continue
        if kind not in verdicts:
            verdicts[kind] = _computes_as(part, lean)
        if verdicts[kind]:
            part.own, part.__class__ = kind, lean
            changed.add(kind.__name__)
    home: Any = sys.modules[type(plain_model(model)).__module__]
    own = getattr(home, ROTATION, None)
    if own is not None and not isinstance(own, Rotation) and _rotates_as(own):
        setattr(home, ROTATION, Rotation(own))
        changed.add(ROTATION)
    return sorted(changed)


def _lean_class(part: nn.Module) -> type[nn.Module] | None:
    if isinstance(part, RMSNorm | GatedMLP):  # it has been changed
        return None
    if hasattr(part, "variance_epsilon") and isinstance(getattr(part, "weight", None), Tensor):
        return RMSNorm
    if all(hasattr(part, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return GatedMLP
    return None


def _computes_as(part: nn.Module, lean: type[nn.Module]) -> bool:
    width = part.weight.shape[0] if lean is RMSNorm else getattr(part.gate_proj, "in_features", 0)
    if not width or not all(_fits(parameter) for parameter in part.parameters()):
        return False
    x = _numbers(0, 2, 3, width)
    usual, kind = part(x), type(part)
    part.__class__ = lean
    equal = torch.equal(part(x), usual)
    part.__class__ = kind
    return equal


def _rotates_as(own: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    q, k = _numbers(0, 1, 4, 3, 8), _numbers(1, 1, 2, 3, 8)
    cos, sin = _numbers(2, 1, 3, 8), _numbers(3, 1, 3, 8)
    try:
        usual = own(q, k, cos, sin)
    except (TypeError, RuntimeError, ValueError):  # a rotation of another kind
        return False
    pairs = zip(usual, Rotation(own)(q, k, cos, sin), strict=False)
    return len(usual) == 2 and all(torch.equal(a, b) for a, b in pairs)


def _numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
